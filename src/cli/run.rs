//! `run`: a manager that a manifest declares.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_manager::bpf::PerfBufferOptions;
use ebpf_manager::manifest::{Buffer, Manifest};
use ebpf_manager::{Cleanup, Manager, Sink, Stream};
use ebpf_manager_sys::signal::{Signal, SignalFd};
use ebpf_manager_sys::tracefs::Tracefs;
use ebpf_manager_sys::{mntns, poll};

use super::output::{Output, Writer};

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) manifest: PathBuf,
    /// Time to run for; `None` until a signal.
    pub(crate) duration: Option<Duration>,
    /// Remove pins at the end.
    pub(crate) clean: bool,
}

/// Longest time that detaching may take at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs until told to stop. The error is a message for people.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let path = options.manifest.display();
    let manifest = Manifest::read(&options.manifest).map_err(|err| format!("{path}: {err}"))?;
    if Tracefs::find().is_err() {
        // Where that is refused, attaching says what is missing.
        let _ = mntns::mount_privately("tracefs", Path::new("/sys/kernel/tracing"));
    }
    // Before any thread starts: threads inherit the mask.
    let signals = SignalFd::block(&[Signal::INT, Signal::TERM]).map_err(|err| err.to_string())?;
    let output = Arc::new(Output::new().map_err(|err| err.to_string())?);

    let object = manifest.object();
    let buffers = manifest.buffers().to_vec();
    let mut builder = manifest.into_builder();
    for buffer in &buffers {
        builder = builder.stream(stream(buffer, &output));
    }
    let manager = builder.build().map_err(|err| format!("{path}: {err}"))?;
    manager
        .init(&object)
        .and_then(|()| manager.start())
        .map_err(|err| err.to_string())?;
    for (id, outcome) in manager.probes() {
        eprint(&format!("{id}: {outcome}"));
    }
    let writer = Writer::start(&output).map_err(|err| format!("start a thread: {err}"))?;
    let waited = wait(options.duration, &signals, &output);
    output.lift_limit();
    // From here on a signal takes its ordinary effect.
    drop(signals);
    let stats: Vec<String> = buffers.iter().filter_map(|b| count(&manager, b)).collect();
    let cleanup = if options.clean {
        Cleanup::ALL
    } else {
        Cleanup::UNPINNED
    };
    let stopped = manager.stop_within(PATIENCE, cleanup);
    let written = writer.finish();
    for line in stats {
        eprint(&line);
    }
    written.map_err(|err| format!("write: {err}"))?;
    waited?;
    let closing = stopped.map_err(|err| err.to_string())?;
    for id in closing.probes() {
        eprint(&format!("{id}: still closing"));
    }
    Ok(())
}

/// Writes every record as a line: the map, the CPU if there is one, the bytes.
fn stream(buffer: &Buffer, output: &Arc<Output>) -> Stream {
    let (name, output) = (buffer.map.clone(), Arc::clone(output));
    let sink = Sink::handler(move |record| {
        output.append(|out| {
            let cpu = record.cpu.map(|cpu| format!(" cpu {cpu}"));
            let _ = write!(out, "{name}{}", cpu.unwrap_or_default());
            for (i, byte) in record.data.iter().enumerate() {
                let _ = write!(out, "{}{byte:02x}", if i % 8 == 0 { " " } else { "" });
            }
            out.push(b'\n');
        });
    });
    if buffer.is_perf {
        Stream::perf_buffer(&buffer.map, PerfBufferOptions::default(), sink)
    } else {
        Stream::ring_buffer(&buffer.map, sink)
    }
}

fn count(manager: &Manager, buffer: &Buffer) -> Option<String> {
    let stats = manager.stream_stats(&buffer.map)?;
    Some(format!(
        "{buffer}: {} records, {} bytes, {} lost",
        stats.records, stats.bytes, stats.lost
    ))
}

fn eprint(line: &str) {
    // There is nobody left to tell if this fails.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Waits for the end: a signal, the time that was asked for, or nobody to
/// write for.
fn wait(duration: Option<Duration>, signals: &SignalFd, output: &Output) -> Result<(), String> {
    let fail = |err: ebpf_manager_sys::SysError| err.to_string();
    let epoll = poll::Epoll::new().map_err(fail)?;
    let readable = poll::Interest::READABLE;
    epoll.add(signals.as_fd(), 0, readable).map_err(fail)?;
    epoll
        .add(output.failed().as_fd(), 1, readable)
        .map_err(fail)?;
    let deadline = duration.and_then(|d| Instant::now().checked_add(d));
    loop {
        let pause = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if pause == Some(Duration::ZERO) {
            return Ok(());
        }
        let mut events = [poll::Event::EMPTY];
        if !epoll.wait(&mut events, pause).map_err(fail)?.is_empty() {
            // A signal left pending would end the process when unblocked.
            while signals.read().map_err(fail)?.is_some() {}
            return Ok(());
        }
    }
}
