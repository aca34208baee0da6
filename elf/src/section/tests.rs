//! Names and what they stand for.

use super::*;

#[test]
fn names_targets_and_flags() {
    let kind = parse("tracepoint/sched/sched_process_exec");
    assert_eq!(kind.program_type, ProgramType::TRACEPOINT);
    assert_eq!(kind.target, Some("sched/sched_process_exec"));
    assert!(kind.autoload);

    let kind = parse("?xdp.frags/devmap");
    assert_eq!(kind.attach_type, Some(AttachType::XDP_DEVMAP));
    assert_eq!(kind.flags, ProgramFlags::XDP_HAS_FRAGS);
    assert!(!kind.autoload);

    assert_eq!(parse("xdp").attach_type, Some(AttachType::XDP));
    assert_eq!(parse("xdp/eth0").target, Some("eth0"));
    assert_eq!(
        parse("kprobe.multi/tcp_*").attach_type,
        Some(AttachType::TRACE_KPROBE_MULTI)
    );
    assert_eq!(parse("kprobe").target, None);
    assert_eq!(
        parse("classifier/egress").program_type,
        ProgramType::SCHED_CLS
    );
    assert_eq!(
        parse("raw_tp.w/x").program_type,
        ProgramType::RAW_TRACEPOINT_WRITABLE
    );
    assert_eq!(parse("kprobes/x").program_type, ProgramType::UNSPEC);
    assert_eq!(parse("kprobe_x").program_type, ProgramType::UNSPEC);
    assert_eq!(parse("tp_btf2").program_type, ProgramType::UNSPEC);
    assert_eq!(parse("").program_type, ProgramType::UNSPEC);
}

/// Every name of libbpf 1.7: program type, expected attach type and flags
/// by their numbers.
const NAMES: &str = "
    socket 1 0 0
    sk_reuseport/migrate 21 40 0
    sk_reuseport 21 39 0
    kprobe 2 0 0
    uprobe 2 0 0
    uprobe.s 2 0 16
    kretprobe 2 0 0
    uretprobe 2 0 0
    uretprobe.s 2 0 16
    kprobe.multi 2 42 0
    kretprobe.multi 2 42 0
    kprobe.session 2 56 0
    uprobe.multi 2 48 0
    uretprobe.multi 2 48 0
    uprobe.session 2 57 0
    uprobe.multi.s 2 48 16
    uretprobe.multi.s 2 48 16
    uprobe.session.s 2 57 16
    ksyscall 2 0 0
    kretsyscall 2 0 0
    usdt 2 0 0
    usdt.s 2 0 16
    tc/ingress 3 46 0
    tc/egress 3 47 0
    tcx/ingress 3 46 0
    tcx/egress 3 47 0
    tc 3 0 0
    classifier 3 0 0
    action 4 0 0
    netkit/primary 3 54 0
    netkit/peer 3 55 0
    tracepoint 5 0 0
    tp 5 0 0
    raw_tracepoint 17 0 0
    raw_tp 17 0 0
    raw_tracepoint.w 24 0 0
    raw_tp.w 24 0 0
    tp_btf 26 23 0
    fentry 26 24 0
    fmod_ret 26 26 0
    fexit 26 25 0
    fentry.s 26 24 16
    fmod_ret.s 26 26 16
    fexit.s 26 25 16
    fsession 26 58 0
    fsession.s 26 58 16
    freplace 28 0 0
    lsm 29 27 0
    lsm.s 29 27 16
    lsm_cgroup 29 43 0
    iter 26 28 0
    iter.s 26 28 16
    syscall 31 0 16
    xdp.frags/devmap 6 33 32
    xdp/devmap 6 33 0
    xdp.frags/cpumap 6 35 32
    xdp/cpumap 6 35 0
    xdp.frags 6 37 32
    xdp 6 37 0
    perf_event 7 0 0
    lwt_in 10 0 0
    lwt_out 11 0 0
    lwt_xmit 12 0 0
    lwt_seg6local 19 0 0
    sockops 13 3 0
    sk_skb/stream_parser 14 4 0
    sk_skb/stream_verdict 14 5 0
    sk_skb/verdict 14 38 0
    sk_skb 14 0 0
    sk_msg 16 7 0
    lirc_mode2 20 16 0
    flow_dissector 22 17 0
    cgroup_skb/ingress 8 0 0
    cgroup_skb/egress 8 1 0
    cgroup/skb 8 0 0
    cgroup/sock_create 9 2 0
    cgroup/sock_release 9 34 0
    cgroup/sock 9 2 0
    cgroup/post_bind4 9 12 0
    cgroup/post_bind6 9 13 0
    cgroup/bind4 18 8 0
    cgroup/bind6 18 9 0
    cgroup/connect4 18 10 0
    cgroup/connect6 18 11 0
    cgroup/connect_unix 18 49 0
    cgroup/sendmsg4 18 14 0
    cgroup/sendmsg6 18 15 0
    cgroup/sendmsg_unix 18 50 0
    cgroup/recvmsg4 18 19 0
    cgroup/recvmsg6 18 20 0
    cgroup/recvmsg_unix 18 51 0
    cgroup/getpeername4 18 29 0
    cgroup/getpeername6 18 30 0
    cgroup/getpeername_unix 18 52 0
    cgroup/getsockname4 18 31 0
    cgroup/getsockname6 18 32 0
    cgroup/getsockname_unix 18 53 0
    cgroup/sysctl 23 18 0
    cgroup/getsockopt 25 21 0
    cgroup/setsockopt 25 22 0
    cgroup/dev 15 6 0
    struct_ops 27 0 0
    struct_ops.s 27 0 16
    sk_lookup 30 36 0
    netfilter 32 45 0
";

#[test]
fn every_name_has_its_type() {
    let mut names = 0;
    for line in NAMES.lines().map(str::trim).filter(|l| !l.is_empty()) {
        names += 1;
        let words: Vec<_> = line.split(' ').collect();
        let [name, numbers @ ..] = words.as_slice() else {
            panic!("{line}")
        };
        let numbers: Vec<u32> = numbers.iter().map(|n| n.parse().unwrap()).collect();
        for autoload in [true, false] {
            let name = if autoload {
                (*name).to_owned()
            } else {
                format!("?{name}")
            };
            let kind = parse(&name);
            let found = [
                kind.program_type.0,
                kind.attach_type.map_or(0, |a| a.0),
                kind.flags.bits(),
            ];
            assert_eq!(found.as_slice(), numbers, "{name}");
            assert_eq!((kind.autoload, kind.target), (autoload, None), "{name}");
        }
    }
    // The table has three names more, of other loaders.
    assert_eq!(names + 3, TABLE.len());
}

#[test]
fn names_of_the_days_before_slashes() {
    for (name, program_type) in [
        ("xdp_pass", ProgramType::XDP),
        ("xdp1", ProgramType::XDP),
        ("socket1", ProgramType::SOCKET_FILTER),
        ("socket_filter/main", ProgramType::SOCKET_FILTER),
        ("classifier_ingress", ProgramType::SCHED_CLS),
        ("action_drop", ProgramType::SCHED_ACT),
        ("tc-ingress", ProgramType::SCHED_CLS),
        ("perf_event_1", ProgramType::PERF_EVENT),
        ("lwt_in_nop", ProgramType::LWT_IN),
        ("sockops_basertt", ProgramType::SOCK_OPS),
        ("sk_msg1", ProgramType::SK_MSG),
        ("cgroup/skb1", ProgramType::CGROUP_SKB),
        ("cgroup/dev1", ProgramType::CGROUP_DEVICE),
        ("seccomp_filter", ProgramType::SOCKET_FILTER),
    ] {
        let kind = parse(name);
        assert_eq!(kind.program_type, program_type, "{name}");
        assert_eq!(
            (kind.target.is_some(), kind.autoload),
            (false, true),
            "{name}"
        );
    }
    // The longest counts.
    assert_eq!(
        parse("xdp_devmap1").attach_type,
        Some(AttachType::XDP_DEVMAP)
    );
    assert_eq!(
        parse("cgroup/sock_release_x").attach_type,
        Some(AttachType::CGROUP_INET_SOCK_RELEASE)
    );
    // What follows is a target that something has to find.
    for name in [
        "kprobe_x",
        "fentry1",
        "lsmx",
        "iter_x",
        "struct_opsx",
        "my/xdp",
    ] {
        assert_eq!(parse(name).program_type, ProgramType::UNSPEC, "{name}");
    }
}

#[test]
fn every_entry_matches_itself() {
    for entry in TABLE {
        let kind = parse(entry.prefix);
        assert_eq!(kind.prefix, entry.prefix);
        assert_eq!(kind.program_type, entry.program_type);
        assert_eq!(kind.attach_type, entry.attach_type);
        let with_target = format!("{}/some_target", entry.prefix);
        assert_eq!(
            parse(&with_target).target,
            Some("some_target"),
            "{with_target}"
        );
    }
}
