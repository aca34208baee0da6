//! The program of `benches/agents/src/bin/agent.rs` with aya, to be weighed.

use std::process::ExitCode;

use aya::maps::{MapError, RingBuf};
use aya::programs::{ProgramError, TracePoint};
use aya::{Ebpf, EbpfError};

static OBJECT: &[u8] = include_bytes!("../../../../tests/programs/bench_a.bpf.o");

enum AgentError {
    Load(EbpfError),
    Program(ProgramError),
    Map(MapError),
    /// The object lacks something.
    Missing(&'static str),
}

impl std::fmt::Display for AgentError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AgentError::Load(err) => err.fmt(f),
            AgentError::Program(err) => err.fmt(f),
            AgentError::Map(err) => err.fmt(f),
            AgentError::Missing(what) => write!(f, "the object has no {what}"),
        }
    }
}

fn run() -> Result<(), AgentError> {
    let mut object = Ebpf::load(OBJECT).map_err(AgentError::Load)?;
    let program = object
        .program_mut("on_exec")
        .ok_or(AgentError::Missing("program"))?;
    let program: &mut TracePoint = program.try_into().map_err(AgentError::Program)?;
    program.load().map_err(AgentError::Program)?;
    let link = program
        .attach("sched", "sched_process_exec")
        .map_err(AgentError::Program)?;
    let events = object
        .take_map("executions")
        .ok_or(AgentError::Missing("ring buffer"))?;
    let mut events = RingBuf::try_from(events).map_err(AgentError::Map)?;
    while let Some(record) = events.next() {
        std::hint::black_box(&*record);
    }
    let program = object
        .program_mut("on_exec")
        .ok_or(AgentError::Missing("program"))?;
    let program: &mut TracePoint = program.try_into().map_err(AgentError::Program)?;
    program.detach(link).map_err(AgentError::Program)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("agent: {err}");
            ExitCode::FAILURE
        }
    }
}
