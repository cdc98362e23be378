// SplicePump: the pump (pump.h) as JavaScript sees it.
//
// Holds always: descriptors are duplicated, so the caller closes its own whenever it likes; what has ended is told once, on the loop
// of the thread that made the pump; an environment that ends stops the thread first.
#include "pump.h"

#include <sys/socket.h>

#include <memory>
#include <unordered_map>

#include "addon.h"
#include "error.h"
#include "poll.h"

namespace enforcer {

namespace {

class SplicePump : public Napi::ObjectWrap<SplicePump> {
 public:
  explicit SplicePump(const Napi::CallbackInfo& info);
  ~SplicePump() override { Stop(); }

  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("SplicePump", DefineClass(env, "SplicePump",
                                          {
                                              InstanceAccessor<&SplicePump::GetSize>("size"),
                                              InstanceMethod<&SplicePump::Add>("add"),
                                              InstanceMethod<&SplicePump::Counters>("counters"),
                                              InstanceMethod<&SplicePump::End>("end"),
                                              InstanceMethod<&SplicePump::Close>("close"),
                                          }));
  }

 private:
  void Stop();
  void Ended();
  static Napi::Object LastOf(Napi::Env env, const Pair& pair);
  static void EnvironmentEnds(void* self) { static_cast<SplicePump*>(self)->Stop(); }

  Napi::Value GetSize(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), static_cast<double>(pairs_.size())); }
  Napi::Value Add(const Napi::CallbackInfo& info);
  Napi::Value Counters(const Napi::CallbackInfo& info);
  void End(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  napi_env env_;
  std::unique_ptr<Pump> pump_;
  Poll* poll_ = nullptr;
  Napi::FunctionReference onEnded_;
  std::unordered_map<uint64_t, std::shared_ptr<Pair>> pairs_;
  uint64_t lastId_ = 0;
};

SplicePump::SplicePump(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SplicePump>(info), env_(info.Env()) {
  Args args(env_);
  Napi::Function onEnded = args.Function(info[0], "onEnded");
  if (!args.ok()) return;
  auto pump = std::make_unique<Pump>();
  const char* what = "";
  int error = pump->Start(&what);
  if (error != 0) {
    ThrowErrno(env_, error, {what});
    return;
  }
  pump_ = std::move(pump);
  napi_add_env_cleanup_hook(env_, EnvironmentEnds, this);
  if (!Poll::Start(env_, pump_->endedFd(), &poll_, [](void* self) { static_cast<SplicePump*>(self)->Ended(); }, this)) {
    Stop();
    return;
  }
  onEnded_ = Napi::Persistent(onEnded);
  Ref();
}

// The thread ends and with it every pair; nothing more is told.
void SplicePump::Stop() {
  if (poll_ != nullptr) poll_->Close();
  if (pump_ == nullptr) return;
  pump_.reset();
  napi_remove_env_cleanup_hook(env_, EnvironmentEnds, this);
}

Napi::Object SplicePump::LastOf(Napi::Env env, const Pair& pair) {
  Napi::Object last = Napi::Object::New(env);
  last.Set("id", Napi::Number::New(env, static_cast<double>(pair.id)));
  last.Set("forth", Napi::Number::New(env, static_cast<double>(pair.passed[0])));
  last.Set("back", Napi::Number::New(env, static_cast<double>(pair.passed[1])));
  return last;
}

void SplicePump::Ended() {
  std::vector<uint64_t> ids = pump_->TakeEnded();
  if (ids.empty()) return;
  Napi::Env env = Env();
  Napi::HandleScope scope(env);
  Napi::Array ended = Napi::Array::New(env);
  uint32_t count = 0;
  for (uint64_t id : ids) {
    auto found = pairs_.find(id);
    if (found == pairs_.end()) continue;
    ended.Set(count++, LastOf(env, *found->second));
    pairs_.erase(found);
  }
  CallFromLoop(env, onEnded_, {ended});
}

Napi::Value SplicePump::Add(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (pump_ == nullptr) {
    ThrowClosed(env, "SplicePump.add");
    return {};
  }
  Args args(env);
  uint64_t owner = static_cast<uint64_t>(args.Integer(info[0], "owner", 0, UINT32_MAX));
  int side[2] = {args.Descriptor(info[1], "a"), args.Descriptor(info[2], "b")};
  Bytes first[2] = {args.ByteArray(info[3], "forth"), args.ByteArray(info[4], "back")};
  if (!args.ok()) return {};
  auto pair = std::make_shared<Pair>();
  for (int i = 0; i < 2; i++) {
    // Neither a file nor a blocking socket may hold the thread up.
    int type = 0;
    socklen_t size = sizeof type;
    if (getsockopt(side[i], SOL_SOCKET, SO_TYPE, &type, &size) != 0) {
      ThrowErrno(env, errno, {"getsockopt(SO_TYPE)"});
      return {};
    }
    if (type != SOCK_STREAM) {
      args.FailType("a and b must be stream sockets");
      return {};
    }
    pair->side[i] = Fd::Duplicate(side[i]);
    if (!pair->side[i].valid()) {
      ThrowErrno(env, errno, {"fcntl(F_DUPFD_CLOEXEC)"});
      return {};
    }
    int flags = fcntl(pair->side[i].get(), F_GETFL);
    if ((flags & O_NONBLOCK) == 0) fcntl(pair->side[i].get(), F_SETFL, flags | O_NONBLOCK);
    // Urgent data stays where it is among the rest.
    const int on = 1;
    setsockopt(pair->side[i].get(), SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
    pair->way[i].first.assign(first[i].data, first[i].data + first[i].length);
  }
  pair->held = first[0].length + first[1].length;
  pair->owner = owner;
  pair->id = ++lastId_;
  pairs_.emplace(pair->id, pair);
  Napi::Value id = Napi::Number::New(env, static_cast<double>(pair->id));
  pump_->Add(std::move(pair));
  return id;
}

Napi::Value SplicePump::Counters(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  uint64_t id = static_cast<uint64_t>(args.Integer(info[0], "id", 1, INT64_C(1) << 53));
  if (!args.ok()) return {};
  auto found = pairs_.find(id);
  if (found == pairs_.end()) return env.Null();
  const Pair& pair = *found->second;
  Napi::Object out = Napi::Object::New(env);
  out.Set("forth", Napi::Number::New(env, static_cast<double>(pair.passed[0])));
  out.Set("back", Napi::Number::New(env, static_cast<double>(pair.passed[1])));
  out.Set("held", Napi::Number::New(env, static_cast<double>(pair.held)));
  return out;
}

void SplicePump::End(const Napi::CallbackInfo& info) {
  Args args(info.Env());
  uint64_t id = static_cast<uint64_t>(args.Integer(info[0], "id", 1, INT64_C(1) << 53));
  if (!args.ok()) return;
  auto found = pairs_.find(id);
  if (pump_ != nullptr && found != pairs_.end()) pump_->Condemn(found->second);
}

Napi::Value SplicePump::Close(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Napi::Array left = Napi::Array::New(env);
  if (pump_ == nullptr) return left;
  Stop();
  uint32_t count = 0;
  for (const auto& [id, pair] : pairs_) left.Set(count++, LastOf(env, *pair));
  pairs_.clear();
  // The callback usually holds whoever holds this object.
  onEnded_.Reset();
  Unref();
  return left;
}

}  // namespace

void InitSplice(Napi::Env env, Napi::Object exports) { SplicePump::Init(env, exports); }

}  // namespace enforcer
