#include "addon.h"
namespace enforcer { void InitLink(Napi::Env, Napi::Object) {} }
