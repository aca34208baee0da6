//! A manager with one of everything, on `cycle.bpf.o`, and what tells whether
//! its programs run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{
    ClsactOptions, Direction, Interface, Kprobe, Mechanism, Method, NetNamespace, QdiscCleanup,
    TcAttach, TestRun, Uprobe, XdpMode, XdpOptions,
};
use ebpf_manager::elf::symbols;
use ebpf_manager::{Builder, Hook, Manager, ObjectSource, Probe, ProbeId};
use ebpf_manager_sys::abi::netlink::TcParent;
use ebpf_manager_sys::rtnl::Rtnl;

use super::NetNs;

/// Number of getpid(2), which `std::process::id` calls each time.
const GETPID: u64 = if cfg!(target_arch = "x86_64") {
    39
} else {
    172
};

/// What no test waits longer for, on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn cycle_object() -> ObjectSource {
    ObjectSource::path(super::testdata("cycle.bpf.o"))
}

/// Counts what this process does.
pub(crate) fn cycle_builder() -> Builder {
    Manager::builder()
        .constant("target_tgid", std::process::id())
        .constant("target_syscall", GETPID)
}

/// Where `on_user` is put.
#[inline(never)]
pub(crate) fn cycle_probed(depth: u32) -> u32 {
    if std::hint::black_box(depth) == 0 {
        1
    } else {
        2
    }
}

/// Where [`cycle_probed`] is in this binary's file; looked for once, unless
/// the environment says it.
pub(crate) fn user_offset() -> u64 {
    static OFFSET: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *OFFSET.get_or_init(|| {
        if let Ok(offset) = std::env::var("EBPF_MANAGER_TEST_OFFSET") {
            return offset.parse().unwrap();
        }
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let mut found = None;
        symbols::for_each_function(&bytes, &mut |symbol| {
            if String::from_utf8_lossy(symbol.name).contains("cycle_probed") {
                found = Some(symbol.offset);
            }
        })
        .unwrap();
        found.expect("the compiler keeps it")
    })
}

/// `on_user` by an event in tracefs, which outlives a killed process.
pub(crate) fn user_by_event() -> Probe {
    let place = Uprobe::offset("/proc/self/exe", user_offset());
    let by_event = place.attach_by(Mechanism::ProbeEvent);
    Probe::new("on_user").uid("event").hook(by_event)
}

/// `on_kernel` by an event in tracefs.
pub(crate) fn kernel_by_event() -> Probe {
    let by_event = Kprobe::syscall("getpid").attach_by(Mechanism::ProbeEvent);
    Probe::new("on_kernel").uid("event").hook(by_event)
}

/// `on_packet` by a filter, which outlives a killed process.
pub(crate) fn packet_by_filter(namespace: &NetNamespace) -> Probe {
    let interface = Interface::from("veth0").in_namespace(namespace);
    let filter = TcAttach::Clsact(ClsactOptions {
        qdisc: QdiscCleanup::RemoveIfUnused,
        ..ClsactOptions::default()
    });
    let hook = Hook::tc_with(interface, Direction::Ingress, filter);
    Probe::new("on_packet").uid("filter").hook(hook)
}

/// `on_frame` by rtnetlink, which outlives a killed process, too.
pub(crate) fn frame_by_netlink(namespace: &NetNamespace) -> Probe {
    let interface = Interface::from("veth0").in_namespace(namespace);
    let options = XdpOptions {
        mode: XdpMode::Generic,
        method: Method::Classic,
    };
    Probe::new("on_frame").hook(Hook::xdp_with(interface, options))
}

/// Whether there is an XDP program on `veth0` of a namespace.
pub(crate) fn has_xdp(ns: &NetNs) -> bool {
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(ns)).unwrap();
    let xdp = rtnl.link_by_name("veth0").unwrap().xdp;
    xdp.drv != 0 || xdp.skb != 0
}

/// Names of the filters on `veth0` of a namespace, and whether there is
/// clsact.
pub(crate) fn filters(ns: &NetNs) -> (Vec<String>, bool) {
    let mut rtnl = Rtnl::open_in(std::os::fd::AsFd::as_fd(ns)).unwrap();
    let index = rtnl.link_by_name("veth0").unwrap().index;
    let qdiscs = rtnl.qdiscs(index).unwrap();
    let clsact = qdiscs.iter().any(|qdisc| qdisc.kind == "clsact");
    let filters = rtnl.filters(index, TcParent::INGRESS);
    let filters = filters.unwrap_or_default().into_iter();
    (filters.map(|f| f.name).collect(), clsact)
}

/// Lines of a file of probe events whose group starts as said.
pub(crate) fn probe_events(start: &str) -> Vec<String> {
    let root: PathBuf = super::mount_of("tracefs").expect("tracefs is mounted");
    let mut found = Vec::new();
    for file in ["uprobe_events", "kprobe_events"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
        let of_group = |line: &&str| {
            let name = line.split_once(':').map_or("", |(_, name)| name);
            name.starts_with(start)
        };
        found.extend(text.lines().filter(of_group).map(str::to_owned));
    }
    found
}

/// What the probe's program counts, and one deed of those that it counts.
fn counter(function: &str) -> (&'static str, fn()) {
    match function {
        "on_enter" => ("enter_count", getpid),
        "on_exit" => ("exit_count", getpid),
        // Unless it is attached elsewhere.
        "on_exec" => ("exec_count", getpid),
        "on_kernel" => ("kernel_count", getpid),
        "on_user" => ("user_count", || {
            std::hint::black_box(cycle_probed(std::hint::black_box(1)));
        }),
        other => panic!("nothing counts {other}"),
    }
}

/// Checks that a function runs, attached however often, or does not.
pub(crate) fn check_runs(manager: &Manager, function: &str, runs: bool) {
    let (name, act) = counter(function);
    let get = || manager.variable(name).unwrap().get::<u64>().unwrap();
    let before = get();
    if !runs {
        act();
        act();
        assert_eq!(get(), before, "{function} runs");
        return;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        act();
        if get() > before {
            return;
        }
        // An event may be missed where the kernel runs a program once per CPU
        // at a time (Linux 7.0 and later, raw tracepoints).
        assert!(Instant::now() < deadline, "{function} does not run");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a program says that is run with a packet.
pub(crate) fn says(manager: &Manager, function: &str) -> u32 {
    let packet = [0_u8; 64];
    let mut run = TestRun {
        data_in: &packet,
        repeat: 1,
        ..TestRun::default()
    };
    let program = manager.program(function).expect("it is loaded");
    program.test_run(&mut run).unwrap().retval
}

/// Paths below a directory, sorted.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// The identity of a probe with this uid.
pub(crate) fn id(function: &str, uid: &str) -> ProbeId {
    ProbeId::new(function, uid)
}

fn getpid() {
    let _ = std::process::id();
}
