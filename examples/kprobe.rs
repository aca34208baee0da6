//! Shows: a program on a system call, whatever its function is called here.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::bpf::Kprobe;
use ebpf_manager::{Manager, Probe};

fn main() -> ExitCode {
    common::run(
        "a program on a system call, whatever its function is called here",
        example,
    )
}

fn example() -> common::Result {
    // Present with kprobes, whether or not tracefs is mounted.
    common::needs(
        "this kernel has no kprobes",
        std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists(),
    )?;
    let manager = Manager::builder()
        .probe(Probe::new("on_kprobe").hook(Kprobe::syscall("getpid")))
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
