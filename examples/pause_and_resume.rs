//! Shows: a probe that is kept from running for a while.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::{Manager, Probe};

fn main() -> ExitCode {
    common::run("a probe that is kept from running for a while", example)
}

fn example() -> common::Result {
    let manager = Manager::builder()
        .probe(Probe::new("on_fork"))
        .constant("target_tgid", std::process::id())
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    let count = || -> common::Result<u64> {
        Ok(manager
            .variable("executions")
            .ok_or("no such variable")?
            .get()?)
    };
    common::until("a fork", common::fork, || Ok(count()? > 0))?;

    manager.pause()?;
    let before = count()?;
    (0..10).for_each(|_| common::fork());
    println!("{} while paused", count()? - before);
    common::check(count()? == before, "it ran while paused")?;

    manager.resume()?;
    common::until("a fork", common::fork, || Ok(count()? > before))?;
    println!("{} after it was resumed", count()? - before);
    manager.stop()?;
    Ok(())
}
