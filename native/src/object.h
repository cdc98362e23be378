// BpfObject: an object file, opened and loaded. See index.d.ts.
#pragma once

#include <bpf/libbpf.h>

#include <map>
#include <string>

#include "addon.h"

namespace enforcer {

class BpfObject : public Napi::ObjectWrap<BpfObject> {
 public:
  explicit BpfObject(const Napi::CallbackInfo& info);
  ~BpfObject() override;
  static void Init(Napi::Env env, Napi::Object exports);

 private:
  struct Template {
    uint32_t type, keySize, valueSize, maxEntries, flags;
  };

  static Napi::Value Load(const Napi::CallbackInfo& info);
  Napi::Value Maps(const Napi::CallbackInfo& info);
  Napi::Value Programs(const Napi::CallbackInfo& info);
  Napi::Value MapNamed(const Napi::CallbackInfo& info);
  Napi::Value ProgramNamed(const Napi::CallbackInfo& info);
  Napi::Value Layout(const Napi::CallbackInfo& info);
  Napi::Value InnerTemplate(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);

  bool Open(Napi::Env env, const char* what);
  // Each throws and returns false on failure.
  bool Configure(Args& args, const Napi::Object& options);
  bool TakePin(Napi::Env env, const std::string& name, const std::string& path);
  bool LoadIntoKernel(Napi::Env env);
  struct bpf_map* FindMap(Napi::Env env, const std::string& name);
  struct bpf_program* FindProgram(Napi::Env env, const std::string& name);

  struct bpf_object* object_ = nullptr;
  std::string path_;
  // libbpf forgets the inner maps' definitions while loading, so they are kept here.
  std::map<std::string, Template> templates_;
};

}  // namespace enforcer
