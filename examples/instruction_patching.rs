//! Shows: instructions changed between linking and loading.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::Manager;
use ebpf_manager::bpf::TestRun;
use ebpf_manager::elf::edit::PatchError;

fn main() -> ExitCode {
    common::run("instructions changed between linking and loading", example)
}

fn example() -> common::Result {
    let manager = Manager::builder()
        .patch(|program, editor| {
            if program.name != "patched" {
                return Ok(());
            }
            // `r1 = 1` becomes `r1 = 99`.
            let one = editor.units().find(|unit| unit.insn.imm == 1);
            let one = one.ok_or_else(|| PatchError::refused("no 1 in it"))?;
            println!("before: {}", editor.disassemble(&one));
            let mut insn = one.insn;
            insn.imm = 99;
            editor.set(one.at, insn)
        })
        .build()?;
    manager.init(&common::object())?;
    let program = manager.program("patched").ok_or("no such program")?;
    let mut run = TestRun {
        data_in: &[0; 64],
        ..TestRun::default()
    };
    let returned = program.test_run(&mut run)?.retval;
    println!("it returns {returned}");
    common::check(returned == 99, "it returns what it was written to return")?;
    manager.stop()?;
    Ok(())
}
