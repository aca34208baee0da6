//! Traps of the original's readers.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{Cpus, PerfBufferOptions, PerfBufferReader};
use ebpf_manager::channel::bounded;
use ebpf_manager::{ManagerError, Sink, Stream, WhenFull};

use super::streams::{PATIENCE, PERF, RING, of, program, started, wait_until, write_all};
use super::*;
use crate::common::RING_BUFFER;

/// The original's reader blocked on its channel of errors, or, without one,
/// read the same error for ever.
#[test]
fn trap_errors_neither_block_nor_repeat() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // Nobody ever receives from the one channel; the other stream has none.
    let (errors, _unread) = bounded(0);
    for errors in [Some(errors), None] {
        let sink = Sink::handler(|_| std::panic::resume_unwind(Box::new("no more")));
        let mut stream = Stream::ring_buffer("ring", sink);
        if let Some(errors) = errors {
            stream = stream.errors(errors);
        }
        let manager = started(vec![stream], RING.0);
        assert_eq!(Request::new(0, 3, (16, 16)).run(&program(&manager)), 0);
        let stream = of(&manager, "ring");
        wait_until("the end of the stream", || !stream.is_running());
        thread::sleep(Duration::from_millis(5));
        assert_eq!((stream.stats().records, stream.stats().errors), (1, 1));
        let start = Instant::now();
        let err = manager.stop().unwrap_err();
        assert!(matches!(err, ManagerError::Stop(all) if all.len() == 1));
        assert!(start.elapsed() < PATIENCE / 2);
    }
}

/// The original took no lock for that.
#[test]
fn trap_streams_are_paused_from_many_threads() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let seen = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&seen);
    let sink = Sink::handler(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let manager = started(vec![Stream::perf_buffer("buffers", None, sink)], PERF.0);
    let stream = of(&manager, "buffers");
    thread::scope(|scope| {
        for number in 0..4 {
            let stream = &stream;
            scope.spawn(move || {
                for round in 0..50 {
                    if (round + number) % 2 == 0 {
                        stream.pause().unwrap();
                    } else {
                        stream.resume().unwrap();
                    }
                }
            });
        }
    });
    stream.resume().unwrap();
    assert!(!stream.is_paused());
    let before = seen.load(Ordering::Relaxed);
    write_all(&program(&manager), 7, 100, (16, 16));
    assert!(stream.flush(PATIENCE).unwrap());
    assert_eq!(seen.load(Ordering::Relaxed) - before, 100);
    manager.stop().unwrap();
}

/// The original handed the same memory to every call.
#[test]
fn trap_records_may_be_kept() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (sink, records) = Sink::channel(50, WhenFull::Block);
    let manager = started(vec![Stream::ring_buffer("ring", sink)], RING.0);
    let sizes = (16, 256);
    write_all(&program(&manager), 7, 50, sizes);
    assert!(of(&manager, "ring").flush(PATIENCE).unwrap());
    let kept: Vec<_> = records.try_iter().collect();
    // The next ones are written over what is given back only.
    write_all(&program(&manager), 7, 50, sizes);
    assert!(of(&manager, "ring").flush(PATIENCE).unwrap());
    let mut checker = Checker::new(sizes, 0);
    for record in &kept {
        checker.record(&record.data);
    }
    assert_eq!((checker.seen, checker.missing), (50, 0));
    manager.stop().unwrap();
}

/// The original took the n-th buffer for that of CPU n.
#[test]
fn trap_buffers_are_known_by_their_cpus() {
    if !require(&ROOT) {
        return;
    }
    if stay_on(1).is_err() {
        return common::skip("there is no CPU 1");
    }
    let _leaks = LeakCheck::begin();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let options = PerfBufferOptions {
        cpus: Cpus::AllBut(vec![0]),
        ..PerfBufferOptions::default()
    };
    let mut reader = PerfBufferReader::new(map(&object, "buffers"), options).unwrap();
    let one = Request::new(0, 1, (16, 16));
    let refused = |expected: [u64; 2]| {
        for (cpu, refused) in expected.into_iter().enumerate() {
            stay_on(cpu as u32).unwrap();
            assert_eq!(one.run(program), refused, "on CPU {cpu}");
        }
    };
    refused([1, 0]);
    reader.pause().unwrap();
    refused([1, 1]);
    reader.resume().unwrap();
    refused([1, 0]);
    let read = reader.consume(usize::MAX, |record| {
        assert_eq!(record.cpu, Some(1));
        ControlFlow::Continue(())
    });
    assert_eq!(read, Ok(2));
    drop(reader);
}
