//! Numbers of bpf(2): commands, object types, attach types and flags.
//!
//! Kernel enumerations are newtypes: a value this crate does not know passes
//! through unharmed and prints as its number.

use std::fmt;

use bitflags::bitflags;

use super::pod::Pod;

macro_rules! kernel_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:expr, $text:literal;)* }) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub u32);

        #[allow(missing_docs, reason = "the kernel's own names; the kernel's documentation applies")]
        impl $name {
            $($(#[$vmeta])* pub const $variant: $name = $name($value);)*

            /// Every value this crate knows, in the kernel's order.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The name bpftool uses, or `None` for a value not known here.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }

        // SAFETY: transparent over `u32`, and every value is valid.
        unsafe impl Pod for $name {}

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, "{}", self.0),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

kernel_enum! {
    /// `enum bpf_map_type`.
    MapType {
        UNSPEC = 0, "unspec";
        HASH = 1, "hash";
        ARRAY = 2, "array";
        PROG_ARRAY = 3, "prog_array";
        PERF_EVENT_ARRAY = 4, "perf_event_array";
        PERCPU_HASH = 5, "percpu_hash";
        PERCPU_ARRAY = 6, "percpu_array";
        STACK_TRACE = 7, "stack_trace";
        CGROUP_ARRAY = 8, "cgroup_array";
        LRU_HASH = 9, "lru_hash";
        LRU_PERCPU_HASH = 10, "lru_percpu_hash";
        LPM_TRIE = 11, "lpm_trie";
        ARRAY_OF_MAPS = 12, "array_of_maps";
        HASH_OF_MAPS = 13, "hash_of_maps";
        DEVMAP = 14, "devmap";
        SOCKMAP = 15, "sockmap";
        CPUMAP = 16, "cpumap";
        XSKMAP = 17, "xskmap";
        SOCKHASH = 18, "sockhash";
        CGROUP_STORAGE = 19, "cgroup_storage";
        REUSEPORT_SOCKARRAY = 20, "reuseport_sockarray";
        PERCPU_CGROUP_STORAGE = 21, "percpu_cgroup_storage";
        QUEUE = 22, "queue";
        STACK = 23, "stack";
        SK_STORAGE = 24, "sk_storage";
        DEVMAP_HASH = 25, "devmap_hash";
        STRUCT_OPS = 26, "struct_ops";
        RINGBUF = 27, "ringbuf";
        INODE_STORAGE = 28, "inode_storage";
        TASK_STORAGE = 29, "task_storage";
        BLOOM_FILTER = 30, "bloom_filter";
        USER_RINGBUF = 31, "user_ringbuf";
        CGRP_STORAGE = 32, "cgrp_storage";
        ARENA = 33, "arena";
        INSN_ARRAY = 34, "insn_array";
    }
}

kernel_enum! {
    /// `enum bpf_prog_type`.
    ProgramType {
        UNSPEC = 0, "unspec";
        SOCKET_FILTER = 1, "socket_filter";
        KPROBE = 2, "kprobe";
        SCHED_CLS = 3, "sched_cls";
        SCHED_ACT = 4, "sched_act";
        TRACEPOINT = 5, "tracepoint";
        XDP = 6, "xdp";
        PERF_EVENT = 7, "perf_event";
        CGROUP_SKB = 8, "cgroup_skb";
        CGROUP_SOCK = 9, "cgroup_sock";
        LWT_IN = 10, "lwt_in";
        LWT_OUT = 11, "lwt_out";
        LWT_XMIT = 12, "lwt_xmit";
        SOCK_OPS = 13, "sock_ops";
        SK_SKB = 14, "sk_skb";
        CGROUP_DEVICE = 15, "cgroup_device";
        SK_MSG = 16, "sk_msg";
        RAW_TRACEPOINT = 17, "raw_tracepoint";
        CGROUP_SOCK_ADDR = 18, "cgroup_sock_addr";
        LWT_SEG6LOCAL = 19, "lwt_seg6local";
        LIRC_MODE2 = 20, "lirc_mode2";
        SK_REUSEPORT = 21, "sk_reuseport";
        FLOW_DISSECTOR = 22, "flow_dissector";
        CGROUP_SYSCTL = 23, "cgroup_sysctl";
        RAW_TRACEPOINT_WRITABLE = 24, "raw_tracepoint_writable";
        CGROUP_SOCKOPT = 25, "cgroup_sockopt";
        TRACING = 26, "tracing";
        STRUCT_OPS = 27, "struct_ops";
        EXT = 28, "ext";
        LSM = 29, "lsm";
        SK_LOOKUP = 30, "sk_lookup";
        SYSCALL = 31, "syscall";
        NETFILTER = 32, "netfilter";
    }
}

kernel_enum! {
    /// `enum bpf_attach_type`.
    AttachType {
        CGROUP_INET_INGRESS = 0, "cgroup_inet_ingress";
        CGROUP_INET_EGRESS = 1, "cgroup_inet_egress";
        CGROUP_INET_SOCK_CREATE = 2, "cgroup_inet_sock_create";
        CGROUP_SOCK_OPS = 3, "cgroup_sock_ops";
        SK_SKB_STREAM_PARSER = 4, "sk_skb_stream_parser";
        SK_SKB_STREAM_VERDICT = 5, "sk_skb_stream_verdict";
        CGROUP_DEVICE = 6, "cgroup_device";
        SK_MSG_VERDICT = 7, "sk_msg_verdict";
        CGROUP_INET4_BIND = 8, "cgroup_inet4_bind";
        CGROUP_INET6_BIND = 9, "cgroup_inet6_bind";
        CGROUP_INET4_CONNECT = 10, "cgroup_inet4_connect";
        CGROUP_INET6_CONNECT = 11, "cgroup_inet6_connect";
        CGROUP_INET4_POST_BIND = 12, "cgroup_inet4_post_bind";
        CGROUP_INET6_POST_BIND = 13, "cgroup_inet6_post_bind";
        CGROUP_UDP4_SENDMSG = 14, "cgroup_udp4_sendmsg";
        CGROUP_UDP6_SENDMSG = 15, "cgroup_udp6_sendmsg";
        LIRC_MODE2 = 16, "lirc_mode2";
        FLOW_DISSECTOR = 17, "flow_dissector";
        CGROUP_SYSCTL = 18, "cgroup_sysctl";
        CGROUP_UDP4_RECVMSG = 19, "cgroup_udp4_recvmsg";
        CGROUP_UDP6_RECVMSG = 20, "cgroup_udp6_recvmsg";
        CGROUP_GETSOCKOPT = 21, "cgroup_getsockopt";
        CGROUP_SETSOCKOPT = 22, "cgroup_setsockopt";
        TRACE_RAW_TP = 23, "trace_raw_tp";
        TRACE_FENTRY = 24, "trace_fentry";
        TRACE_FEXIT = 25, "trace_fexit";
        MODIFY_RETURN = 26, "modify_return";
        LSM_MAC = 27, "lsm_mac";
        TRACE_ITER = 28, "trace_iter";
        CGROUP_INET4_GETPEERNAME = 29, "cgroup_inet4_getpeername";
        CGROUP_INET6_GETPEERNAME = 30, "cgroup_inet6_getpeername";
        CGROUP_INET4_GETSOCKNAME = 31, "cgroup_inet4_getsockname";
        CGROUP_INET6_GETSOCKNAME = 32, "cgroup_inet6_getsockname";
        XDP_DEVMAP = 33, "xdp_devmap";
        CGROUP_INET_SOCK_RELEASE = 34, "cgroup_inet_sock_release";
        XDP_CPUMAP = 35, "xdp_cpumap";
        SK_LOOKUP = 36, "sk_lookup";
        XDP = 37, "xdp";
        SK_SKB_VERDICT = 38, "sk_skb_verdict";
        SK_REUSEPORT_SELECT = 39, "sk_reuseport_select";
        SK_REUSEPORT_SELECT_OR_MIGRATE = 40, "sk_reuseport_select_or_migrate";
        PERF_EVENT = 41, "perf_event";
        TRACE_KPROBE_MULTI = 42, "trace_kprobe_multi";
        LSM_CGROUP = 43, "lsm_cgroup";
        STRUCT_OPS = 44, "struct_ops";
        NETFILTER = 45, "netfilter";
        TCX_INGRESS = 46, "tcx_ingress";
        TCX_EGRESS = 47, "tcx_egress";
        TRACE_UPROBE_MULTI = 48, "trace_uprobe_multi";
        CGROUP_UNIX_CONNECT = 49, "cgroup_unix_connect";
        CGROUP_UNIX_SENDMSG = 50, "cgroup_unix_sendmsg";
        CGROUP_UNIX_RECVMSG = 51, "cgroup_unix_recvmsg";
        CGROUP_UNIX_GETPEERNAME = 52, "cgroup_unix_getpeername";
        CGROUP_UNIX_GETSOCKNAME = 53, "cgroup_unix_getsockname";
        NETKIT_PRIMARY = 54, "netkit_primary";
        NETKIT_PEER = 55, "netkit_peer";
        TRACE_KPROBE_SESSION = 56, "trace_kprobe_session";
        TRACE_UPROBE_SESSION = 57, "trace_uprobe_session";
        TRACE_FSESSION = 58, "trace_fsession";
    }
}

kernel_enum! {
    /// `enum bpf_link_type`.
    LinkType {
        UNSPEC = 0, "unspec";
        RAW_TRACEPOINT = 1, "raw_tracepoint";
        TRACING = 2, "tracing";
        CGROUP = 3, "cgroup";
        ITER = 4, "iter";
        NETNS = 5, "netns";
        XDP = 6, "xdp";
        PERF_EVENT = 7, "perf_event";
        KPROBE_MULTI = 8, "kprobe_multi";
        STRUCT_OPS = 9, "struct_ops";
        NETFILTER = 10, "netfilter";
        TCX = 11, "tcx";
        UPROBE_MULTI = 12, "uprobe_multi";
        NETKIT = 13, "netkit";
        SOCKMAP = 14, "sockmap";
    }
}

kernel_enum! {
    /// `enum bpf_cmd`.
    Command {
        MAP_CREATE = 0, "bpf(BPF_MAP_CREATE)";
        MAP_LOOKUP_ELEM = 1, "bpf(BPF_MAP_LOOKUP_ELEM)";
        MAP_UPDATE_ELEM = 2, "bpf(BPF_MAP_UPDATE_ELEM)";
        MAP_DELETE_ELEM = 3, "bpf(BPF_MAP_DELETE_ELEM)";
        MAP_GET_NEXT_KEY = 4, "bpf(BPF_MAP_GET_NEXT_KEY)";
        PROG_LOAD = 5, "bpf(BPF_PROG_LOAD)";
        OBJ_PIN = 6, "bpf(BPF_OBJ_PIN)";
        OBJ_GET = 7, "bpf(BPF_OBJ_GET)";
        PROG_ATTACH = 8, "bpf(BPF_PROG_ATTACH)";
        PROG_DETACH = 9, "bpf(BPF_PROG_DETACH)";
        PROG_TEST_RUN = 10, "bpf(BPF_PROG_TEST_RUN)";
        PROG_GET_NEXT_ID = 11, "bpf(BPF_PROG_GET_NEXT_ID)";
        MAP_GET_NEXT_ID = 12, "bpf(BPF_MAP_GET_NEXT_ID)";
        PROG_GET_FD_BY_ID = 13, "bpf(BPF_PROG_GET_FD_BY_ID)";
        MAP_GET_FD_BY_ID = 14, "bpf(BPF_MAP_GET_FD_BY_ID)";
        OBJ_GET_INFO_BY_FD = 15, "bpf(BPF_OBJ_GET_INFO_BY_FD)";
        PROG_QUERY = 16, "bpf(BPF_PROG_QUERY)";
        RAW_TRACEPOINT_OPEN = 17, "bpf(BPF_RAW_TRACEPOINT_OPEN)";
        BTF_LOAD = 18, "bpf(BPF_BTF_LOAD)";
        BTF_GET_FD_BY_ID = 19, "bpf(BPF_BTF_GET_FD_BY_ID)";
        TASK_FD_QUERY = 20, "bpf(BPF_TASK_FD_QUERY)";
        MAP_LOOKUP_AND_DELETE_ELEM = 21, "bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM)";
        MAP_FREEZE = 22, "bpf(BPF_MAP_FREEZE)";
        BTF_GET_NEXT_ID = 23, "bpf(BPF_BTF_GET_NEXT_ID)";
        MAP_LOOKUP_BATCH = 24, "bpf(BPF_MAP_LOOKUP_BATCH)";
        MAP_LOOKUP_AND_DELETE_BATCH = 25, "bpf(BPF_MAP_LOOKUP_AND_DELETE_BATCH)";
        MAP_UPDATE_BATCH = 26, "bpf(BPF_MAP_UPDATE_BATCH)";
        MAP_DELETE_BATCH = 27, "bpf(BPF_MAP_DELETE_BATCH)";
        LINK_CREATE = 28, "bpf(BPF_LINK_CREATE)";
        LINK_UPDATE = 29, "bpf(BPF_LINK_UPDATE)";
        LINK_GET_FD_BY_ID = 30, "bpf(BPF_LINK_GET_FD_BY_ID)";
        LINK_GET_NEXT_ID = 31, "bpf(BPF_LINK_GET_NEXT_ID)";
        ENABLE_STATS = 32, "bpf(BPF_ENABLE_STATS)";
        ITER_CREATE = 33, "bpf(BPF_ITER_CREATE)";
        LINK_DETACH = 34, "bpf(BPF_LINK_DETACH)";
        PROG_BIND_MAP = 35, "bpf(BPF_PROG_BIND_MAP)";
        TOKEN_CREATE = 36, "bpf(BPF_TOKEN_CREATE)";
        PROG_STREAM_READ_BY_FD = 37, "bpf(BPF_PROG_STREAM_READ_BY_FD)";
    }
}

bitflags! {
    /// Flags of `BPF_MAP_CREATE`; bits not named here are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct MapFlags: u32 {
        /// Allocate elements on demand.
        const NO_PREALLOC = 1 << 0;
        /// Per-CPU LRU lists.
        const NO_COMMON_LRU = 1 << 1;
        /// `numa_node` is set.
        const NUMA_NODE = 1 << 2;
        /// User space may only read.
        const RDONLY = 1 << 3;
        /// User space may only write.
        const WRONLY = 1 << 4;
        /// Stack traces as build id and offset.
        const STACK_BUILD_ID = 1 << 5;
        /// Seed hashes with zero, for tests.
        const ZERO_SEED = 1 << 6;
        /// Programs may only read. Linux 5.2.
        const RDONLY_PROG = 1 << 7;
        /// Programs may only write. Linux 5.2.
        const WRONLY_PROG = 1 << 8;
        /// Storage is inherited by accepted sockets.
        const CLONE = 1 << 9;
        /// Array values may be mapped. Linux 5.5.
        const MMAPABLE = 1 << 10;
        /// Perf event arrays keep their events. Linux 5.10.
        const PRESERVE_ELEMS = 1 << 11;
        /// Inner maps may differ in size. Linux 5.10.
        const INNER_MAP = 1 << 12;
        /// Struct-ops map is attached by a link. Linux 6.4.
        const LINK = 1 << 13;
        /// `map_token_fd`/`value_type_btf_obj_fd` names a BTF. Linux 6.9.
        const VTYPE_BTF_OBJ_FD = 1 << 15;
        /// `map_token_fd` is set. Linux 6.9.
        const TOKEN_FD = 1 << 16;
        /// Faults outside an arena's pages are errors. Linux 6.9.
        const SEGV_ON_FAULT = 1 << 17;
        /// Arena is not mapped into user space. Linux 6.9.
        const NO_USER_CONV = 1 << 18;
        /// Ring buffer whose oldest records make room for new ones. Linux 6.19.
        const RB_OVERWRITE = 1 << 19;
        const _ = !0;
    }
}

bitflags! {
    /// Flags of `BPF_PROG_LOAD`; bits not named here are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct ProgramFlags: u32 {
        /// Insist on aligned accesses.
        const STRICT_ALIGNMENT = 1 << 0;
        /// Allow unaligned accesses everywhere.
        const ANY_ALIGNMENT = 1 << 1;
        /// Test zero extension of 32-bit registers.
        const TEST_RND_HI32 = 1 << 2;
        /// Test verifier state frequency.
        const TEST_STATE_FREQ = 1 << 3;
        /// The program may sleep. Linux 5.10.
        const SLEEPABLE = 1 << 4;
        /// XDP program handles fragments. Linux 5.18.
        const XDP_HAS_FRAGS = 1 << 5;
        /// XDP program is bound to a device. Linux 6.3.
        const XDP_DEV_BOUND_ONLY = 1 << 6;
        /// Fail on verifier register invariant violations. Linux 6.8.
        const TEST_REG_INVARIANTS = 1 << 7;
        /// `prog_token_fd` is set. Linux 6.9.
        const TOKEN_FD = 1 << 16;
        const _ = !0;
    }
}

kernel_enum! {
    /// `enum bpf_task_fd_type`: what a perf event or tracepoint descriptor is.
    TaskFdType {
        RAW_TRACEPOINT = 0, "raw_tracepoint";
        TRACEPOINT = 1, "tracepoint";
        KPROBE = 2, "kprobe";
        KRETPROBE = 3, "kretprobe";
        UPROBE = 4, "uprobe";
        URETPROBE = 5, "uretprobe";
    }
}

kernel_enum! {
    /// `enum bpf_perf_event_type`: what a perf event link sits on. Linux 6.6.
    PerfLinkType {
        UNSPEC = 0, "unspec";
        UPROBE = 1, "uprobe";
        URETPROBE = 2, "uretprobe";
        KPROBE = 3, "kprobe";
        KRETPROBE = 4, "kretprobe";
        TRACEPOINT = 5, "tracepoint";
        EVENT = 6, "event";
    }
}

kernel_enum! {
    /// `enum bpf_cgroup_iter_order`. Linux 6.1.
    CgroupIterOrder {
        UNSPEC = 0, "unspec";
        SELF_ONLY = 1, "self_only";
        DESCENDANTS_PRE = 2, "descendants_pre";
        DESCENDANTS_POST = 3, "descendants_post";
        ANCESTORS_UP = 4, "ancestors_up";
    }
}

kernel_enum! {
    /// `enum bpf_stats_type`. Linux 5.8.
    StatsType {
        RUN_TIME = 0, "run_time";
    }
}

bitflags! {
    /// Flags of the map element commands; bits not named here are kept. No
    /// flag (`BPF_ANY`) creates or replaces.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct ElemFlags: u64 {
        /// Only create; `EEXIST` otherwise.
        const NOEXIST = 1 << 0;
        /// Only replace; `ENOENT` otherwise.
        const EXIST = 1 << 1;
        /// Hold the value's `bpf_spin_lock` while copying. Linux 5.1.
        const LOCK = 1 << 2;
        const _ = !0;
    }
}

bitflags! {
    /// Flags of `BPF_PROG_ATTACH`, and of `BPF_LINK_CREATE` where programs of
    /// one hook are ordered; bits not named here are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct AttachFlags: u32 {
        /// Programs of child cgroups replace this one.
        const ALLOW_OVERRIDE = 1 << 0;
        /// Runs beside others of the same cgroup. Linux 4.15.
        const ALLOW_MULTI = 1 << 1;
        /// Replaces one named program. Linux 5.6.
        const REPLACE = 1 << 2;
        /// In front of the named program or link, or of all. Linux 6.6.
        const BEFORE = 1 << 3;
        /// Behind the named program or link, or behind all. Linux 6.6.
        const AFTER = 1 << 4;
        /// The neighbour is named by id. Linux 6.6.
        const ID = 1 << 5;
        /// Runs before programs of child cgroups. Linux 6.15.
        const PREORDER = 1 << 6;
        /// The neighbour is a link. Linux 6.6.
        const LINK = 1 << 13;
        const _ = !0;
    }
}

bitflags! {
    /// Flags of `BPF_PROG_TEST_RUN`; bits not named here are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct TestRunFlags: u32 {
        /// Run a raw tracepoint program on the CPU named. Linux 5.10.
        const RUN_ON_CPU = 1 << 0;
        /// Send what an XDP program lets pass into the stack. Linux 5.18.
        const XDP_LIVE_FRAMES = 1 << 1;
        /// The packet's checksum is complete. Linux 6.10.
        const SKB_CHECKSUM_COMPLETE = 1 << 2;
        const _ = !0;
    }
}

/// Verbosity of the verifier and BTF logs: a level, which may be combined
/// with the bits [`STATS`](log_level::STATS) and [`FIXED`](log_level::FIXED).
pub mod log_level {
    /// Explains a rejection, with the path that led to it.
    pub const BASIC: u32 = 1;
    /// Every instruction on every path.
    pub const VERBOSE: u32 = 2;
    /// Counts of processed instructions and states. Linux 5.2.
    pub const STATS: u32 = 4;
    /// Keeps the start of a log that does not fit, where kernels from 6.4 on
    /// keep its end. Linux 6.4.
    pub const FIXED: u32 = 8;
}

/// `BPF_F_PATH_FD`: a pin path is relative to a directory descriptor. Linux 6.5.
pub const F_PATH_FD: u32 = 1 << 14;

/// `BPF_F_QUERY_EFFECTIVE`: what runs in a cgroup, ancestors' programs included.
pub const F_QUERY_EFFECTIVE: u32 = 1 << 0;

/// `BPF_F_KPROBE_MULTI_RETURN`: probe the functions' returns. Linux 5.18.
pub const F_KPROBE_MULTI_RETURN: u32 = 1 << 0;

/// `BPF_F_UPROBE_MULTI_RETURN`: probe the functions' returns. Linux 6.6.
pub const F_UPROBE_MULTI_RETURN: u32 = 1 << 0;

/// `BPF_F_NETFILTER_IP_DEFRAG`: see reassembled packets only. Linux 6.6.
pub const F_NETFILTER_IP_DEFRAG: u32 = 1 << 0;

/// `BPF_OBJ_NAME_LEN`: bytes of a program or map name, terminator included.
pub const OBJ_NAME_LEN: usize = 16;

/// `BPF_TAG_SIZE`: bytes of a program's tag.
pub const TAG_SIZE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_dense() {
        for (i, t) in MapType::ALL.iter().enumerate() {
            assert_eq!(t.0 as usize, i);
        }
        for (i, t) in ProgramType::ALL.iter().enumerate() {
            assert_eq!(t.0 as usize, i);
        }
        for (i, t) in AttachType::ALL.iter().enumerate() {
            assert_eq!(t.0 as usize, i);
        }
        for (i, t) in Command::ALL.iter().enumerate() {
            assert_eq!(t.0 as usize, i);
        }
        assert_eq!(MapType(99).to_string(), "99");
        assert_eq!(ProgramType::XDP.to_string(), "xdp");
    }

    #[test]
    fn unknown_flags_survive() {
        assert_eq!(MapFlags::from_bits_retain(1 << 30).bits(), 1 << 30);
    }
}
