//! Shows: selectors decide which probes run and which have to.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::{Manager, Probe, Selector};

fn main() -> ExitCode {
    common::run(
        "selectors decide which probes run and which have to",
        example,
    )
}

fn example() -> common::Result {
    let one_of = Selector::one_of([Selector::probe("on_nothing"), Selector::probe("on_fork")]);
    let manager = Manager::builder()
        .probe(Probe::new("on_fork"))
        .probe(Probe::new("on_fork_raw"))
        // There is no such tracepoint.
        .probe(Probe::new("on_nothing"))
        // Either will do; the third is not even given to the verifier.
        .select(one_of)
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    for (id, outcome) in manager.probes() {
        println!("{id}: {outcome}");
    }
    let running = |id: &str| manager.probe(id).is_some_and(|probe| probe.is_running());
    common::check(running("on_fork"), "on_fork has to run")?;
    common::check(!running("on_nothing"), "on_nothing cannot run")?;
    common::check(!running("on_fork_raw"), "nobody asked for on_fork_raw")?;

    // While it runs: none of them, but nothing has to be there either.
    manager.update_activated(&[Selector::best_effort([Selector::probe("on_nothing")])])?;
    println!("then");
    for (id, outcome) in manager.probes() {
        println!("{id}: {outcome}");
    }
    common::check(!running("on_fork"), "on_fork is not wanted any more")?;

    // What has to be there and is not is an error that says why.
    let refused = manager.update_activated(&[Selector::probe("on_nothing")]);
    let Err(err) = refused else {
        return Err("on_nothing cannot be there".into());
    };
    println!("{err}");
    manager.stop()?;
    Ok(())
}
