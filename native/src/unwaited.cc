// See unwaited.h.
#include "unwaited.h"

#include <bpf/bpf.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "fd.h"

namespace enforcer {

namespace {

constexpr size_t kStack = 64 * 1024;
// Threads that wait at one time, in the process; who comes then waits itself.
constexpr int kWaiting = 256;
std::atomic<int> waiting{0};

struct Change {
  Fd outer, inner;  // inner: invalid for a removal
  std::vector<uint8_t> key;
  std::atomic<int> result{1};  // 1: under way; 0 or a negative errno
};

int Apply(Change& change) {
  if (!change.inner.valid()) return bpf_map_delete_elem(change.outer.get(), change.key.data()) == 0 ? 0 : -errno;
  __u32 fd = static_cast<__u32>(change.inner.get());
  return bpf_map_update_elem(change.outer.get(), change.key.data(), &fd, BPF_ANY) == 0 ? 0 : -errno;
}

void* Run(void* argument) {
  std::unique_ptr<std::shared_ptr<Change>> change(static_cast<std::shared_ptr<Change>*>(argument));
  (*change)->result = Apply(**change);
  waiting--;
  return nullptr;
}

// A thread of its own for a change. Here: on this CPU, where it runs as soon as the caller yields; on another it may first wait for a
// slice to end there, milliseconds. An error number.
int Begin(std::shared_ptr<Change>* change, bool here) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStack);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  int cpu = here ? sched_getcpu() : -1;
  if (cpu >= 0 && cpu < CPU_SETSIZE) {
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(cpu, &only);
    pthread_attr_setaffinity_np(&attributes, sizeof only, &only);
  }
  pthread_t thread;
  int error = pthread_create(&thread, &attributes, Run, change);
  pthread_attr_destroy(&attributes);
  return error;
}

// What programs find at the key now: an inner map's id, 0 for none.
__u32 Seen(int outer, const void* key) {
  __u32 id = 0;
  return bpf_map_lookup_elem(outer, key, &id) == 0 ? id : 0;
}

}  // namespace

int ChangeInner(int outer, const void* key, size_t key_size, int inner, __u32 inner_id) {
  if (inner < 0 && Seen(outer, key) == 0) return -ENOENT;
  auto change = std::make_shared<Change>();
  change->outer = Fd::Duplicate(outer);
  if (inner >= 0) change->inner = Fd::Duplicate(inner);
  if (!change->outer.valid() || (inner >= 0 && !change->inner.valid())) return -errno;
  change->key.assign(static_cast<const uint8_t*>(key), static_cast<const uint8_t*>(key) + key_size);

  if (waiting++ >= kWaiting) {
    waiting--;
    return Apply(*change);
  }
  auto* handed = new std::shared_ptr<Change>(change);
  static std::atomic<bool> may_place{true};
  int error = Begin(handed, may_place);
  if (error != 0 && may_place) {
    if (error == EPERM) may_place = false;  // a filter of system calls forbids it
    error = Begin(handed, false);
  }
  if (error != 0) {  // no thread to be had: wait here
    delete handed;
    waiting--;
    return Apply(*change);
  }
  for (;;) {
    int result = change->result;
    if (result <= 0) return result;
    if (Seen(outer, key) == (inner < 0 ? 0 : inner_id)) return 0;
    sched_yield();
  }
}

}  // namespace enforcer
