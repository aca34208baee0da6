//! The manager's life over real hooks: what each action does in each state,
//! what a failure undoes, and that nothing is left at the end.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

#[path = "lifecycle/changes.rs"]
mod changes;
#[path = "lifecycle/cleaning.rs"]
mod cleaning;
#[path = "lifecycle/defaults.rs"]
mod defaults;
#[path = "lifecycle/editing.rs"]
mod editing;
#[path = "lifecycle/failures.rs"]
mod failures;
#[path = "lifecycle/handlers.rs"]
mod handlers;
#[path = "lifecycle/hook_traps.rs"]
mod hook_traps;
#[path = "lifecycle/hooks.rs"]
mod hooks;
#[path = "lifecycle/manage.rs"]
mod manage;
#[path = "lifecycle/outcomes.rs"]
mod outcomes;
#[path = "lifecycle/pausing.rs"]
mod pausing;
#[path = "lifecycle/records.rs"]
mod records;
#[path = "lifecycle/selection.rs"]
mod selection;
#[path = "lifecycle/traps.rs"]
mod traps;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Feature, LeakCheck, PERF_LINK, RING_BUFFER, Verdict, kernel_version, require, testdata,
};
use ebpf_manager::bpf::{Errno, Map, Mechanism, TestRun, pod};
use ebpf_manager::{
    Action, Builder, Hook, Manager, ManagerError, ObjectSource, Outcome, Probe, State, Times,
};

/// Attaching to tracepoints and reading a ring buffer.
const HOOKS: Feature = RING_BUFFER.mounted("tracefs");

/// `enum hook` of `attach.bpf.c`.
const EXEC: u32 = 1;
const EXEC_RAW: u32 = 2;
const ENTER: u32 = 3;
const FORK: u32 = 4;

/// Number of getpid(2), which `std::process::id` calls each time.
const GETPID: u64 = if cfg!(target_arch = "x86_64") {
    39
} else {
    172
};

/// What no test waits longer for, on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// `struct hit` of `attach.bpf.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hit {
    hook: u32,
    tgid: u32,
    detail: u64,
}

impl Hit {
    fn from_bytes(record: &[u8]) -> Hit {
        let hit: &[u8; 16] = record.try_into().expect("a record is a struct hit");
        let word = |at: usize| u32::from_ne_bytes(*hit[at..].first_chunk().unwrap());
        Hit {
            hook: word(0),
            tgid: word(4),
            detail: u64::from_ne_bytes(*hit[8..].first_chunk().unwrap()),
        }
    }
}

/// Everything a handler was given.
#[derive(Clone, Default)]
struct Hits(Arc<Mutex<Vec<Hit>>>);

impl Hits {
    fn handler(&self) -> impl FnMut(&[u8]) + Send + 'static {
        let hits = self.clone();
        move |record| hits.0.lock().unwrap().push(Hit::from_bytes(record))
    }

    fn of(&self, hook: u32) -> Vec<Hit> {
        let hits = self.0.lock().unwrap();
        hits.iter().filter(|h| h.hook == hook).copied().collect()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

fn attach_object() -> ObjectSource {
    ObjectSource::path(testdata("attach.bpf.o"))
}

/// Counts this process's getpid(2), with what it hits handed to `handler`.
fn getpid_builder(handler: impl FnMut(&[u8]) + Send + 'static) -> Builder {
    Manager::builder()
        .probe(Probe::new("attach_enter"))
        .constant("target_tgid", std::process::id())
        .constant("target_syscall", GETPID)
        .ring_buffer("hits", handler)
}

/// Calls getpid(2) so often.
fn hit(times: usize) {
    for _ in 0..times {
        let _ = std::process::id();
    }
}

/// Acts until `done`: an event may be missed where the kernel runs a program
/// once per CPU at a time (Linux 7.0 and later, raw tracepoints).
fn act_until(what: &str, mut act: impl FnMut(), done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        act();
        thread::sleep(Duration::from_millis(1));
    }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    act_until(what, || (), done);
}

/// Runs `work` on another thread and fails if it does not end: a deadlock
/// should fail its test, not hang all others.
fn within<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    let thread = thread::spawn(move || send.send(work()));
    let result = match receive.recv_timeout(PATIENCE) {
        Err(RecvTimeoutError::Timeout) => panic!("hangs: {what}"),
        result => result,
    };
    let ended = thread.join();
    result.unwrap_or_else(|_| panic!("{what}: {ended:?}"))
}

/// Counters of `attach.bpf.c`, readable also after the manager has stopped.
struct Counters {
    map: Map,
    offsets: Vec<(String, usize)>,
}

impl Counters {
    fn of(manager: &Manager) -> Counters {
        let object = ebpf_manager::bpf::open_object(testdata("attach.bpf.o")).unwrap();
        let offsets = object.variables().iter();
        Counters {
            map: Map::clone(&manager.map(".bss").unwrap()),
            offsets: offsets
                .map(|v| (v.name.clone(), v.offset as usize))
                .collect(),
        }
    }

    fn get(&self, name: &str) -> u64 {
        let mut value = vec![0; self.map.value_size()];
        assert!(self.map.lookup(&0_u32.to_ne_bytes(), &mut value).unwrap());
        let (_, at) = self.offsets.iter().find(|(n, _)| n == name).unwrap();
        u64::from_ne_bytes(*value[*at..].first_chunk().unwrap())
    }
}

/// Whether a record tells the reader of itself.
#[derive(Clone, Copy)]
enum Wakeup {
    IfWaiting = 0,
    /// `BPF_RB_NO_WAKEUP`.
    Never = 1,
}

/// Asks the generator of `ringbuf.bpf.c` for `count` records of 16 to 256
/// bytes, numbered from `first`. Returns how many found no room.
fn generate(manager: &Manager, first: u64, count: u32, wakeup: Wakeup) -> u64 {
    let mut packet = [0_u8; 64];
    packet[14..22].copy_from_slice(&first.to_ne_bytes());
    let request = [count, 7, 16, 256, 0, wakeup as u32];
    packet[22..46].copy_from_slice(pod::slice_bytes(&request));
    let program = manager.program("ringbuf_output");
    let program = program.expect("the manager is initialised");
    let mut run = TestRun {
        data_in: &packet,
        repeat: 1,
        ..TestRun::default()
    };
    let lost = program.test_run(&mut run).unwrap().retval;
    assert_ne!(lost, u32::MAX, "a bad request");
    lost.into()
}

fn generator_object() -> ObjectSource {
    ObjectSource::path(testdata("ringbuf.bpf.o"))
}

fn spawn_true() -> u32 {
    let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    pid
}

fn is_send_and_sync<T: Send + Sync>() {}

#[test]
fn manager_may_be_shared_between_threads() {
    is_send_and_sync::<Manager>();
    is_send_and_sync::<ManagerError>();
}

#[test]
fn life_goes_round_and_leaves_nothing() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let hits = Hits::default();
    let manager = getpid_builder(hits.handler()).build().unwrap();
    assert_eq!(manager.state(), State::Declared);
    assert_eq!(manager.times(), Times::default());
    assert!(manager.map("hits").is_none());

    for _ in 0..3 {
        let before = hits.len();
        manager.init(&attach_object()).unwrap();
        assert_eq!(manager.state(), State::Initialised);
        assert!(manager.map("hits").is_some());
        assert!(manager.program("attach_enter").is_some());
        let counters = Counters::of(&manager);
        hit(10);
        assert_eq!(counters.get("enter_count"), 0, "attached by init");

        manager.start().unwrap();
        assert_eq!(manager.state(), State::Running);
        let [(id, outcome)] = &manager.probes()[..] else {
            panic!("one probe")
        };
        assert_eq!(id.to_string(), "attach_enter");
        let attached = outcome.attached().unwrap();
        assert_eq!(attached.mechanism, Mechanism::RawTracepointOpen);
        assert!(attached.fallbacks.is_empty(), "{outcome}");
        assert_eq!(outcome.to_string(), "attached by raw_tracepoint_open");
        let times = manager.times();
        assert!(times.parse > Duration::ZERO && times.verify > Duration::ZERO);
        assert!(times.maps > Duration::ZERO && times.attach > Duration::ZERO);
        if kernel_version() >= (6, 1) {
            assert_eq!(manager.losses(), []);
        }
        act_until("a hit", || hit(1), || hits.len() > before);

        manager.stop().unwrap();
        assert_eq!(manager.state(), State::Declared);
        assert_eq!(manager.times(), Times::default());
        assert_eq!(manager.probes()[0].1, Outcome::Detached);
        assert!(manager.map("hits").is_none());
        let (count, seen) = (counters.get("enter_count"), hits.len());
        hit(10);
        assert_eq!(counters.get("enter_count"), count, "attached after stop");
        assert_eq!(hits.len(), seen, "read after stop");
    }

    let mine = std::process::id();
    let hits = hits.0.lock().unwrap();
    for found in &*hits {
        let expected = Hit {
            hook: ENTER,
            tgid: mine,
            detail: GETPID,
        };
        assert_eq!(*found, expected);
    }
    let stats = manager.stream_stats("hits").unwrap();
    assert_eq!(stats.records, hits.len() as u64);
    assert_eq!(stats.bytes, 16 * hits.len() as u64);
    assert_eq!(manager.stream_stats("nope"), None);
}

#[test]
fn actions_in_the_wrong_state_are_refused_and_change_nothing() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = getpid_builder(|_| ()).build().unwrap();
    let refused = |result: Result<(), ManagerError>, action, state, text: &str| {
        let err = result.unwrap_err();
        assert_eq!(err, ManagerError::State { action, state });
        assert_eq!(err.to_string(), text);
        assert_eq!(manager.state(), state);
    };
    refused(
        manager.start(),
        Action::Start,
        State::Declared,
        "cannot start a manager that is declared; init it first",
    );
    manager.stop().unwrap();
    manager.init(&attach_object()).unwrap();
    refused(
        manager.init(&attach_object()),
        Action::Init,
        State::Initialised,
        "cannot init a manager that is initialised; stop it first",
    );
    manager.start().unwrap();
    refused(
        manager.init(&attach_object()),
        Action::Init,
        State::Running,
        "cannot init a manager that is running; stop it first",
    );
    manager.stop().unwrap();
    manager.stop().unwrap();
    manager.init(&attach_object()).unwrap();
    manager.stop().unwrap();
    assert_eq!(manager.state(), State::Declared);
}

#[test]
fn start_twice_attaches_once() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = getpid_builder(|_| ()).build().unwrap();
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    manager.start().unwrap();
    assert_eq!(manager.state(), State::Running);
    let counters = Counters::of(&manager);
    hit(100);
    // Other tests of this process wait meanwhile and call no getpid(2).
    assert!((1..=100).contains(&counters.get("enter_count")));
    manager.stop().unwrap();
}

#[test]
fn dropping_a_running_manager_stops_it() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let hits = Hits::default();
    let manager = getpid_builder(hits.handler()).build().unwrap();
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    let counters = Counters::of(&manager);
    act_until("a hit", || hit(1), || hits.len() > 0);

    // One handle of two is no end.
    let clone = manager.clone();
    drop(manager);
    assert_eq!(clone.state(), State::Running);
    let before = counters.get("enter_count");
    act_until(
        "another hit",
        || hit(1),
        || counters.get("enter_count") > before,
    );
    drop(clone);
    let count = counters.get("enter_count");
    hit(10);
    assert_eq!(counters.get("enter_count"), count);
    assert_eq!(hits.len() as u64 + counters.get("lost_count"), count);
}

/// Many threads ask for everything at once: each is told no in an orderly way,
/// and the manager is always in a state that it can be stopped from.
#[test]
fn concurrent_actions_end_in_a_consistent_state() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = getpid_builder(|_| ()).build().unwrap();
    let deadline = Instant::now() + Duration::from_millis(800);
    let threads: Vec<_> = (0..6)
        .map(|nth| {
            let manager = manager.clone();
            thread::spawn(move || {
                let mut went = [0_u32; 3];
                for turn in nth.. {
                    if Instant::now() > deadline {
                        break;
                    }
                    let action = turn % 3;
                    let result = match action {
                        0 => manager.init(&attach_object()),
                        1 => manager.start(),
                        _ => manager.stop(),
                    };
                    match result {
                        Ok(()) => went[action] += 1,
                        Err(ManagerError::State { .. } | ManagerError::Busy { .. }) => {}
                        Err(err) => panic!("{err}"),
                    }
                    hit(1);
                    assert_eq!(manager.probes().len(), 1);
                    let _ = (manager.times(), manager.losses(), manager.state());
                }
                went
            })
        })
        .collect();
    let went = threads.into_iter().map(|t| t.join().unwrap());
    let went = went.fold([0; 3], |sum, went| {
        std::array::from_fn(|i| sum[i] + went[i])
    });
    assert!(went.iter().all(|count| *count > 0), "{went:?}");
    let (state, initialised) = (manager.state(), manager.map("hits"));
    assert_eq!(initialised.is_some(), state != State::Declared);
    assert_eq!(
        state == State::Running,
        manager.probes()[0].1 != Outcome::Detached
    );
    manager.stop().unwrap();
    assert_eq!(manager.state(), State::Declared);
}

/// A process that is killed cannot clean up; everything a manager makes goes
/// with its descriptors all the same.
#[test]
fn a_killed_process_leaves_nothing() {
    const ROLE: &str = "EBPF_MANAGER_TEST_RUNS_UNTIL_KILLED";
    if std::env::var_os(ROLE).is_some() {
        let manager = getpid_builder(|_| ())
            .probe(Probe::new("attach_exec"))
            .build()
            .unwrap();
        manager.init(&attach_object()).unwrap();
        manager.start().unwrap();
        std::io::Write::write_all(&mut std::io::stdout(), b"\nready\n").unwrap();
        loop {
            thread::sleep(PATIENCE);
        }
    }
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_process_leaves_nothing", "--nocapture"])
        .env(ROLE, "")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(output);
    assert!(lines.any(|line| line.unwrap() == "ready"));
    let mut held = String::new();
    for fd in std::fs::read_dir(format!("/proc/{}/fdinfo", child.id())).unwrap() {
        held += &std::fs::read_to_string(fd.unwrap().path()).unwrap();
    }
    assert!(held.contains("prog_id:") && held.contains("map_id:"));
    child.kill().unwrap();
    child.wait().unwrap();
}
