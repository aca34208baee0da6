//! Shows: tail calls routed before the start, and rerouted while it runs.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::bpf::TestRun;
use ebpf_manager::{Manager, TailCall};

fn main() -> ExitCode {
    common::run(
        "tail calls routed before the start, and rerouted while it runs",
        example,
    )
}

fn example() -> common::Result {
    let manager = Manager::builder()
        // In place before the first program is attached.
        .tail_call(TailCall::new("steps", 0, "second"))
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    let returned = || -> common::Result<u32> {
        let program = manager.program("first").ok_or("no such program")?;
        let mut run = TestRun {
            data_in: &[0; 64],
            ..TestRun::default()
        };
        Ok(program.test_run(&mut run)?.retval)
    };
    println!("first calls {}", returned()?);
    common::check(returned()? == 2, "it is not routed")?;
    manager.update_tail_calls(&[TailCall::new("steps", 0, "third")])?;
    println!("then {}", returned()?);
    common::check(returned()? == 3, "it is not rerouted")?;

    // All or nothing: an index that is out of range undoes what came before.
    let routes = [
        TailCall::new("steps", 0, "second"),
        TailCall::new("steps", 99, "second"),
    ];
    let Err(err) = manager.update_tail_calls(&routes) else {
        return Err("there is no index 99".into());
    };
    println!("{err}");
    common::check(returned()? == 3, "it is half rerouted")?;
    manager.stop()?;
    Ok(())
}
