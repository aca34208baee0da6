// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: BTF-defined maps are created with the type, sizes, flags and inner
 * maps they declare, and `ld_imm64` relocations reach the right ones.
 * Run `maps_check` on any packet. It expects to be the only user.
 */
#include "bpf.h"

LICENSE;

struct pair {
	__u32 first;
	__u32 second;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct pair);
	__type(value, __u64);
} hash SEC(".maps");

/* Sizes instead of types. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 10);
	__uint(key_size, 4);
	__uint(value_size, 24);
} array SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} percpu_array SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct pair);
} lru_hash SEC(".maps");

/* No key: the member is absent, not zero. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 4);
	__type(value, __u32);
} queue SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ringbuf SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 3);
	__uint(key_size, 4);
	__uint(value_size, 4);
} prog_array SEC(".maps");

/* No max_entries: one entry for each possible CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf_event_array SEC(".maps");

/* The shape of an inner map as a named type, and two maps of that shape. */
struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} inner_a SEC(".maps"), inner_b SEC(".maps");

/* Inner maps put in place by the loader; slot 1 stays empty. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} outer_array SEC(".maps") = {
	.values = { [0] = &inner_a, [2] = &inner_b },
};

/* The inner map has only a definition; user space inserts maps. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 8);
	__type(key, __u64);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_HASH);
			__uint(max_entries, 5);
			__type(key, __u32);
			__type(value, struct pair);
		});
} outer_hash SEC(".maps");

SEC("socket")
int maps_check(struct __sk_buff *skb)
{
	struct pair pair = { 1, 2 }, swapped = { 2, 1 }, *found;
	__u32 zero = 0, one = 1, two = 2, last = 9, past = 10, number = 7;
	__u64 value = 0x1122334455667788, absent = 42, *stored;
	__u32 *word;
	void *inner;
	char *bytes;

	CHECK(bpf_map_update_elem(&hash, &pair, &value, BPF_NOEXIST) == 0);
	CHECK(bpf_map_update_elem(&hash, &pair, &value, BPF_NOEXIST) != 0);
	stored = bpf_map_lookup_elem(&hash, &pair);
	CHECK(stored && *stored == value);
	CHECK(!bpf_map_lookup_elem(&hash, &swapped));
	CHECK(bpf_map_delete_elem(&hash, &pair) == 0);
	CHECK(!bpf_map_lookup_elem(&hash, &pair));

	bytes = bpf_map_lookup_elem(&array, &last);
	CHECK(bytes);
	CHECK(bytes[23] == 0);
	bytes[23] = 5;
	bytes = bpf_map_lookup_elem(&array, &last);
	CHECK(bytes && bytes[23] == 5);
	bytes[23] = 0;
	CHECK(!bpf_map_lookup_elem(&array, &past));

	CHECK(bpf_map_update_elem(&percpu_array, &one, &value, BPF_ANY) == 0);
	stored = bpf_map_lookup_elem(&percpu_array, &one);
	CHECK(stored && *stored == value);
	stored = bpf_map_lookup_elem(&percpu_array, &zero);
	CHECK(stored && *stored == 0);
	CHECK(!bpf_map_lookup_elem(&percpu_array, &two));

	CHECK(bpf_map_update_elem(&lru_hash, &number, &pair, BPF_ANY) == 0);
	found = bpf_map_lookup_elem(&lru_hash, &number);
	CHECK(found && found->second == 2);
	CHECK(bpf_map_delete_elem(&lru_hash, &number) == 0);

	CHECK(bpf_map_push_elem(&queue, &number, BPF_ANY) == 0);
	CHECK(bpf_map_pop_elem(&queue, &one) == 0);
	CHECK(one == 7);

	/* The loader rounds the size up to a power of two of pages. */
	CHECK(bpf_ringbuf_query(&ringbuf, BPF_RB_RING_SIZE) >= 4096);
	CHECK(bpf_ringbuf_output(&ringbuf, &value, 8, BPF_RB_NO_WAKEUP) == 0);
	CHECK(bpf_ringbuf_query(&ringbuf, BPF_RB_AVAIL_DATA) >= 16);

	/* An empty slot fails, so execution goes on here. */
	bpf_tail_call(skb, &prog_array, 1);
	/* Nobody has opened an event on it: ENOENT. */
	CHECK(bpf_perf_event_output(skb, &perf_event_array, BPF_F_CURRENT_CPU,
				    &value, 8) == -2);

	inner = bpf_map_lookup_elem(&outer_array, &zero);
	CHECK(inner);
	CHECK(bpf_map_update_elem(inner, &zero, &number, BPF_ANY) == 0);
	word = bpf_map_lookup_elem(&inner_a, &zero);
	CHECK(word && *word == 7);
	*word = 0;
	one = 1;
	CHECK(!bpf_map_lookup_elem(&outer_array, &one));
	inner = bpf_map_lookup_elem(&outer_array, &two);
	CHECK(inner);
	CHECK(bpf_map_update_elem(inner, &one, &number, BPF_ANY) == 0);
	word = bpf_map_lookup_elem(&inner_b, &one);
	CHECK(word && *word == 7);
	*word = 0;

	CHECK(!bpf_map_lookup_elem(&outer_hash, &absent));
	return 0;
}

/*
 * Run after user space has put a map under key 1 of `outer_hash`, and in that
 * map the pair (3, 4) under key 5.
 */
SEC("socket")
int maps_check_inserted(struct __sk_buff *skb)
{
	struct pair *found;
	__u64 outer_key = 1;
	__u32 key = 5;
	void *inner;

	inner = bpf_map_lookup_elem(&outer_hash, &outer_key);
	CHECK(inner);
	found = bpf_map_lookup_elem(inner, &key);
	CHECK(found);
	CHECK(found->first == 3 && found->second == 4);
	return 0;
}
