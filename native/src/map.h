// BpfMap: one BPF map, by descriptor. See index.d.ts.
#pragma once

#include <linux/bpf.h>

#include <vector>

#include "addon.h"

namespace enforcer {

class BpfMap : public Adopted<BpfMap> {
 public:
  static constexpr const char* kName = "BpfMap";
  static constexpr napi_type_tag kTag = {0x6d61702d656e6666, 0x9d2a1b3c40e75f01};
  static constexpr auto kConstructor = &Constructors::map;

  explicit BpfMap(const Napi::CallbackInfo& info);
  static void Init(Napi::Env env, Napi::Object exports);

  const bpf_map_info& info() const { return info_; }

 private:
  static Napi::Value Create(const Napi::CallbackInfo& info);
  static Napi::Value FromId(const Napi::CallbackInfo& info);
  static Napi::Value FromFd(const Napi::CallbackInfo& info);

  Napi::Value GetFd(const Napi::CallbackInfo& info) { return Descriptor(info); }
  Napi::Value GetInfo(const Napi::CallbackInfo& info);
  Napi::Value Memory(const Napi::CallbackInfo& info);
  Napi::Value Lookup(const Napi::CallbackInfo& info);
  Napi::Value LookupInto(const Napi::CallbackInfo& info);
  void Update(const Napi::CallbackInfo& info);
  void UpdateInner(const Napi::CallbackInfo& info);
  Napi::Value Delete(const Napi::CallbackInfo& info);
  Napi::Value NextKey(const Napi::CallbackInfo& info);
  void UpdateBatch(const Napi::CallbackInfo& info);
  Napi::Value Entries(const Napi::CallbackInfo& info);
  Napi::Value Page(const Napi::CallbackInfo& info);
  Napi::Value DeleteBatch(const Napi::CallbackInfo& info);
  void Pin(const Napi::CallbackInfo& info) { PinAt(info); }
  void Close(const Napi::CallbackInfo&) { fd_.reset(); }

  // Entries() where the map type has no batch lookup.
  bool Walk(Napi::Env env, std::vector<uint8_t>& keys, std::vector<uint8_t>& values, size_t& count);

  bpf_map_info info_ = {};
  // Octets of a value as the syscall sees it: all CPUs' values for a per-CPU map.
  size_t element_ = 0;
  std::vector<uint8_t> scratch_;
};

// libbpf's name of a map type ("hash", "lpm_trie"), or "type_<n>" for one it does not know.
std::string MapTypeName(uint32_t type);
// 0 for an unknown name.
uint32_t MapTypeNumber(const std::string& name);

}  // namespace enforcer
