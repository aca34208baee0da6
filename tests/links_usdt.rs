//! USDT: places that this program marks are found, fire, count in their
//! counter, and give their arguments, by every mechanism.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![cfg(target_arch = "x86_64")]

mod common;
#[path = "links_usdt/marks.rs"]
mod marks;

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{
    Feature, LeakCheck, PERF_LINK, TempDir, UPROBE, UPROBE_MULTI, kernel_version, mount_of,
    require, testdata,
};
use ebpf_manager::bpf::{
    Collection, Errno, Link, LinkError, LoadOptions, Map, Mechanism, Program, Usdt, UsdtSpecs,
    open_object,
};
use ebpf_manager::{Hook, Manager, ObjectSource, Outcome, Probe};
use marks::{COUNTER, marked, twice};

/// Uprobes with a counter.
const SEMAPHORES: Feature = Feature::new("uprobe reference counter", 4, 20)
    .config(&["CONFIG_UPROBES", "CONFIG_UPROBE_EVENTS"]);

fn act() {
    let table = [11, 22, 33, 44, 55, 66, 77, 88];
    marked(-5, 0x1234_5678_9abc_def0, std::hint::black_box(&table), 3);
}

fn act_twice() {
    twice(std::hint::black_box(100), std::hint::black_box(200));
}

struct Fixture {
    collection: Collection,
}

impl Fixture {
    fn load() -> Fixture {
        let mut object = open_object(testdata("usdt.bpf.o")).unwrap();
        object
            .set_variable("target_tgid", &std::process::id().to_ne_bytes())
            .unwrap();
        let mut options = LoadOptions::default();
        options.include = vec!["on_usdt".to_owned(), "on_mark".to_owned()];
        let collection = Collection::load(&object, options).unwrap_or_else(|e| panic!("{e}"));
        Fixture { collection }
    }

    fn program(&self) -> &Program {
        self.collection.program("on_usdt").unwrap()
    }

    fn specs(&self) -> UsdtSpecs {
        self.collection.usdt_specs().unwrap().expect("it has them")
    }

    fn attach(&self, usdt: &Usdt) -> Result<Link, LinkError> {
        Link::usdt(self.program(), Some(&self.specs()), usdt)
    }

    fn values(&self, name: &str) -> [i64; 12] {
        self.collection.variable(name).unwrap().get().unwrap()
    }

    fn number(&self, name: &str) -> u64 {
        self.collection.variable(name).unwrap().get().unwrap()
    }

    fn counted(&self, act: &dyn Fn()) -> u64 {
        let before = self.number("hits");
        act();
        self.number("hits") - before
    }
}

/// This program's place of this name, in this process: kernels without cookies
/// can tell it no other way.
fn own(name: &str) -> Usdt {
    Usdt::new("/proc/self/exe", "ebpf_manager", name).pid(std::process::id())
}

fn fires_with_arguments(fixture: &Fixture, usdt: &Usdt) {
    assert_eq!(COUNTER.load(Ordering::Relaxed), 0);
    let link = fixture.attach(usdt).unwrap_or_else(|e| panic!("{e}"));
    assert!(COUNTER.load(Ordering::Relaxed) > 0, "somebody traces");
    assert_eq!(fixture.counted(&act), 1);
    assert_eq!(fixture.number("last_count"), 7);
    assert_eq!(fixture.number("last_cookie"), usdt.cookie);
    let values = fixture.values("values");
    let errors = fixture.values("errors");
    assert_eq!(
        (&values[..5], values[6]),
        (&[-5, 0x1234_5678_9abc_def0, 11, 55, -7][..], 0xf0),
        "{errors:?}"
    );
    assert_eq!(errors[..7], [0, 0, 0, 0, 0, -22, 0]);
    link.detach().unwrap();
    assert_eq!(COUNTER.load(Ordering::Relaxed), 0, "nobody traces");
    assert_eq!(fixture.counted(&act), 0);
}

#[test]
fn links_usdt_arguments() {
    if !require(&SEMAPHORES) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load();
    fires_with_arguments(&fixture, &own("marked").cookie(0xabc));
    let link = fixture.attach(&own("marked")).unwrap();
    let newest = match kernel_version() {
        (6, 6..) | (7.., _) => Mechanism::UprobeMulti,
        (5, 15..) | (6, _) => Mechanism::PerfEventLink,
        _ => Mechanism::PerfEventIoctl,
    };
    assert_eq!(link.mechanism(), newest);
    if kernel_version() >= (5, 15) {
        let everywhere = Usdt::new("/proc/self/exe", "ebpf_manager", "marked");
        drop(link);
        fires_with_arguments(&fixture, &everywhere);
    } else {
        let everywhere = Usdt::new("/proc/self/exe", "ebpf_manager", "marked");
        let err = fixture.attach(&everywhere).unwrap_err();
        assert!(matches!(err, LinkError::Unsupported { .. }), "{err}");
    }
}

#[test]
fn links_usdt_several_places_of_one_name() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load();
    let link = fixture.attach(&own("twice")).unwrap();
    assert_eq!(fixture.counted(&act_twice), 2);
    // The second one ran last.
    assert_eq!(fixture.number("last_count"), 2);
    assert_eq!(fixture.values("values")[..2], [200, 2]);
    drop(link);
    assert_eq!(fixture.counted(&act_twice), 0);
}

#[test]
fn links_usdt_entries_are_used_again() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load();
    // The map has 4 entries; a link on this name takes two.
    for _ in 0..3 {
        drop(fixture.attach(&own("twice")).unwrap());
    }
    let one = fixture.attach(&own("twice")).unwrap();
    // The same arguments and cookie are one entry.
    let same = fixture.attach(&own("twice")).unwrap();
    let two = fixture.attach(&own("twice").cookie(2)).unwrap();
    let err = fixture.attach(&own("twice").cookie(3)).unwrap_err();
    assert!(err.is(Errno::ENOSPC), "{err}");
    assert!(err.to_string().contains("BPF_USDT_MAX_SPEC_CNT"), "{err}");
    drop(two);
    let three = fixture.attach(&own("twice").cookie(3)).unwrap();
    assert_eq!(fixture.counted(&act_twice), 6);
    drop(same);
    assert_eq!(fixture.counted(&act_twice), 4);
    drop((one, three));
    assert_eq!(fixture.counted(&act_twice), 0);
}

#[test]
fn links_usdt_without_arguments() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load();
    let program = fixture.collection.program("on_mark").unwrap();
    let link = Link::usdt(program, None, &own("twice")).unwrap();
    assert_eq!(fixture.counted(&act_twice), 2);
    drop(link);
    assert_eq!(fixture.counted(&act_twice), 0);
}

#[test]
fn links_usdt_errors_say_what_to_do() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load();
    let err = fixture.attach(&own("no_such_place")).unwrap_err();
    assert!(matches!(err, LinkError::Symbol { .. }), "{err}");
    assert!(
        err.to_string().contains("ebpf_manager:no_such_place"),
        "{err}"
    );
    let unmarked = Usdt::new("libc.so.6", "no_provider", "at_all");
    let err = fixture.attach(&unmarked).unwrap_err();
    assert!(matches!(err, LinkError::Symbol { .. }), "{err}");
    // A map of another layout is refused, not written to.
    let hits = fixture
        .collection
        .maps()
        .iter()
        .find(|map| map.value_size() == 4);
    let fd = hits.unwrap().as_fd().try_clone_to_owned().unwrap();
    let err = UsdtSpecs::new(Map::from_fd("other", fd).unwrap(), None).unwrap_err();
    assert!(err.is(Errno::EINVAL), "{err}");
}

#[test]
fn links_usdt_pinned_link_keeps_its_entry() {
    if !require(&UPROBE_MULTI) || mount_of("bpf").is_none() {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load();
    let link = fixture.attach(&own("twice").cookie(77)).unwrap();
    let directory = TempDir::on_bpffs();
    let path = directory.path().join("usdt");
    link.pin(&path).unwrap();
    drop(link);
    // Would take the entries of the pinned link, were they free.
    let other = fixture.attach(&own("marked").cookie(78)).unwrap();
    assert_eq!(fixture.counted(&act_twice), 2);
    assert_eq!(fixture.number("last_cookie"), 77);
    drop(other);
    std::fs::remove_file(&path).unwrap();
    // The kernel lets go of a link that nobody holds when it has the time.
    let deadline = Instant::now() + Duration::from_secs(20);
    while fixture.counted(&act_twice) > 0 {
        assert!(Instant::now() < deadline, "it fires on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn links_usdt_in_the_manager() {
    if !require(&PERF_LINK) || !require(&SEMAPHORES) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = Manager::builder()
        .probe(Probe::new("on_usdt").hook(Hook::from(own("marked").cookie(5))))
        .constant("target_tgid", std::process::id())
        .build()
        .unwrap();
    manager
        .init(&ObjectSource::path(testdata("usdt.bpf.o")))
        .unwrap();
    manager.start().unwrap();
    for (id, outcome) in manager.probes() {
        assert!(matches!(outcome, Outcome::Attached(_)), "{id}: {outcome}");
    }
    act();
    let cookie: u64 = manager.variable("last_cookie").unwrap().get().unwrap();
    assert_eq!(cookie, 5);
    manager.stop().unwrap();
}
