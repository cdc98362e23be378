// Errors as JavaScript sees them: code, syscall, path, ifindex, verifier.
//
// Holds always: libbpf prints nothing; what it has to say during one call is kept for that call's error, per thread.
// These functions leave a JavaScript exception pending; the caller returns at once.
#pragma once

#include <napi.h>

#include <string>

namespace enforcer {

struct ErrorFacts {
  const char* syscall = "";
  std::string path = {};
  int ifindex = 0;
  std::string detail = {};    // goes into the message only
  std::string verifier = {};  // becomes a property and goes into the message
  const char* code = nullptr;  // instead of the errno's own name (EWOULDBLOCK for EAGAIN)
};

// error is an errno value, positive or negative.
void ThrowErrno(Napi::Env env, int error, const ErrorFacts& facts);
// Use of a closed object: EBADF.
void ThrowClosed(Napi::Env env, const char* what);

// Collects what libbpf says on this thread while it exists. May not be nested.
class LibbpfLog {
 public:
  LibbpfLog();
  ~LibbpfLog();
  LibbpfLog(const LibbpfLog&) = delete;
  LibbpfLog& operator=(const LibbpfLog&) = delete;

  // The most telling of libbpf's own lines, without the "libbpf: " in front; empty when it said nothing.
  std::string LastLine() const;
  // The verifier's last useful line; empty when no program was refused.
  std::string VerifierLine() const;
  // Name of the program that was refused, and the source line the verifier stood at where BTF gave it.
  std::string VerifierPlace() const;

 private:
  std::string text_;
};

// Once per process: makes libbpf silent.
void SilenceLibbpf();

}  // namespace enforcer
