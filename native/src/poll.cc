// uv_poll with a life of its own. See poll.h.
#include "poll.h"

#include "error.h"

namespace enforcer {

bool Poll::Start(Napi::Env env, int fd, Poll** slot, OnReadable onReadable, void* owner) {
  uv_loop_t* loop = nullptr;
  napi_get_uv_event_loop(env, &loop);
  Poll* poll = new Poll();
  int error = uv_poll_init(loop, &poll->handle_, fd);
  if (error != 0) {  // libuv has not taken the handle
    delete poll;
    ErrorFacts facts;
    facts.syscall = "uv_poll_init";
    ThrowErrno(env, error, facts);
    return false;
  }
  poll->handle_.data = poll;
  poll->slot_ = slot;
  poll->onReadable_ = onReadable;
  poll->owner_ = owner;
  *slot = poll;
  napi_add_async_cleanup_hook(
      env, [](napi_async_cleanup_hook_handle, void* data) { static_cast<Poll*>(data)->Close(); }, poll, &poll->hook_);
  error = uv_poll_start(&poll->handle_, UV_READABLE, [](uv_poll_t* handle, int, int) {
    // An error (device gone) is found by the owner's read, which gets its errno.
    Poll* self = static_cast<Poll*>(handle->data);
    self->onReadable_(self->owner_);
  });
  if (error != 0) {
    poll->Close();
    ErrorFacts facts;
    facts.syscall = "uv_poll_start";
    ThrowErrno(env, error, facts);
    return false;
  }
  return true;
}

void Poll::Close() {
  if (slot_ == nullptr) return;
  *slot_ = nullptr;
  slot_ = nullptr;
  uv_poll_stop(&handle_);
  uv_close(reinterpret_cast<uv_handle_t*>(&handle_), [](uv_handle_t* handle) {
    Poll* self = static_cast<Poll*>(handle->data);
    napi_remove_async_cleanup_hook(self->hook_);
    delete self;
  });
}

void CallFromLoop(Napi::Env env, const Napi::FunctionReference& function, std::initializer_list<napi_value> arguments) {
  napi_value result = nullptr;
  napi_status status =
      napi_make_callback(env, nullptr, env.Global(), function.Value(), arguments.size(), arguments.begin(), &result);
  if (status != napi_pending_exception) return;
  napi_value thrown = nullptr;
  if (napi_get_and_clear_last_exception(env, &thrown) == napi_ok && thrown != nullptr) napi_fatal_exception(env, thrown);
}

}  // namespace enforcer
