// What one environment (main thread or worker) holds of the addon: its constructors.
//
// Holds always: an object of these classes is made from C++ only, by Adopt(), which hands over a descriptor; calling
// `new BpfMap()` from JavaScript throws. An object that JavaScript passes back is checked by type tag before it is
// unwrapped, so one class can never be taken for another.
#pragma once

#include <napi.h>

#include "args.h"
#include "fd.h"

namespace enforcer {

struct Constructors {
  Napi::FunctionReference object, map, program, link;
};

inline Constructors& ConstructorsOf(Napi::Env env) { return *env.GetInstanceData<Constructors>(); }

// Base of the classes that stand for one kernel descriptor. Derived gives: kTag, kName, and a constructor that ends
// with an exception pending when the descriptor is not of its kind.
template <typename Derived>
class Adopted : public Napi::ObjectWrap<Derived> {
 public:
  explicit Adopted(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Derived>(info), fd_(std::move(pending_)) {
    if (!fd_.valid()) {
      Napi::TypeError::New(info.Env(), std::string(Derived::kName) + " has no public constructor: use its static functions")
          .ThrowAsJavaScriptException();
      return;
    }
    info.This().template As<Napi::Object>().TypeTag(&Derived::kTag);
  }

  // Wraps fd in a new JavaScript object; empty with an exception pending when that fails (fd is closed then).
  static Napi::Value Adopt(Napi::Env env, Napi::FunctionReference& constructor, Fd fd) {
    pending_ = std::move(fd);
    Napi::Value made = constructor.New({});
    pending_.reset();
    return made;
  }

  // The open object behind value; nullptr with an exception pending otherwise.
  static Derived* From(Args& args, const Napi::Value& value, const char* name) {
    if (!args.ok()) return nullptr;
    if (value.IsEmpty() || !value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&Derived::kTag)) {
      args.FailType(std::string(name) + " must be a " + Derived::kName);
      return nullptr;
    }
    Derived* self = Napi::ObjectWrap<Derived>::Unwrap(value.As<Napi::Object>());
    if (!self->fd_.valid()) {
      args.FailType(std::string(name) + " is a closed " + Derived::kName);
      return nullptr;
    }
    return self;
  }

  int fd() const { return fd_.get(); }

 protected:
  Fd fd_;

 private:
  static inline thread_local Fd pending_;
};

void InitObject(Napi::Env env, Napi::Object exports);
void InitMap(Napi::Env env, Napi::Object exports);
void InitProgram(Napi::Env env, Napi::Object exports);
void InitLink(Napi::Env env, Napi::Object exports);
void InitTc(Napi::Env env, Napi::Object exports);
void InitRing(Napi::Env env, Napi::Object exports);
void InitNetlink(Napi::Env env, Napi::Object exports);
void InitNetns(Napi::Env env, Napi::Object exports);
void InitSystem(Napi::Env env, Napi::Object exports);
void InitUdp(Napi::Env env, Napi::Object exports);
void InitTap(Napi::Env env, Napi::Object exports);
void InitSplice(Napi::Env env, Napi::Object exports);

// "bpf-map", "bpf-prog", "bpf-link" …: what kind of BPF descriptor fd is, from /proc/self/fd; empty when it is none.
std::string BpfKind(int fd);
// memlock of /proc/self/fdinfo/<fd>; -1 with errno set.
int64_t FdMemlock(int fd);

}  // namespace enforcer
