// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * For measuring the loading of many programs: 200 of about 200 instructions
 * each, which share four subprograms and use one of 50 maps. No CO-RE.
 * Requires at least Linux 5.5.
 */
#include "bpf.h"

LICENSE;

#define MAP(number)                                                            \
	struct {                                                               \
		__uint(type, BPF_MAP_TYPE_ARRAY);                              \
		__uint(max_entries, 16);                                       \
		__type(key, __u32);                                            \
		__type(value, __u64);                                          \
	} map_##number SEC(".maps");

static __noinline __u64 mix(__u64 a, __u64 b)
{
	opaque(a);
	a ^= b << 13;
	a += a >> 7;
	a ^= b >> 17;
	return a * 0x9e3779b97f4a7c15;
}

static __noinline __u64 fold(__u64 a, __u64 b, __u64 c)
{
	opaque(b);
	if (a > b)
		a -= b;
	if (b & 1)
		a += c;
	return mix(a, c);
}

static __noinline __u64 spread(__u64 a)
{
	opaque(a);
	a = (a | a << 16) & 0x0000ffff0000ffff;
	a = (a | a << 8) & 0x00ff00ff00ff00ff;
	return a;
}

static __noinline __u64 squeeze(__u64 a, __u64 b)
{
	return spread(a) ^ fold(a, b, 3);
}

#define STEP(constant)                                                         \
	opaque(sum);                                                           \
	sum = sum * 31 + (constant);                                           \
	if (sum & ((constant) | 1))                                            \
		sum ^= args[(constant) & 7];                                   \
	sum += sum >> 3;

#define STEPS(constant)                                                        \
	STEP(constant)                                                         \
	STEP(constant + 1)                                                     \
	STEP(constant + 2)                                                     \
	STEP(constant + 3)                                                     \
	STEP(constant + 4)

#define PROGRAM(number, map)                                                   \
	SEC("raw_tracepoint/sys_enter")                                        \
	int program_##number##_##map(__u64 *ctx)                               \
	{                                                                      \
		__u64 args[8] = {ctx[0], ctx[1], ctx[0], ctx[1]};              \
		__u32 key = number;                                            \
		__u64 sum = ctx[0], *value;                                    \
									       \
		STEPS(1)                                                       \
		sum = mix(sum, ctx[1]);                                        \
		STEPS(number * 7)                                              \
		sum = squeeze(sum, number);                                    \
		value = bpf_map_lookup_elem(&map_##map, &key);                 \
		if (value)                                                     \
			*value += sum;                                         \
		STEPS(number * 11)                                             \
		sum += fold(sum, ctx[0], number);                              \
		STEPS(number * 13)                                             \
		bpf_map_update_elem(&map_##map, &key, &sum, BPF_ANY);          \
		return 0;                                                      \
	}

#define FOUR(map)                                                              \
	PROGRAM(1, map) PROGRAM(2, map) PROGRAM(3, map) PROGRAM(4, map)

#define TEN(what, digit)                                                       \
	what(digit##0) what(digit##1) what(digit##2) what(digit##3)            \
	what(digit##4) what(digit##5) what(digit##6) what(digit##7)            \
	what(digit##8) what(digit##9)

TEN(MAP, 1) TEN(MAP, 2) TEN(MAP, 3) TEN(MAP, 4) TEN(MAP, 5)
TEN(FOUR, 1) TEN(FOUR, 2) TEN(FOUR, 3) TEN(FOUR, 4) TEN(FOUR, 5)
