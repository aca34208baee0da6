// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Functions that only a module has, those of nf_conntrack, beside one of the
 * kernel image and a weak one that there is nowhere.
 */
#include "bpf.h"

/* Known by its name; a mere declaration would be of another kind. */
struct nf_conn {
	int unused;
};

struct bpf_sock_tuple {
	__u32 saddr;
	__u32 daddr;
	__u16 sport;
	__u16 dport;
};

struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					 __u32 tuple_size, struct bpf_ct_opts *opts,
					 __u32 opts_size) __ksym;
extern void bpf_ct_release(struct nf_conn *ct) __ksym;
extern void bpf_rcu_read_lock(void) __ksym __weak;
extern void bpf_rcu_read_unlock(void) __ksym __weak;
extern void bpf_no_such_function(void) __ksym __weak;

SEC("tc")
int kfunc_module(struct __sk_buff *skb)
{
	struct bpf_ct_opts opts = { .netns_id = -1, .l4proto = 6 };
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *ct;

	if (&bpf_no_such_function)
		bpf_no_such_function();
	CHECK(!&bpf_no_such_function);
	if (&bpf_rcu_read_lock && &bpf_rcu_read_unlock) {
		bpf_rcu_read_lock();
		bpf_rcu_read_unlock();
	}
	ct = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple), &opts, sizeof(opts));
	if (ct) {
		bpf_ct_release(ct);
		return __LINE__;
	}
	CHECK(opts.error < 0);
	return 0;
}

LICENSE;
