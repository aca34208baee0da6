//! Writing side of `BPF_MAP_TYPE_USER_RINGBUF`: user space puts in, programs
//! take out with `bpf_user_ringbuf_drain()`.
//!
//! The roles are swapped, the layout is not: the kernel moves the consumer
//! position (mapped read-only here), we the producer position. The kernel looks
//! at no byte beyond the producer position, so a sample needs no busy bit as
//! long as there is one writer: header and payload are written first, and the
//! store-release of the producer position makes them visible together. It
//! pairs with the load-acquire in `__bpf_user_ringbuf_peek()`, see
//! `kernel/bpf/ringbuf.c` of Linux 6.12. A sample given up leaves no trace.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::claim::claim;
use super::{CorruptRing, footprint, ring_len};
use crate::Result;
use crate::abi::bpf::MapType;
use crate::abi::perf::ringbuf::HEADER_SIZE;
use crate::claim::Claim;
use crate::errno::{Errno, SysError};
use crate::mmap::{Access, Mapping};
use crate::proc::page_size;

/// Longest sample the kernel takes: a dynptr's size has 24 bits.
const MAX_SAMPLE: usize = (1 << 24) - 1;

/// Why [`UserRingBuffer::reserve`] found no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReserveError {
    /// Not now: wait for [`WRITABLE`](crate::poll::Interest::WRITABLE) on the
    /// map's descriptor, or until a program has drained the ring.
    #[error("no room in the user ring buffer")]
    Full,
    /// Never: the sample is longer than the ring or than a program can take.
    #[error("sample is longer than the {max} bytes the user ring buffer takes")]
    TooLong {
        /// Longest sample in bytes.
        max: usize,
    },
    /// The kernel's position contradicts ours.
    #[error(transparent)]
    Corrupt(#[from] CorruptRing),
}

/// The writer of a `BPF_MAP_TYPE_USER_RINGBUF` map.
///
/// Dropping it unmaps the ring; what was submitted stays for programs.
///
/// Requires at least Linux 6.1.
pub struct UserRingBuffer {
    /// Consumer position, in a page of its own, read-only.
    consumer: Mapping,
    /// Producer position in the first page, then the data twice.
    ring: Mapping,
    data_offset: usize,
    mask: usize,
    /// Where to write next; a multiple of 8.
    position: usize,
    _claim: Claim,
}

impl UserRingBuffer {
    /// Maps the user ring buffer behind the descriptor `map`.
    ///
    /// # Errors
    /// As [`RingBuffer::new`](super::RingBuffer::new): it has one writer.
    pub fn new(map: BorrowedFd<'_>) -> Result<UserRingBuffer> {
        let (claim, size) = claim(map, MapType::USER_RINGBUF)?;
        UserRingBuffer::map(map, size, claim)
    }

    pub(super) fn map(fd: BorrowedFd<'_>, size: usize, claim: Claim) -> Result<UserRingBuffer> {
        let page = page_size();
        let consumer = Mapping::new(fd, 0, page, Access::Read)?;
        let ring = Mapping::new(fd, page as u64, ring_len(page, size)?, Access::ReadWrite)?;
        let mut ring = UserRingBuffer {
            consumer,
            ring,
            data_offset: page,
            mask: size - 1,
            position: 0,
            _claim: claim,
        };
        ring.position = ring.producer_word().load(Ordering::Acquire);
        if !ring.position.is_multiple_of(8) {
            return Err(SysError::new("mmap", Errno::EINVAL)
                .with_detail("the ring buffer's producer position is not a multiple of 8"));
        }
        Ok(ring)
    }

    /// Bytes of the ring.
    pub fn size(&self) -> usize {
        self.mask + 1
    }

    /// Longest sample in bytes.
    pub fn max_len(&self) -> usize {
        (self.size() - HEADER_SIZE).min(MAX_SAMPLE)
    }

    /// Lends room for a sample of `len` bytes, holding what earlier samples
    /// left there. [`submit`](Reservation::submit) puts it in; dropping the
    /// reservation gives it up.
    ///
    /// # Errors
    /// See [`ReserveError`].
    pub fn reserve(&mut self, len: usize) -> Result<Reservation<'_>, ReserveError> {
        let max = self.max_len();
        if len > max {
            return Err(ReserveError::TooLong { max });
        }
        let used = self
            .position
            .wrapping_sub(self.consumer_word().load(Ordering::Acquire));
        let Some(free) = self.size().checked_sub(used) else {
            return Err(CorruptRing {
                position: self.position as u64,
                header: 0,
                available: used as u64,
            }
            .into());
        };
        if footprint(len) > free {
            return Err(ReserveError::Full);
        }
        Ok(Reservation { ring: self, len })
    }

    /// Puts in a copy of `sample`.
    ///
    /// # Errors
    /// See [`ReserveError`].
    pub fn push(&mut self, sample: &[u8]) -> Result<(), ReserveError> {
        let mut room = self.reserve(sample.len())?;
        room.copy_from_slice(sample);
        room.submit();
        Ok(())
    }

    fn consumer_word(&self) -> &AtomicUsize {
        let word = self.consumer.ptr_at(0);
        // SAFETY: the mapping begins at a page, is a page long and lives as
        // long as `self`. The word is only accessed as an atomic, and not
        // stored to: the mapping is read-only.
        unsafe { AtomicUsize::from_ptr(word) }
    }

    fn producer_word(&self) -> &AtomicUsize {
        let word = self.ring.ptr_at(0);
        // SAFETY: as in `consumer_word`; this mapping is writable.
        unsafe { AtomicUsize::from_ptr(word) }
    }

    /// Where the header at `position` lies in `ring`.
    fn header_offset(&self) -> usize {
        self.data_offset + (self.position & self.mask)
    }

    /// Start of the payload of the sample at `position`.
    fn payload_ptr(&self) -> *mut u8 {
        self.ring.ptr_at(self.header_offset() + HEADER_SIZE)
    }

    /// Publishes `len` bytes of payload at `position`.
    fn submit(&mut self, len: usize) {
        // Length without flags, then `pg_off`, which the kernel ignores here.
        let header = self.ring.ptr_at(self.header_offset());
        // SAFETY: the masked position is below the size of the data and a
        // multiple of 8, as is the data's offset, so the word is aligned and
        // inside the mapping, which lives as long as `self`.
        let header = unsafe { AtomicU32::from_ptr(header) };
        header.store(len as u32, Ordering::Relaxed);
        self.position = self.position.wrapping_add(footprint(len));
        self.producer_word().store(self.position, Ordering::Release);
    }
}

impl fmt::Debug for UserRingBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserRingBuffer")
            .field("size", &self.size())
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// Room for one sample, lent by [`UserRingBuffer::reserve`].
pub struct Reservation<'r> {
    ring: &'r mut UserRingBuffer,
    len: usize,
}

impl Reservation<'_> {
    /// Makes the sample visible to programs.
    ///
    /// Nothing runs by this: a program sees it when it next drains the ring.
    pub fn submit(self) {
        self.ring.submit(self.len);
    }
}

impl Deref for Reservation<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.ring.payload_ptr();
        // SAFETY: header and payload fit into the free part of the ring
        // (`reserve` checked it), and the data is mapped twice, so the range
        // is mapped wherever it starts. The kernel reads nothing beyond the
        // producer position and never writes to the data, and this writer is
        // the only one (`Claim`) and exclusively borrowed.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl DerefMut for Reservation<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.ring.payload_ptr();
        // SAFETY: as in `deref`; `ring` is mapped writable, and its second
        // mapping of the same data is reached through no other reference,
        // because a reservation never takes more than the whole ring.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl fmt::Debug for Reservation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
