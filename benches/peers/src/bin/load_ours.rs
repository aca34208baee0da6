//! Loads an object with this project's loader; attaches the named program.

use std::process::ExitCode;

use ebpf_manager::bpf::{Collection, Link, LoadOptions, open_object};
use ebpf_manager_peers::{Result, child};

fn load(arguments: &[String]) -> Result<Vec<u64>> {
    let object = open_object(arguments.first().ok_or("no object")?)?;
    let mut options = LoadOptions::default();
    if let Ok(threads) = std::env::var("PEERS_THREADS") {
        options.threads = threads.parse()?;
    }
    let collection = Collection::load(&object, options)?;
    drop(object);
    if let Some(name) = arguments.get(1) {
        let program = collection.program(name).ok_or("no such program")?;
        Link::tracepoint(program, "sched", "sched_process_exec")?.detach()?;
    }
    Ok(Vec::new())
}

fn main() -> ExitCode {
    child::run(load)
}
