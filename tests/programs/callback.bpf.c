// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: an `ld_imm64` that names a function is relocated (BPF_PSEUDO_FUNC)
 * and the function is carried along. `callback_each` requires at least Linux
 * 5.13, `callback_loop` 5.17.
 */
#include "bpf.h"

LICENSE;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

static __noinline long weigh(long value)
{
	opaque(value);
	return value * 2;
}

/* Calls a function itself, which only the callback reaches. */
static long add_element(void *map, __u32 *key, __u64 *value, __u64 *sum)
{
	*sum += weigh(*value) + *key;
	return 0;
}

static long add_index(__u32 index, __u64 *sum)
{
	*sum += weigh(index);
	/* 1 leaves the loop. */
	return index == 9;
}

SEC("socket")
int callback_each(struct __sk_buff *skb)
{
	__u64 sum = 0, value;
	__u32 key, i;

	for (i = 0; i < 4; i++) {
		key = i;
		value = 100 + i;
		CHECK(bpf_map_update_elem(&numbers, &key, &value, 0) == 0);
	}
	CHECK(bpf_for_each_map_elem(&numbers, add_element, &sum, 0) == 4);
	CHECK(sum == 2 * (100 + 101 + 102 + 103) + (0 + 1 + 2 + 3));
	return 0;
}

SEC("socket")
int callback_loop(struct __sk_buff *skb)
{
	__u64 sum = 0;

	CHECK(bpf_loop(100, add_index, &sum, 0) == 10);
	CHECK(sum == 90);
	return 0;
}
