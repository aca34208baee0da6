// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: a map that another object defines is taken from the loader's user,
 * by name, and checked against its declaration; and what else the declaration
 * of a map may leave to its loader: sizes that say nothing, a pinning that
 * only its own loader knows, a number of elements to be set.
 */
#include "bpf.h"

LICENSE;

#define BPF_MAP_TYPE_LRU_PERCPU_HASH 10
#define BPF_MAP_TYPE_DEVMAP 14

extern struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} em_elsewhere __attribute__((section(".maps")));

/* Older than the rule that both are 4 bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 8);
	__uint(value_size, 24);
} em_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 0);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, 107);
} em_sized_later SEC(".maps");

/* The kernel adds a flag to these by itself. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} em_devices SEC(".maps");

SEC("tc")
int extern_map_check(struct __sk_buff *skb)
{
	__u32 key = 1, past = 2;
	__u64 *value = bpf_map_lookup_elem(&em_elsewhere, &key), one = 1;

	CHECK(value && *value == 33);
	*value = 34;
	CHECK(!bpf_map_lookup_elem(&em_elsewhere, &past));
	CHECK(bpf_map_update_elem(&em_sized_later, &key, &one, BPF_ANY) == 0);
	bpf_perf_event_output(skb, &em_events, BPF_F_CURRENT_CPU, &one,
			      sizeof(one));
	return 0;
}
