//! Shows: a program on a tracepoint that its section names.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::{Manager, Probe};

fn main() -> ExitCode {
    common::run("a program on a tracepoint that its section names", example)
}

fn example() -> common::Result {
    let manager = Manager::builder()
        .probe(Probe::new("on_fork"))
        .constant("target_tgid", std::process::id())
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    for (id, outcome) in manager.probes() {
        println!("{id}: {outcome}");
    }
    let counter = manager.variable("executions").ok_or("no such variable")?;
    common::until("a fork", common::fork, || Ok(counter.get::<u64>()? > 0))?;
    println!("executions: {}", counter.get::<u64>()?);
    manager.stop()?;
    Ok(())
}
