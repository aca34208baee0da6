// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: a program on a marked place (USDT) reads the place's arguments and
 * its own cookie, through maps of the names and the layout of libbpf's
 * usdt.bpf.h (before 1.7).
 * Requires at least Linux 4.20, no CO-RE.
 */
#include "bpf.h"

LICENSE;

HELPER(112, long, bpf_probe_read_user, void *to, __u32 size, const void *from);
HELPER(174, __u64, bpf_get_attach_cookie, void *ctx);

extern const bool LINUX_HAS_BPF_COOKIE __kconfig __weak;

#define MAX_ARGUMENTS 12

enum { CONSTANT, REGISTER, MEMORY, INDEXED };

struct argument {
	__u64 number;
	/* Kind in 8 bits, index register in 12, its shift in 4. */
	__u32 word;
	short register_at;
	bool is_signed;
	char spare_bits;
};

struct spec {
	struct argument arguments[MAX_ARGUMENTS];
	__u64 cookie;
	short count;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct spec);
} __bpf_usdt_specs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u64);
	__type(value, __u32);
} __bpf_usdt_ip_to_spec_id SEC(".maps");

/* Only this process is counted; 0: every process. */
const volatile __u32 target_tgid = 0;
/* Where struct pt_regs has the instruction pointer. */
const volatile __u32 ip_at = 128;

__u64 hits;
__u64 last_cookie;
__s64 last_count;
/* Each argument, and 0 or why it could not be read. */
__s64 values[MAX_ARGUMENTS];
__s64 errors[MAX_ARGUMENTS];

static __always_inline __u64 reg(void *ctx, __u32 at)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (char *)ctx + at);
	return value;
}

static __noinline long read_argument(void *ctx, struct spec *spec, __u32 number)
{
	struct argument *argument;
	__u64 value, at;
	__u32 kind;
	long err = 0;

	if (!spec || number >= MAX_ARGUMENTS)
		return -1;
	argument = &spec->arguments[number];
	kind = argument->word & 0xff;
	switch (argument->word >> 24 ? 0xff : kind) {
	case CONSTANT:
		value = argument->number;
		break;
	case REGISTER:
		value = reg(ctx, argument->register_at);
		break;
	case MEMORY:
	case INDEXED:
		at = reg(ctx, argument->register_at) + argument->number;
		if (kind == INDEXED)
			at += reg(ctx, argument->word >> 8 & 0xfff)
			      << (argument->word >> 20 & 15);
		value = 0;
		err = bpf_probe_read_user(&value, sizeof(value), (void *)at);
		break;
	default:
		return -22;
	}
	value <<= argument->spare_bits & 63;
	if (argument->is_signed)
		value = (__s64)value >> (argument->spare_bits & 63);
	else
		value >>= argument->spare_bits & 63;
	values[number] = value;
	return err;
}

SEC("?usdt")
int on_usdt(void *ctx)
{
	struct spec *spec;
	__u32 id, number;
	__u64 ip;
	__u32 *known;

	if (target_tgid && bpf_get_current_pid_tgid() >> 32 != target_tgid)
		return 0;
	atomic_add(&hits, 1);
	if (LINUX_HAS_BPF_COOKIE) {
		id = bpf_get_attach_cookie(ctx);
	} else {
		ip = reg(ctx, ip_at);
		known = bpf_map_lookup_elem(&__bpf_usdt_ip_to_spec_id, &ip);
		if (!known)
			return 0;
		id = *known;
	}
	spec = bpf_map_lookup_elem(&__bpf_usdt_specs, &id);
	if (!spec)
		return 0;
	last_cookie = spec->cookie;
	last_count = spec->count;
	for (number = 0; number < MAX_ARGUMENTS; number++)
		errors[number] = read_argument(ctx, spec, number);
	return 0;
}

/* Reads nothing: the cookie is its own. */
SEC("?usdt")
int on_mark(void *ctx)
{
	if (target_tgid && bpf_get_current_pid_tgid() >> 32 != target_tgid)
		return 0;
	atomic_add(&hits, 1);
	return 0;
}
