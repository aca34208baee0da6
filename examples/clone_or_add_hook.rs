//! Shows: one program on a second hook, and a changed copy of it.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::bpf::Pod;
use ebpf_manager::{Hook, Manager, Probe, ProgramClone};

fn main() -> ExitCode {
    common::run(
        "one program on a second hook, and a changed copy of it",
        example,
    )
}

fn example() -> common::Result {
    let manager = Manager::builder()
        .probe(Probe::new("on_fork_raw"))
        .constant("target_tgid", std::process::id())
        // A clone is made of the specification.
        .keep_specs()
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;

    // The same program again: its variables are the same, so each fork counts
    // for the first hook, and each execution for the second.
    let exec = Hook::raw_tracepoint("sched_process_exit");
    manager.add_hook(Probe::new("on_fork_raw").uid("exit").hook(exec.clone()))?;

    // A program of its own, with another constant. Where one program can be
    // attached only once, this is the way.
    let clone = ProgramClone::new().constant("weight", 1000_u64);
    manager.clone_program(Probe::new("on_fork_raw").uid("heavy").hook(exec), clone)?;
    let programs = manager.programs_of("on_fork_raw");
    for program in &programs {
        println!("program {} (id {})", program.name(), program.id()?);
    }
    common::check(programs.len() == 2, "a hook more is no program more")?;
    common::until("a fork", common::fork, || {
        Ok(get::<u64>(&manager, "calls")? > 0)
    })?;

    manager.detach_hook(ebpf_manager::ProbeId::new("on_fork_raw", "exit"))?;
    manager.detach_hook(ebpf_manager::ProbeId::new("on_fork_raw", "heavy"))?;
    common::check(manager.probes().len() == 1, "both are gone")?;
    manager.stop()?;
    Ok(())
}

fn get<T: Pod>(manager: &Manager, variable: &str) -> common::Result<T> {
    Ok(manager
        .variable(variable)
        .ok_or("no such variable")?
        .get()?)
}
