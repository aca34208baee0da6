//! Loading many programs: on several threads, with some that may fail, and
//! copies of programs.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Feature, LeakCheck, ROOT, map, object, require, run};
use ebpf_manager::bpf::{
    AttachTo, Collection, Errno, LoadError, LoadOptions, Map, Program, ProgramCopy, ProgramError,
    pod,
};
use ebpf_manager::elf::edit::{PatchError, Patcher};
use ebpf_manager::elf::{MapSpec, Object};
use ebpf_manager_sys::abi::insn::Insn;

/// Bounded loops, which keep the verifier busy.
const LOOPS: Feature = Feature::new("bounded loops", 5, 3);
/// Attach targets by type.
const TYPED: Feature =
    Feature::new("programs with attach targets", 5, 5).config(&["CONFIG_DEBUG_INFO_BTF"]);

/// The first programs of `bench_d`, each of which takes the verifier
/// milliseconds.
const SLOW: usize = 6;

/// Options to load them on this number of threads.
fn slow(object: &Object, threads: usize) -> LoadOptions {
    let mut options = LoadOptions::default();
    let rest = object.programs().iter().skip(SLOW);
    options.exclude = rest.map(|p| p.name.clone()).collect();
    options.threads = threads;
    options
}

/// Threads of this process that load programs.
fn verifying_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")));
    names
        .filter(|name| name.as_ref().is_ok_and(|name| name == "ebpf-verify\n"))
        .count()
}

/// Puts before the last instruction of the program one that the verifier
/// refuses when it gets there; in place of the first for `at_once`.
fn spoil(name: &'static str, at_once: bool) -> Patcher {
    Patcher::new(move |program, editor| {
        if program.name != name {
            return Ok(());
        }
        let last = editor.program().insns.len() as u32 - 1;
        let uninitialised = Insn::mov64_reg(0, 9);
        if at_once {
            editor.set(0, uninitialised)
        } else {
            editor.insert_before(last, uninitialised)
        }
    })
}

fn refused(error: &ProgramError) -> &str {
    match error {
        ProgramError::Rejected(rejection) => &rejection.program,
        other => panic!("{other}"),
    }
}

#[test]
fn load_many_in_parallel() {
    if !require(&LOOPS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("bench_d.bpf.o");
    let names: Vec<_> = object.programs().iter().map(|p| p.name.clone()).collect();
    for threads in [1, 2, 4] {
        let order = Arc::new(Mutex::new(Vec::new()));
        let most = Arc::new(AtomicUsize::new(0));
        let mut options = slow(&object, threads);
        let (seen, started) = (Arc::clone(&order), Arc::clone(&most));
        options.patchers.push(Patcher::new(move |program, _| {
            seen.lock().unwrap().push(program.name.clone());
            started.fetch_max(verifying_threads(), Ordering::Relaxed);
            Ok(())
        }));
        let collection = Collection::load(&object, options).unwrap();
        let loaded: Vec<_> = collection.programs().iter().map(Program::name).collect();
        assert_eq!(loaded, names[..SLOW]);
        assert_eq!(*order.lock().unwrap(), names[..SLOW]);
        let started = most.load(Ordering::Relaxed);
        assert_eq!(started > 0, threads > 1, "{started} of {threads} threads");
        assert!(started < threads, "{started} of {threads} threads");
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while verifying_threads() > 0 {
        // A thread that was joined is listed until the kernel is done with it.
        assert!(Instant::now() < deadline, "threads are left");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn load_many_starts_no_thread_for_little() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("tailcall.bpf.o");
    let mut options = LoadOptions::default();
    options.threads = 8;
    options.include = vec!["tailcall_entry".to_owned()];
    options.exclude = vec!["tailcall_first".to_owned(), "tailcall_second".to_owned()];
    options.patchers.push(Patcher::new(|_, _| {
        assert_eq!(verifying_threads(), 0);
        Ok(())
    }));
    Collection::load(&object, options).unwrap();
}

#[test]
fn load_many_reports_the_first_failure_in_order() {
    if !require(&LOOPS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("bench_d.bpf.o");
    for threads in [1, 3] {
        // The fifth is refused long before the third.
        let mut options = slow(&object, threads);
        options.patchers.push(spoil("slow_5", true));
        options.patchers.push(spoil("slow_3", false));
        let err = Collection::load(&object, options).unwrap_err();
        let LoadError::Program(err) = &err else {
            panic!("{err}")
        };
        assert_eq!(refused(err), "slow_3");
        let log = err.verifier_log().unwrap();
        assert_eq!(log.summary(), Some("R9 !read_ok"), "{}", log.as_str().len());
    }
}

#[test]
fn load_many_keeps_failures_apart() {
    if !require(&LOOPS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("bench_d.bpf.o");
    for threads in [1, 3] {
        let mut options = slow(&object, threads);
        options.patchers.push(spoil("slow_5", true));
        options.patchers.push(spoil("slow_3", false));
        options.optional = vec!["slow_3".to_owned(), "slow_5".to_owned()];
        let collection = Collection::load(&object, options).unwrap();
        let failed: Vec<_> = collection.failures().iter().map(|(n, _)| n).collect();
        assert_eq!(failed, ["slow_3", "slow_5"]);
        for name in failed {
            assert_eq!(refused(collection.failure(name).unwrap()), name);
        }
        let loaded: Vec<_> = collection.programs().iter().map(Program::name).collect();
        assert_eq!(loaded, ["slow_1", "slow_2", "slow_4", "slow_6"]);
        assert!(collection.failure("slow_1").is_none());
    }
    let mut options = LoadOptions::default();
    options.optional = vec!["no_such".to_owned()];
    let err = Collection::load(&object, options).unwrap_err();
    assert!(
        matches!(&err, LoadError::NoSuch { name, .. } if name == "no_such"),
        "{err}"
    );
}

#[test]
fn load_many_optional_failures_before_the_verifier() {
    if !require(&TYPED) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // A CO-RE relocation that the program cannot do without.
    let core = object("core_missing.bpf.o");
    let mut options = LoadOptions::default();
    let names = core.programs().iter().map(|p| p.name.clone());
    options.optional = names.filter(|name| name.starts_with("err_")).collect();
    options.include.clone_from(&options.optional);
    let collection = Collection::load(&core, options).unwrap();
    assert!(collection.program("core_missing_none").is_some());
    assert!(!collection.failures().is_empty());
    for (name, err) in collection.failures() {
        assert_eq!(refused(err), name);
        assert!(err.to_string().contains("CO-RE relocation"), "{err}");
    }

    // A function that no kernel has.
    let typed = object("typed.bpf.o");
    let mut options = LoadOptions::default();
    options.include = vec!["on_fentry".to_owned()];
    options.optional = vec!["on_fentry".to_owned()];
    let to = AttachTo::kernel("on_fentry", "no_such_function");
    options.attach_to.push(to);
    let collection = Collection::load(&typed, options).unwrap();
    let err = collection.failure("on_fentry").unwrap();
    let ProgramError::NoAttachTarget { name, .. } = err else {
        panic!("{err}")
    };
    assert_eq!(name, "no_such_function");
}

#[test]
fn load_many_leaves_slots_of_failures_empty() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("tailcall.bpf.o");
    let mut options = LoadOptions::default();
    options.optional = vec!["tailcall_first".to_owned()];
    options.patchers.push(Patcher::new(|program, _| {
        if program.name == "tailcall_first" {
            return Err(PatchError::refused("not today"));
        }
        Ok(())
    }));
    let collection = Collection::load(&object, options).unwrap();
    let err = collection.failure("tailcall_first").unwrap();
    assert_eq!(err.to_string(), "program tailcall_first: not today");
    let entry = collection.program("tailcall_entry").unwrap();
    assert_ne!(run(entry), 0, "fell through");
    let jumps = map(&collection, "jumps");
    let mut id = [0; 4];
    assert!(!jumps.lookup(&0_u32.to_ne_bytes(), &mut id).unwrap());
    assert!(jumps.lookup(&2_u32.to_ne_bytes(), &mut id).unwrap());
}

#[test]
fn load_copies_with_constants_of_their_own() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let constants = object("constants.bpf.o");
    let mut copy = ProgramCopy::new("constants_chosen", "chosen_again");
    copy.patchers.push(Patcher::new(|program, editor| {
        assert_eq!(program.name, "chosen_again");
        editor.set_constant("constant_shared", 9).map(drop)
    }));
    let mut options = LoadOptions::default();
    options.copies.push(copy);
    let collection = Collection::load(&constants, options).unwrap();
    let original = collection.program("constants_chosen").unwrap();
    assert_ne!(run(original), 0);
    let copy = collection.program("chosen_again").unwrap();
    assert_eq!(run(copy), 0);
    let info = ebpf_manager_sys::bpf::prog_info(copy.as_fd()).unwrap();
    assert_eq!(&info.name[..12], b"chosen_again");

    let globals = object("globals.bpf.o");
    let collection = Collection::load(&globals, LoadOptions::default()).unwrap();
    let mut copy = ProgramCopy::new("globals_patched", "patched");
    let array = [2_u64, 0x0102_0304_0506_0708];
    let values: [(&str, &[u8]); 6] = [
        ("patched_u32", &0xfeed_face_u32.to_ne_bytes()),
        ("patched_u8", &[0xab]),
        ("patched_array", pod::slice_bytes(&array)),
        ("patched_data", &(-77_i32).to_ne_bytes()),
        ("patched_bss", &0xbeef_u16.to_ne_bytes()),
        ("patched_custom", &1000_u32.to_ne_bytes()),
    ];
    let values = values.map(|(name, value)| (name.to_owned(), value.to_vec()));
    copy.variables = values.to_vec();
    let patched = collection
        .load_copy(&globals, copy, LoadOptions::default())
        .unwrap();
    assert_eq!(patched.name(), "patched");
    assert_eq!(run(&patched), 0);
    // The collection's own variables are as they were.
    assert_eq!(run(collection.program("globals_initial").unwrap()), 0);

    let mut wrong = ProgramCopy::new("globals_patched", "patched");
    wrong.variables = vec![("patched_u32".to_owned(), vec![0])];
    let err = collection.load_copy(&globals, wrong, LoadOptions::default());
    assert!(matches!(err, Err(LoadError::Object { .. })), "{err:?}");
    let absent = ProgramCopy::new("no_such", "copy");
    let err = collection.load_copy(&globals, absent, LoadOptions::default());
    assert!(matches!(err, Err(LoadError::NoSuch { .. })), "{err:?}");
    let other = ProgramCopy::new("constants_chosen", "copy");
    let err = collection.load_copy(&object("maps.bpf.o"), other, LoadOptions::default());
    assert!(matches!(err, Err(LoadError::NoSuch { .. })), "{err:?}");
}

#[test]
fn load_copies_with_maps_of_their_own() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("globals.bpf.o");
    let collection = Collection::load(&object, LoadOptions::default()).unwrap();
    let bss = object.map(".bss").unwrap();
    let mut copy = ProgramCopy::new("globals_count", "count_elsewhere");
    copy.maps.push(Map::create(bss).unwrap());
    let copied = collection
        .load_copy(&object, copy, LoadOptions::default())
        .unwrap();
    run(&copied);
    run(&copied);
    let read = |name: &str| collection.variable(name).unwrap().get::<u64>().unwrap();
    assert_eq!(read("count_bss"), 0, "the copy counts in its own map");
    assert_eq!(read("count_data"), 102, "and on the collection's otherwise");

    let mut copy = ProgramCopy::new("globals_count", "wrong");
    let wrong = MapSpec {
        value_size: bss.value_size + 8,
        ..bss.clone()
    };
    copy.maps.push(Map::create(&wrong).unwrap());
    let err = collection.load_copy(&object, copy, LoadOptions::default());
    assert!(matches!(err, Err(LoadError::Map(_))), "{err:?}");

    // Together with the object, and allowed to fail.
    let mut options = LoadOptions::default();
    let mut spoilt = ProgramCopy::new("globals_count", "spoilt");
    spoilt.patchers.push(spoil("spoilt", true));
    options.copies = vec![spoilt, ProgramCopy::new("globals_count", "count_again")];
    options.optional = vec!["spoilt".to_owned()];
    let collection = Collection::load(&object, options).unwrap();
    let err = collection.failure("spoilt").unwrap();
    assert!(err.is(Errno::EACCES), "{err}");
    run(collection.program("count_again").unwrap());
    let count = collection.variable("count_bss").unwrap();
    assert_eq!(count.get::<u64>().unwrap(), 1);
}
