//! Reader of a BPF ring buffer.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use ebpf_manager_sys::abi::bpf::MapType;
use ebpf_manager_sys::ringbuf::{CorruptRing, RingBuffer};
use ebpf_manager_sys::{Errno, SysError};

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
}

impl RingBufferReader {
    /// Maps the ring buffer. The reader keeps a reference of its own to the
    /// map. A ring has one reader at a time.
    ///
    /// # Errors
    /// [`ReaderError::WrongMap`]; [`ReaderError::Kernel`], with `EBUSY` if the
    /// ring has a reader in this process.
    pub fn new(map: &Map) -> Result<RingBufferReader, ReaderError> {
        if map.map_type() != MapType::RINGBUF {
            return Err(ReaderError::WrongMap {
                map: map.name().to_owned(),
                expected: MapType::RINGBUF,
                found: map.map_type(),
            });
        }
        let fail = |source| ReaderError::Kernel {
            map: map.name().to_owned(),
            source,
        };
        let ring = RingBuffer::new(map.as_fd()).map_err(fail)?;
        let map = map.clone();
        Ok(RingBufferReader { ring, map })
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

    /// Hands the records that are waiting to `each`, in order and in place,
    /// until none is left, `max` were handed over, or `each` breaks. Returns
    /// how many were. Never waits.
    ///
    /// # Errors
    /// [`ReaderError::Kernel`] with `EBADMSG` if the ring holds something that
    /// is no record; it cannot be read any further then.
    pub fn consume(
        &mut self,
        max: usize,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<usize, ReaderError> {
        self.ring
            .drain(max, &mut each)
            .map_err(|err| corrupt(self.map.name(), &err))
    }
}

#[cold]
fn corrupt(map: &str, err: &CorruptRing) -> ReaderError {
    ReaderError::Kernel {
        map: map.to_owned(),
        source: SysError::new("read the ring", Errno::EBADMSG).with_detail(err.to_string()),
    }
}

impl AsFd for RingBufferReader {
    /// The descriptor to wait on for readability.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}
