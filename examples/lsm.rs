//! Shows: a program on a security hook.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::{Manager, Probe};

fn main() -> ExitCode {
    common::run("a program on a security hook", example)
}

fn example() -> common::Result {
    common::needs("this kernel is locked down", !common::is_locked_down())?;
    common::needs(
        "BPF is not among the security modules in use",
        common::file_says("/sys/kernel/security/lsm", "bpf"),
    )?;
    let manager = Manager::builder()
        .probe(Probe::new("on_lsm"))
        .constant("target_tgid", std::process::id())
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    for (id, outcome) in manager.probes() {
        println!("{id}: {outcome}");
    }
    let counter = manager.variable("calls").ok_or("no such variable")?;
    common::until("an opened file", common::open, || {
        Ok(counter.get::<u64>()? > 0)
    })?;
    println!("calls: {}", counter.get::<u64>()?);
    manager.stop()?;
    Ok(())
}
