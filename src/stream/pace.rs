//! How a reader waits: woken by each record when few come, by the clock when
//! many do.
//!
//! A program that writes a record to a reader that has caught up wakes it,
//! which costs the program an interrupt to itself and, with that, several
//! times what writing takes. A reader that has just been busy therefore naps:
//! records that come meanwhile wake nobody and are found together. A nap is as
//! long as the stream's latency allows and as the buffer has room for.

use std::time::Duration;

/// So many records within the latency are worth a nap.
const MANY: u64 = 16;

/// Wake-ups between two looks at the clock.
const WAKES: u32 = 8;

/// Shorter naps cost more than they save.
const SHORTEST: Duration = Duration::from_micros(20);

/// So many naps in vain end the napping, so that a pause between two bursts
/// does not.
const PATIENCE: u32 = 3;

/// Bytes that programs may be expected to write in a nanosecond.
const BYTES_PER_NS: u64 = 2;

/// Waits after a nap that was too long for the buffer: at first, and at most.
const BACK_OFF: (u32, u32) = (64, 1 << 16);

#[derive(Debug)]
pub(super) struct Pace {
    longest: Duration,
    nap: Duration,
    /// Naps in a row, and how many of the last ones were in vain.
    naps: u32,
    vain: u32,
    /// Wake-ups since the clock was read, and what it said.
    wakes: u32,
    since_ns: u64,
    /// Waits before the next nap, and how many there will be the next time.
    back_off: u32,
    next_back_off: u32,
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
            wakes: 0,
            since_ns: 0,
            back_off: 0,
            next_back_off: BACK_OFF.0,
        }
    }

    /// What to do after so many records, of which as much as `filled`
    /// 16ths of a buffer had been waiting: nap, or `None`: wait to be woken.
    /// `now_ns` is asked for the time now and then.
    pub(super) fn next(
        &mut self,
        records: u64,
        filled: usize,
        now_ns: &dyn Fn() -> u64,
    ) -> Option<Duration> {
        if self.longest < SHORTEST {
            return None;
        }
        if self.back_off != 0 {
            self.back_off -= 1;
            return None;
        }
        if self.naps == 0 {
            if !self.is_busy(records, now_ns) {
                return None;
            }
        } else if records.saturating_mul(self.longest.as_nanos() as u64)
            >= MANY * self.nap.as_nanos() as u64
        {
            self.vain = 0;
        } else {
            self.vain += 1;
            if self.vain > PATIENCE {
                self.restart();
                return None;
            }
        }
        if filled > 6 {
            self.nap /= 2;
        } else if filled <= 2 && self.naps != 0 {
            self.nap *= 2;
            self.next_back_off = BACK_OFF.0;
        }
        self.nap = self.nap.min(self.longest);
        if self.nap < SHORTEST {
            self.back_off = self.next_back_off;
            self.next_back_off = (self.next_back_off * 2).min(BACK_OFF.1);
            self.restart();
            return None;
        }
        self.naps = self.naps.saturating_add(1);
        Some(self.nap)
    }

    /// Whether a nap would have been worth it: many records at once, or one by
    /// one in short order.
    fn is_busy(&mut self, records: u64, now_ns: &dyn Fn() -> u64) -> bool {
        if records >= MANY {
            return true;
        }
        self.wakes += 1;
        if self.wakes < WAKES {
            return false;
        }
        let (since, now) = (self.since_ns, now_ns());
        (self.wakes, self.since_ns) = (0, now);
        let share = self.longest.as_nanos() as u64 * u64::from(WAKES) / MANY;
        now.saturating_sub(since) < share
    }

    fn restart(&mut self) {
        (self.naps, self.vain, self.nap) = (0, 0, SHORTEST);
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

    fn never() -> u64 {
        panic!("asks for the time");
    }

    fn micros(nap: Option<Duration>) -> u64 {
        nap.map_or(0, |nap| nap.as_micros() as u64)
    }

    #[test]
    fn few_records_wait_to_be_woken() {
        let mut pace = Pace::new(LATENCY, 1 << 20);
        let time = std::cell::Cell::new(0);
        // One each 30 microseconds.
        for _ in 0..1000 {
            time.set(time.get() + 30_000);
            assert_eq!(pace.next(1, 0, &|| time.get()), None);
        }
    }

    #[test]
    fn wakeups_in_short_order_lead_to_naps() {
        let mut pace = Pace::new(LATENCY, 1 << 20);
        let time = std::cell::Cell::new(1 << 40);
        let mut waits = 0;
        while pace.next(1, 0, &|| time.get()).is_none() {
            time.set(time.get() + 7_000);
            waits += 1;
            assert!(waits < 20);
        }
        // Three each 20 microseconds are 30 within the latency.
        assert_eq!(micros(pace.next(3, 0, &never)), 40);
    }

    #[test]
    fn naps_grow_to_the_latency_and_end_when_nothing_comes() {
        let mut pace = Pace::new(LATENCY, 1 << 20);
        let naps: Vec<_> = (0..6).map(|_| micros(pace.next(100, 1, &never))).collect();
        assert_eq!(naps, [20, 40, 80, 160, 200, 200]);
        assert!(pace.is_steady());
        let in_vain: Vec<_> = (0..5)
            .map(|_| micros(pace.next(2, 0, &|| 1 << 50)))
            .collect();
        assert_eq!(in_vain, [200, 200, 200, 0, 0]);
        assert!(!pace.is_steady());
    }

    #[test]
    fn naps_shrink_when_the_buffer_fills_and_stay_away_for_longer() {
        let mut pace = Pace::new(LATENCY, 1 << 20);
        for _ in 0..5 {
            pace.next(100, 0, &never);
        }
        let naps: Vec<_> = (0..4).map(|_| micros(pace.next(100, 7, &never))).collect();
        assert_eq!(naps, [100, 50, 25, 0]);
        for waits in [64, 128] {
            for _ in 0..waits {
                assert_eq!(pace.next(100, 0, &never), None);
            }
            assert_eq!(micros(pace.next(100, 3, &never)), 20);
            assert_eq!(pace.next(100, 7, &never), None);
        }
    }

    #[test]
    fn small_buffers_and_no_latency_mean_no_naps() {
        assert_eq!(Pace::new(LATENCY, 64 * 1024).next(1000, 0, &never), None);
        assert_eq!(
            Pace::new(Duration::ZERO, 1 << 20).next(1000, 0, &never),
            None
        );
        let small = Pace::new(LATENCY, 256 * 1024).next(1000, 0, &never);
        assert_eq!(small, Some(SHORTEST));
    }
}
