// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: an XDP program that is bound to an interface may ask its driver
 * about packets, which no other may.
 */
#include "bpf.h"

LICENSE;

#define XDP_PASS 2

extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym;

__u64 bound_count;
__u64 answered_count;

SEC("xdp")
int bound(struct xdp_md *ctx)
{
	__u64 timestamp = 0;

	if (!bpf_xdp_metadata_rx_timestamp(ctx, &timestamp))
		atomic_add(&answered_count, 1);
	atomic_add(&bound_count, 1);
	return XDP_PASS;
}
