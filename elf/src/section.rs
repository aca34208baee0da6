//! Program section names: which program type, attach type and flags a
//! `SEC("…")` name stands for, and what follows the slash.
//!
//! Source: the section table of libbpf 1.7 (`libbpf.rst`, "Program types and
//! ELF sections"), with the names that older loaders used.

use ebpf_manager_sys::abi::bpf::{AttachType, ProgramFlags, ProgramType};

/// What a section name says about the programs in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectionKind<'a> {
    /// Program type; `UNSPEC` for a name that nobody defines.
    pub program_type: ProgramType,
    /// Expected attach type, where the name fixes one.
    pub attach_type: Option<AttachType>,
    /// Load flags (sleepable, XDP fragments).
    pub flags: ProgramFlags,
    /// The table entry that matched, such as `"kprobe.multi"`; empty for an
    /// unknown name.
    pub prefix: &'static str,
    /// What follows the prefix and its slash: function, tracepoint, path.
    pub target: Option<&'a str>,
    /// False if the name starts with `?`: loaded only when asked for.
    pub autoload: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    prefix: &'static str,
    program_type: ProgramType,
    attach_type: Option<AttachType>,
    flags: ProgramFlags,
    /// Names of hooks without target: what follows need not start with a slash.
    loose: bool,
}

const NONE: ProgramFlags = ProgramFlags::empty();
const SLEEP: ProgramFlags = ProgramFlags::SLEEPABLE;
const FRAGS: ProgramFlags = ProgramFlags::XDP_HAS_FRAGS;

const fn plain(prefix: &'static str, program_type: ProgramType) -> Entry {
    Entry {
        prefix,
        program_type,
        attach_type: None,
        flags: NONE,
        loose: false,
    }
}

const fn typed(prefix: &'static str, program_type: ProgramType, attach_type: AttachType) -> Entry {
    Entry {
        prefix,
        program_type,
        attach_type: Some(attach_type),
        flags: NONE,
        loose: false,
    }
}

const fn flagged(
    prefix: &'static str,
    program_type: ProgramType,
    attach_type: Option<AttachType>,
    flags: ProgramFlags,
) -> Entry {
    Entry {
        prefix,
        program_type,
        attach_type,
        flags,
        loose: false,
    }
}

/// As users of loaders before libbpf 1.0 wrote it: with any ending.
const fn loose(entry: Entry) -> Entry {
    Entry {
        loose: true,
        ..entry
    }
}

/// Longer names stand before their own prefixes: the first match wins.
static TABLE: &[Entry] = {
    use AttachType as A;
    use ProgramType as P;
    &[
        loose(plain("socket", P::SOCKET_FILTER)),
        loose(typed(
            "sk_reuseport/migrate",
            P::SK_REUSEPORT,
            A::SK_REUSEPORT_SELECT_OR_MIGRATE,
        )),
        loose(typed(
            "sk_reuseport",
            P::SK_REUSEPORT,
            A::SK_REUSEPORT_SELECT,
        )),
        plain("kprobe", P::KPROBE),
        plain("uprobe", P::KPROBE),
        flagged("uprobe.s", P::KPROBE, None, SLEEP),
        plain("kretprobe", P::KPROBE),
        plain("uretprobe", P::KPROBE),
        flagged("uretprobe.s", P::KPROBE, None, SLEEP),
        typed("kprobe.multi", P::KPROBE, A::TRACE_KPROBE_MULTI),
        typed("kretprobe.multi", P::KPROBE, A::TRACE_KPROBE_MULTI),
        typed("kprobe.session", P::KPROBE, A::TRACE_KPROBE_SESSION),
        typed("uprobe.multi", P::KPROBE, A::TRACE_UPROBE_MULTI),
        typed("uretprobe.multi", P::KPROBE, A::TRACE_UPROBE_MULTI),
        typed("uprobe.session", P::KPROBE, A::TRACE_UPROBE_SESSION),
        flagged(
            "uprobe.multi.s",
            P::KPROBE,
            Some(A::TRACE_UPROBE_MULTI),
            SLEEP,
        ),
        flagged(
            "uretprobe.multi.s",
            P::KPROBE,
            Some(A::TRACE_UPROBE_MULTI),
            SLEEP,
        ),
        flagged(
            "uprobe.session.s",
            P::KPROBE,
            Some(A::TRACE_UPROBE_SESSION),
            SLEEP,
        ),
        plain("ksyscall", P::KPROBE),
        plain("kretsyscall", P::KPROBE),
        plain("usdt", P::KPROBE),
        flagged("usdt.s", P::KPROBE, None, SLEEP),
        loose(typed("tc/ingress", P::SCHED_CLS, A::TCX_INGRESS)),
        loose(typed("tc/egress", P::SCHED_CLS, A::TCX_EGRESS)),
        loose(typed("tcx/ingress", P::SCHED_CLS, A::TCX_INGRESS)),
        loose(typed("tcx/egress", P::SCHED_CLS, A::TCX_EGRESS)),
        loose(plain("tc", P::SCHED_CLS)),
        loose(plain("classifier", P::SCHED_CLS)),
        loose(plain("action", P::SCHED_ACT)),
        loose(typed("netkit/primary", P::SCHED_CLS, A::NETKIT_PRIMARY)),
        loose(typed("netkit/peer", P::SCHED_CLS, A::NETKIT_PEER)),
        plain("tracepoint", P::TRACEPOINT),
        plain("tp", P::TRACEPOINT),
        plain("raw_tracepoint", P::RAW_TRACEPOINT),
        plain("raw_tp", P::RAW_TRACEPOINT),
        plain("raw_tracepoint.w", P::RAW_TRACEPOINT_WRITABLE),
        plain("raw_tp.w", P::RAW_TRACEPOINT_WRITABLE),
        typed("tp_btf", P::TRACING, A::TRACE_RAW_TP),
        typed("fentry", P::TRACING, A::TRACE_FENTRY),
        typed("fmod_ret", P::TRACING, A::MODIFY_RETURN),
        typed("fexit", P::TRACING, A::TRACE_FEXIT),
        typed("fsession", P::TRACING, A::TRACE_FSESSION),
        flagged("fentry.s", P::TRACING, Some(A::TRACE_FENTRY), SLEEP),
        flagged("fmod_ret.s", P::TRACING, Some(A::MODIFY_RETURN), SLEEP),
        flagged("fexit.s", P::TRACING, Some(A::TRACE_FEXIT), SLEEP),
        flagged("fsession.s", P::TRACING, Some(A::TRACE_FSESSION), SLEEP),
        plain("freplace", P::EXT),
        typed("lsm", P::LSM, A::LSM_MAC),
        flagged("lsm.s", P::LSM, Some(A::LSM_MAC), SLEEP),
        typed("lsm_cgroup", P::LSM, A::LSM_CGROUP),
        typed("iter", P::TRACING, A::TRACE_ITER),
        flagged("iter.s", P::TRACING, Some(A::TRACE_ITER), SLEEP),
        loose(flagged("syscall", P::SYSCALL, None, SLEEP)),
        loose(flagged(
            "xdp.frags/devmap",
            P::XDP,
            Some(A::XDP_DEVMAP),
            FRAGS,
        )),
        loose(typed("xdp/devmap", P::XDP, A::XDP_DEVMAP)),
        loose(typed("xdp_devmap", P::XDP, A::XDP_DEVMAP)),
        loose(flagged(
            "xdp.frags/cpumap",
            P::XDP,
            Some(A::XDP_CPUMAP),
            FRAGS,
        )),
        loose(typed("xdp/cpumap", P::XDP, A::XDP_CPUMAP)),
        loose(typed("xdp_cpumap", P::XDP, A::XDP_CPUMAP)),
        loose(flagged("xdp.frags", P::XDP, Some(A::XDP), FRAGS)),
        loose(typed("xdp", P::XDP, A::XDP)),
        loose(plain("perf_event", P::PERF_EVENT)),
        loose(plain("lwt_in", P::LWT_IN)),
        loose(plain("lwt_out", P::LWT_OUT)),
        loose(plain("lwt_xmit", P::LWT_XMIT)),
        loose(plain("lwt_seg6local", P::LWT_SEG6LOCAL)),
        loose(typed("sockops", P::SOCK_OPS, A::CGROUP_SOCK_OPS)),
        loose(typed(
            "sk_skb/stream_parser",
            P::SK_SKB,
            A::SK_SKB_STREAM_PARSER,
        )),
        loose(typed(
            "sk_skb/stream_verdict",
            P::SK_SKB,
            A::SK_SKB_STREAM_VERDICT,
        )),
        loose(typed("sk_skb/verdict", P::SK_SKB, A::SK_SKB_VERDICT)),
        loose(plain("sk_skb", P::SK_SKB)),
        loose(typed("sk_msg", P::SK_MSG, A::SK_MSG_VERDICT)),
        loose(typed("lirc_mode2", P::LIRC_MODE2, A::LIRC_MODE2)),
        loose(typed(
            "flow_dissector",
            P::FLOW_DISSECTOR,
            A::FLOW_DISSECTOR,
        )),
        loose(typed(
            "cgroup_skb/ingress",
            P::CGROUP_SKB,
            A::CGROUP_INET_INGRESS,
        )),
        loose(typed(
            "cgroup_skb/egress",
            P::CGROUP_SKB,
            A::CGROUP_INET_EGRESS,
        )),
        loose(plain("cgroup/skb", P::CGROUP_SKB)),
        loose(typed(
            "cgroup/sock_create",
            P::CGROUP_SOCK,
            A::CGROUP_INET_SOCK_CREATE,
        )),
        loose(typed(
            "cgroup/sock_release",
            P::CGROUP_SOCK,
            A::CGROUP_INET_SOCK_RELEASE,
        )),
        loose(typed(
            "cgroup/sock",
            P::CGROUP_SOCK,
            A::CGROUP_INET_SOCK_CREATE,
        )),
        loose(typed(
            "cgroup/post_bind4",
            P::CGROUP_SOCK,
            A::CGROUP_INET4_POST_BIND,
        )),
        loose(typed(
            "cgroup/post_bind6",
            P::CGROUP_SOCK,
            A::CGROUP_INET6_POST_BIND,
        )),
        loose(typed(
            "cgroup/bind4",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_INET4_BIND,
        )),
        loose(typed(
            "cgroup/bind6",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_INET6_BIND,
        )),
        loose(typed(
            "cgroup/connect4",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_INET4_CONNECT,
        )),
        loose(typed(
            "cgroup/connect6",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_INET6_CONNECT,
        )),
        loose(typed(
            "cgroup/connect_unix",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_UNIX_CONNECT,
        )),
        loose(typed(
            "cgroup/sendmsg4",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_UDP4_SENDMSG,
        )),
        loose(typed(
            "cgroup/sendmsg6",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_UDP6_SENDMSG,
        )),
        loose(typed(
            "cgroup/sendmsg_unix",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_UNIX_SENDMSG,
        )),
        loose(typed(
            "cgroup/recvmsg4",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_UDP4_RECVMSG,
        )),
        loose(typed(
            "cgroup/recvmsg6",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_UDP6_RECVMSG,
        )),
        loose(typed(
            "cgroup/recvmsg_unix",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_UNIX_RECVMSG,
        )),
        loose(typed(
            "cgroup/getpeername4",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_INET4_GETPEERNAME,
        )),
        loose(typed(
            "cgroup/getpeername6",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_INET6_GETPEERNAME,
        )),
        loose(typed(
            "cgroup/getpeername_unix",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_UNIX_GETPEERNAME,
        )),
        loose(typed(
            "cgroup/getsockname4",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_INET4_GETSOCKNAME,
        )),
        loose(typed(
            "cgroup/getsockname6",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_INET6_GETSOCKNAME,
        )),
        loose(typed(
            "cgroup/getsockname_unix",
            P::CGROUP_SOCK_ADDR,
            A::CGROUP_UNIX_GETSOCKNAME,
        )),
        loose(typed("cgroup/sysctl", P::CGROUP_SYSCTL, A::CGROUP_SYSCTL)),
        loose(typed(
            "cgroup/getsockopt",
            P::CGROUP_SOCKOPT,
            A::CGROUP_GETSOCKOPT,
        )),
        loose(typed(
            "cgroup/setsockopt",
            P::CGROUP_SOCKOPT,
            A::CGROUP_SETSOCKOPT,
        )),
        loose(typed("cgroup/dev", P::CGROUP_DEVICE, A::CGROUP_DEVICE)),
        plain("struct_ops", P::STRUCT_OPS),
        flagged("struct_ops.s", P::STRUCT_OPS, None, SLEEP),
        loose(typed("sk_lookup", P::SK_LOOKUP, A::SK_LOOKUP)),
        loose(typed("netfilter", P::NETFILTER, A::NETFILTER)),
        loose(plain("seccomp", P::SOCKET_FILTER)),
    ]
};

/// Reads a program section's name.
///
/// A table entry matches the whole name, or the part of it before a slash;
/// what follows the slash is the target. A name that only starts like one of a
/// hook without target means that one, as it did before libbpf 1.0
/// (`"xdp_pass"`, `"socket1"`, `"classifier_ingress"`). An unknown name gives
/// `ProgramType::UNSPEC`, which the caller may replace before loading.
pub fn parse(name: &str) -> SectionKind<'_> {
    let (autoload, rest) = match name.strip_prefix('?') {
        Some(rest) => (false, rest),
        None => (true, name),
    };
    let longest =
        |best: &(&Entry, Option<&str>), entry: &Entry| entry.prefix.len() > best.0.prefix.len();
    let mut best: Option<(&Entry, Option<&str>)> = None;
    let mut loose = None;
    for entry in TABLE {
        let Some(tail) = rest.strip_prefix(entry.prefix) else {
            continue;
        };
        let target = match tail.strip_prefix('/') {
            Some(target) => Some(target),
            None if tail.is_empty() => None,
            None => {
                if entry.loose && loose.as_ref().is_none_or(|b| longest(b, entry)) {
                    loose = Some((entry, None));
                }
                continue;
            }
        };
        if best.as_ref().is_none_or(|b| longest(b, entry)) {
            best = Some((entry, target));
        }
    }
    match best.or(loose) {
        Some((entry, target)) => SectionKind {
            program_type: entry.program_type,
            attach_type: entry.attach_type,
            flags: entry.flags,
            prefix: entry.prefix,
            target: target.filter(|t| !t.is_empty()),
            autoload,
        },
        None => SectionKind {
            program_type: ProgramType::UNSPEC,
            attach_type: None,
            flags: NONE,
            prefix: "",
            target: None,
            autoload,
        },
    }
}

#[cfg(test)]
mod tests;
