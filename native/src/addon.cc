// Entry of the addon: registers every class and function. Context-aware, so any number of workers may load it.
#include "addon.h"

#include <malloc.h>
#include <cstdio>
#include <cstring>
#include <string>

#include "error.h"

namespace enforcer {

std::string BpfKind(int fd) {
  char path[64], target[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(path, target, sizeof target - 1);
  if (length < 0) return {};
  target[length] = 0;
  constexpr char kPrefix[] = "anon_inode:";
  if (strncmp(target, kPrefix, sizeof kPrefix - 1) != 0) return {};
  return target + sizeof kPrefix - 1;
}

int64_t FdMemlock(int fd) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  FILE* file = fopen(path, "re");
  if (file == nullptr) return -1;
  char line[256];
  long long octets = -1;
  while (fgets(line, sizeof line, file) != nullptr) {
    if (sscanf(line, "memlock: %lld", &octets) == 1) break;
  }
  fclose(file);
  if (octets < 0) errno = ENODATA;
  return octets;
}

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  SilenceLibbpf();
  LimitChains();
  // malloc gives each thread an arena of its own, up to eight for each CPU, and memory that one thread frees is not another's:
  // what the agent's threads pass around would pile up in them. Two grow no further once they are warm.
  mallopt(M_ARENA_MAX, 2);
  env.SetInstanceData(new Constructors());
  InitObject(env, exports);
  InitMap(env, exports);
  InitProgram(env, exports);
  InitLink(env, exports);
  InitTc(env, exports);
  InitRing(env, exports);
  InitNetlink(env, exports);
  InitNetns(env, exports);
  InitSystem(env, exports);
  InitUdp(env, exports);
  InitTap(env, exports);
  InitSplice(env, exports);
  return exports;
}

NODE_API_MODULE(enforcer_native, Init)

}  // namespace enforcer
