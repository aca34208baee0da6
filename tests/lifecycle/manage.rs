//! What the tests of `manage.bpf.c` share.

use ebpf_manager::ProgramRef;

use super::*;

/// Maps of maps, constants and program arrays by routes.
pub(super) const MANAGE: Feature = RING_BUFFER;

pub(super) fn object() -> ObjectSource {
    ObjectSource::path(testdata("manage.bpf.o"))
}

/// A declaration that the object can be loaded with.
pub(super) fn builder() -> Builder {
    Manager::builder().inner_map("modelless", "table_a")
}

/// The object, initialised as declared.
pub(super) fn initialised(builder: Builder) -> Manager {
    let manager = builder.build().unwrap();
    manager.init(&object()).unwrap_or_else(|e| panic!("{e}"));
    manager
}

/// What the program returns for a packet.
pub(super) fn run(manager: &Manager, program: &str) -> u32 {
    let found = manager.program(program);
    run_program(&found.unwrap_or_else(|| panic!("no {program}")))
}

pub(super) fn run_program(program: &ProgramRef) -> u32 {
    let mut run = TestRun {
        data_in: &[0; 64],
        repeat: 1,
        ..TestRun::default()
    };
    program.test_run(&mut run).unwrap().retval
}

/// Runs of `manage_calls` so far, with one more system call to see.
pub(super) fn calls(manager: &Manager) -> u64 {
    hit(1);
    manager.variable("calls").unwrap().get().unwrap()
}

/// Fails unless the program runs, or unless it does not.
pub(super) fn assert_runs(manager: &Manager, runs: bool) {
    let before = calls(manager);
    if runs {
        act_until("a run", || hit(1), || calls(manager) > before);
        return;
    }
    for _ in 0..100 {
        hit(1);
    }
    assert_eq!(calls(manager), before, "it runs");
}
