//! Objects of `tests/programs` through the loader: their programs check
//! themselves and return the line of the failed check, or 0.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use common::{
    Feature, LeakCheck, PINS, RING_BUFFER, ROOT, TempDir, check, kernel_version, load, load_alone,
    map, object, require, run,
};
use ebpf_manager::bpf::{
    Collection, CoreBy, Errno, KernelBtf, LoadError, LoadOptions, Map, MapError, MapFlags, MapType,
    Program, ProgramError, pod,
};
use ebpf_manager::elf::{MapSpec, Pinning};

/// `bpf_for_each_map_elem` and `bpf_loop` with function references.
const CALLBACKS: Feature = Feature::new("bpf_loop", 5, 17);

#[test]
fn load_maps_of_every_kind() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load("maps.bpf.o");
    check("maps", &collection, &["maps_check"]);
    assert_eq!(
        map(&collection, "percpu_array").map_type(),
        MapType::PERCPU_ARRAY
    );
    assert!(map(&collection, "perf_event_array").max_entries() > 0);

    // From 5.15 until 6.1 the kernel compares what BTF says about timers, so a
    // map without BTF is no match for an inner definition that has it.
    if ((5, 15)..(6, 2)).contains(&kernel_version()) {
        return;
    }
    let inner = Map::create(&MapSpec {
        name: "inserted".to_owned(),
        map_type: MapType::HASH,
        key_size: 4,
        value_size: 8,
        max_entries: 5,
        ..MapSpec::default()
    })
    .unwrap();
    inner.set(&5_u32, &[3_u32, 4]).unwrap();
    let fd = inner.as_fd().as_raw_fd();
    map(&collection, "outer_hash").set(&1_u64, &fd).unwrap();
    check("maps", &collection, &["maps_check_inserted"]);
}

#[test]
fn load_globals_initial_and_patched() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let mut object = object("globals.bpf.o");
    let collection = Collection::load(&object, LoadOptions::default()).unwrap();
    check("globals", &collection, &["globals_initial"]);
    drop(collection);

    object
        .set_variable("patched_u32", &0xfeed_face_u32.to_ne_bytes())
        .unwrap();
    object.set_variable("patched_u8", &[0xab]).unwrap();
    let array = [2_u64, 0x0102_0304_0506_0708];
    object
        .set_variable("patched_array", pod::slice_bytes(&array))
        .unwrap();
    object
        .set_variable("patched_data", &(-77_i32).to_ne_bytes())
        .unwrap();
    object
        .set_variable("patched_bss", &0xbeef_u16.to_ne_bytes())
        .unwrap();
    object
        .set_variable("patched_custom", &1000_u32.to_ne_bytes())
        .unwrap();
    let collection = Collection::load(&object, LoadOptions::default()).unwrap();
    check("globals", &collection, &["globals_patched"]);

    let wrong = object.set_variable("patched_u32", &[0]).unwrap_err();
    assert!(
        wrong.to_string().contains("has 4 bytes, the value has 1"),
        "{wrong}"
    );
    assert!(object.set_variable("no_such", &[0]).is_err());
}

#[test]
fn load_globals_are_shared_with_user_space() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("globals.bpf.o");
    let collection = Collection::load(&object, LoadOptions::default()).unwrap();
    let program = collection.program("globals_count").unwrap();
    for _ in 0..3 {
        run(program);
    }
    let read = |name: &str| collection.variable(name).unwrap().get::<u64>().unwrap();
    assert_eq!(read("count_data"), 103);
    assert_eq!(read("count_bss"), 3);

    // And the other way round, while the program may run.
    collection
        .variable("count_bss")
        .unwrap()
        .set(&40_u64)
        .unwrap();
    run(program);
    assert_eq!(read("count_bss"), 41);
    let constant = collection.variable("patched_u32").unwrap();
    assert!(constant.set(&1_u32).unwrap_err().is(Errno::EPERM));
    assert!(constant.get::<u16>().unwrap_err().is(Errno::EINVAL));

    // Read-only data is frozen: user space cannot change what the verifier
    // took for granted.
    let rodata = map(&collection, ".rodata");
    let value = vec![0; rodata.value_size()];
    let err = rodata.update(&0_u32.to_ne_bytes(), &value).unwrap_err();
    assert!(err.is(Errno::EPERM), "{err}");
}

#[test]
fn load_collection_is_taken_apart() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("globals.bpf.o");
    let collection = Collection::load(&object, LoadOptions::default()).unwrap();
    let known = (collection.maps().len(), collection.programs().len());
    let (maps, programs) = collection.into_parts();
    assert_eq!((maps.len(), programs.len()), known);
    // They are open still.
    assert!(programs.iter().all(|program| program.id().is_ok()));
    assert!(maps.iter().all(|map| map.id().is_ok()));
}

#[test]
fn load_subprograms() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load("subprogs.bpf.o");
    check(
        "subprogs",
        &collection,
        &[
            "calls_nothing",
            "calls_static",
            "calls_reordered",
            "calls_global",
            "calls_from_tc",
            "calls_from_xdp",
        ],
    );
}

#[test]
fn load_static_programs_and_calls_between_sections() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let options = LoadOptions::default();
    let collection = Collection::load(&object("sections.bpf.o"), options).unwrap();
    check("sections", &collection, &["sections_check"]);
    assert!(collection.program("sections_static_program").is_some());
}

#[test]
fn load_tail_calls_from_static_initialisers() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load("tailcall.bpf.o");
    check("tailcall", &collection, &["tailcall_entry"]);
}

/// tests/programs/README.md has the table of all kinds of relocations.
#[test]
fn load_relocations_that_add_to_their_symbol() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("relocs.bpf.o");
    let mut options = LoadOptions::default();
    options.exclude = vec!["relocs_callback".to_owned()];
    let collection = Collection::load(&object, options).unwrap();
    let programs = ["relocs_offsets", "relocs_static_initialisers"];
    check("relocs", &collection, &programs);
    if !require(&CALLBACKS) {
        return;
    }
    let collection = load_alone(&object, "relocs_callback").unwrap();
    check("relocs", &collection, &["relocs_callback"]);
}

#[test]
fn load_callbacks() {
    if !require(&CALLBACKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load("callback.bpf.o");
    check("callback", &collection, &["callback_each", "callback_loop"]);
}

#[test]
fn load_carries_names_btf_and_line_info() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load("subprogs.bpf.o");
    let program = collection.program("calls_static").unwrap();
    let fd = program.as_fd();
    let info = ebpf_manager_sys::bpf::prog_info(fd).unwrap();
    assert_eq!(&info.name[..12], b"calls_static");
    assert!(info.btf_id > 0, "no BTF");
    assert_eq!(info.nr_func_info, 4, "one record for each function");
    assert!(info.nr_line_info > 10, "{} lines", info.nr_line_info);
    assert!(program.losses().is_empty() && collection.losses().is_empty());
}

#[test]
fn load_ring_buffer_generator() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    load("ringbuf.bpf.o");
    load("perfbuf.bpf.o");
    let collection = load("noprogs.bpf.o");
    assert!(collection.programs().is_empty());
    assert!(!collection.maps().is_empty());
}

#[test]
fn load_core_relocations_against_this_kernel() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("core.bpf.o");
    for core in [CoreBy::Loader, CoreBy::Kernel] {
        let mut options = LoadOptions::default();
        options.core = core;
        let collection = Collection::load(&object, options).unwrap();
        for program in collection.programs() {
            let line = run(program);
            assert_eq!(
                line,
                0,
                "core: {} fails its check in line {line} ({core:?})",
                program.name()
            );
        }
    }
}

#[test]
fn load_lets_the_kernel_say_which_core_relocation_is_missing() {
    if !require(&Feature::new("CO-RE by the kernel", 5, 17).config(&["CONFIG_DEBUG_INFO_BTF"])) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("core_missing.bpf.o");
    let mut options = LoadOptions::default();
    options.core = CoreBy::Kernel;
    let names = object.programs().iter().map(|p| p.name.clone());
    options.optional = names.filter(|name| name.starts_with("err_")).collect();
    options.include.clone_from(&options.optional);
    let collection = Collection::load(&object, options).unwrap();
    assert!(collection.program("core_missing_none").is_some());
    for name in ["err_core_missing_field", "err_core_missing_type"] {
        let err = collection.failure(name).unwrap();
        let ProgramError::Rejected(rejection) = err else {
            panic!("{err}")
        };
        let core = rejection.core.as_deref().unwrap_or_else(|| panic!("{err}"));
        assert!(core.contains("no_such"), "{core}");
        assert!(core.ends_with("so says the kernel"), "{core}");
    }
}

/// After a load the kernel's types are neither mapped nor in memory, unless the
/// caller holds them.
#[test]
fn load_keeps_no_kernel_types() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = || maps().contains("/sys/kernel/btf/vmlinux");
    let collection = load("core.bpf.o");
    assert!(!mapped());
    let held = KernelBtf::vmlinux().unwrap();
    let again = KernelBtf::vmlinux().unwrap();
    assert!(Arc::ptr_eq(&held, &again), "one copy for all");
    // Mapped where the kernel allows it.
    assert_eq!(mapped(), kernel_version() >= (6, 16));
    load("core.bpf.o");
    drop((held, again));
    assert!(!mapped());
    drop(collection);
}

/// The kernel's types are not looked at for programs that are left out.
#[test]
fn load_counts_relocations_of_the_programs_it_wants() {
    let object = object("core.bpf.o");
    let linker = object.linker().unwrap();
    assert_eq!(linker.core_relos_of([]).len(), 0);
    let all = linker.core_relos_of(object.programs()).len();
    assert_eq!(all, linker.core_relos().count());
    let first = linker.core_relos_of(object.programs().first()).len();
    assert!(0 < first && first < all, "{first} of {all}");
}

#[test]
fn load_says_which_core_relocation_is_missing() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("core_missing.bpf.o");
    load_alone(&object, "core_missing_none").unwrap();
    for program in object
        .programs()
        .iter()
        .filter(|p| p.name.starts_with("err_"))
    {
        let err = load_alone(&object, &program.name).unwrap_err();
        let LoadError::Program(ProgramError::Rejected(rejection)) = &err else {
            panic!("{}: {err}", program.name)
        };
        let core = rejection.core.as_deref().unwrap_or_else(|| panic!("{err}"));
        assert!(core.contains("this kernel"), "{core}");
        assert!(!err.to_string().contains("unknown#"), "{err}");
    }
}

#[test]
fn load_rejection_shows_log_and_source_line() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("bad_verifier.bpf.o");
    let mut rejected = 0;
    for program in object
        .programs()
        .iter()
        .filter(|p| p.name.starts_with("err_"))
    {
        let err = load_alone(&object, &program.name).unwrap_err();
        let LoadError::Program(ProgramError::Rejected(rejection)) = &err else {
            panic!("{err}")
        };
        assert_eq!(rejection.program, program.name);
        assert!(
            !rejection.log.is_truncated(),
            "{}",
            rejection.log.as_str().len()
        );
        let summary = rejection.log.summary().unwrap();
        assert!(!summary.starts_with("processed"), "{summary}");
        let line = rejection
            .source_line
            .as_ref()
            .unwrap_or_else(|| panic!("{err}"));
        assert!(line.file.ends_with("bad_verifier.bpf.c"), "{line}");
        assert!(line.line > 0 && !line.text.is_empty());
        assert_eq!(line.function, program.name, "{err}");
        rejected += 1;
    }
    assert!(rejected >= 3);
    load_alone(&object, "verifier_accepts").unwrap();
}

#[test]
fn load_failure_undoes_everything() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // Maps are made before the program is refused.
    let object = object("bad_verifier.bpf.o");
    assert!(Collection::load(&object, LoadOptions::default()).is_err());
}

#[test]
fn load_refuses_a_map_without_size() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let err = Map::create(&MapSpec {
        name: "empty".to_owned(),
        map_type: MapType::HASH,
        key_size: 4,
        value_size: 4,
        ..MapSpec::default()
    })
    .unwrap_err();
    assert!(
        matches!(&err, MapError::Spec { map, .. } if map == "empty"),
        "{err}"
    );
}

/// Types that no kernel takes are an object's own fault: what has to be left
/// out for it is not left out for others.
#[test]
fn load_after_types_that_are_refused() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let before = load("maps.bpf.o").losses().len();
    // It declares functions of another object, whose parameters have no names.
    Collection::load(&object("linked_a.bpf.o"), LoadOptions::default()).unwrap_err();
    assert_eq!(load("maps.bpf.o").losses().len(), before);
}

#[test]
fn load_map_pinned_by_two_at_once_is_one() {
    if !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let mut object = object("noprogs.bpf.o");
    for spec in object.maps_mut().iter_mut().filter(|m| m.name == "alone") {
        spec.pinning = Pinning::ByName;
    }
    // Both find no pin in few of the rounds.
    for _ in 0..50 {
        let dir = TempDir::on_bpffs();
        let start = std::sync::Barrier::new(2);
        let load = || {
            let mut options = LoadOptions::default();
            options.pin_dir = dir.path().to_owned();
            start.wait();
            Collection::load(&object, options).unwrap()
        };
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(load);
            let other = load();
            (one.join().unwrap(), other)
        });
        let id = |collection| map(collection, "alone").id().unwrap();
        assert_eq!(id(&one), id(&other));
    }
}

#[test]
fn load_lru_map_with_lists_per_cpu_is_found_again() {
    if !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::on_bpffs();
    let path = dir.path().join("lru");
    let cpus = ebpf_manager_sys::proc::possible_cpus().unwrap() as u32;
    let spec = MapSpec {
        name: "lru".to_owned(),
        map_type: MapType::LRU_HASH,
        key_size: 4,
        value_size: 8,
        max_entries: 8 * cpus + 1,
        flags: MapFlags::NO_COMMON_LRU,
        ..MapSpec::default()
    };
    let created = Map::create(&spec).unwrap();
    created.check(&spec, None).unwrap();
    created.pin(&path).unwrap();
    let found = Map::from_pin("lru", &path).unwrap();
    found.check(&spec, Some(&path)).unwrap();
    assert_eq!(found.max_entries(), created.max_entries());

    // What is pinned there is no program.
    let err = Program::from_pin("lru", &path).unwrap_err();
    assert!(err.is(Errno::EINVAL), "{err}");
}
