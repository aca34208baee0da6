// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Generates samples in the perf buffer of the CPU it runs on, see
 * generator.h. The run returns how many samples the helper refused: those
 * without a buffer on this CPU and those that found it full. 0xffffffff is a
 * bad request.
 */
#include "generator.h"

LICENSE;

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} buffers SEC(".maps");

#define MAX_COPIED 256

/*
 * Global, and its result added as it is, see ringbuf.bpf.c.
 * `tail` bytes of the packet, from its start, follow the image.
 */
__noinline int sample_one(struct __sk_buff *skb, __u64 number, __u32 size,
			  __u32 stream, __u32 tail)
{
	__u64 flags = BPF_F_CURRENT_CPU | (__u64)tail << BPF_F_CTXLEN_SHIFT;
	__u64 image[MAX_COPIED / 8];
	struct record *record = (void *)image;
	__u32 i;

	if (size > MAX_COPIED)
		return 1;
	record->number = number;
	record->size = size;
	record->stream = stream;
	for (i = 0; i < MAX_COPIED / 8 - 2; i++)
		record->words[i] = record_word(number, i);
	return bpf_perf_event_output(skb, &buffers, flags, image, size) != 0;
}

/*
 * Sizes from 0 to 256 bytes; the kernel pads a sample with its length in front
 * to eight bytes. `flags` is the length of the tail, at most that of the
 * packet, `discard_every` is ignored.
 */
SEC("tc")
int perfbuf_output(struct __sk_buff *skb)
{
	struct request request;
	__u32 i, lost = 0;

	if (bpf_skb_load_bytes(skb, REQUEST_OFFSET, &request, sizeof(request)))
		return -1;
	if (request.min_size > request.max_size ||
	    request.max_size > MAX_COPIED || request.count > MAX_COUNT)
		return -1;
	for (i = 0; i < MAX_COUNT && i < request.count; i++) {
		__u64 number = request.first + i;

		lost += sample_one(skb, number,
				   record_size(number, request.min_size,
					       request.max_size),
				   request.stream, request.flags);
	}
	return lost;
}
