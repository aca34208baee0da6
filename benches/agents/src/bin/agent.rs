//! The smallest agent on the loader and the reader, without a manager: loads
//! an embedded object, attaches its program, reads what has come and exits.
//!
//! `tests/size-gate` weighs it.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "the only output of a program")]

use std::fmt;
use std::ops::ControlFlow;
use std::process::ExitCode;

use ebpf_manager::bpf::{
    Collection, Link, LinkError, LoadError, LoadOptions, ReaderError, RingBufferReader,
};
use ebpf_manager::elf::{Object, ObjectError};

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

/// An enum of one's own costs less code than `Box<dyn Error>`, which brings
/// the `Debug` of everything.
enum AgentError {
    Object(ObjectError),
    Load(LoadError),
    Link(LinkError),
    Reader(ReaderError),
    /// The object lacks something.
    Missing(&'static str),
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AgentError::Object(err) => err.fmt(f),
            AgentError::Load(err) => err.fmt(f),
            AgentError::Link(err) => err.fmt(f),
            AgentError::Reader(err) => err.fmt(f),
            AgentError::Missing(what) => write!(f, "the object has no {what}"),
        }
    }
}

fn run() -> Result<(), AgentError> {
    let object = Object::parse(OBJECT).map_err(AgentError::Object)?;
    let collection = Collection::load(&object, LoadOptions::default()).map_err(AgentError::Load)?;
    let program = collection
        .program("on_exec")
        .ok_or(AgentError::Missing("program"))?;
    let events = collection
        .map("executions")
        .ok_or(AgentError::Missing("ring buffer"))?;
    let mut reader = RingBufferReader::new(events).map_err(AgentError::Reader)?;
    let link =
        Link::tracepoint(program, "sched", "sched_process_exec").map_err(AgentError::Link)?;
    reader
        .consume(usize::MAX, |record| {
            std::hint::black_box(record);
            ControlFlow::Continue(())
        })
        .map_err(AgentError::Reader)?;
    link.detach().map_err(AgentError::Link)
}
