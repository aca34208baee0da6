// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* To be linked with linked_a. */
#include "linked.h"

extern __u64 li_a_data;
extern __u32 li_a_zero;
extern int li_a_deref(struct li_shared *shared);
extern struct li_map li_a_map __attribute__((section(".maps")));
extern int LINUX_KERNEL_VERSION __kconfig;

struct li_map li_b_map SEC(".maps");
struct li_map li_weak_map SEC(".maps");

__u64 li_b_data = 0xb;
__u32 li_b_zero;
const volatile __u32 li_b_constant = 0xbb;
static volatile __u64 li_static = 0xb1;

__noinline int li_b_double(int value)
{
	opaque(value);
	return value * 2;
}

__weak __noinline int li_both_weak(int value)
{
	opaque(value);
	return value + 200;
}

__noinline int li_strong_in_b(int value)
{
	opaque(value);
	return value + 2000;
}

static __noinline int li_same_name(int value)
{
	opaque(value);
	return value + 20;
}

SEC("socket")
int linked_b(struct __sk_buff *skb)
{
	struct li_shared *shared;
	__u32 key = 2;

	CHECK(li_same_name(1) == 21);
	CHECK(li_both_weak(1) == 101);
	CHECK(li_strong_in_b(1) == 2001);
	CHECK(li_static == 0xb1);
	CHECK(li_a_data == 0xa);
	CHECK(li_b_constant == 0xbb);
	CHECK(li_b_data == 0xb);
	CHECK(LINUX_KERNEL_VERSION > 0);
	shared = li_lookup(&li_a_map, &key);
	CHECK(shared);
	CHECK(li_a_deref(shared) == 0);
	CHECK(li_lookup(&li_weak_map, &key));
	CHECK(li_a_zero == 1);
	li_b_zero++;
	return 0;
}

LICENSE;
