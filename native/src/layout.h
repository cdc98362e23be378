// Struct layouts out of BTF. See BpfObject.layout in index.d.ts.
#pragma once

#include <bpf/btf.h>
#include <napi.h>

#include <string>

namespace enforcer {

// Empty with an exception pending when btf has no struct or union of that name, or cannot size a field.
Napi::Value StructLayout(Napi::Env env, const struct btf* btf, const std::string& name);

}  // namespace enforcer
