// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: functions and variables of the kernel are called and read by their
 * ids in its BTF, others addressed by its symbol table; weak ones that this
 * kernel does not have read as 0, and a call of one that can be reached is
 * refused by name, as is a declaration that is not the kernel's.
 */
#include "bpf.h"

LICENSE;

/* Untyped: an address. */
extern const void _stext __ksym;
extern const void no_such_symbol __ksym __weak;
extern const void no_such_strong_symbol __ksym;

/* Typed: per-CPU, Linux 5.10. */
extern const int bpf_prog_active __ksym;
extern const int no_such_variable __ksym __weak;
extern const int no_such_strong_variable __ksym;
/* A struct there. */
extern const int runqueues __ksym;

/* Linux 6.2 */
extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym;
/* One that is declared otherwise there, under a flavour. */
extern void bpf_rcu_read_lock___counted(int by) __ksym __weak;
extern void bpf_rcu_read_unlock___counted(int by) __ksym;
extern void bpf_rcu_read_lock___same(void) __ksym __weak;

extern int no_such_function(int, struct __sk_buff *skb) __ksym __weak;
extern int no_such_strong_function(int) __ksym;

/* Not a part of the kernel, but of another object. */
extern int of_another_object(void);

__u64 address_of_stext;

SEC("socket")
int ksyms_untyped(struct __sk_buff *skb)
{
	address_of_stext = (__u64)&_stext;
	CHECK(!&no_such_symbol);
	return 0;
}

SEC("socket")
int err_ksyms_untyped(struct __sk_buff *skb)
{
	return &no_such_strong_symbol == (void *)skb;
}

SEC("socket")
int ksyms_variable(struct __sk_buff *skb)
{
	const int *active = bpf_this_cpu_ptr(&bpf_prog_active);

	CHECK(*active >= 0 && *active < 1000);
	CHECK(!&no_such_variable);
	return 0;
}

SEC("socket")
int err_ksyms_variable(struct __sk_buff *skb)
{
	return *(const int *)bpf_this_cpu_ptr(&no_such_strong_variable);
}

SEC("socket")
int err_ksyms_variable_type(struct __sk_buff *skb)
{
	return *(const int *)bpf_this_cpu_ptr(&runqueues);
}

SEC("tc")
int ksyms_function(struct __sk_buff *skb)
{
	CHECK(bpf_rcu_read_lock___same);
	bpf_rcu_read_lock___same();
	bpf_rcu_read_unlock();
	bpf_rcu_read_lock();
	bpf_rcu_read_unlock();
	return 0;
}

SEC("tc")
int ksyms_weak_function(struct __sk_buff *skb)
{
	if (no_such_function)
		return no_such_function(1, skb);
	CHECK(!bpf_rcu_read_lock___counted);
	return 0;
}

SEC("tc")
int err_ksyms_weak_function(struct __sk_buff *skb)
{
	return no_such_function(1, skb);
}

SEC("tc")
int err_ksyms_function(struct __sk_buff *skb)
{
	return no_such_strong_function(1);
}

SEC("tc")
int err_ksyms_function_type(struct __sk_buff *skb)
{
	bpf_rcu_read_unlock___counted(1);
	return 0;
}

SEC("tc")
int err_ksyms_other_object(struct __sk_buff *skb)
{
	return of_another_object();
}
