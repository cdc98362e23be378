// One netlink request and its answers, for the addon's own use. See netlink.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace enforcer {

struct NetlinkOutcome {
  int error = 0;     // errno, 0 for success
  std::string text;  // the kernel's words about the error
  std::vector<std::vector<uint8_t>> messages;
};

// request is one whole message. Asks an interrupted dump again a few times; EINTR when it never came out whole.
NetlinkOutcome NetlinkExchange(int protocol, const uint8_t* request, size_t length);

}  // namespace enforcer
