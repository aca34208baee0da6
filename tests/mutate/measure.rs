//! Time and memory that one input takes.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::allocated::peak;

/// Time for one input at most. The slowest takes about 20 ms in a debug build;
/// the rest is for machines with something else to do.
const TIME: Duration = Duration::from_millis(500);

/// Wall time after which an input is taken to hang.
const HANG: Duration = Duration::from_secs(30);

/// Memory for one input at most, in multiples of its size, and beyond that.
const TIMES: usize = 32;
const BEYOND: usize = 1 << 20;

/// Inputs being worked on, for the watchdog.
static UNDER_WAY: Mutex<Vec<(thread::ThreadId, Instant, String)>> = Mutex::new(Vec::new());

/// Keeps this thread's input on the list.
struct UnderWay;

impl UnderWay {
    fn enter(what: &str) -> UnderWay {
        let mut list = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        list.push((thread::current().id(), Instant::now(), what.to_owned()));
        UnderWay
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let me = thread::current().id();
        let mut list = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|(thread, ..)| *thread != me);
    }
}

/// Ends the process when an input takes for ever: the thread it occupies
/// cannot be ended.
fn watch() {
    static WATCHDOG: Once = Once::new();
    WATCHDOG.call_once(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(HANG / 10);
                let under_way = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
                for (_, since, what) in &*under_way {
                    if since.elapsed() > HANG {
                        // Past the test runner, which would keep it to itself.
                        let _ = writeln!(std::io::stderr(), "hangs: {what}");
                        std::process::abort();
                    }
                }
            }
        });
    });
}

/// Runs `work` on an input of `size` bytes and fails, naming the input, if it
/// panics, or takes more time or memory than it may.
pub(crate) fn bounded(file: &str, seed: u64, damage: &str, size: usize, mut work: impl FnMut()) {
    watch();
    let what = format!("{file}, seed {seed}: {damage}");
    let _under_way = UnderWay::enter(&what);
    let limit = size * TIMES + BEYOND;
    // Another process may have had the processor: the best of three counts.
    for attempt in 1.. {
        let start = Instant::now();
        let (result, peak) = peak(|| catch_unwind(AssertUnwindSafe(&mut work)));
        let took = start.elapsed();
        if let Err(panic) = result {
            let _ = writeln!(std::io::stderr(), "panics: {what}");
            resume_unwind(panic);
        }
        assert!(peak <= limit, "{what}: {peak} bytes for an input of {size}");
        if took <= TIME {
            break;
        }
        assert!(attempt < 3, "{what}: takes {took:?}");
    }
}

#[test]
fn memory_is_measured() {
    let (kept, bytes) = peak(|| {
        drop(vec![0_u8; 100_000]);
        vec![0_u8; 1_000]
    });
    assert!((100_000..101_000).contains(&bytes), "{bytes}");
    assert_eq!(peak(|| drop(kept)).1, 0);
}

#[test]
#[should_panic(expected = "none, seed 0: nothing: 1048577 bytes for an input of 0")]
fn too_much_memory_is_found() {
    bounded("none", 0, "nothing", 0, || drop(vec![0_u8; BEYOND + 1]));
}

#[test]
#[should_panic(expected = "none, seed 0: nothing: takes ")]
fn too_much_time_is_found() {
    bounded("none", 0, "nothing", 0, || thread::sleep(TIME));
}
