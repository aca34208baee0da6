//! The clock behind the timestamps of BPF programs.

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of `bpf_ktime_get_ns` and of
/// the start times of tasks. It stands still while the machine sleeps.
///
/// The standard library's `Instant` reads the same clock but does not tell
/// the number.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a timespec that the call may write. The clock exists
    // on every Linux, so the call cannot fail; if it did, `now` stays zero.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn runs_along_with_instant() {
        let (from, start) = (monotonic_ns(), Instant::now());
        std::thread::sleep(Duration::from_millis(20));
        let elapsed = start.elapsed();
        let until = monotonic_ns();
        assert_ne!(from, 0);
        assert!(until - from >= elapsed.as_nanos() as u64);
    }
}
