//! Tracing links: each mechanism attaches, fires, stops at the detach and at
//! the drop, can be attached twice, and a failure leaves nothing behind.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

#[path = "links_trace/cookies.rs"]
mod cookies;
#[path = "links_trace/kprobe.rs"]
mod kprobe;
#[path = "links_trace/tracepoint.rs"]
mod tracepoint;
#[path = "links_trace/uprobe.rs"]
mod uprobe;

use common::{Feature, LeakCheck, TempDir, built_with, require, testdata};
use ebpf_manager::bpf::{
    Collection, Errno, Link, LinkError, LoadOptions, Mechanism, Program, open_object,
    syscall_function,
};
use ebpf_manager::elf::symbols;

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

fn call_both() {
    call_probed();
    std::hint::black_box(probed_function_two(std::hint::black_box(1)));
}

fn tracepoints_of_system_calls() -> bool {
    built_with("CONFIG_FTRACE_SYSCALLS") != Some(false)
}
