//! Objects by compilers that the build script does not use.

use ebpf_manager::bpf::{Collection, LoadError, LoadOptions, MapType, ProgramError};
use ebpf_manager::elf::{FixupTarget, LinkedProgram, Object};

use crate::common::{
    Feature, LeakCheck, RING_BUFFER, ROOT, check, kernel_version, load, load_alone, map, object,
    require, skip, testdata,
};

const JUMP_TABLES: Feature = Feature::new("jump tables", 6, 19).config(&["CONFIG_BPF_JIT"]);

const JUMPS: &str = "compilers/jumps.bpf.o";

/// Instruction numbers that the tables of a program lead to, one for each
/// instruction that loads the address of one.
fn tables(object: &Object, program: &str) -> Vec<Vec<u32>> {
    let mut linked = LinkedProgram::default();
    let spec = object.program(program).unwrap();
    object.linker().unwrap().link(spec, &mut linked).unwrap();
    let tables = linked.fixups.iter().filter_map(|fixup| match fixup.target {
        FixupTarget::JumpTable { first, count } => {
            Some(linked.jump_targets[first as usize..][..count as usize].to_vec())
        }
        _ => None,
    });
    tables.collect()
}

#[test]
fn objects_jump_tables_move_with_functions() {
    let object = object(JUMPS);
    assert!(tables(&object, "jumps_none").is_empty());
    // Of one program, counted from its start.
    let own = tables(&object, "jumps_own");
    assert_eq!(own.len(), 1);
    assert_eq!(own[0].len(), 7);
    let twice = vec![vec![5, 7, 12]; 2];
    assert_eq!(tables(&object, "jumps_twice"), twice);
    // The same functions, each at its place in the program.
    let near = tables(&object, "jumps_shared");
    let far = tables(&object, "jumps_shared_elsewhere");
    assert_eq!((near.len(), far.len()), (2, 3));
    let inner = |tables: &[Vec<u32>]| tables.iter().find(|t| t.len() == 6).unwrap().clone();
    let moved = inner(&far)[0].wrapping_sub(inner(&near)[0]);
    assert_ne!(moved, 0);
    let near = inner(&near).into_iter();
    let expected: Vec<u32> = near.map(|at| at.wrapping_add(moved)).collect();
    assert_eq!(inner(&far), expected);
}

#[test]
fn objects_jump_tables_are_loaded() {
    if !require(&ROOT) || !require(&JUMP_TABLES) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load(JUMPS);
    let programs = [
        "jumps_none",
        "jumps_own",
        "jumps_shared",
        "jumps_shared_elsewhere",
        "jumps_callback",
        "jumps_twice",
    ];
    check(JUMPS, &collection, &programs);
    // They are the programs' own.
    assert!(collection.maps().is_empty());
    drop(collection);

    // A refusal says why: the table may be given to the kernel once more.
    let err = load_alone(&object(JUMPS), "err_jumps").unwrap_err();
    let LoadError::Program(ProgramError::Rejected(rejection)) = &err else {
        panic!("{err}");
    };
    let text = err.to_string();
    assert!(
        text.contains("invalid mem access 'scalar'"),
        "{text}\n{}",
        rejection.log.as_str()
    );
    assert_eq!(rejection.source_line.as_ref().unwrap().line, 204);
}

#[test]
fn objects_jump_tables_need_a_new_kernel() {
    if !require(&ROOT) {
        return;
    }
    if kernel_version() >= (6, 19) {
        skip("this kernel has jump tables");
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object(JUMPS);
    // What has none of them does not mind.
    load_alone(&object, "jumps_none").unwrap();
    let err = load_alone(&object, "jumps_own").unwrap_err();
    let LoadError::Program(ProgramError::Operation { program, .. }) = &err else {
        panic!("{err}");
    };
    assert_eq!(program, "jumps_own");
    let text = err.to_string();
    assert!(text.contains("a jump table needs Linux 6.19"), "{text}");

    let mut options = LoadOptions::default();
    options.optional = object.programs().iter().map(|p| p.name.clone()).collect();
    let collection = Collection::load(&object, options).unwrap();
    assert_eq!(collection.programs().len(), 1);
    assert_eq!(collection.failures().len(), 5);
}

#[test]
fn objects_tentative_definitions_are_refused() {
    let bytes = std::fs::read(testdata("compilers/common.bpf.o")).unwrap();
    let err = Object::parse(bytes).unwrap_err().to_string();
    assert!(
        err.contains("co_tentative") && err.contains("-fno-common"),
        "{err}"
    );
}

/// Maps by words and by types in one object, and sections of constants.
#[test]
fn objects_by_rust() {
    let mut object = object("compilers/aya.bpf.o");
    let spec = |name: &str| object.map(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!((spec("WORDS").key_size, spec("WORDS").value_size), (4, 8));
    assert_eq!(spec("renamed").map_type, MapType::PERCPU_ARRAY);
    assert_eq!(spec("TYPES").value_size, 16);
    let inner = spec("OUTER").inner.as_ref().unwrap();
    assert_eq!((inner.max_entries, inner.value_size), (10, 4));
    assert!(spec(".rodata.cst16").freeze);
    object
        .set_variable("PATCHED", &8_u32.to_ne_bytes())
        .unwrap();

    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = Collection::load(&object, LoadOptions::default()).unwrap();
    check("aya", &collection, &["aya_words", "aya_types", "aya_data"]);
    let words = map(&collection, "WORDS");
    assert_eq!(words.get::<u64>(&5_u32).unwrap(), Some(50));
}
