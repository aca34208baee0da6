//! CPUs that go and come back, in guests only.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{Cpus, PerfBufferOptions, PerfBufferReader};

use super::*;

const SWITCH: &str = "/sys/devices/system/cpu/cpu1/online";

fn set_online(online: bool) {
    std::fs::write(SWITCH, if online { "1" } else { "0" }).unwrap();
}

/// Runs the generator on a CPU.
fn write_on(cpu: u32, request: Request, program: &ebpf_manager::bpf::Program) -> u64 {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            stay_on(cpu).unwrap();
            request.run(program)
        });
        thread.join().unwrap()
    })
}

/// CPUs may be taken away here, else the test is skipped. One at a time.
fn guest() -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    if !Path::new("/matrix/environment").exists() || !Path::new(SWITCH).exists() {
        common::skip("takes a CPU away, which only a guest of tests/matrix is for");
        return None;
    }
    Some(ONE.lock().unwrap_or_else(PoisonError::into_inner))
}

#[test]
fn perf_readers_follow_cpus() {
    if !require(&ROOT) {
        return;
    }
    let Some(_guest) = guest() else {
        return;
    };
    let _leaks = LeakCheck::begin();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let options = PerfBufferOptions::default();
    let mut reader = PerfBufferReader::new(map(&object, "buffers"), options).unwrap();
    let sizes = (16, 256);
    let mut checkers = [Checker::new(sizes, 7), Checker::new(sizes, 7)];
    let (mut next, mut written) = ([0_u64; 2], 0);
    let mut write = |cpu: usize, count: u32| {
        let refused = write_on(cpu as u32, Request::new(next[cpu], count, sizes), program);
        assert_eq!(refused, 0, "on CPU {cpu}");
        next[cpu] += u64::from(count);
        written += count as usize;
    };
    let mut read = |reader: &mut PerfBufferReader| {
        let n = reader.consume(usize::MAX, |record| {
            checkers[record.cpu.unwrap() as usize].record(record);
            ControlFlow::Continue(())
        });
        n.unwrap()
    };
    let mut total = 0;
    for _ in 0..3 {
        write(0, 50);
        write(1, 50);
        // What it has written is read after it went.
        set_online(false);
        write(0, 50);
        total += read(&mut reader);
        set_online(true);
        // The announcement may take a moment.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            total += read(&mut reader);
            let probe = Request::new(0, 1, (0, 0));
            if write_on(1, probe, program) == 0 {
                break;
            }
            assert!(Instant::now() < deadline, "CPU 1 is not picked up");
            std::thread::sleep(Duration::from_millis(5));
        }
        // The probe's record, of no bytes.
        let n = reader.consume(1, |record| {
            assert_eq!((record.cpu, record.len()), (Some(1), 4));
            ControlFlow::Continue(())
        });
        assert_eq!(n, Ok(1));
        write(1, 50);
        total += read(&mut reader);
    }
    assert_eq!(total, written);
    let seen = checkers.each_ref().map(|c| (c.next, c.missing));
    assert_eq!(seen, [(next[0], 0), (next[1], 0)]);
}

#[test]
fn perf_readers_try_again_what_failed() {
    if !require(&ROOT) {
        return;
    }
    let Some(_guest) = guest() else {
        return;
    };
    let _leaks = LeakCheck::begin();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let buffers = map(&object, "buffers");
    let options = PerfBufferOptions::default();
    let mut reader = PerfBufferReader::new(buffers, options.clone()).unwrap();
    let go_on = |_: &ebpf_manager::bpf::Record<'_>| ControlFlow::Continue(());
    set_online(false);
    reader.consume(1, go_on).unwrap();
    // Another one takes the CPU as soon as it is back.
    let cpus = Cpus::One(1);
    let mut other = PerfBufferReader::new(buffers, PerfBufferOptions { cpus, ..options }).unwrap();
    set_online(true);
    let probe = Request::new(0, 1, (16, 16));
    let deadline = Instant::now() + Duration::from_secs(20);
    while write_on(1, probe, program) != 0 {
        other.notice_changes().unwrap();
        assert!(Instant::now() < deadline, "CPU 1 is not picked up");
    }
    // The error is told once, and what the others write is read.
    let err = loop {
        match reader.notice_changes() {
            Ok(()) => assert!(Instant::now() < deadline, "not told"),
            Err(err) => break err,
        }
    };
    assert!(err.to_string().contains("CPU 1"), "{err:?}");
    assert_eq!(write_on(0, probe, program), 0);
    assert_eq!(reader.consume(9, go_on), Ok(1));
    assert_eq!(other.consume(9, go_on), Ok(1));
    drop(other);
    assert_eq!(write_on(1, probe, program), 1);
    reader.notice_changes().unwrap();
    assert_eq!(write_on(1, probe, program), 0);
    assert_eq!(reader.consume(9, go_on), Ok(1));
}
