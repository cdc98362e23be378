// BpfProgram: one loaded program, by descriptor. See index.d.ts.
#pragma once

#include "addon.h"

namespace enforcer {

class BpfProgram : public Adopted<BpfProgram> {
 public:
  static constexpr const char* kName = "BpfProgram";
  static constexpr napi_type_tag kTag = {0x70726f672d656e66, 0x3c5f8e1a92b7d402};
  static constexpr auto kConstructor = &Constructors::program;

  explicit BpfProgram(const Napi::CallbackInfo& info);
  static void Init(Napi::Env env, Napi::Object exports);

 private:
  static Napi::Value FromId(const Napi::CallbackInfo& info);
  static Napi::Value TailCall(const Napi::CallbackInfo& info);

  Napi::Value GetFd(const Napi::CallbackInfo& info) { return Descriptor(info); }
  Napi::Value GetInfo(const Napi::CallbackInfo& info);
  Napi::Value TestRun(const Napi::CallbackInfo& info);
  void Pin(const Napi::CallbackInfo& info) { PinAt(info); }
  void Close(const Napi::CallbackInfo&) { fd_.reset(); }
};

}  // namespace enforcer
