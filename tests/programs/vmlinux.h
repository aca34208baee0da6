/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/*
 * The few kernel types that programs here look into, reduced to the members
 * they use. Offsets in this file mean nothing: `preserve_access_index` makes
 * every access a CO-RE relocation against the running kernel.
 */
#ifndef EBPF_MANAGER_VMLINUX_H
#define EBPF_MANAGER_VMLINUX_H

#include "bpf.h"

/* Task flag; unlike fields, macros leave no trace in BTF. */
#define PF_KTHREAD 0x00200000
/* Flag of signal_struct: group_exit_code holds the status of the process. */
#define SIGNAL_GROUP_EXIT 0x00000004

#define TASK_COMM_LEN 16

#pragma clang attribute push(__attribute__((preserve_access_index)),           \
			     apply_to = record)

typedef int pid_t;

typedef struct {
	int counter;
} atomic_t;

struct list_head {
	struct list_head *next, *prev;
};

typedef struct {
	unsigned int val;
} kuid_t;

struct cred {
	kuid_t uid;
};

struct signal_struct {
	atomic_t live;
	int group_exit_code;
	unsigned int flags;
};

struct task_struct {
	unsigned int flags;
	int exit_code;
	pid_t pid;
	pid_t tgid;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct list_head tasks;
	__u64 start_time;
	const struct cred *real_cred;
	char comm[TASK_COMM_LEN];
	struct signal_struct *signal;
	unsigned int sched_reset_on_fork : 1;
};

struct trace_entry {
	int pid;
};

struct trace_event_raw_sched_process_exec {
	struct trace_entry ent;
	/* Low half: offset from the start of the record; high half: length. */
	__u32 __data_loc_filename;
};

/* Since Linux 6.16; before, the event shared the layout of its class. */
struct trace_event_raw_sched_process_exit {
	struct trace_entry ent;
	bool group_dead;
};

#pragma clang attribute pop

#endif
