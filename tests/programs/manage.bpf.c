// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: what a manager edits, routes and pauses reaches the programs. Run
 * the socket programs on any packet: they return what they found. Requires at
 * least Linux 5.8, `manage_calls` tracing.
 */
#include "bpf.h"

LICENSE;

/* Filled by routes only. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	__uint(value_size, 4);
} jump_table SEC(".maps");

struct table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} table_a SEC(".maps"), table_b SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct table);
} tables SEC(".maps");

/* Its inner maps are said by the manager. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__uint(value_size, 4);
} modelless SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

/* Which programs are to return at once. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} program_bypassed SEC(".maps");

const volatile __u32 answer = 1;
__u64 calls;
__u64 packets;

SEC("socket")
int manage_constant(struct __sk_buff *skb)
{
	return answer;
}

SEC("socket")
int manage_symbol(struct __sk_buff *skb)
{
	__u64 value;

	LOAD_CONSTANT("manage_number", value);
	return value;
}

/* 100 if the slot is empty. */
SEC("socket")
int manage_jump(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &jump_table, 1);
	return 100;
}

SEC("socket")
int manage_target_a(struct __sk_buff *skb)
{
	return 11;
}

SEC("socket")
int manage_target_b(struct __sk_buff *skb)
{
	return 12;
}

/* 100 if there is no such table. */
SEC("socket")
int manage_table(struct __sk_buff *skb)
{
	__u32 key = 7, zero = 0;
	void *table = bpf_map_lookup_elem(&tables, &key);
	__u64 *value;

	if (!table)
		return 100;
	value = bpf_map_lookup_elem(table, &zero);
	return value ? *value : 101;
}

/* 100 if there is no such number. */
SEC("socket")
int manage_lookup(struct __sk_buff *skb)
{
	__u32 key = 7;
	__u64 *value = bpf_map_lookup_elem(&numbers, &key);

	return value ? *value : 100;
}

/* The verifier refuses it: a number is no address. */
SEC("?socket")
int err_manage_refused(struct __sk_buff *skb)
{
	return *(volatile __u64 *)(__u64)skb->len;
}

static __always_inline __u64 bypass_mark(void)
{
	__u64 mark;

	LOAD_CONSTANT("bypass_program", mark);
	return mark;
}

SEC("raw_tracepoint/sys_enter")
int manage_calls(void *ctx)
{
	if (bypass_mark())
		return 0;
	__sync_fetch_and_add(&calls, 1);
	return 0;
}

SEC("socket")
int manage_packets(struct __sk_buff *skb)
{
	if (bypass_mark())
		return 0;
	__sync_fetch_and_add(&packets, 1);
	return 5;
}

SEC("xdp")
int manage_frames(struct xdp_md *ctx)
{
	if (bypass_mark())
		return 0;
	return 1;
}
