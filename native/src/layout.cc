// Walks a struct's members in BTF: nested structs with dotted names, members of anonymous ones as if they were the outer
// one's own, arrays as one field. Bit-fields have no whole octets and are refused: nothing shared uses them.
#include "layout.h"

#include "error.h"

namespace enforcer {

namespace {

bool IsComposite(const struct btf_type* type) { return btf_is_struct(type) || btf_is_union(type); }

// base in octets; depth guards against damaged BTF.
bool Walk(Napi::Env env, const struct btf* btf, const struct btf_type* type, const std::string& prefix, uint32_t base,
          Napi::Object& fields, int depth) {
  const struct btf_member* members = btf_members(type);
  for (int i = 0; i < btf_vlen(type); i++) {
    const char* ownName = btf__name_by_offset(btf, members[i].name_off);
    std::string name = ownName == nullptr ? "" : ownName;
    uint32_t bits = btf_member_bit_offset(type, static_cast<__u32>(i));
    int id = btf__resolve_type(btf, members[i].type);
    const struct btf_type* inner = id < 0 ? nullptr : btf__type_by_id(btf, static_cast<__u32>(id));
    int64_t size = id < 0 ? id : btf__resolve_size(btf, members[i].type);
    if (inner == nullptr || size < 0 || depth > 16) {
      ThrowErrno(env, EINVAL, {"btf__resolve_size", {}, 0, "field " + prefix + name});
      return false;
    }
    if (btf_member_bitfield_size(type, static_cast<__u32>(i)) != 0 || bits % 8 != 0) {
      ThrowErrno(env, EINVAL, {"btf__type_by_id", {}, 0, "field " + prefix + name + " is a bit-field"});
      return false;
    }
    uint32_t offset = base + bits / 8;
    if (!name.empty()) {
      Napi::Object field = Napi::Object::New(env);
      field.Set("offset", offset);
      field.Set("size", static_cast<double>(size));
      fields.Set(prefix + name, field);
    }
    if (IsComposite(inner) && !Walk(env, btf, inner, name.empty() ? prefix : prefix + name + ".", offset, fields, depth + 1)) {
      return false;
    }
  }
  return true;
}

}  // namespace

Napi::Value StructLayout(Napi::Env env, const struct btf* btf, const std::string& name) {
  if (btf == nullptr) {
    ThrowErrno(env, ENOENT, {"bpf_object__btf", {}, 0, "the object has no BTF"});
    return {};
  }
  __s32 id = btf__find_by_name_kind(btf, name.c_str(), BTF_KIND_STRUCT);
  if (id < 0) id = btf__find_by_name_kind(btf, name.c_str(), BTF_KIND_UNION);
  if (id < 0) {
    ThrowErrno(env, ENOENT, {"btf__find_by_name_kind", {}, 0, "no struct or union " + name + " in the object's BTF"});
    return {};
  }
  const struct btf_type* type = btf__type_by_id(btf, static_cast<__u32>(id));
  Napi::Object fields = Napi::Object::New(env);
  if (!Walk(env, btf, type, "", 0, fields, 0)) return {};
  Napi::Object out = Napi::Object::New(env);
  out.Set("size", type->size);
  out.Set("fields", fields);
  return out;
}

}  // namespace enforcer
