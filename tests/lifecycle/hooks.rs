//! Where probes are attached, and that their programs run there.

use std::os::unix::fs::MetadataExt as _;

use common::{UPROBE, mount_of};
use ebpf_manager::bpf::{Kprobe, KprobeMulti, Uprobe, UprobeMulti, Usdt};

use super::*;

#[test]
fn every_hook_fires_until_stop() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let hits = Hits::default();
    let probes = ["attach_exec", "attach_fork", "attach_exec_raw"];
    let mut builder = Manager::builder().exclude("attach_enter");
    for probe in probes {
        builder = builder.probe(Probe::new(probe));
    }
    let manager = builder.ring_buffer("hits", hits.handler()).build().unwrap();
    manager.init(&attach_object()).unwrap();
    assert!(manager.program("attach_enter").is_none());
    let counters = Counters::of(&manager);
    manager.start().unwrap();

    let by_event = match PERF_LINK.verdict() {
        Verdict::Run => Mechanism::PerfEventLink,
        _ => Mechanism::PerfEventIoctl,
    };
    let expected = [by_event, by_event, Mechanism::RawTracepointOpen];
    for ((id, outcome), (name, mechanism)) in
        manager.probes().iter().zip(probes.iter().zip(expected))
    {
        assert_eq!(id.function, *name);
        // Kernels without links on perf events answer so.
        let after = match mechanism {
            Mechanism::PerfEventIoctl => " (after perf event link: EINVAL)",
            _ => "",
        };
        let said = format!("attached by {mechanism}{after}");
        assert_eq!(outcome.to_string(), said, "{name}");
    }

    // Executed by the child, forked by this process.
    let children = Mutex::new(Vec::new());
    let by_child = |hook| {
        let children = children.lock().unwrap();
        let hits = hits.of(hook);
        hits.iter().any(|hit| children.contains(&hit.tgid))
    };
    let mine = std::process::id();
    let forked = || hits.of(FORK).iter().any(|hit| hit.tgid == mine);
    act_until(
        "a hit of every hook",
        || children.lock().unwrap().push(spawn_true()),
        || by_child(EXEC) && by_child(EXEC_RAW) && forked(),
    );

    manager.stop().unwrap();
    let names = ["exec_count", "fork_count", "exec_raw_count"];
    let counts = names.map(|name| counters.get(name));
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    let seen = hits.len();
    spawn_true();
    assert_eq!(names.map(|name| counters.get(name)), counts);
    assert_eq!(hits.len(), seen);
}

#[test]
fn hook_of_the_declaration_beats_the_section() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let hits = Hits::default();
    let manager = Manager::builder()
        .probe(Probe::new("attach_fork").hook(Hook::tracepoint("sched", "sched_process_exec")))
        .probe(Probe::new("attach_exec_raw").hook(Hook::raw_tracepoint("sched_process_fork")))
        .constant("target_tgid", std::process::id())
        .ring_buffer("hits", hits.handler())
        .build()
        .unwrap();
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    // Only the parent is counted: forks reach the raw program, executions by
    // the child reach nobody.
    let raw = || !hits.of(EXEC_RAW).is_empty();
    let fork = || {
        spawn_true();
    };
    act_until("a fork", fork, raw);
    manager.stop().unwrap();
    assert!(hits.of(FORK).is_empty());
}

#[test]
fn one_function_is_attached_under_several_names() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let hits = Hits::default();
    let exec = Hook::tracepoint("sched", "sched_process_exec");
    let manager = Manager::builder()
        .probe(Probe::new("attach_fork"))
        .probe(Probe::new("attach_fork").uid("exec").hook(exec))
        .ring_buffer("hits", hits.handler())
        .build()
        .unwrap();
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    let names: Vec<String> = manager.probes().iter().map(|p| p.0.to_string()).collect();
    assert_eq!(names, ["attach_fork", "attach_fork (exec)"]);
    let child = spawn_true();
    // Forked by the parent, executed by the child.
    let by = |tgid| hits.of(FORK).iter().any(|hit| hit.tgid == tgid);
    wait_until("both hits", || by(std::process::id()) && by(child));
    manager.stop().unwrap();
}

/// To one hook a program is attached once, but for raw tracepoints since 6.10,
/// which know a link rather than its program. A hook that is seldom called, for
/// the second program makes the kernel rewrite the call, and an emulated
/// machine may trip over code that changes under it.
#[test]
fn one_function_twice_on_one_hook_is_the_kernels_to_refuse() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = Manager::builder()
        .probe(Probe::new("attach_exec_raw"))
        .probe(Probe::new("attach_exec_raw").uid("again"))
        .build()
        .unwrap();
    manager.init(&attach_object()).unwrap();
    let start = manager.start();
    if kernel_version() < (6, 10) {
        let Err(ManagerError::Attach { probe, source }) = start else {
            panic!("{start:?}")
        };
        assert_eq!(probe.to_string(), "attach_exec_raw (again)");
        assert!(source.is(Errno::EEXIST), "{source}");
        assert_eq!(manager.state(), State::Initialised);
        return;
    }
    start.unwrap();
    let counters = Counters::of(&manager);
    let before = counters.get("exec_raw_count");
    spawn_true();
    assert!(counters.get("exec_raw_count") >= before + 2);
    manager.stop().unwrap();
}

/// Events in tracefs of processes that are not there are removed at the start
/// of whatever may make some on an old kernel.
#[test]
fn leavings_are_swept_for_every_kind_of_probe() {
    if !require(&UPROBE.mounted("tracefs")) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // Of this pid namespace.
    let namespace = std::fs::metadata("/proc/self/ns/pid").unwrap().ino();
    let file = mount_of("tracefs").unwrap().join("uprobe_events");
    let add = |group: &str| {
        let line = format!("p:{group}/left_behind /proc/self/exe:0x1000");
        let mut events = std::fs::OpenOptions::new().append(true).open(&file);
        std::io::Write::write_all(events.as_mut().unwrap(), line.as_bytes()).unwrap();
    };
    let is_there = |group: &str| std::fs::read_to_string(&file).unwrap().contains(group);
    let session = UprobeMulti::pattern("libc.so.6", "getppid");
    let kernel_session = KprobeMulti::pattern("no_such_function_*");
    let mark = Usdt::new("libc.so.6", "libc", "no_such_mark");
    let kinds: [(&str, &str, Hook); 8] = [
        ("usdt.bpf.o", "on_usdt", mark.into()),
        ("probes.bpf.o", "on_uprobe_session", session.clone().into()),
        ("probes.bpf.o", "on_kprobe_session", kernel_session.into()),
        ("probes.bpf.o", "on_uprobe_multi", session.into()),
        (
            "probes.bpf.o",
            "on_kprobe_multi",
            KprobeMulti::pattern("nothing_*").into(),
        ),
        (
            "probes.bpf.o",
            "on_uprobe",
            Uprobe::symbol("libc.so.6", "getppid").into(),
        ),
        (
            "probes.bpf.o",
            "on_kprobe",
            Kprobe::new("no_such_function").into(),
        ),
        ("probes.bpf.o", "on_libc", Hook::section()),
    ];
    for (number, (object, function, hook)) in kinds.into_iter().enumerate() {
        let group = format!("ebpf_manager_99999998_{}_{namespace}_{number}", number + 1);
        let manager = Manager::builder()
            .probe(Probe::new(function).hook(hook).optional())
            .build()
            .unwrap();
        if let Err(err) = manager.init(&ObjectSource::path(testdata(object))) {
            // Other programs of the object are of later kernels.
            assert!(kernel_version() < (5, 15), "{function}: {err}");
            continue;
        }
        let loaded = manager.probe(function).unwrap().is_initialised();
        add(&group);
        manager
            .start()
            .unwrap_or_else(|e| panic!("{function}: {e}"));
        assert_ne!(is_there(&group), loaded, "{function}");
        if !loaded {
            assert!(kernel_version() < (6, 13), "{function} is not loaded");
            ebpf_manager::bpf::remove_stale_probe_events().unwrap();
        }
        manager.stop().unwrap();
    }
}
