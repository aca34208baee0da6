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

    // The same program again, on the end of tasks: it adds 1 there as well.
    let exit = Hook::raw_tracepoint("sched_process_exit");
    let again = Probe::new("on_fork_raw").uid("exit").hook(exit.clone());
    manager.add_hook(again)?;
    common::check(
        manager.programs_of("on_fork_raw").len() == 1,
        "a hook more is no program more",
    )?;
    let calls = || get::<u64>(&manager, "calls");
    common::until("a task's start and end", task, || Ok(calls()? >= 2))?;
    let light = calls()?;
    println!("calls: {light}");
    common::check(light < 1000, "each adds 1")?;

    // A program of its own, with another constant. Where one program can be
    // attached only once, this is the way.
    let clone = ProgramClone::new().constant("weight", 1000_u64);
    manager.clone_program(Probe::new("on_fork_raw").uid("heavy").hook(exit), clone)?;
    let programs = manager.programs_of("on_fork_raw");
    for program in &programs {
        println!("program {} (id {})", program.name(), program.id()?);
    }
    common::check(programs.len() == 2, "a clone is a program more")?;
    common::until("what the clone adds", task, || Ok(calls()? >= 1000))?;
    println!("calls with the clone: {}", calls()?);

    manager.detach_hook(ebpf_manager::ProbeId::new("on_fork_raw", "exit"))?;
    manager.detach_hook(ebpf_manager::ProbeId::new("on_fork_raw", "heavy"))?;
    common::check(manager.probes().len() == 1, "both are gone")?;
    manager.stop()?;
    Ok(())
}

/// Starts a task of this process and waits for its end.
fn task() {
    // A panic is the only error, and it does nothing.
    let _ = std::thread::spawn(|| ()).join();
}

fn get<T: Pod>(manager: &Manager, variable: &str) -> common::Result<T> {
    Ok(manager
        .variable(variable)
        .ok_or("no such variable")?
        .get()?)
}
