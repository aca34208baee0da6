// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Writes records as fast as it goes, for the reader benchmarks. The packet
 * says how many (4 bytes at 14, at most 4096) and how long (4 bytes at 18: 8,
 * 64, 128 or 1024). Returns how many were refused, or 0xffffffff for a bad
 * request. The first word of a record counts, the rest is as it comes.
 */
#include "bpf.h"

LICENSE;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
} bench_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} bench_perf SEC(".maps");

#define MAX_COUNT 4096

static __always_inline int ring_one(__u64 number, __u32 size)
{
	__u64 *record = bpf_ringbuf_reserve(&bench_ring, size, 0);

	if (!record)
		return 1;
	*record = number;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* The verifier wants constant sizes. */
#define RING(size)                                                        \
	for (i = 0; i < MAX_COUNT && i < request[0]; i++)                 \
		refused += ring_one(i, size);                             \
	break

SEC("tc")
int bench_ring_output(struct __sk_buff *skb)
{
	__u32 request[2], i, refused = 0;

	if (bpf_skb_load_bytes(skb, 14, request, sizeof(request)))
		return -1;
	switch (request[1]) {
	case 8:
		RING(8);
	case 64:
		RING(64);
	case 128:
		RING(128);
	case 1024:
		RING(1024);
	default:
		return -1;
	}
	return refused;
}

/* Records are parts of this. */
static __u64 image[128];

__noinline int perf_one(struct __sk_buff *skb, __u64 number, __u32 size)
{
	if (size > sizeof(image))
		return 1;
	image[0] = number;
	return bpf_perf_event_output(skb, &bench_perf, BPF_F_CURRENT_CPU, image,
				     size) != 0;
}

SEC("tc")
int bench_perf_output(struct __sk_buff *skb)
{
	__u32 request[2], i, refused = 0;

	if (bpf_skb_load_bytes(skb, 14, request, sizeof(request)))
		return -1;
	for (i = 0; i < MAX_COUNT && i < request[0]; i++)
		refused += perf_one(skb, i, request[1]);
	return refused;
}
