//! Shows: events by perf buffer, with the processor they come from.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use std::sync::mpsc;
use std::time::Duration;

use ebpf_manager::bpf::PerfBufferOptions;
use ebpf_manager::{Manager, Probe, Sink, Stream, pod_struct};

pod_struct! {
    /// As the program declares it.
    #[derive(Debug)]
    struct Event {
        tgid: u32,
        kind: u32,
    }
}

fn main() -> ExitCode {
    common::run(
        "events by perf buffer, with the processor they come from",
        example,
    )
}

fn example() -> common::Result {
    let (tell, told) = mpsc::channel();
    let sink = Sink::handler(move |record| {
        // Nobody asks any more once the example ends.
        let _ = tell.send((record.cpu, record.read::<Event>(), record.lost_before));
    });
    let manager = Manager::builder()
        .probe(Probe::new("on_fork_sample"))
        .constant("target_tgid", std::process::id())
        .stream(Stream::perf_buffer(
            "samples",
            PerfBufferOptions::default(),
            sink,
        ))
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    common::fork();
    let (cpu, event, lost) = told.recv_timeout(Duration::from_secs(30))?;
    // Padding follows the data of a perf buffer's records.
    let event = event.ok_or("a record too short")?;
    println!("{event:?} from processor {cpu:?}, {lost} lost before");
    manager.stop()?;
    Ok(())
}
