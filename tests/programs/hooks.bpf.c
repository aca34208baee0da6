// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: what the conformance suite of links asks of every kind of hook that
 * net.bpf.c does not have. Programs come in pairs, so that one can take the
 * place of the other; each counts its runs in a variable named after it.
 * Nothing is loaded unless asked for.
 */
#include "bpf.h"

LICENSE;

#define BPF_MAP_TYPE_DEVMAP 14
#define BPF_MAP_TYPE_CPUMAP 16
#define BPF_MAP_TYPE_SOCKHASH 18

#define XDP_DROP 1
#define XDP_PASS 2
#define BPF_OK 0
#define ALLOW 1

HELPER(51, long, bpf_redirect_map, void *map, __u64 key, __u64 flags);

struct bpf_sock;
struct bpf_sock_addr;
struct bpf_sock_ops;
struct bpf_sockopt;
struct bpf_sysctl;
struct bpf_cgroup_dev_ctx;

/* Values with a program: struct bpf_devmap_val, struct bpf_cpumap_val. */
struct redirect {
	__u32 to;
	__u32 program;
};

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct redirect);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct redirect);
} cpus SEC(".maps");

/* As net.bpf.c has them by number. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} sockets_by_key SEC(".maps");

/* Only this process is counted, where a hook is not the test's alone. */
const volatile __u32 target_tgid = 0;
/* Only this system call. */
const volatile __u64 target_syscall = 39; /* getpid on x86-64 */

static __always_inline bool is_ours(void)
{
	return bpf_get_current_pid_tgid() >> 32 == target_tgid;
}

/* A program that counts when `condition` holds. */
#define ONE(section, name, context, condition, result)                         \
	__u64 name##_count;                                                    \
	SEC(section) int name(context *ctx)                                    \
	{                                                                      \
		if (condition)                                                 \
			atomic_add(&name##_count, 1);                          \
		return result;                                                 \
	}

#define PAIR(section, name, context, condition, result)                        \
	ONE(section, name##_first, context, condition, result)                 \
	ONE(section, name##_second, context, condition, result)

/* The whole process is in the cgroup, its sockets with it. */
#define CGROUP(section, name, context)                                         \
	PAIR("?cgroup/" section, name, struct context, true, ALLOW)

PAIR("?cgroup_skb/ingress", ingress, struct __sk_buff, true, ALLOW)
PAIR("?cgroup_skb/egress", egress, struct __sk_buff, true, ALLOW)
CGROUP("sock_create", sock_create, bpf_sock)
CGROUP("sock_release", sock_release, bpf_sock)
CGROUP("post_bind4", post_bind4, bpf_sock)
CGROUP("post_bind6", post_bind6, bpf_sock)
CGROUP("bind4", bind4, bpf_sock_addr)
CGROUP("bind6", bind6, bpf_sock_addr)
CGROUP("connect4", connect4, bpf_sock_addr)
CGROUP("connect6", connect6, bpf_sock_addr)
CGROUP("sendmsg4", sendmsg4, bpf_sock_addr)
CGROUP("sendmsg6", sendmsg6, bpf_sock_addr)
CGROUP("recvmsg4", recvmsg4, bpf_sock_addr)
CGROUP("recvmsg6", recvmsg6, bpf_sock_addr)
CGROUP("getpeername4", getpeername4, bpf_sock_addr)
CGROUP("getpeername6", getpeername6, bpf_sock_addr)
CGROUP("getsockname4", getsockname4, bpf_sock_addr)
CGROUP("getsockname6", getsockname6, bpf_sock_addr)
CGROUP("connect_unix", connect_unix, bpf_sock_addr)
CGROUP("sendmsg_unix", sendmsg_unix, bpf_sock_addr)
CGROUP("recvmsg_unix", recvmsg_unix, bpf_sock_addr)
CGROUP("getpeername_unix", getpeername_unix, bpf_sock_addr)
CGROUP("getsockname_unix", getsockname_unix, bpf_sock_addr)
CGROUP("sysctl", sysctl, bpf_sysctl)
CGROUP("getsockopt", getsockopt, bpf_sockopt)
CGROUP("setsockopt", setsockopt, bpf_sockopt)
CGROUP("dev", device, bpf_cgroup_dev_ctx)
PAIR("?sockops", sock_ops, struct bpf_sock_ops, true, ALLOW)
PAIR("?lsm_cgroup/socket_bind", lsm_cgroup, void, true, ALLOW)

/* Only the test's packets come by the test's route. */
PAIR("?lwt_in", lwt_in, struct __sk_buff, true, BPF_OK)
PAIR("?lwt_out", lwt_out, struct __sk_buff, true, BPF_OK)
PAIR("?lwt_xmit", lwt_xmit, struct __sk_buff, true, BPF_OK)
PAIR("?lwt_seg6local", lwt_seg6local, struct __sk_buff, true, BPF_OK)

PAIR("?xdp.frags", xdp_frags, struct xdp_md, true, XDP_PASS)
PAIR("?xdp/devmap", xdp_device, struct xdp_md, true, XDP_DROP)
PAIR("?xdp/cpumap", xdp_cpu, struct xdp_md, true, XDP_DROP)
PAIR("?sk_skb/stream_parser", parser, struct __sk_buff, true, ctx->len)
PAIR("?sk_skb/stream_verdict", stream_verdict, struct __sk_buff, true, 1)
PAIR("?sk_skb/verdict", verdict, struct __sk_buff, true, 1)
PAIR("?lirc_mode2", lirc, void, true, 0)

SEC("?xdp")
int xdp_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("?xdp")
int xdp_to_device(struct xdp_md *ctx)
{
	return bpf_redirect_map(&devices, 0, 0);
}

SEC("?xdp")
int xdp_to_cpu(struct xdp_md *ctx)
{
	return bpf_redirect_map(&cpus, 0, 0);
}

#define TRACING(section, name) PAIR(section, name, void, is_ours(), 0)

TRACING("?kprobe", kprobe)
TRACING("?kprobe.multi", kprobe_multi)
TRACING("?kprobe.session", kprobe_session)
TRACING("?uprobe", uprobe)
TRACING("?uprobe.multi", uprobe_multi)
TRACING("?uprobe.session", uprobe_session)
TRACING("?usdt", usdt)
TRACING("?perf_event", perf_event)
TRACING("?fentry", fentry)
TRACING("?fexit", fexit)
TRACING("?fsession", fsession)
TRACING("?fmod_ret/security_file_open", fmod_ret)
TRACING("?lsm/file_open", lsm)

/* What a writable tracepoint gives to be written. */
static __always_inline bool rewrites(__u64 *ctx)
{
	volatile int *result = (volatile int *)ctx[0];

	*result = *result;
	return true;
}

#define IS_CALL(number) ((number) == target_syscall && is_ours())

/* Common fields of eight bytes, then the number of the call. */
PAIR("?tracepoint/raw_syscalls/sys_enter", tracepoint, __u64, IS_CALL(ctx[1]), 0)
/* Arguments: the registers and the number of the call. */
PAIR("?raw_tracepoint/sys_enter", raw_tracepoint, __u64, IS_CALL(ctx[1]), 0)
/* A test run ends, with a result that the program may change. */
PAIR("?raw_tp.w/bpf_test_finish", raw_writable, __u64, is_ours() && rewrites(ctx), 0)
PAIR("?tp_btf/sys_enter", tp_btf, __u64, IS_CALL(ctx[1]), 0)

/* Called by the test itself. */
PAIR("?syscall", syscall, void, true, 0)

/* What replaces what. */
__noinline int replaceable(int number)
{
	opaque(number);
	return number;
}

SEC("?xdp")
int whole(struct xdp_md *ctx)
{
	return replaceable(XDP_PASS);
}

__u64 freplace_first_count;
SEC("?freplace")
int freplace_first(int number)
{
	atomic_add(&freplace_first_count, 1);
	return XDP_PASS;
}

__u64 freplace_second_count;
SEC("?freplace")
int freplace_second(int number)
{
	atomic_add(&freplace_second_count, 1);
	return XDP_PASS;
}
