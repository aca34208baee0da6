//! The smallest agent on the loader and the reader, without a manager: loads
//! an embedded object, attaches its program, reads what has come and exits.
//!
//! `tests/size-gate` weighs it, `benches/load.rs` counts what it costs.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "the only output of a program")]

use std::error::Error;
use std::ops::ControlFlow;
use std::process::ExitCode;

use ebpf_manager::bpf::{Collection, Link, LoadOptions, RingBufferReader};
use ebpf_manager::elf::Object;

static OBJECT: &[u8] = include_bytes!("../tests/programs/bench_a.bpf.o");

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("agent: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let object = Object::parse(OBJECT)?;
    let collection = Collection::load(&object, LoadOptions::default())?;
    let program = collection.program("on_exec").ok_or("no program")?;
    let events = collection.map("executions").ok_or("no ring buffer")?;
    let mut reader = RingBufferReader::new(events)?;
    let link = Link::tracepoint(program, "sched", "sched_process_exec")?;
    reader.consume(usize::MAX, |record| {
        std::hint::black_box(record);
        ControlFlow::Continue(())
    })?;
    link.detach()?;
    Ok(())
}
