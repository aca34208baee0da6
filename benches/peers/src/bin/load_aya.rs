//! Loads an object with aya; attaches the named program.

use std::process::ExitCode;

use aya::Ebpf;
use aya::programs::{Program, TracePoint};
use ebpf_manager_peers::{Result, child};

fn load(arguments: &[String]) -> Result<Vec<u64>> {
    let path = arguments.first().ok_or("no object")?;
    let mut object = Ebpf::load_file(path)?;
    for (_, program) in object.programs_mut() {
        match program {
            Program::RawTracePoint(program) => program.load()?,
            Program::TracePoint(program) => program.load()?,
            _ => return Err("a program of another type".into()),
        }
    }
    if let Some(name) = arguments.get(1) {
        let program = object.program_mut(name).ok_or("no such program")?;
        let program: &mut TracePoint = program.try_into()?;
        program.attach("sched", "sched_process_exec")?;
    }
    Ok(Vec::new())
}

fn main() -> ExitCode {
    child::run(load)
}
