//! Traps of the original that no other test is about.

use common::{NetNs, PINS, TempDir};
use ebpf_manager::bpf::{
    Interface, MapFlags, NetNamespace, PerfBufferOptions, XdpMode, XdpOptions,
};
use ebpf_manager::{Cleanup, MapOptions, ProbeError, ProbeId, Selector, Sink, Stream};

use super::manage::{MANAGE, assert_runs, builder, initialised, object};
use super::*;

/// Without a mounted tracefs: raw tracepoints need none.
#[test]
fn trap_start_needs_no_tracefs() {
    const ROLE: &str = "EBPF_MANAGER_TEST_NO_TRACEFS";
    const NAME: &str = "traps::trap_start_needs_no_tracefs";
    if std::env::var_os(ROLE).is_some() {
        let manager = initialised(builder().probe(Probe::new("manage_calls")));
        manager.start().unwrap();
        assert_runs(&manager, true);
        return manager.stop().unwrap();
    }
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    super::hook_traps::alone_without_tracefs(ROLE, NAME);
}

/// While another thread stops the manager and waits for this very handler.
#[test]
fn trap_handler_may_look_up_and_stop_while_the_manager_stops() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let own: Arc<Mutex<Option<Manager>>> = Arc::default();
    let seen = Arc::new(Mutex::new(None));
    let (for_handler, to_test) = (Arc::clone(&own), Arc::clone(&seen));
    let manager = getpid_builder(move |_| {
        let Some(manager) = for_handler.lock().unwrap().take() else {
            return;
        };
        // Until the other thread is at it.
        let deadline = Instant::now() + PATIENCE;
        while manager
            .detach_probe("nope")
            .is_err_and(|e| !matches!(e, ManagerError::Busy { .. }))
        {
            assert!(Instant::now() < deadline, "nobody stops");
            thread::yield_now();
        }
        let looked = (manager.map("hits").is_some(), manager.probes().len());
        *to_test.lock().unwrap() = Some((looked, manager.stop()));
    })
    .build()
    .unwrap();
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    *own.lock().unwrap() = Some(manager.clone());
    act_until("a call", || hit(1), || own.lock().unwrap().is_none());
    let stopping = manager.clone();
    within("stop", move || stopping.stop()).unwrap();
    let (looked, stop) = seen.lock().unwrap().take().unwrap();
    assert_eq!(looked, (true, 1));
    assert!(matches!(stop, Err(ManagerError::Busy { .. })), "{stop:?}");
}

#[test]
fn trap_failed_init_blocks_nothing() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = Manager::builder().build().unwrap();
    for _ in 0..2 {
        // A map of maps without a model.
        manager.init(&object()).unwrap_err();
        assert_eq!(manager.state(), State::Declared);
        assert!(manager.maps().is_empty() && manager.programs().is_empty());
        assert!(matches!(manager.start(), Err(ManagerError::State { .. })));
        manager.stop().unwrap();
    }
}

#[test]
fn trap_pin_of_somebody_else_is_left_alone() {
    if !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::on_bpffs();
    let path = dir.path().join("numbers");
    let declare = || builder().map("numbers", MapOptions::new().pin(&path));
    let first = initialised(declare());
    let second = initialised(declare());
    second.stop_with(Cleanup::EXTERNAL_PINNED).unwrap();
    assert!(path.exists());
    // It was closed, so the next one opens the pin again.
    assert!(second.map("numbers").is_none());
    let given = first.map("numbers").unwrap();
    let third = initialised(declare().replace_map("numbers", &given));
    third.stop_with(Cleanup::ALL).unwrap();
    assert!(path.exists());
    first.stop_with(Cleanup::INTERNAL_PINNED).unwrap();
    assert!(!path.exists());
}

#[test]
fn trap_identity_is_function_and_uid() {
    assert_eq!(ProbeId::new("f", "a"), ProbeId::new("f", "a"));
    assert_ne!(ProbeId::new("f", "a"), ProbeId::new("f", "b"));
    // Whatever their hooks, these are the same.
    let err = Manager::builder()
        .probe(Probe::new("f").uid("a"))
        .probe(
            Probe::new("f")
                .uid("a")
                .hook(Hook::raw_tracepoint("sys_enter")),
        )
        .build()
        .unwrap_err();
    assert!(matches!(err, ManagerError::Duplicate { .. }));
}

#[test]
fn trap_map_edit_changes_only_what_it_says() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = Manager::builder().build().unwrap();
    let spec = |edited: Builder| {
        let manager = edited.build().unwrap();
        manager
            .init(&ObjectSource::path(testdata("maps.bpf.o")))
            .unwrap();
        let spec = manager.map_spec("hash").unwrap();
        manager.stop().unwrap();
        spec
    };
    let before = spec(Manager::builder());
    assert_ne!((before.key_type_id, before.value_type_id), (0, 0));
    assert_eq!(before.flags, MapFlags::NO_PREALLOC);
    let mut after = spec(Manager::builder().edit_map("hash", |spec| spec.max_entries = 17));
    assert_eq!(after.max_entries, 17);
    after.max_entries = before.max_entries;
    assert_eq!(after, before);
    drop(manager);
}

#[test]
fn trap_stream_that_was_never_started_is_closed() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let stream = Stream::ring_buffer("ring", Sink::handler(|_| ())).start_skipped();
    let manager = Manager::builder().stream(stream).build().unwrap();
    manager.init(&generator_object()).unwrap();
    manager.start().unwrap();
    assert!(!manager.stream("ring").unwrap().is_running());
    manager.stop().unwrap();
    assert!(manager.map("ring").is_none());
}

#[test]
fn trap_probe_that_failed_can_be_attached_later() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let there = Arc::new(AtomicBool::new(false));
    let is_there = Arc::clone(&there);
    let hook = Hook::new("comes later", move |program, _| {
        let name = if is_there.load(Ordering::Relaxed) {
            "sys_enter"
        } else {
            "no_such_event"
        };
        ebpf_manager::bpf::Link::raw_tracepoint(program, name)
    });
    let manager = initialised(builder().probe(Probe::new("manage_calls").hook(hook).optional()));
    manager.start().unwrap();
    let probe = manager.probe("manage_calls").unwrap();
    assert!(matches!(probe.outcome(), Outcome::Unavailable(_)));
    assert!(manager.attach_probe("manage_calls").is_err());
    there.store(true, Ordering::Relaxed);
    manager
        .update_activated(&[Selector::probe("manage_calls")])
        .unwrap();
    assert!(probe.is_running());
    assert_runs(&manager, true);
    assert!(manager.is_attached("manage_calls").unwrap());
    manager.detach_probe("manage_calls").unwrap();
    assert!(!manager.is_attached("manage_calls").unwrap());
    manager.attach_probe("manage_calls").unwrap();
    manager.stop().unwrap();
}

#[test]
fn trap_selector_always_says_why() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .probe(Probe::new("manage_calls"))
            .probe(Probe::new("manage_packets"))
            .select(Selector::probe("manage_calls")),
    );
    let text = |selector: Selector| {
        manager
            .update_activated(&[selector])
            .unwrap_err()
            .to_string()
    };
    let nothing = text(Selector::one_of([]));
    assert_eq!(nothing, "one of () does not hold: it names no probe");
    let nested = text(Selector::one_of([
        Selector::probe("manage_packets"),
        Selector::one_of([]),
    ]));
    let why = "manage_packets: its program was not loaded";
    assert!(nested.contains(why), "{nested}");
    let probe = manager.probe("manage_packets").unwrap();
    assert_eq!(probe.last_error(), Some(ProbeError::NotLoaded));
    manager.stop().unwrap();
}

#[test]
fn trap_clone_of_a_probe_is_whole() {
    let probe = Probe::new("f")
        .uid("u")
        .hook(Hook::raw_tracepoint("sys_enter"))
        .optional()
        .copied()
        .pin("/sys/fs/bpf/f")
        .retry(3, Duration::from_millis(7));
    assert_eq!(format!("{probe:?}"), format!("{:?}", probe.clone()));
    assert_eq!(probe.program_name(), "f_u");
}

#[test]
fn trap_new_buffer_that_fails_leaves_no_map() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = Manager::builder().build().unwrap();
    manager.init(&generator_object()).unwrap();
    // The watermark does not fit the buffer.
    let mut spec = manager.map_spec("ring").unwrap();
    spec.name = "perf".to_owned();
    spec.map_type = ebpf_manager::bpf::MapType::PERF_EVENT_ARRAY;
    spec.max_entries = 0;
    let options = PerfBufferOptions {
        bytes_per_cpu: 4096,
        wakeup: ebpf_manager::bpf::Wakeup::Bytes(1 << 20),
        ..PerfBufferOptions::default()
    };
    let stream = Stream::perf_buffer("perf", options, Sink::handler(|_| ()));
    let err = manager.new_buffer(&spec, &MapOptions::new(), stream);
    if let Err(err) = err {
        assert!(matches!(err, ManagerError::Reader(_)), "{err}");
        assert!(manager.map("perf").is_none() && manager.stream("perf").is_none());
    }
    manager.stop().unwrap();
}

#[test]
fn trap_namespace_clean_up_detaches() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (ns, left, _) = NetNs::with_veth();
    let namespace = std::os::fd::AsFd::as_fd(&ns).try_clone_to_owned().unwrap();
    let namespace = NetNamespace::from_fd(namespace).unwrap();
    let interface = Interface::from(left).in_namespace(&namespace);
    let options = XdpOptions {
        mode: XdpMode::Generic,
        ..XdpOptions::default()
    };
    let manager = initialised(
        builder()
            .probe(Probe::new("manage_frames").hook(Hook::xdp_with(interface.clone(), options)))
            .probe(Probe::new("manage_calls")),
    );
    manager.start().unwrap();
    assert!(manager.is_attached("manage_frames").unwrap());
    manager.clean_up_namespace(&namespace).unwrap();
    assert!(manager.probe("manage_frames").is_none());
    assert_runs(&manager, true);
    // The place is free again.
    manager
        .add_hook(Probe::new("manage_frames").hook(Hook::xdp_with(interface, options)))
        .unwrap();
    manager.stop().unwrap();
}
