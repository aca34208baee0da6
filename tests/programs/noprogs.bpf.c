// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: an object of maps and data alone, without program and licence, is
 * opened, its maps are created, and no program is loaded.
 */
#include "bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32);
	__type(key, __u64);
	__type(value, __u32);
} alone SEC(".maps");

__u32 alone_data = 5;
