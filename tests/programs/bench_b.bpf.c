// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * For measuring CO-RE: 20 programs, each with about 20 field relocations, of
 * kernel types in four groups. Requires at least Linux 5.5. Every field is in
 * kernels 5.10 to 7.2.
 */
#include "bpf.h"

LICENSE;

#pragma clang attribute push(__attribute__((preserve_access_index)),           \
			     apply_to = record)

struct list_head {
	struct list_head *next, *prev;
};

struct cred {
	__u32 securebits;
	void *user;
	void *user_ns;
	void *group_info;
};

struct signal_struct {
	__u32 flags;
	int group_exit_code;
	__u64 utime, stime;
};

struct mm_struct {
	__u64 start_code, end_code, start_data, end_data;
	__u64 start_brk, brk, start_stack;
	__u64 arg_start, arg_end, env_start, env_end;
	__u64 task_size, total_vm, stack_vm, data_vm, exec_vm;
	int map_count;
	void *pgd, *binfmt, *exe_file;
};

struct task_struct {
	__u32 flags;
	int prio, static_prio, normal_prio;
	int exit_code, exit_signal, pdeath_signal;
	int pid, tgid;
	struct task_struct *real_parent, *parent, *group_leader;
	__u64 start_time, utime, stime, nvcsw, nivcsw;
	struct mm_struct *mm;
	struct signal_struct *signal;
	const struct cred *real_cred;
	struct list_head tasks;
};

struct sock_common {
	__u16 skc_num, skc_dport, skc_family;
	__u32 skc_daddr, skc_rcv_saddr, skc_hash;
	__u8 skc_state;
	int skc_bound_dev_if;
};

struct sock {
	struct sock_common __sk_common;
	int sk_rcvbuf, sk_sndbuf;
	int sk_err;
	__u16 sk_type, sk_protocol;
	void *sk_socket, *sk_user_data;
};

struct sk_buff {
	__u32 len, data_len, hash, priority;
	__u16 mac_len, hdr_len, protocol, transport_header, network_header;
	__u8 *head, *data;
	struct sock *sk;
};

struct super_block {
	__u64 s_blocksize, s_magic, s_flags;
	void *s_root, *s_type;
};

struct inode {
	__u64 i_ino;
	__u16 i_mode;
	__u32 i_flags;
	__s64 i_size;
	__u64 i_blocks;
	struct super_block *i_sb;
};

struct dentry {
	__u32 d_flags;
	struct dentry *d_parent;
	struct inode *d_inode;
	struct super_block *d_sb;
};

struct path {
	void *mnt;
	struct dentry *dentry;
};

struct file {
	__u32 f_flags;
	__s64 f_pos;
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
};

#pragma clang attribute pop

/* Reads a field and adds it to what the program returns. */
#define READ(object, field)                                                    \
	({                                                                     \
		typeof((object)->field) value = 0;                             \
		bpf_probe_read_kernel((void *)&value, sizeof(value),           \
				      &(object)->field);                       \
		sum += (__u64)value;                                           \
		value;                                                         \
	})

#define TASK(number)                                                           \
	SEC("raw_tracepoint/sched_switch")                                     \
	int task_##number(__u64 *ctx)                                          \
	{                                                                      \
		struct task_struct *task = (void *)ctx[1];                     \
		struct signal_struct *signal;                                  \
		const struct cred *cred;                                       \
		__u64 sum = number;                                            \
									       \
		READ(task, flags);                                             \
		READ(task, prio);                                              \
		READ(task, static_prio);                                       \
		READ(task, normal_prio);                                       \
		READ(task, exit_code);                                         \
		READ(task, exit_signal);                                       \
		READ(task, pid);                                               \
		READ(task, tgid);                                              \
		READ(task, start_time);                                        \
		READ(task, utime);                                             \
		READ(task, stime);                                             \
		READ(task, nvcsw);                                             \
		READ(task, real_parent);                                       \
		READ(task, tasks.next);                                        \
		signal = READ(task, signal);                                   \
		cred = READ(task, real_cred);                                  \
		READ(signal, flags);                                           \
		READ(signal, group_exit_code);                                 \
		READ(cred, securebits);                                        \
		READ(cred, user_ns);                                           \
		return sum;                                                    \
	}

#define MEMORY(number)                                                         \
	SEC("raw_tracepoint/sched_switch")                                     \
	int memory_##number(__u64 *ctx)                                        \
	{                                                                      \
		struct task_struct *task = (void *)ctx[1];                     \
		struct mm_struct *mm;                                          \
		__u64 sum = number;                                            \
									       \
		mm = READ(task, mm);                                           \
		READ(mm, start_code);                                          \
		READ(mm, end_code);                                            \
		READ(mm, start_data);                                          \
		READ(mm, end_data);                                            \
		READ(mm, start_brk);                                           \
		READ(mm, brk);                                                 \
		READ(mm, start_stack);                                         \
		READ(mm, arg_start);                                           \
		READ(mm, arg_end);                                             \
		READ(mm, env_start);                                           \
		READ(mm, env_end);                                             \
		READ(mm, task_size);                                           \
		READ(mm, total_vm);                                            \
		READ(mm, stack_vm);                                            \
		READ(mm, data_vm);                                             \
		READ(mm, exec_vm);                                             \
		READ(mm, map_count);                                           \
		READ(mm, pgd);                                                 \
		READ(mm, exe_file);                                            \
		return sum;                                                    \
	}

#define NETWORK(number)                                                        \
	SEC("raw_tracepoint/kfree_skb")                                        \
	int network_##number(__u64 *ctx)                                       \
	{                                                                      \
		struct sk_buff *skb = (void *)ctx[0];                          \
		struct sock *sk;                                               \
		__u64 sum = number;                                            \
									       \
		READ(skb, len);                                                \
		READ(skb, data_len);                                           \
		READ(skb, hash);                                               \
		READ(skb, priority);                                           \
		READ(skb, mac_len);                                            \
		READ(skb, protocol);                                           \
		READ(skb, transport_header);                                   \
		READ(skb, network_header);                                     \
		READ(skb, head);                                               \
		READ(skb, data);                                               \
		sk = READ(skb, sk);                                            \
		READ(sk, __sk_common.skc_num);                                 \
		READ(sk, __sk_common.skc_dport);                               \
		READ(sk, __sk_common.skc_family);                              \
		READ(sk, __sk_common.skc_daddr);                               \
		READ(sk, __sk_common.skc_rcv_saddr);                           \
		READ(sk, sk_rcvbuf);                                           \
		READ(sk, sk_sndbuf);                                           \
		READ(sk, sk_type);                                             \
		READ(sk, sk_protocol);                                         \
		return sum;                                                    \
	}

#define FILES(number)                                                          \
	SEC("raw_tracepoint/sys_enter")                                        \
	int files_##number(__u64 *ctx)                                         \
	{                                                                      \
		struct file *file = (void *)ctx[0];                            \
		struct super_block *sb;                                        \
		struct dentry *dentry;                                         \
		struct inode *inode;                                           \
		__u64 sum = number;                                            \
									       \
		READ(file, f_flags);                                           \
		READ(file, f_pos);                                             \
		READ(file, f_path.mnt);                                        \
		READ(file, private_data);                                      \
		dentry = READ(file, f_path.dentry);                            \
		inode = READ(file, f_inode);                                   \
		READ(dentry, d_flags);                                         \
		READ(dentry, d_parent);                                        \
		READ(dentry, d_inode);                                         \
		READ(inode, i_ino);                                            \
		READ(inode, i_mode);                                           \
		READ(inode, i_flags);                                          \
		READ(inode, i_size);                                           \
		READ(inode, i_blocks);                                         \
		sb = READ(inode, i_sb);                                        \
		READ(sb, s_blocksize);                                         \
		READ(sb, s_magic);                                             \
		READ(sb, s_flags);                                             \
		READ(sb, s_root);                                              \
		READ(sb, s_type);                                              \
		return sum;                                                    \
	}

#define FIVE(group) group(1) group(2) group(3) group(4) group(5)

FIVE(TASK)
FIVE(MEMORY)
FIVE(NETWORK)
FIVE(FILES)
