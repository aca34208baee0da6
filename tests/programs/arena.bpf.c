// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Variables in an arena, shared with user space, pointers to them included.
 */
#include "bpf.h"

#define BPF_MAP_TYPE_ARENA 33
#define BPF_F_MMAPABLE (1U << 10)
#define __arena __attribute__((address_space(1)))

struct {
	__uint(type, BPF_MAP_TYPE_ARENA);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 4);
} ar_arena SEC(".maps");

__u64 __arena ar_first = 11;
__u64 __arena ar_second = 22;
__u64 __arena *__arena ar_pointer;

SEC("syscall")
int arena_check(void *ctx)
{
	__u64 __arena *pointer = &ar_second;

	/* The map has to be named for its address space to be known. */
	asm volatile("" ::"r"(&ar_arena));
	CHECK(ar_first == 11);
	CHECK(*pointer == 22);
	ar_first += 100;
	ar_pointer = pointer;
	return 0;
}

LICENSE;
