//! Pins, what a stop cleans up, and stops in bounded time.

use std::path::Path;

use common::{PINS, TempDir};
use ebpf_manager::bpf::{LoadError, MapError};
use ebpf_manager::{Cleanup, MapOptions, Sink, Stream};

use super::manage::{builder, initialised, object, run};
use super::*;

fn pinned(path: &Path) -> Builder {
    builder().map("numbers", MapOptions::new().pin(path))
}

#[test]
fn pins_are_made_used_again_and_removed_on_request() {
    if !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::on_bpffs();
    let path = dir.path().join("numbers");
    let first = initialised(pinned(&path));
    first.map("numbers").unwrap().set(&7_u32, &33_u64).unwrap();
    first.stop().unwrap();
    assert!(path.exists(), "a plain stop leaves pins");

    let second = initialised(pinned(&path));
    assert_eq!(run(&second, "manage_lookup"), 33);
    second.stop_with(Cleanup::ALL).unwrap();
    assert!(path.exists(), "somebody else made it");

    let third =
        initialised(builder().map("numbers", MapOptions::new().pin(&path).always_cleanup()));
    third.stop().unwrap();
    assert!(!path.exists(), "the declaration says so");

    let fourth = initialised(pinned(&path));
    fourth.stop_with(Cleanup::INTERNAL).unwrap();
    assert!(!path.exists(), "it made it itself");
}

#[test]
fn trap_pinned_map_of_another_shape_names_the_field() {
    if !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::on_bpffs();
    let path = dir.path().join("numbers");
    let first = initialised(pinned(&path).edit_map("numbers", |spec| spec.max_entries = 9));
    let second = pinned(&path).build().unwrap();
    let err = second.init(&object()).unwrap_err();
    let ManagerError::Load(load) = &err else {
        panic!("{err}")
    };
    let LoadError::Map(MapError::Mismatch {
        field, path: at, ..
    }) = &**load
    else {
        panic!("{err}")
    };
    assert_eq!(
        (*field, at.as_deref()),
        ("max_entries", Some(path.as_path()))
    );
    let cure = format!(
        "(pinned at {}: remove the pin, or pin elsewhere)",
        path.display()
    );
    assert!(err.to_string().ends_with(&cure), "{err}");
    assert_eq!(second.state(), State::Declared);
    first.stop_with(Cleanup::ALL).unwrap();
}

#[test]
fn trap_pinned_buffer_is_read() {
    if !require(&HOOKS) || !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::on_bpffs();
    let path = dir.path().join("ring");
    let read = Arc::new(AtomicU64::new(0));
    let build = || {
        let count = Arc::clone(&read);
        let sink = Sink::handler(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        Manager::builder()
            .map("ring", MapOptions::new().pin(&path))
            .stream(Stream::ring_buffer("ring", sink))
            .build()
            .unwrap()
    };
    for round in 1..=2 {
        let manager = build();
        manager.init(&generator_object()).unwrap();
        manager.start().unwrap();
        assert_eq!(generate(&manager, 0, 10, Wakeup::IfWaiting), 0);
        wait_until("records", || read.load(Ordering::Relaxed) == 10 * round);
        let cleanup = if round == 1 {
            Cleanup::UNPINNED
        } else {
            Cleanup::ALL
        };
        manager.stop_with(cleanup).unwrap();
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn trap_program_pins_are_made_and_used_again() {
    if !require(&HOOKS) || !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::on_bpffs();
    let path = dir.path().join("calls");
    let declare = || builder().probe(Probe::new("manage_calls").pin(&path));
    let first = initialised(declare());
    let id = first.probe("manage_calls").unwrap().program_id().unwrap();
    first.stop().unwrap();
    let second = initialised(declare());
    assert_eq!(
        second.probe("manage_calls").unwrap().program_id().unwrap(),
        id
    );
    // Its section still says where.
    second.start().unwrap();
    second.stop_with(Cleanup::ALL).unwrap();
    assert!(path.exists(), "somebody else made it");
    std::fs::remove_file(&path).unwrap();
    let third = initialised(declare());
    third.stop_with(Cleanup::ALL).unwrap();
    assert!(!path.exists());
}

#[test]
fn failed_init_removes_its_pins() {
    if !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::on_bpffs();
    let path = dir.path().join("numbers");
    // The second pin is below no BPF file system.
    let manager = pinned(&path)
        .map(
            "table_a",
            MapOptions::new().pin("/proc/no_such_directory/pin"),
        )
        .build()
        .unwrap();
    let err = manager.init(&object()).unwrap_err();
    assert!(matches!(err, ManagerError::Map(_)), "{err}");
    assert!(!path.exists());
    assert_eq!(manager.state(), State::Declared);
}

#[test]
fn trap_maps_that_outlive_a_stop_are_used_again() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder());
    manager
        .map("numbers")
        .unwrap()
        .set(&7_u32, &44_u64)
        .unwrap();
    manager.stop_with(Cleanup::empty()).unwrap();
    assert_eq!(
        manager.map("numbers").unwrap().get::<u64>(&7_u32).unwrap(),
        Some(44)
    );
    manager.init(&object()).unwrap();
    assert_eq!(run(&manager, "manage_lookup"), 44);
    manager.stop().unwrap();
    assert!(manager.map("numbers").is_none());
    manager.init(&object()).unwrap();
    assert_eq!(run(&manager, "manage_lookup"), 100);
    manager.stop().unwrap();
}

#[test]
fn stop_in_bounded_time_says_what_is_left() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = getpid_builder(|_| ())
        .probe(Probe::new("attach_exec"))
        .build()
        .unwrap();
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    let closing = manager.stop_within(PATIENCE, Cleanup::ALL).unwrap();
    assert!(closing.is_done() && closing.probes().is_empty());
    assert_eq!(manager.state(), State::Declared);

    // No time at all: whatever is left ends by itself.
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    let closing = manager.stop_within(Duration::ZERO, Cleanup::ALL).unwrap();
    assert_eq!(manager.state(), State::Declared);
    assert!(manager.map("hits").is_none());
    closing.wait().unwrap();
    assert!(closing.is_done());
    manager.init(&attach_object()).unwrap();
    manager.stop().unwrap();
    let closing = manager.stop_within(Duration::ZERO, Cleanup::ALL).unwrap();
    assert!(closing.is_done());
}

/// Enough probes for several threads to detach them.
#[test]
fn many_probes_are_detached_at_a_time() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let mut builder = getpid_builder(|_| ());
    for number in 0..20 {
        let probe = Probe::new("attach_exec").uid(number.to_string()).copied();
        builder = builder.probe(probe);
    }
    let manager = builder.build().unwrap();
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    assert!(
        manager
            .probes()
            .iter()
            .all(|(_, outcome)| outcome.is_running())
    );
    manager.stop().unwrap();
}

/// A handler that takes its time does not hold up such a stop.
#[test]
fn stop_in_bounded_time_does_not_wait_for_handlers() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let gate = Arc::new(Mutex::new(()));
    let (behind, called) = (Arc::clone(&gate), Arc::new(AtomicBool::new(false)));
    let in_handler = Arc::clone(&called);
    let manager = getpid_builder(move |_| {
        in_handler.store(true, Ordering::Relaxed);
        drop(behind.lock().unwrap());
    });
    let manager = manager.build().unwrap();
    manager.init(&attach_object()).unwrap();
    let closed = gate.lock().unwrap();
    manager.start().unwrap();
    act_until("a hit", || hit(1), || called.load(Ordering::Relaxed));
    let closing = manager
        .stop_within(Duration::from_millis(10), Cleanup::ALL)
        .unwrap();
    assert_eq!(manager.state(), State::Declared);
    drop(closing);
    drop(closed);
    // Joins the reader.
    manager.stop().unwrap();
}

#[test]
fn object_can_be_looked_at_before_init() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = builder().build().unwrap();
    assert!(manager.map_spec("numbers").is_none());
    manager.load(&object()).unwrap();
    assert_eq!(manager.state(), State::Loaded);
    assert_eq!(manager.map_spec("numbers").unwrap().max_entries, 8);
    assert_eq!(
        manager.program_spec("manage_calls").unwrap().section,
        "raw_tracepoint/sys_enter"
    );
    assert!(manager.map("numbers").is_none());
    manager.init_loaded().unwrap();
    assert_eq!(manager.state(), State::Initialised);
    manager.stop().unwrap();
    manager.load(&object()).unwrap();
    manager.stop().unwrap();
    assert_eq!(manager.state(), State::Declared);
    let err = manager.init_loaded().unwrap_err();
    assert!(matches!(err, ManagerError::State { .. }), "{err}");
}

/// A manager whose handler is called and waits for the gate, and a hit that it
/// is in.
fn held_by(gate: &Arc<Mutex<()>>) -> (Manager, Arc<AtomicBool>) {
    let (behind, called) = (Arc::clone(gate), Arc::new(AtomicBool::new(false)));
    let in_handler = Arc::clone(&called);
    let manager = getpid_builder(move |_| {
        in_handler.store(true, Ordering::Relaxed);
        drop(behind.lock().unwrap());
    });
    let manager = manager.build().unwrap();
    manager.init(&attach_object()).unwrap();
    (manager, called)
}

/// Nor do a second such stop, loading again and looking around; the next start
/// does.
#[test]
fn handlers_that_hang_hold_up_nothing_but_a_start() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let gate = Arc::new(Mutex::new(()));
    let (manager, called) = held_by(&gate);
    let closed = gate.lock().unwrap();
    manager.start().unwrap();
    act_until("a hit", || hit(1), || called.load(Ordering::Relaxed));
    let limit = Duration::from_millis(10);
    let start = Instant::now();
    manager.stop_within(limit, Cleanup::ALL).unwrap();
    manager.stop_within(limit, Cleanup::ALL).unwrap();
    manager.init(&attach_object()).unwrap();
    manager.stop_within(limit, Cleanup::ALL).unwrap();
    manager.init(&attach_object()).unwrap();
    assert!(start.elapsed() < PATIENCE / 4);
    let starting = manager.clone();
    let started = thread::spawn(move || starting.start());
    thread::sleep(Duration::from_millis(20));
    assert!(!started.is_finished(), "two readers of one stream");
    // Its turn is not waited for either.
    let err = manager.stop_within(limit, Cleanup::ALL).unwrap_err();
    assert!(matches!(err, ManagerError::Busy { .. }), "{err}");
    drop(closed);
    started.join().unwrap().unwrap();
    manager.stop_within(Duration::MAX, Cleanup::ALL).unwrap();
}

/// A handler that stops its own manager in bounded time is not waited for by
/// itself.
#[test]
fn handler_may_stop_in_bounded_time() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let own: Arc<Mutex<Option<Manager>>> = Arc::default();
    let (for_handler, took) = (Arc::clone(&own), Arc::new(Mutex::new(None)));
    let to_test = Arc::clone(&took);
    let manager = getpid_builder(move |_| {
        let Some(manager) = for_handler.lock().unwrap().take() else {
            return;
        };
        let start = Instant::now();
        let stopped = manager.stop_within(PATIENCE, Cleanup::ALL).map(drop);
        *to_test.lock().unwrap() = Some((stopped, start.elapsed()));
    })
    .build()
    .unwrap();
    manager.init(&attach_object()).unwrap();
    *own.lock().unwrap() = Some(manager.clone());
    manager.start().unwrap();
    act_until(
        "word of the handler",
        || hit(1),
        || took.lock().unwrap().is_some(),
    );
    let (stopped, took) = took.lock().unwrap().take().unwrap();
    stopped.unwrap();
    assert!(took < PATIENCE / 2, "{took:?}");
    manager.stop().unwrap();
}

/// A stop cleans up what an earlier one left.
#[test]
fn maps_that_were_left_are_cleaned_up_by_the_next_stop() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder());
    manager.stop_with(Cleanup::empty()).unwrap();
    manager.stop_with(Cleanup::EXTERNAL).unwrap();
    assert!(manager.map("numbers").is_some());
    manager.stop_with(Cleanup::ALL).unwrap();
    assert!(manager.map("numbers").is_none());
}
