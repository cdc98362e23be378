#include "addon.h"
namespace enforcer { void InitUdp(Napi::Env, Napi::Object) {} }
