//! Shows: programs run on made-up packets, once or many times.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::{Manager, Probe};

fn main() -> ExitCode {
    common::run(
        "programs run on made-up packets, once or many times",
        example,
    )
}

fn example() -> common::Result {
    let manager = Manager::builder()
        .probe(Probe::new("count"))
        .select(ebpf_manager::Selector::best_effort([
            ebpf_manager::Selector::probe("count"),
        ]))
        .build()?;
    manager.init(&common::object())?;
    let probe = manager.probe("count").ok_or("no such probe")?;
    let packet = [0; 64];
    let (returned, data) = probe.test(&packet, packet.len())?;
    println!(
        "returned {returned}, {} bytes left of the packet",
        data.len()
    );
    common::check(returned == 1, "it counts from one")?;
    let (returned, average) = probe.benchmark(&packet, 10_000)?;
    println!("returned {returned}; a run takes {average:?} on average");
    common::check(returned == 10_001, "it did not run so often")?;
    manager.stop()?;
    Ok(())
}
