// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Generates records in a ring buffer, see generator.h. The run returns how
 * many records found the ring full, or 0xffffffff for a bad request.
 * `max_entries` of the ring may be set before load.
 */
#include "generator.h"

LICENSE;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} ring SEC(".maps");

#define MAX_COPIED 256
/* Words are written into the first 1024 bytes of a record, and the last. */
#define MAX_WORDS 126
/* The largest a ring of 64 KiB takes: a header, and one word stays free. */
#define LARGEST 65520

/*
 * Global functions are verified once, not once in every turn of the loop, and
 * their results are unknown to the verifier. The loops below add them as they
 * are: a comparison in between would make it follow both outcomes each turn.
 */
__noinline int output_one(__u64 number, __u32 size, __u32 stream, __u32 flags)
{
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
	return bpf_ringbuf_output(&ring, image, size, flags) != 0;
}

/* The verifier wants a constant size, hence a copy for each. */
static __always_inline int reserve(__u64 number, __u32 size, __u32 stream,
				   __u32 flags, bool discard)
{
	struct record *record = bpf_ringbuf_reserve(&ring, size, 0);
	__u32 words = size < 16 ? 0 : size / 8 - 2;
	__u32 i;

	if (!record)
		return 1;
	record->number = number;
	if (size >= 16) {
		record->size = size;
		record->stream = stream;
	}
	for (i = 0; i < words && i < MAX_WORDS; i++)
		record->words[i] = record_word(number, i);
	if (words > MAX_WORDS)
		record->words[words - 1] = record_word(number, words - 1);
	if (discard)
		bpf_ringbuf_discard(record, flags);
	else
		bpf_ringbuf_submit(record, flags);
	return 0;
}

__noinline int reserve_one(__u64 number, __u32 size, __u32 stream, __u32 flags,
			   __u32 discard_every)
{
	bool discard = discard_every && number % discard_every == 0;

	switch (size) {
	case 8:
		return reserve(number, 8, stream, flags, discard);
	case 64:
		return reserve(number, 64, stream, flags, discard);
	case 128:
		return reserve(number, 128, stream, flags, discard);
	case 1024:
		return reserve(number, 1024, stream, flags, discard);
	case 4096:
		return reserve(number, 4096, stream, flags, discard);
	case LARGEST:
		return reserve(number, LARGEST, stream, flags, discard);
	default:
		return 1;
	}
}

/* Sizes from 0 to 256 bytes, copied into the ring. Ignores `discard_every`. */
SEC("tc")
int ringbuf_output(struct __sk_buff *skb)
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

		lost += output_one(number,
				   record_size(number, request.min_size,
					       request.max_size),
				   request.stream, request.flags);
	}
	return lost;
}

/*
 * One size, given as `min_size`: 8, 64, 128, 1024, 4096 or 65520 bytes;
 * records of any other count as lost. Written in place.
 */
SEC("tc")
int ringbuf_reserve(struct __sk_buff *skb)
{
	struct request request;
	__u32 i, lost = 0;

	if (bpf_skb_load_bytes(skb, REQUEST_OFFSET, &request, sizeof(request)))
		return -1;
	if (request.count > MAX_COUNT)
		return -1;
	for (i = 0; i < MAX_COUNT && i < request.count; i++) {
		__u64 number = request.first + i;

		lost += reserve_one(number, request.min_size, request.stream,
				    request.flags, request.discard_every);
	}
	return lost;
}
