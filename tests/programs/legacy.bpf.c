// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: an object as it was before BTF is taken: no debug information at
 * all, maps defined by words in the section `maps`, an ELF `version` section,
 * instructions of 4.14. Compiled with -g0 -mcpu=v2.
 */
#include "bpf.h"

LICENSE;

__u32 _version SEC("version") = 0x040e00;

struct bpf_map_def {
	__u32 type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
};

/*
 * Preallocated: in programs that trace, kernels before 6.1 warn of a map that
 * allocates while they run.
 */
struct bpf_map_def SEC("maps") legacy_hash = {
	.type = BPF_MAP_TYPE_HASH,
	.key_size = 4,
	.value_size = 8,
	.max_entries = 128,
};

/* Stands behind another definition in the same section. */
struct bpf_map_def SEC("maps") legacy_array = {
	.type = BPF_MAP_TYPE_ARRAY,
	.key_size = 4,
	.value_size = 16,
	.max_entries = 2,
};

/* Counts under key 1 of `legacy_hash`. */
SEC("tracepoint/sched/sched_process_exec")
int legacy_exec(void *ctx)
{
	__u32 key = 1;
	__u64 one = 1, *count = bpf_map_lookup_elem(&legacy_hash, &key);

	if (count)
		atomic_add(count, 1);
	else
		bpf_map_update_elem(&legacy_hash, &key, &one, BPF_ANY);
	return 0;
}

/* Can be run by hand. */
SEC("raw_tracepoint/sched_process_exit")
int legacy_check(void *ctx)
{
	__u32 key = 77, last = 1, past = 2;
	__u64 value = 5, *found;

	CHECK(bpf_map_update_elem(&legacy_hash, &key, &value, BPF_ANY) == 0);
	found = bpf_map_lookup_elem(&legacy_hash, &key);
	CHECK(found && *found == 5);
	CHECK(bpf_map_delete_elem(&legacy_hash, &key) == 0);
	found = bpf_map_lookup_elem(&legacy_array, &last);
	CHECK(found && found[1] == 0);
	CHECK(!bpf_map_lookup_elem(&legacy_array, &past));
	return 0;
}

SEC("socket")
int legacy_socket(struct __sk_buff *skb)
{
	__u32 key = 0;
	__u64 *found = bpf_map_lookup_elem(&legacy_array, &key);

	CHECK(found);
	found[0] += skb->len;
	return 0;
}
