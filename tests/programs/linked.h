/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What linked_a and linked_b share. */
#ifndef EBPF_MANAGER_LINKED_H
#define EBPF_MANAGER_LINKED_H

#include "bpf.h"

#define BPF_MAP_TYPE_ARRAY 2

struct li_shared {
	__u64 first;
	struct li_shared *next;
	__u32 small;
};

struct li_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct li_shared);
};

static void *(*li_lookup)(void *map, const void *key) = (void *)1;

#endif
