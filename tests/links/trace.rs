//! Tracepoints, counters, and programs that are loaded for their hook.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{
    AttachTo, IterOver, Link, LinkError, Mechanism, PerfHook, Program, TestRun, Tracing,
    syscall_function,
};

use super::life::{Can, Kind, PLAIN, Pin, Second, begin, count, load};
use crate::common::{
    BPF_LSM, Feature, PERF_LINK, ROOT, TRACEPOINT, TRAMPOLINE, TempDir, kernel_version, skip,
};

const RAW_TRACEPOINT: Feature = Feature::new("raw tracepoint", 4, 17);
const WRITABLE: Feature = Feature::new("writable raw tracepoint", 5, 2);
const TP_BTF: Feature = Feature::new("tp_btf", 5, 5).config(&["CONFIG_DEBUG_INFO_BTF"]);
/// One program at entry and exit.
const FSESSION: Feature = Feature::new("fsession", 7, 0)
    .config(&["CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"])
    .refused_in_lockdown();
const ITERATOR: Feature = Feature::new("iterator", 5, 8).config(&["CONFIG_DEBUG_INFO_BTF"]);
const SYSCALL: Feature = Feature::new("syscall programs", 5, 14);

const HOOK: Kind<'static> = Kind {
    update: Can::No,
    pin: Pin::Holds,
    ..PLAIN
};

fn getpid() {
    let _ = std::process::id();
}

fn open_file() {
    drop(File::open("/dev/null").unwrap());
}

// -------------------------------------------------------------- tracepoints

#[test]
fn tracepoint() {
    let Some(_leaks) = begin(&[&TRACEPOINT]) else {
        return;
    };
    let by_link = kernel_version() >= (5, 15);
    Kind {
        programs: ["tracepoint_first", "tracepoint_second"],
        mechanism: if by_link {
            Mechanism::PerfEventLink
        } else {
            Mechanism::PerfEventIoctl
        },
        attach: &|program| Link::tracepoint(program, "raw_syscalls", "sys_enter"),
        poke: &getpid,
        again: Second::RefusedByName,
        pin: if by_link { Pin::Holds } else { Pin::Impossible },
        ..HOOK
    }
    .live();
}

fn raw(programs: [&str; 2], tracepoint: &str, poke: &dyn Fn()) {
    Kind {
        programs,
        mechanism: Mechanism::RawTracepointOpen,
        attach: &|program| Link::raw_tracepoint(program, tracepoint),
        poke,
        // Before, a program is at a tracepoint once.
        again: if kernel_version() >= (6, 10) {
            Second::Shares
        } else {
            Second::RefusedByName
        },
        ..HOOK
    }
    .live();
}

#[test]
fn raw_tracepoint() {
    if let Some(_leaks) = begin(&[&RAW_TRACEPOINT]) {
        let programs = ["raw_tracepoint_first", "raw_tracepoint_second"];
        raw(programs, "sys_enter", &getpid);
    }
}

#[test]
fn raw_tracepoint_writable() {
    if let Some(_leaks) = begin(&[&WRITABLE]) {
        let target = load("hooks.bpf.o", &["whole"], Vec::new());
        let whole = target.program("whole").unwrap();
        let programs = ["raw_writable_first", "raw_writable_second"];
        raw(programs, "bpf_test_finish", &|| test_run(whole));
    }
}

/// Runs a program for packets once.
fn test_run(program: &Program) {
    let mut run = TestRun {
        data_in: &[0; 64],
        repeat: 1,
        ..TestRun::default()
    };
    program.test_run(&mut run).unwrap();
}

// ------------------------------------------------------------------ counters

fn spin() {
    let end = Instant::now() + Duration::from_millis(3);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

fn perf_event(mechanism: Mechanism, pin: Pin) {
    let hook = PerfHook::cpu_clock(1000).attach_by(mechanism);
    Kind {
        programs: ["perf_event_first", "perf_event_second"],
        mechanism,
        attach: &|program| Link::perf_event(program, &hook),
        poke: &spin,
        pin,
        ..HOOK
    }
    .live();
}

#[test]
fn perf_event_by_link() {
    if let Some(_leaks) = begin(&[&PERF_LINK]) {
        perf_event(Mechanism::PerfEventLink, Pin::Impossible);
    }
}

#[test]
fn perf_event_by_ioctl() {
    if let Some(_leaks) = begin(&[&ROOT]) {
        perf_event(Mechanism::PerfEventIoctl, Pin::Impossible);
    }
}

// ------------------------------------ programs that are loaded for their hook

fn traced(name: &str, at: Option<&str>, by: Option<Mechanism>, poke: &dyn Fn(), again: Second) {
    let names = ["first", "second"].map(|which| format!("{name}_{which}"));
    let mut hook = Tracing::new();
    hook.by = by;
    Kind {
        programs: [&names[0], &names[1]],
        attach_to: &|| {
            let function = at.map(|call| syscall_function(call).unwrap());
            let to = |function: &String| {
                names
                    .iter()
                    .map(|n| AttachTo::kernel(n, function))
                    .collect()
            };
            function.as_ref().map_or_else(Vec::new, to)
        },
        mechanism: by.unwrap_or(Mechanism::TracingLink),
        attach: &|program| Link::tracing(program, &hook),
        poke,
        again,
        anew: if at_most_once(name) {
            Can::No
        } else {
            Can::Yes
        },
        ..HOOK
    }
    .live();
}

/// Linux before 5.13 attaches such programs once for each load, except to
/// tracepoints.
fn at_most_once(name: &str) -> bool {
    name != "tp_btf" && kernel_version() < (5, 13)
}

/// The way of this kernel.
fn newest() -> Option<Mechanism> {
    (kernel_version() < (5, 19)).then_some(Mechanism::RawTracepointOpen)
}

#[test]
fn fentry() {
    if let Some(_leaks) = begin(&[&TRAMPOLINE]) {
        traced("fentry", Some("getpid"), newest(), &getpid, Second::Refused);
    }
}

#[test]
fn fexit() {
    if let Some(_leaks) = begin(&[&TRAMPOLINE]) {
        traced("fexit", Some("getpid"), newest(), &getpid, Second::Refused);
    }
}

#[test]
fn fsession() {
    if let Some(_leaks) = begin(&[&FSESSION]) {
        traced("fsession", Some("getpid"), None, &getpid, Second::Refused);
    }
}

#[test]
fn fmod_ret() {
    if let Some(_leaks) = begin(&[&TRAMPOLINE]) {
        traced("fmod_ret", None, newest(), &open_file, Second::Refused);
    }
}

#[test]
fn lsm() {
    let Some(_leaks) = begin(&[&BPF_LSM]) else {
        return;
    };
    let active = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if !active.split(',').any(|lsm| lsm.trim() == "bpf") {
        skip("BPF is not among the active security modules");
        return;
    }
    traced("lsm", None, newest(), &open_file, Second::Refused);
}

#[test]
fn tp_btf() {
    if let Some(_leaks) = begin(&[&TP_BTF]) {
        let again = if kernel_version() >= (6, 10) {
            Second::Shares
        } else {
            Second::Refused
        };
        traced("tp_btf", None, newest(), &getpid, again);
    }
}

#[test]
fn freplace() {
    const AGAIN: Feature = Feature::new("attaching freplace again", 5, 10);
    let Some(_leaks) = begin(&[&TRAMPOLINE, &AGAIN]) else {
        return;
    };
    let target = load("hooks.bpf.o", &["whole"], Vec::new());
    let whole = target.program("whole").unwrap();
    let names = ["freplace_first", "freplace_second"];
    let run = || test_run(whole);
    Kind {
        programs: names,
        attach_to: &|| {
            let to = |name| AttachTo::program(name, whole, Some("replaceable")).unwrap();
            names.map(to).into()
        },
        mechanism: Mechanism::TracingLink,
        attach: &|program| Link::freplace(program, whole, "replaceable"),
        poke: &run,
        again: Second::Refused,
        second: Second::Refused,
        ..HOOK
    }
    .live();
    let to = AttachTo::program(names[0], whole, Some("replaceable")).unwrap();
    let collection = load("hooks.bpf.o", &names[..1], vec![to]);
    let program = collection.program(names[0]).unwrap();
    // Where it was loaded for.
    let link = Link::tracing(program, &Tracing::new()).unwrap();
    run();
    assert_eq!(count(&collection, names[0]), 1);
    link.detach().unwrap();
    let err = Link::freplace(program, whole, "no_such_function").unwrap_err();
    assert!(matches!(err, LinkError::NoTarget { .. }), "{err}");
}

/// It fires when it is read.
#[test]
fn iterator() {
    let Some(_leaks) = begin(&[&ITERATOR]) else {
        return;
    };
    let [first, second] = [(); 2].map(|()| load("typed.bpf.o", &["on_task"], Vec::new()));
    let [first, second] = [&first, &second].map(|c| c.program("on_task").unwrap());
    let own = std::process::id().to_ne_bytes();
    let finds_us = |link: &Link| {
        let mut bytes = Vec::new();
        link.read_iter().unwrap().read_to_end(&mut bytes).unwrap();
        bytes.chunks_exact(4).any(|pid| pid == own)
    };
    let mut link = Link::iter(first, IterOver::All).unwrap();
    assert_eq!(link.mechanism(), Mechanism::Iterator);
    assert!(finds_us(&link));
    let info = link.info().unwrap().unwrap();
    assert_eq!(info.prog_id, first.id().unwrap());
    link.update(second).unwrap();
    assert!(finds_us(&link));
    let other = Link::iter(first, IterOver::All).unwrap();
    assert!(finds_us(&other));
    other.detach().unwrap();
    let dir = TempDir::on_bpffs();
    let pin = dir.path().join("tasks");
    link.pin(&pin).unwrap();
    link.detach().unwrap();
    // A pin of an iterator is read like a file.
    let bytes = std::fs::read(&pin).unwrap();
    assert!(bytes.chunks_exact(4).any(|pid| pid == own));
    std::fs::remove_file(&pin).unwrap();
}

/// It is attached nowhere: it fires when it is called.
#[test]
fn syscall_by_test_run() {
    let Some(_leaks) = begin(&[&SYSCALL]) else {
        return;
    };
    let collection = load("hooks.bpf.o", &["syscall_first"], Vec::new());
    let program = collection.program("syscall_first").unwrap();
    assert_eq!(count(&collection, "syscall_first"), 0);
    for runs in 1..=2 {
        program.test_run(&mut TestRun::default()).unwrap();
        assert_eq!(count(&collection, "syscall_first"), runs);
    }
}
