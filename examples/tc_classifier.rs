//! Shows: a program on the packets of an interface, at traffic control.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::bpf::{ClsactOptions, Direction, Order, QdiscCleanup, TcAttach};
use ebpf_manager::{Hook, Manager, Probe};

fn main() -> ExitCode {
    common::run(
        "a program on the packets of an interface, at traffic control",
        example,
    )
}

fn example() -> common::Result {
    // Before Linux 6.6 the program goes into a filter, for which the interface
    // may have to get a qdisc first: that goes with the filter, too.
    let filter = ClsactOptions {
        qdisc: QdiscCleanup::RemoveIfUnused,
        ..ClsactOptions::default()
    };
    let attach = TcAttach::Either(Order::default(), filter);
    let manager = Manager::builder()
        .probe(Probe::new("on_tc").hook(Hook::tc_with("lo", Direction::Egress, attach)))
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
