// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: types that only a module of the kernel has are found in its BTF. The
 * veth driver is a module in some kernels and built in in others.
 */
#include "vmlinux.h"

LICENSE;

#pragma clang attribute push(__attribute__((preserve_access_index)),           \
			     apply_to = record)

struct net_device;
struct veth_priv {
	struct net_device *peer;
};

#pragma clang attribute pop

SEC("raw_tp/sched_process_exec")
int core_module(void *ctx)
{
	struct veth_priv *priv = (void *)ctx;

	CHECK(bpf_core_type_exists(struct veth_priv) == 1);
	CHECK(bpf_core_type_size(struct veth_priv) > sizeof(void *));
	CHECK(bpf_core_field_exists(priv->peer) == 1);
	CHECK(bpf_core_field_size(priv->peer) == sizeof(void *));
	CHECK(bpf_core_type_id_kernel(struct veth_priv) != 0);
	return 0;
}
