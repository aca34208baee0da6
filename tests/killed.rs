//! Processes that are killed at any moment leave nothing behind once the next
//! manager has started, and that takes nothing away from anybody else.
//!
//! `EBPF_MANAGER_TEST_KILLS` says how many are killed (1000, or as many as there
//! is time for, `EBPF_MANAGER_TEST_SECONDS`), `EBPF_MANAGER_TEST_SEED` when.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;
#[path = "killed/together.rs"]
mod together;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::{ExitStatusExt as _, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use common::cycle::{
    check_runs, cycle_builder, cycle_object, files, filters, kernel_by_event, packet_by_filter,
    probe_events, user_by_event, user_offset,
};
use common::{
    Feature, LeakCheck, NetNs, RING_BUFFER, Random, TempDir, built_with, mount_of, require, say,
};
use ebpf_manager::bpf::NetNamespace;
use ebpf_manager::{Cleanup, Closing, Manager, MapOptions, Probe};
use ebpf_manager_sys::abi::netlink::TcParent;
use ebpf_manager_sys::fd;
use ebpf_manager_sys::rtnl::{ALL_PROTOCOLS, ClsBpfFlags, FilterId, FilterSpec, Rtnl};

/// Tracefs events, filters and pins.
const LEAVINGS: Feature = RING_BUFFER.mounted("tracefs").config(&[
    "CONFIG_UPROBE_EVENTS",
    "CONFIG_NET_CLS_BPF",
    "CONFIG_VETH",
]);

const NAME: &str = "killed_processes_leave_nothing_after_the_next_start";

/// Where the processes to be killed find what they work on; set in those only.
const NAMESPACE: &str = "EBPF_MANAGER_TEST_NAMESPACE";
const PINS: &str = "EBPF_MANAGER_TEST_PINS";
const EVENTS: &str = "EBPF_MANAGER_TEST_EVENTS";

/// Processes that live, and are killed, at a time.
const AT_A_TIME: usize = 24;

/// One process of so many attaches to user and kernel functions as well. When
/// such a process dies, the kernel waits for all CPUs for each of its probes,
/// one after the other (a tenth of a second each): with all of them a thousand
/// would take minutes.
const WITH_EVENTS: usize = 4;

/// Numbers of processes that there are not.
const NOBODY: u32 = 99_999_999;

/// A manager of what outlives its process; `pins` is for one at a time.
fn manager(namespace: &NetNamespace, events: bool, pins: Option<&Path>) -> Manager {
    let mut builder = cycle_builder()
        .probe(Probe::new("on_enter"))
        .probe(packet_by_filter(namespace))
        .ring_buffer("events", |_| ());
    if events {
        builder = builder.probe(user_by_event());
    }
    if events && built_with("CONFIG_KPROBE_EVENTS") == Some(true) {
        builder = builder.probe(kernel_by_event());
    }
    if let Some(dir) = pins {
        let settings = MapOptions::new().entry(&1_u32, &2_u64).always_cleanup();
        builder = builder
            .probe(Probe::new("on_exec").pin(dir.join("program")))
            .map("settings", settings.pin(dir.join("settings")));
    }
    builder.build().unwrap()
}

/// Lives one life after the other until it is killed.
fn live_until_killed() {
    let parent = parent_id();
    let namespace = NetNamespace::open(Path::new(&env::var_os(NAMESPACE).unwrap())).unwrap();
    let pins = PathBuf::from(env::var_os(PINS).unwrap());
    let events = env::var_os(EVENTS).is_some();
    // Its kind is killed together with the test.
    while parent_id() == parent {
        let manager = manager(&namespace, events, Some(&pins));
        manager.init(&cycle_object()).unwrap();
        // Made by this process, or by one that was killed: never half.
        let mut value = [0; 8];
        let settings = manager.map("settings").unwrap();
        assert!(settings.lookup(&1_u32.to_ne_bytes(), &mut value).unwrap());
        assert_eq!(u64::from_ne_bytes(value), 2);
        manager.start().unwrap();
        let _ = std::io::stdout().write_all(b"\nstarted\n");
        manager.stop_with(Cleanup::ALL).unwrap();
    }
}

/// What others have, which nobody may touch.
struct Foreign {
    events: Vec<String>,
    filters: Vec<String>,
}

impl Foreign {
    /// Events and filters of other programs and of other pid namespaces, named
    /// after processes that are not there.
    fn make(ns: &NetNs, program: &ebpf_manager::bpf::Program) -> Foreign {
        let this = std::process::id();
        let groups = [
            format!("other_{this}_tool"),
            format!("ebpf_manager_{NOBODY}_{this}_1"),
            format!("my_ebpf_manager_{NOBODY}_{this}_1"),
        ];
        let place = format!("/proc/self/exe:{:#x}", user_offset());
        let names = groups
            .iter()
            .map(|group| format!("{group}/on_user_{NOBODY}"));
        let events: Vec<String> = names.collect();
        for event in &events {
            append(&format!("p:{event} {place}"));
        }
        let mut rtnl = Rtnl::open_in(ns.as_fd()).unwrap();
        let index = rtnl.link_by_name("veth0").unwrap().index;
        rtnl.clsact_add(index).unwrap();
        let filters = [
            format!("classifier_on_packet__{NOBODY}"),
            format!("ebpf_manager_{NOBODY}_{this}_1 tc__{NOBODY}"),
        ];
        for name in &filters {
            rtnl.filter_add(&FilterSpec {
                id: FilterId {
                    index,
                    parent: TcParent::INGRESS,
                    priority: 7,
                    protocol: ALL_PROTOCOLS,
                    handle: 0,
                },
                name,
                program: program.as_fd(),
                flags: ClsBpfFlags::DIRECT_ACTION,
            })
            .unwrap();
        }
        Foreign {
            events,
            filters: filters.into(),
        }
    }

    fn check(&self, ns: &NetNs) {
        for event in &self.events {
            assert_eq!(probe_events(event).len(), 1, "{event} is gone");
        }
        let there = filters(ns).0;
        for filter in &self.filters {
            assert!(there.contains(filter), "{filter} is gone: {there:?}");
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        for event in &self.events {
            if !probe_events(event).is_empty() {
                append(&format!("-:{event}"));
            }
        }
    }
}

fn append(line: &str) {
    let path = mount_of("tracefs").unwrap().join("uprobe_events");
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// A process that is going to be killed.
struct Mortal {
    child: Child,
    /// After so long.
    at: Duration,
    born: Instant,
}

impl Mortal {
    fn spawn(ns: &NetNs, pins: &Path, events: bool, at: Duration) -> Mortal {
        let namespace = format!("/proc/{}/fd/{}", std::process::id(), ns.as_fd().as_raw_fd());
        let mut command = Command::new(env::current_exe().unwrap());
        if events {
            command.env(EVENTS, "");
        }
        let child = command
            .args(["--exact", NAME, "--nocapture"])
            .env(NAMESPACE, namespace)
            .env(PINS, pins)
            .env("EBPF_MANAGER_TEST_OFFSET", user_offset().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Mortal {
            child,
            at,
            born: Instant::now(),
        }
    }

    /// Waits until it has started its manager; how long that took.
    fn started(&mut self) -> Duration {
        let mut output = BufReader::new(self.child.stdout.as_mut().unwrap()).lines();
        let started = output.any(|line| line.is_ok_and(|line| line == "started"));
        assert!(started, "it does not start: {}", self.complaint());
        self.born.elapsed()
    }

    /// When it is due.
    fn due(&self) -> Instant {
        self.born + self.at
    }

    fn kill(&mut self) {
        thread::sleep(self.due().saturating_duration_since(Instant::now()));
        self.child.kill().unwrap();
    }

    /// Whether it is dead and buried, after [`Mortal::kill`].
    fn is_gone(&mut self) -> bool {
        // Said again when asked again.
        let Some(status) = self.child.try_wait().unwrap() else {
            return false;
        };
        assert_eq!(status.signal(), Some(9), "{status}: {}", self.complaint());
        true
    }

    fn bury(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.is_gone() {
            assert!(Instant::now() < deadline, "it does not die");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn complaint(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        let _ = self
            .child
            .stderr
            .take()
            .map(|mut err| err.read_to_string(&mut text));
        text
    }
}

/// Checks that nothing is left of the dead.
fn check_nothing_is_left(ns: &NetNs, foreign: &Foreign, dead: &[u32]) {
    let mut there = probe_events("ebpf_manager_");
    there.retain(|line| {
        !foreign
            .events
            .iter()
            .any(|event| line.contains(event.as_str()))
    });
    there.extend(filters(ns).0);
    there.retain(|name| !foreign.filters.contains(name));
    for name in there {
        let numbers = name
            .split_once("ebpf_manager_")
            .map_or("", |(_, rest)| rest);
        let pid = numbers.split('_').next().unwrap_or("").parse::<u32>();
        let pid = pid.unwrap_or_else(|_| panic!("whose is {name}?"));
        assert!(!dead.contains(&pid), "left: {name}");
    }
    foreign.check(ns);
}

#[test]
fn killed_processes_leave_nothing_after_the_next_start() {
    if env::var_os(NAMESPACE).is_some() {
        return live_until_killed();
    }
    if !require(&LEAVINGS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let mut random = Random::from_environment();
    let kills = env::var("EBPF_MANAGER_TEST_KILLS").ok();
    let kills = kills.and_then(|text| text.parse().ok()).unwrap_or(1000);
    let ns = NetNs::with_veth().0;
    let namespace = NetNamespace::from_fd(fd::dup(ns.as_fd()).unwrap()).unwrap();
    let pins = TempDir::on_bpffs();
    let homes: Vec<PathBuf> = (0..AT_A_TIME)
        .map(|n| pins.path().join(n.to_string()))
        .collect();
    for home in &homes {
        fs::create_dir(home).unwrap();
    }

    // One that lives all the time.
    let survivor = manager(&namespace, true, None);
    survivor.init(&cycle_object()).unwrap();
    let foreign = Foreign::make(&ns, &survivor.program("on_packet").unwrap());
    survivor.start().unwrap();
    let next = manager(&namespace, true, None);
    next.init(&cycle_object()).unwrap();

    let mut first = Mortal::spawn(&ns, &homes[0], true, Duration::ZERO);
    let life = first.started() * 2;
    first.kill();
    first.bury();
    let mut spawn = |home: usize| {
        let at = life.mul_f64(random.fraction());
        let events = home.is_multiple_of(WITH_EVENTS);
        (home, Mortal::spawn(&ns, &homes[home], events, at))
    };
    let mut living: Vec<(usize, Mortal)> = (0..AT_A_TIME).map(&mut spawn).collect();
    let (begin, mut killed, mut dead) = (Instant::now(), 1, vec![first.child.id()]);
    let (mut dying, mut closing): (Vec<Mortal>, Vec<Closing>) = (Vec::new(), Vec::new());
    while !living.is_empty() {
        living.sort_by_key(|(_, mortal)| std::cmp::Reverse(mortal.due()));
        let (home, mut mortal) = living.pop().unwrap();
        mortal.kill();
        killed += 1;
        if killed + living.len() < kills && begin.elapsed() < common::time_for_a_long_test() {
            living.push(spawn(home));
        }
        // The kernel takes its time to close what it had.
        dying.push(mortal);
        if living.is_empty() || dying.len() > 4 * AT_A_TIME {
            dying.iter_mut().for_each(Mortal::bury);
        }
        dying.retain_mut(|mortal| {
            let gone = mortal.is_gone();
            if gone {
                dead.push(mortal.child.id());
            }
            !gone
        });
        if killed % AT_A_TIME == 0 || living.is_empty() {
            next.start().unwrap();
            check_nothing_is_left(&ns, &foreign, &dead);
            check_runs(&survivor, "on_user", true);
            // Detaching waits for every CPU; nothing here waits for that.
            closing.push(next.stop_within(Duration::ZERO, Cleanup::ALL).unwrap());
            next.init(&cycle_object()).unwrap();
        }
    }
    say(&format!("{killed} killed, seed {}", random.seed()));
    for closing in closing {
        closing.wait().unwrap();
    }
    next.stop().unwrap();
    // Pins stay by intention: the next to pin there uses them, and cleans up.
    for home in &homes {
        let heir = manager(&namespace, true, Some(home));
        heir.init(&cycle_object()).unwrap();
        heir.stop_with(Cleanup::ALL).unwrap();
        assert!(!files(home).contains(&"settings".to_owned()));
        let _ = fs::remove_file(home.join("program"));
    }
    check_runs(&survivor, "on_user", true);
    survivor.stop().unwrap();
    check_nothing_is_left(&ns, &foreign, &dead);
}
