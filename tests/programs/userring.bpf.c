// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Drains a user ring buffer: samples start with their number, counted from 0,
 * and their length, both 8 bytes. A run returns how many samples it took.
 */
#include "bpf.h"

LICENSE;

#define MAP_TYPE_USER_RINGBUF 31

static long (*user_ringbuf_drain)(void *map, void *callback, void *ctx,
				  __u64 flags) = (void *)209;
static long (*dynptr_read)(void *to, __u32 len, const void *from,
			   __u32 offset, __u64 flags) = (void *)201;

struct {
	__uint(type, MAP_TYPE_USER_RINGBUF);
	__uint(max_entries, 4096);
} samples SEC(".maps");

struct sample {
	__u64 number;
	__u64 size;
};

__u64 taken;
__u64 misplaced;
__u64 overlong;

static long take(void *dynptr, void *ctx)
{
	struct sample sample;
	__u8 byte;

	if (dynptr_read(&sample, sizeof(sample), dynptr, 0, 0)) {
		misplaced += 1;
		return 0;
	}
	misplaced += sample.number != taken;
	/* The last byte is there, the one behind it is not. */
	overlong += dynptr_read(&byte, 1, dynptr, sample.size - 1, 0) != 0;
	overlong += dynptr_read(&byte, 1, dynptr, sample.size, 0) == 0;
	taken += 1;
	return 0;
}

SEC("tc")
int userring_drain(struct __sk_buff *skb)
{
	return user_ringbuf_drain(&samples, take, 0, 0);
}
