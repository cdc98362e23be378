#include "addon.h"
namespace enforcer { void InitTc(Napi::Env, Napi::Object) {} }
