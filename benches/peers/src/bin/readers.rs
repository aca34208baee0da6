//! Reading beside other libraries and a bare loop, in turns: nanoseconds per
//! record of draining a full buffer.
//!
//! ```text
//! readers                     # the table
//! readers drain WHO KIND N    # so many fills of 64-byte records, for callgrind
//! ```

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Map as AyaMap, MapData, PerfEventArray, RingBuf};
use ebpf_manager::bpf::{
    Collection, LoadOptions, Map, PerfBufferOptions, PerfBufferReader, Program, RingBufferReader,
    TestRun, open_object, pod,
};
use ebpf_manager_peers::Result;
use ebpf_manager_peers::measure::{fixture, machine, median};
use ebpf_manager_sys::bpf::map_info;
use ebpf_manager_sys::sched::stay_on;
use libbpf_rs::{MapHandle, PerfBufferBuilder, RingBufferBuilder};

/// Bytes of each buffer.
const SIZE: usize = 1 << 20;
const PAGE: usize = 4096;
const ROUNDS: usize = 41;
const WHO: [&str; 4] = ["bare", "ours", "libbpf-rs", "aya"];

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

fn fill(program: &Program, ring: bool, size: u32) -> Result<u64> {
    let taken = if ring {
        size.next_multiple_of(8) + 8
    } else {
        (size + 4).next_multiple_of(8) + 8
    };
    let all = SIZE as u32 / 10 * 9 / taken;
    let mut left = all;
    while left != 0 {
        let count = left.min(4096);
        if write(program, count, size)? != 0 {
            return Err("refused".into());
        }
        left -= count;
    }
    Ok(all.into())
}

struct Sum {
    records: u64,
    sum: u64,
}

impl Sum {
    fn add(&mut self, data: &[u8]) {
        self.records += 1;
        let word = data
            .first_chunk()
            .map_or(0, |word| u64::from_ne_bytes(*word));
        self.sum = self.sum.wrapping_add(word);
    }
}

/// Opens a reader, lets `fill` fill the buffer, times the drain.
fn turn(who: &str, map: &Map, fill: &dyn Fn() -> Result<u64>, ring: bool) -> Result<f64> {
    let mut sum = Sum { records: 0, sum: 0 };
    let id = map_info(map.as_fd())?.id;
    let pages = SIZE / PAGE;
    let (written, time) = match (who, ring) {
        ("bare", true) => bare_ring(map, fill, &mut sum)?,
        ("bare", false) => bare_perf(map, fill, &mut sum)?,
        ("ours", true) => {
            let mut reader = RingBufferReader::new(map)?;
            let written = fill()?;
            let start = Instant::now();
            reader.consume(usize::MAX, |data| {
                sum.add(data);
                std::ops::ControlFlow::Continue(())
            })?;
            (written, start.elapsed())
        }
        ("ours", false) => {
            let mut options = PerfBufferOptions::default();
            options.bytes_per_cpu = SIZE;
            let mut reader = PerfBufferReader::new(map, options)?;
            let written = fill()?;
            let start = Instant::now();
            reader.drain(usize::MAX, |record| {
                sum.add(record.data);
                std::ops::ControlFlow::Continue(())
            })?;
            (written, start.elapsed())
        }
        ("libbpf-rs", true) => {
            let handle = MapHandle::from_map_id(id)?;
            let mut builder = RingBufferBuilder::new();
            builder.add(&handle, |data| {
                sum.add(data);
                0
            })?;
            let reader = builder.build()?;
            let written = fill()?;
            let start = Instant::now();
            reader.consume()?;
            let time = start.elapsed();
            drop(reader);
            (written, time)
        }
        ("libbpf-rs", false) => {
            let handle = MapHandle::from_map_id(id)?;
            let reader = PerfBufferBuilder::new(&handle)
                .pages(pages)
                .sample_cb(|_, data: &[u8]| sum.add(data))
                .build()?;
            let written = fill()?;
            let start = Instant::now();
            reader.consume()?;
            let time = start.elapsed();
            drop(reader);
            (written, time)
        }
        (_, true) => {
            let mut reader = RingBuf::try_from(AyaMap::RingBuf(MapData::from_id(id)?))?;
            let written = fill()?;
            let start = Instant::now();
            while let Some(record) = reader.next() {
                sum.add(&record);
            }
            (written, start.elapsed())
        }
        (_, false) => {
            let map = AyaMap::PerfEventArray(MapData::from_id(id)?);
            let mut array = PerfEventArray::try_from(map)?;
            let mut reader = array.open(0, Some(pages))?;
            let written = fill()?;
            let start = Instant::now();
            reader.for_each(|event| {
                if let aya::maps::perf::PerfEvent::Sample { head, .. } = event {
                    sum.add(head);
                }
            });
            (written, start.elapsed())
        }
    };
    if sum.records != written {
        return Err(format!("{who}: {} of {written} records", sum.records).into());
    }
    std::hint::black_box(sum.sum);
    Ok(time.as_nanos() as f64 / written as f64)
}

fn mapped(fd: i32, offset: usize, len: usize, writable: bool) -> Result<*mut u8> {
    let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            protection,
            libc::MAP_SHARED,
            fd,
            offset as i64,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(at.cast())
}

fn bare_ring(map: &Map, fill: &dyn Fn() -> Result<u64>, sum: &mut Sum) -> Result<(u64, Duration)> {
    let fd = map.as_fd().as_raw_fd();
    let tail = mapped(fd, 0, PAGE, true)?;
    let head = mapped(fd, PAGE, PAGE + 2 * SIZE, false)?;
    let written = fill()?;
    let start = Instant::now();
    // SAFETY: the loop follows the ring's protocol within the two mappings,
    // which are unmapped behind it.
    unsafe {
        let data = head.add(PAGE);
        let consumer = &*tail.cast::<AtomicU64>();
        let mut at = consumer.load(Ordering::Relaxed);
        let end = (*head.cast::<AtomicU64>()).load(Ordering::Acquire);
        while at < end {
            let record = data.add(at as usize & (SIZE - 1));
            let len = (*record.cast::<AtomicU32>()).load(Ordering::Acquire);
            if len >> 30 != 0 {
                break;
            }
            sum.records += 1;
            sum.sum = sum.sum.wrapping_add(*record.add(8).cast::<u64>());
            at += u64::from((len + 15) & !7);
            consumer.store(at, Ordering::Release);
        }
        let time = start.elapsed();
        libc::munmap(tail.cast(), PAGE);
        libc::munmap(head.cast(), PAGE + 2 * SIZE);
        Ok((written, time))
    }
}

/// The ring is opened by our own layer, whose mapping is beside this one.
fn bare_perf(map: &Map, fill: &dyn Fn() -> Result<u64>, sum: &mut Sum) -> Result<(u64, Duration)> {
    use ebpf_manager::bpf::ElemFlags;
    use ebpf_manager_sys::abi::perf::OpenFlags;
    use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};
    let attr = PerfEventAttr::bpf_output();
    let event = PerfEvent::open(&attr, Scope::AllThreads, Some(0), None, OpenFlags::empty())?;
    let fd = event.as_fd().as_raw_fd();
    let page = mapped(fd, 0, PAGE + SIZE, true)?;
    map.update_with(&0_u32.to_ne_bytes(), &fd.to_ne_bytes(), ElemFlags::empty())?;
    let written = fill()?;
    let start = Instant::now();
    // SAFETY: the loop follows the ring's protocol within the mapping, which
    // is unmapped behind it. The buffer is not full, so no record wraps.
    unsafe {
        let data = page.add(PAGE);
        let tail = &*page.add(1032).cast::<AtomicU64>();
        let end = (*page.add(1024).cast::<AtomicU64>()).load(Ordering::Acquire);
        let mut at = tail.load(Ordering::Relaxed);
        while at < end {
            let record = data.add(at as usize & (SIZE - 1));
            if *record.cast::<u32>() == 9 {
                sum.records += 1;
                let word = record.add(12).cast::<u64>().read_unaligned();
                sum.sum = sum.sum.wrapping_add(word);
            }
            at += u64::from(*record.add(6).cast::<u16>());
        }
        tail.store(at, Ordering::Release);
        let time = start.elapsed();
        libc::munmap(page.cast(), PAGE + SIZE);
        map.delete(&0_u32.to_ne_bytes())?;
        Ok((written, time))
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    stay_on(0)?;
    let object = open_object(fixture("bench_readers.bpf.o"))?;
    let collection = Collection::load(&object, LoadOptions::default())?;
    let get = |ring: bool| {
        let (program, map) = match ring {
            true => ("bench_ring_output", "bench_ring"),
            false => ("bench_perf_output", "bench_perf"),
        };
        collection.program(program).zip(collection.map(map))
    };
    if let [mode, who, kind, fills] = &arguments[..]
        && mode == "drain"
    {
        let ring = kind == "ring";
        let (program, map) = get(ring).ok_or("no program")?;
        for _ in 0..fills.parse::<usize>()? {
            turn(who, map, &|| fill(program, ring, 64), ring)?;
        }
        return Ok(());
    }
    println!("{}", machine());
    println!("| buffer | bytes | {} |", WHO.join(" | "));
    println!("| --- | --- |{}", " --: |".repeat(WHO.len()));
    for ring in [true, false] {
        let (program, map) = get(ring).ok_or("no program")?;
        for size in [8, 64, 128, 1024] {
            let mut times = vec![Vec::new(); WHO.len()];
            for _ in 0..ROUNDS {
                for (who, times) in WHO.iter().zip(&mut times) {
                    times.push(turn(who, map, &|| fill(program, ring, size), ring)?);
                }
            }
            let cells: Vec<String> = times.iter().map(|t| format!("{:.2}", median(t))).collect();
            let kind = if ring { "ring" } else { "perf" };
            println!("| {kind} | {size} | {} |", cells.join(" | "));
        }
    }
    Ok(())
}
