// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: calls are resolved and every program gets the functions it reaches,
 * each once, with relocations, func_info and line_info of its own: static and
 * global functions, nested calls, functions shared by programs, functions
 * that use maps and globals, several programs in one section.
 */
#include "bpf.h"

LICENSE;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} counter SEC(".maps");

__u64 calls;
const volatile __u32 factor = 3;

/* Nobody calls it: no program may carry it. */
static __attribute__((used)) __noinline int unused(int x)
{
	return x * 1000 + 1;
}

static __noinline int leaf(int x)
{
	opaque(x);
	calls += 1;
	return x + 1;
}

/* Calls another function twice. */
static __noinline int branch(int x)
{
	opaque(x);
	return leaf(x) + leaf(x + 10);
}

/* Three levels deep, and uses a map and a constant. */
static __noinline int tree(int x)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&counter, &key);

	opaque(x);
	if (!value)
		return -1;
	*value += 1;
	return branch(x) * factor + leaf(x);
}

/* Global: the verifier checks it by itself, on every call it may return anything. */
__noinline int global_double(int x)
{
	opaque(x);
	calls += 1;
	return x * 2;
}

/* Global, takes the context, calls a static function and a global one. */
__noinline int global_length(struct __sk_buff *skb, int x)
{
	return leaf(skb->len) + global_double(x);
}

/* Nothing overrides it within one object. */
__weak __noinline int weak_triple(int x)
{
	opaque(x);
	return x * 3;
}

SEC("socket")
int calls_nothing(struct __sk_buff *skb)
{
	return 0;
}

SEC("socket")
int calls_static(struct __sk_buff *skb)
{
	int one = 1;

	opaque(one);
	CHECK(leaf(one) == 2);
	CHECK(branch(one) == 14);
	CHECK(tree(one) == 14 * 3 + 2);
	return 0;
}

/* The same functions in another order, so they lie at other offsets. */
SEC("socket")
int calls_reordered(struct __sk_buff *skb)
{
	__u64 before = READ_ONCE(calls), *value;
	__u32 key = 0;
	int two = 2;

	opaque(two);
	CHECK(tree(two) == (3 + 13) * 3 + 3);
	CHECK(READ_ONCE(calls) == before + 3);
	CHECK(branch(two) == 16);
	CHECK(leaf(two) == 3);
	value = bpf_map_lookup_elem(&counter, &key);
	CHECK(value && *value > 0);
	return 0;
}

SEC("socket")
int calls_global(struct __sk_buff *skb)
{
	int five = 5;

	opaque(five);
	CHECK(global_double(five) == 10);
	CHECK(weak_triple(five) == 15);
	CHECK(global_length(skb, five) == (int)skb->len + 1 + 10);
	return 0;
}

/* Another section and program type, the same functions. */
SEC("tc")
int calls_from_tc(struct __sk_buff *skb)
{
	int four = 4;

	opaque(four);
	CHECK(tree(four) == (5 + 15) * 3 + 5);
	CHECK(weak_triple(four) == 12);
	return 0;
}

SEC("xdp")
int calls_from_xdp(struct xdp_md *ctx)
{
	int six = 6;

	opaque(six);
	CHECK(leaf(six) == 7);
	CHECK(global_double(six) == 12);
	return 0;
}
