// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: an object of the other byte order is refused, and the error says
 * that it is the byte order. Compiled for big-endian machines.
 */
#include "bpf.h"

LICENSE;

SEC("socket")
int bigendian(struct __sk_buff *skb)
{
	return 0;
}
