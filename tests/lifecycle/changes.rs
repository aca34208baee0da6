//! Changes of a manager that lives: hooks, clones, maps, names, pauses.

use std::io;

use ebpf_manager::bpf::elf::MapSpec;
use ebpf_manager::bpf::{MapType, PerfBufferOptions};
use ebpf_manager::{MapOptions, MapRoute, ProbeId, ProgramClone, Selector, Sink, Stream, TailCall};

use super::manage::{MANAGE, assert_runs, builder, initialised, run, run_program};
use super::pausing::socket_filter;
use super::*;

pub(super) fn enter(uid: &str) -> Probe {
    Probe::new("manage_calls")
        .uid(uid)
        .hook(Hook::raw_tracepoint("sys_enter"))
}

pub(super) fn id(uid: &str) -> ProbeId {
    ProbeId::new("manage_calls", uid)
}

#[test]
fn hooks_come_and_go() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder());
    manager.start().unwrap();
    assert_runs(&manager, false);
    manager.add_hook(enter("one")).unwrap();
    assert_runs(&manager, true);
    let probe = manager.probe(id("one")).unwrap();
    assert!(probe.is_running());
    assert_eq!(
        probe.program_id().unwrap(),
        manager.program("manage_calls").unwrap().id().unwrap()
    );

    let err = manager.add_hook(enter("one")).unwrap_err();
    assert_eq!(
        err.to_string(),
        "there is already a probe manage_calls (one)"
    );
    let err = manager.add_hook(Probe::new("nope")).unwrap_err();
    assert_eq!(err.to_string(), "there is no program nope");

    manager.detach_hook(id("one")).unwrap();
    assert_runs(&manager, false);
    assert!(manager.probe(id("one")).is_none());
    assert_eq!(probe.outcome(), Outcome::Detached);
    manager.stop().unwrap();
}

#[test]
fn trap_hook_that_cannot_be_attached_is_an_error() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder());
    manager.start().unwrap();
    // ENOENT, which the original takes for success.
    let probe = Probe::new("manage_calls").hook(Hook::raw_tracepoint("no_such_event"));
    for _ in 0..2 {
        let err = manager.add_hook(probe.clone()).unwrap_err();
        assert!(matches!(err, ManagerError::Attach { .. }), "{err}");
        assert!(manager.probes().is_empty());
    }
    manager.stop().unwrap();
}

#[test]
fn trap_detaching_an_unknown_hook_is_an_error() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder());
    let err = manager.detach_hook("nope").unwrap_err();
    assert_eq!(err.to_string(), "there is no probe nope");
    manager.stop().unwrap();
}

#[test]
fn trap_program_of_the_last_hook_can_be_hooked_again() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder().probe(enter("")));
    manager.start().unwrap();
    manager.detach_hook("manage_calls").unwrap();
    assert_runs(&manager, false);
    manager.add_hook(enter("again")).unwrap();
    assert_runs(&manager, true);
    manager.stop().unwrap();
}

#[test]
fn hook_added_before_the_start_is_attached_by_it() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder().probe(enter("").optional()));
    manager.add_hook(enter("late")).unwrap();
    // A probe that was removed is not missed by the selectors.
    manager.detach_hook("manage_calls").unwrap();
    assert_runs(&manager, false);
    manager.start().unwrap();
    assert_runs(&manager, true);
    manager.stop().unwrap();
    // Declared again.
    assert_eq!(manager.probes().len(), 1);
}

#[test]
fn clones_have_constants_and_maps_of_their_own() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder().keep_specs());
    let clone = |function: &str| Probe::new(function).uid("clone");
    manager
        .clone_program(
            clone("manage_constant"),
            ProgramClone::new().constant("answer", 8_u32),
        )
        .unwrap();
    manager
        .clone_program(
            clone("manage_symbol"),
            ProgramClone::new().symbol("manage_number", 9),
        )
        .unwrap();
    let own = manager
        .clone_map("numbers", "numbers_2", &MapOptions::new())
        .unwrap();
    own.set(&7_u32, &10_u64).unwrap();
    manager
        .clone_program(
            clone("manage_lookup"),
            ProgramClone::new().map("numbers", &own),
        )
        .unwrap();
    for (function, original, cloned) in [
        ("manage_constant", 1, 8),
        ("manage_symbol", 0, 9),
        ("manage_lookup", 100, 10),
    ] {
        assert_eq!(run(&manager, function), original);
        let program = manager
            .probe(ProbeId::new(function, "clone"))
            .unwrap()
            .program()
            .unwrap();
        assert_eq!(run_program(&program), cloned, "{function}");
    }
    let err = manager
        .clone_program(clone("manage_lookup"), ProgramClone::new())
        .unwrap_err();
    assert!(matches!(err, ManagerError::InUse { .. }), "{err}");
    let other = Probe::new("manage_lookup").uid("other");
    let err = manager
        .clone_program(other, ProgramClone::new().map("nope", &own))
        .unwrap_err();
    assert_eq!(err.to_string(), "the object has no map nope");
    // Tail calls find it, and so do hooks.
    let route = TailCall::to_probe("jump_table", 1, ProbeId::new("manage_constant", "clone"));
    manager.update_tail_calls(&[route]).unwrap();
    assert_eq!(run(&manager, "manage_jump"), 8);
    manager.stop().unwrap();
}

#[test]
fn hook_of_a_clone_runs_the_clone() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder().keep_specs());
    manager.start().unwrap();
    manager
        .clone_program(enter("clone"), ProgramClone::new())
        .unwrap();
    // Old kernels put one program at a raw tracepoint once.
    let again = enter("again").hook(Hook::raw_tracepoint("sys_exit"));
    manager.add_hook_to(id("clone"), again).unwrap();
    let of = |uid: &str| manager.probe(("manage_calls", uid)).unwrap();
    let (clone, again) = (of("clone"), of("again"));
    assert_eq!(clone.program_id(), again.program_id());
    let original = manager.program("manage_calls").unwrap().id();
    assert_ne!(original.unwrap(), again.program_id().unwrap());
    assert_ne!(clone.link_id().unwrap(), again.link_id().unwrap());
    let err = again.read_iter().unwrap_err();
    assert!(matches!(err, ManagerError::Attach { .. }), "{err}");
    manager.detach_hook(id("clone")).unwrap();
    assert_runs(&manager, true);
    let err = manager.add_hook_to("nope", enter("third")).unwrap_err();
    assert_eq!(err.to_string(), "there is no program nope");

    let names: Vec<_> = manager.map_specs().into_iter().map(|s| s.name).collect();
    let maps: Vec<_> = manager.maps().iter().map(|m| m.name().to_owned()).collect();
    assert_eq!(names, maps);
    let calls = manager.variable("calls").unwrap();
    assert_eq!((calls.name(), calls.size()), ("calls", 8));
    calls.write(&7_u64.to_ne_bytes()).unwrap();
    let mut bytes = [0; 8];
    calls.read(&mut bytes).unwrap();
    assert!(u64::from_ne_bytes(bytes) >= 7);
    assert!(calls.read(&mut [0; 4]).is_err());
    manager.stop().unwrap();
}

#[test]
fn clone_without_specifications_says_so() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder());
    let err = manager
        .clone_program(Probe::new("manage_symbol").uid("x"), ProgramClone::new())
        .unwrap_err();
    assert!(matches!(err, ManagerError::NotKept { .. }), "{err}");
    manager.stop().unwrap();
}

#[test]
fn failed_clone_leaves_nothing() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder().keep_specs());
    manager.start().unwrap();
    let probe = enter("bad").hook(Hook::raw_tracepoint("no_such_event"));
    let err = manager
        .clone_program(probe, ProgramClone::new())
        .unwrap_err();
    assert!(matches!(err, ManagerError::Attach { .. }), "{err}");
    assert!(manager.probes().is_empty() && manager.program("manage_calls_bad").is_none());
    let refused = Probe::new("err_manage_refused").uid("x");
    let err = manager
        .clone_program(refused, ProgramClone::new())
        .unwrap_err();
    assert!(matches!(err, ManagerError::Load(_)), "{err}");
    manager.stop().unwrap();
}

#[test]
fn new_maps_belong_to_the_manager() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder().dump_all(|map, out: &mut dyn io::Write| writeln!(out, "{}", map.name())),
    );
    let spec = MapSpec {
        name: "fresh".to_owned(),
        map_type: MapType::HASH,
        key_size: 4,
        value_size: 8,
        max_entries: 3,
        ..MapSpec::default()
    };
    let fresh = manager
        .new_map(&spec, &MapOptions::new().entry(&1_u32, &2_u64))
        .unwrap();
    assert_eq!(fresh.get::<u64>(&1_u32).unwrap(), Some(2));
    assert_eq!(
        manager.map("fresh").unwrap().id().unwrap(),
        fresh.id().unwrap()
    );
    assert_eq!(manager.map_spec("fresh").unwrap().max_entries, 3);
    let err = manager.new_map(&spec, &MapOptions::new()).unwrap_err();
    assert_eq!(err.to_string(), "there is already a map fresh");
    let table = manager
        .clone_map("table_a", "table_c", &MapOptions::new())
        .unwrap();
    table.set(&0_u32, &31_u64).unwrap();
    manager
        .update_map_routes(&[MapRoute::new("tables", &7_u32, "table_c")])
        .unwrap();
    assert_eq!(run(&manager, "manage_table"), 31);
    let err = manager
        .clone_map("nope", "x", &MapOptions::new())
        .unwrap_err();
    assert_eq!(err.to_string(), "there is no map nope");

    let mut out = Vec::new();
    manager.dump(&["table_c", "numbers"], &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "table_c\nnumbers\n");
    let err = manager.dump(&["nope"], &mut io::sink()).unwrap_err();
    assert!(matches!(err, ManagerError::NotThere { .. }), "{err}");
    manager.stop().unwrap();
    assert!(manager.map("fresh").is_none());
}

#[test]
fn trap_dump_is_in_order_and_has_new_maps() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .dump("numbers", |map, out: &mut dyn io::Write| {
                writeln!(out, "{}: {} at most", map.name(), map.max_entries())
            })
            .dump_all(|map, out: &mut dyn io::Write| writeln!(out, "{}", map.name())),
    );
    manager
        .clone_map("numbers", "later", &MapOptions::new())
        .unwrap();
    let mut out = Vec::new();
    manager.dump(&[], &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let names: Vec<&str> = text.lines().collect();
    let expected: Vec<String> = manager
        .maps()
        .iter()
        .map(|m| match m.name() {
            "numbers" => "numbers: 8 at most".to_owned(),
            name => name.to_owned(),
        })
        .collect();
    assert_eq!(names, expected);
    assert_eq!(names.last(), Some(&"later"));
    manager.stop().unwrap();
}

#[test]
fn new_buffers_are_read() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let numbers = Arc::new(Mutex::new(Vec::new()));
    let sink = |numbers: &Arc<Mutex<Vec<u64>>>| {
        let numbers = Arc::clone(numbers);
        Sink::handler(move |record| {
            numbers
                .lock()
                .unwrap()
                .push(u64::from_ne_bytes(*record.data.first_chunk().unwrap()));
        })
    };
    let manager = Manager::builder().keep_specs().build().unwrap();
    manager.init(&generator_object()).unwrap();
    manager.start().unwrap();
    let stream = Stream::ring_buffer("ring_2", sink(&numbers));
    let ring = manager
        .clone_buffer("ring", &MapOptions::new(), stream)
        .unwrap();
    let clone = Probe::new("ringbuf_output").uid("2");
    manager
        .clone_program(clone, ProgramClone::new().map("ring", &ring))
        .unwrap_err();
    manager.stop().unwrap();

    // Initialised only: a program of a type without a hook is not attached.
    manager.init(&generator_object()).unwrap();
    let stream = Stream::ring_buffer("ring_2", sink(&numbers));
    let ring = manager
        .clone_buffer("ring", &MapOptions::new(), stream)
        .unwrap();
    let clone = Probe::new("ringbuf_output").uid("2");
    manager
        .clone_program(clone, ProgramClone::new().map("ring", &ring))
        .unwrap();
    let program = manager.program("ringbuf_output_2").unwrap();
    let mut packet = [0_u8; 64];
    packet[22..46].copy_from_slice(pod::slice_bytes(&[100_u32, 7, 16, 256, 0, 0]));
    let mut test = TestRun {
        data_in: &packet,
        repeat: 1,
        ..TestRun::default()
    };
    assert_eq!(program.test_run(&mut test).unwrap().retval, 0);
    wait_until("records of the new ring", || {
        numbers.lock().unwrap().len() == 100
    });
    // Counted batch by batch, behind the handler's back.
    wait_until("the count of them", || {
        manager.stream_stats("ring_2").unwrap().records == 100
    });

    let mismatch = Stream::perf_buffer("ring_3", PerfBufferOptions::default(), sink(&numbers));
    let err = manager
        .clone_buffer("ring", &MapOptions::new(), mismatch)
        .unwrap_err();
    assert!(matches!(err, ManagerError::NotThere { .. }), "{err}");
    assert!(manager.map("ring_3").is_none());
    manager.stop().unwrap();
}

#[test]
fn renaming_is_followed() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .probe(enter("a"))
            .probe(enter("b"))
            .select(Selector::probe(id("a")))
            .tail_call(TailCall::to_probe(
                "jump_table",
                1,
                ProbeId::from("manage_target_a"),
            ))
            .probe(Probe::new("manage_target_a").optional())
            .select(Selector::best_effort([Selector::probe("manage_target_a")])),
    );
    manager.rename_probe("manage_target_a", "new").unwrap();
    manager.rename_probe(id("a"), "c").unwrap();
    assert!(manager.probe(id("a")).is_none());
    let err = manager.rename_probe(id("c"), "b").unwrap_err();
    assert!(matches!(err, ManagerError::InUse { .. }), "{err}");
    let err = manager.rename_probe(id("nope"), "x").unwrap_err();
    assert!(matches!(err, ManagerError::NotThere { .. }), "{err}");
    let err = manager.start().unwrap_err();
    // A socket filter has no hook of its own.
    assert!(matches!(err, ManagerError::NoHook { .. }), "{err}");
    manager
        .detach_hook(ProbeId::new("manage_target_a", "new"))
        .unwrap();
    manager.stop().unwrap();
}

#[test]
fn trap_failed_rename_changes_nothing() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .probe(enter("a"))
            .probe(enter("b"))
            .select(Selector::probe(id("a"))),
    );
    manager.rename_probe(id("a"), "b").unwrap_err();
    manager.rename_probe(id("nope"), "a").unwrap_err();
    manager.start().unwrap();
    assert!(manager.probe(id("a")).unwrap().is_running());
    assert_eq!(manager.probe(id("b")).unwrap().outcome(), Outcome::Disabled);
    // While it runs, too.
    manager.rename_probe(id("a"), "c").unwrap();
    assert!(manager.probe(id("c")).unwrap().is_running());
    manager
        .update_activated(&[Selector::probe(id("c"))])
        .unwrap();
    assert_runs(&manager, true);
    manager.stop().unwrap();
}

#[test]
fn programs_are_tested_and_measured() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .statistics()
            .probe(enter(""))
            .probe(Probe::new("manage_constant").hook(socket_filter())),
    );
    manager.start().unwrap();
    let probe = manager.probe("manage_constant").unwrap();
    let (value, data) = probe.test(&[7; 64], 64).unwrap();
    // A socket filter sees the packet without its link header.
    assert_eq!((value, &data[14..]), (1, [7; 50].as_slice()));
    let (value, _) = probe.benchmark(&[0; 64], 1000).unwrap();
    assert_eq!(value, 1);
    let calls = manager.probe("manage_calls").unwrap();
    act_until(
        "a measured run",
        || hit(10),
        || calls.run_stats().unwrap().runs > 0,
    );
    assert!(calls.run_stats().unwrap().time > Duration::ZERO);
    manager.stop().unwrap();
}

/// That one of this name was removed says nothing of the next.
#[test]
fn renamed_probe_is_not_taken_for_a_removed_one() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let missing = Hook::raw_tracepoint("no_such_event");
    let manager = initialised(
        builder()
            .probe(enter("a"))
            .probe(enter("b").hook(missing))
            .select(Selector::best_effort([id("a").into(), id("b").into()])),
    );
    manager.start().unwrap();
    manager.detach_hook(id("a")).unwrap();
    let needed = [Selector::one_of([Selector::probe(id("a"))])];
    manager.rename_probe(id("b"), "a").unwrap();
    let err = manager.update_activated(&needed).unwrap_err();
    assert!(matches!(err, ManagerError::Selection { .. }), "{err}");
    manager.stop().unwrap();
}

#[test]
fn renamed_probe_does_not_take_a_removed_ones_place_in_selectors() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .probe(enter("a"))
            .probe(enter("b"))
            .select(Selector::probe(id("a"))),
    );
    manager.detach_hook(id("a")).unwrap();
    // Nothing has activated it, under whatever name.
    manager.rename_probe(id("b"), "a").unwrap();
    manager.start().unwrap();
    assert_eq!(manager.probe(id("a")).unwrap().outcome(), Outcome::Disabled);
    manager.stop().unwrap();
}

#[test]
fn failed_activation_keeps_no_program() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .keep_specs()
            .probe(enter("a"))
            .probe(Probe::new("manage_frames").hook(Hook::xdp("no_such_if")))
            .select(Selector::probe(id("a"))),
    );
    manager.start().unwrap();
    let frames = manager.probe("manage_frames").unwrap();
    assert!(!frames.is_initialised());
    let both = [Selector::probe(id("a")), Selector::probe("manage_frames")];
    manager.update_activated(&both).unwrap_err();
    assert!(!frames.is_initialised());
    assert_eq!(frames.outcome(), Outcome::Disabled);
    assert!(manager.program("manage_frames").is_none());
    assert_runs(&manager, true);
    manager.stop().unwrap();
}
