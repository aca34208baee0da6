// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: values of a kernel's configuration reach programs in every type they
 * can have, options that are not set read as 0 if weak and fail only the
 * programs that use them if not. The test supplies the configuration that
 * `kconfig_text` checks.
 */
#include "bpf.h"

LICENSE;

typedef unsigned int u32_t;
typedef u32_t counter_t;
typedef enum libbpf_tristate tristate_t;

extern const bool CONFIG_T_BOOL __kconfig;
extern enum libbpf_tristate CONFIG_T_YES __kconfig;
extern const tristate_t CONFIG_T_MODULE __kconfig;
extern enum libbpf_tristate CONFIG_T_ABSENT __kconfig __weak;
extern char CONFIG_T_LETTER __kconfig;
extern char CONFIG_T_SMALL __kconfig;
extern short CONFIG_T_NEGATIVE __kconfig;
extern const counter_t CONFIG_T_TYPEDEF __kconfig;
extern unsigned long long CONFIG_T_HEX __kconfig;
extern char CONFIG_T_TEXT[8] __kconfig;
extern char CONFIG_T_CUT[4] __kconfig;
extern int CONFIG_T_WEAK __kconfig __weak;
extern bool CONFIG_T_WEAK_BOOL __kconfig __weak;
extern int CONFIG_T_MISSING __kconfig;

extern int LINUX_KERNEL_VERSION __kconfig;
extern bool LINUX_HAS_SYSCALL_WRAPPER __kconfig;
extern bool LINUX_HAS_BPF_COOKIE __kconfig;
extern int LINUX_NOT_INVENTED __kconfig __weak;

extern bool CONFIG_BPF_SYSCALL __kconfig;
extern int CONFIG_HZ __kconfig;
extern char CONFIG_CC_VERSION_TEXT[64] __kconfig;

SEC("socket")
int kconfig_text(struct __sk_buff *skb)
{
	CHECK(READ_ONCE(CONFIG_T_BOOL) == true);
	CHECK(READ_ONCE(CONFIG_T_YES) == TRI_YES);
	CHECK(READ_ONCE(CONFIG_T_MODULE) == TRI_MODULE);
	CHECK(READ_ONCE(CONFIG_T_ABSENT) == TRI_NO);
	CHECK(READ_ONCE(CONFIG_T_LETTER) == 'm');
	CHECK(READ_ONCE(CONFIG_T_SMALL) == -7);
	CHECK(READ_ONCE(CONFIG_T_NEGATIVE) == -12345);
	CHECK(READ_ONCE(CONFIG_T_TYPEDEF) == 4000000000);
	CHECK(READ_ONCE(CONFIG_T_HEX) == 0xffff888000000000);
	CHECK(READ_ONCE(CONFIG_T_TEXT[0]) == 'a');
	CHECK(READ_ONCE(CONFIG_T_TEXT[2]) == '=');
	CHECK(READ_ONCE(CONFIG_T_TEXT[3]) == 0);
	CHECK(READ_ONCE(CONFIG_T_CUT[2]) == 'n');
	CHECK(READ_ONCE(CONFIG_T_CUT[3]) == 0);
	CHECK(READ_ONCE(CONFIG_T_WEAK) == 0);
	CHECK(READ_ONCE(CONFIG_T_WEAK_BOOL) == false);
	return 0;
}

/* Dead code goes by what is known when the program is loaded. */
SEC("socket")
int kconfig_is_constant(struct __sk_buff *skb)
{
	if (CONFIG_T_BOOL)
		return 0;
	/* No program may write here: this must never be looked at. */
	*(volatile int *)&LINUX_KERNEL_VERSION = 1;
	return __LINE__;
}

SEC("socket")
int err_kconfig_missing(struct __sk_buff *skb)
{
	return CONFIG_T_MISSING;
}

/* Returns what the loader found out by itself. */
SEC("socket")
int kconfig_version(struct __sk_buff *skb)
{
	return LINUX_KERNEL_VERSION;
}

SEC("socket")
int kconfig_virtual(struct __sk_buff *skb)
{
	CHECK(LINUX_NOT_INVENTED == 0);
	return LINUX_HAS_SYSCALL_WRAPPER | LINUX_HAS_BPF_COOKIE << 1;
}

/* Returns an option of the running kernel. */
SEC("socket")
int kconfig_running(struct __sk_buff *skb)
{
	CHECK(CONFIG_BPF_SYSCALL);
	CHECK(CONFIG_CC_VERSION_TEXT[0]);
	return CONFIG_HZ;
}
