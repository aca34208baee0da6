// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Programs of `ebpf-manager trace`: one record per process that executes a
 * file, one per process that ends. Requires at least Linux 5.8 (ring buffer)
 * and kernel BTF.
 *
 * Both hooks are ordinary tracepoints, not raw ones: those run with preemption
 * disabled. Since Linux 7.0 (a46023d5616e) a raw tracepoint program can be
 * preempted; calls that other tasks make on the same CPU meanwhile are left
 * out and only counted, as `recursion_misses` of the program.
 *
 * Names are kept out of exit records: the reader has seen the exec record and
 * finds it again by (pid, start_ns), a pair that is never used twice.
 */
#include "vmlinux.h"

LICENSE;

enum kind {
	KIND_EXEC = 1,
	KIND_EXIT = 2,
};

#define FILENAME_MAX_BYTES 256

/*
 * One record, native byte order. An exit record ends before `filename`; an
 * exec record ends with the NUL of its file name, cut to 256 bytes with it.
 */
struct event {
	__u64 time_ns;	      /*  0: CLOCK_MONOTONIC, when it happened */
	__u64 start_ns;	      /*  8: CLOCK_MONOTONIC, when the process began */
	__u32 kind;	      /* 16: enum kind */
	__u32 pid;	      /* 20: process (thread group), initial namespace */
	__u32 ppid;	      /* 24: parent process, initial namespace */
	__u32 uid;	      /* 28: real user, initial user namespace */
	__u32 wait_status;    /* 32: exit: as wait(2) gives it; exec: 0 */
	__u32 filename_bytes; /* 36: with its NUL; 0 if none */
	char comm[TASK_COMM_LEN];	   /* 40: of the group leader */
	char filename[FILENAME_MAX_BYTES]; /* 56: as passed to execve */
};

#define HEADER_BYTES __builtin_offsetof(struct event, filename)
_Static_assert(HEADER_BYTES == 56, "readers rely on it");

/* The instance of a process, however often its pid is used again. */
struct process {
	__u64 start_ns;
	__u64 pid;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* Processes whose end is already reported; only for kernels before 6.16. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct process);
	__type(value, __u8);
} ended SEC(".maps");

/* Exits of processes that lived shorter than this are not reported. */
const volatile __u64 min_duration_ns = 0;

/* Records that found the ring full. */
__u64 lost_events = 0;

/* The thread that runs this belongs to the process that `leader` leads. */
static __always_inline void describe(struct event *event, __u32 kind,
				     struct task_struct *leader, __u64 start_ns)
{
	event->time_ns = bpf_ktime_get_ns();
	event->start_ns = start_ns;
	event->kind = kind;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->ppid = CORE_READ(leader, real_parent, tgid);
	event->uid = (__u32)bpf_get_current_uid_gid();
	event->wait_status = 0;
	event->filename_bytes = 0;
	core_read(&event->comm, &leader->comm);
}

SEC("tracepoint/sched/sched_process_exec")
int on_exec(struct trace_event_raw_sched_process_exec *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = CORE_READ(task, group_leader);
	struct event event;
	__u64 bytes;

	describe(&event, KIND_EXEC, leader, CORE_READ(leader, start_time));
	bytes = bpf_probe_read_kernel_str(
		event.filename, sizeof(event.filename),
		(char *)ctx + (ctx->__data_loc_filename & 0xffff));
	/* As an unsigned number an error is above the limit, too. */
	if (bytes > sizeof(event.filename))
		bytes = 0;
	event.filename_bytes = bytes;
	if (bpf_ringbuf_output(&events, &event, HEADER_BYTES + bytes, 0))
		atomic_add(&lost_events, 1);
	return 0;
}

/*
 * Whether the thread that runs this is the one that ends its process.
 *
 * The tracepoint fires for every thread, after the thread has taken itself
 * off `live`. Since Linux 6.16 it says whether that left none. Before, when
 * the last threads end at the same time each of them may find zero; the first
 * to enter the process in `ended` reports.
 */
static __always_inline bool
ends_process(struct trace_event_raw_sched_process_exit *ctx,
	     struct task_struct *task, __u64 start_ns)
{
	struct process process = { .start_ns = start_ns };
	__u8 unused = 0;

	if (bpf_core_field_exists(ctx->group_dead))
		return ctx->group_dead;
	if (CORE_READ(task, signal, live.counter) != 0)
		return false;
	process.pid = bpf_get_current_pid_tgid() >> 32;
	return bpf_map_update_elem(&ended, &process, &unused, BPF_NOEXIST) == 0;
}

SEC("tracepoint/sched/sched_process_exit")
int on_exit(struct trace_event_raw_sched_process_exit *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = CORE_READ(task, group_leader);
	__u64 start_ns = CORE_READ(leader, start_time);
	struct signal_struct *signal;
	struct event *event;

	if (CORE_READ(task, flags) & PF_KTHREAD)
		return 0;
	if (bpf_ktime_get_ns() - start_ns < min_duration_ns)
		return 0;
	if (!ends_process(ctx, task, start_ns))
		return 0;
	event = bpf_ringbuf_reserve(&events, HEADER_BYTES, 0);
	if (!event) {
		atomic_add(&lost_events, 1);
		return 0;
	}
	describe(event, KIND_EXIT, leader, start_ns);
	/* The same choice that wait(2) makes. */
	signal = CORE_READ(task, signal);
	if (CORE_READ(signal, flags) & SIGNAL_GROUP_EXIT)
		event->wait_status = CORE_READ(signal, group_exit_code);
	else
		event->wait_status = CORE_READ(leader, exit_code);
	bpf_ringbuf_submit(event, 0);
	return 0;
}
