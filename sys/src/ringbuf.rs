//! Reading side of a BPF ring buffer, and writing side of a user ring buffer.
//!
//! # Protocol
//!
//! References are to `kernel/bpf/ringbuf.c` of Linux 6.12.
//!
//! Two positions count bytes for ever and wrap with the integer: programs
//! advance the producer position, we advance the consumer position. The bytes
//! between them are records, each an 8-byte header and its payload, rounded up
//! to a multiple of 8. The kernel maps the data twice in a row, so that a
//! record which wraps around the end is still contiguous for us.
//!
//! A program reserves space under a lock (`__bpf_ringbuf_reserve`): it writes
//! the header's length with the busy bit set, then publishes the producer
//! position with a store-release. It fills in the payload and clears the busy
//! bit with an atomic exchange (`bpf_ringbuf_commit`). Hence:
//!
//! 1. We load the producer position with acquire ordering, so that the
//!    headers of everything before it are visible.
//! 2. We load a header with acquire ordering, so that a header without busy
//!    bit makes its payload visible. It is final from then on: the kernel does
//!    not write to the record again before we release it.
//! 3. We store the consumer position with release ordering after the last use
//!    of the payload. `__bpf_ringbuf_reserve` loads it with acquire ordering
//!    and reuses only what lies before it.
//!
//! # Waking up
//!
//! On commit the kernel wakes the waiters only if the consumer position stands
//! exactly at the committed record; further ahead, the reader is known to be
//! still at work. The exchange that commits is a full barrier on the kernel's
//! side. On ours, a sequentially consistent fence follows each publication of
//! the consumer position, and another look at the ring follows the fence: a
//! read ends only after a look that found nothing since the last publication.
//! Either that look sees the record, or the kernel sees the position and wakes
//! us (`model.rs` tries every interleaving). So edge-triggered waiting loses nothing. Level-triggered waiting never
//! does, but spins while the oldest record is reserved and not yet committed,
//! because the kernel then reports the map as readable.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{ControlFlow, Deref};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use crate::Result;
use crate::abi::bpf::MapType;
use crate::abi::perf::ringbuf::{BUSY_BIT, DISCARD_BIT, HEADER_SIZE};
use crate::errno::{Errno, SysError};
use crate::mmap::{Access, Mapping};
use crate::proc::page_size;

mod claim;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod user;

use crate::claim::Claim;
use claim::claim;
pub use user::{Reservation, ReserveError, UserRingBuffer};

/// A ring whose contents contradict its protocol.
///
/// The kernel never writes such a thing; another process that has the ring
/// mapped may have. Reading stays where it is and reports this again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("ring is corrupt at position {position}: header {header:#x}, {available} bytes available")]
pub struct CorruptRing {
    /// Reader's position, in bytes since the ring was made.
    pub position: u64,
    /// The record header there; zero if it was not looked at because the
    /// positions themselves contradict each other.
    pub header: u64,
    /// Bytes between the reader's and the writer's position.
    pub available: u64,
}

/// What a header says, given how many bytes from its start on were published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Reserved and not committed: reading ends here for now.
    Busy,
    /// A discarded record, taking this many bytes.
    Skip(usize),
    /// A record with a payload of `len` bytes, taking `footprint` bytes.
    Take { len: usize, footprint: usize },
    /// The record would reach beyond what was published.
    Corrupt,
}

/// Bytes that a payload of `len` bytes takes in the ring.
#[inline]
const fn footprint(len: usize) -> usize {
    (len + HEADER_SIZE + 7) & !7
}

#[inline]
const fn decode(header: u32, available: usize) -> Step {
    // Below both flag bits a header is its length: the common case first.
    if header < DISCARD_BIT {
        let len = header as usize;
        let footprint = footprint(len);
        if footprint > available {
            return Step::Corrupt;
        }
        return Step::Take { len, footprint };
    }
    if header & BUSY_BIT != 0 {
        return Step::Busy;
    }
    let footprint = footprint((header & !DISCARD_BIT) as usize);
    if footprint > available {
        return Step::Corrupt;
    }
    Step::Skip(footprint)
}

/// The reader of a `BPF_MAP_TYPE_RINGBUF` map.
///
/// It does not own the map's descriptor: wait on that one, with
/// [`Epoll`](crate::poll::Epoll), for [`READABLE`](crate::poll::Interest::READABLE).
/// Dropping it unmaps the ring; unread records stay for the next reader. The
/// ring buffer does not count what programs failed to put in: they learn it
/// from the helper's return value and have to count for themselves.
///
/// Requires at least Linux 5.8.
pub struct RingBuffer {
    tail: Tail,
    data: Data,
    /// Keeps a second reader away. Last, to outlive the mappings.
    _claim: Claim,
}

impl RingBuffer {
    /// Maps the ring buffer behind the descriptor `map`.
    ///
    /// A ring has one reader: two would release records that the other still
    /// lends. A second one in this process is refused; readers of other
    /// processes are the caller's business.
    ///
    /// # Errors
    /// - `EINVAL` if it is no ring buffer, or a former reader left a position
    ///   that cannot be one.
    /// - `EOPNOTSUPP` if it was created with a flag that changes the protocol,
    ///   such as [`RB_OVERWRITE`](crate::abi::bpf::MapFlags::RB_OVERWRITE),
    ///   with which the kernel overwrites what is being read.
    /// - `EBUSY` if it has a reader in this process.
    /// - What bpf(2) and mmap(2) say.
    pub fn new(map: BorrowedFd<'_>) -> Result<RingBuffer> {
        let (claim, size) = claim(map, MapType::RINGBUF)?;
        RingBuffer::map(map, size, claim)
    }

    fn map(fd: BorrowedFd<'_>, size: usize, claim: Claim) -> Result<RingBuffer> {
        let page = page_size();
        let mut tail = Tail {
            map: Mapping::new(fd, 0, page, Access::ReadWrite)?,
            position: 0,
        };
        let data = Data {
            map: Mapping::new(fd, page as u64, ring_len(page, size)?, Access::Read)?,
            offset: page,
            mask: size - 1,
        };
        tail.position = tail.word().load(Ordering::Acquire);
        if !tail.position.is_multiple_of(8) {
            return Err(SysError::new("mmap", Errno::EINVAL)
                .with_detail("the ring buffer's consumer position is not a multiple of 8"));
        }
        Ok(RingBuffer {
            tail,
            data,
            _claim: claim,
        })
    }

    /// Bytes of the ring.
    pub fn size(&self) -> usize {
        self.data.mask + 1
    }

    /// Bytes not read yet, headers and records still being written included.
    pub fn available(&self) -> usize {
        let head = self.data.head().load(Ordering::Acquire);
        head.wrapping_sub(self.tail.position)
    }

    /// Lends the oldest record, in place; `None` if there is none, or if the
    /// oldest is not committed yet. Discarded records are skipped.
    ///
    /// Dropping the record releases it. Forgetting it does not: it comes again.
    ///
    /// For many records at once, [`drain`](Self::drain) is faster.
    ///
    /// # Errors
    /// [`CorruptRing`] if there is something else than a record.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, CorruptRing> {
        loop {
            let start = self.tail.position;
            let available = self.data.readable(start)?;
            let view = self.data.view();
            let mut skipped = 0;
            while skipped < available {
                let at = start.wrapping_add(skipped);
                let header = view.header(at);
                match decode(header, available - skipped) {
                    Step::Busy => break,
                    Step::Corrupt => return Err(corrupt(at, header, available - skipped)),
                    Step::Skip(footprint) => skipped += footprint,
                    Step::Take { len, footprint } => {
                        return Ok(Some(Record {
                            payload: view.payload(at, len),
                            tail: &mut self.tail,
                            taken: skipped + footprint,
                        }));
                    }
                }
            }
            if skipped == 0 {
                return Ok(None);
            }
            // See "Waking up" above: only a look after this one may end it.
            self.tail.release(skipped);
        }
    }

    /// Hands committed records to `each`, in place and in order, until none is
    /// left, `max` were handed over, or `each` breaks. Returns how many were;
    /// discarded ones are skipped and do not count. Fewer than `max`, without
    /// a break, means that it is time to wait.
    ///
    /// The record that `each` breaks or panics at counts as read.
    ///
    /// Space is given back to programs each quarter of the ring and at the
    /// end, not after each record: the position's cache line is one that they
    /// read for every record they write.
    ///
    /// # Errors
    /// [`CorruptRing`] if there is something else than a record. Records
    /// before it were handed over and are released.
    pub fn drain<F>(&mut self, max: usize, mut each: F) -> Result<usize, CorruptRing>
    where
        F: FnMut(&[u8]) -> ControlFlow<()>,
    {
        let batch = self.size() / 4;
        let view = self.data.view();
        let mut guard = ReleaseOnDrop {
            tail: &mut self.tail,
            read: 0,
        };
        let mut handed = 0;
        loop {
            // Everything read is released here.
            let start = guard.tail.position;
            let available = self.data.readable(start)?;
            let end = available.min(batch);
            let mut read = 0;
            while read < end {
                if handed == max {
                    return Ok(handed);
                }
                let at = start.wrapping_add(read);
                let header = view.header(at);
                let rest = available - read;
                match decode(header, rest) {
                    Step::Take { len, footprint } => {
                        read += footprint;
                        handed += 1;
                        // Before the call: a panic must not bring it again.
                        guard.read = read;
                        if each(view.payload(at, len)).is_break() {
                            return Ok(handed);
                        }
                    }
                    Step::Skip(footprint) => {
                        read += footprint;
                        guard.read = read;
                    }
                    Step::Busy => break,
                    Step::Corrupt => return Err(corrupt(at, header, rest)),
                }
            }
            if read == 0 {
                return Ok(handed);
            }
            // See "Waking up" above: only a look after this one may end it.
            guard.release();
        }
    }
}

impl fmt::Debug for RingBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingBuffer")
            .field("size", &self.size())
            .field("position", &self.tail.position)
            .finish_non_exhaustive()
    }
}

/// Bytes of the mapping behind the consumer page.
fn ring_len(page: usize, size: usize) -> Result<usize> {
    let len = size.checked_mul(2).and_then(|data| data.checked_add(page));
    len.filter(|_| size.is_power_of_two() && size >= HEADER_SIZE)
        .ok_or_else(|| SysError::new("mmap", Errno::EINVAL))
}

#[cold]
fn corrupt(position: usize, header: u32, available: usize) -> CorruptRing {
    CorruptRing {
        position: position as u64,
        header: header.into(),
        available: available as u64,
    }
}

/// The consumer position, in a page of its own.
struct Tail {
    map: Mapping,
    /// What the kernel knows; a multiple of 8.
    position: usize,
}

impl Tail {
    fn word(&self) -> &AtomicUsize {
        // SAFETY: the mapping begins at a page, is a page long and lives as
        // long as `self`. The word is only accessed as an atomic.
        unsafe { AtomicUsize::from_ptr(self.map.ptr_at(0)) }
    }

    /// Gives `bytes` of records from `position` on back to programs.
    fn release(&mut self, bytes: usize) {
        self.position = self.position.wrapping_add(bytes);
        self.word().store(self.position, Ordering::Release);
        // Orders the store before the next look at the ring; pairs with the
        // exchange in bpf_ringbuf_commit().
        fence(Ordering::SeqCst);
    }
}

impl Position for &mut Tail {
    fn advance(&mut self, bytes: usize) {
        self.release(bytes);
    }
}

/// Up to where a reader has read, as the kernel is told.
pub(crate) trait Position {
    /// Gives the next `bytes` back to whoever writes.
    fn advance(&mut self, bytes: usize);
}

/// Releases what was read, also when the caller's closure panics.
pub(crate) struct ReleaseOnDrop<P: Position> {
    pub(crate) tail: P,
    /// Bytes read and not released.
    pub(crate) read: usize,
}

impl<P: Position> ReleaseOnDrop<P> {
    pub(crate) fn release(&mut self) {
        if self.read != 0 {
            self.tail.advance(self.read);
            self.read = 0;
        }
    }
}

impl<P: Position> Drop for ReleaseOnDrop<P> {
    fn drop(&mut self) {
        self.release();
    }
}

/// The producer position in the first page, then the data twice; read-only.
struct Data {
    map: Mapping,
    /// Bytes before the data, a multiple of the page size.
    offset: usize,
    /// Size of the data, a power of two, minus one.
    mask: usize,
}

impl Data {
    fn head(&self) -> &AtomicUsize {
        // SAFETY: the mapping begins at a page, is longer than one and lives
        // as long as `self`. The word is only accessed as an atomic, and not
        // stored to.
        unsafe { AtomicUsize::from_ptr(self.map.ptr_at(0)) }
    }

    /// Bytes published by programs from `position` on.
    fn readable(&self, position: usize) -> Result<usize, CorruptRing> {
        let available = self.head().load(Ordering::Acquire).wrapping_sub(position);
        if available > self.mask + 1 {
            return Err(corrupt(position, 0, available));
        }
        Ok(available)
    }

    fn view(&self) -> View<'_> {
        View {
            start: self.map.ptr_at(self.offset),
            mask: self.mask,
            _map: PhantomData,
        }
    }
}

/// [`Data`] in two registers: reading it through a reference would load both
/// words anew behind each acquire load of a header.
#[derive(Clone, Copy)]
struct View<'m> {
    /// Start of the data.
    start: *mut u8,
    mask: usize,
    _map: PhantomData<&'m Mapping>,
}

impl<'m> View<'m> {
    /// The header at `position`, a multiple of 8.
    #[inline]
    fn header(self, position: usize) -> u32 {
        let word = self.start.wrapping_add(position & self.mask).cast();
        // SAFETY: the masked position is below the size of the data and a
        // multiple of 8, and the data starts at a page: the word is aligned
        // and inside the mapping, which lives as long as `'m`.
        let header = unsafe { AtomicU32::from_ptr(word) };
        header.load(Ordering::Acquire)
    }

    /// The payload of a record at `position` that [`decode`] found to be
    /// committed, `len` bytes long, and within what was published.
    #[inline]
    fn payload(self, position: usize, len: usize) -> &'m [u8] {
        let offset = (position & self.mask) + HEADER_SIZE;
        let payload = self.start.wrapping_add(offset);
        // SAFETY: header and payload take no more than the size of the data
        // (`readable` bounds what is available, `decode` the record by it),
        // and the data is mapped twice, so the range is mapped wherever the
        // record starts. The record is committed, and the acquire load of its
        // header made the payload visible. The kernel writes there again only
        // when the consumer position has passed the record. Only this reader
        // moves that (`Claim`), and both callers do so when the slice that
        // they lend is gone.
        unsafe { std::slice::from_raw_parts(payload, len) }
    }
}

/// A record lent in place by [`RingBuffer::next_record`]: its payload.
///
/// Dropping it gives its space back to programs.
pub struct Record<'r> {
    payload: &'r [u8],
    tail: &'r mut Tail,
    /// Bytes of the record, and of discarded ones before it.
    taken: usize,
}

impl Deref for Record<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.payload
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        self.tail.release(self.taken);
    }
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Record").field(&self.payload).finish()
    }
}
