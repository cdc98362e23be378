// Network namespaces of the calling thread, and plain descriptors.
//
// Holds always: a namespace call changes the calling thread only, and createNetns leaves it where it was; a thread that
// cannot be brought back ends the process, since it would go on in a namespace nobody meant.
#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "addon.h"
#include "error.h"

namespace enforcer {

namespace {

constexpr char kOwn[] = "/proc/thread-self/ns/net";

Napi::Value OpenNetns(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  std::string path = info[0].IsUndefined() ? kOwn : args.Path(info[0]);
  if (!args.ok()) return {};
  Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    ThrowErrno(env, errno, {"open", path});
    return {};
  }
  return Napi::Number::New(env, fd.release());
}

void SetNetns(const Napi::CallbackInfo& info) {
  Args args(info.Env());
  int fd = args.Descriptor(info[0], "fd");
  if (!args.ok()) return;
  if (setns(fd, CLONE_NEWNET) != 0) ThrowErrno(info.Env(), errno, {"setns"});
}

Napi::Value CreateNetns(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Fd before(open(kOwn, O_RDONLY | O_CLOEXEC));
  if (!before.valid()) {
    ThrowErrno(env, errno, {"open", kOwn});
    return {};
  }
  if (unshare(CLONE_NEWNET) != 0) {
    ThrowErrno(env, errno, {"unshare(CLONE_NEWNET)"});
    return {};
  }
  Fd made(open(kOwn, O_RDONLY | O_CLOEXEC));
  int error = errno;
  if (setns(before.get(), CLONE_NEWNET) != 0) {
    Napi::Error::Fatal("createNetns", "cannot return to the network namespace the thread was in");
  }
  if (!made.valid()) {
    ThrowErrno(env, error, {"open", kOwn});
    return {};
  }
  return Napi::Number::New(env, made.release());
}

Napi::Value NetnsInode(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  int fd = args.Descriptor(info[0], "fd");
  if (!args.ok()) return {};
  struct stat facts;
  if (fstat(fd, &facts) != 0) {
    ThrowErrno(env, errno, {"fstat"});
    return {};
  }
  return Napi::Number::New(env, static_cast<double>(facts.st_ino));
}

void CloseFd(const Napi::CallbackInfo& info) {
  Args args(info.Env());
  int fd = args.Descriptor(info[0], "fd");
  if (!args.ok()) return;
  if (close(fd) != 0) ThrowErrno(info.Env(), errno, {"close"});
}

Napi::Value LockFile(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  std::string path = args.Path(info[0]);
  if (!args.ok()) return {};
  // A directory serves as a lock too: on a BPF file system there are no ordinary files.
  struct stat there;
  bool directory = lstat(path.c_str(), &there) == 0 && S_ISDIR(there.st_mode);
  Fd fd(open(path.c_str(), (directory ? O_RDONLY | O_DIRECTORY : O_RDWR | O_CREAT) | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) {
    ThrowErrno(env, errno, {"open", path});
    return {};
  }
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    ErrorFacts facts = {"flock", path};
    if (errno == EWOULDBLOCK) facts.code = "EWOULDBLOCK";
    ThrowErrno(env, errno, facts);
    return {};
  }
  return Napi::Number::New(env, fd.release());
}

}  // namespace

void InitNetns(Napi::Env env, Napi::Object exports) {
  exports.Set("openNetns", Napi::Function::New<OpenNetns>(env, "openNetns"));
  exports.Set("setNetns", Napi::Function::New<SetNetns>(env, "setNetns"));
  exports.Set("createNetns", Napi::Function::New<CreateNetns>(env, "createNetns"));
  exports.Set("netnsInode", Napi::Function::New<NetnsInode>(env, "netnsInode"));
  exports.Set("closeFd", Napi::Function::New<CloseFd>(env, "closeFd"));
  exports.Set("lockFile", Napi::Function::New<LockFile>(env, "lockFile"));
}

}  // namespace enforcer
