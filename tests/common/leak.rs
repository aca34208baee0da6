//! What a test left behind: descriptors, mappings, threads, children, kernel
//! objects, pins, probe events, network hooks.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io, process, thread};

use super::objects::{self, Kind};

/// The kernel frees programs, maps and perf events after a grace period.
const PATIENCE: Duration = Duration::from_secs(3);

/// Compares what the process and the kernel hold at its drop (or
/// [`LeakCheck::finish`]) with what they held when it began, and fails the test
/// if anything was added.
///
/// Begin it before anything else in the test, so that it is dropped last and no
/// other test sees what this one makes: one test at a time holds a check, on the
/// whole machine, because the kernel's objects have no owner. All tests of a
/// binary that make such objects should hold one.
#[must_use]
pub(crate) struct LeakCheck {
    before: BTreeSet<Trace>,
    finished: bool,
    _turn: Turn,
}

impl LeakCheck {
    pub(crate) fn begin() -> LeakCheck {
        let turn = Turn::wait();
        LeakCheck {
            before: snapshot(),
            finished: false,
            _turn: turn,
        }
    }

    /// Takes what there is now for the state to return to: for what a process
    /// keeps on purpose, such as a cache that the first use fills.
    pub(crate) fn rebase(&mut self) {
        self.before = snapshot();
    }

    /// What the check looks at in the calling thread's network namespace.
    pub(crate) fn network_hooks() -> Vec<String> {
        objects::network_hooks()
    }

    /// Checks now rather than at the drop.
    ///
    /// # Panics
    /// If anything is left, naming it.
    pub(crate) fn finish(self) {
        self.finish_within(PATIENCE);
    }

    /// As [`LeakCheck::finish`], giving the kernel this long to free things.
    pub(crate) fn finish_within(mut self, patience: Duration) {
        self.check(patience);
    }

    /// Checks now, and goes on.
    ///
    /// # Panics
    /// If anything is left, naming it.
    pub(crate) fn check_now(&self) {
        self.look(PATIENCE);
    }

    fn check(&mut self, patience: Duration) {
        self.finished = true;
        self.look(patience);
    }

    fn look(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        let mut left = added(&self.before);
        while !left.is_empty() && Instant::now() < deadline {
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
            left = added(&self.before);
        }
        if !left.is_empty() {
            let mut text = String::new();
            for trace in &left {
                let _ = write!(text, "\n  {}", describe(trace));
            }
            panic!("the test left behind:{text}");
        }
    }
}

impl Drop for LeakCheck {
    fn drop(&mut self) {
        // A test that fails for another reason says that reason only.
        if !self.finished && !thread::panicking() {
            self.check(PATIENCE);
        }
    }
}

/// The right to run alone: first within this process, then on the machine.
struct Turn {
    _machine: UnixListener,
    _process: MutexGuard<'static, ()>,
}

impl Turn {
    fn wait() -> Turn {
        static TURN: Mutex<()> = Mutex::new(());
        // Before waiting, so that whoever has the turn knows this thread.
        TESTS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(tid());
        let process = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // An abstract socket name has one holder and goes with its process.
        let name = SocketAddr::from_abstract_name("ebpf-manager-tests").expect("short name");
        let deadline = Instant::now() + Duration::from_secs(120);
        let machine = loop {
            match UnixListener::bind_addr(&name) {
                Ok(listener) => break listener,
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(e) => panic!("another test process keeps the machine: {e}"),
            }
        };
        Turn {
            _machine: machine,
            _process: process,
        }
    }
}

/// Threads of the test runner that wait for their turn or had it.
static TESTS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn tid() -> u32 {
    let link = fs::read_link("/proc/thread-self").expect("/proc is mounted");
    number(link.file_name().unwrap_or_default().to_str().unwrap_or(""))
        .expect("ends in the thread's number")
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

/// One thing that can be left behind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trace {
    /// Number, and what the kernel calls it.
    Fd(u32, String),
    /// Address range and name of a mapping shared with the kernel.
    Mapping(String),
    Thread(u32),
    Child(u32),
    Object(Kind, u32),
    Pin(PathBuf),
    ProbeEvent(String),
    Network(String),
}

fn snapshot() -> BTreeSet<Trace> {
    let mut traces = BTreeSet::new();
    for (fd, path) in entries(Path::new("/proc/self/fd")) {
        // The directory being read is an open descriptor too, gone by now.
        if let (Some(fd), Ok(target)) = (number(&fd), fs::read_link(path)) {
            traces.insert(Trace::Fd(fd, target.to_string_lossy().into_owned()));
        }
    }
    for line in lines("/proc/self/maps") {
        if line.contains("anon_inode:") {
            traces.insert(Trace::Mapping(line));
        }
    }
    for (task, path) in entries(Path::new("/proc/self/task")) {
        traces.extend(number(&task).map(Trace::Thread));
        let children = fs::read_to_string(path.join("children")).unwrap_or_default();
        traces.extend(
            children
                .split_whitespace()
                .filter_map(number)
                .map(Trace::Child),
        );
    }
    for kind in Kind::ALL {
        traces.extend(
            objects::ids(kind)
                .into_iter()
                .map(|id| Trace::Object(kind, id)),
        );
    }
    if let Some(root) = super::mount_of("bpf") {
        pins(&root, &mut traces);
    }
    if let Some(root) = super::mount_of("tracefs") {
        for file in ["kprobe_events", "uprobe_events"] {
            let list = root.join(file);
            traces.extend(lines(list).into_iter().map(Trace::ProbeEvent));
        }
    }
    traces.extend(objects::network_hooks().into_iter().map(Trace::Network));
    traces
}

/// Traces there are now but were not in `before`, other processes' left out.
fn added(before: &BTreeSet<Trace>) -> Vec<Trace> {
    let mut new: Vec<_> = snapshot().difference(before).cloned().collect();
    if new.iter().any(|t| matches!(t, Trace::Object(..))) {
        let foreign = objects::held_elsewhere();
        new.retain(|t| !matches!(t, Trace::Object(kind, id) if foreign.contains(&(*kind, *id))));
    }
    new.retain(|trace| match trace {
        Trace::Thread(tid) => {
            let tests = TESTS.lock().unwrap_or_else(PoisonError::into_inner);
            !tests.contains(tid)
        }
        Trace::ProbeEvent(line) => !names_other_process(line),
        Trace::Pin(path) => !names_other_process(&path.to_string_lossy()),
        _ => true,
    });
    new
}

/// True if `text` carries the number of another living process and not ours:
/// probe events and test directories are named after their process.
fn names_other_process(text: &str) -> bool {
    let name = text.split(' ').next().unwrap_or(text);
    let numbers = || {
        name.split(|c: char| !c.is_ascii_digit())
            // Counters are small, and so are the processes of the system.
            .filter(|digits| digits.len() > 2)
            .filter_map(number)
    };
    numbers().all(|pid| pid != process::id())
        && numbers().any(|pid| Path::new("/proc").join(pid.to_string()).exists())
}

fn describe(trace: &Trace) -> String {
    match trace {
        Trace::Fd(fd, target) => {
            let mut text = format!("descriptor {fd}: {target}");
            for line in lines(format!("/proc/self/fdinfo/{fd}")) {
                if line.contains("_id:") || line.contains("_type:") {
                    let _ = write!(text, ", {}", line.replace('\t', " "));
                }
            }
            text
        }
        Trace::Mapping(line) => format!("mapping {line}"),
        Trace::Thread(tid) => format!("thread {tid} {:?}", comm(&format!("self/task/{tid}"))),
        Trace::Child(pid) => format!("child process {pid} {:?}", comm(&pid.to_string())),
        Trace::Object(kind, id) => objects::describe(*kind, *id),
        Trace::Pin(path) => format!("pin {}", path.display()),
        Trace::ProbeEvent(line) => format!("probe event {line}"),
        Trace::Network(text) => text.clone(),
    }
}

fn comm(process: &str) -> String {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

fn lines(path: impl AsRef<Path>) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().map(str::to_owned).collect()
}

/// Names and paths in a directory; nothing for one that cannot be read.
fn entries(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
        .collect()
}

fn pins(dir: &Path, traces: &mut BTreeSet<Trace>) {
    for (_, path) in entries(dir) {
        if path.is_dir() {
            pins(&path, traces);
        }
        traces.insert(Trace::Pin(path));
    }
}
