// Netlink: one request and its answers, and a monitor of multicast groups. Messages are bytes; their meaning is src/net's.
//
// Holds always: a request has a socket of its own, in the calling thread's namespace, and answers from anybody but the
// kernel are ignored. A dump that the kernel marks as interrupted is asked again, so that what is returned is one state.
// Requests wait for the kernel at most kTimeoutSeconds, then fail with ETIMEDOUT.
#include "netlink.h"

#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cstring>

#include "addon.h"
#include "error.h"
#include "poll.h"

#ifndef NETLINK_GET_STRICT_CHK
#define NETLINK_GET_STRICT_CHK 12
#endif
#ifndef NETLINK_EXT_ACK
#define NETLINK_EXT_ACK 11
#endif

namespace enforcer {

namespace {

constexpr int kTimeoutSeconds = 5;
constexpr int kDumpTries = 8;
constexpr size_t kDatagram = 64 << 10;
constexpr size_t kMonitorBatch = 4096;

Fd OpenSocket(int protocol, int flags) { return Fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | flags, protocol)); }

// One datagram into buffer, grown to fit; -1 with errno set. Returns 0 for one that did not come from the kernel.
ssize_t Receive(int fd, std::vector<uint8_t>& buffer) {
  ssize_t waiting = recv(fd, nullptr, 0, MSG_PEEK | MSG_TRUNC);
  if (waiting < 0) return -1;
  if (buffer.size() < static_cast<size_t>(waiting)) buffer.resize(static_cast<size_t>(waiting));
  sockaddr_nl from = {};
  socklen_t fromSize = sizeof from;
  ssize_t length = recvfrom(fd, buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &fromSize);
  return length >= 0 && from.nl_pid != 0 ? 0 : length;
}

// NLMSGERR_ATTR_MSG among the attributes at data.
std::string ExtendedText(const uint8_t* data, size_t length) {
  while (length >= sizeof(nlattr)) {
    nlattr attribute;
    memcpy(&attribute, data, sizeof attribute);
    if (attribute.nla_len < sizeof attribute || attribute.nla_len > length) break;
    if ((attribute.nla_type & NLA_TYPE_MASK) == NLMSGERR_ATTR_MSG) {
      const char* text = reinterpret_cast<const char*>(data + NLA_HDRLEN);
      return std::string(text, strnlen(text, attribute.nla_len - NLA_HDRLEN));
    }
    size_t step = NLA_ALIGN(attribute.nla_len);
    if (step >= length) break;
    data += step;
    length -= step;
  }
  return {};
}

// Returns whether the kernel marked a dump as interrupted by a change.
bool ExchangeOnce(int protocol, const uint8_t* request, size_t requestLength, NetlinkOutcome& out) {
  bool interrupted = false;
  Fd fd = OpenSocket(protocol, 0);
  if (!fd.valid()) {
    out.error = errno;
    return false;
  }
  int on = 1;
  // The kernel filters dumps by what the request names; without it a dump grows with the host.
  setsockopt(fd.get(), SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof on);
  setsockopt(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);  // only the error's text depends on it
  struct timeval limit = {kTimeoutSeconds, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);

  std::vector<uint8_t> message(request, request + requestLength);
  nlmsghdr header;
  memcpy(&header, message.data(), sizeof header);
  header.nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;  // so that every exchange has an end: an acknowledgement or NLMSG_DONE
  header.nlmsg_pid = 0;
  memcpy(message.data(), &header, sizeof header);
  sockaddr_nl kernel = {};
  kernel.nl_family = AF_NETLINK;
  if (sendto(fd.get(), message.data(), message.size(), 0, reinterpret_cast<sockaddr*>(&kernel), sizeof kernel) < 0) {
    out.error = errno;
    return false;
  }

  std::vector<uint8_t> buffer(kDatagram);
  for (;;) {
    ssize_t length = Receive(fd.get(), buffer);
    if (length < 0) {
      if (errno == EINTR) continue;
      out.error = errno == EAGAIN ? ETIMEDOUT : errno;
      return false;
    }
    const uint8_t* at = buffer.data();
    size_t left = static_cast<size_t>(length);
    while (left >= sizeof(nlmsghdr)) {
      nlmsghdr answer;
      memcpy(&answer, at, sizeof answer);
      if (answer.nlmsg_len < sizeof answer || answer.nlmsg_len > left) {
        out.error = EBADMSG;
        return false;
      }
      if (answer.nlmsg_seq == header.nlmsg_seq) {
        if (answer.nlmsg_flags & NLM_F_DUMP_INTR) interrupted = true;
        const uint8_t* body = at + NLMSG_HDRLEN;
        size_t bodyLength = answer.nlmsg_len - NLMSG_HDRLEN;
        if (answer.nlmsg_type == NLMSG_ERROR || answer.nlmsg_type == NLMSG_DONE) {
          int error = 0;
          if (bodyLength >= sizeof error) memcpy(&error, body, sizeof error);
          out.error = error < 0 ? -error : 0;
          size_t skip = sizeof error;
          if (answer.nlmsg_type == NLMSG_ERROR) {
            skip = sizeof(nlmsgerr);
            nlmsghdr quoted;
            if (!(answer.nlmsg_flags & NLM_F_CAPPED) && bodyLength >= sizeof(nlmsgerr)) {
              memcpy(&quoted, body + sizeof error, sizeof quoted);
              skip = sizeof error + NLMSG_ALIGN(quoted.nlmsg_len);
            }
          }
          if ((answer.nlmsg_flags & NLM_F_ACK_TLVS) && skip < bodyLength) out.text = ExtendedText(body + skip, bodyLength - skip);
          return interrupted;
        }
        if (answer.nlmsg_type != NLMSG_NOOP) out.messages.emplace_back(at, at + answer.nlmsg_len);
      }
      size_t step = NLMSG_ALIGN(answer.nlmsg_len);
      if (step >= left) break;
      at += step;
      left -= step;
    }
  }
}

}  // namespace

NetlinkOutcome NetlinkExchange(int protocol, const uint8_t* request, size_t length) {
  for (int tries = 0; tries < kDumpTries; tries++) {
    NetlinkOutcome outcome;
    if (!ExchangeOnce(protocol, request, length, outcome) || outcome.error != 0) return outcome;
  }
  NetlinkOutcome failed;
  failed.error = EINTR;
  failed.text = "the table kept changing while it was read";
  return failed;
}

namespace {

Napi::Value NetlinkRequest(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  Bytes request = args.ByteArray(info[0], "message");
  int protocol = static_cast<int>(args.Integer(info[1], "protocol", 0, 31, NETLINK_ROUTE));
  nlmsghdr header = {};
  if (args.ok() && request.length >= sizeof header) memcpy(&header, request.data, sizeof header);
  if (args.ok() && (request.length < sizeof header || header.nlmsg_len != request.length)) {
    args.FailRange("message must be one netlink message whose nlmsg_len is its length");
  }
  if (!args.ok()) return {};

  NetlinkOutcome outcome = NetlinkExchange(protocol, request.data, request.length);
  if (outcome.error != 0) {
    std::string call = "netlink(" + std::to_string(protocol) + ", type " + std::to_string(header.nlmsg_type) + ")";
    ThrowErrno(env, outcome.error, {call.c_str(), {}, 0, outcome.text});
    return {};
  }
  Napi::Array answers = Napi::Array::New(env, outcome.messages.size());
  for (size_t i = 0; i < outcome.messages.size(); i++) {
    const auto& message = outcome.messages[i];
    answers.Set(static_cast<uint32_t>(i), Napi::Buffer<uint8_t>::Copy(env, message.data(), message.size()));
  }
  return answers;
}

// Messages back to back, as nfnetlink's transactions want them. Sent as they are; ends when each that asked for it (NLM_F_ACK)
// has been acknowledged, or at the first error.
Napi::Value NetlinkBatch(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  Bytes batch = args.ByteArray(info[0], "messages");
  int protocol = static_cast<int>(args.Integer(info[1], "protocol", 0, 31, NETLINK_NETFILTER));
  size_t awaited = 0;
  if (args.ok()) {
    size_t at = 0;
    while (at < batch.length) {
      nlmsghdr header = {};
      if (batch.length - at >= sizeof header) memcpy(&header, batch.data + at, sizeof header);
      if (header.nlmsg_len < sizeof header || header.nlmsg_len > batch.length - at || header.nlmsg_len % NLMSG_ALIGNTO != 0) {
        args.FailRange("messages must be whole netlink messages, each padded to 4 octets");
        break;
      }
      if (header.nlmsg_flags & NLM_F_ACK) awaited++;
      at += header.nlmsg_len;
    }
    if (args.ok() && awaited == 0) args.FailRange("one message at least must ask for its acknowledgement");
  }
  if (!args.ok()) return {};

  std::string call = "netlink batch(" + std::to_string(protocol) + ")";
  auto fail = [&](int error, const std::string& text) -> Napi::Value {
    ThrowErrno(env, error, {call.c_str(), {}, 0, text});
    return {};
  };
  Fd fd = OpenSocket(protocol, 0);
  if (!fd.valid()) return fail(errno, {});
  int on = 1;
  setsockopt(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  struct timeval limit = {kTimeoutSeconds, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  sockaddr_nl kernel = {};
  kernel.nl_family = AF_NETLINK;
  if (sendto(fd.get(), batch.data, batch.length, 0, reinterpret_cast<sockaddr*>(&kernel), sizeof kernel) < 0) return fail(errno, {});

  std::vector<uint8_t> buffer(kDatagram);
  while (awaited > 0) {
    ssize_t length = Receive(fd.get(), buffer);
    if (length < 0) {
      if (errno == EINTR) continue;
      return fail(errno == EAGAIN ? ETIMEDOUT : errno, {});
    }
    const uint8_t* at = buffer.data();
    size_t left = static_cast<size_t>(length);
    while (left >= sizeof(nlmsghdr)) {
      nlmsghdr answer;
      memcpy(&answer, at, sizeof answer);
      if (answer.nlmsg_len < sizeof answer || answer.nlmsg_len > left) return fail(EBADMSG, {});
      if (answer.nlmsg_type == NLMSG_ERROR) {
        int error = 0;
        if (answer.nlmsg_len >= NLMSG_HDRLEN + sizeof error) memcpy(&error, at + NLMSG_HDRLEN, sizeof error);
        if (error != 0) return fail(-error, {});
        if (awaited > 0) awaited--;
      }
      size_t step = NLMSG_ALIGN(answer.nlmsg_len);
      if (step >= left) break;
      at += step;
      left -= step;
    }
  }
  return env.Undefined();
}

class NetlinkMonitor : public Napi::ObjectWrap<NetlinkMonitor> {
 public:
  explicit NetlinkMonitor(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NetlinkMonitor>(info), buffer_(kDatagram) {
    Napi::Env env = info.Env();
    Args args(env);
    Napi::Value groups = info[0];
    if (!groups.IsArray()) args.FailType("groups must be an array");
    Napi::Function onMessages = args.Function(info[1], "onMessages");
    if (!args.ok()) return;
    fd_ = OpenSocket(NETLINK_ROUTE, SOCK_NONBLOCK);
    sockaddr_nl own = {};
    own.nl_family = AF_NETLINK;
    if (!fd_.valid() || bind(fd_.get(), reinterpret_cast<sockaddr*>(&own), sizeof own) != 0) {
      ThrowErrno(env, errno, {fd_.valid() ? "bind(AF_NETLINK)" : "socket(AF_NETLINK)"});
      return;
    }
    // A burst of route changes must not overrun at once; without the privilege the default stays.
    int octets = 1 << 20;
    setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &octets, sizeof octets);
    Napi::Array numbers = groups.As<Napi::Array>();
    for (uint32_t i = 0; i < numbers.Length(); i++) {
      int group = static_cast<int>(args.Integer(numbers.Get(i), "group", 1, 1024));
      if (!args.ok()) return;
      if (setsockopt(fd_.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) != 0) {
        ThrowErrno(env, errno, {"setsockopt(NETLINK_ADD_MEMBERSHIP)", {}, 0, "group " + std::to_string(group)});
        return;
      }
    }
    onMessages_ = Napi::Persistent(onMessages);
    if (Poll::Start(env, fd_.get(), &poll_, [](void* self) { static_cast<NetlinkMonitor*>(self)->Readable(); }, this)) Ref();
  }

  ~NetlinkMonitor() override {
    if (poll_ != nullptr) poll_->Close();
  }

  static void Init(Napi::Env env, Napi::Object exports) {
    exports.Set("NetlinkMonitor", DefineClass(env, "NetlinkMonitor", {InstanceMethod<&NetlinkMonitor::Drain>("drain"), InstanceMethod<&NetlinkMonitor::Close>("close")}));
  }

 private:
  void Readable() {
    Napi::Env env = Env();
    Napi::HandleScope scope(env);
    bool overrun = false;
    Napi::Array batch = Waiting(env, &overrun);
    if (batch.Length() > 0) CallFromLoop(env, onMessages_, {batch});  // which may close this
    if (overrun && poll_ != nullptr) CallFromLoop(env, onMessages_, {env.Null()});
  }

  Napi::Value Drain(const Napi::CallbackInfo& info) {
    bool overrun = false;
    return poll_ == nullptr ? Napi::Array::New(info.Env()) : Waiting(info.Env(), &overrun);
  }

  // The messages that have come; none are waited for.
  Napi::Array Waiting(Napi::Env env, bool* overrun) {
    Napi::Array batch = Napi::Array::New(env);
    while (batch.Length() < kMonitorBatch) {
      ssize_t length = Receive(fd_.get(), buffer_);
      if (length < 0) {
        if (errno == EINTR) continue;
        // Whatever else went wrong, the state is not known any more either.
        if (errno != EAGAIN) *overrun = true;
        break;
      }
      const uint8_t* at = buffer_.data();
      size_t left = static_cast<size_t>(length);
      while (left >= sizeof(nlmsghdr)) {
        nlmsghdr header;
        memcpy(&header, at, sizeof header);
        if (header.nlmsg_len < sizeof header || header.nlmsg_len > left) break;
        batch.Set(batch.Length(), Napi::Buffer<uint8_t>::Copy(env, at, header.nlmsg_len));
        size_t step = NLMSG_ALIGN(header.nlmsg_len);
        if (step >= left) break;
        at += step;
        left -= step;
      }
    }
    return batch;
  }

  void Close(const Napi::CallbackInfo&) {
    if (poll_ == nullptr) return;
    poll_->Close();
    fd_.reset();
    onMessages_.Reset();  // it usually holds whoever holds this object
    Unref();
  }

  Fd fd_;
  Poll* poll_ = nullptr;
  std::vector<uint8_t> buffer_;
  Napi::FunctionReference onMessages_;
};

}  // namespace

void InitNetlink(Napi::Env env, Napi::Object exports) {
  exports.Set("netlinkRequest", Napi::Function::New<NetlinkRequest>(env, "netlinkRequest"));
  exports.Set("netlinkBatch", Napi::Function::New<NetlinkBatch>(env, "netlinkBatch"));
  NetlinkMonitor::Init(env, exports);
}

}  // namespace enforcer
