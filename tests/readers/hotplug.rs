//! CPUs that go and come back, in guests only.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{PerfBufferOptions, PerfBufferReader};

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

#[test]
fn perf_readers_follow_cpus() {
    if !require(&ROOT) {
        return;
    }
    if !Path::new("/matrix/environment").exists() || !Path::new(SWITCH).exists() {
        return common::skip("takes a CPU away, which only a guest of tests/matrix is for");
    }
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
