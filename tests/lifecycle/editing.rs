//! Constants, specifications, replacements and patches before the load, and
//! routes.

use ebpf_manager::bpf::elf::insn::Insn;
use ebpf_manager::bpf::{LoadError, MapError, MapType};
use ebpf_manager::{Cleanup, Constant, MapOptions, MapRoute, ProgramClone, TailCall};

use super::manage::{MANAGE, builder, initialised, object, run, run_program};
use super::*;

fn refused(builder: Builder) -> ManagerError {
    let manager = builder.build().unwrap();
    let err = manager.init(&object()).unwrap_err();
    assert_eq!(manager.state(), State::Declared);
    err
}

#[test]
fn constants_reach_the_programs() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let asked = Arc::new(AtomicU64::new(41));
    let next = Arc::clone(&asked);
    let manager = initialised(
        builder().constant("answer", 42_u32).edit(
            Constant::symbol_with("manage_number", move |spec| {
                assert_eq!(spec.name, "manage_symbol");
                next.fetch_add(1, Ordering::Relaxed)
            })
            .only_for("manage_symbol"),
        ),
    );
    assert_eq!(run(&manager, "manage_constant"), 42);
    assert_eq!(run(&manager, "manage_symbol"), 41);
    manager.stop().unwrap();
    // Asked again at each load.
    manager.init(&object()).unwrap();
    assert_eq!(run(&manager, "manage_symbol"), 42);
    manager.stop().unwrap();
}

#[test]
fn trap_missing_constant_is_never_passed_over() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let no_such = |constant: Constant| {
        let err = refused(builder().edit(constant));
        assert!(matches!(err, ManagerError::NoSuch { .. }), "{err}");
        err.to_string()
    };
    assert_eq!(
        no_such(Constant::global("nope", 1_u32)),
        "the object has no variable nope"
    );
    assert_eq!(
        no_such(Constant::symbol("nope", 1)),
        "the object has no symbol nope"
    );
    // In the object, but not where it was asked for.
    for constant in [
        Constant::symbol("manage_number", 1).only_for("manage_constant"),
        Constant::symbol("manage_number", 1).in_every_program(),
    ] {
        let err = refused(builder().edit(constant));
        assert!(matches!(err, ManagerError::Constant(_)), "{err}");
    }
    let manager = initialised(
        builder()
            .edit(Constant::global("nope", 1_u32).if_present())
            .edit(Constant::symbol("nope", 1).if_present())
            .edit(
                Constant::symbol("manage_number", 7)
                    .only_for("manage_constant")
                    .if_present(),
            ),
    );
    assert_eq!(run(&manager, "manage_symbol"), 0);
    manager.stop().unwrap();
}

#[test]
fn trap_mistaken_constant_is_an_error_even_if_it_may_be_missing() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let size = refused(builder().edit(Constant::global("answer", 1_u64).if_present()));
    assert_eq!(
        size.to_string(),
        "variable answer has 4 bytes, the value has 8"
    );
    let program = Constant::symbol("manage_number", 1)
        .only_for("nope")
        .if_present();
    let program = refused(builder().edit(program));
    assert_eq!(program.to_string(), "the object has no program nope");
}

#[test]
fn constant_of_an_excluded_function_is_dropped() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .exclude("manage_symbol")
            .edit(Constant::symbol("manage_number", 1).only_for("manage_symbol")),
    );
    assert!(manager.program("manage_symbol").is_none());
    manager.stop().unwrap();
}

#[test]
fn copies_have_constants_of_their_own() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let copy = |function: &str| Probe::new(function).uid("two").copied().optional();
    let manager = initialised(
        builder()
            .probe(copy("manage_constant"))
            .probe(copy("manage_symbol"))
            .constant("answer", 5_u32)
            .edit(Constant::global("answer", 6_u32).only_for("manage_constant_two"))
            .edit(Constant::symbol("manage_number", 3).only_for("manage_symbol"))
            .edit(Constant::symbol("manage_number", 4).only_for("manage_symbol_two")),
    );
    assert_eq!(run(&manager, "manage_constant"), 5);
    assert_eq!(run(&manager, "manage_constant_two"), 6);
    assert_eq!(run(&manager, "manage_symbol"), 3);
    assert_eq!(run(&manager, "manage_symbol_two"), 4);
    let both = manager.programs_of("manage_symbol");
    assert_eq!(both.iter().map(run_program).collect::<Vec<_>>(), [3, 4]);
    manager.stop().unwrap();
}

#[test]
fn maps_are_made_as_edited() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder().edit_map("numbers", |spec| {
        spec.max_entries = 100;
        spec.map_type = MapType::LRU_HASH;
    }));
    let numbers = manager.map("numbers").unwrap();
    assert_eq!(numbers.max_entries(), 100);
    assert_eq!(numbers.map_type(), MapType::LRU_HASH);
    assert_eq!(manager.map_spec("numbers").unwrap().max_entries, 100);
    manager.stop().unwrap();
    let err = refused(builder().edit_map("nope", |_| ()));
    assert_eq!(err.to_string(), "the object has no map nope");
    let err = refused(builder().inner_map("tables", "nope"));
    assert_eq!(err.to_string(), "the object has no map nope");
}

#[test]
fn replaced_map_is_shared() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let first = initialised(builder());
    let numbers = first.map("numbers").unwrap();
    numbers.set(&7_u32, &55_u64).unwrap();
    // Under another name in the other manager.
    let second = initialised(
        builder()
            .replace_map("numbers", &numbers)
            .replace_map_if_present("nope", &numbers),
    );
    assert_eq!(run(&second, "manage_lookup"), 55);
    second.stop_with(Cleanup::ALL).unwrap();
    // It is the first one's still.
    assert_eq!(run(&first, "manage_lookup"), 55);
    first.stop().unwrap();

    let missing = refused(builder().replace_map("nope", &numbers));
    assert_eq!(missing.to_string(), "the object has no map nope");
    let other = refused(builder().replace_map("table_a", &numbers));
    let ManagerError::Load(load) = &other else {
        panic!("{other}")
    };
    let LoadError::Map(MapError::Mismatch { map, field, .. }) = &**load else {
        panic!("{other}")
    };
    assert_eq!((map.as_str(), *field), ("table_a", "type"));
    let says = "map table_a: type is hash, the object declares array";
    assert_eq!(other.to_string(), says);
    let shared = builder().edit(Constant::global("answer", 6_u32).only_for("manage_constant"));
    let shared = refused(shared).to_string();
    assert!(shared.contains("manage_constant is no copy"), "{shared}");
    assert!(shared.contains("copied()"), "{shared}");
}

#[test]
fn trap_listed_map_keeps_what_the_object_puts_into_it() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = Manager::builder()
        .map("outer_array", MapOptions::new())
        .build()
        .unwrap();
    manager
        .init(&ObjectSource::path(testdata("maps.bpf.o")))
        .unwrap();
    let outer = manager.map("outer_array").unwrap();
    let inner: Option<u32> = outer.get(&0_u32).unwrap();
    assert_eq!(inner, Some(manager.map("inner_a").unwrap().id().unwrap()));
    manager.stop().unwrap();
}

#[test]
fn declared_elements_and_freezing() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let options = MapOptions::new().entry(&7_u32, &9_u64).freeze();
    let manager = initialised(builder().map("numbers", options));
    assert_eq!(run(&manager, "manage_lookup"), 9);
    let numbers = manager.map("numbers").unwrap();
    let err = numbers.set(&7_u32, &1_u64).unwrap_err();
    assert!(err.is(Errno::EPERM), "{err}");
    manager.stop().unwrap();
}

#[test]
fn patches_reach_programs_and_clones() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder().keep_specs().patch(|spec, editor| {
        if spec.name.starts_with("manage_target_a") {
            for at in editor.find(|unit| unit.insn == Insn::mov64_imm(0, 11) || unit.insn.imm == 11)
            {
                let mut insn = editor.unit(at).map(|unit| unit.insn).unwrap_or_default();
                insn.imm = 77;
                editor.set(at, insn)?;
            }
        }
        Ok(())
    }));
    assert_eq!(run(&manager, "manage_target_a"), 77);
    let clone = Probe::new("manage_target_a").uid("clone");
    manager.clone_program(clone, ProgramClone::new()).unwrap();
    assert_eq!(run(&manager, "manage_target_a_clone"), 77);
    manager.stop().unwrap();
}

#[test]
fn routes_by_name_and_handle() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .tail_call(TailCall::new("jump_table", 1, "manage_target_a"))
            .map_route(MapRoute::new("tables", &7_u32, "table_a")),
    );
    let table = |name: &str, value: u64| {
        let map = manager.map(name).unwrap();
        map.set(&0_u32, &value).unwrap();
        map
    };
    table("table_a", 21);
    let b = table("table_b", 22);
    // Routes of the declaration are made by start.
    assert_eq!(run(&manager, "manage_jump"), 100);
    manager.start().unwrap();
    assert_eq!(run(&manager, "manage_jump"), 11);
    assert_eq!(run(&manager, "manage_table"), 21);

    let program = manager.program("manage_target_b").unwrap();
    manager
        .update_tail_calls(&[TailCall::to("jump_table", 1, &program)])
        .unwrap();
    manager
        .update_map_routes(&[MapRoute::to("tables", &7_u32, &b)])
        .unwrap();
    assert_eq!(run(&manager, "manage_jump"), 12);
    assert_eq!(run(&manager, "manage_table"), 22);
    manager.stop().unwrap();
}

#[test]
fn trap_routes_are_all_or_nothing() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder());
    let to = |index, program: &str| TailCall::new("jump_table", index, program);
    manager
        .update_tail_calls(&[to(1, "manage_target_a")])
        .unwrap();
    // The array has four slots.
    let err = manager
        .update_tail_calls(&[
            to(1, "manage_target_b"),
            to(2, "manage_target_b"),
            to(4, "manage_target_a"),
        ])
        .unwrap_err();
    assert!(matches!(err, ManagerError::Route { .. }), "{err}");
    assert!(
        err.to_string().starts_with("route jump_table[4]: "),
        "{err}"
    );
    assert_eq!(run(&manager, "manage_jump"), 11);
    let array = manager.map("jump_table").unwrap();
    assert_eq!(array.get::<u32>(&2_u32).unwrap(), None);
    // What is not there is found out before anything is done.
    for bad in [TailCall::new("nope", 0, "manage_jump"), to(0, "nope")] {
        let err = manager
            .update_tail_calls(&[to(1, "manage_target_b"), bad])
            .unwrap_err();
        assert!(matches!(err, ManagerError::NotThere { .. }), "{err}");
    }
    assert_eq!(run(&manager, "manage_jump"), 11);
    manager.stop().unwrap();
}

#[test]
fn failed_start_puts_routes_back() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .probe(Probe::new("manage_calls").hook(Hook::raw_tracepoint("no_such_event")))
            .tail_call(TailCall::new("jump_table", 1, "manage_target_a")),
    );
    manager
        .update_tail_calls(&[TailCall::new("jump_table", 1, "manage_target_b")])
        .unwrap();
    for _ in 0..2 {
        let err = manager.start().unwrap_err();
        assert!(matches!(err, ManagerError::Attach { .. }), "{err}");
        assert_eq!(manager.state(), State::Initialised);
        assert_eq!(run(&manager, "manage_jump"), 12);
    }
    manager.stop().unwrap();
}

/// A program that looks at its array the first time it runs finds it filled.
#[test]
fn trap_routes_are_made_before_the_first_program_is_attached() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let seen = Arc::new(Mutex::new(None));
    let (slot, in_hook) = (Arc::new(Mutex::new(None::<Map>)), Arc::clone(&seen));
    let array = Arc::clone(&slot);
    let hook = Hook::new("a look at the array", move |program, _| {
        let array = array.lock().unwrap();
        let filled = array
            .as_ref()
            .map(|map| map.get::<u32>(&1_u32).unwrap().is_some());
        *in_hook.lock().unwrap() = filled;
        ebpf_manager::bpf::Link::raw_tracepoint(program, "sys_enter")
    });
    let manager = initialised(
        builder()
            .probe(Probe::new("manage_calls").hook(hook))
            .tail_call(TailCall::new("jump_table", 1, "manage_target_a")),
    );
    *slot.lock().unwrap() = manager.map("jump_table");
    manager.start().unwrap();
    assert_eq!(*seen.lock().unwrap(), Some(true));
    manager.stop().unwrap();
    slot.lock().unwrap().take();
}
