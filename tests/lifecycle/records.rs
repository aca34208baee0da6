//! Records of a manager's life: none is forgotten or counted twice.

use super::*;

/// What was written before the start is read, and what nobody read until the
/// stop.
#[test]
fn no_record_is_forgotten_at_either_end() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let gate = Arc::new(Mutex::new(()));
    let numbers = Arc::new(Mutex::new(Vec::new()));
    let (behind_gate, seen) = (Arc::clone(&gate), Arc::clone(&numbers));
    let manager = Manager::builder()
        .ring_buffer("ring", move |record| {
            drop(behind_gate.lock().unwrap());
            let number = u64::from_ne_bytes(*record.first_chunk().unwrap());
            assert_eq!(record[8..12], (record.len() as u32).to_ne_bytes());
            assert_eq!(record[12..16], 7_u32.to_ne_bytes());
            seen.lock().unwrap().push(number);
        })
        .build()
        .unwrap();
    manager.init(&generator_object()).unwrap();
    assert_eq!(generate(&manager, 0, 100, Wakeup::IfWaiting), 0);
    assert_eq!(numbers.lock().unwrap().len(), 0, "read before the start");
    manager.start().unwrap();
    wait_until("records from before the start", || {
        numbers.lock().unwrap().len() == 100
    });

    let closed = gate.lock().unwrap();
    assert_eq!(generate(&manager, 100, 100, Wakeup::IfWaiting), 0);
    drop(closed);
    wait_until("records behind the gate", || {
        numbers.lock().unwrap().len() == 200
    });

    // Nobody tells the reader of these; it may find them by itself.
    assert_eq!(generate(&manager, 200, 100, Wakeup::Never), 0);
    manager.stop().unwrap();
    assert!(numbers.lock().unwrap().iter().copied().eq(0..300));
    assert_eq!(manager.stream_stats("ring").unwrap().records, 300);
}

#[test]
fn records_and_losses_add_up() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let read = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&read);
    let mut next = 0;
    let manager = Manager::builder()
        .ring_buffer("ring", move |record| {
            let number = u64::from_ne_bytes(*record.first_chunk().unwrap());
            assert!(number >= next, "{number} after {next}");
            next = number + 1;
            counter.fetch_add(1, Ordering::Relaxed);
        })
        .build()
        .unwrap();
    manager.init(&generator_object()).unwrap();
    manager.start().unwrap();
    let runs = 50;
    let lost: u64 = (0..runs)
        .map(|run| generate(&manager, run * 1024, 1024, Wakeup::IfWaiting))
        .sum();
    manager.stop().unwrap();
    assert_eq!(read.load(Ordering::Relaxed) + lost, runs * 1024);
}

/// With producers that do not care, a program may still be running on another
/// CPU when its hook is taken away; nothing else may be missing.
#[test]
fn stop_under_load_loses_only_what_is_in_flight() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let done = Arc::new(AtomicBool::new(false));
    let producers: Vec<_> = (0..3)
        .map(|_| {
            let done = Arc::clone(&done);
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    hit(1);
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let hits = Hits::default();
        let manager = getpid_builder(hits.handler()).build().unwrap();
        manager.init(&attach_object()).unwrap();
        manager.start().unwrap();
        let counters = Counters::of(&manager);
        wait_until("many hits", || hits.len() > 1000);
        manager.stop().unwrap();
        let accounted = hits.len() as u64 + counters.get("lost_count");
        // Once the kernel has waited for the program to go, all are counted.
        drop(manager);
        thread::sleep(Duration::from_millis(20));
        let count = counters.get("enter_count");
        let missing = count.checked_sub(accounted);
        let cpus = thread::available_parallelism().unwrap().get() as u64;
        assert!(
            missing.is_some_and(|missing| missing <= cpus),
            "{accounted} of {count}"
        );
    }
    done.store(true, Ordering::Relaxed);
    for producer in producers {
        producer.join().unwrap();
    }
}
