// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * A congestion control for TCP, three times: registered by the value of its
 * map, by a link, and only where asked for. The structure is in another order
 * than the kernel's and has a member that no kernel has.
 */
#include "bpf.h"

struct sock;

struct tcp_congestion_ops___mixed {
	char name[16];
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	__u32 (*undo_cwnd)(struct sock *sk);
	__u32 (*ssthresh)(struct sock *sk);
	__u32 (*no_such_member)(struct sock *sk);
	__u64 no_such_number;
};

SEC("struct_ops/so_ssthresh")
__u32 so_ssthresh(__u64 *ctx)
{
	return 7;
}

SEC("struct_ops")
__u32 so_undo_cwnd(__u64 *ctx)
{
	return 9;
}

SEC("struct_ops")
void so_cong_avoid(__u64 *ctx)
{
}

/* A static function is named by its section and a distance. */
SEC("struct_ops")
static __u32 so_static(__u64 *ctx)
{
	return 11;
}

SEC("struct_ops")
__u32 so_nowhere(__u64 *ctx)
{
	return 1;
}

/* Loaded only with so_optional. */
SEC("struct_ops")
__u32 so_asked_for(__u64 *ctx)
{
	return 13;
}

SEC("?struct_ops")
__u32 so_unused(__u64 *ctx)
{
	return 15;
}

SEC(".struct_ops")
struct tcp_congestion_ops___mixed so_plain = {
	.ssthresh = (void *)so_ssthresh,
	.undo_cwnd = (void *)so_undo_cwnd,
	.cong_avoid = (void *)so_cong_avoid,
	.name = "em_plain",
};

SEC(".struct_ops.link")
struct tcp_congestion_ops___mixed so_link = {
	.ssthresh = (void *)so_static,
	.undo_cwnd = (void *)so_undo_cwnd,
	.cong_avoid = (void *)so_cong_avoid,
	.no_such_member = (void *)so_nowhere,
	.name = "em_link",
};

SEC("?.struct_ops.link")
struct tcp_congestion_ops___mixed so_optional = {
	.ssthresh = (void *)so_asked_for,
	.undo_cwnd = (void *)so_undo_cwnd,
	.cong_avoid = (void *)so_cong_avoid,
	.name = "em_optional",
};

LICENSE;
