//! Structures of the kernel that programs fill.

use std::os::fd::AsFd;

use ebpf_manager::bpf::{Collection, LoadOptions, MapFlags, MapType, ProgramError, ProgramType};
use ebpf_manager_sys::abi::bpf::AttachType;
use ebpf_manager_sys::bpf::{LinkCreate, LinkOptions, Target, link_create};

use crate::common::{Feature, LeakCheck, ROOT, kernel_version, map, object, require};

/// Congestion controls made of programs; links to them came with 6.4.
const CONGESTION_CONTROL: Feature = Feature::new("struct_ops", 5, 6).config(&[
    "CONFIG_BPF_JIT",
    "CONFIG_DEBUG_INFO_BTF",
    "CONFIG_INET",
]);

fn available() -> String {
    std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")
        .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn objects_structures_of_the_kernel() {
    if !require(&ROOT) || !require(&CONGESTION_CONTROL) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let links = kernel_version() >= (6, 4);
    let mut object = object("struct_ops.bpf.o");
    for map in object.maps_mut() {
        map.skip |= !links && map.flags.contains(MapFlags::LINK);
    }
    let mut options = LoadOptions::default();
    if !links {
        options.exclude = vec!["so_static".to_owned(), "so_nowhere".to_owned()];
    }
    let collection = Collection::load(&object, options).unwrap();
    assert!(collection.map("so_optional").is_none());
    assert!(collection.program("so_asked_for").is_none());
    let plain = map(&collection, "so_plain");
    assert_eq!(plain.map_type(), MapType::STRUCT_OPS);
    let thresh = collection.program("so_ssthresh").unwrap();
    assert_eq!(thresh.program_type(), ProgramType::STRUCT_OPS);

    assert!(!available().contains("em_plain"));
    let key = 0_u32.to_ne_bytes();
    plain.update(&key, plain.operations().unwrap()).unwrap();
    assert!(available().contains("em_plain"), "{}", available());
    assert!(plain.delete(&key).unwrap());
    assert!(!available().contains("em_plain"));

    if links {
        // This kernel has no such member, so its program is not loaded.
        assert!(collection.program("so_nowhere").is_none());
        match collection.failure("so_nowhere") {
            Some(ProgramError::NoAttachTarget { what, .. }) => {
                assert_eq!(*what, "member of a structure");
            }
            other => panic!("{other:?}"),
        }
        let map = map(&collection, "so_link");
        map.update(&key, map.operations().unwrap()).unwrap();
        assert!(!available().contains("em_link"));
        let link = link_create(&LinkCreate {
            object: map.as_fd(),
            target: Target::None,
            attach_type: AttachType::STRUCT_OPS,
            flags: 0,
            options: LinkOptions::None,
        })
        .unwrap();
        assert!(available().contains("em_link"));
        drop(link);
    }
}
