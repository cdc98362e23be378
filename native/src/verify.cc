// How long a chain of certificates this process verifies. OpenSSL checks the signatures of a hundred, on the thread that reads the
// connection, before it says that their root is not trusted; for keys of its slowest kinds that takes a quarter of a second, and a
// far side sends what it likes. Node has no option for it. OpenSSL's own default is replaced, for every connection of the process.
#include <dlfcn.h>
#include <mutex>

#include "addon.h"

namespace enforcer {

// Certificates between a server's own and a root. Public authorities use two, three where one vouches for another.
constexpr int kBetween = 5;
// X509_V_FLAG_TRUSTED_FIRST, as the default that is replaced has it.
constexpr unsigned long kTrustedFirst = 0x8000;

template <typename F>
static F Find(const char* name) { return reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name)); }

void LimitChains() {
  static std::once_flag once;
  std::call_once(once, [] {
    // Node's OpenSSL, within it or beside it; a Node without one has no TLS either.
    const auto make = Find<void* (*)()>("X509_VERIFY_PARAM_new");
    const auto name = Find<int (*)(void*, const char*)>("X509_VERIFY_PARAM_set1_name");
    const auto flags = Find<int (*)(void*, unsigned long)>("X509_VERIFY_PARAM_set_flags");
    const auto depth = Find<void (*)(void*, int)>("X509_VERIFY_PARAM_set_depth");
    const auto add = Find<int (*)(void*)>("X509_VERIFY_PARAM_add0_table");
    if (make == nullptr || name == nullptr || flags == nullptr || depth == nullptr || add == nullptr) return;
    void* param = make();
    if (param == nullptr || name(param, "default") != 1 || flags(param, kTrustedFirst) != 1) return;
    depth(param, kBetween);
    add(param);  // which it belongs to from now on
  });
}

}  // namespace enforcer
