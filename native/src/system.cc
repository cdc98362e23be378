// Single facts and acts of the system that Node does not offer: mounting bpffs, file system types, the coarse clock,
// CPUs, capabilities.
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stddef.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "addon.h"
#include "error.h"
#include "fd.h"

namespace enforcer {

namespace {

void MountBpffs(const Napi::CallbackInfo& info) {
  Args args(info.Env());
  std::string path = args.Path(info[0]);
  if (!args.ok()) return;
  if (mount("bpf", path.c_str(), "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") != 0) {
    ThrowErrno(info.Env(), errno, {"mount", path});
  }
}

// sd_notify(3): one datagram; a path that begins with @ is in the abstract name space.
void NotifySocket(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  std::string path = args.Path(info[0]);
  std::string text = args.Path(info[1]);
  if (!args.ok()) return;
  struct sockaddr_un to = {};
  to.sun_family = AF_UNIX;
  if (path.size() < 2 || path.size() >= sizeof(to.sun_path)) {
    ThrowErrno(env, ENAMETOOLONG, {"sendto", path});
    return;
  }
  memcpy(to.sun_path, path.data(), path.size());
  if (to.sun_path[0] == '@') to.sun_path[0] = 0;
  Fd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) {
    ThrowErrno(env, errno, {"socket", path});
    return;
  }
  socklen_t length = static_cast<socklen_t>(offsetof(struct sockaddr_un, sun_path) + path.size());
  if (sendto(fd.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT, reinterpret_cast<struct sockaddr*>(&to), length) < 0) ThrowErrno(env, errno, {"sendto", path});
}

Napi::Value FsType(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  std::string path = args.Path(info[0]);
  if (!args.ok()) return {};
  struct statfs facts;
  if (statfs(path.c_str(), &facts) != 0) {
    ThrowErrno(env, errno, {"statfs", path});
    return {};
  }
  return Napi::Number::New(env, static_cast<double>(static_cast<uint32_t>(facts.f_type)));
}

Napi::Value ClockMonotonicCoarse(const Napi::CallbackInfo& info) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return Napi::BigInt::New(info.Env(), static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec);
}

Napi::Value TickNanoseconds(const Napi::CallbackInfo& info) {
  struct timespec tick;
  clock_getres(CLOCK_MONOTONIC_COARSE, &tick);
  return Napi::Number::New(info.Env(), static_cast<double>(tick.tv_nsec));
}

Napi::Value PossibleCpus(const Napi::CallbackInfo& info) {
  int count = libbpf_num_possible_cpus();
  if (count < 0) {
    ThrowErrno(info.Env(), count, {"libbpf_num_possible_cpus", "/sys/devices/system/cpu/possible"});
    return {};
  }
  return Napi::Number::New(info.Env(), count);
}

Napi::Value LibbpfVersion(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), libbpf_version_string()); }

Napi::Value EffectiveCapabilities(const Napi::CallbackInfo& info) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
  if (syscall(SYS_capget, &header, data) != 0) {
    ThrowErrno(info.Env(), errno, {"capget"});
    return {};
  }
  return Napi::BigInt::New(info.Env(), static_cast<uint64_t>(data[1].effective) << 32 | data[0].effective);
}

// Capabilities belong to a thread, and this process has many before any of our code runs. So the bounding set of this thread is
// reduced and the program is executed anew: an image that starts as root has what the bounding set leaves, on every thread.
void ExecConfined(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  std::string file = args.Path(info[0], "file");
  Napi::Value list = info[1], keepValue = info[2];
  if (args.ok() && !list.IsArray()) args.FailType("arguments must be an array");
  if (args.ok() && !keepValue.IsBigInt()) args.FailType("keep must be a bigint");
  std::vector<std::string> words;
  if (args.ok()) {
    Napi::Array array = list.As<Napi::Array>();
    for (uint32_t i = 0; i < array.Length(); i++) words.push_back(args.Text(array.Get(i), "argument", 1 << 17, true));
  }
  if (!args.ok()) return;
  bool lossless = false;
  uint64_t keep = keepValue.As<Napi::BigInt>().Uint64Value(&lossless);
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability) >= 0; capability++) {
    if ((keep >> capability & 1) == 0 && prctl(PR_CAPBSET_DROP, capability) != 0) {
      ThrowErrno(env, errno, {"prctl(PR_CAPBSET_DROP)"});
      return;
    }
  }
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    ThrowErrno(env, errno, {"prctl(PR_SET_NO_NEW_PRIVS)"});
    return;
  }
  for (int fd = 0; fd <= 2; fd++) fcntl(fd, F_SETFD, 0); // Node closes even these at an execution
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(file.c_str(), argv.data());
  ThrowErrno(env, errno, {"execve", file});
}

// The limit holds for files. Programs that core_pattern names get a dump whatever it says, unless the process is not dumpable; that an
// execution undoes, so it is said by the image that stays.
void ForbidCore(const Napi::CallbackInfo& info) {
  struct rlimit none = {0, 0};
  if (setrlimit(RLIMIT_CORE, &none) != 0) ThrowErrno(info.Env(), errno, {"setrlimit(RLIMIT_CORE)"});
  else if (prctl(PR_SET_DUMPABLE, 0) != 0) ThrowErrno(info.Env(), errno, {"prctl(PR_SET_DUMPABLE)"});
}

}  // namespace

void InitSystem(Napi::Env env, Napi::Object exports) {
  exports.Set("mountBpffs", Napi::Function::New<MountBpffs>(env, "mountBpffs"));
  exports.Set("notifySocket", Napi::Function::New<NotifySocket>(env, "notifySocket"));
  exports.Set("fsType", Napi::Function::New<FsType>(env, "fsType"));
  exports.Set("clockMonotonicCoarse", Napi::Function::New<ClockMonotonicCoarse>(env, "clockMonotonicCoarse"));
  exports.Set("tickNanoseconds", Napi::Function::New<TickNanoseconds>(env, "tickNanoseconds"));
  exports.Set("possibleCpus", Napi::Function::New<PossibleCpus>(env, "possibleCpus"));
  exports.Set("libbpfVersion", Napi::Function::New<LibbpfVersion>(env, "libbpfVersion"));
  exports.Set("execConfined", Napi::Function::New<ExecConfined>(env, "execConfined"));
  exports.Set("forbidCore", Napi::Function::New<ForbidCore>(env, "forbidCore"));
  exports.Set("effectiveCapabilities", Napi::Function::New<EffectiveCapabilities>(env, "effectiveCapabilities"));
}

}  // namespace enforcer
