//! Shows: a program at the entry of a kernel function, by its type.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::bpf::{AttachTo, syscall_function};
use ebpf_manager::{Manager, Probe};

fn main() -> ExitCode {
    common::run(
        "a program at the entry of a kernel function, by its type",
        example,
    )
}

fn example() -> common::Result {
    common::needs("this kernel is locked down", !common::is_locked_down())?;
    // The kernel's function of a system call has a name of its architecture.
    let function = syscall_function("getpid")?;
    let manager = Manager::builder()
        .attach_to(move || Ok(AttachTo::kernel("on_fentry", &function)))
        .probe(Probe::new("on_fentry"))
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
