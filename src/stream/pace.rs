//! How a reader waits: woken by each record when few come, by the clock when
//! many do.
//!
//! A program that writes a record to a reader that has caught up wakes it,
//! which costs the program an interrupt to itself and, with them, several
//! times what writing takes. A reader that has just been busy therefore naps:
//! records that come meanwhile wake nobody and are found together. A nap is as
//! long as the stream's latency allows and as the buffer has room for.

use std::time::Duration;

/// So many records at once are worth a nap.
const MANY: u64 = 16;

/// Shorter naps cost more than they save.
const SHORTEST: Duration = Duration::from_micros(20);

/// So many naps in vain end the napping, so that a pause between two bursts
/// does not.
const PATIENCE: u32 = 3;

/// Bytes that programs may be expected to write in a nanosecond.
const BYTES_PER_NS: u64 = 2;

#[derive(Debug)]
pub(super) struct Pace {
    longest: Duration,
    nap: Duration,
    /// Naps in a row, and how many of the last ones were in vain.
    naps: u32,
    vain: u32,
}

impl Pace {
    /// For records that may wait for `latency`, in buffers of `size` bytes at
    /// least.
    pub(super) fn new(latency: Duration, size: usize) -> Pace {
        // Half full, should they come as fast as expected.
        let filling = Duration::from_nanos(size as u64 / 2 / BYTES_PER_NS);
        Pace {
            longest: latency.min(filling),
            nap: SHORTEST,
            naps: 0,
            vain: 0,
        }
    }

    /// What to do after so many records, of which as much as `filled`
    /// 16ths of a buffer had been waiting: nap, or `None`: wait to be woken.
    pub(super) fn next(&mut self, records: u64, filled: usize) -> Option<Duration> {
        if self.longest < SHORTEST {
            return None;
        }
        if records >= MANY {
            self.vain = 0;
        } else {
            self.vain += 1;
            if self.naps == 0 || self.vain > PATIENCE {
                (self.naps, self.nap) = (0, SHORTEST);
                return None;
            }
        }
        if filled > 8 {
            self.nap /= 2;
        } else if filled <= 4 && self.naps != 0 {
            self.nap *= 2;
        }
        self.nap = self.nap.min(self.longest);
        if self.nap < SHORTEST {
            (self.naps, self.nap) = (0, SHORTEST);
            return None;
        }
        self.naps = self.naps.saturating_add(1);
        Some(self.nap)
    }

    /// True after some naps in a row: it pays to ask not to be woken.
    pub(super) fn is_steady(&self) -> bool {
        self.naps > 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATENCY: Duration = Duration::from_micros(200);

    #[test]
    fn few_records_wait_to_be_woken() {
        let mut pace = Pace::new(LATENCY, 1 << 20);
        for records in [0, 1, 15, 3] {
            assert_eq!(pace.next(records, 0), None);
        }
    }

    #[test]
    fn naps_grow_to_the_latency_and_end_when_nothing_comes() {
        let mut pace = Pace::new(LATENCY, 1 << 20);
        let mut naps = Vec::new();
        for _ in 0..6 {
            naps.extend(pace.next(100, 1).map(|nap| nap.as_micros()));
        }
        assert_eq!(naps, [20, 40, 80, 160, 200, 200]);
        assert!(pace.is_steady());
        let in_vain: Vec<_> = (0..5).map(|_| pace.next(2, 0).is_some()).collect();
        assert_eq!(in_vain, [true, true, true, false, false]);
        assert!(!pace.is_steady());
    }

    #[test]
    fn naps_shrink_when_the_buffer_fills() {
        let mut pace = Pace::new(LATENCY, 1 << 20);
        for _ in 0..5 {
            pace.next(100, 0);
        }
        let mut nap = || pace.next(100, 9).map(|nap| nap.as_micros());
        let naps = [nap(), nap(), nap(), nap()];
        assert_eq!(naps, [Some(100), Some(50), Some(25), None]);
    }

    #[test]
    fn small_buffers_and_no_latency_mean_no_naps() {
        assert_eq!(Pace::new(LATENCY, 64 * 1024).next(1000, 0), None);
        assert_eq!(Pace::new(Duration::ZERO, 1 << 20).next(1000, 0), None);
        let small = Pace::new(LATENCY, 256 * 1024).next(1000, 0);
        assert_eq!(small, Some(SHORTEST));
    }
}
