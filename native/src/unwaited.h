// Changing an entry of a map-in-map without the wait that the kernel puts behind it.
//
// bpf(2) returns from such a change only after an RCU grace period (5 to 30 ms), so that the caller knows that no program
// still runs with the former inner map. Programs that begin see the change at once. Here a thread waits it out, and the caller
// goes on as soon as the kernel shows the change; a program that began before may finish with the former map, as a packet
// that was a moment earlier would have.
#pragma once

#include <linux/types.h>

#include <cstddef>

namespace enforcer {

// inner < 0: removes the entry. 0 when done; a negative errno, -ENOENT when there was nothing to remove.
int ChangeInner(int outer, const void* key, size_t key_size, int inner, __u32 inner_id);

}  // namespace enforcer
