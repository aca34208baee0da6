//! Several objects linked into one.

use ebpf_manager::bpf::{Collection, LoadOptions, link_objects};
use ebpf_manager::elf::{Object, StaticLinkError, static_link};

use crate::common::{Feature, LeakCheck, ROOT, check, require};

const GLOBAL_FUNCTIONS: Feature =
    Feature::new("global functions", 5, 6).config(&["CONFIG_DEBUG_INFO_BTF"]);

fn path(name: &str) -> String {
    format!("{}/tests/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn objects_linked_into_one() {
    let files = ["linked_a.bpf.o", "linked_b.bpf.o"].map(path);
    let linked = link_objects(&files).unwrap();
    let object = Object::parse(linked.clone()).unwrap();
    let maps: Vec<_> = object.maps().iter().map(|m| m.name.as_str()).collect();
    let expected = [
        ".data",
        ".rodata",
        ".bss",
        "li_a_map",
        "li_weak_map",
        "li_b_map",
        ".kconfig",
    ];
    assert_eq!(maps, expected);
    assert_eq!(object.variables().len(), 8);
    // What is linked once can be linked again, alone and to the same bytes
    // from then on.
    let again = static_link(&[("linked", &linked)]).unwrap();
    let third = static_link(&[("again", &again)]).unwrap();
    assert!(again == third);
    Object::parse(again).unwrap();

    if !require(&ROOT) || !require(&GLOBAL_FUNCTIONS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = Collection::load(&object, LoadOptions::default()).unwrap();
    check("linked", &collection, &["linked_a", "linked_b"]);
    let variable = |name: &str| collection.variable(name).unwrap().get::<u32>().unwrap();
    assert_eq!((variable("li_a_zero"), variable("li_b_zero")), (1, 1));
}

/// Everything that relocations refer to has moved.
#[test]
fn objects_with_all_relocations_linked() {
    let names = ["globals", "sections", "tailcall", "relocs", "subprogs"];
    let files = names.map(|name| path(&format!("{name}.bpf.o")));
    let object = Object::parse(link_objects(&files).unwrap()).unwrap();
    if !require(&ROOT) || !require(&GLOBAL_FUNCTIONS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let mut options = LoadOptions::default();
    // Has a test of its own, on kernels with callbacks.
    options.exclude = vec!["relocs_callback".to_owned()];
    let collection = Collection::load(&object, options).unwrap();
    let programs = [
        "globals_initial",
        "sections_check",
        "tailcall_entry",
        "relocs_offsets",
        "relocs_static_initialisers",
        "calls_static",
        "calls_reordered",
        "calls_global",
    ];
    check("linked", &collection, &programs);
}

/// Maps by words, which name each other by numbers.
#[test]
fn objects_of_old_linked_into_one() {
    let files = ["legacy.bpf.o", "legacy_maps.bpf.o"].map(path);
    let object = Object::parse(link_objects(&files).unwrap()).unwrap();
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = Collection::load(&object, LoadOptions::default()).unwrap();
    let programs = ["legacy_check", "legacy_socket", "legacy_maps_check"];
    check("legacy_linked", &collection, &programs);
}

#[test]
fn objects_that_do_not_fit_together() {
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    let (a, b) = (read("linked_a.bpf.o"), read("linked_b.bpf.o"));
    let err = static_link(&[("a", &a), ("b", &b), ("again", &b)]).unwrap_err();
    match err {
        StaticLinkError::Conflict { first, second, .. } => {
            assert_eq!((first.as_str(), second.as_str()), ("b", "again"));
        }
        other => panic!("{other}"),
    }
    let globals = read("globals.bpf.o");
    let err = static_link(&[("globals", &globals), ("x86", b"\x7fELF\x01")]).unwrap_err();
    assert_eq!(
        err.to_string(),
        "x86: a 32-bit ELF file; eBPF objects are 64-bit"
    );

    // Another type of a variable, another definition of a map.
    let damaged = |from: &[u8], old: &[u8], new: &[u8]| {
        let mut bytes = from.to_vec();
        let at = bytes.windows(old.len()).position(|w| w == old).unwrap();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let licence = damaged(&b, b"Dual MIT/GPL\0", b"Dual MIT/BSD\0");
    let err = static_link(&[("a", &a), ("b", &licence)]).unwrap_err();
    assert_eq!(
        err.to_string(),
        "section license of b is not the same as in a: its contents differ"
    );
    // Maps that only their files see, but are looked for by name.
    let mut again = read("relocs.bpf.o");
    while let Some(at) = again.windows(9).position(|w| w == b"rl_jumps\0") {
        again[at..at + 9].copy_from_slice(b"jumps\0\0\0\0");
    }
    let tailcall = read("tailcall.bpf.o");
    let both = static_link(&[("tailcall", &tailcall), ("again", &again)]).unwrap();
    assert_eq!(
        Object::parse(both).unwrap_err().to_string(),
        "map jumps: two maps have this name"
    );
    let member = damaged(&b, b"max_entries\0", b"map_extra\0s\0");
    let err = static_link(&[("a", &a), ("b", &member)]).unwrap_err();
    assert!(
        err.to_string()
            .contains("the map is defined in another way"),
        "{err}"
    );
}
