// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: a program is attached to a network hook, fires for the test's own
 * packets and for nothing else, and no longer fires once detached. Programs
 * come in pairs, so that one can take the place of the other; each counts what
 * it sees in a variable named after it. Nothing is loaded unless asked for:
 * the hooks appeared between Linux 3.19 and 6.7.
 */
#include "bpf.h"

LICENSE;

/* The test sends to this port. */
#define PORT 4242

#define ETH_P_IPV6 0x86dd
#define ETH_LEN 14
#define IPPROTO_UDP 17
/* Offsets into an IPv6 packet that starts with its UDP header. */
#define IPV6_NEXT 6
#define IPV6_LEN 40
#define UDP_TO 2

#define TC_ACT_OK 0
#define TC_ACT_UNSPEC -1
#define TC_ACT_SHOT 2
#define XDP_DROP 1
#define XDP_PASS 2
#define SK_PASS 1
#define NF_ACCEPT 1
#define BPF_OK 0

#define BPF_MAP_TYPE_SOCKMAP 15

struct bpf_sock_addr;
struct bpf_sk_lookup;
struct sk_msg_md;
struct sk_reuseport_md;
struct bpf_nf_ctx;

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

static __always_inline __u16 swap(__u16 value)
{
	return __builtin_bswap16(value);
}

/* A frame with an IPv6 packet to our port. */
static __always_inline bool is_frame(const void *data, const void *end)
{
	const __u8 *frame = data;

	if (data + ETH_LEN + IPV6_LEN + UDP_TO + 2 > end)
		return false;
	return *(const __u16 *)(frame + 12) == swap(ETH_P_IPV6) &&
	       frame[ETH_LEN + IPV6_NEXT] == IPPROTO_UDP &&
	       *(const __u16 *)(frame + ETH_LEN + IPV6_LEN + UDP_TO) ==
		       swap(PORT);
}

/* The same, by way of a socket buffer. */
static __always_inline bool is_packet(struct __sk_buff *skb, __u32 ip)
{
	__u16 port = 0;
	__u8 next = 0;

	return !bpf_skb_load_bytes(skb, ip + IPV6_NEXT, &next, 1) &&
	       next == IPPROTO_UDP &&
	       !bpf_skb_load_bytes(skb, ip + IPV6_LEN + UDP_TO, &port, 2) &&
	       port == swap(PORT);
}

#define XDP(name)                                                              \
	__u64 name##_count;                                                    \
	SEC("?xdp") int name(struct xdp_md *ctx)                               \
	{                                                                      \
		if (is_frame((void *)(long)ctx->data,                          \
			     (void *)(long)ctx->data_end))                     \
			atomic_add(&name##_count, 1);                          \
		return XDP_PASS;                                               \
	}

XDP(xdp_first)
XDP(xdp_second)

/* Lets the next program see the packet, whatever the hook. */
#define TC(name)                                                               \
	__u64 name##_count;                                                    \
	SEC("?tc") int name(struct __sk_buff *ctx)                             \
	{                                                                      \
		if (is_packet(ctx, ETH_LEN))                                   \
			atomic_add(&name##_count, 1);                          \
		return TC_ACT_UNSPEC;                                          \
	}

TC(tc_first)
TC(tc_second)

/* Takes packets away from whatever runs behind it. */
__u64 tc_drop_count;
SEC("?tc/ingress")
int tc_drop(struct __sk_buff *ctx)
{
	if (!is_packet(ctx, ETH_LEN))
		return TC_ACT_UNSPEC;
	atomic_add(&tc_drop_count, 1);
	return TC_ACT_SHOT;
}

/* The cgroup's packets start with the header of the internet protocol. */
#define CGROUP(name)                                                           \
	__u64 name##_count;                                                    \
	SEC("?cgroup_skb/egress") int name(struct __sk_buff *ctx)              \
	{                                                                      \
		if (is_packet(ctx, 0))                                         \
			atomic_add(&name##_count, 1);                          \
		return 1;                                                      \
	}

CGROUP(cgroup_first)
CGROUP(cgroup_second)

/* Only what is in the test's namespace, socket or map comes here. */
#define COUNTED(section, name, context, result)                                \
	__u64 name##_count;                                                    \
	SEC(section) int name(struct context *ctx)                             \
	{                                                                      \
		atomic_add(&name##_count, 1);                                  \
		return result;                                                 \
	}

COUNTED("?sk_lookup", lookup_first, bpf_sk_lookup, SK_PASS)
COUNTED("?sk_lookup", lookup_second, bpf_sk_lookup, SK_PASS)
COUNTED("?flow_dissector", flow_first, __sk_buff, BPF_OK)
COUNTED("?flow_dissector", flow_second, __sk_buff, BPF_OK)
COUNTED("?netfilter", netfilter_first, bpf_nf_ctx, NF_ACCEPT)
COUNTED("?netfilter", netfilter_second, bpf_nf_ctx, NF_ACCEPT)
COUNTED("?socket", socket_first, __sk_buff, -1)
COUNTED("?socket", socket_second, __sk_buff, -1)
COUNTED("?sk_reuseport", reuseport_first, sk_reuseport_md, SK_PASS)
COUNTED("?sk_reuseport", reuseport_second, sk_reuseport_md, SK_PASS)
COUNTED("?sk_msg", message_first, sk_msg_md, SK_PASS)
COUNTED("?sk_msg", message_second, sk_msg_md, SK_PASS)
COUNTED("?sk_skb/stream_verdict", verdict_first, __sk_buff, SK_PASS)

__u64 parser_first_count;
SEC("?sk_skb/stream_parser")
int parser_first(struct __sk_buff *ctx)
{
	atomic_add(&parser_first_count, 1);
	return ctx->len;
}
