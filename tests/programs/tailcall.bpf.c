// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: a program array with a static initialiser holds its programs before
 * the first run. `tailcall_entry` jumps to slot 0, that to slot 2; slot 1 is
 * empty and must fail.
 */
#include "bpf.h"

LICENSE;

int tailcall_first(struct __sk_buff *skb);
int tailcall_second(struct __sk_buff *skb);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} jumps SEC(".maps") = {
	.values = {
		[0] = (void *)&tailcall_first,
		[2] = (void *)&tailcall_second,
	},
};

__u32 visited;

SEC("socket")
int tailcall_second(struct __sk_buff *skb)
{
	__u32 seen = visited;

	visited = 0;
	CHECK(seen == 11);
	return 0;
}

SEC("socket")
int tailcall_first(struct __sk_buff *skb)
{
	visited += 10;
	bpf_tail_call(skb, &jumps, 1);
	bpf_tail_call(skb, &jumps, 2);
	return __LINE__;
}

SEC("socket")
int tailcall_entry(struct __sk_buff *skb)
{
	visited = 1;
	bpf_tail_call(skb, &jumps, 0);
	return __LINE__;
}
