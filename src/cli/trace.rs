//! `trace`: processes as they execute files and exit.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ebpf_manager::bpf::{Cure, Errno, KernelVersion, LinkError};
use ebpf_manager::{Manager, ManagerError, ObjectSource, Probe, ProgramRef, VariableRef};
use ebpf_manager_sys::proc::{self, Capabilities};
use ebpf_manager_sys::{clock, tty};

use super::demo::Demo;
use super::event::{Event, What};
use super::format;
use super::names::{self, Names};
use super::output::{Output, Writer};
use super::session::{Session, kernel_btf, show_log};
use super::summary::Summary;

/// The programs, compiled from `tests/programs/trace.bpf.c`.
static OBJECT: &[u8] = include_bytes!("../../tests/programs/trace.bpf.o");

/// The programs' C functions. Their section names say where they attach.
const PROGRAMS: [&str; 2] = ["on_exec", "on_exit"];

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) json: bool,
    pub(crate) demo: bool,
    /// Time to trace for; `None` until a signal, or the end of the
    /// demonstration.
    pub(crate) duration: Option<Duration>,
    /// Least life of a process for its exit to be shown.
    pub(crate) min_duration: Duration,
    /// The kernel's types, for a kernel that does not have them itself.
    pub(crate) btf: Option<PathBuf>,
    /// Show the verifier's whole log of a program that it refuses.
    pub(crate) verbose: bool,
}

/// What came out of the ring.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) exec: AtomicU64,
    pub(crate) exit: AtomicU64,
    /// Records that made no sense.
    pub(crate) malformed: AtomicU64,
}

/// Traces until told to stop. The error is a message for people.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let session = Session::begin()?;
    let output = Arc::clone(&session.output);
    let counts = Arc::new(Counts::default());
    if !options.json {
        output.append(format::header);
    }

    let mut recorder = Recorder {
        output: Arc::clone(&output),
        counts: Arc::clone(&counts),
        names: Names::default(),
        style: if options.json {
            Style::Json(WallClock::new())
        } else {
            Style::Text {
                since_ns: clock::monotonic_ns(),
                width: None,
            }
        },
    };
    let min_duration_ns = u64::try_from(options.min_duration.as_nanos()).unwrap_or(u64::MAX);
    let mut builder = Manager::builder()
        .constant("min_duration_ns", min_duration_ns)
        .ring_buffer("events", move |record| recorder.record(record));
    for program in PROGRAMS {
        builder = builder.probe(Probe::new(program));
    }
    if let Some(path) = &options.btf {
        builder = builder.kernel_btf(kernel_btf(path)?);
    }
    let begun = Instant::now();
    let failed = |err: ManagerError| {
        if options.verbose {
            show_log(&err);
        }
        explain(&err)
    };
    let manager = builder.build().map_err(failed)?;
    manager
        .init(&ObjectSource::bytes(OBJECT))
        .and_then(|()| manager.start())
        .map_err(failed)?;
    let mut summary = Summary::of(&manager, begun.elapsed());
    let losses = Losses::of(&manager);

    let writer = Writer::start(&output).map_err(|err| format!("start a thread: {err}"))?;
    let mut demo = options.demo.then(Demo::new);
    let waited = session.wait(options.duration, &mut || {
        match demo.as_mut().map(Demo::advance) {
            Some(None) if options.duration.is_none() => return ControlFlow::Break(()),
            Some(None) => demo = None,
            Some(pause) => return ControlFlow::Continue(pause),
            None => {}
        }
        ControlFlow::Continue(None)
    });
    let stopped = manager.stop();

    summary.count(&counts, losses.and_then(|losses| losses.count()));
    if options.json {
        output.append(|out| summary.json(out));
    }
    let written = writer.finish();
    if !options.json {
        let mut text = Vec::new();
        summary.text(&mut text);
        // Whoever closed it does not want to know.
        let _ = io::stderr().lock().write_all(&text);
    }
    written.map_err(|err| format!("write: {err}"))?;
    waited?;
    stopped.map_err(|err| err.to_string())
}

/// Makes lines of records, on the manager's reader thread.
#[derive(Debug)]
struct Recorder {
    output: Arc<Output>,
    counts: Arc<Counts>,
    names: Names,
    style: Style,
}

#[derive(Debug)]
enum Style {
    Text {
        /// Where TIME begins.
        since_ns: u64,
        /// The terminal's columns when the batch began.
        width: Option<usize>,
    },
    Json(WallClock),
}

impl Recorder {
    fn record(&mut self, record: &[u8]) {
        let add = |count: &AtomicU64| count.fetch_add(1, Ordering::Relaxed);
        let Some(event) = Event::decode(record) else {
            add(&self.counts.malformed);
            return;
        };
        let process = (event.pid, event.start_ns);
        let remembered;
        let file = match event.what {
            What::Exec(file) => {
                add(&self.counts.exec);
                match file {
                    Some(file) => self.names.insert(process, file, names::is_alive),
                    None => drop(self.names.remove(process)),
                }
                file
            }
            What::Exit(_) => {
                add(&self.counts.exit);
                remembered = self.names.remove(process);
                remembered.as_deref()
            }
        };
        self.output.append(|out| {
            let first = out.is_empty();
            match &mut self.style {
                Style::Text { since_ns, width } => {
                    if first {
                        *width = tty::columns(io::stdout().as_fd()).map(usize::from);
                    }
                    format::text(out, &event, file, *since_ns, *width);
                }
                Style::Json(clock) => {
                    if first {
                        clock.adjust();
                    }
                    format::json(out, &event, file, clock.unix_ns(event.time_ns));
                }
            }
        });
    }
}

/// Turns times of the monotonic clock into times of day.
#[derive(Debug)]
struct WallClock {
    /// The monotonic clock's zero in nanoseconds since 1970.
    zero_ns: u64,
}

impl WallClock {
    /// Difference that must be a step of the clock, or a sleep of the
    /// machine, not the time between two readings. Both clocks are slewed
    /// alike.
    const STEP_NS: u64 = 1_000_000;

    fn new() -> WallClock {
        WallClock {
            zero_ns: WallClock::measure().0,
        }
    }

    /// Where the zero is, and how far that may be off.
    fn measure() -> (u64, u64) {
        let before = clock::monotonic_ns();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let after = clock::monotonic_ns();
        let now = now.map_or(0, |now| now.as_nanos() as u64);
        (now.saturating_sub(before), after.saturating_sub(before))
    }

    /// Follows the clock if it was set.
    fn adjust(&mut self) {
        let (zero_ns, error_ns) = WallClock::measure();
        if error_ns < WallClock::STEP_NS && zero_ns.abs_diff(self.zero_ns) > WallClock::STEP_NS {
            self.zero_ns = zero_ns;
        }
    }

    fn unix_ns(&self, monotonic_ns: u64) -> u64 {
        self.zero_ns.saturating_add(monotonic_ns)
    }
}

/// What counts lost events. It outlives the manager's own use of it, so that
/// events lost until the very end count.
struct Losses {
    events: VariableRef,
    programs: [ProgramRef; 2],
}

impl Losses {
    fn of(manager: &Manager) -> Option<Losses> {
        let [exec, exit] = PROGRAMS;
        Some(Losses {
            events: manager.variable("lost_events")?,
            programs: [manager.program(exec)?, manager.program(exit)?],
        })
    }

    /// Events lost so far: no room in the ring, or a program left out because
    /// its CPU was running another.
    fn count(&self) -> Option<u64> {
        let mut lost = self.events.get::<u64>().ok()?;
        for program in &self.programs {
            lost += program.missed_runs().ok()?;
        }
        Some(lost)
    }
}

/// An error with what can be done about it, as far as that shows only here.
fn explain(err: &ManagerError) -> String {
    if err.is(Errno::EPERM) || err.is(Errno::EACCES) {
        let wanted = Capabilities::BPF | Capabilities::PERFMON;
        let have = proc::effective_capabilities().unwrap_or(Capabilities::all());
        if !have.contains(Capabilities::SYS_ADMIN) && !have.contains(wanted) {
            return String::from(
                "tracing needs root (sudo ebpf-manager trace), or the capabilities \
                 CAP_BPF and CAP_PERFMON and a readable tracefs",
            );
        }
    }
    if let ManagerError::Attach { source, .. } = err
        && let LinkError::NoTarget { source, cure, .. } = &**source
    {
        match cure {
            Some(Cure::MountTracefs) => {
                return format!(
                    "tracing needs tracefs, which is not mounted; {}",
                    Cure::MountTracefs
                );
            }
            _ if source.is(Errno::EACCES) => {
                return format!(
                    "tracing needs a readable tracefs: run as root or with \
                     CAP_DAC_READ_SEARCH ({source})"
                );
            }
            _ => {}
        }
    }
    if err.cure() == Some(&Cure::NoKernelBtf) {
        return String::from(
            "tracing needs the kernel's BTF, which this kernel does not have \
             (CONFIG_DEBUG_INFO_BTF): get a BTF file for it and give it with --btf",
        );
    }
    let oldest = KernelVersion::new(5, 8, 0);
    match KernelVersion::current() {
        Ok(running) if running < oldest => {
            format!("tracing needs Linux 5.8 (BPF ring buffer), this is {running}: {err}")
        }
        _ => err.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_manager::elf::Object;

    #[test]
    fn the_object_has_what_is_asked_of_it() {
        let object = Object::parse(OBJECT).unwrap();
        for name in PROGRAMS {
            let section = &object.program(name).unwrap().section;
            assert!(section.starts_with("tracepoint/sched/"), "{section}");
        }
        assert!(object.map("events").is_some());
        assert_eq!(object.variable("min_duration_ns").unwrap().size, 8);
        let lost = object.variable("lost_events").unwrap();
        assert_eq!(lost.size, 8);
    }

    #[test]
    fn losses_are_read_from_the_kernel() {
        let manager = Manager::builder().build().unwrap();
        if let Err(err) = manager.init(&ObjectSource::bytes(OBJECT)) {
            let line = format!("skipped: losses_are_read_from_the_kernel: {err}\n");
            let _ = io::stderr().write_all(line.as_bytes());
            return;
        }
        let losses = Losses::of(&manager).unwrap();
        assert_eq!(losses.count(), Some(0));
        manager
            .variable("lost_events")
            .unwrap()
            .set(&7_u64)
            .unwrap();
        manager.stop().unwrap();
        assert_eq!(losses.count(), Some(7));
    }

    #[test]
    fn clocks_agree() {
        let clock = WallClock::new();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let then = clock.unix_ns(clock::monotonic_ns());
        assert!(then.abs_diff(now.as_nanos() as u64) < 1_000_000_000);
    }

    #[test]
    fn a_clock_that_was_set_is_followed() {
        let mut clock = WallClock::new();
        let right = clock.zero_ns;
        clock.zero_ns += 500_000;
        clock.adjust();
        assert_eq!(clock.zero_ns, right + 500_000, "no step");
        clock.zero_ns += 3_600_000_000_000;
        clock.adjust();
        assert!(clock.zero_ns.abs_diff(right) < 1_000_000_000);
    }
}
