// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: a congestion control for TCP is called while it is registered, by
 * the value of its map or by a link, and by no new socket afterwards. It counts
 * in a variable what it is told of.
 */
#include "bpf.h"

LICENSE;

struct sock;

/* A network namespace may have it as its default. */
#define TCP_CONG_NON_RESTRICTED 1

struct tcp_congestion_ops {
	__u32 flags;
	char name[16];
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	__u32 (*undo_cwnd)(struct sock *sk);
	__u32 (*ssthresh)(struct sock *sk);
};

__u64 congestion_count;

SEC("?struct_ops")
__u32 ssthresh(__u64 *ctx)
{
	return 2;
}

SEC("?struct_ops")
__u32 undo_cwnd(__u64 *ctx)
{
	return 2;
}

SEC("?struct_ops")
void cong_avoid(__u64 *ctx)
{
	atomic_add(&congestion_count, 1);
}

SEC("?.struct_ops")
struct tcp_congestion_ops by_map = {
	.ssthresh = (void *)ssthresh,
	.undo_cwnd = (void *)undo_cwnd,
	.cong_avoid = (void *)cong_avoid,
	.flags = TCP_CONG_NON_RESTRICTED,
	.name = "em_suite",
};

SEC("?.struct_ops.link")
struct tcp_congestion_ops by_link = {
	.ssthresh = (void *)ssthresh,
	.undo_cwnd = (void *)undo_cwnd,
	.cong_avoid = (void *)cong_avoid,
	.flags = TCP_CONG_NON_RESTRICTED,
	.name = "em_suite",
};
