//! What reading costs per record: draining a full buffer, and beside a program
//! that writes as fast as it can.
//!
//! ```text
//! cargo bench --bench readers                          # the table
//! cargo bench --bench readers -- drain ring 64 20      # one case, so many fills
//! ```
//!
//! Needs root. The second form does nothing else, so that the user
//! instructions of two counts of fills, under valgrind, differ by the reader's
//! (`.ci` and README.md say how). `benches/peers` measures other libraries and
//! a bare loop in the same way.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "its output is what it is for")]
#![expect(
    clippy::cast_precision_loss,
    reason = "durations of a few seconds, for people"
)]

use std::env;
use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{
    Collection, LoadOptions, PerfBufferOptions, PerfBufferReader, Program, RingBufferReader,
    TestRun, pod,
};
use ebpf_manager::elf::{Bytes, Object};
use ebpf_manager::{Manager, ObjectSource, Sink, Stream};
use ebpf_manager_sys::clock::monotonic_ns;
use ebpf_manager_sys::proc::Uname;
use ebpf_manager_sys::sched::stay_on;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

static OBJECT: &[u8] = include_bytes!("../../tests/programs/bench_readers.bpf.o");

/// Bytes of each buffer (of a perf buffer: of each CPU's).
const SIZE: usize = 1 << 20;

const SIZES: [u32; 4] = [8, 64, 128, 1024];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Ring,
    Perf,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Kind::Ring => "bench_ring_output",
            Kind::Perf => "bench_perf_output",
        }
    }

    fn map(self) -> &'static str {
        match self {
            Kind::Ring => "bench_ring",
            Kind::Perf => "bench_perf",
        }
    }
}

fn options() -> PerfBufferOptions {
    PerfBufferOptions {
        bytes_per_cpu: SIZE,
        ..PerfBufferOptions::default()
    }
}

/// Writes so many records; how many were refused.
fn write(program: &Program, count: u32, size: u32) -> Result<u64> {
    let mut packet = [0_u8; 64];
    packet[14..22].copy_from_slice(pod::slice_bytes(&[count, size]));
    let mut run = TestRun {
        data_in: &packet,
        repeat: 1,
        ..TestRun::default()
    };
    Ok(program.test_run(&mut run)?.retval.into())
}

/// Fills the buffer to about nine tenths; how many records that are.
fn fill(program: &Program, kind: Kind, size: u32) -> Result<u64> {
    let taken = match kind {
        Kind::Ring => size.next_multiple_of(8) + 8,
        // Header, length, padding.
        Kind::Perf => (size + 4).next_multiple_of(8) + 8,
    };
    let mut left = SIZE as u32 / 10 * 9 / taken;
    let all = left;
    while left != 0 {
        let count = left.min(4096);
        if write(program, count, size)? != 0 {
            return Err("a full buffer".into());
        }
        left -= count;
    }
    Ok(all.into())
}

/// Either reader.
enum Reader {
    Ring(RingBufferReader),
    Perf(PerfBufferReader),
}

impl Reader {
    fn drain(&mut self, sum: &mut u64) -> Result<usize> {
        let mut each = |data: &[u8]| {
            *sum = sum.wrapping_add(data.first_chunk().map_or(0, |w| u64::from_ne_bytes(*w)));
            ControlFlow::Continue(())
        };
        Ok(match self {
            Reader::Ring(reader) => reader.consume(usize::MAX, each)?,
            Reader::Perf(reader) => reader.drain(usize::MAX, |record| each(record.data))?,
        })
    }
}

/// Nanoseconds per record of each of so many drains.
fn drain(kind: Kind, size: u32, fills: usize) -> Result<Vec<f64>> {
    let object = Object::from_bytes(&Bytes::new(OBJECT))?;
    let collection = Collection::load(&object, LoadOptions::default())?;
    let program = collection.program(kind.program()).ok_or("no program")?;
    let map = collection.map(kind.map()).ok_or("no map")?;
    let mut reader = match kind {
        Kind::Ring => Reader::Ring(RingBufferReader::new(map)?),
        Kind::Perf => Reader::Perf(PerfBufferReader::new(map, options())?),
    };
    stay_on(0)?;
    let (mut times, mut sum) = (Vec::new(), 0);
    for _ in 0..fills {
        let written = fill(program, kind, size)?;
        let start = Instant::now();
        let read = reader.drain(&mut sum)?;
        let time = start.elapsed();
        if read as u64 != written {
            return Err(format!("{read} of {written} records").into());
        }
        times.push(time.as_nanos() as f64 / read as f64);
    }
    std::hint::black_box(sum);
    Ok(times)
}

/// What a run beside a producer came to, per record written.
struct Beside {
    wall_ns: f64,
    cpu_ns: f64,
    refused: u64,
    written: u64,
}

/// Reads with a manager while a program on another CPU writes for so long.
fn beside(kind: Kind, size: u32, time: Duration) -> Result<Beside> {
    let sum = Arc::new(AtomicU64::new(0));
    let total = Arc::clone(&sum);
    let mut local = 0_u64;
    let sink = Sink::handler(move |record| {
        local = local.wrapping_add(record.data.len() as u64);
        if local % (1 << 20) < u64::from(size) {
            total.store(local, Ordering::Relaxed);
        }
    });
    let stream = match kind {
        Kind::Ring => Stream::ring_buffer(kind.map(), sink),
        Kind::Perf => Stream::perf_buffer(kind.map(), options(), sink),
    };
    let manager = Manager::builder().stream(stream).build()?;
    manager.init(&ObjectSource::bytes(OBJECT))?;
    start_on(1, &manager)?;
    let program = manager.program(kind.program()).ok_or("no program")?;
    let (mut refused, mut written) = (0, 0);
    let before = reader_cpu_ns()?;
    let start = Instant::now();
    while start.elapsed() < time {
        refused += write(&program, 4096, size)?;
        written += 4096;
    }
    let wall = start.elapsed();
    let cpu = reader_cpu_ns()? - before;
    let stream = manager.stream(kind.map()).ok_or("no stream")?;
    stream.flush(Duration::from_secs(5))?;
    let read = manager.stream_stats(kind.map()).ok_or("no stream")?.records;
    if read + refused != written {
        return Err(format!("{read} read and {refused} refused of {written}").into());
    }
    drop(program);
    manager.stop()?;
    Ok(Beside {
        wall_ns: wall.as_nanos() as f64 / written as f64,
        cpu_ns: cpu as f64 / written as f64,
        refused,
        written,
    })
}

/// Starts with the readers on one CPU and the caller on the first.
fn start_on(cpu: u32, manager: &Manager) -> Result<()> {
    // Threads begin where their maker is allowed to be.
    let _ = stay_on(cpu);
    manager.start()?;
    stay_on(0)?;
    Ok(())
}

/// Processor time of the reader threads so far.
fn reader_cpu_ns() -> Result<u64> {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.starts_with("ebpf-reader") {
            // Nanoseconds on a processor come first.
            let stat = std::fs::read_to_string(task.join("schedstat"))?;
            let first = stat.split(' ').next().ok_or("empty schedstat")?;
            total += first.parse::<u64>()?;
        }
    }
    Ok(total)
}

/// How late a single record arrives, when few come.
fn latency(kind: Kind, runs: usize) -> Result<Vec<f64>> {
    let seen = Arc::new(AtomicU64::new(0));
    let at = Arc::clone(&seen);
    let sink = Sink::handler(move |_| at.store(monotonic_ns(), Ordering::Release));
    let stream = match kind {
        Kind::Ring => Stream::ring_buffer(kind.map(), sink),
        Kind::Perf => Stream::perf_buffer(kind.map(), options(), sink),
    };
    let manager = Manager::builder().stream(stream).build()?;
    manager.init(&ObjectSource::bytes(OBJECT))?;
    start_on(1, &manager)?;
    let program = manager.program(kind.program()).ok_or("no program")?;
    let mut times = Vec::new();
    for _ in 0..runs {
        std::thread::sleep(Duration::from_millis(2));
        seen.store(0, Ordering::Release);
        let start = monotonic_ns();
        write(&program, 1, 64)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        let arrived = loop {
            match seen.load(Ordering::Acquire) {
                0 if Instant::now() < deadline => std::thread::yield_now(),
                time => break time,
            }
        };
        times.push(arrived.saturating_sub(start) as f64 / 1000.0);
    }
    drop(program);
    manager.stop()?;
    Ok(times)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [mode, kind, size, fills] = &arguments[..]
        && mode == "drain"
    {
        let kind = if kind == "perf" {
            Kind::Perf
        } else {
            Kind::Ring
        };
        let times = drain(kind, size.parse()?, fills.parse()?)?;
        println!("{:.2} ns", median(times));
        return Ok(());
    }
    if let [mode, kind, size] = &arguments[..]
        && mode == "beside"
    {
        let kind = if kind == "perf" {
            Kind::Perf
        } else {
            Kind::Ring
        };
        let b = beside(kind, size.parse()?, Duration::from_millis(500))?;
        let share = b.refused as f64 * 100.0 / b.written as f64;
        let (wall, cpu) = (b.wall_ns, b.cpu_ns);
        println!("{wall:.1} ns wall, {cpu:.1} ns reader CPU, {share:.2} % refused");
        return Ok(());
    }
    println!("Linux {}", Uname::get()?.release());
    println!("buffer  bytes   drain ns   beside a producer: wall ns  reader CPU ns  refused");
    for kind in [Kind::Ring, Kind::Perf] {
        for size in SIZES {
            let drained = median(drain(kind, size, 30)?);
            let beside = beside(kind, size, Duration::from_millis(500))?;
            println!(
                "{:6} {size:6} {drained:10.2} {:27.1} {:14.1} {:7.3} %",
                format!("{kind:?}").to_lowercase(),
                beside.wall_ns,
                beside.cpu_ns,
                beside.refused as f64 * 100.0 / beside.written as f64,
            );
        }
    }
    for kind in [Kind::Ring, Kind::Perf] {
        let alone = median(latency(kind, 200)?);
        println!("{kind:?}: a record alone arrives after {alone:.0} µs");
    }
    Ok(())
}
