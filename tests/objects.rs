//! Objects of every make through the loader: what other loaders' users have
//! written over the years, in C or by what this kernel is made of.

mod common;

use common::{LeakCheck, ROOT, check, load, map, object, require};
use ebpf_manager::bpf::{MapFlags, MapType};
use ebpf_manager::elf::{Pinning, Slot};

#[test]
fn objects_legacy_maps_of_every_make() {
    let object = object("legacy_maps.bpf.o");
    let spec = |name: &str| object.map(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(spec("lm_static").max_entries, 7);
    assert_eq!(spec("lm_static_second").value_size, 16);
    assert_eq!(spec("lm_seven_words").flags, MapFlags::NO_PREALLOC);
    let inner = spec("lm_outer_by_number").inner.as_ref().unwrap();
    assert_eq!((inner.max_entries, inner.value_size), (13, 16));
    let outer = spec("lm_outer_by_id");
    assert_eq!(outer.pinning, Pinning::Custom(2));
    assert_eq!(outer.slots, [(1, Slot::Map("lm_inner".to_owned()))]);
    assert_eq!(spec("lm_own_section").key_size, 8);

    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load("legacy_maps.bpf.o");
    check("legacy_maps", &collection, &["legacy_maps_check"]);
    let kinds = ["lm_other_section", "lm_btf"].map(|name| map(&collection, name).map_type());
    assert_eq!(kinds, [MapType::PERCPU_ARRAY, MapType::HASH]);
}

#[test]
fn objects_without_btf() {
    let object = object("legacy.bpf.o");
    assert!(object.btf().is_none());
    assert_eq!(object.kernel_version(), Some(0x04_0e00));
    assert_eq!(object.map("legacy_array").unwrap().value_size, 16);

    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load("legacy.bpf.o");
    check("legacy", &collection, &["legacy_check", "legacy_socket"]);
}
