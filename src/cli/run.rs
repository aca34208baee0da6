//! `run`: a manager that a manifest declares.

use std::fs;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ebpf_manager::bpf::PerfBufferOptions;
use ebpf_manager::manifest::{Buffer, Manifest};
use ebpf_manager::{Cleanup, Manager, ManagerError, Outcome, ProbeError, Sink, Stream};

use super::output::{Output, Writer};
use super::session::{Session, kernel_btf, show_log, write_log};

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) manifest: PathBuf,
    /// Time to run for; `None` until a signal.
    pub(crate) duration: Option<Duration>,
    /// Remove pins at the end.
    pub(crate) clean: bool,
    /// The kernel's types, for a kernel that does not have them itself.
    pub(crate) btf: Option<PathBuf>,
    /// Show the verifier's whole log of a program that it refuses.
    pub(crate) verbose: bool,
}

/// Longest time that detaching may take at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs until told to stop. The error is a message for people.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let path = options.manifest.display();
    let of = |err: &dyn std::fmt::Display| format!("{path}: {err}");
    let failed = |err: ManagerError| {
        if options.verbose {
            show_log(&err);
        }
        of(&err)
    };
    let manifest = Manifest::read(&options.manifest).map_err(|err| of(&err))?;
    let session = Session::begin()?;
    let output = Arc::clone(&session.output);

    let object = manifest.object();
    let buffers = manifest.buffers().to_vec();
    let pins = manifest.pins();
    let mut builder = manifest.into_builder();
    for buffer in &buffers {
        builder = builder.stream(stream(buffer, &output));
    }
    if let Some(path) = &options.btf {
        builder = builder.kernel_btf(kernel_btf(path)?);
    }
    let manager = builder.build().map_err(failed)?;
    let started = manager.init(&object).and_then(|()| manager.start());
    started.map_err(failed)?;
    for (id, outcome) in manager.probes() {
        eprint(&format!("{id}: {outcome}"));
        if let (true, Outcome::Failed(ProbeError::Load(err))) = (options.verbose, &outcome) {
            err.verifier_log().into_iter().for_each(write_log);
        }
    }
    let writer = Writer::start(&output).map_err(|err| format!("start a thread: {err}"))?;
    let waited = session.wait(options.duration, &mut || ControlFlow::Continue(None));
    let stats: Vec<String> = buffers.iter().filter_map(|b| count(&manager, b)).collect();
    let (cleanup, pins) = if options.clean {
        (Cleanup::ALL, pins.of(&manager.map_specs()))
    } else {
        (Cleanup::UNPINNED, Vec::new())
    };
    let stopped = manager.stop_within(PATIENCE, cleanup);
    let written = writer.finish();
    for line in stats {
        eprint(&line);
    }
    written.map_err(|err| format!("write: {err}"))?;
    waited?;
    let closing = stopped.map_err(|err| of(&err))?;
    for id in closing.probes() {
        eprint(&format!("{id}: still closing"));
    }
    // Those that an earlier run left.
    for pin in pins {
        match fs::remove_file(&pin) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(of(&format_args!("remove {}: {err}", pin.display())));
            }
            _ => {}
        }
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
