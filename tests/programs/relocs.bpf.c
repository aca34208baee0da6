// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: what a relocation adds to its symbol counts, whatever the symbol is:
 * a variable, a section in which a variable, a map or a function is that no
 * other file sees. Pointers in data are left as they are: no loader knows
 * where a map's value will be. README.md has the table of all kinds.
 */
#include "bpf.h"

LICENSE;

/* Each in the middle of others, so that offsets are not 0. */
const volatile __u32 rl_rodata[6] = { 10, 11, 12, 13, 14, 15 };
static const volatile __u32 static_rodata[6] = { 20, 21, 22, 23, 24, 25 };
__u32 rl_data[6] = { 30, 31, 32, 33, 34, 35 };
static volatile __u32 static_data[6] = { 40, 41, 42, 43, 44, 45 };
__u32 rl_bss[6];
static volatile __u32 static_bss[6];

/* R_BPF_64_ABS64 in data: what is there is what is added to the symbol. */
__u32 *volatile rl_pointer SEC(".data.pointers") = &rl_data[2];

/* The address of an element, as an instruction with a relocation has it. */
#define ADDRESS(symbol, offset)                                                \
	({                                                                     \
		volatile __u32 *pointer;                                       \
		asm volatile("%0 = " #symbol " + " #offset " ll"               \
			     : "=r"(pointer));                                 \
		pointer;                                                       \
	})

SEC("socket")
int relocs_offsets(struct __sk_buff *skb)
{
	/* Keeps what only assembly refers to. */
	CHECK(static_rodata[1] == 21 && static_data[1] == 41);
	CHECK(static_bss[1] == 0);

	CHECK(*ADDRESS(rl_rodata, 12) == 13);
	CHECK(*ADDRESS(static_rodata, 16) == 24);
	CHECK(*ADDRESS(rl_data, 4) == 31);
	CHECK(*ADDRESS(static_data, 20) == 45);
	/* From what comes after: the addend is negative. */
	CHECK(*ADDRESS(static_data + 24, -8) == 44);
	*ADDRESS(rl_bss, 8) = 3;
	CHECK(READ_ONCE(rl_bss[2]) == 3 && READ_ONCE(rl_bss[1]) == 0);
	*ADDRESS(static_bss, 20) = 4;
	CHECK(static_bss[5] == 4 && static_bss[4] == 0);
	rl_bss[2] = 0;
	static_bss[5] = 0;

	CHECK((__u64)rl_pointer == 2 * sizeof(__u32));
	return 0;
}

/* Maps and programs in initialisers by section and place. */
struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
};

static struct inner rl_first_inner SEC(".maps");
static struct inner rl_second_inner SEC(".maps");

static struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} rl_outer SEC(".maps") = {
	.values = { [3] = &rl_second_inner, [0] = &rl_first_inner },
};

static int not_this(struct __sk_buff *skb);
static int this_one(struct __sk_buff *skb);

static struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(__u32));
	__array(values, int(void *));
} rl_jumps SEC(".maps") = {
	.values = { [0] = (void *)&not_this, [1] = (void *)&this_one },
};

static __u32 expected;

SEC("socket")
static int not_this(struct __sk_buff *skb)
{
	return __LINE__;
}

SEC("socket")
static int this_one(struct __sk_buff *skb)
{
	CHECK(expected == 5);
	return 0;
}

SEC("socket")
int relocs_static_initialisers(struct __sk_buff *skb)
{
	__u32 zero = 0, three = 3, value = 77, *found;
	void *inner;

	CHECK(bpf_map_update_elem(&rl_second_inner, &zero, &value, BPF_ANY) == 0);
	inner = bpf_map_lookup_elem(&rl_outer, &three);
	CHECK(inner);
	found = bpf_map_lookup_elem(inner, &zero);
	CHECK(found && *found == 77);
	*found = 0;
	inner = bpf_map_lookup_elem(&rl_outer, &zero);
	CHECK(inner);
	found = bpf_map_lookup_elem(inner, &zero);
	CHECK(found && *found == 0);

	expected = 5;
	bpf_tail_call(skb, &rl_jumps, 1);
	return __LINE__;
}

/* A reference to a function by a section of its own, not to its start. */
static __noinline SEC("helpers") long no_callback(__u32 index, __u64 *sum)
{
	*sum += 1000;
	return 1;
}

static SEC("helpers") long callback(__u32 index, __u64 *sum)
{
	*sum += index;
	return 0;
}

SEC("socket")
int relocs_callback(struct __sk_buff *skb)
{
	__u64 sum = 0;

	CHECK(no_callback(0, &sum) == 1 && sum == 1000);
	CHECK(bpf_loop(5, callback, &sum, 0) == 5);
	CHECK(sum == 1010);
	return 0;
}
