// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * A variable that only a module has, one for each CPU: where x_tables counts
 * how often rules are looked at, beside one of the kernel image and a weak one
 * that there is nowhere.
 */
#include "bpf.h"

struct seqcount {
	__u32 sequence;
};

extern const struct seqcount xt_recseq __ksym;
extern const int bpf_prog_active __ksym __weak;
extern const struct seqcount no_such_seqcount __ksym __weak;

SEC("socket")
int module_variable(struct __sk_buff *skb)
{
	const struct seqcount *count = bpf_this_cpu_ptr(&xt_recseq);
	const int *active;
	__u32 sequence = 1;

	CHECK(&xt_recseq);
	/*
	 * Odd only while this CPU looks at rules. There the type is a typedef,
	 * through which the verifier of 6.1 does not see.
	 */
	CHECK(bpf_probe_read_kernel(&sequence, sizeof(sequence), count) == 0);
	CHECK(sequence % 2 == 0);
	CHECK(!&no_such_seqcount);
	if (&bpf_prog_active) {
		active = bpf_this_cpu_ptr(&bpf_prog_active);
		CHECK(*active >= 0 && *active < 1000);
	}
	return 0;
}

LICENSE;
