// Opening and loading an object file through libbpf. Whatever was created is gone again when any step fails. Maps and
// programs are handed out with descriptors of their own and outlive the object.
#include "object.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>

#include "error.h"
#include "layout.h"
#include "map.h"
#include "program.h"

namespace enforcer {

namespace {

// Own enumerable string keys of a record such as {name: value}.
std::vector<std::string> Keys(Args& args, const Napi::Object& record) {
  std::vector<std::string> names;
  if (!args.ok() || record.IsEmpty()) return names;
  Napi::Array keys = record.GetPropertyNames();
  if (args.env().IsExceptionPending()) {
    args.FailType("record cannot be read");
    return names;
  }
  for (uint32_t i = 0; i < keys.Length(); i++) names.push_back(keys.Get(i).ToString().Utf8Value());
  return names;
}

}  // namespace

void BpfObject::Init(Napi::Env env, Napi::Object exports) {
  Napi::Function constructor = DefineClass(
      env, "BpfObject",
      {
          StaticMethod<&BpfObject::Load>("load"),
          InstanceAccessor<&BpfObject::Maps>("maps"),
          InstanceAccessor<&BpfObject::Programs>("programs"),
          InstanceMethod<&BpfObject::MapNamed>("map"),
          InstanceMethod<&BpfObject::ProgramNamed>("program"),
          InstanceMethod<&BpfObject::Layout>("layout"),
          InstanceMethod<&BpfObject::InnerTemplate>("innerTemplate"),
          InstanceMethod<&BpfObject::Close>("close"),
      });
  ConstructorsOf(env).object = Napi::Persistent(constructor);
  exports.Set("BpfObject", constructor);
}

void InitObject(Napi::Env env, Napi::Object exports) { BpfObject::Init(env, exports); }

// Takes (path, options); `new BpfObject(path)` does the same as load, which is the documented way.
BpfObject::BpfObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<BpfObject>(info) {
  Napi::Env env = info.Env();
  Args args(env);
  path_ = args.Path(info[0]);
  Napi::Object options = args.OptionalObject(info[1], "options");
  if (!args.ok()) return;
  {
    LibbpfLog log;
    object_ = bpf_object__open_file(path_.c_str(), nullptr);
    if (object_ == nullptr) {
      ThrowErrno(env, errno, {"bpf_object__open_file", path_, 0, log.LastLine()});
      return;
    }
  }
  struct bpf_map* map;
  bpf_object__for_each_map(map, object_) {
    struct bpf_map* inner = bpf_map__inner_map(map);
    if (inner == nullptr) continue;
    templates_[bpf_map__name(map)] = {bpf_map__type(inner), bpf_map__key_size(inner), bpf_map__value_size(inner),
                                      bpf_map__max_entries(inner), bpf_map__map_flags(inner)};
  }
  if (Configure(args, options)) LoadIntoKernel(env);
}

BpfObject::~BpfObject() { bpf_object__close(object_); }

Napi::Value BpfObject::Load(const Napi::CallbackInfo& info) {
  return ConstructorsOf(info.Env()).object.New({info[0], info[1]});
}

struct bpf_map* BpfObject::FindMap(Napi::Env env, const std::string& name) {
  struct bpf_map* map = bpf_object__find_map_by_name(object_, name.c_str());
  if (map == nullptr) ThrowErrno(env, ENOENT, {"bpf_object__find_map_by_name", path_, 0, "no map " + name});
  return map;
}

struct bpf_program* BpfObject::FindProgram(Napi::Env env, const std::string& name) {
  struct bpf_program* program = bpf_object__find_program_by_name(object_, name.c_str());
  if (program == nullptr) ThrowErrno(env, ENOENT, {"bpf_object__find_program_by_name", path_, 0, "no program " + name});
  return program;
}

bool BpfObject::Configure(Args& args, const Napi::Object& options) {
  Napi::Env env = args.env();
  Napi::Object sizes = args.OptionalObject(args.Get(options, "maxEntries"), "maxEntries");
  for (const std::string& name : Keys(args, sizes)) {
    uint32_t entries = static_cast<uint32_t>(args.Integer(args.Get(sizes, name.c_str()), ("maxEntries." + name).c_str(), 1, UINT32_MAX));
    if (!args.ok()) return false;
    struct bpf_map* map = FindMap(env, name);
    if (map == nullptr) return false;
    int error = bpf_map__set_max_entries(map, entries);
    if (error != 0) {
      ThrowErrno(env, error, {"bpf_map__set_max_entries", path_, 0, "map " + name});
      return false;
    }
  }
  Napi::Object pins = args.OptionalObject(args.Get(options, "pinnedMaps"), "pinnedMaps");
  for (const std::string& name : Keys(args, pins)) {
    std::string pin = args.Path(args.Get(pins, name.c_str()), ("pinnedMaps." + name).c_str());
    if (!args.ok() || !TakePin(env, name, pin)) return false;
  }
  Napi::Object disabled = args.OptionalObject(args.Get(options, "disabledPrograms"), "disabledPrograms");
  if (args.ok() && !disabled.IsEmpty() && !disabled.IsArray()) args.FailType("disabledPrograms must be an array");
  if (args.ok() && !disabled.IsEmpty()) {
    Napi::Array names = disabled.As<Napi::Array>();
    for (uint32_t i = 0; i < names.Length(); i++) {
      std::string name = args.Text(names.Get(i), "disabledPrograms[]", 256);
      if (!args.ok()) return false;
      struct bpf_program* program = FindProgram(env, name);
      if (program == nullptr) return false;
      bpf_program__set_autoload(program, false);
    }
  }
  return args.ok();
}

// A pin of another shape would be taken over silently by bpf_map__reuse_fd, so its shape is compared first.
bool BpfObject::TakePin(Napi::Env env, const std::string& name, const std::string& path) {
  struct bpf_map* map = FindMap(env, name);
  if (map == nullptr) return false;
  Fd fd(bpf_obj_get(path.c_str()));
  if (!fd.valid()) {
    ThrowErrno(env, errno, {"bpf(BPF_OBJ_GET)", path, 0, "map " + name});
    return false;
  }
  bpf_map_info found = {};
  __u32 size = sizeof found;
  if (BpfKind(fd.get()) != "bpf-map" || bpf_obj_get_info_by_fd(fd.get(), &found, &size) != 0) {
    ThrowErrno(env, EINVAL, {"bpf(BPF_OBJ_GET_INFO_BY_FD)", path, 0, "the pin is not a BPF map"});
    return false;
  }
  if (found.type != bpf_map__type(map) || found.key_size != bpf_map__key_size(map) ||
      found.value_size != bpf_map__value_size(map) || found.max_entries != bpf_map__max_entries(map) ||
      found.map_flags != bpf_map__map_flags(map)) {
    ThrowErrno(env, EINVAL, {"bpf_map__reuse_fd", path, 0, "the pinned map's type, sizes or flags are not those of map " + name});
    return false;
  }
  int error = bpf_map__reuse_fd(map, fd.get());
  if (error != 0) {
    ThrowErrno(env, error, {"bpf_map__reuse_fd", path, 0, "map " + name});
    return false;
  }
  return true;
}

bool BpfObject::LoadIntoKernel(Napi::Env env) {
  LibbpfLog log;
  int error = bpf_object__load(object_);
  if (error == 0) return true;
  ErrorFacts facts;
  facts.path = path_;
  facts.verifier = log.VerifierLine();
  facts.syscall = facts.verifier.empty() ? "bpf_object__load" : "bpf(BPF_PROG_LOAD)";
  facts.detail = facts.verifier.empty() ? log.LastLine() : log.VerifierPlace();
  ThrowErrno(env, error, facts);
  return false;
}

bool BpfObject::Open(Napi::Env env, const char* what) {
  if (object_ != nullptr) return true;
  ThrowClosed(env, what);
  return false;
}

Napi::Value BpfObject::Maps(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "BpfObject.maps")) return {};
  Napi::Array names = Napi::Array::New(env);
  struct bpf_map* map;
  bpf_object__for_each_map(map, object_) names.Set(names.Length(), bpf_map__name(map));
  return names;
}

Napi::Value BpfObject::Programs(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "BpfObject.programs")) return {};
  Napi::Array names = Napi::Array::New(env);
  struct bpf_program* program;
  bpf_object__for_each_program(program, object_) {
    if (bpf_program__autoload(program)) names.Set(names.Length(), bpf_program__name(program));
  }
  return names;
}

Napi::Value BpfObject::MapNamed(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "BpfObject.map")) return {};
  Args args(env);
  std::string name = args.Text(info[0], "name", 256);
  if (!args.ok()) return {};
  struct bpf_map* map = FindMap(env, name);
  if (map == nullptr) return {};
  Fd fd = Fd::Duplicate(bpf_map__fd(map));
  if (!fd.valid()) {
    ThrowErrno(env, errno, {"fcntl(F_DUPFD_CLOEXEC)", path_, 0, "map " + name});
    return {};
  }
  return BpfMap::Adopt(env, std::move(fd));
}

Napi::Value BpfObject::ProgramNamed(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "BpfObject.program")) return {};
  Args args(env);
  std::string name = args.Text(info[0], "name", 256);
  if (!args.ok()) return {};
  struct bpf_program* program = FindProgram(env, name);
  if (program == nullptr) return {};
  Fd fd = Fd::Duplicate(bpf_program__fd(program));
  if (!fd.valid()) {
    ThrowErrno(env, errno, {"fcntl(F_DUPFD_CLOEXEC)", path_, 0, "program " + name + " was not loaded"});
    return {};
  }
  return BpfProgram::Adopt(env, std::move(fd));
}

Napi::Value BpfObject::Layout(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "BpfObject.layout")) return {};
  Args args(env);
  std::string name = args.Text(info[0], "structName", 256);
  if (!args.ok()) return {};
  return StructLayout(env, bpf_object__btf(object_), name);
}

Napi::Value BpfObject::InnerTemplate(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "BpfObject.innerTemplate")) return {};
  Args args(env);
  std::string name = args.Text(info[0], "outerName", 256);
  if (!args.ok()) return {};
  auto found = templates_.find(name);
  if (found == templates_.end()) {
    ThrowErrno(env, ENOENT, {"bpf_map__inner_map", path_, 0, "no map-in-map " + name + " with an inner definition"});
    return {};
  }
  const Template& inner = found->second;
  Napi::Object out = Napi::Object::New(env);
  out.Set("type", MapTypeName(inner.type));
  out.Set("keySize", inner.keySize);
  out.Set("valueSize", inner.valueSize);
  out.Set("maxEntries", inner.maxEntries);
  out.Set("flags", inner.flags);
  return out;
}

void BpfObject::Close(const Napi::CallbackInfo&) {
  bpf_object__close(object_);
  object_ = nullptr;
}

}  // namespace enforcer
