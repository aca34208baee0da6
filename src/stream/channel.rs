//! Sinks that send copies through a bounded channel.

use std::ops::{ControlFlow, Deref};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Select, Sender, TrySendError, bounded};
use ebpf_manager_bpf::{OwnedRecord, Record};

use super::thread::Interrupts;
use super::{Counters, Out, Sink};

/// What a reader does with a record that finds the channel full.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WhenFull {
    /// Waits for room. The buffer fills meanwhile, and programs lose records
    /// when it is full; other streams of the same thread wait, too, see
    /// [`Stream::own_thread`](super::Stream::own_thread). Stopping does not
    /// wait: what finds the channel full then is dropped and counted.
    Block,
    /// Drops it and counts it in [`StreamStats::dropped`].
    ///
    /// [`StreamStats::dropped`]: super::StreamStats::dropped
    Drop,
}

/// A record out of a channel. Dropping it gives its memory back to the reader,
/// so that sending allocates nothing once the channel has been full.
#[derive(Debug)]
pub struct PooledRecord {
    record: OwnedRecord,
    pool: Sender<Vec<u8>>,
}

impl PooledRecord {
    /// The record, with its memory.
    pub fn into_owned(mut self) -> OwnedRecord {
        std::mem::take(&mut self.record)
    }
}

impl Deref for PooledRecord {
    type Target = OwnedRecord;

    fn deref(&self) -> &OwnedRecord {
        &self.record
    }
}

impl Drop for PooledRecord {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.record.data);
        if data.capacity() != 0 {
            // Freed if the pool is full or gone.
            let _ = self.pool.try_send(data);
        }
    }
}

struct Channel {
    to: Sender<PooledRecord>,
    when_full: WhenFull,
    pool: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    interrupt: (Sender<()>, Receiver<()>),
    /// Found the channel full; its turn is before the next one.
    pending: Option<PooledRecord>,
    hurried: bool,
    counters: Arc<Counters>,
}

impl Sink {
    /// A channel of `capacity` records (at least one), and its receiving end.
    /// When every receiver is gone, records are dropped and counted.
    pub fn channel(capacity: usize, when_full: WhenFull) -> (Sink, Receiver<PooledRecord>) {
        let capacity = capacity.max(1);
        let (to, from) = bounded(capacity);
        let channel = Channel {
            to,
            when_full,
            pool: bounded(capacity),
            interrupt: bounded(1),
            pending: None,
            hurried: false,
            counters: Arc::default(),
        };
        let out = Box::new(channel);
        (Sink { out }, from)
    }
}

/// Waits until `to` may have room (false) or for an interrupt (true).
fn wait_for_room(to: &Sender<PooledRecord>, interrupt: &Receiver<()>) -> bool {
    let mut either = Select::new();
    either.send(to);
    let interrupted = either.recv(interrupt);
    either.ready() == interrupted && interrupt.try_recv().is_ok()
}

impl Channel {
    fn drop_one(&self) {
        Counters::add(&self.counters.dropped, 1);
    }
}

impl Out for Channel {
    fn record(&mut self, record: &Record<'_>) -> ControlFlow<()> {
        let mut data = self.pool.1.try_recv().unwrap_or_default();
        data.clear();
        data.extend_from_slice(record.data);
        let mut owned = OwnedRecord::default();
        owned.data = data;
        (owned.cpu, owned.time_ns) = (record.cpu, record.time_ns);
        owned.lost_before = record.lost_before;
        let record = PooledRecord {
            record: owned,
            pool: self.pool.0.clone(),
        };
        match self.to.try_send(record) {
            Ok(()) => ControlFlow::Continue(()),
            Err(TrySendError::Full(record))
                if self.when_full == WhenFull::Block && !self.hurried =>
            {
                self.pending = Some(record);
                ControlFlow::Break(())
            }
            Err(_) => {
                self.drop_one();
                ControlFlow::Continue(())
            }
        }
    }

    fn ready(&mut self) -> bool {
        while let Some(record) = self.pending.take() {
            match self.to.try_send(record) {
                Ok(()) => {}
                Err(TrySendError::Full(record)) if !self.hurried => {
                    self.pending = Some(record);
                    if wait_for_room(&self.to, &self.interrupt.1) {
                        return false;
                    }
                }
                Err(_) => self.drop_one(),
            }
        }
        true
    }

    fn begin(&mut self, counters: &Arc<Counters>, interrupts: &Interrupts) {
        self.hurried = false;
        self.counters = Arc::clone(counters);
        let interrupt = self.interrupt.0.clone();
        interrupts.lock().push(Box::new(move || {
            let _ = interrupt.try_send(());
        }));
    }

    fn hurry(&mut self) {
        self.hurried = true;
    }
}
