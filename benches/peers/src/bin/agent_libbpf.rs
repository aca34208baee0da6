//! The program of `benches/agents/src/bin/agent.rs` with libbpf-rs, to be
//! weighed.

use std::process::ExitCode;

use libbpf_rs::{MapCore, ObjectBuilder, RingBufferBuilder, TracepointCategory};

static OBJECT: &[u8] = include_bytes!("../../../../tests/programs/bench_a.bpf.o");

fn run() -> libbpf_rs::Result<()> {
    // ENOENT: the object lacks something.
    let missing = || libbpf_rs::Error::from_raw_os_error(2);
    let object = ObjectBuilder::default().open_memory(OBJECT)?.load()?;
    let program = object.progs_mut().find(|p| p.name() == "on_exec");
    let events = object.maps().find(|m| m.name() == "executions");
    let events = events.ok_or_else(missing)?;
    let mut readers = RingBufferBuilder::new();
    readers.add(&events, |record| {
        std::hint::black_box(record);
        0
    })?;
    let reader = readers.build()?;
    let category = TracepointCategory::Custom("sched".to_owned());
    let link = program
        .ok_or_else(missing)?
        .attach_tracepoint(category, "sched_process_exec")?;
    reader.consume()?;
    drop(link);
    Ok(())
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
