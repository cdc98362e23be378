// Ring buffer on the event loop: libbpf's epoll descriptor under uv_poll, no thread.
//
// Holds always: one callback per wake-up, at most kRecords records in it; when more wait, the descriptor stays readable
// and the loop comes back for them after whatever else it has to do. The consumer position is moved before the callback,
// so a record is seen once.
#include <bpf/libbpf.h>

#include "addon.h"
#include "error.h"
#include "map.h"
#include "poll.h"

namespace enforcer {

namespace {

constexpr uint32_t kRecords = 4096;

class RingBuffer : public Napi::ObjectWrap<RingBuffer> {
 public:
  explicit RingBuffer(const Napi::CallbackInfo& info) : Napi::ObjectWrap<RingBuffer>(info) {
    Napi::Env env = info.Env();
    Args args(env);
    BpfMap* map = BpfMap::From(args, info[0], "map");
    Napi::Function onRecords = args.Function(info[1], "onRecords");
    if (!args.ok()) return;
    LibbpfLog log;
    ring_ = ring_buffer__new(map->fd(), &RingBuffer::Sample, this, nullptr);
    if (ring_ == nullptr) {
      ThrowErrno(env, errno, {"ring_buffer__new", {}, 0, log.LastLine()});
      return;
    }
    onRecords_ = Napi::Persistent(onRecords);
    if (Poll::Start(env, ring_buffer__epoll_fd(ring_), &poll_, [](void* self) { static_cast<RingBuffer*>(self)->Readable(); }, this)) Ref();
  }

  ~RingBuffer() override {
    if (poll_ != nullptr) poll_->Close();
    ring_buffer__free(ring_);
  }

  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("RingBuffer", DefineClass(env, "RingBuffer",
                                          {
                                              InstanceMethod<&RingBuffer::Drain>("drain"),
                                              InstanceMethod<&RingBuffer::Close>("close"),
                                          }));
  }

 private:
  // A negative return stops libbpf after this record, which counts as consumed.
  static int Sample(void* context, void* data, size_t size) {
    RingBuffer* self = static_cast<RingBuffer*>(context);
    self->records_.Set(self->count_++, Napi::Buffer<uint8_t>::Copy(self->Env(), static_cast<uint8_t*>(data), size));
    return self->count_ < kRecords ? 0 : -ENOBUFS;
  }

  // What waits now, at most kRecords.
  Napi::Array Take(uint32_t& count) {
    records_ = Napi::Array::New(Env());
    count_ = 0;
    ring_buffer__consume(ring_);
    count = count_;
    return std::move(records_);
  }

  void Readable() {
    Napi::HandleScope scope(Env());
    uint32_t count;
    Napi::Array records = Take(count);
    if (count > 0) CallFromLoop(Env(), onRecords_, {records});
  }

  void Drain(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (ring_ == nullptr) {
      ThrowClosed(env, "RingBuffer.drain");
      return;
    }
    // The callback may close the ring.
    for (uint32_t count = kRecords; count == kRecords && ring_ != nullptr && !env.IsExceptionPending();) {
      Napi::HandleScope scope(env);
      Napi::Array records = Take(count);
      if (count > 0) onRecords_.Call({records});
    }
  }

  void Close(const Napi::CallbackInfo&) {
    if (ring_ == nullptr) return;
    if (poll_ != nullptr) {
      poll_->Close();
      Unref();
    }
    ring_buffer__free(ring_);
    ring_ = nullptr;
    onRecords_.Reset();  // it usually holds whoever holds this object
  }

  struct ring_buffer* ring_ = nullptr;
  Poll* poll_ = nullptr;
  Napi::FunctionReference onRecords_;
  // Only within Take:
  Napi::Array records_;
  uint32_t count_ = 0;
};

}  // namespace

void InitRing(Napi::Env env, Napi::Object exports) { RingBuffer::Init(env, exports); }

}  // namespace enforcer
