//! What a probe's outcome tells: the kernel interface that was used, and what
//! was tried before it, on the newest kernels and on old ones.

use std::sync::mpsc::channel;

use common::net::{InCgroup, Net};
use common::{built_with, object};
use ebpf_manager::bpf::{Direction, Method, SysError, XdpMode, XdpOptions};
use ebpf_manager_sys::abi::bpf::Command as Call;
use ebpf_manager_sys::seccomp::{CALLS, Watch, supervise};

use super::*;

const NETWORK: Feature = RING_BUFFER.mounted("cgroup2").config(&[
    "CONFIG_CGROUP_BPF",
    "CONFIG_NET_CLS_BPF",
    "CONFIG_VETH",
]);

/// A probe, since when there are links of its kind, what they are called, the
/// interface of before, and what the attempt is called.
type Row = (&'static str, (u32, u32), Mechanism, Mechanism, &'static str);

const ROWS: [Row; 5] = [
    (
        "xdp_first",
        (5, 9),
        Mechanism::XdpLink,
        Mechanism::XdpNetlink,
        "link",
    ),
    (
        "tc_first",
        (6, 6),
        Mechanism::Tcx,
        Mechanism::Clsact,
        "tcx link",
    ),
    (
        "cgroup_first",
        (5, 7),
        Mechanism::CgroupLink,
        Mechanism::CgroupAttach,
        "link",
    ),
    (
        "flow_first",
        (5, 8),
        Mechanism::NetnsLink,
        Mechanism::NetnsAttach,
        "link",
    ),
    (
        "message_first",
        (6, 10),
        Mechanism::SockmapLink,
        Mechanism::SockmapAttach,
        "link",
    ),
];

fn manager(net: &Net, cgroup: &InCgroup) -> Manager {
    let generic = XdpOptions {
        mode: XdpMode::Generic,
        ..XdpOptions::default()
    };
    let namespace = Some(net.namespace.clone());
    let hooks = [
        Hook::xdp_with(net.right(), generic),
        Hook::tc(net.right(), Direction::Ingress),
        Hook::cgroup(cgroup.dir.path()),
        Hook::flow_dissector(namespace, Method::Auto),
        Hook::sockmap("sockets", Method::Auto),
    ];
    let mut builder = Manager::builder();
    for ((function, ..), hook) in ROWS.iter().zip(hooks) {
        builder = builder.probe(Probe::new(*function).hook(hook));
    }
    // Programs of later kernels.
    for program in object("net.bpf.o").programs() {
        if !ROWS.iter().any(|(function, ..)| *function == program.name) {
            builder = builder.exclude(&program.name);
        }
    }
    let manager = builder.build().unwrap();
    manager
        .init(&ObjectSource::path(testdata("net.bpf.o")))
        .unwrap_or_else(|e| panic!("{e}"));
    manager
}

/// Checks the outcomes on a kernel that has links of a kind if `has` says so.
fn check(manager: &Manager, has: impl Fn(&Row) -> bool) {
    for (row, (id, outcome)) in ROWS.iter().zip(manager.probes()) {
        let (function, _, link, before, attempt) = *row;
        assert_eq!(id.function, function);
        let Some(attached) = outcome.attached() else {
            panic!("{id}: {outcome}")
        };
        let tried: Vec<(&str, Errno)> = attached
            .fallbacks
            .iter()
            .map(|(how, answer): &(&str, SysError)| (*how, answer.errno()))
            .collect();
        let text = outcome.to_string();
        if has(row) {
            assert_eq!((attached.mechanism, tried), (link, vec![]), "{id}");
            assert_eq!(text, format!("attached by {link}"));
        } else {
            let refused = vec![(attempt, Errno::EINVAL)];
            assert_eq!((attached.mechanism, tried), (before, refused), "{id}");
            assert_eq!(
                text,
                format!("attached by {before} (after {attempt}: EINVAL)")
            );
        }
    }
}

#[test]
fn outcomes_say_how_this_kernel_attaches() {
    if !require(&NETWORK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (net, cgroup) = (Net::new(), InCgroup::enter());
    let manager = manager(&net, &cgroup);
    manager.start().unwrap_or_else(|e| panic!("{e}"));
    let tcx = built_with("CONFIG_NET_XGRESS") != Some(false);
    let has = |row: &Row| kernel_version() >= row.1 && (row.2 != Mechanism::Tcx || tcx);
    check(&manager, has);
    // Attached again, they are what they were.
    manager.pause().unwrap();
    assert!(
        manager
            .probes()
            .iter()
            .all(|(_, outcome)| outcome.attached().is_none())
    );
    manager.resume().unwrap();
    check(&manager, has);
    manager.stop().unwrap();
}

/// On a kernel that knows no links at all: a supervisor (seccomp(2)) refuses
/// to make them.
#[test]
fn outcomes_say_what_was_tried_before() {
    if !require(&NETWORK.config(&["CONFIG_SECCOMP_FILTER"])) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (net, cgroup) = (Net::new(), InCgroup::enter());
    let (_, bpf) = CALLS.iter().find(|(name, _)| *name == "bpf").unwrap();
    let watch = Watch {
        call: *bpf,
        unless_none: None,
    };
    let (send, receive) = channel();
    thread::scope(|scope| {
        let (net, cgroup) = (&net, &cgroup);
        let worker = scope.spawn(move || {
            send.send(supervise(&[watch])).unwrap();
            let manager = manager(net, cgroup);
            manager.start().unwrap_or_else(|e| panic!("{e}"));
            check(&manager, |_| false);
            manager.stop().unwrap();
        });
        let supervisor = receive.recv().unwrap().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !worker.is_finished() {
            assert!(Instant::now() < deadline, "hangs");
            let Some(call) = supervisor.next(Duration::from_millis(5)).unwrap() else {
                continue;
            };
            if Call(call.arguments[0] as u32) == Call::LINK_CREATE {
                supervisor.refuse(&call, Errno::EINVAL).unwrap();
            } else {
                supervisor.allow(&call).unwrap();
            }
        }
        worker.join().unwrap();
    });
}
