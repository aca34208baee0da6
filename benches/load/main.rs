//! What loading costs, phase by phase, beside the floor: the same system calls
//! from prepared buffers. Both take turns in one process, so that their ratio
//! holds on a busy machine, where times by themselves do not.
//!
//! ```text
//! cargo bench --bench load                # the one-program object
//! cargo bench --bench load -- FILE.o      # any other: loaded, not attached
//! ```
//!
//! Needs root. System calls are counted by their tracepoint, user instructions
//! by the processor, or for whole processes by valgrind where there is no such
//! counter.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "its output is what it is for")]
#![expect(
    clippy::cast_precision_loss,
    reason = "durations of a few seconds, for people"
)]

mod counters;
mod floor;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use std::{env, fs};

use ebpf_manager::bpf::{Collection, Link, LoadOptions};
use ebpf_manager::elf::Object;
use ebpf_manager::{Manager, ObjectSource, Probe};
use ebpf_manager_sys::abi::bpf::Command as BpfCommand;
use ebpf_manager_sys::proc::Uname;

use counters::{Call, Counters};
use floor::{Live, Prepared};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

static OBJECT: &[u8] = include_bytes!("../../tests/programs/bench_a.bpf.o");

/// The tracepoint the object's program is for.
pub(crate) const EVENT: (&str, &str) = ("sched", "sched_process_exec");

/// Says what this process is to be: one whose whole life is measured.
const MODE: &str = "EBPF_MANAGER_BENCH_MODE";
/// The file it reads: the floor's buffers, or the object to load.
const INPUT: &str = "EBPF_MANAGER_BENCH_INPUT";

/// How long to repeat.
const BUDGET: Duration = Duration::from_secs(8);

const MIN_RUNS: usize = 5;

/// Processes of each mode.
const PROCESS_RUNS: usize = 5;

const PHASES: [&str; 6] = ["parse", "relocate", "maps", "verify", "attach", "close"];
const MAPS: usize = 2;
const VERIFY: usize = 3;
const ATTACH: usize = 4;
const CLOSE: usize = 5;

/// Nanoseconds of each phase.
type Times = [u64; PHASES.len()];

fn main() -> ExitCode {
    let result = match env::var(MODE) {
        Ok(mode) => live_once(&mode),
        Err(_) => bench(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            println!("load: {err}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let file = env::args_os()
        .skip(1)
        .map(PathBuf::from)
        .find(|a| !a.as_os_str().as_encoded_bytes().starts_with(b"--"));
    describe_machine();
    match file {
        Some(path) => bench_file(&path),
        None => bench_one_program(),
    }
}

fn describe_machine() {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("processor without a name", |(_, model)| model);
    println!("machine  {cpus} x {model}");
    if let Ok(uname) = Uname::get() {
        println!("kernel   {} {}", uname.release(), uname.machine());
    }
    let profile = if cfg!(debug_assertions) {
        "debug: times mean nothing"
    } else {
        "bench (release)"
    };
    println!("profile  {profile}");
}

// ------------------------------------------------------------- one program

/// One life of the object by the loader, from bytes to closed.
fn loader(times: &mut Times) -> Result<()> {
    let mut clock = Clock::start();
    let object = Object::parse(OBJECT)?;
    times[0] = clock.lap();
    let collection = Collection::load(&object, LoadOptions::default())?;
    clock.lap();
    let phases = collection.times();
    times[1] = phases.relocate.as_nanos() as u64;
    times[MAPS] = phases.maps.as_nanos() as u64;
    times[VERIFY] = phases.verify.as_nanos() as u64;
    let program = collection.program("on_exec").ok_or("no program on_exec")?;
    let link = Link::tracepoint(program, EVENT.0, EVENT.1)?;
    times[ATTACH] = clock.lap();
    link.detach()?;
    drop(collection);
    drop(object);
    times[CLOSE] = clock.lap();
    Ok(())
}

/// The same by the floor.
fn floor(prepared: &mut Prepared, times: &mut Times) -> Result<()> {
    let mut live = Live::default();
    let mut clock = Clock::start();
    prepared.create_maps(&mut live)?;
    times[MAPS] = clock.lap();
    prepared.verify(&mut live)?;
    times[VERIFY] = clock.lap();
    prepared.attach(&mut live)?;
    times[ATTACH] = clock.lap();
    drop(live);
    times[CLOSE] = clock.lap();
    Ok(())
}

struct Clock(Instant);

impl Clock {
    fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Nanoseconds since the last one.
    fn lap(&mut self) -> u64 {
        let now = Instant::now();
        let passed = now.duration_since(self.0).as_nanos() as u64;
        self.0 = now;
        passed
    }
}

fn bench_one_program() -> Result<()> {
    let mut prepared = Prepared::new(&Object::parse(OBJECT)?)?;
    // The last user of a tracepoint waits some 30 ms while the kernel takes it
    // out of all code: that is to be neither the loader nor the floor.
    let _held = prepared.open_event()?;
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    let started = Instant::now();
    while ours.len() < MIN_RUNS || started.elapsed() < BUDGET {
        let (mut our_times, mut base_times) = (Times::default(), Times::default());
        // Who comes second finds warmer caches: that, too, takes turns.
        if ours.len() % 2 == 0 {
            loader(&mut our_times)?;
            floor(&mut prepared, &mut base_times)?;
        } else {
            floor(&mut prepared, &mut base_times)?;
            loader(&mut our_times)?;
        }
        ours.push(our_times);
        base.push(base_times);
    }

    let mut counters = Counters::new();
    let our_counts = count_loader(&mut counters)?;
    let base_counts = count_floor(&mut counters, &mut prepared)?;

    println!(
        "\nA: 1 tracepoint program, 1 hash, 1 ring buffer; median of {} runs in turns",
        ours.len()
    );
    println!(
        "{:<10}{:>12}{:>12}{:>8}{:>18}{:>14}",
        "phase", "loader us", "floor us", "ratio", "syscalls (bpf)", "floor"
    );
    let row = |name: &str, phases: std::ops::Range<usize>| {
        let time = |runs: &[Times]| median(runs.iter().map(|t| t[phases.clone()].iter().sum()));
        let counts = |tally: &Option<Tally>| {
            let phases = &tally.as_ref()?.phases[phases.clone()];
            Some(phases.iter().fold(Counts::default(), Counts::plus))
        };
        let (ours, base) = (time(&ours), time(&base));
        print_row(
            name,
            ours,
            base,
            (counts(&our_counts), counts(&base_counts)),
        );
        (ours, base)
    };
    for (phase, name) in PHASES.iter().enumerate().take(CLOSE) {
        row(name, phase..phase + 1);
    }
    let (ours, base) = row("running", 0..CLOSE);
    row("close", CLOSE..PHASES.len());
    let own = ours.saturating_sub(base);
    println!(
        "until running the loader adds {:.1} us to the floor's {:.1}: {:.1} %",
        micros(own),
        micros(base),
        100.0 * own as f64 / base.max(1) as f64
    );
    match (&our_counts, &base_counts) {
        (
            Some(Tally {
                instructions: Some(ours),
                ..
            }),
            Some(Tally {
                instructions: Some(base),
                ..
            }),
        ) => {
            println!("user instructions: loader {ours}, floor {base}");
        }
        _ => println!("user instructions of a phase: not counted here (no hardware counter)"),
    }
    let buffers = env::temp_dir().join(format!("ebpf-manager-bench-{}", std::process::id()));
    fs::write(&buffers, prepared.encode())?;
    let result = processes(&["nothing", "floor", "loader", "manager"], &buffers);
    fs::remove_file(&buffers)?;
    result
}

fn print_row(name: &str, ours: u64, base: u64, counts: (Option<Counts>, Option<Counts>)) {
    let ratio = if base == 0 {
        "-".to_owned()
    } else {
        format!("{:.2}", ours as f64 / base as f64)
    };
    let calls = |counts: Option<Counts>| match counts {
        Some(counts) => format!("{} ({})", counts.calls, counts.bpf),
        None => "not counted".to_owned(),
    };
    println!(
        "{name:<10}{:>12.1}{:>12.1}{ratio:>8}{:>18}{:>14}",
        micros(ours),
        micros(base),
        calls(counts.0),
        calls(counts.1)
    );
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

// ------------------------------------------------------------------ counts

/// What one run did.
#[derive(Debug, Default)]
struct Tally {
    phases: [Counts; PHASES.len()],
    /// Of all phases together; `None` where the machine does not count.
    instructions: Option<u64>,
}

/// What a phase did besides taking time.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    calls: u64,
    bpf: u64,
}

impl Counts {
    fn plus(self, other: &Counts) -> Counts {
        Counts {
            calls: self.calls + other.calls,
            bpf: self.bpf + other.bpf,
        }
    }
}

impl Tally {
    fn add(&mut self, counters: &Counters, phase: usize, calls: &[Call]) {
        let Some(counts) = self.phases.get_mut(phase) else {
            return;
        };
        counts.calls += calls.len() as u64;
        let bpf = calls.iter().filter(|c| counters.bpf_command(**c).is_some());
        counts.bpf += bpf.count() as u64;
    }

    /// Splits what loading did: everything belongs to the phase that the last
    /// command of bpf(2) began.
    fn add_load(&mut self, counters: &Counters, calls: &[Call]) {
        let mut phase = 1;
        for call in calls {
            match counters.bpf_command(*call).map(|c| BpfCommand(c as u32)) {
                Some(BpfCommand::PROG_LOAD) => phase = VERIFY,
                Some(_) => phase = MAPS,
                None => {}
            }
            self.add(counters, phase, std::slice::from_ref(call));
        }
    }
}

/// Runs `step` and returns its system calls and user instructions.
fn step<T>(
    counters: &mut Counters,
    instructions: &mut Option<u64>,
    step: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<Call>)> {
    counters.begin();
    let done = step()?;
    let calls = counters.take_calls().unwrap_or_default();
    *instructions = instructions
        .zip(counters.instructions())
        .map(|(a, b)| a + b);
    Ok((done, calls))
}

fn count_loader(counters: &mut Counters) -> Result<Option<Tally>> {
    let mut tally = Tally::default();
    let mut sum = Some(0);
    let (object, calls) = step(counters, &mut sum, || Ok(Object::parse(OBJECT)?))?;
    tally.add(counters, 0, &calls);
    let (collection, calls) = step(counters, &mut sum, || {
        Ok(Collection::load(&object, LoadOptions::default())?)
    })?;
    tally.add_load(counters, &calls);
    let program = collection.program("on_exec").ok_or("no program on_exec")?;
    let (link, calls) = step(counters, &mut sum, || {
        Ok(Link::tracepoint(program, EVENT.0, EVENT.1)?)
    })?;
    tally.add(counters, ATTACH, &calls);
    let ((), calls) = step(counters, &mut sum, || {
        link.detach()?;
        drop(collection);
        drop(object);
        Ok(())
    })?;
    tally.add(counters, CLOSE, &calls);
    tally.instructions = sum;
    Ok(counters.counts_calls().then_some(tally))
}

fn count_floor(counters: &mut Counters, prepared: &mut Prepared) -> Result<Option<Tally>> {
    let mut tally = Tally::default();
    let mut sum = Some(0);
    let mut live = Live::default();
    let ((), calls) = step(counters, &mut sum, || Ok(prepared.create_maps(&mut live)?))?;
    tally.add(counters, MAPS, &calls);
    let ((), calls) = step(counters, &mut sum, || Ok(prepared.verify(&mut live)?))?;
    tally.add(counters, VERIFY, &calls);
    let ((), calls) = step(counters, &mut sum, || Ok(prepared.attach(&mut live)?))?;
    tally.add(counters, ATTACH, &calls);
    let ((), calls) = step(counters, &mut sum, || {
        drop(live);
        Ok(())
    })?;
    tally.add(counters, CLOSE, &calls);
    tally.instructions = sum;
    Ok(counters.counts_calls().then_some(tally))
}

// --------------------------------------------------------------- processes

/// Whole processes: what each mode costs from exec to exit.
fn processes(modes: &[&str], input: &Path) -> Result<()> {
    let program = &env::current_exe()?;
    println!("\nwhole processes, median of {PROCESS_RUNS}; \"nothing\" is Rust's runtime alone");
    println!(
        "{:<10}{:>10}{:>20}{:>16}",
        "process", "syscalls", "user instructions", "peak RSS KiB"
    );
    for &mode in modes {
        let (mut calls, mut instructions, mut memory) = (None, None, Vec::new());
        for _ in 0..PROCESS_RUNS {
            let mut command = Command::new(program);
            // Cargo's search path for libraries costs a hundred system calls.
            command.env_clear().env(MODE, mode).env(INPUT, input);
            let counts = counters::run(&mut command)?;
            let text = String::from_utf8_lossy(&counts.output.stdout).into_owned();
            if !counts.output.status.success() {
                return Err(format!("process {mode}: {}", text.trim()).into());
            }
            memory.push(text.trim().parse()?);
            (calls, instructions) = (counts.calls, counts.instructions);
        }
        let instructions = match instructions {
            Some(count) => format!("{count}"),
            None => counters::callgrind(
                program,
                &[(MODE, mode.as_ref()), (INPUT, input.as_os_str())],
            )
            .map_or("not counted here".to_owned(), |n| {
                format!("{n} (callgrind)")
            }),
        };
        let calls = calls.map_or("not counted".to_owned(), |n| n.to_string());
        println!(
            "{mode:<10}{calls:>10}{instructions:>20}{:>16}",
            median(memory.into_iter())
        );
    }
    Ok(())
}

/// What a measured process does: one life of the object, then its peak memory
/// in KiB on standard output.
fn live_once(mode: &str) -> Result<()> {
    let mut times = Times::default();
    match mode {
        "floor" => {
            let buffers = fs::read(env::var_os(INPUT).ok_or("no buffers")?)?;
            let mut prepared = Prepared::decode(&buffers).ok_or("damaged buffers")?;
            floor(&mut prepared, &mut times)?;
        }
        "loader" => loader(&mut times)?,
        "manager" => {
            let manager = Manager::builder()
                .probe(Probe::new("on_exec"))
                .ring_buffer("executions", |record| {
                    std::hint::black_box(record);
                })
                .build()?;
            manager.init(&ObjectSource::bytes(OBJECT))?;
            manager.start()?;
            manager.stop()?;
        }
        "file" => {
            let object = Object::parse(fs::read(env::var_os(INPUT).ok_or("no file")?)?)?;
            drop(Collection::load(&object, LoadOptions::default())?);
        }
        _ => {}
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
        .ok_or("no VmHWM in /proc/self/status")?;
    println!("{peak}");
    Ok(())
}

// -------------------------------------------------------------- other files

/// Any object: loaded and closed, without a floor.
fn bench_file(path: &Path) -> Result<()> {
    let bytes: &'static [u8] = fs::read(path)?.leak();
    let mut runs = Vec::new();
    let started = Instant::now();
    let mut programs = 0;
    while runs.len() < MIN_RUNS || started.elapsed() < BUDGET {
        let mut times = Times::default();
        let mut clock = Clock::start();
        let object = Object::parse(bytes)?;
        times[0] = clock.lap();
        let collection = Collection::load(&object, LoadOptions::default())?;
        clock.lap();
        let phases = collection.times();
        times[1] = phases.relocate.as_nanos() as u64;
        times[MAPS] = phases.maps.as_nanos() as u64;
        times[VERIFY] = phases.verify.as_nanos() as u64;
        programs = collection.programs().len();
        drop(collection);
        drop(object);
        times[CLOSE] = clock.lap();
        runs.push(times);
    }
    let runs_count = runs.len();
    println!(
        "\n{}: {programs} programs; median of {runs_count} runs",
        path.display()
    );
    for (phase, name) in PHASES.iter().enumerate().filter(|(p, _)| *p != ATTACH) {
        println!(
            "{name:<10}{:>12.1} us",
            micros(median(runs.iter().map(|t| t[phase])))
        );
    }
    println!(
        "{:<10}{:>12.1} us",
        "total",
        micros(median(runs.iter().map(|t| t.iter().sum())))
    );
    processes(&["nothing", "file"], path)
}
