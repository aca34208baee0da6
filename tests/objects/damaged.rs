//! Type information that is damaged: left out if nothing needs it.

use std::fs;

use ebpf_manager::bpf::{Collection, LoadOptions, MapFlags};
use ebpf_manager::elf::{LinkedProgram, Object, ObjectError};

use crate::common::{LeakCheck, ROOT, check, require, testdata};

/// Starts of `.BTF` and `.BTF.ext`: magic, version, flags, length of the header.
const BTF: [u8; 8] = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
const EXT: [u8; 8] = [0x9f, 0xeb, 1, 0, 32, 0, 0, 0];
/// Damage: another version. The rest of a header can still be read.
const VERSION: usize = 2;
/// Damage: the place of the function records in `.BTF.ext`.
const FUNCTIONS: usize = 8;

/// An object with a byte of its types flipped: the file, a section's start and
/// the place in it.
fn damaged(name: &str, section: [u8; 8], at: usize) -> Vec<u8> {
    let mut bytes = fs::read(testdata(name)).unwrap();
    let starts = bytes.windows(8).enumerate();
    let starts: Vec<_> = starts.filter(|(_, bytes)| *bytes == section).collect();
    let [(start, _)] = starts[..] else {
        panic!("{name}: {} sections", starts.len());
    };
    bytes[start + at] ^= 0x40;
    bytes
}

fn refused(name: &str, section: [u8; 8], at: usize) -> String {
    let object = Object::parse(damaged(name, section, at));
    let linked = object.and_then(|object| object.linker().map(drop));
    linked.unwrap_err().to_string()
}

#[test]
fn objects_with_damaged_types() {
    let name = "globals.bpf.o";
    let without_btf = Object::parse(damaged(name, BTF, VERSION)).unwrap();
    assert!(without_btf.btf().is_none());
    let found = without_btf.btf_damage().unwrap();
    assert!(
        matches!(
            found,
            ObjectError::Btf {
                section: ".BTF",
                ..
            }
        ),
        "{found}"
    );
    let maps = without_btf.maps();
    assert!(maps.iter().all(|m| !m.flags.contains(MapFlags::MMAPABLE)));
    assert!(maps.iter().all(|m| m.value_type_id == 0));

    let without_ext = Object::parse(damaged(name, EXT, FUNCTIONS)).unwrap();
    assert!(without_ext.btf().is_some());
    let found = without_ext.btf_damage().unwrap();
    assert!(found.to_string().starts_with("section .BTF.ext: "));
    let mut linked = LinkedProgram::default();
    let linker = without_ext.linker().unwrap();
    for program in without_ext.programs() {
        linker.link(program, &mut linked).unwrap();
        assert!(linked.func_info.is_empty() && linked.line_info.is_empty());
    }
    let whole = Object::parse(fs::read(testdata(name)).unwrap()).unwrap();
    assert_eq!(whole.btf_damage(), None);

    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    for object in [without_btf, without_ext] {
        let collection = Collection::load(&object, LoadOptions::default()).unwrap();
        check("globals", &collection, &["globals_initial"]);
        let count = collection.variable("count_data").unwrap();
        count.set(&7_u64).unwrap();
        assert_eq!(count.get::<u64>().unwrap(), 7);
    }
}

/// Maps, structures, symbols and relocations need them.
#[test]
fn objects_that_need_their_types() {
    for name in [
        "maps",
        "struct_ops",
        "ksyms",
        "kconfig",
        "constants",
        "core",
    ] {
        let name = format!("{name}.bpf.o");
        for (section, at) in [(BTF, VERSION), (EXT, FUNCTIONS)] {
            let what = if section == BTF { ".BTF" } else { ".BTF.ext" };
            let found = refused(&name, section, at);
            let expected = format!("section {what}: ");
            assert!(found.starts_with(&expected), "{name}: {found}");
        }
    }
}

/// CO-RE relocations that cannot be made are not left out.
#[test]
fn objects_whose_types_are_gone() {
    let mut bytes = fs::read(testdata("core_missing.bpf.o")).unwrap();
    let name = bytes.windows(5).position(|w| w == b".BTF\0").unwrap();
    bytes[name..name + 4].copy_from_slice(b".old");
    let err = Object::parse(bytes).unwrap_err();
    assert_eq!(
        err.to_string(),
        "damaged or truncated: the section needs BTF, which the object lacks; \
         compile with -g (section .BTF.ext)"
    );
}
