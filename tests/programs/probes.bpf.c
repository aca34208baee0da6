// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: a program is attached to a kprobe, uprobe, multi link or counter,
 * fires, and no longer fires once detached. Every program adds to `hits` what
 * the process `target_tgid` does. Requires at least Linux 5.5, no CO-RE.
 */
#include "bpf.h"

LICENSE;

HELPER(174, __u64, bpf_get_attach_cookie, void *ctx);

/* Only this process is counted; 0: every process. */
const volatile __u32 target_tgid = 0;

__u64 hits;
__u64 last_cookie;

static __always_inline int hit(void)
{
	if (!target_tgid || bpf_get_current_pid_tgid() >> 32 == target_tgid)
		atomic_add(&hits, 1);
	return 0;
}

SEC("kprobe")
int on_kprobe(void *ctx)
{
	return hit();
}

SEC("uprobe")
int on_uprobe(void *ctx)
{
	return hit();
}

SEC("kprobe.multi")
int on_kprobe_multi(void *ctx)
{
	return hit();
}

SEC("uprobe.multi")
int on_uprobe_multi(void *ctx)
{
	return hit();
}

SEC("perf_event")
int on_perf_event(void *ctx)
{
	return hit();
}

/* Linux 5.15. */
SEC("?uprobe")
int on_cookie(void *ctx)
{
	last_cookie = bpf_get_attach_cookie(ctx);
	return hit();
}

/* What the section says is where it goes. */
SEC("?ksyscall/getpid")
int on_ksyscall(void *ctx)
{
	return hit();
}

SEC("?kretsyscall/getpid")
int on_kretsyscall(void *ctx)
{
	return hit();
}

SEC("?uprobe/libc.so.6:getpid")
int on_libc(void *ctx)
{
	return hit();
}

/* Linux 6.10 and 6.13: at entry and return of each call. */
SEC("?kprobe.session")
int on_kprobe_session(void *ctx)
{
	return hit();
}

SEC("?uprobe.session")
int on_uprobe_session(void *ctx)
{
	return hit();
}

/* Adds the cookies up. */
static __always_inline int hit_cookie(void *ctx)
{
	if (!target_tgid || bpf_get_current_pid_tgid() >> 32 == target_tgid) {
		atomic_add(&hits, 1);
		atomic_add(&last_cookie, bpf_get_attach_cookie(ctx));
	}
	return 0;
}

/* Linux 5.18. */
SEC("?kprobe.multi")
int on_kprobe_multi_cookie(void *ctx)
{
	return hit_cookie(ctx);
}

/* Linux 6.6. */
SEC("?uprobe.multi")
int on_uprobe_multi_cookie(void *ctx)
{
	return hit_cookie(ctx);
}

/* Linux 5.15. */
SEC("?tracepoint/syscalls/sys_enter_getpid")
int on_tracepoint_cookie(void *ctx)
{
	return hit_cookie(ctx);
}

/* Linux 6.10. */
SEC("?raw_tp/sys_enter")
int on_raw_tp_cookie(struct bpf_raw_tracepoint_args *ctx)
{
	if (ctx->args[1] != 39) /* getpid on x86-64 */
		return 0;
	return hit_cookie(ctx);
}

SEC("?raw_tp.w/sys_enter")
int on_raw_tp_writable(struct bpf_raw_tracepoint_args *ctx)
{
	if (ctx->args[1] != 39)
		return 0;
	return hit();
}
