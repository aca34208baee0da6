// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: functions need not lie in .text. One is in a section of no known
 * name, one in a program section that `?` keeps from being loaded by itself;
 * a static function is a program like any other.
 */
#include "bpf.h"

LICENSE;

static __noinline SEC("?socket") int in_program_section(struct __sk_buff *skb)
{
	return skb->len + 1;
}

static __noinline SEC("helpers") int before(int x)
{
	opaque(x);
	return x - 1;
}

/* Not at the start of its section, and calls across sections. */
static __noinline SEC("helpers") int in_unknown_section(struct __sk_buff *skb,
							int x)
{
	opaque(x);
	return before(x) * 2 + in_program_section(skb);
}

SEC("socket")
int sections_check(struct __sk_buff *skb)
{
	int eight = 8, length = skb->len;

	opaque(eight);
	CHECK(in_program_section(skb) == length + 1);
	CHECK(in_unknown_section(skb, eight) == 14 + length + 1);
	return 0;
}

SEC("tc")
static int sections_static_program(struct __sk_buff *skb)
{
	return 0;
}
