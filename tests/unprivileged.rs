//! What a process without capabilities is told: what it lacks, whatever it
//! tried.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fmt::Display;
use std::thread;

use common::net::Net;
use common::{Feature, LeakCheck, ROOT, TempDir, Verdict, require, testdata};
use ebpf_manager::bpf::{
    CgroupOptions, ClsactOptions, Collection, Cure, Direction, Errno, Interface, Kprobe, Link,
    LinkError, LoadError, LoadOptions, Map, MapError, MapType, Mechanism, Method,
    PerfBufferOptions, PerfBufferReader, PerfHook, Sharing, TcAttach, Uprobe, XdpMode, XdpOptions,
    open_object,
};
use ebpf_manager::elf::MapSpec;
use ebpf_manager_sys::proc::{Capabilities, keep_capabilities};

/// CAP_BPF and its kind.
const FINE_CAPABILITIES: Feature = Feature::new("CAP_BPF", 5, 8);

/// Runs `work` on a thread with no capabilities but these.
fn with_only<T: Send>(kept: Capabilities, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let unprivileged = scope.spawn(|| {
            keep_capabilities(kept).unwrap();
            work()
        });
        unprivileged.join().unwrap()
    })
}

fn try_to_load(object: &str, programs: &[&str]) -> Result<Collection, LoadError> {
    let object = open_object(testdata(object)).unwrap();
    let mut options = LoadOptions::default();
    options.include = programs.iter().map(|&name| name.to_owned()).collect();
    Collection::load(&object, options)
}

fn load(object: &str, programs: &[&str]) -> Collection {
    try_to_load(object, programs).unwrap_or_else(|e| panic!("{programs:?}: {e}"))
}

/// The error names the capability, in its value and in its text.
#[track_caller]
fn names(what: &str, err: &dyn Display, cure: Option<&Cure>, capability: &str) {
    let Some(Cure::Capability { needed } | Cure::PerfEventParanoid { needed, .. }) = cure else {
        panic!("{what}: {cure:?}: {err}");
    };
    assert!(needed.contains(capability), "{what}: {err}");
    assert!(err.to_string().contains(needed), "{what}: {err}");
}

#[track_caller]
fn lacks(what: &str, result: Result<Link, LinkError>, capability: &str) {
    match result {
        Ok(_) => panic!("{what}: attached"),
        Err(err) => {
            // The last is what a cgroup says.
            let refused = [Errno::EPERM, Errno::EACCES, Errno::EINVAL];
            assert!(refused.iter().any(|e| err.is(*e)), "{what}: {err}");
            names(what, &err, err.cure(), capability);
        }
    }
}

#[test]
fn unprivileged_loading_names_the_capability() {
    if !require(&FINE_CAPABILITIES) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let load = |object: &str, program: &str| {
        let loaded = try_to_load(object, &[program]);
        loaded.map(drop).unwrap_err()
    };
    let nothing = Capabilities::empty();
    for (object, program) in [
        ("probes.bpf.o", "on_kprobe"),
        ("net.bpf.o", "xdp_first"),
        ("net.bpf.o", "cgroup_first"),
    ] {
        let err = with_only(nothing, || load(object, program));
        names(program, &err, err.cure(), "CAP_BPF");
    }
    // One of the two is not enough.
    let err = with_only(Capabilities::BPF, || load("probes.bpf.o", "on_kprobe"));
    names("on_kprobe", &err, err.cure(), "CAP_PERFMON");
    let err = with_only(Capabilities::BPF, || load("net.bpf.o", "xdp_first"));
    names("xdp_first", &err, err.cure(), "CAP_NET_ADMIN");
    // A kind that takes the capability on every kernel.
    let spec = MapSpec {
        name: "recent".to_owned(),
        map_type: MapType::LRU_HASH,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        ..MapSpec::default()
    };
    let err = with_only(nothing, || Map::create(&spec).map(drop).unwrap_err());
    let MapError::Create { cure, .. } = &err else {
        panic!("{err}");
    };
    names("map", &err, cure.as_ref(), "CAP_BPF");
}

fn in_any_mode(mechanism: Mechanism) -> Uprobe {
    Uprobe::offset("/proc/self/exe", 64).attach_by(mechanism)
}

#[test]
fn unprivileged_reading_names_the_capability() {
    if !require(&FINE_CAPABILITIES) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load("perfbuf.bpf.o", &["perfbuf_output"]);
    let buffers = collection.map("buffers").unwrap();
    let open = || PerfBufferReader::new(buffers, PerfBufferOptions::default());
    match with_only(Capabilities::BPF, open) {
        // Any process may.
        Ok(_) => assert!(perf_event_paranoid() <= 0),
        Err(err) => {
            assert!(err.to_string().contains("perf_event_paranoid is"), "{err}");
            assert!(err.to_string().contains("CAP_"), "{err}");
        }
    }
    open().unwrap();
}

fn perf_event_paranoid() -> i64 {
    let level = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
    level.trim().parse().unwrap()
}

/// Who is given a loaded program still needs capabilities to attach it.
#[test]
fn unprivileged_tracing_names_the_capability() {
    if !require(&FINE_CAPABILITIES) || !require(&common::TRACEPOINT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let programs = [
        "kprobe_first",
        "uprobe_first",
        "tracepoint_first",
        "perf_event_first",
    ];
    let collection = load("hooks.bpf.o", &programs);
    let [kprobe, uprobe, tracepoint, counter] =
        programs.map(|name| collection.program(name).unwrap());
    let paranoid = perf_event_paranoid();
    // Debian's kernels leave all perf events to this above 2.
    let closed = paranoid > 2;
    let capability = if closed {
        "CAP_SYS_ADMIN"
    } else {
        "CAP_PERFMON"
    };
    for kept in [Capabilities::empty(), Capabilities::BPF] {
        with_only(kept, || {
            for by in [Mechanism::PerfEventLink, Mechanism::ProbeEvent] {
                if common::UPROBE.verdict() == Verdict::Run {
                    let link = Link::uprobe(uprobe, &in_any_mode(by));
                    lacks("uprobe", link, capability);
                }
                if common::KPROBE.verdict() == Verdict::Run {
                    let probe = Kprobe::syscall("getpid").attach_by(by);
                    lacks("kprobe", Link::kprobe(kprobe, &probe), capability);
                }
            }
        });
        // It is told of the setting where that would do.
        let told = |what: &str, result: Result<Link, LinkError>, most: i64| match result {
            Ok(_) => assert!(paranoid <= most, "{what} at {paranoid}"),
            Err(err) => {
                names(what, &err, err.cure(), capability);
                let most = if closed { 2 } else { most };
                let Some(Cure::PerfEventParanoid { level, allowed, .. }) = err.cure() else {
                    panic!("{what}: {err}");
                };
                assert_eq!((*level, *allowed), (paranoid, most), "{what}: {err}");
                assert!(err.to_string().contains("perf_event_paranoid"), "{err}");
            }
        };
        with_only(kept, || {
            let link = Link::tracepoint(tracepoint, "raw_syscalls", "sys_enter");
            told("tracepoint", link, -1);
            let link = Link::perf_event(counter, &PerfHook::cpu_clock(10));
            told("counter", link, 0);
        });
    }
    // With the capability that it names it works.
    let mut kept = Capabilities::BPF | Capabilities::PERFMON;
    let attach = || {
        [
            Link::tracepoint(tracepoint, "raw_syscalls", "sys_enter"),
            Link::perf_event(counter, &PerfHook::cpu_clock(10)),
        ]
    };
    if closed {
        for result in with_only(kept, attach) {
            lacks("perf event", result, capability);
        }
        kept |= Capabilities::SYS_ADMIN;
    }
    for result in with_only(kept, attach) {
        result.unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn unprivileged_networking_names_the_capability() {
    if !require(&FINE_CAPABILITIES) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let programs = ["xdp_first", "tc_first", "cgroup_first"];
    let collection = load("net.bpf.o", &programs);
    let [xdp, tc, cgroup] = programs.map(|name| collection.program(name).unwrap());
    let net = Net::new();
    let right = Interface::from("right");
    for kept in [Capabilities::empty(), Capabilities::BPF] {
        net.ns.run(|| {
            keep_capabilities(kept).unwrap();
            let options = XdpOptions {
                mode: XdpMode::Generic,
                method: Method::Classic,
            };
            let link = Link::xdp(xdp, &right, options);
            lacks("xdp", link, "CAP_NET_ADMIN");
            let classic = TcAttach::Clsact(ClsactOptions::default());
            let link = Link::tc(tc, &right, Direction::Ingress, &classic);
            lacks("tc", link, "CAP_NET_ADMIN");
            // Some kernels ask for nothing but the descriptors here.
            let options = XdpOptions {
                mode: XdpMode::Generic,
                method: Method::Auto,
            };
            if let Err(err) = Link::xdp(xdp, &right, options) {
                names("xdp link", &err, err.cure(), "CAP_");
            }
            if let Err(err) = Link::tc(tc, &right, Direction::Ingress, &TcAttach::Auto) {
                names("tcx", &err, err.cure(), "CAP_");
            }
        });
    }
    if !require(&ROOT.mounted("cgroup2")) {
        return;
    }
    let group = TempDir::cgroup();
    for method in [Method::Auto, Method::Classic] {
        let options = CgroupOptions {
            method,
            sharing: Sharing::Multi,
            ..CgroupOptions::default()
        };
        let link = with_only(Capabilities::BPF, || {
            Link::cgroup(cgroup, group.path(), options)
        });
        lacks("cgroup", link, "CAP_NET_ADMIN");
    }
}
