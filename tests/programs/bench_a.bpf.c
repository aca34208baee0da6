// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * The smallest useful agent, for measuring what loading costs: one tracepoint
 * program, one hash map, one ring buffer. Counts executions by user and
 * reports each. Requires at least Linux 5.8, no CO-RE.
 */
#include "bpf.h"

LICENSE;

struct execution {
	__u32 pid;
	__u32 uid;
	__u64 number; /* of this user's executions, from 1 */
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} by_user SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} executions SEC(".maps");

SEC("tracepoint/sched/sched_process_exec")
int on_exec(void *ctx)
{
	__u32 uid = bpf_get_current_uid_gid();
	__u64 first = 1, number = 1;
	struct execution *execution;
	__u64 *count;

	count = bpf_map_lookup_elem(&by_user, &uid);
	if (count) {
		atomic_add(count, 1);
		number = READ_ONCE(*count);
	} else {
		bpf_map_update_elem(&by_user, &uid, &first, BPF_NOEXIST);
	}

	execution = bpf_ringbuf_reserve(&executions, sizeof(*execution), 0);
	if (!execution)
		return 0;
	execution->pid = bpf_get_current_pid_tgid() >> 32;
	execution->uid = uid;
	execution->number = number;
	bpf_get_current_comm(execution->comm, sizeof(execution->comm));
	bpf_ringbuf_submit(execution, 0);
	return 0;
}
