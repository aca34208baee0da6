//! The same agent as `agent.rs` on the whole manager: a reader thread, states,
//! an ordered stop.
//!
//! `tests/size-gate` weighs it.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "the only output of a program")]

use std::process::ExitCode;

use ebpf_manager::{Hook, Manager, ManagerError, ObjectSource, Probe};

static OBJECT: &[u8] = include_bytes!("../../../../tests/programs/bench_a.bpf.o");

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("agent: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), ManagerError> {
    let manager = Manager::builder()
        .probe(Probe::with_hook(
            "on_exec",
            Hook::tracepoint("sched", "sched_process_exec"),
        ))
        .ring_buffer("executions", |record| {
            std::hint::black_box(record);
        })
        .build()?;
    manager.init(&ObjectSource::bytes(OBJECT))?;
    manager.start()?;
    manager.stop()
}
