//! Perf buffers.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Duration;

use ebpf_manager::bpf::{
    Cpus, Errno, OverwritableBuffer, PerfBufferOptions, PerfBufferReader, ReaderError, Waiter,
    Wakeup,
};
use ebpf_manager_sys::clock::monotonic_ns;

use super::*;

/// Bytes that follow a record at most.
const PADDING: usize = 7;

fn options(bytes_per_cpu: usize) -> PerfBufferOptions {
    PerfBufferOptions {
        bytes_per_cpu,
        ..PerfBufferOptions::default()
    }
}

/// Every size, around the ring several times so that many wrap.
#[test]
fn perf_records_of_all_sizes_arrive_whole_and_in_order() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    stay_on(0).unwrap();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let mut reader = PerfBufferReader::new(map(&object, "buffers"), options(1)).unwrap();
    assert_eq!(reader.bytes_per_cpu(), 4096);
    let mut checker = Checker::new((0, 256), PADDING);
    for run in 0..500 {
        assert_eq!(
            Request::new(run * 20, 20, (0, 256)).run(program),
            0,
            "run {run}"
        );
        assert!(reader.available_bytes() > 0);
        let n = reader.consume(usize::MAX, |record| {
            assert_eq!((record.cpu, record.time_ns), (Some(0), None));
            checker.record(record);
            ControlFlow::Continue(())
        });
        assert_eq!(n, Ok(20));
    }
    assert_eq!((checker.seen, checker.missing), (10_000, 0));
    for cpu in reader.cpus() {
        assert_eq!(cpu.lost, 0);
        assert_eq!(cpu.peak_bytes > 0, cpu.cpu == 0);
    }
}

#[test]
fn perf_losses_are_counted_where_they_happen() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    stay_on(0).unwrap();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let mut reader = PerfBufferReader::new(map(&object, "buffers"), options(4096)).unwrap();
    let mut checker = Checker::new((16, 256), PADDING);
    let (mut refused, mut told) = (0, 0);
    for run in 0..50 {
        refused += Request::new(run * 100, 100, (16, 256)).run(program);
        reader
            .consume(usize::MAX, |record| {
                let missing = checker.missing;
                checker.record(record);
                assert_eq!(checker.missing - missing, record.lost_before);
                told += record.lost_before;
                ControlFlow::Continue(())
            })
            .unwrap();
    }
    assert!(refused > 1000, "{refused}");
    assert_eq!((checker.seen, checker.missing), (5000 - refused, told));
    let mut untold = 0;
    let complete = common::kernel_version() >= (6, 0);
    reader.untold_losses(&mut |cpu, count| {
        assert_eq!(cpu, 0);
        untold += count;
    });
    if complete {
        assert_eq!(told + untold, refused);
    }
    let lost: HashMap<u32, u64> = reader.cpus().map(|cpu| (cpu.cpu, cpu.lost)).collect();
    assert_eq!(lost[&0], told + untold);
    assert!(lost.iter().all(|(cpu, lost)| *cpu == 0 || *lost == 0));
    reader.untold_losses(&mut |_, _| panic!("told twice"));
}

#[test]
fn perf_buffers_pause_and_resume() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    stay_on(0).unwrap();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let buffers = map(&object, "buffers");
    let mut reader = PerfBufferReader::new(buffers, options(4096)).unwrap();
    let count =
        |reader: &mut PerfBufferReader| reader.consume(usize::MAX, |_| ControlFlow::Continue(()));
    let ten = Request::new(0, 10, (16, 16));
    assert_eq!(ten.run(program), 0);
    reader.pause().unwrap();
    assert!(reader.is_paused());
    assert_eq!(ten.run(program), 10, "written while paused");
    // What was there before is still there.
    assert_eq!(count(&mut reader), Ok(10));
    reader.resume().unwrap();
    reader.set_quiet(true).unwrap();
    assert_eq!(ten.run(program), 0);
    reader.set_quiet(false).unwrap();
    assert_eq!(ten.run(program), 0);
    assert_eq!(count(&mut reader), Ok(20));
    drop(reader);
    assert_eq!(ten.run(program), 10, "written without a reader");
    // Another one may follow.
    let mut reader = PerfBufferReader::new(buffers, options(4096)).unwrap();
    assert_eq!(ten.run(program), 0);
    assert_eq!(count(&mut reader), Ok(10));
}

/// Woken by each record, by so many of them, by so many bytes, by none.
#[test]
fn perf_wakeups_come_as_asked_for() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    stay_on(0).unwrap();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let buffers = map(&object, "buffers");
    let soon = Some(Duration::from_millis(50));
    let long = Some(Duration::from_secs(20));
    let one = |first| assert_eq!(Request::new(first, 1, (100, 100)).run(program), 0);
    for wakeup in [Wakeup::Adaptive, Wakeup::Records(3), Wakeup::Bytes(300)] {
        let mut reader = PerfBufferReader::new(
            buffers,
            PerfBufferOptions {
                wakeup,
                ..options(4096)
            },
        )
        .unwrap();
        let mut waiter = Waiter::new().unwrap();
        waiter.add(&reader, 5).unwrap();
        let mut woken = |timeout| {
            let mut tokens = 0;
            waiter
                .wait(timeout, &mut |token| {
                    // A change of something else is no record.
                    tokens += usize::from(token == 5);
                })
                .unwrap();
            tokens != 0
        };
        one(0);
        assert_eq!(woken(soon), wakeup == Wakeup::Adaptive);
        one(1);
        one(2);
        one(3);
        assert!(woken(long), "{wakeup:?}");
        let n = reader.consume(usize::MAX, |_| ControlFlow::Continue(()));
        assert_eq!(n, Ok(4));
        if wakeup == Wakeup::Adaptive {
            reader.set_quiet(true).unwrap();
            one(4);
            assert!(!woken(soon));
            // The ring wakes by itself when half full.
            assert_eq!(Request::new(5, 20, (100, 100)).run(program), 0);
            assert!(woken(long));
            reader.set_quiet(false).unwrap();
            one(25);
            assert!(woken(long));
        }
    }
}

#[test]
fn perf_readers_poll_and_iterate() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    stay_on(0).unwrap();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let mut reader = PerfBufferReader::new(map(&object, "buffers"), options(8192)).unwrap();
    let soon = Some(Duration::from_millis(1));
    let n = reader.poll(soon, 9, &mut |_| panic!("nothing was written"));
    assert_eq!(n, Ok(0));
    assert_eq!(Request::new(0, 30, (16, 64)).run(program), 0);
    let mut checker = Checker::new((16, 64), PADDING);
    let n = reader.poll(None, 9, &mut |record| {
        checker.record(record);
        ControlFlow::Continue(())
    });
    assert_eq!(n, Ok(9));
    let n = reader.consume(usize::MAX, |record| {
        checker.record(record);
        ControlFlow::Break(())
    });
    assert_eq!(n, Ok(1));
    for record in reader.records(soon) {
        checker.record(&record.unwrap());
    }
    assert_eq!((checker.seen, checker.missing), (30, 0));
}

#[test]
fn perf_records_carry_the_time() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    stay_on(0).unwrap();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let options = PerfBufferOptions {
        timestamps: true,
        ..options(65536)
    };
    let mut reader = PerfBufferReader::new(map(&object, "buffers"), options).unwrap();
    let mut last = monotonic_ns();
    for run in 0..5 {
        assert_eq!(Request::new(run, 100, (16, 256)).run(program), 0);
        let now = monotonic_ns();
        let mut checker = Checker::new((16, 256), PADDING);
        checker.next = run;
        let n = reader.consume(usize::MAX, |record| {
            checker.record(record);
            let time = record.time_ns.unwrap();
            assert!(last <= time && time <= now, "{last} {time} {now}");
            last = time;
            ControlFlow::Continue(())
        });
        assert_eq!(n, Ok(100));
    }
}

#[test]
fn perf_overwritable_buffers_keep_the_newest() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    stay_on(0).unwrap();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let mut buffer = OverwritableBuffer::new(map(&object, "buffers"), 4096, true).unwrap();
    assert_eq!(buffer.read(&mut |_| panic!("nothing yet")), Ok(0));
    let mut written = 0;
    for count in [1, 2, 10, 50, 100, 333, 1000] {
        assert_eq!(Request::new(written, count, (16, 256)).run(program), 0);
        written += u64::from(count);
        // What is read stays there.
        for _ in 0..2 {
            let mut numbers = Vec::new();
            let n = buffer.read(&mut |record| {
                let number = u64::from_ne_bytes(*record.first_chunk().unwrap());
                let size = generator::size_of_record(number, (16, 256));
                generator::assert_image(record, number, size, 7);
                assert!(record.time_ns.unwrap() <= monotonic_ns());
                numbers.push(number);
            });
            assert_eq!(n, Ok(numbers.len()));
            let from = written - numbers.len() as u64;
            assert!(numbers.iter().copied().eq(from..written), "{numbers:?}");
            // At least as many as fit, should all be of the longest.
            assert!(numbers.len() as u64 >= written.min(4096 / 288 - 1));
        }
    }
    drop(buffer);
    assert_eq!(Request::new(0, 1, (16, 16)).run(program), 1);
}

#[test]
fn perf_cpus_may_be_chosen() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    stay_on(0).unwrap();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let buffers = map(&object, "buffers");
    let one = Request::new(0, 1, (16, 16));
    for (cpus, refused) in [
        (Cpus::One(0), 0),
        (Cpus::AllBut(vec![0]), 1),
        (Cpus::AllBut(vec![1]), 0),
        (Cpus::One(1), 1),
    ] {
        let options = PerfBufferOptions {
            cpus,
            ..options(4096)
        };
        let _reader = PerfBufferReader::new(buffers, options).unwrap();
        assert_eq!(one.run(program), refused);
    }
    let wrong = PerfBufferReader::new(map(&load("ringbuf.bpf.o"), "ring"), options(1));
    let text = wrong.unwrap_err().to_string();
    assert!(text.contains("not perf_event_array"), "{text}");
}

#[test]
fn perf_buffers_have_one_reader_per_cpu() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    stay_on(0).unwrap();
    let object = load("perfbuf.bpf.o");
    let program = object.program("perfbuf_output").unwrap();
    let buffers = map(&object, "buffers");
    let one = Request::new(0, 1, (16, 16));
    let on = |cpus| {
        let options = PerfBufferOptions {
            cpus,
            ..options(4096)
        };
        PerfBufferReader::new(buffers, options)
    };
    let busy = |err: ReaderError| matches!(err, ReaderError::Kernel { source, .. } if source.is(Errno::EBUSY));

    let mut first = on(Cpus::One(0)).unwrap();
    assert!(busy(on(Cpus::All).unwrap_err()));
    assert!(busy(
        OverwritableBuffer::new(buffers, 1, false).unwrap_err()
    ));
    // The same map by another descriptor.
    let again = buffers.named("again").unwrap();
    assert!(busy(PerfBufferReader::new(&again, options(1)).unwrap_err()));
    drop(on(Cpus::AllBut(vec![0])).unwrap());
    assert_eq!(one.run(program), 0);
    let count = first.consume(9, |_| ControlFlow::Continue(()));
    assert_eq!(count, Ok(1), "the first reader still hears");
    drop(first);

    let recorder = OverwritableBuffer::new(buffers, 1, false).unwrap();
    assert!(busy(on(Cpus::One(0)).unwrap_err()));
    assert_eq!(one.run(program), 0);
    drop(recorder);
    drop(on(Cpus::All).unwrap());
}
