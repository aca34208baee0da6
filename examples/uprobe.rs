//! Shows: a program on a function of a shared library.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::bpf::Uprobe;
use ebpf_manager::{Manager, Probe};

fn main() -> ExitCode {
    common::run("a program on a function of a shared library", example)
}

fn example() -> common::Result {
    let manager = Manager::builder()
        .probe(Probe::new("on_uprobe").hook(Uprobe::symbol("libc.so.6", "getpid")))
        .constant("target_tgid", std::process::id())
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    for (id, outcome) in manager.probes() {
        println!("{id}: {outcome}");
    }
    let counter = manager.variable("calls").ok_or("no such variable")?;
    common::until("a call", common::call, || Ok(counter.get::<u64>()? > 0))?;
    println!("calls: {}", counter.get::<u64>()?);
    manager.stop()?;
    Ok(())
}
