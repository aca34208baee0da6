/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * What every program here needs: section and map notation, the helpers by
 * their kernel numbers, the CO-RE builtins and the check macro. Nothing is
 * included from the system, so objects depend on the compiler alone.
 */
#ifndef EBPF_MANAGER_BPF_H
#define EBPF_MANAGER_BPF_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;

#define bool _Bool
#define true 1
#define false 0
#define NULL ((void *)0)

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
#define __weak __attribute__((weak))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/*
 * BTF-defined maps: the type of each member carries the value. A number is
 * the length of an array, a C type is the target of a pointer.
 */
#define __uint(name, value) int(*name)[value]
#define __type(name, type) typeof(type) *name
#define __array(name, type) typeof(type) *name[]

/*
 * Symbols defined elsewhere: values of the kernel's configuration, functions
 * and variables of the kernel, and numbers that the loader fills in.
 */
#define __kconfig __attribute__((section(".kconfig")))
#define __ksym __attribute__((section(".ksyms")))
#define LOAD_CONSTANT(name, variable)                                          \
	asm("%0 = " name " ll" : "=r"(variable))

enum libbpf_tristate { TRI_NO = 0, TRI_YES = 1, TRI_MODULE = 2 };

/* Both licences; the kernel counts this string as compatible with the GPL. */
#define LICENSE char _license[] SEC("license") = "Dual MIT/GPL"

/* Self-checking programs return 0, or the line of the first failed check. */
#define CHECK(condition)                                                       \
	do {                                                                   \
		if (!(condition))                                              \
			return __LINE__;                                       \
	} while (0)

/* Hides from the compiler what it knows about the value of a variable. */
#define opaque(variable) asm volatile("" : "+r"(variable))

/* A load that the compiler may neither cache nor leave out. */
#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))

/* A word-sized add that is atomic on every kernel (BPF_XADD). */
#define atomic_add(pointer, value) ((void)__sync_fetch_and_add(pointer, value))

/* enum bpf_map_type */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PROG_ARRAY 3
#define BPF_MAP_TYPE_PERF_EVENT_ARRAY 4
#define BPF_MAP_TYPE_PERCPU_HASH 5
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_LPM_TRIE 11
#define BPF_MAP_TYPE_ARRAY_OF_MAPS 12
#define BPF_MAP_TYPE_HASH_OF_MAPS 13
#define BPF_MAP_TYPE_QUEUE 22
#define BPF_MAP_TYPE_RINGBUF 27

/* Flags of map creation, of map updates and of event output. */
#define BPF_F_NO_PREALLOC (1U << 0)
#define BPF_ANY 0
#define BPF_NOEXIST 1
#define BPF_EXIST 2
#define BPF_F_CURRENT_CPU 0xffffffffULL
#define BPF_F_CTXLEN_SHIFT 32
#define BPF_RB_NO_WAKEUP 1
#define BPF_RB_FORCE_WAKEUP 2
#define BPF_RB_AVAIL_DATA 0
#define BPF_RB_RING_SIZE 1

/* Program contexts, as far as they are used. Their layout is kernel ABI. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
};

struct xdp_md {
	__u32 data;
	__u32 data_end;
};

struct bpf_raw_tracepoint_args {
	__u64 args[0];
};

/* Helpers: a call through a constant pointer is a call of that number. */
#define HELPER(number, result, name, ...)                                      \
	static result (*const name)(__VA_ARGS__) = (void *)(number)

HELPER(1, void *, bpf_map_lookup_elem, void *map, const void *key);
HELPER(2, long, bpf_map_update_elem, void *map, const void *key,
       const void *value, __u64 flags);
HELPER(3, long, bpf_map_delete_elem, void *map, const void *key);
HELPER(5, __u64, bpf_ktime_get_ns, void);
HELPER(8, __u32, bpf_get_smp_processor_id, void);
HELPER(12, long, bpf_tail_call, void *ctx, void *prog_array, __u32 index);
HELPER(14, __u64, bpf_get_current_pid_tgid, void);
HELPER(15, __u64, bpf_get_current_uid_gid, void);
HELPER(16, long, bpf_get_current_comm, void *buffer, __u32 size);
HELPER(25, long, bpf_perf_event_output, void *ctx, void *map, __u64 flags,
       const void *data, __u64 size);
HELPER(26, long, bpf_skb_load_bytes, const void *skb, __u32 offset, void *to,
       __u32 size);
HELPER(35, __u64, bpf_get_current_task, void);
HELPER(87, long, bpf_map_push_elem, void *map, const void *value, __u64 flags);
HELPER(88, long, bpf_map_pop_elem, void *map, void *value);
HELPER(113, long, bpf_probe_read_kernel, void *to, __u32 size,
       const void *from);
HELPER(115, long, bpf_probe_read_kernel_str, void *to, __u32 size,
       const void *from);
HELPER(130, long, bpf_ringbuf_output, void *ring, const void *data, __u64 size,
       __u64 flags);
HELPER(131, void *, bpf_ringbuf_reserve, void *ring, __u64 size, __u64 flags);
HELPER(132, void, bpf_ringbuf_submit, void *record, __u64 flags);
HELPER(133, void, bpf_ringbuf_discard, void *record, __u64 flags);
HELPER(134, __u64, bpf_ringbuf_query, void *ring, __u64 what);
HELPER(154, void *, bpf_this_cpu_ptr, const void *variable);
/* Linux 5.13 and 5.17. */
HELPER(164, long, bpf_for_each_map_elem, void *map, void *callback, void *state,
       __u64 flags);
HELPER(181, long, bpf_loop, __u32 count, void *callback, void *state,
       __u64 flags);

/*
 * CO-RE. The compiler records the access path; the loader replaces the number
 * by what the running kernel's BTF says. The second argument of the builtins
 * is the kind of relocation.
 */
#define bpf_core_field_offset(access) __builtin_preserve_field_info(access, 0)
#define bpf_core_field_size(access) __builtin_preserve_field_info(access, 1)
#define bpf_core_field_exists(access) __builtin_preserve_field_info(access, 2)
#define bpf_core_field_signed(access) __builtin_preserve_field_info(access, 3)
#define bpf_core_field_lshift(access) __builtin_preserve_field_info(access, 4)
#define bpf_core_field_rshift(access) __builtin_preserve_field_info(access, 5)

/* A field of a type of which no pointer is at hand. */
#define core_field(type, field) (((type *)0)->field)

#define bpf_core_type_id_local(type)                                           \
	__builtin_btf_type_id(*(typeof(type) *)0, 0)
#define bpf_core_type_id_kernel(type)                                          \
	__builtin_btf_type_id(*(typeof(type) *)0, 1)
#define bpf_core_type_exists(type)                                             \
	__builtin_preserve_type_info(*(typeof(type) *)0, 0)
#define bpf_core_type_size(type)                                               \
	__builtin_preserve_type_info(*(typeof(type) *)0, 1)
#define bpf_core_type_matches(type)                                            \
	__builtin_preserve_type_info(*(typeof(type) *)0, 2)

/* The builtin takes a bare enumerator, cast to a pointer to its enum type. */
#define bpf_core_enum_value_exists(type, enumerator)                           \
	__builtin_preserve_enum_value(*(typeof(type) *)enumerator, 0)
#define bpf_core_enum_value(type, enumerator)                                  \
	__builtin_preserve_enum_value(*(typeof(type) *)enumerator, 1)

/* Copies the object at kernel address `from`, whose place is relocated. */
#define core_read(to, from)                                                    \
	bpf_probe_read_kernel((void *)(to), sizeof(*(to)),                     \
			      __builtin_preserve_access_index(from))

/*
 * CORE_READ(p, a, b, c) is p->a->b->c, each arrow a read that faults to zero
 * instead of crashing. Not for arrays: those are read with core_read().
 */
#define CORE_READ_1(p, a)                                                      \
	({                                                                     \
		typeof((p)->a) read_value_ = 0;                                \
		core_read(&read_value_, &(p)->a);                              \
		read_value_;                                                   \
	})
#define CORE_READ_2(p, a, b)                                                   \
	({                                                                     \
		typeof((p)->a) read_first_ = CORE_READ_1(p, a);                \
		CORE_READ_1(read_first_, b);                                   \
	})
#define CORE_READ_3(p, a, b, c)                                                \
	({                                                                     \
		typeof((p)->a->b) read_second_ = CORE_READ_2(p, a, b);         \
		CORE_READ_1(read_second_, c);                                  \
	})
#define CORE_READ_PICK(p, a, b, c, macro, ...) macro
#define CORE_READ(...)                                                         \
	CORE_READ_PICK(__VA_ARGS__, CORE_READ_3, CORE_READ_2, CORE_READ_1)     \
	(__VA_ARGS__)

/*
 * A bitfield: the aligned bytes that hold it are copied, then shifted up and
 * down. All four numbers come from the loader. Little-endian targets only.
 */
#define CORE_READ_BITFIELD(p, field)                                           \
	({                                                                     \
		__u64 read_bits_ = 0;                                          \
		bpf_probe_read_kernel(                                         \
			&read_bits_, bpf_core_field_size((p)->field),          \
			(const char *)(p) +                                    \
				bpf_core_field_offset((p)->field));            \
		read_bits_ <<= bpf_core_field_lshift((p)->field);              \
		if (bpf_core_field_signed((p)->field))                         \
			read_bits_ = (__s64)read_bits_ >>                      \
				     bpf_core_field_rshift((p)->field);        \
		else                                                           \
			read_bits_ >>= bpf_core_field_rshift((p)->field);      \
		read_bits_;                                                    \
	})

#endif
