// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: programs that name their hook when they are loaded find it in the
 * kernel's types, or in another program's. Those on hooks add to `hits` what
 * the process `target_tgid` does. All are loaded on request only, because each
 * kernel refuses some. Requires at least Linux 5.5; iterators 5.8.
 */
#include "vmlinux.h"

LICENSE;

HELPER(127, long, bpf_seq_write, void *seq, const void *data, __u32 size);

#define CORE __attribute__((preserve_access_index))

struct bpf_iter_meta {
	void *seq;
} CORE;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} CORE;

struct bpf_iter__cgroup {
	struct bpf_iter_meta *meta;
	struct cgroup *cgroup;
} CORE;

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
} CORE;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} walked SEC(".maps");

/* Only this process is counted; 0: every process. */
const volatile __u32 target_tgid = 0;
/* Only this system call is counted by on_tp_btf. */
const volatile __u64 target_syscall = 39; /* getpid on x86-64 */

__u64 hits;

static __always_inline int hit(void)
{
	if (!target_tgid || bpf_get_current_pid_tgid() >> 32 == target_tgid)
		atomic_add(&hits, 1);
	return 0;
}

/* The function is named by the loader. */
SEC("?fentry")
int on_fentry(void *ctx)
{
	return hit();
}

SEC("?fexit")
int on_fexit(void *ctx)
{
	return hit();
}

SEC("?fmod_ret/security_file_open")
int on_fmod_ret(void *ctx)
{
	return hit();
}

SEC("?lsm/file_open")
int on_lsm(void *ctx)
{
	return hit();
}

/* Arguments: the registers and the number of the call. */
SEC("?tp_btf/sys_enter")
int on_tp_btf(__u64 *ctx)
{
	if (ctx[1] == target_syscall)
		return hit();
	return 0;
}

SEC("?iter/task")
int on_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	__u32 tgid;

	if (!task)
		return 0;
	tgid = task->tgid;
	bpf_seq_write(ctx->meta->seq, &tgid, sizeof(tgid));
	return 0;
}

/* One byte for each. */
SEC("?iter/cgroup")
int on_cgroup(struct bpf_iter__cgroup *ctx)
{
	__u8 one = 1;

	if (ctx->cgroup)
		bpf_seq_write(ctx->meta->seq, &one, sizeof(one));
	return 0;
}

SEC("?iter/bpf_map_elem")
int on_element(struct bpf_iter__bpf_map_elem *ctx)
{
	__u32 *key = ctx->key;
	__u32 copy;

	if (!key)
		return 0;
	copy = *key;
	bpf_seq_write(ctx->meta->seq, &copy, sizeof(copy));
	return 0;
}

/* Linux 7.0: at entry and return of each call. */
SEC("?fsession")
int on_fsession(void *ctx)
{
	return hit();
}

SEC("?fentry/no_such_function_anywhere")
int on_nothing(void *ctx)
{
	return 0;
}

/* What replaces what: both return a number to tell them apart. */
__noinline int replaceable(int number)
{
	opaque(number);
	return number ? 1 : 3;
}

SEC("?xdp")
int whole(struct xdp_md *ctx)
{
	return replaceable(1);
}

SEC("?freplace")
int replacement(int number)
{
	return 2;
}
