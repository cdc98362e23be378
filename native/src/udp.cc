// UDP in batches: the speed path of DNS.
//
// Holds always: nothing is allocated per datagram on either way. What JavaScript sees of a batch lies in memory that is
// reused for the next; that memory lives until both this object and the last JavaScript view of it are gone, and it
// cannot be transferred to another thread. Sending never blocks: what the socket does not take is counted as dropped.
// An IPv6 socket is IPv6 only, so a peer's family is always the socket's.
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <memory>
#include <vector>

#include "addon.h"
#include "error.h"
#include "poll.h"

namespace enforcer {

namespace {

constexpr size_t kPeer = 20;            // octets of a peer: family, port, address
constexpr size_t kLargest = 65507;      // UDP payload over IPv4; IPv6 without jumbograms allows 20 more
constexpr size_t kQueue = 256;          // datagrams queued for sending
constexpr size_t kQueueOctets = 256 << 10;

using Block = std::shared_ptr<std::vector<uint8_t>>;

// A Buffer over the block's memory, which the Buffer keeps alive. External buffers cannot be transferred away.
napi_value View(napi_env env, const Block& block) {
  napi_value buffer = nullptr;
  Block* held = new Block(block);
  napi_status status = napi_create_external_buffer(
      env, block->size(), block->data(), [](napi_env, void*, void* hint) { delete static_cast<Block*>(hint); }, held, &buffer);
  if (status != napi_ok) delete held;
  return buffer;
}

void Put16(uint8_t* at, uint16_t value) {  // little-endian
  at[0] = static_cast<uint8_t>(value);
  at[1] = static_cast<uint8_t>(value >> 8);
}

uint16_t Get16(const uint8_t* at) { return static_cast<uint16_t>(at[0] | at[1] << 8); }

constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

union Address {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
};

void PutPeer(uint8_t* at, const Address& address) {
  if (address.any.sa_family == AF_INET) {
    Put16(at, 4);
    Put16(at + 2, ntohs(address.v4.sin_port));
    memcpy(at + 4, kMapped, sizeof kMapped);
    memcpy(at + 16, &address.v4.sin_addr, 4);
  } else {
    Put16(at, 6);
    Put16(at + 2, ntohs(address.v6.sin6_port));
    memcpy(at + 4, &address.v6.sin6_addr, 16);
  }
}

class UdpBatch : public Napi::ObjectWrap<UdpBatch> {
 public:
  explicit UdpBatch(const Napi::CallbackInfo& info);
  ~UdpBatch() override {
    if (poll_ != nullptr) poll_->Close();
  }

  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("UdpBatch", DefineClass(env, "UdpBatch",
                                        {
                                            InstanceAccessor<&UdpBatch::GetAddress>("address"),
                                            InstanceAccessor<&UdpBatch::GetDropped>("dropped"),
                                            InstanceMethod<&UdpBatch::Send>("send"),
                                            InstanceMethod<&UdpBatch::Flush>("flush"),
                                            InstanceMethod<&UdpBatch::Close>("close"),
                                        }));
  }

 private:
  bool Bind(Args& args, const Napi::Object& options);
  bool MakeBuffers(Napi::Env env);
  void Readable();
  void Transmit();

  Napi::Value GetAddress(const Napi::CallbackInfo& info);
  Napi::Value GetDropped(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), static_cast<double>(dropped_)); }
  void Send(const Napi::CallbackInfo& info);
  void Flush(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);

  Fd fd_;
  Poll* poll_ = nullptr;
  Napi::FunctionReference onBatch_;
  Napi::ObjectReference data_, lengths_, peers_;
  int family_ = AF_INET;
  uint32_t scope_ = 0;  // index of the device bound to, for link-local peers

  size_t cell_ = 0, batch_ = 0;
  Block dataBlock_, lengthsBlock_, peersBlock_;
  std::vector<mmsghdr> in_;
  std::vector<iovec> inVectors_;
  std::vector<Address> inAddresses_;

  std::vector<mmsghdr> out_;
  std::vector<iovec> outVectors_;
  std::vector<Address> outAddresses_;
  std::vector<uint8_t> outOctets_;
  size_t queued_ = 0, queuedOctets_ = 0;
  uint64_t dropped_ = 0;
};

UdpBatch::UdpBatch(const Napi::CallbackInfo& info) : Napi::ObjectWrap<UdpBatch>(info) {
  Napi::Env env = info.Env();
  Args args(env);
  Napi::Object options = args.Object(info[0], "options");
  cell_ = static_cast<size_t>(args.Integer(args.Get(options, "cellSize"), "cellSize", 64, 65536, 2048));
  batch_ = static_cast<size_t>(args.Integer(args.Get(options, "batch"), "batch", 1, 1024, 64));
  Napi::Function onBatch = args.Function(info[1], "onBatch");
  if (!args.ok() || !Bind(args, options) || !MakeBuffers(env)) return;
  onBatch_ = Napi::Persistent(onBatch);
  if (Poll::Start(env, fd_.get(), &poll_, [](void* self) { static_cast<UdpBatch*>(self)->Readable(); }, this)) Ref();
}

bool UdpBatch::Bind(Args& args, const Napi::Object& options) {
  Napi::Env env = args.env();
  std::string text = args.Text(args.Get(options, "address"), "address", INET6_ADDRSTRLEN);
  uint16_t port = static_cast<uint16_t>(args.Integer(args.Get(options, "port"), "port", 0, UINT16_MAX));
  Napi::Value deviceValue = args.Get(options, "device");
  std::string device;
  if (args.ok() && !deviceValue.IsUndefined()) device = args.Text(deviceValue, "device", IFNAMSIZ - 1);
  bool reusePort = args.Boolean(args.Get(options, "reusePort"), "reusePort", false);
  int receiveBuffer = static_cast<int>(args.Integer(args.Get(options, "receiveBuffer"), "receiveBuffer", 0, 1 << 30, 0));
  Address own = {};
  if (args.ok()) {
    if (inet_pton(AF_INET, text.c_str(), &own.v4.sin_addr) == 1) {
      own.v4.sin_family = AF_INET;
      own.v4.sin_port = htons(port);
    } else if (inet_pton(AF_INET6, text.c_str(), &own.v6.sin6_addr) == 1) {
      own.v6.sin6_family = AF_INET6;
      own.v6.sin6_port = htons(port);
    } else {
      args.FailRange("address must be a numeric IPv4 or IPv6 address");
    }
  }
  if (!args.ok()) return false;
  family_ = own.any.sa_family;

  const int on = 1;
  const char* step = "socket";
  fd_.reset(socket(family_, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  bool done = fd_.valid();
  if (done && family_ == AF_INET6) {
    step = "setsockopt(IPV6_V6ONLY)";
    done = setsockopt(fd_.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0;
  }
  if (done && !device.empty()) {
    step = "setsockopt(SO_BINDTODEVICE)";
    done = setsockopt(fd_.get(), SOL_SOCKET, SO_BINDTODEVICE, device.data(), static_cast<socklen_t>(device.size())) == 0;
    scope_ = if_nametoindex(device.c_str());
  }
  if (done && reusePort) {
    step = "setsockopt(SO_REUSEPORT)";
    done = setsockopt(fd_.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) == 0;
  }
  if (done && receiveBuffer > 0) {
    step = "setsockopt(SO_RCVBUFFORCE)";
    done = setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &receiveBuffer, sizeof receiveBuffer) == 0;
  }
  if (done) {
    step = "bind";
    if (family_ == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&own.v6.sin6_addr)) own.v6.sin6_scope_id = scope_;
    done = bind(fd_.get(), &own.any, family_ == AF_INET ? sizeof own.v4 : sizeof own.v6) == 0;
  }
  if (!done) {
    int error = errno;
    fd_.reset();
    std::string place = family_ == AF_INET ? text : "[" + text + "]";
    ThrowErrno(env, error, {step, {}, 0, place + ":" + std::to_string(port) + (device.empty() ? "" : " on " + device)});
  }
  return done;
}

bool UdpBatch::MakeBuffers(Napi::Env env) {
  dataBlock_ = std::make_shared<std::vector<uint8_t>>(batch_ * cell_);
  lengthsBlock_ = std::make_shared<std::vector<uint8_t>>(batch_ * sizeof(uint32_t));
  peersBlock_ = std::make_shared<std::vector<uint8_t>>(batch_ * kPeer);
  napi_value data = View(env, dataBlock_), lengths = View(env, lengthsBlock_), peers = View(env, peersBlock_);
  napi_value arrayBuffer = nullptr, words = nullptr;
  if (data == nullptr || lengths == nullptr || peers == nullptr ||
      napi_get_typedarray_info(env, lengths, nullptr, nullptr, nullptr, &arrayBuffer, nullptr) != napi_ok ||
      napi_create_typedarray(env, napi_uint32_array, batch_, arrayBuffer, 0, &words) != napi_ok) {
    ThrowErrno(env, ENOMEM, {"napi_create_external_buffer"});
    return false;
  }
  data_ = Napi::Persistent(Napi::Object(env, data));
  lengths_ = Napi::Persistent(Napi::Object(env, words));
  peers_ = Napi::Persistent(Napi::Object(env, peers));

  in_.resize(batch_);
  inVectors_.resize(batch_);
  inAddresses_.resize(batch_);
  for (size_t i = 0; i < batch_; i++) {
    inVectors_[i] = {dataBlock_->data() + i * cell_, cell_};
    in_[i] = {};
    in_[i].msg_hdr.msg_iov = &inVectors_[i];
    in_[i].msg_hdr.msg_iovlen = 1;
    in_[i].msg_hdr.msg_name = &inAddresses_[i];
  }
  out_.resize(kQueue);
  outVectors_.resize(kQueue);
  outAddresses_.resize(kQueue);
  outOctets_.resize(kQueueOctets);
  for (size_t i = 0; i < kQueue; i++) {
    out_[i] = {};
    out_[i].msg_hdr.msg_iov = &outVectors_[i];
    out_[i].msg_hdr.msg_iovlen = 1;
    out_[i].msg_hdr.msg_name = &outAddresses_[i];
    out_[i].msg_hdr.msg_namelen = family_ == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  }
  return true;
}

void UdpBatch::Readable() {
  for (mmsghdr& message : in_) message.msg_hdr.msg_namelen = sizeof(Address);
  // MSG_TRUNC: msg_len is the datagram's own length, also where the cell was too short for it.
  int count = recvmmsg(fd_.get(), in_.data(), static_cast<unsigned>(batch_), MSG_DONTWAIT | MSG_TRUNC, nullptr);
  if (count <= 0) return;  // nothing there after all, or an error of the socket that this call has taken off it
  uint32_t* lengths = reinterpret_cast<uint32_t*>(lengthsBlock_->data());
  for (int i = 0; i < count; i++) {
    lengths[i] = in_[static_cast<size_t>(i)].msg_len;
    PutPeer(peersBlock_->data() + static_cast<size_t>(i) * kPeer, inAddresses_[static_cast<size_t>(i)]);
  }
  Napi::Env env = Env();
  Napi::HandleScope scope(env);
  CallFromLoop(env, onBatch_, {Napi::Number::New(env, count), data_.Value(), lengths_.Value(), peers_.Value()});
  if (fd_.valid()) Transmit();
}

void UdpBatch::Transmit() {
  for (size_t at = 0; at < queued_;) {
    int sent = sendmmsg(fd_.get(), out_.data() + at, static_cast<unsigned>(queued_ - at), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) {
      at += static_cast<size_t>(sent);
    } else if (errno == EAGAIN || errno == EBADF) {
      dropped_ += queued_ - at;
      break;
    } else if (errno != EINTR) {  // this one cannot be sent; the next may be
      dropped_++;
      at++;
    }
  }
  queued_ = 0;
  queuedOctets_ = 0;
}

void UdpBatch::Send(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!fd_.valid()) {
    ThrowClosed(env, "UdpBatch.send");
    return;
  }
  Args args(env);
  Bytes data = args.ByteArray(info[0], "data");
  size_t offset = static_cast<size_t>(args.Integer(info[1], "offset", 0, static_cast<int64_t>(data.length)));
  size_t length = static_cast<size_t>(args.Integer(info[2], "length", 0, static_cast<int64_t>(std::min(data.length - offset, kLargest))));
  Bytes peers = args.ByteArray(info[3], "peers");
  if (args.ok() && peers.length < kPeer) args.FailRange("peers must have at least 20 octets");
  size_t peerIndex = static_cast<size_t>(args.Integer(info[4], "peerIndex", 0, args.ok() ? static_cast<int64_t>(peers.length / kPeer) - 1 : 0));
  if (!args.ok()) return;
  const uint8_t* peer = peers.data + peerIndex * kPeer;
  if (Get16(peer) != (family_ == AF_INET ? 4 : 6) || (family_ == AF_INET && memcmp(peer + 4, kMapped, sizeof kMapped) != 0)) {
    args.FailRange("the peer's family is not the socket's");
    return;
  }
  if (queued_ == kQueue || queuedOctets_ + length > kQueueOctets) Transmit();
  Address& to = outAddresses_[queued_];
  if (family_ == AF_INET) {
    to.v4 = {};
    to.v4.sin_family = AF_INET;
    to.v4.sin_port = htons(Get16(peer + 2));
    memcpy(&to.v4.sin_addr, peer + 16, 4);
  } else {
    to.v6 = {};
    to.v6.sin6_family = AF_INET6;
    to.v6.sin6_port = htons(Get16(peer + 2));
    memcpy(&to.v6.sin6_addr, peer + 4, 16);
    if (IN6_IS_ADDR_LINKLOCAL(&to.v6.sin6_addr)) to.v6.sin6_scope_id = scope_;
  }
  uint8_t* place = outOctets_.data() + queuedOctets_;
  if (length > 0) memcpy(place, data.data + offset, length);
  outVectors_[queued_] = {place, length};
  queued_++;
  queuedOctets_ += length;
}

void UdpBatch::Flush(const Napi::CallbackInfo& info) {
  if (!fd_.valid()) {
    ThrowClosed(info.Env(), "UdpBatch.flush");
    return;
  }
  Transmit();
}

Napi::Value UdpBatch::GetAddress(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!fd_.valid()) {
    ThrowClosed(env, "UdpBatch.address");
    return {};
  }
  Address own = {};
  socklen_t size = sizeof own;
  if (getsockname(fd_.get(), &own.any, &size) != 0) {
    ThrowErrno(env, errno, {"getsockname"});
    return {};
  }
  char text[INET6_ADDRSTRLEN];
  const void* octets = family_ == AF_INET ? static_cast<const void*>(&own.v4.sin_addr) : &own.v6.sin6_addr;
  inet_ntop(family_, octets, text, sizeof text);
  Napi::Object out = Napi::Object::New(env);
  out.Set("address", text);
  out.Set("port", ntohs(family_ == AF_INET ? own.v4.sin_port : own.v6.sin6_port));
  out.Set("family", family_ == AF_INET ? 4 : 6);
  return out;
}

// What is queued still leaves.
void UdpBatch::Close(const Napi::CallbackInfo&) {
  if (!fd_.valid()) return;
  Transmit();
  if (poll_ != nullptr) {
    poll_->Close();
    Unref();
  }
  fd_.reset();
  // The callback usually holds whoever holds this object: kept, it would keep all of them for ever. The view of the
  // datagrams lives on while a callback that closed us looks at them.
  onBatch_.Reset();
  data_.Reset();
  lengths_.Reset();
  peers_.Reset();
  dataBlock_.reset();
  lengthsBlock_.reset();
  peersBlock_.reset();
  in_ = {};
  inVectors_ = {};
  inAddresses_ = {};
  out_ = {};
  outVectors_ = {};
  outAddresses_ = {};
  outOctets_ = {};
  queued_ = queuedOctets_ = 0;
}

}  // namespace

void InitUdp(Napi::Env env, Napi::Object exports) { UdpBatch::Init(env, exports); }

}  // namespace enforcer
