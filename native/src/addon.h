// What one environment (main thread or worker) holds of the addon: its constructors.
//
// Holds always: an object of these classes is made from C++ only, by Adopt(), which hands over a descriptor; calling
// `new BpfMap()` from JavaScript throws. An object that JavaScript passes back is checked by type tag before it is
// unwrapped, so one class can never be taken for another.
#pragma once

#include <bpf/bpf.h>
#include <napi.h>

#include <string>

#include "args.h"
#include "error.h"
#include "fd.h"

namespace enforcer {

struct Constructors {
  Napi::FunctionReference object, map, program, link;
};

inline Constructors& ConstructorsOf(Napi::Env env) { return *env.GetInstanceData<Constructors>(); }

// Base of the classes that stand for one kernel descriptor. Derived gives: kTag, kName, kConstructor (its member of
// Constructors), and a constructor that ends with an exception pending when the descriptor is not of its kind. Every function
// that returns nothing, an empty value or false has left an exception pending.
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
  static Napi::Value Adopt(Napi::Env env, Fd fd) {
    pending_ = std::move(fd);
    Napi::Value made = (ConstructorsOf(env).*Derived::kConstructor).New({});
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
  // fromPin(path): what is pinned there.
  static Napi::Value FromPin(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    Args args(env);
    std::string path = args.Path(info[0]);
    if (!args.ok()) return {};
    Fd fd(bpf_obj_get(path.c_str()));
    if (!fd.valid()) {
      ThrowErrno(env, errno, {"bpf(BPF_OBJ_GET)", path});
      return {};
    }
    return Adopt(env, std::move(fd));
  }

  // fromId(id), by one of libbpf's three calls; facts names the call, its detail what the id is of.
  static Napi::Value ById(const Napi::CallbackInfo& info, int (*byId)(__u32), ErrorFacts facts) {
    Napi::Env env = info.Env();
    Args args(env);
    uint32_t id = args.U32(info[0], "id");
    if (!args.ok()) return {};
    Fd fd(byId(id));
    if (!fd.valid()) {
      int error = errno;
      facts.detail += " id " + std::to_string(id);
      ThrowErrno(env, error, facts);
      return {};
    }
    return Adopt(env, std::move(fd));
  }

  // method: as JavaScript calls it.
  bool Open(Napi::Env env, const char* method) {
    if (fd_.valid()) return true;
    ThrowClosed(env, (std::string(Derived::kName) + "." + method).c_str());
    return false;
  }

  // fd: the descriptor's number.
  Napi::Value Descriptor(const Napi::CallbackInfo& info) {
    if (!Open(info.Env(), "fd")) return {};
    return Napi::Number::New(info.Env(), fd_.get());
  }

  // pin(path).
  void PinAt(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!Open(env, "pin")) return;
    Args args(env);
    std::string path = args.Path(info[0]);
    if (!args.ok()) return;
    if (bpf_obj_pin(fd_.get(), path.c_str()) != 0) ThrowErrno(env, errno, {"bpf(BPF_OBJ_PIN)", path});
  }

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
// Of the process, once (verify.cc).
void LimitChains();

// "bpf-map", "bpf-prog", "bpf-link" …: what kind of BPF descriptor fd is, from /proc/self/fd; empty when it is none.
std::string BpfKind(int fd);
// memlock of /proc/self/fdinfo/<fd>; -1 with errno set.
int64_t FdMemlock(int fd);

}  // namespace enforcer
