// "ingress" and "egress", as the two ways of attaching number them.
#pragma once

#include <string>

#include "args.h"

namespace enforcer {

enum class Hook { kIngress, kEgress };

inline Hook HookFrom(Args& args, const Napi::Value& value) {
  std::string name = args.Text(value, "hook", 16);
  if (args.ok() && name != "ingress" && name != "egress") args.FailRange("hook must be \"ingress\" or \"egress\"");
  return name == "egress" ? Hook::kEgress : Hook::kIngress;
}

}  // namespace enforcer
