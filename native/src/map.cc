// Map operations. A key or value of the wrong length is a RangeError before the kernel sees it: the kernel would read
// or write past the buffer. Batch operations use the kernel's where the map type has one.
#include "map.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <algorithm>
#include <cstring>

#include "error.h"
#include "unwaited.h"

namespace enforcer {

namespace {

constexpr int kNotSupported = 524;  // ENOTSUPP, kernel-internal, returned by bpf(2) for a missing batch operation
constexpr size_t kReplyLimit = 1u << 30;

bool LacksBatch(int error) { return error == kNotSupported || error == EINVAL || error == EOPNOTSUPP; }

bool IsPerCpu(uint32_t type) {
  return type == BPF_MAP_TYPE_PERCPU_HASH || type == BPF_MAP_TYPE_PERCPU_ARRAY || type == BPF_MAP_TYPE_LRU_PERCPU_HASH;
}

}  // namespace

std::string MapTypeName(uint32_t type) {
  const char* name = libbpf_bpf_map_type_str(static_cast<enum bpf_map_type>(type));
  return name == nullptr ? "type_" + std::to_string(type) : name;
}

uint32_t MapTypeNumber(const std::string& name) {
  for (uint32_t type = 1; type < 64; type++) {
    const char* known = libbpf_bpf_map_type_str(static_cast<enum bpf_map_type>(type));
    if (known != nullptr && name == known) return type;
  }
  return 0;
}

void BpfMap::Init(Napi::Env env, Napi::Object exports) {
  Napi::Function constructor = DefineClass(
      env, kName,
      {
          StaticMethod<&BpfMap::Create>("create"),
          StaticMethod<&BpfMap::FromPin>("fromPin"),
          StaticMethod<&BpfMap::FromId>("fromId"),
          StaticMethod<&BpfMap::FromFd>("fromFd"),
          InstanceAccessor<&BpfMap::GetFd>("fd"),
          InstanceAccessor<&BpfMap::GetInfo>("info"),
          InstanceMethod<&BpfMap::Memory>("memory"),
          InstanceMethod<&BpfMap::Lookup>("lookup"),
          InstanceMethod<&BpfMap::LookupInto>("lookupInto"),
          InstanceMethod<&BpfMap::Update>("update"),
          InstanceMethod<&BpfMap::UpdateInner>("updateInner"),
          InstanceMethod<&BpfMap::Delete>("delete"),
          InstanceMethod<&BpfMap::NextKey>("nextKey"),
          InstanceMethod<&BpfMap::UpdateBatch>("updateBatch"),
          InstanceMethod<&BpfMap::Entries>("entries"),
          InstanceMethod<&BpfMap::Page>("page"),
          InstanceMethod<&BpfMap::DeleteBatch>("deleteBatch"),
          InstanceMethod<&BpfMap::Pin>("pin"),
          InstanceMethod<&BpfMap::Close>("close"),
      });
  (ConstructorsOf(env).*kConstructor) = Napi::Persistent(constructor);
  exports.Set(kName, constructor);
}

void InitMap(Napi::Env env, Napi::Object exports) { BpfMap::Init(env, exports); }

BpfMap::BpfMap(const Napi::CallbackInfo& info) : Adopted<BpfMap>(info) {
  if (!fd_.valid()) return;
  __u32 size = sizeof info_;
  // The kernel fills in whatever kind of descriptor it is given: the kind is asked first.
  if (BpfKind(fd_.get()) != "bpf-map") {
    ThrowErrno(info.Env(), EINVAL, {"bpf(BPF_OBJ_GET_INFO_BY_FD)", {}, 0, "the descriptor is not a BPF map"});
  } else if (bpf_obj_get_info_by_fd(fd_.get(), &info_, &size) != 0) {
    ThrowErrno(info.Env(), errno, {"bpf(BPF_OBJ_GET_INFO_BY_FD)"});
  } else {
    element_ = info_.value_size;
    if (IsPerCpu(info_.type)) {
      element_ = (element_ + 7) / 8 * 8 * static_cast<size_t>(std::max(1, libbpf_num_possible_cpus()));
    }
    scratch_.resize(std::max<size_t>(element_, info_.key_size));
  }
}

Napi::Value BpfMap::Create(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  Napi::Object options = args.Object(info[0], "options");
  std::string type = args.Text(args.Get(options, "type"), "type", 64);
  std::string name = args.Text(args.Get(options, "name"), "name", BPF_OBJ_NAME_LEN - 1);
  uint32_t keySize = args.U32(args.Get(options, "keySize"), "keySize");
  uint32_t valueSize = args.U32(args.Get(options, "valueSize"), "valueSize");
  uint32_t maxEntries = args.U32(args.Get(options, "maxEntries"), "maxEntries");
  LIBBPF_OPTS(bpf_map_create_opts, create);
  create.map_flags = args.U32(args.Get(options, "flags"), "flags", 0);
  Napi::Value innerFd = args.Get(options, "innerFd");
  if (args.ok() && !innerFd.IsEmpty() && !innerFd.IsUndefined()) {
    create.inner_map_fd = static_cast<uint32_t>(args.Descriptor(innerFd, "innerFd"));
  }
  uint32_t number = MapTypeNumber(type);
  if (args.ok() && number == 0) args.FailRange("type is not a known map type: " + type);
  if (!args.ok()) return {};
  Fd fd(bpf_map_create(static_cast<enum bpf_map_type>(number), name.c_str(), keySize, valueSize, maxEntries, &create));
  if (!fd.valid()) {
    ThrowErrno(env, errno, {"bpf(BPF_MAP_CREATE)", {}, 0, "map " + name});
    return {};
  }
  return Adopt(env, std::move(fd));
}

Napi::Value BpfMap::FromId(const Napi::CallbackInfo& info) {
  return ById(info, bpf_map_get_fd_by_id, {"bpf(BPF_MAP_GET_FD_BY_ID)", {}, 0, "map"});
}

Napi::Value BpfMap::FromFd(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(env);
  int given = args.Descriptor(info[0], "fd");
  if (!args.ok()) return {};
  Fd fd = Fd::Duplicate(given);
  if (!fd.valid()) {
    ThrowErrno(env, errno, {"fcntl(F_DUPFD_CLOEXEC)"});
    return {};
  }
  return Adopt(env, std::move(fd));
}

Napi::Value BpfMap::GetInfo(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "info")) return {};
  Napi::Object out = Napi::Object::New(env);
  out.Set("id", info_.id);
  out.Set("type", MapTypeName(info_.type));
  out.Set("name", std::string(info_.name, strnlen(info_.name, sizeof info_.name)));
  out.Set("keySize", info_.key_size);
  out.Set("valueSize", info_.value_size);
  out.Set("maxEntries", info_.max_entries);
  out.Set("flags", info_.map_flags);
  return out;
}

Napi::Value BpfMap::Memory(const Napi::CallbackInfo& info) {
  if (!Open(info.Env(), "memory")) return {};
  int64_t octets = FdMemlock(fd_.get());
  if (octets < 0) {
    ThrowErrno(info.Env(), errno, {"open", "/proc/self/fdinfo/" + std::to_string(fd_.get())});
    return {};
  }
  return Napi::Number::New(info.Env(), static_cast<double>(octets));
}

Napi::Value BpfMap::Lookup(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "lookup")) return {};
  Args args(env);
  Bytes key = args.ByteArray(info[0], "key", info_.key_size);
  if (!args.ok()) return {};
  if (bpf_map_lookup_elem(fd_.get(), key.data, scratch_.data()) != 0) {
    if (errno == ENOENT) return env.Null();
    ThrowErrno(env, errno, {"bpf(BPF_MAP_LOOKUP_ELEM)"});
    return {};
  }
  return Napi::Buffer<uint8_t>::Copy(env, scratch_.data(), element_);
}

Napi::Value BpfMap::LookupInto(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "lookupInto")) return {};
  Args args(env);
  Bytes key = args.ByteArray(info[0], "key", info_.key_size);
  Bytes out = args.ByteArray(info[1], "out", element_);
  if (!args.ok()) return {};
  if (bpf_map_lookup_elem(fd_.get(), key.data, out.data) != 0) {
    if (errno == ENOENT) return Napi::Boolean::New(env, false);
    ThrowErrno(env, errno, {"bpf(BPF_MAP_LOOKUP_ELEM)"});
    return {};
  }
  return Napi::Boolean::New(env, true);
}

void BpfMap::Update(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "update")) return;
  Args args(env);
  Bytes key = args.ByteArray(info[0], "key", info_.key_size);
  Bytes value = args.ByteArray(info[1], "value", element_);
  int64_t flags = args.Integer(info[2], "flags", BPF_ANY, BPF_EXIST, BPF_ANY);
  if (!args.ok()) return;
  if (bpf_map_update_elem(fd_.get(), key.data, value.data, static_cast<__u64>(flags)) != 0) {
    ThrowErrno(env, errno, {"bpf(BPF_MAP_UPDATE_ELEM)"});
  }
}

void BpfMap::UpdateInner(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "updateInner")) return;
  Args args(env);
  uint32_t index = args.U32(info[0], "index");
  BpfMap* inner = From(args, info[1], "inner");
  if (args.ok() && (info_.key_size != sizeof index || element_ != sizeof(__u32) ||
                    (info_.type != BPF_MAP_TYPE_ARRAY_OF_MAPS && info_.type != BPF_MAP_TYPE_HASH_OF_MAPS))) {
    args.FailType("updateInner needs a map-in-map with a key of 4 octets");
  }
  if (!args.ok()) return;
  if (int error = ChangeInner(fd_.get(), &index, sizeof index, inner->fd(), inner->info().id); error != 0) {
    ThrowErrno(env, error, {"bpf(BPF_MAP_UPDATE_ELEM)", {}, 0, "inner map at index " + std::to_string(index)});
  }
}

Napi::Value BpfMap::Delete(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "delete")) return {};
  Args args(env);
  Bytes key = args.ByteArray(info[0], "key", info_.key_size);
  if (!args.ok()) return {};
  bool outer = info_.type == BPF_MAP_TYPE_ARRAY_OF_MAPS || info_.type == BPF_MAP_TYPE_HASH_OF_MAPS;
  int error = outer ? ChangeInner(fd_.get(), key.data, info_.key_size, -1, 0) : bpf_map_delete_elem(fd_.get(), key.data) == 0 ? 0 : -errno;
  if (error != 0) {
    if (error == -ENOENT) return Napi::Boolean::New(env, false);
    ThrowErrno(env, error, {"bpf(BPF_MAP_DELETE_ELEM)"});
    return {};
  }
  return Napi::Boolean::New(env, true);
}

Napi::Value BpfMap::NextKey(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "nextKey")) return {};
  Args args(env);
  Bytes key;
  if (!info[0].IsNull()) key = args.ByteArray(info[0], "key", info_.key_size);
  if (!args.ok()) return {};
  if (bpf_map_get_next_key(fd_.get(), key.data, scratch_.data()) != 0) {
    if (errno == ENOENT) return env.Null();
    ThrowErrno(env, errno, {"bpf(BPF_MAP_GET_NEXT_KEY)"});
    return {};
  }
  return Napi::Buffer<uint8_t>::Copy(env, scratch_.data(), info_.key_size);
}

void BpfMap::UpdateBatch(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "updateBatch")) return;
  Args args(env);
  int64_t count = args.Integer(info[2], "count", 0, INT32_MAX);
  Bytes keys = args.ByteArray(info[0], "keys", static_cast<size_t>(count) * info_.key_size);
  Bytes values = args.ByteArray(info[1], "values", static_cast<size_t>(count) * element_);
  int64_t flags = args.Integer(info[3], "flags", BPF_ANY, BPF_EXIST, BPF_ANY);
  if (!args.ok() || count == 0) return;
  // The kernel's batch knows no BPF_NOEXIST or BPF_EXIST.
  if (flags == BPF_ANY) {
    __u32 done = static_cast<__u32>(count);
    if (bpf_map_update_batch(fd_.get(), keys.data, values.data, &done, nullptr) == 0) return;
    if (!LacksBatch(errno)) {
      ThrowErrno(env, errno, {"bpf(BPF_MAP_UPDATE_BATCH)", {}, 0, "at element " + std::to_string(done) + " of " + std::to_string(count)});
      return;
    }
  }
  for (size_t i = 0; i < static_cast<size_t>(count); i++) {
    if (bpf_map_update_elem(fd_.get(), keys.data + i * info_.key_size, values.data + i * element_, static_cast<__u64>(flags)) != 0) {
      ThrowErrno(env, errno, {"bpf(BPF_MAP_UPDATE_ELEM)", {}, 0, "at element " + std::to_string(i) + " of " + std::to_string(count)});
      return;
    }
  }
}

bool BpfMap::Walk(Napi::Env env, std::vector<uint8_t>& keys, std::vector<uint8_t>& values, size_t& count) {
  // A hash that changes meanwhile may send the walk back to its start: bounded by twice the map's size.
  const size_t limit = 2 * static_cast<size_t>(info_.max_entries);
  std::vector<uint8_t> key(info_.key_size), next(info_.key_size);
  const uint8_t* from = nullptr;
  for (size_t step = 0; step < limit; step++) {
    if (bpf_map_get_next_key(fd_.get(), from, next.data()) != 0) {
      if (errno == ENOENT) return true;
      ThrowErrno(env, errno, {"bpf(BPF_MAP_GET_NEXT_KEY)"});
      return false;
    }
    key.swap(next);
    from = key.data();
    if (bpf_map_lookup_elem(fd_.get(), key.data(), scratch_.data()) != 0) {
      if (errno == ENOENT) continue;  // deleted meanwhile, or an empty slot of a map-in-map
      ThrowErrno(env, errno, {"bpf(BPF_MAP_LOOKUP_ELEM)"});
      return false;
    }
    keys.insert(keys.end(), key.begin(), key.end());
    values.insert(values.end(), scratch_.begin(), scratch_.begin() + static_cast<ptrdiff_t>(element_));
    count++;
  }
  return true;
}

Napi::Value BpfMap::Entries(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "entries")) return {};
  std::vector<uint8_t> keys, values;
  size_t count = 0;
  // Position in the map between two calls: a bucket number for a hash, the last key otherwise.
  std::vector<uint8_t> position(std::max<size_t>(info_.key_size, 8));
  bool begun = false;
  size_t room = std::clamp<size_t>(info_.max_entries, 1, 4096);
  for (;;) {
    if ((count + room) * (element_ + info_.key_size) > kReplyLimit) {
      ThrowErrno(env, EFBIG, {"bpf(BPF_MAP_LOOKUP_BATCH)", {}, 0, "the map holds more than 1 GiB"});
      return {};
    }
    keys.resize((count + room) * info_.key_size);
    values.resize((count + room) * element_);
    __u32 got = static_cast<__u32>(room);
    int failed = bpf_map_lookup_batch(fd_.get(), begun ? position.data() : nullptr, position.data(),
                                      keys.data() + count * info_.key_size, values.data() + count * element_, &got, nullptr);
    int error = failed == 0 ? 0 : errno;
    if (error == ENOSPC) {  // one bucket holds more than there is room for; nothing was consumed
      room *= 2;
      continue;
    }
    if (LacksBatch(error) && !begun) {
      keys.clear();
      values.clear();
      if (!Walk(env, keys, values, count)) return {};
      break;
    }
    if (error != 0 && error != ENOENT) {
      ThrowErrno(env, error, {"bpf(BPF_MAP_LOOKUP_BATCH)"});
      return {};
    }
    count += got;
    begun = true;
    if (error == ENOENT) break;  // that was the last of it
  }
  Napi::Object out = Napi::Object::New(env);
  out.Set("keys", Napi::Buffer<uint8_t>::Copy(env, keys.data(), count * info_.key_size));
  out.Set("values", Napi::Buffer<uint8_t>::Copy(env, values.data(), count * element_));
  out.Set("count", static_cast<double>(count));
  return out;
}

Napi::Value BpfMap::Page(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "page")) return {};
  Args args(env);
  Bytes after;
  // A bucket number for a hash, the last key otherwise; see Entries().
  std::vector<uint8_t> position(std::max<size_t>(info_.key_size, 8));
  if (!info[0].IsNull()) after = args.ByteArray(info[0], "after", position.size());
  size_t room = static_cast<size_t>(args.Integer(info[1], "room", 1, INT32_MAX));
  if (!args.ok()) return {};
  if (after.data != nullptr) std::copy(after.data, after.data + position.size(), position.begin());
  std::vector<uint8_t> keys, values;
  __u32 got;
  int error;
  do {
    if (room * (element_ + info_.key_size) > kReplyLimit) {
      ThrowErrno(env, EFBIG, {"bpf(BPF_MAP_LOOKUP_BATCH)", {}, 0, "one bucket of the map holds more than 1 GiB"});
      return {};
    }
    keys.resize(room * info_.key_size);
    values.resize(room * element_);
    got = static_cast<__u32>(room);
    error = bpf_map_lookup_batch(fd_.get(), after.data == nullptr ? nullptr : position.data(), position.data(), keys.data(), values.data(), &got, nullptr) == 0 ? 0 : errno;
    room *= 2;  // only taken where one bucket holds more than there is room for; nothing was consumed
  } while (error == ENOSPC);
  if (error != 0 && error != ENOENT) {
    ThrowErrno(env, error, {"bpf(BPF_MAP_LOOKUP_BATCH)"});
    return {};
  }
  Napi::Object out = Napi::Object::New(env);
  out.Set("keys", Napi::Buffer<uint8_t>::Copy(env, keys.data(), got * info_.key_size));
  out.Set("values", Napi::Buffer<uint8_t>::Copy(env, values.data(), got * element_));
  out.Set("count", static_cast<double>(got));
  out.Set("next", error == ENOENT ? env.Null() : Napi::Value(Napi::Buffer<uint8_t>::Copy(env, position.data(), position.size())));
  return out;
}

Napi::Value BpfMap::DeleteBatch(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Open(env, "deleteBatch")) return {};
  Args args(env);
  size_t count = static_cast<size_t>(args.Integer(info[1], "count", 0, INT32_MAX));
  Bytes keys = args.ByteArray(info[0], "keys", count * info_.key_size);
  if (!args.ok()) return {};
  size_t deleted = 0;
  bool single = false;
  for (size_t at = 0; at < count;) {
    const uint8_t* key = keys.data + at * info_.key_size;
    if (single) {
      if (bpf_map_delete_elem(fd_.get(), key) == 0) {
        deleted++;
      } else if (errno != ENOENT) {
        ThrowErrno(env, errno, {"bpf(BPF_MAP_DELETE_ELEM)", {}, 0, "at element " + std::to_string(at) + " of " + std::to_string(count)});
        return {};
      }
      at++;
      continue;
    }
    __u32 done = static_cast<__u32>(count - at);
    if (bpf_map_delete_batch(fd_.get(), key, &done, nullptr) == 0) {
      deleted += count - at;
      break;
    }
    if (LacksBatch(errno)) {
      single = true;
    } else if (errno == ENOENT) {  // the batch stops at a key that is not there
      deleted += done;
      at += done + 1;
    } else {
      ThrowErrno(env, errno, {"bpf(BPF_MAP_DELETE_BATCH)", {}, 0, "at element " + std::to_string(at + done) + " of " + std::to_string(count)});
      return {};
    }
  }
  return Napi::Number::New(env, static_cast<double>(deleted));
}

}  // namespace enforcer
