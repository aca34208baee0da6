// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: the error for a program that the verifier refuses names it and
 * shows the telling line of the log with its C source, and one refused
 * program does not hide the others. Each program but `verifier_accepts` must
 * be refused.
 */
#include "bpf.h"

LICENSE;

/* Not an array: recent verifiers know that a constant index of one is there. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} slot SEC(".maps");

/* "invalid access to map value". */
SEC("socket")
int err_out_of_bounds(struct __sk_buff *skb)
{
	__u32 key = 0;
	char *value = bpf_map_lookup_elem(&slot, &key);

	if (!value)
		return 0;
	return value[4096]; /* beyond the eight bytes of the value */
}

/* "invalid mem access 'map_value_or_null'". */
SEC("socket")
int err_no_null_check(struct __sk_buff *skb)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&slot, &key);

	return *value; /* may be NULL */
}

/* "infinite loop detected". */
SEC("socket")
int err_unbounded_loop(struct __sk_buff *skb)
{
	volatile __u32 *mark = &skb->mark;

	while (*mark != 1) /* nothing changes it */
		;
	return 0;
}

/* "invalid access to map value" at the end of a log of some megabytes. */
SEC("socket")
int err_long_log(struct __sk_buff *skb)
{
	__u32 key = 0, i;
	char *value = bpf_map_lookup_elem(&slot, &key);

	if (!value)
		return 0;
	for (i = 0; i < 8000; i++)
		key += READ_ONCE(skb->mark) ^ i;
	return value[8] + key; /* one byte beyond */
}

SEC("socket")
int verifier_accepts(struct __sk_buff *skb)
{
	return 0;
}
