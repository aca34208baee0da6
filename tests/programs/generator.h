/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * Shared by the two event generators: what a record contains, so that its
 * reader can tell a torn, lost, repeated or misplaced one.
 *
 * A record is the first `size` bytes of the image of its number: the header,
 * then the words of `record_word`. A run is asked for in the packet that the
 * program is run on, so runs on several CPUs, or one preempting another, have
 * nothing in common but the buffer.
 */
#ifndef EBPF_MANAGER_GENERATOR_H
#define EBPF_MANAGER_GENERATOR_H

#include "bpf.h"

/* Bytes 14 to 45 of the packet: the request stands behind the MAC header. */
struct request {
	__u64 first;	     /* number of the first record */
	__u32 count;	     /* records, at most MAX_COUNT */
	__u32 stream;	     /* written into each record */
	__u32 min_size;	     /* bytes */
	__u32 max_size;	     /* bytes; equal to min_size for one size only */
	__u32 discard_every; /* discard records whose number it divides; 0: none */
	__u32 flags;	     /* of the output helper */
};

#define REQUEST_OFFSET 14
#define MAX_COUNT 1024

struct record {
	__u64 number;
	__u32 size;
	__u32 stream;
	__u64 words[];
};

#define GOLDEN 0x9e3779b97f4a7c15ULL

/* Word `i` of the words behind the header of record `number`. */
static __always_inline __u64 record_word(__u64 number, __u64 i)
{
	return (number + i + 1) * GOLDEN;
}

/* Evenly spread from `min` to `max`, both included. */
static __always_inline __u32 record_size(__u64 number, __u32 min, __u32 max)
{
	return min + (number * GOLDEN >> 32) % ((__u64)max - min + 1);
}

#endif
