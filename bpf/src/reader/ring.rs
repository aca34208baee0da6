//! Reader of a BPF ring buffer.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ebpf_manager_sys::abi::bpf::MapType;
use ebpf_manager_sys::ringbuf::RingBuffer;

use super::{Buffer, OwnedRecord, Record, Waiter, check_type, corrupt, kernel};
use crate::error::ReaderError;
use crate::map::Map;

/// The reading side of a `BPF_MAP_TYPE_RINGBUF` map.
///
/// Records are lent in place and released when the handler returns, even if
/// it panics. The kernel does not count records that found no room; programs
/// learn it from `bpf_ringbuf_reserve` and count for themselves.
///
/// Requires at least Linux 5.8.
#[derive(Debug)]
pub struct RingBufferReader {
    ring: RingBuffer,
    map: Map,
    peak: usize,
}

impl RingBufferReader {
    /// Maps the ring buffer. The reader keeps a reference of its own to the
    /// map. A ring has one reader at a time.
    ///
    /// # Errors
    /// [`ReaderError::WrongMap`]; [`ReaderError::Kernel`], with `EBUSY` if the
    /// ring has a reader in this process.
    pub fn new(map: &Map) -> Result<RingBufferReader, ReaderError> {
        check_type(map, MapType::RINGBUF)?;
        let ring = RingBuffer::new(map.as_fd()).map_err(|err| kernel(map.name(), err))?;
        let map = map.clone();
        Ok(RingBufferReader { ring, map, peak: 0 })
    }

    /// Name of the map.
    pub fn name(&self) -> &str {
        self.map.name()
    }

    /// Bytes of the ring.
    pub fn size_bytes(&self) -> usize {
        self.ring.size()
    }

    /// Bytes waiting to be read, headers included.
    pub fn available_bytes(&self) -> usize {
        self.ring.available()
    }

    /// Most bytes that were waiting when the reader came to read, headers
    /// included, since the reader was made or this was last asked with
    /// `reset`.
    pub fn peak_bytes(&mut self, reset: bool) -> usize {
        if reset {
            std::mem::take(&mut self.peak)
        } else {
            self.peak
        }
    }

    /// Hands the records that are waiting to `each`, in order and in place,
    /// until none is left, `max` were handed over, or `each` breaks. Returns
    /// how many were. Never waits, and makes no system call.
    ///
    /// The record that `each` breaks or panics at counts as read.
    ///
    /// # Errors
    /// [`ReaderError::Kernel`] with `EBADMSG` if the ring holds something that
    /// is no record; it cannot be read any further then.
    #[inline]
    pub fn consume(
        &mut self,
        max: usize,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<usize, ReaderError> {
        self.peak = self.peak.max(self.ring.available());
        self.ring
            .drain(max, &mut each)
            .map_err(|err| corrupt(self.map.name(), &err))
    }

    /// Waits until records are there or `timeout` (`None`: for ever) is over,
    /// and [consumes](Self::consume) them. Zero if it timed out.
    ///
    /// # Errors
    /// As [`consume`](Self::consume); `EMFILE`.
    pub fn poll(
        &mut self,
        timeout: Option<Duration>,
        max: usize,
        each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<usize, ReaderError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        // Made before the first look, so that nothing between the two is
        // missed; and edge-triggered, see `Waiter::add`.
        let mut waiter = None;
        loop {
            let n = self.consume(max, &mut *each)?;
            if n != 0 || max == 0 {
                return Ok(n);
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(0);
            }
            let Some(waiter) = &mut waiter else {
                let made = Waiter::new().map_err(|err| kernel(self.map.name(), err))?;
                made.add(self, 0)?;
                waiter = Some(made);
                continue;
            };
            waiter
                .wait(left, &mut |_| ())
                .map_err(|err| kernel(self.map.name(), err))?;
        }
    }

    /// Copies of the records as they come, each waited for until `timeout`
    /// (`None`: for ever) is over, which ends the iteration. It can be begun
    /// again.
    ///
    /// Copying allocates and each wait sets up anew: this is for convenience.
    pub fn records(
        &mut self,
        timeout: Option<Duration>,
    ) -> impl Iterator<Item = Result<OwnedRecord, ReaderError>> {
        let mut failed = false;
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let mut found = None;
            let n = self.poll(timeout, 1, &mut |data| {
                found = Some(Record::new(data).to_owned());
                ControlFlow::Continue(())
            });
            failed = n.is_err();
            n.map_or_else(|err| Some(Err(err)), |_| found.map(Ok))
        })
    }
}

impl AsFd for RingBufferReader {
    /// The descriptor to wait on for readability.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Buffer for RingBufferReader {
    fn name(&self) -> &str {
        self.map.name()
    }
}
