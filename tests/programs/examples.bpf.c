// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * What the programs under examples/ load. Each counts what the process
 * `target_tgid` does, or the packets it sends to PORT, and some send an event.
 * Programs whose hook not every kernel has are loaded on request only.
 * Requires at least Linux 5.8, no CO-RE.
 */
#include "bpf.h"

LICENSE;

#define PORT 4343
#define IPPROTO_UDP 17
#define ETH_LEN 14
#define TC_ACT_UNSPEC -1
#define XDP_PASS 2

struct event {
	__u32 tgid;
	__u32 kind;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} samples SEC(".maps");

/* Calls by kind; the examples change its size, replace it and pin it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

/* The map that a router chooses, by key 0. */
struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
};

struct inner inner_default SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct inner);
} routed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} steps SEC(".maps");

/* Only this process is counted; 0: every process. */
const volatile __u32 target_tgid = 0;
/* What a call adds to `calls`. */
const volatile __u64 weight = 1;

__u64 calls;
__u64 executions;
__u64 packets;
__u64 ticks;

static __always_inline bool is_ours(void)
{
	return !target_tgid || bpf_get_current_pid_tgid() >> 32 == target_tgid;
}

static __always_inline int call(void)
{
	if (is_ours())
		atomic_add(&calls, weight);
	return 0;
}

/* --- tracing --------------------------------------------------------------- */

SEC("tracepoint/sched/sched_process_fork")
int on_fork(void *ctx)
{
	struct event event = { .kind = 1 };

	if (!is_ours())
		return 0;
	event.tgid = bpf_get_current_pid_tgid() >> 32;
	atomic_add(&executions, 1);
	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
	return 0;
}

SEC("?tracepoint/sched/sched_process_fork")
int on_fork_sample(void *ctx)
{
	struct event event = { .kind = 2 };

	if (!is_ours())
		return 0;
	event.tgid = bpf_get_current_pid_tgid() >> 32;
	bpf_perf_event_output(ctx, &samples, BPF_F_CURRENT_CPU, &event,
			      sizeof(event));
	return 0;
}

SEC("?tracepoint/sched/no_such_event")
int on_nothing(void *ctx)
{
	return 0;
}

SEC("?raw_tracepoint/sched_process_fork")
int on_fork_raw(void *ctx)
{
	return call();
}

SEC("?ksyscall/getpid")
int on_kprobe(void *ctx)
{
	return call();
}

SEC("?uprobe/libc.so.6:getpid")
int on_uprobe(void *ctx)
{
	return call();
}

SEC("?perf_event")
int on_tick(void *ctx)
{
	atomic_add(&ticks, 1);
	return 0;
}

SEC("?fentry")
int on_fentry(void *ctx)
{
	return call();
}

SEC("?lsm/file_open")
int on_lsm(void *ctx)
{
	return call();
}

/* --- network --------------------------------------------------------------- */

/* A UDP packet to PORT, by way of a socket buffer; IPv4 starts at `ip`. */
static __always_inline int packet(struct __sk_buff *skb, __u32 ip)
{
	__u16 port = 0;
	__u8 protocol = 0;

	if (!bpf_skb_load_bytes(skb, ip + 9, &protocol, 1) &&
	    protocol == IPPROTO_UDP &&
	    !bpf_skb_load_bytes(skb, ip + 22, &port, 2) &&
	    port == __builtin_bswap16(PORT))
		atomic_add(&packets, 1);
	return 0;
}

SEC("?tc")
int on_tc(struct __sk_buff *ctx)
{
	packet(ctx, ETH_LEN);
	return TC_ACT_UNSPEC;
}

SEC("?cgroup_skb/egress")
int on_cgroup(struct __sk_buff *ctx)
{
	packet(ctx, 0);
	return 1;
}

SEC("?socket")
int on_socket(struct __sk_buff *ctx)
{
	atomic_add(&packets, 1);
	return -1;
}

SEC("?xdp")
int on_xdp(struct xdp_md *ctx)
{
	const __u8 *data = (void *)(long)ctx->data;
	const __u8 *end = (void *)(long)ctx->data_end;

	if (data + ETH_LEN + 24 > end)
		return XDP_PASS;
	if (data[ETH_LEN + 9] == IPPROTO_UDP &&
	    *(const __u16 *)(data + ETH_LEN + 22) == __builtin_bswap16(PORT))
		atomic_add(&packets, 1);
	return XDP_PASS;
}

/* --- run by hand: what they return is what they show ------------------------ */

/* A number that the loader puts in. */
SEC("socket")
int constant(struct __sk_buff *skb)
{
	__u64 value;

	LOAD_CONSTANT("answer", value);
	return (int)value;
}

/* Returns 1, unless somebody changes the instruction. */
SEC("socket")
int patched(struct __sk_buff *skb)
{
	__u64 one = 1;

	opaque(one);
	return (int)one;
}

SEC("socket")
int count(struct __sk_buff *skb)
{
	__u64 one = 1, *value;
	__u32 key = 0;

	value = bpf_map_lookup_elem(&counts, &key);
	if (value)
		return (int)++*value;
	bpf_map_update_elem(&counts, &key, &one, BPF_ANY);
	return 1;
}

SEC("socket")
int route(struct __sk_buff *skb)
{
	__u32 key = 0;
	__u64 *value;
	void *inner;

	inner = bpf_map_lookup_elem(&routed, &key);
	if (!inner)
		return 0;
	value = bpf_map_lookup_elem(inner, &key);
	return value ? (int)*value : 0;
}

SEC("socket")
int first(struct __sk_buff *skb)
{
	bpf_tail_call(skb, &steps, 0);
	/* Nothing is routed here. */
	return 1;
}

SEC("socket")
int second(struct __sk_buff *skb)
{
	return 2;
}

SEC("socket")
int third(struct __sk_buff *skb)
{
	return 3;
}
