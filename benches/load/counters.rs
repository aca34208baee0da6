//! Exact counts of a stretch of code or of a whole process: system calls from
//! their tracepoint, user instructions where the machine counts them.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Output};

use ebpf_manager::bpf::SysError;
use ebpf_manager_sys::abi::perf::{AttrFlags, OpenFlags, SampleType, event_type, hardware};
use ebpf_manager_sys::bpf::{ObjectKind, next_id};
use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};
use ebpf_manager_sys::perfring::{PerfRecord, PerfRing};
use ebpf_manager_sys::tracefs::Tracefs;

/// A system call that was made: its number and first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) argument: u64,
}

fn syscalls_event() -> Result<PerfEventAttr<'static>, SysError> {
    let id = Tracefs::find()?.event_id("raw_syscalls", "sys_enter")?;
    Ok(PerfEventAttr::tracepoint(id))
}

fn instructions_event() -> PerfEventAttr<'static> {
    PerfEventAttr::new(event_type::HARDWARE, hardware::INSTRUCTIONS)
        .flags(AttrFlags::EXCLUDE_KERNEL | AttrFlags::EXCLUDE_HV)
}

fn open(attr: &PerfEventAttr<'_>) -> Result<PerfEvent, SysError> {
    PerfEvent::open(attr, Scope::CallingThread, None, None, OpenFlags::empty())
}

/// Counts what this thread does between two points.
pub(crate) struct Counters {
    calls: Option<Recorder>,
    instructions: Option<PerfEvent>,
    started: u64,
}

/// Records the thread's system calls in a ring, which costs none to read.
struct Recorder {
    ring: PerfRing,
    number_at: usize,
    argument_at: usize,
    /// The number of bpf(2) on this machine.
    bpf: u64,
}

impl Counters {
    /// What of it this machine and this process can have.
    pub(crate) fn new() -> Counters {
        Counters {
            calls: Recorder::new(),
            instructions: open(&instructions_event()).ok(),
            started: 0,
        }
    }

    /// Whether system calls are counted.
    pub(crate) fn counts_calls(&self) -> bool {
        self.calls.is_some()
    }

    /// Starts a stretch.
    pub(crate) fn begin(&mut self) {
        self.started = self.instruction_count().unwrap_or(0);
        self.take_calls();
    }

    /// The system calls since [`Counters::begin`]; `None` if they cannot be
    /// counted here.
    pub(crate) fn take_calls(&mut self) -> Option<Vec<Call>> {
        self.calls.as_mut().map(Recorder::take)
    }

    /// User instructions since [`Counters::begin`]; `None` if they cannot be
    /// counted here. Itself a system call: take those first.
    pub(crate) fn instructions(&self) -> Option<u64> {
        Some(self.instruction_count()?.saturating_sub(self.started))
    }

    /// The command of a call of bpf(2).
    pub(crate) fn bpf_command(&self, call: Call) -> Option<u64> {
        let bpf = self.calls.as_ref()?.bpf;
        (call.number == bpf).then_some(call.argument)
    }

    fn instruction_count(&self) -> Option<u64> {
        Some(self.instructions.as_ref()?.count().ok()?.value)
    }
}

impl Recorder {
    fn new() -> Option<Recorder> {
        let format = Tracefs::find().ok()?;
        let format = format.event_format("raw_syscalls", "sys_enter").ok()?;
        let attr = syscalls_event()
            .ok()?
            .sample_type(SampleType::RAW)
            .sample_period(1);
        let mut recorder = Recorder {
            ring: PerfRing::open(&attr, Scope::CallingThread, None, 64).ok()?,
            number_at: format.field("id")?.offset as usize,
            argument_at: format.field("args")?.offset as usize,
            bpf: 0,
        };
        recorder.take();
        // The number differs between architectures: make such a call and see.
        let _ = next_id(ObjectKind::Program, 0);
        recorder.bpf = recorder.take().last()?.number;
        Some(recorder)
    }

    fn take(&mut self) -> Vec<Call> {
        let (number_at, argument_at) = (self.number_at, self.argument_at);
        let mut calls = Vec::new();
        let word = |data: &[u8], at: usize| {
            let bytes = data.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
        };
        // A damaged ring shows as missing calls, which the table shows.
        let _ = self.ring.drain(usize::MAX, |record| {
            if let PerfRecord::Sample { data, .. } = record {
                calls.push(Call {
                    number: word(data, number_at),
                    argument: word(data, argument_at),
                });
            }
            ControlFlow::Continue(())
        });
        calls
    }
}

/// What a process did from its start to its end.
#[derive(Debug)]
pub(crate) struct ProcessCounts {
    pub(crate) calls: Option<u64>,
    pub(crate) instructions: Option<u64>,
    pub(crate) output: Output,
}

/// Runs a command and counts it. The counters begin with its program and take
/// in its threads.
pub(crate) fn run(command: &mut Command) -> std::io::Result<ProcessCounts> {
    let inherited = |attr: PerfEventAttr<'static>| {
        let flags = AttrFlags::DISABLED | AttrFlags::INHERIT | AttrFlags::ENABLE_ON_EXEC;
        open(&attr.flags(flags)).ok()
    };
    let calls = syscalls_event().ok().and_then(inherited);
    let instructions = inherited(instructions_event());
    let output = command.output()?;
    let value = |event: Option<PerfEvent>| Some(event?.count().ok()?.value);
    Ok(ProcessCounts {
        calls: value(calls),
        instructions: value(instructions),
        output,
    })
}

/// User instructions of a command as callgrind counts them, which takes half a
/// second; `None` if valgrind is not installed.
pub(crate) fn callgrind(program: &Path, env: &[(&str, &OsStr)]) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .env_remove("LD_LIBRARY_PATH")
        .envs(env.iter().copied())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = log.lines().find(|line| line.contains("Collected"))?;
    line.rsplit(' ').next()?.parse().ok()
}
