// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: whatever is done to a manager, in whatever order, and whatever fails
 * or is killed on the way, exactly what should run runs, and nothing is left
 * behind. One of everything that a manager handles: both kinds of buffers, a
 * program array, a map of maps, a map to be pinned, and programs for hooks of
 * every family that count what the process `target_tgid` does. Requires at
 * least Linux 5.8, no CO-RE.
 */
#include "bpf.h"

LICENSE;

/* Only this process is counted; 0: every process. */
const volatile __u32 target_tgid = 0;
/* Only this system call is counted. */
const volatile __u64 target_syscall = 39; /* getpid on x86-64 */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} samples SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} jumps SEC(".maps");

struct number {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} number SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct number);
} numbers SEC(".maps");

__u64 enter_count;
__u64 exit_count;
__u64 exec_count;
__u64 user_count;
__u64 kernel_count;
__u64 packet_count;

static __always_inline bool is_target(void)
{
	return !target_tgid || bpf_get_current_pid_tgid() >> 32 == target_tgid;
}

/* Arguments: the registers and the number of the call. */
SEC("raw_tracepoint/sys_enter")
int on_enter(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 count;

	if (ctx->args[1] != target_syscall || !is_target())
		return 0;
	atomic_add(&enter_count, 1);
	count = enter_count;
	bpf_ringbuf_output(&events, &count, sizeof(count), 0);
	bpf_perf_event_output(ctx, &samples, BPF_F_CURRENT_CPU, &count,
			      sizeof(count));
	return 0;
}

/* Every return from a system call of the target. */
SEC("raw_tracepoint/sys_exit")
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	if (is_target())
		atomic_add(&exit_count, 1);
	return 0;
}

SEC("tracepoint/sched/sched_process_exec")
int on_exec(void *ctx)
{
	atomic_add(&exec_count, 1);
	return 0;
}

SEC("?uprobe")
int on_user(void *ctx)
{
	if (is_target())
		atomic_add(&user_count, 1);
	return 0;
}

SEC("?kprobe")
int on_kernel(void *ctx)
{
	if (is_target())
		atomic_add(&kernel_count, 1);
	return 0;
}

SEC("?tc")
int on_packet(struct __sk_buff *ctx)
{
	atomic_add(&packet_count, 1);
	return -1; /* TC_ACT_UNSPEC */
}

SEC("?xdp")
int on_frame(struct xdp_md *ctx)
{
	return 2; /* XDP_PASS */
}

/* What the program that was jumped to says; 0 without one. */
SEC("socket")
int jump(struct __sk_buff *ctx)
{
	bpf_tail_call(ctx, &jumps, 1);
	return 0;
}

SEC("socket")
int landing(struct __sk_buff *ctx)
{
	return 7;
}

/* What is in the map that was put there, and one more; 0 without one. */
SEC("socket")
int look(struct __sk_buff *ctx)
{
	__u32 key = 2, zero = 0;
	__u64 *value;
	void *inner;

	inner = bpf_map_lookup_elem(&numbers, &key);
	if (!inner)
		return 0;
	value = bpf_map_lookup_elem(inner, &zero);
	return value ? *value + 1 : 0;
}
