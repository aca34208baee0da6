// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: numbers that a loader puts into instructions in place of symbols
 * nothing declares, all 64 bits of them, for all programs or for some.
 */
#include "bpf.h"

LICENSE;

static __noinline __u64 shared(__u64 salt)
{
	__u64 value;

	LOAD_CONSTANT("constant_shared", value);
	return value + salt;
}

SEC("socket")
int constants_unset(struct __sk_buff *skb)
{
	__u64 value;

	LOAD_CONSTANT("constant_wide", value);
	CHECK(value == 0);
	CHECK(shared(skb->len) == skb->len);
	return 0;
}

SEC("socket")
int constants_set(struct __sk_buff *skb)
{
	__u64 value;

	LOAD_CONSTANT("constant_wide", value);
	CHECK(value == 0xfedcba9876543210);
	CHECK(shared(0) == 7);
	return 0;
}

SEC("socket")
int constants_chosen(struct __sk_buff *skb)
{
	CHECK(shared(0) == 9);
	return 0;
}
