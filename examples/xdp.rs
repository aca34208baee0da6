//! Shows: a program on the packets of an interface, before the network stack.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::{Hook, Manager, Probe};

fn main() -> ExitCode {
    common::run(
        "a program on the packets of an interface, before the network stack",
        example,
    )
}

fn example() -> common::Result {
    let manager = Manager::builder()
        .probe(Probe::new("on_xdp").hook(Hook::xdp("lo")))
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
