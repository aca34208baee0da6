//! Shows: a program that samples every processor.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::bpf::PerfHook;
use ebpf_manager::{Manager, Probe};

fn main() -> ExitCode {
    common::run("a program that samples every processor", example)
}

fn example() -> common::Result {
    let manager = Manager::builder()
        .probe(Probe::new("on_tick").hook(PerfHook::cpu_clock(1000)))
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    for (id, outcome) in manager.probes() {
        println!("{id}: {outcome}");
    }
    let counter = manager.variable("ticks").ok_or("no such variable")?;
    common::until("a tick", common::call, || Ok(counter.get::<u64>()? > 0))?;
    println!("ticks: {}", counter.get::<u64>()?);
    manager.stop()?;
    Ok(())
}
