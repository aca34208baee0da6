// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: a CO-RE relocation that cannot be satisfied and is reached makes
 * the load fail, and the error names type, field and program. Each program
 * here but `core_missing_none` must be refused.
 */
#include "vmlinux.h"

LICENSE;

#pragma clang attribute push(__attribute__((preserve_access_index)),           \
			     apply_to = record)

struct task_struct___absent {
	struct {
		int no_such_field;
	} no_such_member;
};

struct no_such_struct {
	int field;
};

#pragma clang attribute pop

enum bpf_map_type {
	BPF_MAP_TYPE_NO_SUCH = 2999,
};

SEC("raw_tp/sched_process_exec")
int err_core_missing_field(void *ctx)
{
	struct task_struct___absent *task = (void *)bpf_get_current_task();

	return CORE_READ(task, no_such_member.no_such_field);
}

SEC("raw_tp/sched_process_exec")
int err_core_missing_type(void *ctx)
{
	struct no_such_struct *none = (void *)bpf_get_current_task();

	return CORE_READ(none, field);
}

SEC("raw_tp/sched_process_exec")
int err_core_missing_enumerator(void *ctx)
{
	return bpf_core_enum_value(enum bpf_map_type, BPF_MAP_TYPE_NO_SUCH);
}

SEC("raw_tp/sched_process_exec")
int core_missing_none(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return CORE_READ(task, pid) == 0;
}
