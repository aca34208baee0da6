// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * To be linked with linked_b: declares what that defines, and defines weakly
 * what that defines, too.
 */
#include "linked.h"

extern int li_b_double(int value);
extern int li_nowhere(int value) __weak;
extern __u64 li_b_data;
extern struct li_map li_b_map __attribute__((section(".maps")));
extern int LINUX_KERNEL_VERSION __kconfig;

struct li_map li_a_map SEC(".maps");
/* That of linked_b counts: it is strong. */
struct li_map li_weak_map __weak SEC(".maps");

__u64 li_a_data = 0xa;
__u32 li_a_zero;
const volatile __u32 li_a_constant = 0xaa;
static volatile __u64 li_static = 0xa1;

/* Of two weak ones the first counts, ... */
__weak __noinline int li_both_weak(int value)
{
	opaque(value);
	return value + 100;
}

/* ... and a strong one before it. */
__weak __noinline int li_strong_in_b(int value)
{
	opaque(value);
	return value + 1000;
}

/* Hidden here, declared elsewhere: verified with its callers. */
__attribute__((visibility("hidden"))) __noinline int li_a_deref(struct li_shared *shared)
{
	return shared ? shared->small : -1;
}

static __noinline int li_same_name(int value)
{
	opaque(value);
	return value + 10;
}

SEC("socket")
int linked_a(struct __sk_buff *skb)
{
	struct li_shared *shared;
	__u32 key = 1;

	CHECK(li_b_double(21) == 42);
	CHECK(li_both_weak(1) == 101);
	CHECK(li_strong_in_b(1) == 2001);
	CHECK(li_same_name(1) == 11);
	CHECK(!&li_nowhere);
	CHECK(li_b_data == 0xb);
	CHECK(li_a_data == 0xa);
	CHECK(li_a_constant == 0xaa);
	CHECK(li_static == 0xa1);
	CHECK(LINUX_KERNEL_VERSION > 0);
	CHECK(li_lookup(&li_b_map, &key));
	CHECK(li_lookup(&li_a_map, &key));
	shared = li_lookup(&li_weak_map, &key);
	CHECK(shared);
	CHECK(li_a_deref(shared) == 0);
	li_a_zero++;
	return 0;
}

LICENSE;
