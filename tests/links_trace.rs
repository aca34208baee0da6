//! Tracing links: each mechanism attaches, fires, stops at the detach and at
//! the drop, can be attached twice, and a failure leaves nothing behind.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use common::{
    Feature, KPROBE, KPROBE_MULTI, KPROBE_PMU, LeakCheck, PERF_LINK, ROOT, TempDir, UPROBE,
    UPROBE_MULTI, built_with, mount_of, require, testdata,
};
use ebpf_manager::bpf::{
    Collection, Cure, Errno, Kprobe, KprobeMulti, Link, LinkError, LoadOptions, Mechanism,
    PerfHook, Program, Uprobe, UprobeMulti, open_object, remove_stale_probe_events,
    syscall_function,
};
use ebpf_manager::elf::symbols;
use ebpf_manager::{Manager, ObjectSource, Outcome, Probe};

const PATIENCE: Duration = Duration::from_secs(20);

/// A link on a kprobe's perf event.
const KPROBE_LINK: Feature =
    Feature::new("perf_event link", 5, 15).config(&["CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS"]);
/// Events in tracefs.
const KPROBE_EVENTS: Feature = KPROBE.mounted("tracefs");
const UPROBE_EVENTS: Feature = UPROBE.mounted("tracefs");

struct Fixture {
    collection: Collection,
}

impl Fixture {
    fn load(include: &[&str]) -> Fixture {
        let mut object = open_object(testdata("probes.bpf.o")).unwrap();
        object
            .set_variable("target_tgid", &std::process::id().to_ne_bytes())
            .unwrap();
        let mut options = LoadOptions::default();
        options.include = include.iter().map(ToString::to_string).collect();
        let collection = Collection::load(&object, options).unwrap_or_else(|e| panic!("{e}"));
        Fixture { collection }
    }

    fn program(&self, name: &str) -> &Program {
        self.collection.program(name).unwrap()
    }

    fn hits(&self) -> u64 {
        self.variable("hits")
    }

    fn variable(&self, name: &str) -> u64 {
        self.collection.variable(name).unwrap().get().unwrap()
    }

    /// Calls `act` once; how many more hits there are.
    fn counted(&self, act: &dyn Fn()) -> u64 {
        let before = self.hits();
        act();
        self.hits() - before
    }
}

/// What every link does, whatever the mechanism. Each `act` hits each link
/// `times` times.
fn conformance(
    fixture: &Fixture,
    mechanism: Mechanism,
    times: u64,
    act: &dyn Fn(),
    attach: &dyn Fn() -> Result<Link, LinkError>,
) {
    let ok = || attach().unwrap_or_else(|e| panic!("{mechanism}: {e}"));
    assert_eq!(fixture.counted(act), 0, "{mechanism}: before");
    let link = ok();
    assert_eq!(link.mechanism(), mechanism);
    assert_eq!(fixture.counted(act), times, "{mechanism}: attached");
    let second = ok();
    assert_eq!(fixture.counted(act), 2 * times, "{mechanism}: twice");
    link.detach().unwrap();
    assert_eq!(fixture.counted(act), times, "{mechanism}: first detached");
    drop(second);
    assert_eq!(fixture.counted(act), 0, "{mechanism}: dropped");
    let mut again = ok();
    assert_eq!(fixture.counted(act), times, "{mechanism}: again");
    again.silence();
    let heard = fixture.counted(act);
    if mechanism == Mechanism::PerfEventLink {
        assert_eq!(heard, 0, "{mechanism}: silent");
    }
    again.detach().unwrap();
    assert_eq!(fixture.counted(act), 0, "{mechanism}: detached");
}

/// A link the kernel knows: it has an id, and a pin keeps it.
fn conformance_of_kernel_links(
    fixture: &Fixture,
    times: u64,
    act: &dyn Fn(),
    attach: &dyn Fn() -> Result<Link, LinkError>,
) {
    let link = attach().unwrap();
    let id = link.id().unwrap().expect("it has an id");
    let info = link.info().unwrap().unwrap();
    assert_eq!(info.id, id);
    let directory = TempDir::on_bpffs();
    let path = directory.path().join("link");
    link.pin(&path).unwrap();
    drop(link);
    assert_eq!(fixture.counted(act), times, "the pin keeps it");
    let link = Link::from_pin(&path).unwrap();
    assert_eq!(link.id().unwrap(), Some(id));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(fixture.counted(act), times, "the descriptor keeps it");
    drop(link);
    assert_eq!(fixture.counted(act), 0, "nothing keeps it");
    let err = Link::from_pin(&path).unwrap_err();
    assert!(err.is(Errno::ENOENT), "{err}");
    // Another kind of object is not taken for a link.
    fixture.program("on_uprobe").pin(&path).unwrap();
    assert!(Link::from_pin(&path).is_err());
}

fn getpid() {
    let _ = std::process::id();
}

#[inline(never)]
fn probed_function(depth: u32) -> u32 {
    if std::hint::black_box(depth) == 0 {
        1
    } else {
        2
    }
}

#[inline(never)]
fn probed_function_two(depth: u32) -> u32 {
    std::hint::black_box(depth) + 3
}

fn call_probed() {
    std::hint::black_box(probed_function(std::hint::black_box(1)));
}

/// The compiler's names of the functions of this binary that `part` is in.
fn symbols_with(part: &str) -> Vec<String> {
    let bytes = std::fs::read("/proc/self/exe").unwrap();
    let mut found: Vec<String> = Vec::new();
    symbols::for_each_function(&bytes, &mut |symbol| {
        let name = String::from_utf8_lossy(symbol.name);
        if name.contains(part) && !found.iter().any(|known| *known == name) {
            found.push(name.into_owned());
        }
    })
    .unwrap();
    found
}

fn probed_symbol() -> String {
    let mut all = symbols_with("probed_function");
    all.retain(|name| !name.contains("probed_function_two"));
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

// ------------------------------------------------------------------ cookies

const RAW_TP_COOKIE: Feature = Feature::new("raw tracepoint cookie", 6, 10);

#[test]
fn links_trace_cookies() {
    if !require(&PERF_LINK.mounted("tracefs")) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let sum = |fixture: &Fixture, link: Link, act: &dyn Fn()| {
        let before = fixture.variable("last_cookie");
        act();
        link.detach().unwrap();
        fixture.variable("last_cookie") - before
    };
    if tracepoints_of_system_calls() {
        let fixture = Fixture::load(&["on_tracepoint_cookie"]);
        let program = fixture.program("on_tracepoint_cookie");
        let link = Link::tracepoint_with(program, "syscalls", "sys_enter_getpid", 7).unwrap();
        assert_eq!(sum(&fixture, link, &getpid), 7);
    }
    // Loading it needs what attaching needs.
    if require(&RAW_TP_COOKIE) {
        let fixture = Fixture::load(&["on_raw_tp_cookie"]);
        let program = fixture.program("on_raw_tp_cookie");
        let link = Link::raw_tracepoint_with(program, "sys_enter", 8).unwrap();
        assert_eq!(sum(&fixture, link, &getpid), 8);
    } else {
        let fixture = Fixture::load(&["on_raw_tp_writable"]);
        let program = fixture.program("on_raw_tp_writable");
        let err = Link::raw_tracepoint_with(program, "sys_enter", 8).unwrap_err();
        assert!(matches!(err, LinkError::Unsupported { .. }), "{err}");
    }
    if require(&KPROBE_MULTI) {
        let fixture = Fixture::load(&["on_kprobe_multi_cookie"]);
        let program = fixture.program("on_kprobe_multi_cookie");
        // The kernel sorts the functions, and the cookies with them.
        let names = ["getppid", "getpid"].map(|name| syscall_function(name).unwrap());
        let probe = KprobeMulti::symbols(names).cookies([100, 1]);
        let link = Link::kprobe_multi(program, &probe).unwrap();
        assert_eq!(sum(&fixture, link, &getpid), 1);
    }
    if require(&UPROBE_MULTI) {
        let fixture = Fixture::load(&["on_uprobe_multi_cookie"]);
        let program = fixture.program("on_uprobe_multi_cookie");
        let names = symbols_with("probed_function");
        let cookies = names
            .iter()
            .map(|name| if name.contains("_two") { 100 } else { 1 });
        let cookies: Vec<u64> = cookies.collect();
        let probe = UprobeMulti::symbols("/proc/self/exe", names).cookies(cookies);
        let link = Link::uprobe_multi(program, &probe).unwrap();
        assert_eq!(sum(&fixture, link, &call_both), 101);
        let two = UprobeMulti::symbols("/proc/self/exe", [probed_symbol()]).cookies([1, 2]);
        let err = Link::uprobe_multi(program, &two).unwrap_err();
        assert!(err.is(Errno::EINVAL), "{err}");
    }
}

fn tracepoints_of_system_calls() -> bool {
    built_with("CONFIG_FTRACE_SYSCALLS") != Some(false)
}

#[test]
fn links_trace_writable_raw_tracepoint() {
    if !require(&ROOT) || common::kernel_version() < (5, 2) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&["on_raw_tp_writable"]);
    let program = fixture.program("on_raw_tp_writable");
    let link = Link::raw_tracepoint(program, "sys_enter").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(link.mechanism(), Mechanism::RawTracepointOpen);
    assert_eq!(fixture.counted(&getpid), 1);
    link.detach().unwrap();
    assert_eq!(fixture.counted(&getpid), 0);
}

/// Programs at entry and return of each call.
const KPROBE_SESSION: Feature =
    Feature::new("kprobe.session", 6, 10).config(&["CONFIG_KPROBES", "CONFIG_FPROBE"]);
const UPROBE_SESSION: Feature =
    Feature::new("uprobe.session", 6, 13).config(&["CONFIG_UPROBES", "CONFIG_UPROBE_EVENTS"]);

#[test]
fn links_trace_kprobe_session() {
    if !require(&KPROBE_MULTI) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&["on_kprobe_session"]);
    let program = fixture.program("on_kprobe_session");
    let probe = KprobeMulti::symbols([syscall_function("getpid").unwrap()]);
    if common::kernel_version() < (6, 10) {
        let err = Link::kprobe_multi(program, &probe).unwrap_err();
        assert!(matches!(err, LinkError::Unsupported { .. }), "{err}");
    } else if require(&KPROBE_SESSION) {
        conformance(&fixture, Mechanism::KprobeMulti, 2, &getpid, &|| {
            Link::kprobe_multi(program, &probe)
        });
    }
}

#[test]
fn links_trace_uprobe_session() {
    if !require(&UPROBE_MULTI) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&["on_uprobe_session"]);
    let program = fixture.program("on_uprobe_session");
    let probe = UprobeMulti::symbols("/proc/self/exe", [probed_symbol()]);
    if common::kernel_version() < (6, 13) {
        let err = Link::uprobe_multi(program, &probe).unwrap_err();
        assert!(matches!(err, LinkError::Unsupported { .. }), "{err}");
    } else if require(&UPROBE_SESSION) {
        conformance(&fixture, Mechanism::UprobeMulti, 2, &call_probed, &|| {
            Link::uprobe_multi(program, &probe)
        });
    }
}

// ------------------------------------------------------------------ kprobes

fn kprobe_by(mechanism: Mechanism) {
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe");
    conformance(&fixture, mechanism, 1, &getpid, &|| {
        Link::kprobe(program, &Kprobe::syscall("getpid").attach_by(mechanism))
    });
    conformance(&fixture, mechanism, 1, &getpid, &|| {
        let probe = Kprobe::syscall("getpid").on_return();
        Link::kprobe(program, &probe.attach_by(mechanism))
    });
}

#[test]
fn links_trace_kprobe_by_link() {
    if !require(&KPROBE_LINK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    kprobe_by(Mechanism::PerfEventLink);
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe");
    let probe = Kprobe::syscall("getpid");
    let link = Link::kprobe(program, &probe).unwrap();
    assert_eq!(link.mechanism(), Mechanism::PerfEventLink, "the newest");
    drop(link);
    if mount_of("bpf").is_some() {
        conformance_of_kernel_links(&fixture, 1, &getpid, &|| Link::kprobe(program, &probe));
    }
}

#[test]
fn links_trace_kprobe_by_ioctl() {
    if !require(&KPROBE_PMU) {
        return;
    }
    let _leaks = LeakCheck::begin();
    kprobe_by(Mechanism::PerfEventIoctl);
}

#[test]
fn links_trace_kprobe_by_tracefs() {
    if !require(&KPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    kprobe_by(Mechanism::ProbeEvent);
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe");
    // maxactive has no other way.
    conformance(&fixture, Mechanism::ProbeEvent, 1, &getpid, &|| {
        let probe = Kprobe::syscall("getpid").on_return().maxactive(17);
        Link::kprobe(program, &probe)
    });
    let probe = Kprobe::syscall("getpid")
        .on_return()
        .maxactive(17)
        .label("my-label");
    let link = Link::kprobe(program, &probe).unwrap();
    let events = std::fs::read_to_string(mount_of("tracefs").unwrap().join("kprobe_events"));
    let events = events.unwrap();
    let line = events
        .lines()
        .find(|line| line.starts_with("r17:ebpf_manager_"));
    let name = line.unwrap().split(['/', ' ']).nth(1).unwrap();
    let function = syscall_function("getpid").unwrap();
    assert_eq!(
        name,
        format!("r_{function}_my_label_{}", std::process::id())
    );
    let err = link.pin("/sys/fs/bpf/unused".as_ref()).unwrap_err();
    assert!(matches!(err, LinkError::Impossible { .. }), "{err}");
}

#[test]
fn links_trace_kprobe_inside_a_function() {
    if !require(&KPROBE_PMU) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe");
    let symbol = syscall_function("getpid").unwrap();
    let mut fired = 0;
    let mut refused = 0;
    for offset in 1..12 {
        match Link::kprobe(program, &Kprobe::new(&symbol).offset(offset)) {
            Ok(_link) => fired += fixture.counted(&getpid),
            Err(LinkError::Attach {
                cure: Some(Cure::NotTraceable),
                ..
            }) => refused += 1,
            Err(err) => panic!("{err}"),
        }
    }
    assert!(fired > 0 && refused > 0, "{fired} fired, {refused} refused");
}

#[test]
fn links_trace_kprobe_errors_say_what_to_do() {
    if !require(&KPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe");
    for by in [None, Some(Mechanism::ProbeEvent)] {
        let mut probe = Kprobe::new("no_such_function_anywhere");
        probe.by = by;
        let err = Link::kprobe(program, &probe).unwrap_err();
        assert!(
            matches!(
                &err,
                LinkError::Attach {
                    cure: Some(Cure::NoSuchSymbol { similar }),
                    ..
                } if similar.is_empty()
            ),
            "{err}"
        );
    }
    // Marked nokprobe on every kernel.
    let err = Link::kprobe(program, &Kprobe::new("do_int3")).map(drop);
    if let Err(err) = err {
        assert!(
            matches!(
                &err,
                LinkError::Attach {
                    cure: Some(Cure::NotTraceable | Cure::NoSuchSymbol { .. }),
                    ..
                }
            ),
            "{err}"
        );
    }
    let err = Link::kprobe(program, &Kprobe::syscall("no_such_call")).unwrap_err();
    assert!(
        matches!(
            err,
            LinkError::NoTarget {
                kind: "system call",
                ..
            }
        ),
        "{err}"
    );
    let err = Link::kprobe(program, &Kprobe::new("")).unwrap_err();
    assert!(err.is(Errno::EINVAL), "{err}");
    // A program that cannot be attached there: the event is gone again.
    let wrong = fixture.program("on_perf_event");
    let err = Link::kprobe(wrong, &Kprobe::syscall("getpid")).unwrap_err();
    assert!(matches!(err, LinkError::WrongType { .. }), "{err}");
}

#[test]
fn links_trace_no_kprobes_is_told() {
    if !require(&ROOT) || built_with("CONFIG_KPROBES") != Some(false) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let err = Link::kprobe(fixture.program("on_kprobe"), &Kprobe::new("vfs_read")).unwrap_err();
    assert!(
        matches!(
            &err,
            LinkError::Attach {
                cure: Some(Cure::NoKprobes),
                tried,
                ..
            } if tried.len() == 2
        ),
        "{err}"
    );
    assert!(err.to_string().contains("CONFIG_KPROBES"), "{err}");
}

#[test]
fn links_trace_kprobe_multi() {
    if !require(&KPROBE_MULTI) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe_multi");
    let names = ["getpid", "getppid"].map(|name| syscall_function(name).unwrap());
    let both = || {
        getpid();
        let _ = std::os::unix::process::parent_id();
    };
    conformance(&fixture, Mechanism::KprobeMulti, 2, &both, &|| {
        Link::kprobe_multi(program, &KprobeMulti::symbols(names.clone()))
    });
    conformance(&fixture, Mechanism::KprobeMulti, 2, &both, &|| {
        let probe = KprobeMulti::symbols(names.clone()).on_return();
        Link::kprobe_multi(program, &probe)
    });
    if mount_of("tracefs").is_some() {
        // The list has one name for each place: __do_sys_getpid, perhaps.
        let pattern = "__*_sys_getp*id";
        conformance(&fixture, Mechanism::KprobeMulti, 2, &both, &|| {
            Link::kprobe_multi(program, &KprobeMulti::pattern(pattern))
        });
        let err = Link::kprobe_multi(program, &KprobeMulti::pattern("no_such_*")).unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
    }
    let absent = KprobeMulti::symbols(["no_such_function_anywhere"]);
    let err = Link::kprobe_multi(program, &absent).unwrap_err();
    assert!(
        matches!(
            &err,
            LinkError::Attach {
                cure: Some(Cure::NoSuchSymbol { .. }),
                ..
            }
        ),
        "{err}"
    );
}

#[test]
fn links_trace_many_kprobes_on_old_kernels() {
    if !require(&KPROBE_PMU) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    // Loaded as a plain kprobe: no kernel takes it for a multi link.
    let program = fixture.program("on_kprobe");
    let names = ["getpid", "getppid"].map(|name| syscall_function(name).unwrap());
    let both = || {
        getpid();
        let _ = std::os::unix::process::parent_id();
    };
    conformance(&fixture, Mechanism::PerfEventIoctl, 2, &both, &|| {
        let probe = KprobeMulti::symbols(names.clone());
        Link::kprobe_multi(program, &probe.attach_by(Mechanism::PerfEventIoctl))
    });
    // The first one is taken back when the second fails.
    let names = [&names[0], "no_such_function_anywhere"];
    let err = Link::kprobe_multi(program, &KprobeMulti::symbols(names)).unwrap_err();
    assert!(matches!(err, LinkError::Attach { .. }), "{err}");
    assert_eq!(fixture.counted(&both), 0);
}

#[test]
fn links_trace_manager_attaches_system_calls() {
    if !require(&KPROBE_PMU) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = Manager::builder()
        .probe(Probe::new("on_ksyscall"))
        .probe(Probe::new("on_kretsyscall"))
        .constant("target_tgid", std::process::id())
        .build()
        .unwrap();
    manager
        .init(&ObjectSource::path(testdata("probes.bpf.o")))
        .unwrap();
    manager.start().unwrap();
    getpid();
    let hits: u64 = manager.variable("hits").unwrap().get().unwrap();
    assert!(hits >= 2, "{hits} hits");
    for (id, outcome) in manager.probes() {
        assert!(matches!(outcome, Outcome::Attached(_)), "{id}: {outcome}");
    }
    manager.stop().unwrap();
}

// ------------------------------------------------------------------ uprobes

fn uprobe_by(mechanism: Mechanism) {
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_uprobe");
    let symbol = probed_symbol();
    let own = std::process::id();
    let entry = Uprobe::symbol("/proc/self/exe", &symbol).attach_by(mechanism);
    conformance(&fixture, mechanism, 1, &call_probed, &|| {
        Link::uprobe(program, &entry)
    });
    conformance(&fixture, mechanism, 1, &call_probed, &|| {
        Link::uprobe(program, &entry.clone().on_return())
    });
    conformance(&fixture, mechanism, 1, &call_probed, &|| {
        Link::uprobe(program, &entry.clone().pid(own))
    });
    // A library by its name.
    let library = Uprobe::symbol("libc.so.6", "getpid")
        .pid(own)
        .attach_by(mechanism);
    conformance(&fixture, mechanism, 1, &getpid, &|| {
        Link::uprobe(program, &library)
    });
    // Another process's probe does not fire here.
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let path = std::fs::read_link("/proc/self/exe").unwrap();
    let elsewhere = Uprobe::symbol(path, &symbol).pid(child.id());
    let link = Link::uprobe(program, &elsewhere.attach_by(mechanism));
    let count = fixture.counted(&call_probed);
    drop(link.unwrap_or_else(|e| panic!("{mechanism}: {e}")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(count, 0);
}

#[test]
fn links_trace_uprobe_by_link() {
    if !require(&PERF_LINK) || !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    uprobe_by(Mechanism::PerfEventLink);
    let fixture = Fixture::load(&["on_cookie"]);
    let program = fixture.program("on_cookie");
    let probe = Uprobe::symbol("/proc/self/exe", probed_symbol()).cookie(0xc00_c1e5);
    let link = Link::uprobe(program, &probe).unwrap();
    assert_eq!(link.mechanism(), Mechanism::PerfEventLink, "the newest");
    assert_eq!(fixture.counted(&call_probed), 1);
    assert_eq!(fixture.variable("last_cookie"), 0xc00_c1e5);
    drop(link);
    if mount_of("bpf").is_some() {
        conformance_of_kernel_links(&fixture, 1, &call_probed, &|| Link::uprobe(program, &probe));
    }
}

#[test]
fn links_trace_uprobe_by_ioctl() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    uprobe_by(Mechanism::PerfEventIoctl);
    let fixture = Fixture::load(&[]);
    let probe = Uprobe::symbol("/proc/self/exe", probed_symbol())
        .cookie(1)
        .attach_by(Mechanism::PerfEventIoctl);
    let err = Link::uprobe(fixture.program("on_uprobe"), &probe).unwrap_err();
    assert!(matches!(err, LinkError::Unsupported { .. }), "{err}");
}

#[test]
fn links_trace_uprobe_by_tracefs() {
    if !require(&UPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    uprobe_by(Mechanism::ProbeEvent);
    // The kernel refuses the program where it knows multi links: the event
    // that was made for it is gone again, which the leak check sees.
    let fixture = Fixture::load(&[]);
    let probe = Uprobe::symbol("/proc/self/exe", probed_symbol());
    let probe = probe.attach_by(Mechanism::ProbeEvent);
    drop(Link::uprobe(fixture.program("on_uprobe_multi"), &probe));
}

/// In the file, because it is not zero.
#[used]
static SEMAPHORE: AtomicU16 = AtomicU16::new(1);

/// File offset of the semaphore.
fn semaphore_offset() -> u64 {
    let address = (&raw const SEMAPHORE) as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let offset = maps.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let base = hex(fields.nth(1)?);
        (hex(start)..hex(end))
            .contains(&address)
            .then(|| address - hex(start) + base)
    });
    offset.expect("the semaphore is mapped")
}

#[test]
fn links_trace_uprobe_counts_in_its_semaphore() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_uprobe");
    let probe = Uprobe::symbol("/proc/self/exe", probed_symbol()).ref_counter(semaphore_offset());
    for mechanism in [Mechanism::PerfEventIoctl, Mechanism::ProbeEvent] {
        if mechanism == Mechanism::ProbeEvent && mount_of("tracefs").is_none() {
            continue;
        }
        let link = Link::uprobe(program, &probe.clone().attach_by(mechanism)).unwrap();
        // Some kernels count the registration and the opening.
        let held = SEMAPHORE.load(Ordering::Relaxed);
        assert!((2..=3).contains(&held), "{mechanism}: {held}");
        assert_eq!(fixture.counted(&call_probed), 1);
        link.detach().unwrap();
        assert_eq!(SEMAPHORE.load(Ordering::Relaxed), 1, "{mechanism}");
    }
}

#[test]
fn links_trace_uprobe_multi() {
    if !require(&UPROBE_MULTI) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_uprobe_multi");
    uprobe_many(&fixture, program, Mechanism::UprobeMulti, None);
    let probe = UprobeMulti::symbols("/proc/self/exe", symbols_with("probed_function"));
    if mount_of("bpf").is_some() {
        conformance_of_kernel_links(&fixture, 2, &call_both, &|| {
            Link::uprobe_multi(program, &probe)
        });
    }
}

#[test]
fn links_trace_many_uprobes_on_old_kernels() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let by = Mechanism::PerfEventIoctl;
    uprobe_many(&fixture, fixture.program("on_uprobe"), by, Some(by));
}

fn call_both() {
    call_probed();
    std::hint::black_box(probed_function_two(std::hint::black_box(1)));
}

fn uprobe_many(fixture: &Fixture, program: &Program, is: Mechanism, by: Option<Mechanism>) {
    let forced = |mut probe: UprobeMulti| {
        probe.by = by;
        probe
    };
    let names = symbols_with("probed_function");
    assert_eq!(names.len(), 2, "{names:?}");
    let exe = "/proc/self/exe";
    let own = std::process::id();
    conformance(fixture, is, 2, &call_both, &|| {
        Link::uprobe_multi(program, &forced(UprobeMulti::symbols(exe, names.clone())))
    });
    conformance(fixture, is, 2, &call_both, &|| {
        let probe = UprobeMulti::pattern(exe, "*probed_function*").pid(own);
        Link::uprobe_multi(program, &forced(probe.on_return()))
    });
}

#[test]
fn links_trace_uprobe_errors_say_what_to_do() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_uprobe");
    let attach = |probe: &Uprobe| Link::uprobe(program, probe).map(drop).unwrap_err();
    let err = attach(&Uprobe::symbol("/proc/self/exe", "no_such_function"));
    assert!(matches!(err, LinkError::Symbol { .. }), "{err}");
    assert!(err.to_string().contains("no_such_function"), "{err}");
    let err = attach(&Uprobe::symbol("/nowhere/at/all", "main"));
    assert!(err.is(Errno::ENOENT), "{err}");
    let err = attach(&Uprobe::symbol("libnowhere.so.9", "main"));
    assert!(err.is(Errno::ENOENT), "{err}");
    // An object is not a program.
    let err = attach(&Uprobe::symbol(testdata("probes.bpf.o"), "on_uprobe"));
    assert!(matches!(err, LinkError::Symbol { .. }), "{err}");
    let err = attach(&Uprobe::offset("/proc/self/exe", 1 << 40));
    assert!(matches!(err, LinkError::Attach { .. }), "{err}");
}

// ------------------------------------------------- what crashed processes left

#[test]
fn links_trace_stale_events_are_removed() {
    if !require(&UPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let file = mount_of("tracefs").unwrap().join("uprobe_events");
    let listed = || std::fs::read_to_string(&file).unwrap();
    let probe = Uprobe::symbol("/proc/self/exe", probed_symbol()).attach_by(Mechanism::ProbeEvent);
    let link = Link::uprobe(fixture.program("on_uprobe"), &probe).unwrap();
    // What a test that was killed left, too.
    remove_stale_probe_events().unwrap();
    let before = listed();
    let own = format!(":ebpf_manager_{}_", std::process::id());
    let line = before.lines().find(|l| l.contains(&own));
    let (head, place) = line.expect("the event is listed").split_once(' ').unwrap();
    let group = head.split([':', '/']).nth(1).unwrap();
    let numbers: Vec<&str> = group.rsplit('_').collect();
    let [_, namespace, start, pid, ..] = numbers.as_slice() else {
        panic!("{group}");
    };
    assert_eq!(pid, &std::process::id().to_string());
    let add = |group: &str| {
        let line = format!("p:{group}/left_behind {place}");
        let mut events = std::fs::OpenOptions::new().append(true).open(&file);
        std::io::Write::write_all(events.as_mut().unwrap(), line.as_bytes()).unwrap();
    };
    let remove = |group: &str| {
        let line = format!("-:{group}/left_behind");
        let mut events = std::fs::OpenOptions::new().append(true).open(&file);
        std::io::Write::write_all(events.as_mut().unwrap(), line.as_bytes())
    };
    // This number at an earlier time; a number nobody has; another namespace;
    // another program.
    let recycled = format!("ebpf_manager_{pid}_1_{namespace}_0");
    let dead = format!("ebpf_manager_99999999_{start}_{namespace}");
    let elsewhere = format!("ebpf_manager_99999999_{start}_1");
    let foreign = format!("other_manager_99999999_{start}_{namespace}");
    for group in [&recycled, &dead, &elsewhere, &foreign] {
        add(group);
    }
    let removed = remove_stale_probe_events();
    let after = listed();
    let kept = [remove(&elsewhere), remove(&foreign)];
    let gone = [remove(&recycled), remove(&dead)];
    assert_eq!(removed, Ok(2));
    assert!(after.contains(group), "the living keep theirs: {after}");
    assert!(kept.iter().all(Result::is_ok), "{after}");
    assert!(gone.iter().all(Result::is_err), "{after}");
    assert_eq!(remove_stale_probe_events(), Ok(0));
    assert_eq!(fixture.counted(&call_probed), 1);
    link.detach().unwrap();
    assert!(!listed().contains(group), "{}", listed());
}

// --------------------------------------------------------------- perf events

#[test]
fn links_trace_perf_event() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_perf_event");
    let cpu = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let last: u32 = cpu
        .trim()
        .rsplit(['-', ','])
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let mut hooks = vec![
        PerfHook::cpu_clock(1000),
        PerfHook::cpu_clock(1000).attach_by(Mechanism::PerfEventIoctl),
        PerfHook::cpu_clock(1000).cpus((0..=last).collect::<Vec<_>>()),
    ];
    // The main thread of a test binary waits; this is another one.
    let tid = std::fs::read_link("/proc/thread-self").unwrap();
    let tid = tid.file_name().unwrap().to_str().unwrap().parse().unwrap();
    hooks.push(PerfHook::cpu_clock(1000).pid(tid));
    for hook in &hooks {
        let link = Link::perf_event(program, hook).unwrap_or_else(|e| panic!("{hook:?}: {e}"));
        if let Some(by) = hook.by {
            assert_eq!(link.mechanism(), by);
        }
        let start = fixture.hits();
        let deadline = Instant::now() + PATIENCE;
        while fixture.hits() == start {
            assert!(Instant::now() < deadline, "{hook:?} never fires");
        }
        link.detach().unwrap();
        let end = fixture.hits();
        let spin = Instant::now() + Duration::from_millis(50);
        while Instant::now() < spin {}
        assert_eq!(fixture.hits(), end, "{hook:?} fires on");
    }
    let hook = PerfHook::cpu_clock(1000).cpus([1 << 20]);
    let err = Link::perf_event(program, &hook).unwrap_err();
    assert!(matches!(err, LinkError::Attach { .. }), "{err}");
    let hook = PerfHook::software(9999, ebpf_manager::bpf::Sampling::Period(1));
    let err = Link::perf_event(program, &hook).unwrap_err();
    assert!(
        matches!(
            err,
            LinkError::Attach {
                cure: Some(Cure::NoSuchEvent),
                ..
            }
        ),
        "{err}"
    );
}
