// TCX links: attach at the head of the chain, read the chain back, replace, pin, detach.
//
// The kernel has TCX since 6.6; libbpf 1.1 and its headers do not know it. The parts of bpf(2)'s argument that it needs
// are therefore declared here, after include/uapi/linux/bpf.h of Linux 6.6. An older kernel sees an attach type beyond its
// last, or octets set beyond its own layout, and answers EINVAL to both.
#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <sys/syscall.h>

#include <cstring>

#include "addon.h"
#include "error.h"
#include "hook.h"
#include "program.h"

namespace enforcer {

namespace {

constexpr __u32 kTcxIngress = 46;  // BPF_TCX_INGRESS
constexpr __u32 kTcxEgress = 47;   // BPF_TCX_EGRESS
constexpr __u32 kLinkTypeTcx = 11;  // BPF_LINK_TYPE_TCX
constexpr __u32 kBefore = 1u << 3;  // BPF_F_BEFORE; before nothing named is the head
constexpr size_t kChain = 64;       // BPF_MPROG_MAX

struct LinkCreate {  // bpf_attr.link_create
  __u32 prog_fd;
  __u32 target_ifindex;
  __u32 attach_type;
  __u32 flags;
  __u32 relative_fd;
  __u32 zero;
  __u64 expected_revision;
};
static_assert(sizeof(LinkCreate) == 32 && offsetof(LinkCreate, expected_revision) == 24);

struct ProgQuery {  // bpf_attr.query
  __u32 target_ifindex;
  __u32 attach_type;
  __u32 query_flags;
  __u32 attach_flags;
  __u64 prog_ids;
  __u32 count;
  __u32 zero;
  __u64 prog_attach_flags;
  __u64 link_ids;
  __u64 link_attach_flags;
  __u64 revision;
};
static_assert(sizeof(ProgQuery) == 64 && offsetof(ProgQuery, link_ids) == 40);

struct LinkInfo {  // bpf_link_info
  __u32 type;
  __u32 id;
  __u32 prog_id;
  __u32 zero;
  __u32 ifindex;
  __u32 attach_type;
};
static_assert(offsetof(LinkInfo, ifindex) == 16);

__u32 TcxHook(Hook hook) { return hook == Hook::kIngress ? kTcxIngress : kTcxEgress; }

class BpfLink : public Adopted<BpfLink> {
 public:
  static constexpr const char* kName = "BpfLink";
  static constexpr napi_type_tag kTag = {0x6c696e6b2d656e66, 0x51b0c7e2d8439a03};
  static constexpr auto kConstructor = &Constructors::link;

  explicit BpfLink(const Napi::CallbackInfo& info) : Adopted<BpfLink>(info) {
    LinkInfo facts;
    if (fd_.valid()) Facts(info.Env(), facts);
  }

  static void Init(Napi::Env env, Napi::Object exports) {
    Napi::Function constructor = DefineClass(env, kName,
                                             {
                                                 StaticMethod<&BpfLink::AttachTcx>("attachTcx"),
                                                 StaticMethod<&BpfLink::FromPin>("fromPin"),
                                                 StaticMethod<&BpfLink::FromId>("fromId"),
                                                 InstanceAccessor<&BpfLink::GetFd>("fd"),
                                                 InstanceAccessor<&BpfLink::GetInfo>("info"),
                                                 InstanceMethod<&BpfLink::Update>("update"),
                                                 InstanceMethod<&BpfLink::Pin>("pin"),
                                                 InstanceMethod<&BpfLink::Detach>("detach"),
                                                 InstanceMethod<&BpfLink::Close>("close"),
                                             });
    (ConstructorsOf(env).*kConstructor) = Napi::Persistent(constructor);
    exports.Set(kName, constructor);
  }

 private:
  static Napi::Value AttachTcx(const Napi::CallbackInfo& info);
  static Napi::Value FromId(const Napi::CallbackInfo& info);

  Napi::Value GetFd(const Napi::CallbackInfo& info) { return Descriptor(info); }
  Napi::Value GetInfo(const Napi::CallbackInfo& info);
  void Update(const Napi::CallbackInfo& info);
  void Pin(const Napi::CallbackInfo& info) { PinAt(info); }
  void Detach(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo&) { fd_.reset(); }

  bool Facts(Napi::Env env, LinkInfo& out) {
    // Linux calls a new link's descriptor "bpf_link" and one that was opened again "bpf-link".
    std::string kind = BpfKind(fd_.get());
    if (kind != "bpf_link" && kind != "bpf-link") {
      ThrowErrno(env, EINVAL, {"bpf(BPF_OBJ_GET_INFO_BY_FD)", {}, 0, "the descriptor is not a BPF link"});
      return false;
    }
    out = {};
    __u32 size = sizeof out;
    if (bpf_obj_get_info_by_fd(fd_.get(), &out, &size) != 0) {
      ThrowErrno(env, errno, {"bpf(BPF_OBJ_GET_INFO_BY_FD)"});
      return false;
    }
    if (out.type != kLinkTypeTcx) {
      ThrowErrno(env, EINVAL, {"bpf(BPF_OBJ_GET_INFO_BY_FD)", {}, 0, "the link is not a TCX link"});
      return false;
    }
    return true;
  }
};

Napi::Value BpfLink::AttachTcx(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  BpfProgram* program = BpfProgram::From(args, info[0], "program");
  int ifindex = args.Ifindex(info[1]);
  Hook hook = HookFrom(args, info[2]);
  if (!args.ok()) return {};
  LinkCreate create = {};
  create.prog_fd = static_cast<__u32>(program->fd());
  create.target_ifindex = static_cast<__u32>(ifindex);
  create.attach_type = TcxHook(hook);
  create.flags = kBefore;
  Fd fd(static_cast<int>(syscall(SYS_bpf, BPF_LINK_CREATE, &create, sizeof create)));
  if (!fd.valid()) {
    ThrowErrno(env, errno, {"bpf(BPF_LINK_CREATE)", {}, ifindex, errno == EINVAL ? "TCX needs Linux 6.6" : ""});
    return {};
  }
  return Adopt(env, std::move(fd));
}

Napi::Value BpfLink::FromId(const Napi::CallbackInfo& info) {
  return ById(info, bpf_link_get_fd_by_id, {"bpf(BPF_LINK_GET_FD_BY_ID)", {}, 0, "link"});
}

// Asked anew each time: the program changes by update, and ifindex becomes 0 when the link is detached or the device goes.
Napi::Value BpfLink::GetInfo(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  LinkInfo facts;
  if (!Open(env, "info") || !Facts(env, facts)) return {};
  Napi::Object out = Napi::Object::New(env);
  out.Set("id", facts.id);
  out.Set("programId", facts.prog_id);
  out.Set("ifindex", facts.ifindex);
  out.Set("hook", facts.attach_type == kTcxEgress ? "egress" : "ingress");
  return out;
}

void BpfLink::Update(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "update")) return;
  Args args(env);
  BpfProgram* program = BpfProgram::From(args, info[0], "program");
  if (!args.ok()) return;
  if (bpf_link_update(fd_.get(), program->fd(), nullptr) != 0) ThrowErrno(env, errno, {"bpf(BPF_LINK_UPDATE)"});
}

void BpfLink::Detach(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "detach")) return;
  if (bpf_link_detach(fd_.get()) != 0) ThrowErrno(env, errno, {"bpf(BPF_LINK_DETACH)"});
}

Napi::Value QueryTcx(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  int ifindex = args.Ifindex(info[0]);
  Hook hook = HookFrom(args, info[1]);
  if (!args.ok()) return {};
  __u32 programs[kChain] = {}, links[kChain] = {};
  ProgQuery query = {};
  query.target_ifindex = static_cast<__u32>(ifindex);
  query.attach_type = TcxHook(hook);
  query.prog_ids = reinterpret_cast<__u64>(programs);
  query.link_ids = reinterpret_cast<__u64>(links);
  query.count = kChain;
  if (syscall(SYS_bpf, BPF_PROG_QUERY, &query, sizeof query) != 0) {
    if (errno == ENOENT) {  // nothing was ever attached here
      query.count = 0;
    } else {
      ThrowErrno(env, errno, {"bpf(BPF_PROG_QUERY)", {}, ifindex, errno == EINVAL ? "TCX needs Linux 6.6" : ""});
      return {};
    }
  }
  Napi::Array chain = Napi::Array::New(env);
  for (__u32 i = 0; i < query.count && i < kChain; i++) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("programId", programs[i]);
    entry.Set("linkId", links[i]);
    chain.Set(i, entry);
  }
  return chain;
}

}  // namespace

void InitLink(Napi::Env env, Napi::Object exports) {
  BpfLink::Init(env, exports);
  exports.Set("queryTcx", Napi::Function::New<QueryTcx>(env, "queryTcx"));
}

}  // namespace enforcer
