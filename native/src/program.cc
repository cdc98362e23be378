// A program: facts about it, test runs, pins.
#include "program.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <vector>

#include "error.h"

namespace enforcer {

namespace {
// What a program may add in front of or behind the packet it was given.
constexpr size_t kTestRunSlack = 256;
constexpr size_t kTestRunLimit = 1u << 20;
}  // namespace

void BpfProgram::Init(Napi::Env env, Napi::Object exports) {
  Napi::Function constructor = DefineClass(env, kName,
                                           {
                                               StaticMethod<&BpfProgram::FromPin>("fromPin"),
                                               StaticMethod<&BpfProgram::FromId>("fromId"),
                                               StaticMethod<&BpfProgram::TailCall>("tailCall"),
                                               InstanceAccessor<&BpfProgram::GetFd>("fd"),
                                               InstanceAccessor<&BpfProgram::GetInfo>("info"),
                                               InstanceMethod<&BpfProgram::TestRun>("testRun"),
                                               InstanceMethod<&BpfProgram::Pin>("pin"),
                                               InstanceMethod<&BpfProgram::Close>("close"),
                                           });
  (ConstructorsOf(env).*kConstructor) = Napi::Persistent(constructor);
  exports.Set(kName, constructor);
}

void InitProgram(Napi::Env env, Napi::Object exports) { BpfProgram::Init(env, exports); }

BpfProgram::BpfProgram(const Napi::CallbackInfo& info) : Adopted<BpfProgram>(info) {
  if (fd_.valid() && BpfKind(fd_.get()) != "bpf-prog") {
    ThrowErrno(info.Env(), EINVAL, {"bpf(BPF_OBJ_GET_INFO_BY_FD)", {}, 0, "the descriptor is not a BPF program"});
  }
}

Napi::Value BpfProgram::FromId(const Napi::CallbackInfo& info) {
  return ById(info, bpf_prog_get_fd_by_id, {"bpf(BPF_PROG_GET_FD_BY_ID)", {}, 0, "program"});
}

// Written out here, since it is six instructions and differs from the next one by a number.
Napi::Value BpfProgram::TailCall(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  Napi::Object options = args.Object(info[0], "options");
  std::string name = args.Text(args.Get(options, "name"), "name", BPF_OBJ_NAME_LEN - 1);
  int32_t mark = static_cast<int32_t>(args.Integer(args.Get(options, "mark"), "mark", 0, INT32_MAX));
  int programs = args.Descriptor(args.Get(options, "programsFd"), "programsFd");
  int32_t index = static_cast<int32_t>(args.Integer(args.Get(options, "index"), "index", 0, INT32_MAX));
  int32_t otherwise = static_cast<int32_t>(args.Integer(args.Get(options, "otherwise"), "otherwise", INT32_MIN, INT32_MAX));
  if (!args.ok()) return {};
  constexpr int16_t kMark = offsetof(struct __sk_buff, cb);
  const bpf_insn code[] = {
      {BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, mark},
      {BPF_STX | BPF_MEM | BPF_W, BPF_REG_1, BPF_REG_0, kMark, 0},
      {BPF_LD | BPF_DW | BPF_IMM, BPF_REG_2, BPF_PSEUDO_MAP_FD, 0, programs},
      {0, 0, 0, 0, 0},  // the second half of the one before
      {BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_3, 0, 0, index},
      {BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_tail_call},
      {BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, otherwise},
      {BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
  };
  Fd fd(bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, name.c_str(), "Dual BSD/GPL", code, sizeof code / sizeof code[0], nullptr));
  if (!fd.valid()) {
    ThrowErrno(env, errno, {"bpf(BPF_PROG_LOAD)", {}, 0, "program " + name});
    return {};
  }
  return Adopt(env, std::move(fd));
}

Napi::Value BpfProgram::GetInfo(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "info")) return {};
  bpf_prog_info facts = {};
  __u32 size = sizeof facts;
  int failed = bpf_obj_get_info_by_fd(fd_.get(), &facts, &size);
  std::vector<__u32> maps(facts.nr_map_ids);
  if (failed == 0 && !maps.empty()) {
    facts = {};
    facts.nr_map_ids = static_cast<__u32>(maps.size());
    facts.map_ids = reinterpret_cast<__u64>(maps.data());
    size = sizeof facts;
    failed = bpf_obj_get_info_by_fd(fd_.get(), &facts, &size);
  }
  if (failed != 0) {
    ThrowErrno(env, errno, {"bpf(BPF_OBJ_GET_INFO_BY_FD)"});
    return {};
  }
  int64_t memlock = FdMemlock(fd_.get());
  if (memlock < 0) {
    ThrowErrno(env, errno, {"open", "/proc/self/fdinfo/" + std::to_string(fd_.get())});
    return {};
  }
  char tag[2 * BPF_TAG_SIZE + 1];
  for (int i = 0; i < BPF_TAG_SIZE; i++) snprintf(tag + 2 * i, 3, "%02x", facts.tag[i]);
  Napi::Array ids = Napi::Array::New(env);
  for (__u32 id : maps) ids.Set(ids.Length(), id);
  Napi::Object out = Napi::Object::New(env);
  out.Set("id", facts.id);
  out.Set("name", std::string(facts.name, strnlen(facts.name, sizeof facts.name)));
  out.Set("tag", tag);
  out.Set("jited", facts.jited_prog_len > 0);
  out.Set("verifiedInstructions", facts.verified_insns);
  out.Set("memlock", static_cast<double>(memlock));
  out.Set("mapIds", ids);
  return out;
}

Napi::Value BpfProgram::TestRun(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "testRun")) return {};
  Args args(env);
  Napi::Object options = args.Object(info[0], "options");
  Bytes data = args.ByteArray(args.Get(options, "data"), "data");
  Napi::Value contextValue = args.Get(options, "context");
  bool hasContext = args.ok() && !contextValue.IsUndefined();
  Bytes context;
  if (hasContext) context = args.ByteArray(contextValue, "context");
  int64_t repeat = args.Integer(args.Get(options, "repeat"), "repeat", 1, 1000000000, 1);
  if (args.ok() && data.length > kTestRunLimit) args.FailRange("data must have at most 1 MiB");
  if (args.ok() && context.length > 4096) args.FailRange("context must have at most 4096 octets");
  if (!args.ok()) return {};

  std::vector<uint8_t> out(data.length + kTestRunSlack), contextOut(context.length);
  LIBBPF_OPTS(bpf_test_run_opts, run);
  run.data_in = data.data;
  run.data_size_in = static_cast<__u32>(data.length);
  run.data_out = out.data();
  run.data_size_out = static_cast<__u32>(out.size());
  run.repeat = static_cast<int>(repeat);
  if (hasContext) {
    run.ctx_in = context.data;
    run.ctx_size_in = static_cast<__u32>(context.length);
    run.ctx_out = contextOut.data();
    run.ctx_size_out = static_cast<__u32>(contextOut.size());
  }
  if (bpf_prog_test_run_opts(fd_.get(), &run) != 0) {
    ThrowErrno(env, errno, {"bpf(BPF_PROG_TEST_RUN)"});
    return {};
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("returnValue", run.retval);
  result.Set("durationNs", run.duration);
  result.Set("data", Napi::Buffer<uint8_t>::Copy(env, out.data(), std::min<size_t>(run.data_size_out, out.size())));
  if (hasContext) {
    result.Set("context", Napi::Buffer<uint8_t>::Copy(env, contextOut.data(), std::min<size_t>(run.ctx_size_out, contextOut.size())));
  } else {
    result.Set("context", env.Null());
  }
  return result;
}

}  // namespace enforcer
