//! Objects of `tests/programs`: loading them and running their programs,
//! which check themselves and return the line of the failed check, or 0.

use ebpf_manager::bpf::{
    Collection, LoadError, LoadOptions, Map, Program, ProgramType, TestRun, open_object,
};
use ebpf_manager::elf::Object;

use super::testdata;

/// A fixture, parsed.
pub(crate) fn object(name: &str) -> Object {
    open_object(testdata(name)).unwrap()
}

/// A fixture with all its programs, loaded.
pub(crate) fn load(name: &str) -> Collection {
    Collection::load(&object(name), LoadOptions::default())
        .unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Loads one program of an object whose others are left out.
pub(crate) fn load_alone(object: &Object, name: &str) -> Result<Collection, LoadError> {
    let others = object.programs().iter().filter(|p| p.name != name);
    let mut options = LoadOptions::default();
    options.exclude = others.map(|p| p.name.clone()).collect();
    options.include = vec![name.to_owned()];
    Collection::load(object, options)
}

/// Runs a program once; what it returns.
pub(crate) fn run(program: &Program) -> u32 {
    let data = [0_u8; 64];
    let takes_data = !matches!(
        program.program_type(),
        ProgramType::RAW_TRACEPOINT | ProgramType::SYSCALL
    );
    let mut run = TestRun {
        data_in: if takes_data { &data } else { &[] },
        repeat: u32::from(takes_data),
        ..TestRun::default()
    };
    program
        .test_run(&mut run)
        .unwrap_or_else(|e| panic!("{e}"))
        .retval
}

/// Runs the named programs; each must return 0.
pub(crate) fn check(name: &str, collection: &Collection, programs: &[&str]) {
    for program in programs {
        let loaded = collection
            .program(program)
            .unwrap_or_else(|| panic!("{name}: no {program}"));
        let line = run(loaded);
        assert_eq!(line, 0, "{name}: {program} fails its check in line {line}");
    }
}

/// A map of a loaded object.
pub(crate) fn map<'c>(collection: &'c Collection, name: &str) -> &'c Map {
    collection
        .map(name)
        .unwrap_or_else(|| panic!("no map {name}"))
}
