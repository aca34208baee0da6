// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * For measuring programs that the verifier is busy with: 16 with loops that
 * it follows turn by turn. No maps, no CO-RE. Requires at least Linux 5.3.
 */
#include "bpf.h"

LICENSE;

#define SLOW(number)                                                           \
	SEC("raw_tracepoint/sys_enter")                                        \
	int slow_##number(__u64 *ctx)                                          \
	{                                                                      \
		__u64 table[8] = {}, sum = ctx[0];                             \
		__u32 turn;                                                    \
									       \
		for (turn = 0; turn < 480 + 48 * number; turn++) {           \
			opaque(sum);                                           \
			table[turn & 7] += sum;                                \
			sum ^= table[(turn + number) & 7];                     \
			if (sum & 16)                                          \
				sum += turn;                                   \
		}                                                              \
		return sum;                                                    \
	}

SLOW(1) SLOW(2) SLOW(3) SLOW(4) SLOW(5) SLOW(6) SLOW(7) SLOW(8)
SLOW(9) SLOW(10) SLOW(11) SLOW(12) SLOW(13) SLOW(14) SLOW(15) SLOW(16)
