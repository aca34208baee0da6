//! Memory that programs and user space share, pointers included.

use ebpf_manager::bpf::{Collection, Errno, LoadOptions, MapFlags, MapType};

use crate::common::{Feature, LeakCheck, ROOT, check, map, object, require};

const ARENA: Feature =
    Feature::new("arenas", 6, 9).config(&["CONFIG_BPF_JIT", "CONFIG_DEBUG_INFO_BTF"]);

#[test]
fn objects_variables_in_an_arena() {
    let mut object = object("arena.bpf.o");
    let spec = object.map("ar_arena").unwrap();
    assert_eq!((spec.map_type, spec.max_entries), (MapType::ARENA, 4));
    assert_eq!(spec.contents.as_slice().unwrap().len(), 24);
    assert_eq!(object.maps().len(), 1);
    let set = |object: &mut ebpf_manager::elf::Object, value: u64| {
        object
            .set_variable("ar_first", &value.to_ne_bytes())
            .unwrap();
    };
    set(&mut object, 12);
    set(&mut object, 11);

    if !require(&ROOT) || !require(&ARENA) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // Once where the kernel likes, once where the object says.
    for address in [0, 1 << 44] {
        object.maps_mut()[0].map_extra = address;
        let collection = Collection::load(&object, LoadOptions::default()).unwrap();
        check("arena", &collection, &["arena_check"]);
        let variable = |name: &str| collection.variable(name).unwrap();
        assert_eq!(variable("ar_first").get::<u64>().unwrap(), 111);
        let memory = map(&collection, "ar_arena").arena().unwrap();
        assert!(address == 0 || memory.address() == address);
        let pointer: u64 = variable("ar_pointer").get().unwrap();
        let mut second = [0; 8];
        let offset = pointer - memory.address();
        memory.read(offset as usize, &mut second).unwrap();
        assert_eq!(u64::from_ne_bytes(second), 22);
        variable("ar_second").set(&23_u64).unwrap();
    }
    // Where touching its memory may kill, its variables cannot be set.
    object.maps_mut()[0].flags |= MapFlags::SEGV_ON_FAULT;
    let err = Collection::load(&object, LoadOptions::default()).unwrap_err();
    assert!(err.is(Errno::EOPNOTSUPP), "{err}");
    assert!(format!("{err:?}").contains("BPF_F_SEGV_ON_FAULT"), "{err}");
}
