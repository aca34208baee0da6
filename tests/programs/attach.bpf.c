// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: a program is attached to a tracepoint or raw tracepoint, fires, and
 * no longer fires once detached. Each program counts what the process
 * `target_tgid` does and reports it in a ring buffer. Requires at least Linux
 * 5.8, no CO-RE.
 */
#include "bpf.h"

LICENSE;

enum hook {
	HOOK_EXEC = 1,
	HOOK_EXEC_RAW = 2,
	HOOK_ENTER = 3,
	HOOK_FORK = 4,
};

struct hit {
	__u32 hook;
	__u32 tgid;
	__u64 detail; /* HOOK_ENTER: system call number */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} hits SEC(".maps");

/* Only this process is counted; 0: every process. */
const volatile __u32 target_tgid = 0;
/* Only this system call is counted. */
const volatile __u64 target_syscall = 39; /* getpid on x86-64 */

__u64 exec_count;
__u64 exec_raw_count;
__u64 enter_count;
__u64 fork_count;
__u64 lost_count;

static __always_inline void hit(__u32 hook, __u64 detail, __u64 *count)
{
	struct hit hit = {
		.hook = hook,
		.tgid = bpf_get_current_pid_tgid() >> 32,
		.detail = detail,
	};

	if (target_tgid && hit.tgid != target_tgid)
		return;
	atomic_add(count, 1);
	if (bpf_ringbuf_output(&hits, &hit, sizeof(hit), 0))
		atomic_add(&lost_count, 1);
}

SEC("tracepoint/sched/sched_process_exec")
int attach_exec(void *ctx)
{
	hit(HOOK_EXEC, 0, &exec_count);
	return 0;
}

/* The short name of the section, and one that the parent causes. */
SEC("tp/sched/sched_process_fork")
int attach_fork(void *ctx)
{
	hit(HOOK_FORK, 0, &fork_count);
	return 0;
}

SEC("raw_tp/sched_process_exec")
int attach_exec_raw(struct bpf_raw_tracepoint_args *ctx)
{
	hit(HOOK_EXEC_RAW, 0, &exec_raw_count);
	return 0;
}

/* Arguments: the registers and the number of the call. */
SEC("raw_tracepoint/sys_enter")
int attach_enter(struct bpf_raw_tracepoint_args *ctx)
{
	if (ctx->args[1] == target_syscall)
		hit(HOOK_ENTER, ctx->args[1], &enter_count);
	return 0;
}

/* There is no such tracepoint: attaching must fail and say so. */
SEC("?tracepoint/sched/no_such_event")
int attach_missing(void *ctx)
{
	return 0;
}

SEC("?raw_tp/no_such_event")
int attach_missing_raw(void *ctx)
{
	return 0;
}
