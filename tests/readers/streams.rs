//! Streams of a manager: every sink, every option, everything that can be done
//! to them while they run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{PerfBufferOptions, Wakeup};
use ebpf_manager::channel::{RecvTimeoutError, bounded};
use ebpf_manager::{Manager, ManagerError, ObjectSource, Sink, Stream, StreamHandle, WhenFull};

use super::*;
use crate::allocations::allocations;
use crate::common::{RING_BUFFER, testdata};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn started(streams: Vec<Stream>, object: &str) -> Manager {
    let mut builder = Manager::builder();
    for stream in streams {
        builder = builder.stream(stream);
    }
    let manager = builder.build().unwrap();
    let source = ObjectSource::path(testdata(object));
    manager.init(&source).unwrap();
    manager.start().unwrap();
    manager
}

pub(crate) const RING: (&str, &str) = ("ringbuf.bpf.o", "ring");
pub(crate) const PERF: (&str, &str) = ("perfbuf.bpf.o", "buffers");

pub(crate) fn program(manager: &Manager) -> ebpf_manager::ProgramRef {
    let ring = manager.program("ringbuf_output");
    ring.or_else(|| manager.program("perfbuf_output")).unwrap()
}

pub(crate) fn of(manager: &Manager, map: &str) -> StreamHandle {
    manager.stream(map).unwrap()
}

pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Writes records, again where there is no room.
pub(crate) fn write_all(
    program: &ebpf_manager::bpf::Program,
    stream: u32,
    count: u64,
    sizes: (u32, u32),
) {
    for number in 0..count {
        let mut request = Request::new(number, 1, sizes);
        request.stream = stream;
        while request.run(program) != 0 {
            thread::yield_now();
        }
    }
}

/// A checker for each stream of numbers.
#[derive(Clone, Default)]
struct Checkers(Arc<Mutex<Vec<Checker>>>);

impl Checkers {
    fn new(streams: u32, sizes: (u32, u32), padding: usize) -> Checkers {
        let all = (0..streams).map(|s| Checker::new(sizes, padding).of_stream(s));
        Checkers(Arc::new(Mutex::new(all.collect())))
    }

    fn record(&self, data: &[u8]) {
        let stream = u32::from_ne_bytes(*data[12..].first_chunk().unwrap());
        self.0.lock().unwrap()[stream as usize].record(data);
    }

    fn seen(&self) -> (u64, u64) {
        let all = self.0.lock().unwrap();
        let sum = |f: fn(&Checker) -> u64| all.iter().map(f).sum();
        (sum(|c| c.seen), sum(|c| c.missing))
    }
}

/// Writers on every CPU, a slow reader now and then, a buffer that is often
/// full: what is not refused arrives.
#[test]
fn streams_lose_nothing_uncounted() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let heavy = !std::path::Path::new("/matrix/environment").exists();
    let rounds = if heavy { 400 } else { 20 };
    for (object, map) in [RING, PERF] {
        let checkers = Checkers::new(3, (16, 256), 7);
        let seen = checkers.clone();
        let mut calls = 0_u64;
        let sink = Sink::handler(move |record| {
            calls += 1;
            if calls.is_multiple_of(50_000) {
                thread::sleep(Duration::from_millis(3));
            }
            seen.record(record);
        });
        let lost = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&lost);
        let small = PerfBufferOptions {
            bytes_per_cpu: 32 * 1024,
            ..PerfBufferOptions::default()
        };
        let stream = match map {
            "ring" => Stream::ring_buffer(map, sink),
            _ => Stream::perf_buffer(map, small, sink),
        };
        let stream = stream.lost(move |_, n| {
            told.fetch_add(n, Ordering::Relaxed);
        });
        let manager = started(vec![stream], object);
        let refused: u64 = thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|stream| {
                    let program = program(&manager);
                    scope.spawn(move || {
                        // Order is kept on a CPU, so a stream stays on one.
                        stay_on(stream % 2).unwrap();
                        let write = |round| {
                            let mut request = Request::new(round * 1024, 1024, (16, 256));
                            request.stream = stream;
                            request.run(&program)
                        };
                        (0..rounds).map(write).sum::<u64>()
                    })
                })
                .collect();
            writers.into_iter().map(|w| w.join().unwrap()).sum()
        });
        manager.stop().unwrap();
        let written = 3 * rounds * 1024;
        let (seen, missing) = checkers.seen();
        assert_eq!(seen + refused, written, "{map}");
        assert!(missing <= refused);
        let stats = manager.stream_stats(map).unwrap();
        assert_eq!((stats.records, stats.dropped, stats.errors), (seen, 0, 0));
        let (peak, size) = (stats.peak_bytes, stats.size_bytes);
        // A reader that finds nothing, and is kept from its processor before it
        // reads all that there ever was, has seen nothing wait.
        assert!(peak <= size && (peak > 0 || !heavy), "{peak} of {size}");
        assert_eq!(stats.lost, lost.load(Ordering::Relaxed));
        let per_cpu = manager.stream(map).unwrap().lost_per_cpu();
        assert_eq!(per_cpu.iter().map(|(_, n)| n).sum::<u64>(), stats.lost);
        assert!(per_cpu.iter().all(|(_, n)| *n > 0), "{per_cpu:?}");
        if map == "buffers" && common::kernel_version() >= (6, 0) {
            assert_eq!(stats.lost, refused);
        }
    }
}

#[test]
fn streams_read_without_allocating() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    for (object, map) in [RING, PERF] {
        let calls = Arc::new(Mutex::new(Vec::with_capacity(100_000)));
        let mine = Arc::clone(&calls);
        // No record wraps twice as long as the first that did.
        let sink = Sink::handler(move |_| mine.lock().unwrap().push(allocations()));
        let stream = match map {
            "ring" => Stream::ring_buffer(map, sink),
            _ => Stream::perf_buffer(map, PerfBufferOptions::default(), sink),
        };
        let manager = started(vec![stream], object);
        let program = program(&manager);
        // On one CPU: the first record that wraps on another comes when it will.
        let write = || {
            let writer = || {
                stay_on(0).unwrap();
                write_all(&program, 0, 3000, (256, 256));
            };
            thread::scope(|scope| scope.spawn(writer).join().unwrap());
        };
        write();
        assert!(of(&manager, map).flush(PATIENCE).unwrap());
        write();
        manager.stop().unwrap();
        let calls = calls.lock().unwrap();
        assert_eq!(calls.len(), 6000);
        // The first ones may come with the thread's own beginnings; in a perf
        // buffer one comes with the first record that wraps, late if the laps
        // before ended between records.
        let late = calls[5999] - calls[3000];
        assert!(
            late <= u64::from(map != "ring"),
            "{map}: {late} allocations"
        );
    }
}

#[test]
fn channels_block_or_drop() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let sizes = (16, 256);
    // Blocking: everything arrives, however late it is taken.
    let (sink, records) = Sink::channel(10, WhenFull::Block);
    let manager = started(vec![Stream::ring_buffer("ring", sink)], RING.0);
    let mut checker = Checker::new(sizes, 0);
    let blocked = of(&manager, "ring");
    thread::scope(|scope| {
        let program = program(&manager);
        scope.spawn(move || write_all(&program, 7, 1000, sizes));
        thread::sleep(Duration::from_millis(20));
        // What blocks does not keep others from being heard.
        blocked.pause().unwrap();
        assert!(!blocked.flush(Duration::from_millis(1)).unwrap() || blocked.is_paused());
        blocked.resume().unwrap();
        for _ in 0..1000 {
            let record = records.recv_timeout(PATIENCE).unwrap();
            checker.record(&record.data);
            assert_eq!((record.cpu, record.lost_before), (None, 0));
        }
    });
    assert_eq!((checker.seen, checker.missing), (1000, 0));
    assert_eq!(blocked.stats().dropped, 0);
    // Nobody takes them: stopping does not wait.
    write_all(&program(&manager), 7, 100, sizes);
    let start = Instant::now();
    manager.stop().unwrap();
    assert!(start.elapsed() < PATIENCE / 2);
    let stats = manager.stream_stats("ring").unwrap();
    assert_eq!(stats.records, 1100);
    let left = records.try_iter().count() as u64;
    assert_eq!(left + stats.dropped, 100);
    assert!(left >= 10);

    // Dropping: counted, in order.
    let (sink, records) = Sink::channel(10, WhenFull::Drop);
    let manager = started(vec![Stream::ring_buffer("ring", sink)], RING.0);
    write_all(&program(&manager), 7, 100, sizes);
    assert!(of(&manager, "ring").flush(PATIENCE).unwrap());
    let mut checker = Checker::new(sizes, 0);
    for record in records.try_iter() {
        checker.record(&record.into_owned().data);
    }
    assert_eq!((checker.seen, checker.missing), (10, 0));
    assert_eq!(of(&manager, "ring").stats().dropped, 90);
    // Without a receiver, too.
    drop(records);
    write_all(&program(&manager), 7, 5, sizes);
    manager.stop().unwrap();
    assert_eq!(manager.stream_stats("ring").unwrap().dropped, 95);
}

#[test]
fn streams_pause_resume_flush_stop_and_start() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    stay_on(0).unwrap();
    for (object, map) in [RING, PERF] {
        let seen = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&seen);
        let sink = Sink::handler(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let stream = match map {
            "ring" => Stream::ring_buffer(map, sink),
            _ => Stream::perf_buffer(map, PerfBufferOptions::default(), sink),
        };
        let manager = Manager::builder().stream(stream.start_skipped()).build();
        let manager = manager.unwrap();
        let stream = of(&manager, map);
        let idle = ManagerError::StreamIdle {
            map: map.to_owned(),
        };
        assert_eq!(stream.start(), Err(idle.clone()));
        manager.init(&ObjectSource::path(testdata(object))).unwrap();
        manager.start().unwrap();
        // Skipped: nobody reads.
        assert!(!stream.is_running());
        assert_eq!(stream.pause(), Err(idle.clone()));
        assert_eq!(stream.flush(PATIENCE), Ok(true));
        let program = program(&manager);
        let write = |count| Request::new(0, count, (16, 64)).run(&program);
        let mut expected = if write(10) == 0 { 10 } else { 0 };
        assert_eq!(expected, if map == "ring" { 10 } else { 0 });
        for _ in 0..2 {
            stream.start().unwrap();
            stream.start().unwrap();
            assert!(stream.is_running());
            assert_eq!(write(100), 0);
            expected += 100;
            assert_eq!(stream.flush(PATIENCE), Ok(true));
            assert_eq!(seen.load(Ordering::Relaxed), expected, "{map}");

            stream.pause().unwrap();
            assert!(stream.is_paused());
            // A ring buffer fills, a perf buffer refuses.
            let refused = write(10);
            assert_eq!(refused, if map == "ring" { 0 } else { 10 });
            thread::sleep(Duration::from_millis(5));
            assert_eq!(seen.load(Ordering::Relaxed), expected, "{map}");
            stream.resume().unwrap();
            expected += 10 - refused;
            assert_eq!(write(10), 0);
            expected += 10;
            assert_eq!(stream.flush(PATIENCE), Ok(true));
            assert_eq!(seen.load(Ordering::Relaxed), expected, "{map}");

            assert_eq!(write(100), 0);
            expected += 100;
            stream.stop().unwrap();
            wait_until("the end of the stream", || !stream.is_running());
            assert_eq!(seen.load(Ordering::Relaxed), expected, "{map}");
        }
        assert!(stream.take_peak_bytes() > 0);
        assert_eq!(stream.stats().peak_bytes, 0);
        stream.start().unwrap();
        manager.stop_readers().unwrap();
        drop(program);
        manager.stop().unwrap();
        assert_eq!(stream.start(), Err(idle));
        assert_eq!(stream.stats().records, expected);
    }
}

/// A panic ends its stream, is told at once and by stop, and others go on.
#[test]
fn a_panic_ends_one_stream_only() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (errors, told) = bounded(1);
    let sink = Sink::handler(|record| {
        if record.len() == 17 {
            std::panic::resume_unwind(Box::new("bad record"));
        }
    });
    let stream = Stream::ring_buffer("ring", sink).errors(errors);
    let manager = started(vec![stream], RING.0);
    let program = program(&manager);
    assert_eq!(Request::new(0, 5, (16, 16)).run(&program), 0);
    assert_eq!(Request::new(5, 1, (17, 17)).run(&program), 0);
    assert_eq!(Request::new(6, 5, (16, 16)).run(&program), 0);
    let panicked = ManagerError::HandlerPanicked {
        map: "ring".to_owned(),
        message: "bad record".to_owned(),
    };
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), panicked);
    let stream = of(&manager, "ring");
    wait_until("the end of the stream", || !stream.is_running());
    // The record that it panicked at is released, the rest is there.
    assert_eq!((stream.stats().records, stream.stats().errors), (6, 1));
    stream.start().unwrap();
    assert!(stream.flush(PATIENCE).unwrap());
    assert_eq!(stream.stats().records, 11);
    // Once more, with no room for the error: counted, not waited for.
    for first in [20, 21] {
        assert_eq!(Request::new(first, 1, (17, 17)).run(&program), 0);
        wait_until("the end of the stream", || !stream.is_running());
        stream.start().unwrap();
    }
    assert_eq!(stream.stats().errors, 3);
    drop(program);
    let stopped = manager.stop().unwrap_err();
    assert!(stopped.to_string().contains("bad record"), "{stopped}");
    assert_eq!(told.try_iter().count(), 1);
    assert!(matches!(
        told.recv_timeout(Duration::from_millis(1)),
        Err(RecvTimeoutError::Timeout)
    ));
}

#[test]
fn per_cpu_threads_have_a_sink_each() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let made = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (makes, sees) = (Arc::clone(&made), Arc::clone(&seen));
    let stream = Stream::perf_buffer_per_cpu("buffers", PerfBufferOptions::default(), move |cpu| {
        makes.lock().unwrap().push(cpu);
        let sees = Arc::clone(&sees);
        let mut checker = Checker::new((16, 256), 7);
        Sink::handler(move |record| {
            assert_eq!(record.cpu, Some(cpu));
            checker.record(record);
            let name = thread::current().name().unwrap_or_default().to_owned();
            sees.lock().unwrap().push((cpu, name));
        })
    });
    let manager = started(vec![stream], PERF.0);
    let online = ebpf_manager::bpf::online_cpus().unwrap();
    assert_eq!(*made.lock().unwrap(), online);
    let stream = of(&manager, "buffers");
    for &cpu in &online {
        let program = program(&manager);
        let writer = thread::spawn(move || {
            stay_on(cpu).unwrap();
            Request::new(0, 100, (16, 256)).run(&program)
        });
        assert_eq!(writer.join().unwrap(), 0);
    }
    assert!(stream.flush(PATIENCE).unwrap());
    stream.pause().unwrap();
    stream.resume().unwrap();
    manager.stop().unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 100 * online.len());
    for (cpu, name) in &*seen {
        assert_eq!(*name, format!("ebpf-reader-{cpu}"));
    }
    assert_eq!(stream.stats().records, seen.len() as u64);
}

/// Records that wake nobody are found by the clock.
#[test]
fn what_wakes_nobody_is_flushed_by_the_clock() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    for wakeup in [Wakeup::Bytes(0), Wakeup::Records(1000)] {
        let seen = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&seen);
        let sink = Sink::handler(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let options = PerfBufferOptions {
            wakeup,
            ..PerfBufferOptions::default()
        };
        let stream = Stream::perf_buffer("buffers", options, sink)
            .flush_every(Duration::from_millis(5))
            .own_thread();
        let manager = started(vec![stream], PERF.0);
        let program = program(&manager);
        for number in 0..3 {
            assert_eq!(Request::new(number, 1, (16, 16)).run(&program), 0);
            wait_until("the record", || seen.load(Ordering::Relaxed) == number + 1);
        }
        drop(program);
        manager.stop().unwrap();
    }
}

/// A handler may do anything with its stream and its manager.
#[test]
fn handlers_may_call_back() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let own: Arc<Mutex<Option<Manager>>> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let (for_handler, tell) = (Arc::clone(&own), Arc::clone(&done));
    let sink = Sink::handler(move |_| {
        let Some(manager) = for_handler.lock().unwrap().clone() else {
            return;
        };
        let stream = of(&manager, "ring");
        stream.pause().unwrap();
        stream.resume().unwrap();
        assert_eq!(stream.flush(PATIENCE), Ok(false));
        stream.start().unwrap();
        assert!(stream.is_running());
        stream.stop().unwrap();
        manager.stop_readers().unwrap();
        manager.stop().unwrap();
        assert!(stream.start().is_err());
        tell.store(true, Ordering::Release);
    });
    let manager = started(vec![Stream::ring_buffer("ring", sink)], RING.0);
    *own.lock().unwrap() = Some(manager.clone());
    let program = program(&manager);
    assert_eq!(Request::new(0, 1, (16, 16)).run(&program), 0);
    wait_until("the handler's end", || done.load(Ordering::Acquire));
    drop(program);
    own.lock().unwrap().take();
    manager.stop().unwrap();
}

/// Many streams on one thread and on threads of their own, stopped amid it.
#[test]
fn streams_stop_amid_the_flood() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    for (object, map) in [RING, PERF] {
        let sink = Sink::handler(|record| assert!(record.len() >= 16));
        let stream = match map {
            "ring" => Stream::ring_buffer(map, sink),
            _ => Stream::perf_buffer(map, PerfBufferOptions::default(), sink),
        };
        let manager = started(vec![stream], object);
        let go = Arc::new(AtomicBool::new(true));
        thread::scope(|scope| {
            for first in 0..3 {
                let (program, go) = (program(&manager), Arc::clone(&go));
                scope.spawn(move || {
                    while go.load(Ordering::Relaxed) {
                        Request::new(first, 200, (16, 64)).run(&program);
                    }
                });
            }
            thread::sleep(Duration::from_millis(30));
            // The writers go on: stopping reads what is there and no more.
            let start = Instant::now();
            manager.stop().unwrap();
            let took = start.elapsed();
            go.store(false, Ordering::Relaxed);
            assert!(took < PATIENCE / 2, "{took:?}");
        });
        assert!(manager.stream_stats(map).unwrap().records > 0);
    }
}
