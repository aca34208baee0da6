//! Opened buffers, alike to the thread that drains them.

use std::ops::ControlFlow;

use ebpf_manager_bpf::{Buffer, PerfBufferReader, ReaderError, Record, RingBufferReader, Wakeup};

use super::{Counters, LostHandler, Out};

/// Where a batch goes, and what it came to.
pub(super) struct Batch<'b> {
    pub(super) out: &'b mut dyn Out,
    pub(super) lost: Option<&'b LostHandler>,
    pub(super) counters: &'b Counters,
    pub(super) records: u64,
    pub(super) bytes: u64,
}

impl Batch<'_> {
    #[inline]
    fn take(&mut self, record: &Record<'_>) -> ControlFlow<()> {
        self.records += 1;
        self.bytes += record.data.len() as u64;
        self.out.record(record)
    }

    #[cold]
    pub(super) fn lose(&self, cpu: u32, count: u64) {
        self.counters.lose(cpu, count);
        if let Some(lost) = self.lost {
            lost(cpu, count);
        }
    }
}

/// A buffer that a thread drains.
pub(crate) trait Source: Send {
    /// What to wait for.
    fn buffer(&self) -> &dyn Buffer;

    /// Hands over at most `max` records, without system calls. Returns whether
    /// there may be more.
    fn drain(&mut self, max: usize, batch: &mut Batch<'_>) -> Result<bool, ReaderError>;

    /// Bytes waiting, in the fullest ring of several; and in all of them.
    fn waiting(&self) -> (usize, usize);

    /// Bytes of the buffer, of one ring of several.
    fn size(&self) -> usize;

    /// Looks for what is not a record; after each wait.
    fn notice(&mut self) -> Result<(), ReaderError> {
        Ok(())
    }

    /// Takes the buffer away from programs, or gives it back. Returns whether
    /// what is in it may go on being read.
    fn pause(&mut self, _paused: bool) -> Result<bool, ReaderError> {
        Ok(false)
    }

    /// Asks not to be woken. True if that makes a difference, so that waiting
    /// needs a second look afterwards.
    fn quiet(&mut self, _quiet: bool) -> Result<bool, ReaderError> {
        Ok(false)
    }

    /// Calls `each` with losses per CPU that no record told of.
    fn untold(&mut self, _each: &mut dyn FnMut(u32, u64)) {}
}

impl Source for RingBufferReader {
    fn buffer(&self) -> &dyn Buffer {
        self
    }

    fn drain(&mut self, max: usize, batch: &mut Batch<'_>) -> Result<bool, ReaderError> {
        let n = self.consume(max, |data| batch.take(&Record::new(data)))?;
        Ok(n == max)
    }

    fn waiting(&self) -> (usize, usize) {
        let bytes = self.available_bytes();
        (bytes, bytes)
    }

    fn size(&self) -> usize {
        self.size_bytes()
    }
}

impl Source for PerfBufferReader {
    fn buffer(&self) -> &dyn Buffer {
        self
    }

    fn drain(&mut self, max: usize, batch: &mut Batch<'_>) -> Result<bool, ReaderError> {
        let n = PerfBufferReader::drain(self, max, |record| {
            if let (1.., Some(cpu)) = (record.lost_before, record.cpu) {
                batch.lose(cpu, record.lost_before);
            }
            batch.take(record)
        })?;
        Ok(n == max)
    }

    fn waiting(&self) -> (usize, usize) {
        (self.fullest_bytes(), self.available_bytes())
    }

    fn size(&self) -> usize {
        self.bytes_per_cpu()
    }

    fn notice(&mut self) -> Result<(), ReaderError> {
        self.notice_changes()
    }

    fn pause(&mut self, paused: bool) -> Result<bool, ReaderError> {
        if paused {
            PerfBufferReader::pause(self)?;
        } else {
            self.resume()?;
        }
        Ok(true)
    }

    fn quiet(&mut self, quiet: bool) -> Result<bool, ReaderError> {
        self.set_quiet(quiet)?;
        Ok(self.wakeup() == Wakeup::Adaptive)
    }

    fn untold(&mut self, each: &mut dyn FnMut(u32, u64)) {
        self.untold_losses(each);
    }
}
