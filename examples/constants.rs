//! Shows: constants by variable and by symbol, for all programs or one.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::bpf::TestRun;
use ebpf_manager::{Constant, Manager};

fn main() -> ExitCode {
    common::run(
        "constants by variable and by symbol, for all programs or one",
        example,
    )
}

fn example() -> common::Result {
    let manager = Manager::builder()
        // const volatile __u64 weight.
        .constant("weight", 3_u64)
        // A symbol that nothing defines, loaded by an instruction.
        .edit(Constant::symbol("answer", 42).only_for("constant"))
        // Asked for at each load; not every object has it.
        .edit(Constant::global_with("build_number", || 7_u32).if_present())
        .build()?;
    manager.init(&common::object())?;
    let weight: u64 = manager.variable("weight").ok_or("no weight")?.get()?;
    let answer = returned(&manager, "constant")?;
    println!("weight {weight}, answer {answer}");
    common::check((weight, answer) == (3, 42), "the constants are not these")?;
    manager.stop()?;

    // What is missing is an error, unless it may be.
    let manager = Manager::builder()
        .constant("no_such_variable", 1_u32)
        .build()?;
    let Err(err) = manager.init(&common::object()) else {
        return Err("there is no such variable".into());
    };
    println!("{err}");
    Ok(())
}

/// What a program returns for an empty packet.
fn returned(manager: &Manager, function: &str) -> common::Result<u32> {
    let program = manager.program(function).ok_or("no such program")?;
    let mut run = TestRun {
        data_in: &[0; 64],
        ..TestRun::default()
    };
    Ok(program.test_run(&mut run)?.retval)
}
