//! Shows: a program on what the processes of a cgroup send.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::{Hook, Manager, Probe};

fn main() -> ExitCode {
    common::run("a program on what the processes of a cgroup send", example)
}

fn example() -> common::Result {
    common::needs(
        "no hierarchy of cgroups (version 2) is mounted",
        common::file_says("/proc/self/mounts", " cgroup2 "),
    )?;
    let manager = Manager::builder()
        // The root of the hierarchy: every process.
        .probe(Probe::new("on_cgroup").hook(Hook::cgroup("")))
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    for (id, outcome) in manager.probes() {
        println!("{id}: {outcome}");
    }
    let counter = manager.variable("packets").ok_or("no such variable")?;
    common::until("a packet", common::send, || Ok(counter.get::<u64>()? > 0))?;
    println!("packets: {}", counter.get::<u64>()?);
    manager.stop()?;
    Ok(())
}
