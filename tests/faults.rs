//! Every system call that a manager makes in its life fails once: the error is
//! reported, nothing is half done, nothing is left behind, and doing it again
//! works.
//!
//! A supervisor (seccomp(2)) sees the calls of the thread that the manager
//! runs on, and of those that it starts. A first run is recorded; then there
//! is a run for each call, which fails that time.
//!
//! `EBPF_MANAGER_TEST_FAULTS` takes a part of a call's name as in
//! `start: bpf(BPF_LINK_CREATE)`: only such calls fail, and what became of
//! each is printed.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use std::{fs, thread};

use common::cycle::{
    check_runs, cycle_builder, cycle_object, files, filters, frame_by_netlink, has_xdp,
    kernel_by_event, packet_by_filter, probe_events, says, user_by_event,
};
use common::{Feature, LeakCheck, NetNs, RING_BUFFER, TempDir, built_with, require, say};
use ebpf_manager::bpf::{Errno, NetNamespace, PerfBufferOptions};
use ebpf_manager::{
    Cleanup, Manager, ManagerError, MapOptions, MapRoute, Probe, Sink, State, Stream, TailCall,
};
use ebpf_manager_sys::abi::bpf::Command;
use ebpf_manager_sys::fd;
use ebpf_manager_sys::seccomp::{CALLS, Call, Watch, supervise};

/// Everything that the cycle uses. Pins, tracefs; the supervisor is older than
/// ring buffers.
const CYCLE: Feature = RING_BUFFER.mounted("tracefs").config(&[
    "CONFIG_SECCOMP_FILTER",
    "CONFIG_UPROBE_EVENTS",
    "CONFIG_NET_CLS_BPF",
    "CONFIG_VETH",
]);

/// What no run waits longer for, on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Act = fn(&Manager) -> Result<(), ManagerError>;

/// A manager's life: what is done, and the state it leads to.
const LIFE: [(&str, Act, State); 9] = [
    ("init", |m| m.init(&cycle_object()), State::Initialised),
    ("start", Manager::start, State::Running),
    (
        "add_hook",
        |m| m.add_hook(Probe::new("on_exit")),
        State::Running,
    ),
    ("clone_buffer", clone_buffer, State::Running),
    ("pause", Manager::pause, State::Paused),
    ("resume", Manager::resume, State::Running),
    ("pause_probe", |m| m.pause_probe("on_enter"), State::Running),
    ("detach_hook", |m| m.detach_hook("on_exit"), State::Running),
    ("stop", |m| m.stop_with(Cleanup::ALL), State::Declared),
];

fn clone_buffer(manager: &Manager) -> Result<(), ManagerError> {
    let stream = Stream::ring_buffer("more_events", Sink::handler(|_| ()));
    let cloned = manager.clone_buffer("events", &MapOptions::new(), stream);
    cloned.map(|_| ())
}

/// Whose life it is. Two, because what ends slowly (probe events wait for every
/// CPU) would make every run slow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// Pins, both kinds of buffers, routes, a filter, a raw tracepoint and a
    /// tracepoint.
    Plain,
    /// Events in tracefs.
    ProbeEvents,
}

/// The place where a life is led.
struct Scene {
    subject: Subject,
    ns: NetNs,
    pins: TempDir,
    events_before: Vec<String>,
}

fn own_events() -> Vec<String> {
    probe_events(&format!("ebpf_manager_{}_", std::process::id()))
}

impl Scene {
    fn new(subject: Subject) -> Scene {
        Scene {
            subject,
            ns: NetNs::with_veth().0,
            pins: TempDir::on_bpffs(),
            events_before: own_events(),
        }
    }

    fn manager(&self) -> Manager {
        let namespace = NetNamespace::from_fd(fd::dup(self.ns.as_fd()).unwrap()).unwrap();
        let path = |name: &str| self.pins.path().join(name);
        let builder = cycle_builder()
            .probe(Probe::new("on_enter"))
            .load_threads(1);
        let builder = match self.subject {
            Subject::Plain => builder
                .probe(Probe::new("on_exec").pin(path("on_exec")))
                .probe(packet_by_filter(&namespace))
                .probe(frame_by_netlink(&namespace))
                .map(
                    "settings",
                    MapOptions::new()
                        .pin(path("settings"))
                        .entry(&1_u32, &2_u64),
                )
                .tail_call(TailCall::new("jumps", 1, "landing"))
                .map_route(MapRoute::new("numbers", &2_u32, "number"))
                .ring_buffer("events", |_| ())
                .stream(Stream::perf_buffer(
                    "samples",
                    PerfBufferOptions::default(),
                    Sink::handler(|_| ()),
                )),
            Subject::ProbeEvents if has_kprobes() => {
                builder.probe(user_by_event()).probe(kernel_by_event())
            }
            Subject::ProbeEvents => builder.probe(user_by_event()),
        };
        builder.build().unwrap()
    }

    /// A pin that could not be removed stays, for whoever reads the error.
    fn remove_pins_that_stayed(&self, error: Option<&ManagerError>) {
        let text = error.map(ToString::to_string).unwrap_or_default();
        for name in files(self.pins.path()) {
            let path = self.pins.path().join(name);
            let said = format!("unlink {}", path.display());
            assert!(text.contains(&said), "{said}: {text}");
            fs::remove_file(path).unwrap();
        }
    }

    /// Checks that the world is what a manager in this state makes of it, after
    /// the first `done` things of its life.
    fn check(&self, manager: &Manager, state: State, done: usize) {
        let plain = usize::from(self.subject == Subject::Plain);
        let running = state == State::Running;
        let kprobes = usize::from(has_kprobes());
        assert_eq!(manager.state(), state);

        let mut events = own_events();
        events.retain(|event| !self.events_before.contains(event));
        let wanted = usize::from(running) * (1 - plain) * (1 + kprobes);
        assert_eq!(events.len(), wanted, "{events:?}");
        let (filters, clsact) = filters(&self.ns);
        let wanted = usize::from(running) * plain;
        assert_eq!((filters.len(), usize::from(clsact)), (wanted, wanted));
        assert_eq!(has_xdp(&self.ns), running && plain == 1);
        let pins = files(self.pins.path());
        if state == State::Declared {
            assert!(pins.is_empty(), "{pins:?}");
            assert!(manager.maps().is_empty() && manager.programs().is_empty());
            return;
        }
        assert_eq!(pins.len(), 2 * plain, "{pins:?}");

        let added = done_between(done, "add_hook", "detach_hook");
        let mut wanted = 2 + usize::from(added) + if plain == 1 { 2 } else { kprobes };
        if state == State::Initialised {
            wanted = 0;
        }
        let probes = manager.probes();
        let attached = probes.iter().filter(|(_, outcome)| outcome.is_running());
        assert_eq!(attached.count(), wanted, "{probes:?}");
        let one_paused = done_between(done, "pause_probe", "stop");
        check_runs(manager, "on_enter", running && !one_paused);
        check_runs(manager, "on_exit", running && added);
        if plain == 0 {
            check_runs(manager, "on_user", running);
        }
        let routed = state != State::Initialised && plain == 1;
        assert_eq!(says(manager, "jump"), if routed { 7 } else { 0 });
        assert_eq!(says(manager, "look"), routed.into());
        let cloned = manager.map("more_events").is_some();
        assert_eq!(cloned, done_between(done, "clone_buffer", "stop"));
    }
}

/// Whether the first `done` things include `from` and not `to`.
fn done_between(done: usize, from: &str, to: &str) -> bool {
    let at = |name: &str| LIFE.iter().position(|(known, ..)| *known == name).unwrap();
    (at(from) + 1..=at(to)).contains(&done)
}

fn has_kprobes() -> bool {
    built_with("CONFIG_KPROBE_EVENTS") == Some(true)
}

/// Descriptors but sockets, which a namespace keeps.
fn descriptors() -> Vec<String> {
    let mut all = Vec::new();
    for fd in fs::read_dir("/proc/self/fd").unwrap() {
        if let Ok(target) = fs::read_link(fd.unwrap().path()) {
            all.push(target.to_string_lossy().into_owned());
        }
    }
    all.retain(|target| !target.starts_with("socket:") && !target.contains("/fd"));
    all.sort();
    all
}

/// A call of a life: the thing that was done, the call's name, and which of
/// those of that name it was then, from 0.
type Place = (usize, String, usize);

/// What became of a life: where an error was reported, and the calls.
struct Life {
    reported: Option<(usize, ManagerError)>,
    calls: Vec<Place>,
    reached: bool,
}

/// Index of "nothing is done": the test looks around.
const IDLE: usize = LIFE.len();

/// Leads a life on a thread that is watched: things up to `last`, then the last
/// of all. Calls that `refuse` has a number for fail with it.
fn live(scene: &Scene, last: usize, refuse: &mut dyn FnMut(&Place) -> Option<Errno>) -> Life {
    let manager = scene.manager();
    let current = Arc::new(AtomicUsize::new(IDLE));
    let doing = Arc::clone(&current);
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let of_call = |(name, call): &(&str, i64)| Watch {
                call: *call,
                unless_none: (*name == "mmap").then_some(4),
            };
            let watches: Vec<Watch> = CALLS.iter().map(of_call).collect();
            let thread = fs::read_link("/proc/thread-self").unwrap();
            let thread = thread.file_name().unwrap().to_str().unwrap().parse();
            let supervisor = supervise(&watches);
            let supervised = supervisor.is_ok();
            send.send(supervisor.map(|s| (s, thread.unwrap()))).unwrap();
            assert!(supervised, "no supervisor");
            lead(scene, &manager, last, &doing)
        });
        let (supervisor, thread) = receive.recv().unwrap().expect("a supervisor");
        let mut life = Life {
            reported: None,
            calls: Vec::new(),
            reached: false,
        };
        let mut counts = BTreeMap::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let waited = supervisor.next(Duration::from_millis(5)).unwrap();
            let Some(call) = waited else {
                if worker.is_finished() {
                    break;
                }
                assert!(Instant::now() < deadline, "hangs");
                continue;
            };
            let step = current.load(Ordering::SeqCst);
            let named = (step != IDLE).then(|| name(&call, thread)).flatten();
            let mut refused = None;
            if let Some(name) = named {
                let count: &mut usize = counts.entry((step, name.clone())).or_default();
                let place = (step, name, *count);
                *count += 1;
                refused = refuse(&place);
                life.reached |= refused.is_some();
                life.calls.push(place);
            }
            match refused {
                Some(errno) => supervisor.refuse(&call, errno).unwrap(),
                None => supervisor.allow(&call).unwrap(),
            }
        }
        let ended = worker.join();
        life.reported = ended.unwrap_or_else(|panic| resume_unwind(panic));
        life
    })
}

/// Does one thing after the other up to `last`, then the last. What fails is
/// done again, and must not fail then; returns the first error.
fn lead(
    scene: &Scene,
    manager: &Manager,
    last: usize,
    current: &AtomicUsize,
) -> Option<(usize, ManagerError)> {
    let mut reported = None;
    let mut before = State::Declared;
    let steps = LIFE.iter().enumerate();
    for (index, (name, act, after)) in steps.filter(|(i, _)| *i <= last || *i + 1 == IDLE) {
        let held = descriptors();
        let act = || {
            current.store(index, Ordering::SeqCst);
            let result = act(manager);
            current.store(IDLE, Ordering::SeqCst);
            result
        };
        if let Err(error) = act() {
            assert!(reported.is_none(), "{name}: and {error}");
            reported = Some((index, error));
            // These do what they do in any case.
            let undone = !matches!(*name, "stop" | "detach_hook");
            if undone {
                scene.check(manager, before, index);
                assert_eq!(descriptors(), held, "{name}");
            } else {
                scene.remove_pins_that_stayed(reported.as_ref().map(|(_, error)| error));
                scene.check(manager, *after, index + 1);
            }
            if *name != "detach_hook" {
                act().unwrap_or_else(|error| panic!("{name}, once more: {error}"));
            }
        }
        if index <= last || *after == State::Declared {
            scene.check(manager, *after, index + 1);
        }
        before = *after;
    }
    reported
}

// ------------------------------------------------------------ names of calls

/// What a call is, for people and to be told from others; `None` for one that
/// is not the manager's.
fn name(call: &Call, thread: u32) -> Option<String> {
    /// `F_GETFD`: the standard library's own check before it closes something.
    const GETFD: u64 = 1;
    let (name, _) = CALLS.iter().find(|(_, number)| *number == call.number)?;
    let [first, second, .., fifth, _] = call.arguments;
    let text = match *name {
        "fcntl" if second == GETFD => return None,
        "bpf" => Command(first as u32).name().unwrap_or("bpf").to_owned(),
        "openat" | "readlinkat" | "statx" | "unlinkat" | "mkdirat" => match text_at(second) {
            path if path.is_empty() => format!("{name} {}", file(first)),
            path => format!("{name} {path}"),
        },
        "unlink" | "statfs" | "readlink" | "mkdir" => format!("{name} {}", text_at(first)),
        "ioctl" => format!("ioctl {second:#x} {}", file(first)),
        "mmap" => format!("mmap {}", file(fifth)),
        "read" | "write" | "pread64" | "fstat" | "fstatfs" | "fcntl" | "flock" | "getdents64"
        | "sendto" | "recvfrom" | "setsockopt" => format!("{name} {}", file(first)),
        _ => (*name).to_owned(),
    };
    Some(if call.thread == thread {
        text
    } else {
        format!("helper: {text}")
    })
}

/// What is behind a descriptor.
fn file(fd: u64) -> String {
    let target = fs::read_link(format!("/proc/self/fd/{}", fd as i32)).unwrap_or_default();
    let target = target.to_string_lossy();
    // `socket:[4711]`.
    plain(target.split_once(":[").map_or(&*target, |(kind, _)| kind))
}

/// The text at an address of this process.
fn text_at(address: u64) -> String {
    let memory = fs::File::open("/proc/self/mem").unwrap();
    let mut text = Vec::new();
    let mut byte = [0];
    while text.len() < 256
        && memory
            .read_at(&mut byte, address + text.len() as u64)
            .is_ok()
        && byte[0] != 0
    {
        text.push(byte[0]);
    }
    plain(&String::from_utf8_lossy(&text))
}

/// Without what differs from run to run: numbers of processes, tests, events.
fn plain(path: &str) -> String {
    let parts = path.split('/').map(|part| {
        let stem = part.trim_end_matches(|c: char| c.is_ascii_digit());
        match part {
            _ if part.starts_with("ebpf_manager_test_") => "test",
            _ if part.starts_with("ebpf_manager_") => "owner",
            _ if stem.is_empty() || stem.ends_with('_') => stem,
            _ => part,
        }
    });
    parts.collect::<Vec<_>>().join("/")
}

// -------------------------------------------------------------------- faults

/// A number that this call may really fail with, and that does not stand for
/// a kernel which is too old.
fn errno_for(name: &str) -> Errno {
    let name = name.strip_prefix("helper: ").unwrap_or(name);
    let call = name.split(' ').next().unwrap_or(name);
    match call {
        "openat" | "socket" | "epoll_create1" | "eventfd2" | "memfd_create" | "fcntl" => {
            Errno::EMFILE
        }
        "clone" | "clone3" => Errno::EAGAIN,
        "read" | "pread64" | "write" | "unlink" | "unlinkat" => Errno::EIO,
        _ => Errno::ENOMEM,
    }
}

/// Calls that may fail without any harm, and why.
const HARMLESS: &[(&str, &str)] = &[
    (
        "init: bpf(BPF_BTF_LOAD)",
        "again with less; programs run without",
    ),
    ("init: bpf(BPF_MAP_CREATE)", "again without its types"),
    ("init: bpf(BPF_PROG_LOAD)", "again, for the verifier's log"),
    (
        "start: openat /sys/kernel/tracing/",
        "leavings are looked for; elsewhere, too",
    ),
    (
        "start: read /sys/kernel/tracing/",
        "leavings are looked for; elsewhere, too",
    ),
    ("start: readlink /proc/self", "leavings are looked for"),
    ("start: statx /proc/", "leavings are looked for"),
    (
        "start: bpf(BPF_MAP_LOOKUP_ELEM)",
        "a slot that does not show counts as empty",
    ),
    (
        "start: socket",
        "nobody tells of processors that come and go",
    ),
    (
        "start: openat /proc/thread-self/ns/net",
        "the namespace is entered all the same",
    ),
    (
        "resume: openat /proc/thread-self/ns/net",
        "the namespace is entered all the same",
    ),
    (
        "resume: openat /sys/kernel/tracing/",
        "where else it may be",
    ),
    ("resume: read /sys/kernel/tracing/", "where else it may be"),
    (
        "pause: openat /sys/kernel/tracing/",
        "events are removed again and again",
    ),
    (
        "pause: write /sys/kernel/tracing/",
        "events are removed again and again",
    ),
    (
        "stop: openat /sys/kernel/tracing/",
        "events are removed again and again",
    ),
    (
        "stop: write /sys/kernel/tracing/",
        "events are removed again and again",
    ),
    (
        "openat /proc/thread-self/fd/",
        "the namespace's lock is waited for",
    ),
    ("flock net", "the namespace's lock is waited for"),
    ("sendto socket", "filters are looked for again"),
    ("recvfrom socket", "filters are looked for again"),
    ("helper: sched_getaffinity", "the C library's affair"),
    ("helper: setsockopt socket", "options of later kernels"),
    ("helper: read anon_inode", "read when it is drained again"),
    (
        "helper: recvfrom",
        "told to the stream, which looks for CPUs again",
    ),
    ("helper: bpf(BPF_MAP_DELETE_ELEM)", "the map is closed"),
    ("stop: close_range", "closed one by one"),
];

/// One of these words is in the error if such a call failed.
fn words(call: &str) -> &'static [&'static str] {
    match call {
        "openat" => &["open ", "read "],
        "read" => &["read ", "read("],
        "statx" => &["stat ", "read "],
        "write" => &["write ", "write("],
        "clone" | "clone3" => &["thread", "clone"],
        "eventfd2" => &["eventfd"],
        "mmap" => &["mmap"],
        "ioctl" => &["ioctl("],
        "sendto" | "recvfrom" => &["RTM_"],
        _ => &[],
    }
}

/// What became of a life with a fault; `Err` if that is not as it should be.
fn judge(lived: &Life, place: &Place, errno: Errno) -> Result<String, String> {
    let (step, name, _) = place;
    let by_helper = name.strip_prefix("helper: ");
    if !lived.reached {
        // Threads of the manager's own take their time.
        return match by_helper {
            Some(_) => Ok("not reached".to_owned()),
            None => Err("not reached".to_owned()),
        };
    }
    let Some((at, error)) = &lived.reported else {
        let label = format!("{}: {name}", LIFE[*step].0);
        let known = |(part, _): &&(&str, &str)| label.starts_with(part) || name.starts_with(part);
        let reason = HARMLESS.iter().find(known);
        let reason = reason.ok_or("nothing is reported")?;
        return Ok(format!("harmless: {}", reason.1));
    };
    let text = format!("{}: {error}", LIFE[*at].0);
    if !text.contains(&format!("{errno:?}")) {
        return Err(format!("the number is not in: {text}"));
    }
    if at != step && by_helper.is_none() {
        return Err(format!("not reported at once but: {text}"));
    }
    let call = by_helper.unwrap_or(name);
    let call = call.split(' ').next().unwrap_or(call);
    let named = words(call).iter().any(|word| text.contains(word)) || text.contains(call);
    if !named {
        return Err(format!("the call is not in: {text}"));
    }
    Ok(text)
}

/// Lets every call of a life fail in turn.
fn fail_everywhere(subject: Subject) {
    let filter = std::env::var("EBPF_MANAGER_TEST_FAULTS").ok();
    let mut leaks = LeakCheck::begin();
    let whole_life = || live(&Scene::new(subject), IDLE, &mut |_| None);
    // What is kept for the life of the process is there after a first run.
    assert!(whole_life().reported.is_none());
    leaks.rebase();
    let mut places = whole_life().calls;
    leaks.check_now();
    // One of each kind first: there may not be time for all.
    places.sort_by_key(|(_, _, nth)| *nth);
    let (start, mut done, mut failed) = (Instant::now(), 0, Vec::new());
    for place in &places {
        let (step, name, nth) = place;
        let label = format!("{}: {name} #{nth}", LIFE[*step].0);
        if filter.as_ref().is_some_and(|part| !label.contains(part)) {
            continue;
        }
        if filter.is_none() && start.elapsed() > common::time_for_a_long_test() {
            break;
        }
        let errno = errno_for(name);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut left = Some(errno);
            let mut refuse = |at: &Place| if at == place { left.take() } else { None };
            let lived = live(&Scene::new(subject), *step, &mut refuse);
            leaks.check_now();
            judge(&lived, place, errno)
        }));
        let outcome = outcome.unwrap_or_else(|panic| {
            leaks.rebase();
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.unwrap_or_else(|| "see above".to_owned()))
        });
        if filter.is_some() {
            say(&format!("{label}: {outcome:?}"));
        }
        if let Err(what) = outcome {
            failed.push(format!("{label}: {errno:?}: {what}"));
        }
        done += 1;
    }
    say(&format!("{done} of {} calls failed once", places.len()));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_call_may_fail() {
    if require(&CYCLE) {
        fail_everywhere(Subject::Plain);
    }
}

#[test]
fn every_call_for_probe_events_may_fail() {
    if require(&CYCLE) {
        fail_everywhere(Subject::ProbeEvents);
    }
}

/// A signal may come at any time.
#[test]
fn every_call_may_be_interrupted() {
    if !require(&CYCLE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    for subject in [Subject::Plain, Subject::ProbeEvents] {
        let mut interrupted = std::collections::BTreeSet::new();
        let mut refuse = |(step, name, _): &Place| {
            let call = name.strip_prefix("helper: ").unwrap_or(name);
            let call = call.split([' ', '(']).next().unwrap_or(call);
            // Every other one: the call that was interrupted is made again.
            let key = (*step, name.clone());
            let first = INTERRUPTIBLE.contains(&call) && interrupted.insert(key.clone());
            if !first {
                interrupted.remove(&key);
            }
            first.then_some(Errno::EINTR)
        };
        let lived = live(&Scene::new(subject), IDLE, &mut refuse);
        if let Some((at, error)) = lived.reported {
            panic!("{}: {error}", LIFE[at].0);
        }
    }
}

/// What the kernel may give up for a signal, by its manual.
const INTERRUPTIBLE: &[&str] = &[
    "bpf",
    "epoll_pwait",
    "epoll_wait",
    "flock",
    "ioctl",
    "openat",
    "perf_event_open",
    "pread64",
    "read",
    "recvfrom",
    "sendto",
    "write",
];
