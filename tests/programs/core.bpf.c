// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Proves: every kind of CO-RE relocation against the kernel's own types gives
 * what the kernel has, and accesses that cannot be resolved do no harm as
 * long as an existence check keeps them from being reached.
 */
#include "vmlinux.h"

LICENSE;

/* Set before load. Zero: not checked. */
const volatile __u32 expect_ppid = 0;
const volatile __u32 expect_task_struct_size = 0;
const volatile __u32 expect_task_struct_id = 0;
/* Set while running: what the calling thread has set on itself. */
__u32 expect_reset_on_fork = 0;

#pragma clang attribute push(__attribute__((preserve_access_index)),           \
			     apply_to = record)

/* Suffixes after three underscores are no part of the kernel's name. */
struct task_struct___absent {
	int no_such_field;
	struct task_struct___absent *no_such_task;
	__u64 no_such_bits : 3;
};

/* Same field, other width: reads must follow the kernel's four bytes. */
struct task_struct___wide {
	__u64 tgid;
};

/* A type the kernel does not have. */
struct no_such_struct {
	int field;
};

/* As the kernel has it, and with a member it does not have. */
struct list_head___same {
	struct list_head___same *next, *prev;
};
struct list_head___more {
	struct list_head___more *next, *prev, *more;
};

/* A program's context, members in another order and of another width. */
struct __sk_buff___shuffled {
	__u32 mark;
	__u64 len;
	__u32 no_such_field;
};

/* A type that the compiler would otherwise not know. */
struct callback_head {
	struct callback_head *next;
	void (*func)(struct callback_head *);
};

#pragma clang attribute pop

union bpf_attr {
	int unused;
};

/* Values differ from the kernel's on purpose. */
enum bpf_map_type {
	NOT_IN_THE_KERNEL = 1000,
};
#undef BPF_MAP_TYPE_HASH
#undef BPF_MAP_TYPE_RINGBUF
enum bpf_map_type___local {
	BPF_MAP_TYPE_HASH = 2001,
	BPF_MAP_TYPE_RINGBUF = 2027,
	BPF_MAP_TYPE_NO_SUCH = 2999,
};
enum no_such_enum {
	NO_SUCH_ENUMERATOR = 1,
};

typedef struct no_such_struct no_such_typedef;

static __always_inline struct task_struct *current(void)
{
	return (void *)bpf_get_current_task();
}

SEC("raw_tp/sched_process_exec")
int core_fields(void *ctx)
{
	struct task_struct *task = current();
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	char comm[TASK_COMM_LEN], other[TASK_COMM_LEN];
	__u32 ppid, uid;
	int i;

	/* Offsets. */
	CHECK((__u32)CORE_READ(task, pid) == (__u32)pid_tgid);
	CHECK(CORE_READ(task, tgid) == pid_tgid >> 32);
	CHECK(CORE_READ(task, group_leader, pid) == pid_tgid >> 32);
	CHECK(CORE_READ(task, group_leader, group_leader, tgid) ==
	      pid_tgid >> 32);
	ppid = CORE_READ(task, real_parent, tgid);
	CHECK(expect_ppid == 0 || ppid == expect_ppid);
	uid = CORE_READ(task, real_cred, uid.val);
	CHECK(uid == (__u32)bpf_get_current_uid_gid());
	CHECK(CORE_READ(task, signal, live.counter) > 0);
	CHECK(bpf_core_field_offset(task->pid) + 4 ==
	      bpf_core_field_offset(task->tgid));
	/* An element of an array, and the whole of it. */
	CHECK(bpf_core_field_offset(task->comm[5]) ==
	      bpf_core_field_offset(task->comm) + 5);
	CHECK(core_read(&comm, &task->comm) == 0);
	CHECK(bpf_get_current_comm(other, sizeof(other)) == 0);
	for (i = 0; i < TASK_COMM_LEN && other[i]; i++)
		CHECK(comm[i] == other[i]);

	/* Sizes. */
	CHECK(bpf_core_field_size(task->comm) == TASK_COMM_LEN);
	CHECK(bpf_core_field_size(task->pid) == 4);
	CHECK(bpf_core_field_size(task->start_time) == 8);
	CHECK(bpf_core_field_size(task->real_parent) == sizeof(void *));
	CHECK(bpf_core_field_size(task->tasks) == 2 * sizeof(void *));

	/* Signedness. */
	CHECK(bpf_core_field_signed(task->pid) == 1);
	CHECK(bpf_core_field_signed(task->exit_code) == 1);
	CHECK(bpf_core_field_signed(task->flags) == 0);
	CHECK(bpf_core_field_signed(task->start_time) == 0);

	/* Existence. */
	CHECK(bpf_core_field_exists(task->tgid) == 1);
	CHECK(bpf_core_field_exists(task->signal->live.counter) == 1);
	CHECK(bpf_core_field_exists(
		      core_field(struct no_such_struct, field)) == 0);
	return 0;
}

SEC("raw_tp/sched_process_exec")
int core_bitfields(void *ctx)
{
	struct task_struct *task = current();
	__u32 left, right;

	/* One bit wide: both shifts together leave one of 64. */
	left = bpf_core_field_lshift(task->sched_reset_on_fork);
	right = bpf_core_field_rshift(task->sched_reset_on_fork);
	CHECK(right == 63);
	CHECK(left < 64);
	CHECK(bpf_core_field_signed(task->sched_reset_on_fork) == 0);
	CHECK(CORE_READ_BITFIELD(task, sched_reset_on_fork) ==
	      READ_ONCE(expect_reset_on_fork));
	/* Ordinary fields have shifts, too. */
	CHECK(bpf_core_field_lshift(task->pid) == 32);
	CHECK(bpf_core_field_rshift(task->pid) == 32);
	CHECK((__u32)CORE_READ_BITFIELD(task, tgid) ==
	      bpf_get_current_pid_tgid() >> 32);
	CHECK(bpf_core_field_lshift(task->start_time) == 0);
	CHECK(bpf_core_field_rshift(task->start_time) == 0);
	return 0;
}

SEC("raw_tp/sched_process_exec")
int core_types(void *ctx)
{
	CHECK(bpf_core_type_exists(struct task_struct) == 1);
	CHECK(bpf_core_type_exists(union bpf_attr) == 1);
	CHECK(bpf_core_type_exists(enum bpf_map_type) == 1);
	CHECK(bpf_core_type_exists(pid_t) == 1);
	CHECK(bpf_core_type_exists(atomic_t) == 1);
	CHECK(bpf_core_type_exists(struct no_such_struct) == 0);
	CHECK(bpf_core_type_exists(no_such_typedef) == 0);
	CHECK(bpf_core_type_exists(enum no_such_enum) == 0);

	CHECK(bpf_core_type_size(struct list_head) == 2 * sizeof(void *));
	CHECK(bpf_core_type_size(struct callback_head) == 2 * sizeof(void *));
	CHECK(bpf_core_type_size(pid_t) == 4);
	CHECK(bpf_core_type_size(atomic_t) == 4);
	/* Without its kernel's definition the local one is smaller. */
	CHECK(bpf_core_type_size(struct task_struct) >
	      sizeof(struct task_struct));
	CHECK(expect_task_struct_size == 0 ||
	      bpf_core_type_size(struct task_struct) ==
		      expect_task_struct_size);
	CHECK(bpf_core_type_size(struct no_such_struct) == 0);

	CHECK(bpf_core_type_id_local(struct task_struct) != 0);
	CHECK(bpf_core_type_id_kernel(struct task_struct) != 0);
	CHECK(expect_task_struct_id == 0 ||
	      (__u32)bpf_core_type_id_kernel(struct task_struct) ==
		      expect_task_struct_id);
	CHECK(bpf_core_type_id_kernel(struct no_such_struct) == 0);

	CHECK(bpf_core_type_matches(struct list_head___same) == 1);
	CHECK(bpf_core_type_matches(struct list_head___more) == 0);
	CHECK(bpf_core_type_matches(struct no_such_struct) == 0);
	return 0;
}

SEC("raw_tp/sched_process_exec")
int core_enums(void *ctx)
{
	CHECK(bpf_core_enum_value_exists(enum bpf_map_type___local,
					 BPF_MAP_TYPE_HASH) == 1);
	CHECK(bpf_core_enum_value(enum bpf_map_type___local,
				  BPF_MAP_TYPE_HASH) == 1);
	CHECK(bpf_core_enum_value(enum bpf_map_type___local,
				  BPF_MAP_TYPE_RINGBUF) == 27);
	CHECK(bpf_core_enum_value_exists(enum bpf_map_type___local,
					 BPF_MAP_TYPE_NO_SUCH) == 0);
	CHECK(bpf_core_enum_value_exists(enum no_such_enum,
					 NO_SUCH_ENUMERATOR) == 0);
	return 0;
}

/* Poisoned instructions, none of them reached. */
SEC("raw_tp/sched_process_exec")
int core_guarded(void *ctx)
{
	struct task_struct___absent *absent = (void *)current();
	struct task_struct___wide *wide = (void *)current();
	struct no_such_struct *none = (void *)current();
	__u64 tgid = 0;

	if (bpf_core_field_exists(absent->no_such_field))
		CHECK(CORE_READ(absent, no_such_field) < 0);
	if (bpf_core_field_exists(absent->no_such_task))
		CHECK(CORE_READ(absent, no_such_task, no_such_field) < 0);
	if (bpf_core_field_exists(absent->no_such_bits))
		CHECK(CORE_READ_BITFIELD(absent, no_such_bits) > 7);
	if (bpf_core_type_exists(struct no_such_struct))
		CHECK(CORE_READ(none, field) < 0);
	if (bpf_core_enum_value_exists(enum bpf_map_type___local,
				       BPF_MAP_TYPE_NO_SUCH))
		CHECK(bpf_core_enum_value(enum bpf_map_type___local,
					  BPF_MAP_TYPE_NO_SUCH) == 1);

	/* Eight bytes here, four there: as many are read as exist. */
	CHECK(bpf_core_field_size(wide->tgid) == 4);
	bpf_probe_read_kernel(&tgid, bpf_core_field_size(wide->tgid),
			      __builtin_preserve_access_index(&wide->tgid));
	CHECK(tgid == bpf_get_current_pid_tgid() >> 32);
	return 0;
}

/* Here the relocation changes a load: its offset, and its width from 8 to 4. */
SEC("tc")
int core_context(struct __sk_buff *ctx)
{
	struct __sk_buff___shuffled *skb = (void *)ctx;

	CHECK(skb->len == ctx->len);
	CHECK(skb->mark == ctx->mark);
	if (bpf_core_field_exists(skb->no_such_field))
		CHECK(skb->no_such_field == 1);
	/* A store of four bytes. */
	skb->mark = 0x1234;
	CHECK(READ_ONCE(ctx->mark) == 0x1234);
	return 0;
}
