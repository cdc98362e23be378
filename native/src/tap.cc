// A tap device's user side, for tests, benchmarks and the self-test. Frames are copied; speed matters only in
// writeRepeated, which never leaves C++.
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

#include <cstring>
#include <vector>

#include "addon.h"
#include "error.h"
#include "poll.h"

namespace enforcer {

namespace {

constexpr int kVnetHeader = 10;         // sizeof(struct virtio_net_hdr)
constexpr size_t kFrame = 68 << 10;     // a 64 KiB segment with headers and room to spare
constexpr size_t kFramesPerWakeup = 64;

class Tap : public Napi::ObjectWrap<Tap> {
 public:
  explicit Tap(const Napi::CallbackInfo& info);
  ~Tap() override {
    if (poll_ != nullptr) poll_->Close();
  }

  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("Tap", DefineClass(env, "Tap",
                                   {
                                       InstanceAccessor<&Tap::GetName>("name"),
                                       InstanceAccessor<&Tap::GetIfindex>("ifindex"),
                                       InstanceAccessor<&Tap::GetFd>("fd"),
                                       InstanceMethod<&Tap::Write>("write"),
                                       InstanceMethod<&Tap::WriteRepeated>("writeRepeated"),
                                       InstanceMethod<&Tap::Read>("read"),
                                       InstanceMethod<&Tap::OnFrames>("onFrames"),
                                       InstanceMethod<&Tap::Close>("close"),
                                   }));
  }

 private:
  bool Open(Napi::Env env, const char* what) {
    if (fd_.valid()) return true;
    ThrowClosed(env, what);
    return false;
  }
  Napi::Value GetName(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), name_); }
  Napi::Value GetIfindex(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), ifindex_); }
  Napi::Value GetFd(const Napi::CallbackInfo& info) {
    if (!Open(info.Env(), "Tap.fd")) return {};
    return Napi::Number::New(info.Env(), fd_.get());
  }
  void Write(const Napi::CallbackInfo& info);
  Napi::Value WriteRepeated(const Napi::CallbackInfo& info);
  Napi::Value Read(const Napi::CallbackInfo& info);
  void OnFrames(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  void Readable();

  Fd fd_;
  Poll* poll_ = nullptr;
  std::string name_;
  int ifindex_ = 0;
  std::vector<uint8_t> buffer_;
  Napi::FunctionReference onFrames_;
};

Tap::Tap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Tap>(info), buffer_(kFrame) {
  Napi::Env env = info.Env();
  Args args(env);
  name_ = args.Text(info[0], "name", IFNAMSIZ - 1);
  Napi::Object options = args.OptionalObject(info[1], "options");
  bool vnetHeader = args.Boolean(args.Get(options, "vnetHeader"), "vnetHeader", false);
  bool multiQueue = args.Boolean(args.Get(options, "multiQueue"), "multiQueue", false);
  bool persist = args.Boolean(args.Get(options, "persist"), "persist", false);
  uint32_t offloads = args.U32(args.Get(options, "offloads"), "offloads", 0);
  if (!args.ok()) return;

  constexpr char kDevice[] = "/dev/net/tun";
  fd_.reset(open(kDevice, O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd_.valid()) {
    ThrowErrno(env, errno, {"open", kDevice});
    return;
  }
  struct ifreq request = {};
  strncpy(request.ifr_name, name_.c_str(), IFNAMSIZ - 1);
  request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | (vnetHeader ? IFF_VNET_HDR : 0) | (multiQueue ? IFF_MULTI_QUEUE : 0));
  const char* step = "ioctl(TUNSETIFF)";
  int failed = ioctl(fd_.get(), TUNSETIFF, &request);
  if (failed == 0) name_ = request.ifr_name;
  if (failed == 0 && vnetHeader) {
    int size = kVnetHeader;
    step = "ioctl(TUNSETVNETHDRSZ)";
    failed = ioctl(fd_.get(), TUNSETVNETHDRSZ, &size);
  }
  if (failed == 0 && offloads != 0) {
    step = "ioctl(TUNSETOFFLOAD)";
    failed = ioctl(fd_.get(), TUNSETOFFLOAD, static_cast<unsigned long>(offloads));
  }
  if (failed == 0 && persist) {
    step = "ioctl(TUNSETPERSIST)";
    failed = ioctl(fd_.get(), TUNSETPERSIST, 1UL);
  }
  if (failed == 0) {
    step = "if_nametoindex";
    ifindex_ = static_cast<int>(if_nametoindex(name_.c_str()));
    failed = ifindex_ > 0 ? 0 : -1;
  }
  if (failed != 0) ThrowErrno(env, errno, {step, name_});
}

void Tap::Write(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "Tap.write")) return;
  Args args(env);
  Bytes frame = args.ByteArray(info[0], "frame");
  if (!args.ok()) return;
  ssize_t written = write(fd_.get(), frame.data, frame.length);
  if (written < 0) ThrowErrno(env, errno, {"write", name_, ifindex_});
}

Napi::Value Tap::WriteRepeated(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "Tap.writeRepeated")) return {};
  Args args(env);
  Bytes frame = args.ByteArray(info[0], "frame");
  int64_t count = args.Integer(info[1], "count", 1, 1000000000);
  if (!args.ok()) return {};
  struct timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (int64_t i = 0; i < count;) {
    if (write(fd_.get(), frame.data, frame.length) >= 0) {
      i++;
    } else if (errno == EAGAIN) {
      struct pollfd room = {fd_.get(), POLLOUT, 0};
      ::poll(&room, 1, 1000);
    } else if (errno != EINTR) {
      ThrowErrno(env, errno, {"write", name_, ifindex_, "frame " + std::to_string(i) + " of " + std::to_string(count)});
      return {};
    }
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  return Napi::Number::New(env, static_cast<double>(end.tv_sec - begin.tv_sec) * 1e9 + static_cast<double>(end.tv_nsec - begin.tv_nsec));
}

Napi::Value Tap::Read(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "Tap.read")) return {};
  ssize_t length = read(fd_.get(), buffer_.data(), buffer_.size());
  if (length < 0) {
    if (errno == EAGAIN || errno == EINTR) return env.Null();
    ThrowErrno(env, errno, {"read", name_, ifindex_});
    return {};
  }
  return Napi::Buffer<uint8_t>::Copy(env, buffer_.data(), static_cast<size_t>(length));
}

void Tap::OnFrames(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "Tap.onFrames")) return;
  Args args(env);
  Napi::Function callback = args.Function(info[0], "callback");
  if (!args.ok()) return;
  onFrames_ = Napi::Persistent(callback);
  if (poll_ == nullptr && Poll::Start(env, fd_.get(), &poll_, [](void* self) { static_cast<Tap*>(self)->Readable(); }, this)) Ref();
}

void Tap::Readable() {
  Napi::Env env = Env();
  Napi::HandleScope scope(env);
  Napi::Array frames = Napi::Array::New(env);
  while (frames.Length() < kFramesPerWakeup) {
    ssize_t length = read(fd_.get(), buffer_.data(), buffer_.size());
    if (length < 0) {
      if (errno == EINTR) continue;
      // The device was deleted under us: nothing will come any more, and the loop would spin on the error.
      if (errno != EAGAIN && poll_ != nullptr) {
        poll_->Close();
        Unref();
      }
      break;
    }
    frames.Set(frames.Length(), Napi::Buffer<uint8_t>::Copy(env, buffer_.data(), static_cast<size_t>(length)));
  }
  if (frames.Length() > 0) CallFromLoop(env, onFrames_, {frames});
}

void Tap::Close(const Napi::CallbackInfo&) {
  if (poll_ != nullptr) {
    poll_->Close();
    Unref();
  }
  fd_.reset();
  onFrames_.Reset();  // it usually holds whoever holds this object
}

}  // namespace

void InitTap(Napi::Env env, Napi::Object exports) { Tap::Init(env, exports); }

}  // namespace enforcer
