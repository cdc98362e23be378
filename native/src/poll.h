// Readiness of a descriptor on the event loop of the thread that asks.
//
// Holds always: the uv_poll_t outlives its owner until libuv has let go of it; an environment that ends (worker
// terminated, process exit) closes it first through an async cleanup hook, so no loop is torn down with a live handle.
// Keeps the loop alive until closed, as a Node socket does.
#pragma once

#include <napi.h>
#include <uv.h>

#include <initializer_list>

namespace enforcer {

class Poll {
 public:
  using OnReadable = void (*)(void* owner);

  // Polls fd for reading and sets *slot; false with an exception pending. The environment's end sets *slot to null.
  static bool Start(Napi::Env env, int fd, Poll** slot, OnReadable onReadable, void* owner);
  // Stops at once and sets *slot to null; the memory is freed later by the loop.
  void Close();

 private:
  Poll() = default;

  uv_poll_t handle_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  Poll** slot_ = nullptr;
  OnReadable onReadable_ = nullptr;
  void* owner_ = nullptr;
};

// Calls function from the loop (microtasks run afterwards). What it throws becomes an uncaught exception.
void CallFromLoop(Napi::Env env, const Napi::FunctionReference& function, std::initializer_list<napi_value> arguments);

}  // namespace enforcer
