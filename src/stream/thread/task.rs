//! A buffer that a thread reads, a turn at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::open::Seat;
use crate::error::ManagerError;
use crate::stream::source::{Batch, Source};
use crate::stream::{Counters, Stream};

/// Records of one stream before the next has its turn.
const TURN: usize = 4096;

/// A buffer that a thread reads.
pub(super) struct Task {
    pub(super) stream: Arc<Stream>,
    pub(super) source: Box<dyn Source>,
    /// Of a thread per CPU.
    pub(super) cpu: Option<u32>,
    /// There may be something.
    pub(super) ready: bool,
    pub(super) paused: bool,
    /// Paused, and not to be read either.
    pub(super) unread: bool,
    /// Bytes to hand over before the latest request is fulfilled, at most.
    pub(super) left: usize,
    // Last: the buffer is closed before the stream can be started again.
    pub(super) seat: Seat,
}

/// What a turn came to.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) records: u64,
    /// Sixteenths of the buffer that were full.
    pub(super) filled: usize,
    pub(super) more: bool,
}

impl Task {
    /// Fulfils wishes; `everything` ends.
    pub(super) fn apply(&mut self, everything: bool) -> Result<(), ManagerError> {
        let wish = &self.stream.wish;
        let paused = wish.paused.load(Ordering::Relaxed);
        if (everything || wish.stopped.load(Ordering::Relaxed))
            && let Some(out) = &mut self.seat.out
        {
            out.hurry();
        }
        if paused != self.paused {
            self.paused = paused;
            self.unread = !self.source.pause(paused)? && paused;
        }
        self.ready = true;
        self.left = self.source.waiting().1;
        Ok(())
    }

    /// Looks for what is not a record. Where that fails, the source tries again
    /// by itself, and what it has goes on being read.
    pub(super) fn notice(&mut self) {
        if let Err(err) = self.source.notice() {
            self.stream.report(&err.into());
        }
    }

    /// Hands over a batch.
    pub(super) fn turn(&mut self) -> Result<Turn, ManagerError> {
        let mut turn = Turn::default();
        let Some(out) = self.seat.out.as_deref_mut().filter(|_| !self.unread) else {
            (self.left, self.ready) = (0, false);
            return Ok(turn);
        };
        let stream = &*self.stream;
        let counters = &*stream.counters;
        let waiting = self.source.waiting().0;
        turn.filled = waiting.saturating_mul(16) / self.source.size().max(1);
        counters.peak.fetch_max(waiting, Ordering::Relaxed);
        let mut batch = Batch {
            out,
            lost: stream.lost.as_ref(),
            counters,
            records: 0,
            bytes: 0,
        };
        let source = &mut self.source;
        // Others may be waiting for what is left: not much beyond it.
        let max = match self.left {
            0 => TURN,
            left => (left / 64).clamp(64, TURN),
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            if !batch.out.ready() {
                return Ok(true);
            }
            source.drain(max, &mut batch)
        }));
        let (records, bytes) = (batch.records, batch.bytes);
        Counters::add(&counters.records, records);
        Counters::add(&counters.bytes, bytes);
        turn.records = records;
        turn.more = result.map_err(|panic| panicked(stream.map(), &*panic))??;
        self.ready = turn.more;
        let done = if turn.more {
            records as usize
        } else {
            self.left
        };
        self.left = self.left.saturating_sub(done);
        Ok(turn)
    }

    /// Tells the last of its losses.
    pub(super) fn finish(&mut self) -> Result<(), ManagerError> {
        let Some(out) = &mut self.seat.out else {
            return Ok(());
        };
        let (stream, source) = (&self.stream, &mut self.source);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let batch = Batch {
                out: &mut **out,
                lost: stream.lost.as_ref(),
                counters: &stream.counters,
                records: 0,
                bytes: 0,
            };
            source.untold(&mut |cpu, count| batch.lose(cpu, count));
            batch.out.ready();
        }));
        result.map_err(|panic| panicked(stream.map(), &*panic))
    }
}

pub(super) fn panicked(map: &str, panic: &(dyn std::any::Any + Send)) -> ManagerError {
    let message = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    ManagerError::HandlerPanicked {
        map: map.to_owned(),
        message: message.unwrap_or_default(),
    }
}
