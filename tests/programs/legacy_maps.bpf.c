// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: maps defined by words in every form that loaders before BTF gave
 * them, next to each other and next to a BTF-defined one: five words, aya's
 * seven, iproute2's nine with inner maps, the kernel samples' with the number
 * of the inner map, gobpf's with a section for each map.
 */
#include "bpf.h"

LICENSE;

struct bpf_map_def {
	__u32 type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
};

/* aya, with an id nobody uses. */
struct bpf_map_def_pinned {
	struct bpf_map_def def;
	__u32 id;
	__u32 pinning;
};

/* samples/bpf of the kernel. */
struct bpf_map_def_inner {
	struct bpf_map_def def;
	__u32 inner_map_idx;
	__u32 numa_node;
};

/* iproute2 */
struct bpf_elf_map {
	struct bpf_map_def def;
	__u32 id;
	__u32 pinning;
	__u32 inner_id;
	__u32 inner_idx;
};

/* gobpf */
struct bpf_map_def_namespace {
	struct bpf_map_def def;
	__u32 pinning;
	char namespace[256];
};

/* Definition 0 of the section. A static one is found by section and offset. */
static struct bpf_map_def SEC("maps") lm_static = {
	BPF_MAP_TYPE_ARRAY, 4, 8, 7, 0,
};

struct bpf_map_def_pinned SEC("maps") lm_seven_words = {
	{ BPF_MAP_TYPE_HASH, 4, 8, 11, BPF_F_NO_PREALLOC }, 0, 0,
};

static struct bpf_map_def SEC("maps") lm_static_second = {
	BPF_MAP_TYPE_ARRAY, 4, 16, 13, 0,
};

struct bpf_map_def_inner SEC("maps") lm_outer_by_number = {
	{ BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 2, 0 }, 2, 0,
};

#define INNER_ID 40

struct bpf_elf_map SEC("maps") lm_inner = {
	{ BPF_MAP_TYPE_ARRAY, 4, 8, 3, 0 }, INNER_ID, 0, 0, 1,
};

struct bpf_elf_map SEC("maps") lm_outer_by_id = {
	{ BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 2, 0 }, 0, 2, INNER_ID, -1,
};

struct bpf_map_def_namespace SEC("maps/lm_own_section") lm_own_section = {
	.def = { BPF_MAP_TYPE_HASH, 8, 8, 17, 0 },
};

struct bpf_map_def SEC("maps/lm_other_section") lm_other_section = {
	BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 1, 0,
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 19);
} lm_btf SEC(".maps");

/* The last of `entries` elements of an array is there, the next is not. */
#define CHECK_ARRAY(map, entries)                                              \
	do {                                                                   \
		__u32 last_ = (entries) - 1, past_ = (entries);                \
		CHECK(bpf_map_lookup_elem(map, &last_));                       \
		CHECK(!bpf_map_lookup_elem(map, &past_));                      \
	} while (0)

SEC("socket")
int legacy_maps_check(struct __sk_buff *skb)
{
	__u32 key = 5, slot = 1, zero = 0;
	__u64 wide_key = 6, value = 21, *found;
	void *inner;

	CHECK_ARRAY(&lm_static, 7);
	CHECK_ARRAY(&lm_static_second, 13);

	CHECK(bpf_map_update_elem(&lm_seven_words, &key, &value, BPF_ANY) == 0);
	found = bpf_map_lookup_elem(&lm_seven_words, &key);
	CHECK(found && *found == 21);

	/* The model of the inner map only: no slot is filled. */
	CHECK(!bpf_map_lookup_elem(&lm_outer_by_number, &zero));

	/* Slot 1 holds `lm_inner`, and no other slot does. */
	CHECK(!bpf_map_lookup_elem(&lm_outer_by_id, &zero));
	inner = bpf_map_lookup_elem(&lm_outer_by_id, &slot);
	CHECK(inner);
	CHECK(bpf_map_update_elem(inner, &slot, &value, BPF_ANY) == 0);
	found = bpf_map_lookup_elem(&lm_inner, &slot);
	CHECK(found && *found == 21);

	CHECK(bpf_map_update_elem(&lm_own_section, &wide_key, &value, BPF_ANY) ==
	      0);
	found = bpf_map_lookup_elem(&lm_own_section, &wide_key);
	CHECK(found && *found == 21);
	CHECK_ARRAY(&lm_other_section, 1);

	CHECK(bpf_map_update_elem(&lm_btf, &key, &value, BPF_ANY) == 0);
	found = bpf_map_lookup_elem(&lm_btf, &key);
	CHECK(found && *found == 21);
	return 0;
}
