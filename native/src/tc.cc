// clsact and cls_bpf, for kernels without TCX. libbpf does the netlink work, in the calling thread's namespace; its
// filters are direct-action and match every protocol.
#include <bpf/libbpf.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>

#include "addon.h"
#include "error.h"
#include "hook.h"
#include "netlink.h"
#include "program.h"

namespace enforcer {

namespace {

struct Place {
  bpf_tc_hook hook;
  uint32_t handle = 1;
  uint32_t priority = 1;
  bool replace = false;
};

Place ReadPlace(Args& args, const Napi::Value& ifindex, const Napi::Value& hook, const Napi::Value& options) {
  Place place;
  LIBBPF_OPTS(bpf_tc_hook, empty);
  place.hook = empty;
  place.hook.ifindex = args.Ifindex(ifindex);
  place.hook.attach_point = HookFrom(args, hook) == Hook::kIngress ? BPF_TC_INGRESS : BPF_TC_EGRESS;
  Napi::Object given = args.OptionalObject(options, "options");
  place.handle = static_cast<uint32_t>(args.Integer(args.Get(given, "handle"), "handle", 1, UINT32_MAX, 1));
  place.priority = static_cast<uint32_t>(args.Integer(args.Get(given, "priority"), "priority", 1, UINT16_MAX, 1));
  place.replace = args.Boolean(args.Get(given, "replace"), "replace", false);
  return place;
}

// The arguments being right, EINVAL can only mean that clsact or the filter's chain is not there; kernels differ in which
// of the two errors they give for it.
int Absent(int error) { return error == -EINVAL || error == -ENOENT ? ENOENT : -error; }

// Whether dumping the filters of a hook gives any.
bool HasFilters(Napi::Env env, int ifindex, uint32_t minor, bool& found) {
  struct {
    nlmsghdr header;
    tcmsg body;
  } request = {};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_GETTFILTER;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  request.body.tcm_ifindex = ifindex;
  request.body.tcm_parent = TC_H_MAKE(TC_H_CLSACT, minor);
  NetlinkOutcome outcome = NetlinkExchange(NETLINK_ROUTE, reinterpret_cast<const uint8_t*>(&request), sizeof request);
  if (outcome.error != 0) {
    ThrowErrno(env, outcome.error, {"netlink(RTM_GETTFILTER)", {}, ifindex, outcome.text});
    return false;
  }
  found = !outcome.messages.empty();
  return true;
}

void AttachClsact(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  BpfProgram* program = BpfProgram::From(args, info[0], "program");
  Place place = ReadPlace(args, info[1], info[2], info[3]);
  if (!args.ok()) return;
  LibbpfLog log;
  int error = bpf_tc_hook_create(&place.hook);
  if (error != 0 && error != -EEXIST) {
    ThrowErrno(env, error, {"bpf_tc_hook_create", {}, place.hook.ifindex, log.LastLine()});
    return;
  }
  LIBBPF_OPTS(bpf_tc_opts, filter);
  filter.prog_fd = program->fd();
  filter.handle = place.handle;
  filter.priority = place.priority;
  filter.flags = place.replace ? BPF_TC_F_REPLACE : 0;
  error = bpf_tc_attach(&place.hook, &filter);
  if (error != 0) ThrowErrno(env, error, {"bpf_tc_attach", {}, place.hook.ifindex, log.LastLine()});
}

void DetachClsact(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  Place place = ReadPlace(args, info[0], info[1], info[2]);
  if (!args.ok()) return;
  LibbpfLog log;
  LIBBPF_OPTS(bpf_tc_opts, filter);
  filter.handle = place.handle;
  filter.priority = place.priority;
  int error = Absent(bpf_tc_detach(&place.hook, &filter));
  if (error != 0) ThrowErrno(env, error, {"bpf_tc_detach", {}, place.hook.ifindex, log.LastLine()});
}

Napi::Value QueryClsact(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  Place place = ReadPlace(args, info[0], info[1], info[2]);
  if (!args.ok()) return {};
  LibbpfLog log;
  LIBBPF_OPTS(bpf_tc_opts, filter);
  filter.handle = place.handle;
  filter.priority = place.priority;
  int error = Absent(bpf_tc_query(&place.hook, &filter));
  if (error == ENOENT) return env.Null();
  if (error != 0) {
    ThrowErrno(env, error, {"bpf_tc_query", {}, place.hook.ifindex, log.LastLine()});
    return {};
  }
  Napi::Object out = Napi::Object::New(env);
  out.Set("programId", filter.prog_id);
  return out;
}

// libbpf deletes a qdisc with everybody's filters on it, so it is asked to only when there are none.
Napi::Value RemoveClsact(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  int ifindex = args.Ifindex(info[0]);
  if (!args.ok()) return {};
  bool ingress = false, egress = false;
  if (!HasFilters(env, ifindex, TC_H_MIN_INGRESS, ingress) || !HasFilters(env, ifindex, TC_H_MIN_EGRESS, egress)) return {};
  if (ingress || egress) return Napi::Boolean::New(env, false);
  LibbpfLog log;
  LIBBPF_OPTS(bpf_tc_hook, hook);
  hook.ifindex = ifindex;
  hook.attach_point = static_cast<enum bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);
  int error = Absent(bpf_tc_hook_destroy(&hook));
  if (error == ENOENT) return Napi::Boolean::New(env, false);
  if (error != 0) {
    ThrowErrno(env, error, {"bpf_tc_hook_destroy", {}, ifindex, log.LastLine()});
    return {};
  }
  return Napi::Boolean::New(env, true);
}

}  // namespace

void InitTc(Napi::Env env, Napi::Object exports) {
  exports.Set("attachClsact", Napi::Function::New<AttachClsact>(env, "attachClsact"));
  exports.Set("detachClsact", Napi::Function::New<DetachClsact>(env, "detachClsact"));
  exports.Set("removeClsact", Napi::Function::New<RemoveClsact>(env, "removeClsact"));
  exports.Set("queryClsact", Napi::Function::New<QueryClsact>(env, "queryClsact"));
}

}  // namespace enforcer
