// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Indirect jumps through tables: in a program, in subprograms of subprograms
 * that several programs share, in a callback, in two sections, through one
 * table from two places. The numbers are the loader's to move: no function
 * with a table is the first of its section and of its program. Linux 6.19.
 */
#include "../bpf.h"

LICENSE;

/* What the compiler cannot look up instead of jumping. */
#define CASE(number, value)                                                    \
	case number:                                                           \
		result = value;                                                \
		opaque(result);                                                \
		break

static __noinline __u64 ju_nothing(__u64 value)
{
	opaque(value);
	return value;
}

static __noinline __u64 ju_inner(__u64 value)
{
	__u64 result;

	switch (value) {
		CASE(0, 3);
		CASE(1, 1);
		CASE(2, 4);
		CASE(3, 1);
		CASE(4, 5);
		CASE(5, 9);
	default:
		result = 100 + ju_nothing(value);
	}
	return result;
}

static __noinline __u64 ju_outer(__u64 value)
{
	__u64 result;

	switch (value) {
		CASE(10, 11);
		CASE(11, 22);
		CASE(12, 33);
		CASE(14, 44);
	case 13:
		result = ju_inner(ju_nothing(4));
		break;
	default:
		result = ju_inner(value);
	}
	return result + ju_inner(ju_nothing(2)) - 4;
}

/* Of every section of code, the first function has no table. */
SEC("socket")
int jumps_none(void *ctx)
{
	CHECK(ju_nothing(1) == 1);
	return 0;
}

SEC("socket")
int jumps_own(void *ctx)
{
	__u64 i, sum = 0;

	for (i = 0; i < 8; i++) {
		__u64 result = i;

		opaque(result);
		switch (result) {
			CASE(0, 1);
			CASE(1, 10);
			CASE(2, 100);
			CASE(3, 1000);
			CASE(5, 10000);
			CASE(6, 100000);
		default:
			result = 1000000;
		}
		sum += result;
	}
	CHECK(sum == 2111111);
	return 0;
}

SEC("socket")
int jumps_shared(void *ctx)
{
	CHECK(ju_outer(ju_nothing(10)) == 11);
	CHECK(ju_outer(ju_nothing(12)) == 33);
	CHECK(ju_outer(ju_nothing(13)) == 5);
	CHECK(ju_outer(ju_nothing(14)) == 44);
	CHECK(ju_outer(ju_nothing(0)) == 3);
	CHECK(ju_outer(ju_nothing(5)) == 9);
	CHECK(ju_outer(ju_nothing(6)) == 106);
	return 0;
}

/* The same functions at other places, behind a longer program. */
SEC("tc")
int jumps_shared_elsewhere(void *ctx)
{
	__u64 result = ju_nothing(3);

	switch (result) {
		CASE(0, 5);
		CASE(1, 6);
		CASE(2, 7);
		CASE(3, 8);
		CASE(4, 9);
	default:
		result = 0;
	}
	CHECK(result == 8);
	CHECK(ju_inner(ju_nothing(0)) == 3);
	CHECK(ju_inner(ju_nothing(1)) == 1);
	CHECK(ju_inner(ju_nothing(5)) == 9);
	CHECK(ju_inner(ju_nothing(7)) == 107);
	CHECK(ju_outer(ju_nothing(11)) == 22);
	return 0;
}

static long ju_each(__u32 index, __u64 *sum)
{
	__u64 result = index;

	opaque(result);
	switch (result) {
		CASE(0, 2);
		CASE(1, 20);
		CASE(2, 200);
		CASE(3, 2000);
		CASE(4, 20000);
	default:
		result = ju_inner(index);
	}
	*sum += result;
	return 0;
}

SEC("tc")
int jumps_callback(void *ctx)
{
	__u64 sum = 0;

	bpf_loop(6, ju_each, &sum, 0);
	CHECK(sum == 22222 + 9);
	return 0;
}

/* One table, loaded twice: clang gives each jump a table of its own. */
SEC("tc")
int jumps_twice(void *ctx)
{
	__u64 result = 0;

	asm volatile(".pushsection .jumptables,\"\",@progbits\n"
		     "ju_table:\n"
		     "	.quad ju_first - tc\n"
		     "	.quad ju_second - tc\n"
		     "	.quad ju_third - tc\n"
		     "	.size ju_table, 24\n"
		     "	.global ju_table\n"
		     "	.popsection\n"
		     "	r1 = ju_table ll\n"
		     "	r1 = *(u64 *)(r1 + 8)\n"
		     "	gotox r1\n"
		     "ju_first:\n"
		     "	%[result] += 1\n"
		     "	goto ju_third\n"
		     "ju_second:\n"
		     "	%[result] += 10\n"
		     "	r1 = ju_table ll\n"
		     "	r1 = *(u64 *)(r1 + 0)\n"
		     "	gotox r1\n"
		     "ju_third:\n"
		     "	%[result] += 100\n"
		     : [result] "+r"(result)
		     :
		     : "r1");
	CHECK(result == 111);
	return 0;
}

/* Refused for what it does, not for its table. */
SEC("?tc")
int err_jumps(struct __sk_buff *ctx)
{
	__u64 result = ctx->mark;

	switch (result) {
		CASE(0, 1);
		CASE(1, 2);
		CASE(2, 4);
		CASE(3, 8);
	case 4:
		result = *(__u64 *)result;
		break;
	default:
		result = 0;
	}
	return result;
}
