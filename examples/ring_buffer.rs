//! Shows: events by ring buffer, in a handler and in a channel, as a structure.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ebpf_manager::bpf::pod;
use ebpf_manager::{Manager, Probe, Sink, Stream, WhenFull, pod_struct};

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
        "events by ring buffer, in a handler and in a channel, as a structure",
        example,
    )
}

fn example() -> common::Result {
    // On the reader's thread, in place.
    let seen = Arc::new(AtomicU32::new(0));
    let handler = {
        let seen = Arc::clone(&seen);
        move |record: &[u8]| {
            let event = pod::from_prefix::<Event>(record);
            let ours = event.is_some_and(|event| event.tgid == std::process::id());
            seen.fetch_add(u32::from(ours), Ordering::Relaxed);
        }
    };
    let manager = Manager::builder()
        .probe(Probe::new("on_fork"))
        .constant("target_tgid", std::process::id())
        .ring_buffer("events", handler)
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    common::until("a fork", common::fork, || {
        Ok(seen.load(Ordering::Relaxed) > 0)
    })?;
    manager.stop()?;
    println!("{} events in a handler", seen.load(Ordering::Relaxed));

    // Wherever the receiver is, a copy each. What does not fit is counted.
    let (sink, records) = Sink::channel(64, WhenFull::Drop);
    let manager = Manager::builder()
        .probe(Probe::new("on_fork"))
        .constant("target_tgid", std::process::id())
        .stream(Stream::ring_buffer("events", sink))
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    common::fork();
    let record = records.recv_timeout(Duration::from_secs(30))?;
    let event = record.read::<Event>().ok_or("a record too short")?;
    println!("{event:?} in a channel");
    println!(
        "{:?}",
        manager.stream_stats("events").ok_or("no such stream")?
    );
    manager.stop()?;
    Ok(())
}
