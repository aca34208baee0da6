//! Rings that programs write for ever: the newest records stay.
//!
//! The ring is mapped read-only, which tells the kernel not to care what has
//! been read, and written backward (`write_backward`, Linux 4.7): `data_head`
//! falls, and each record begins where the one before it will be overwritten
//! last. So reading upward from the head meets whole records, newest first,
//! until one reaches beyond what the ring holds.
//!
//! The kernel never hands such memory over, so nothing here is lent in place:
//! output is paused, a grace period waits for the programs that had begun to
//! write before that (`perf_output_begin()` to `perf_output_end()` is an RCU
//! reader), and the words are copied as atomics. Where the grace period cannot
//! be had, the oldest record read may be torn; nothing worse.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{DATA_OFFSET, DATA_SIZE, HEAD, HEADER_SIZE, Layout, PerfRecord, decode, is_sound};
use crate::Result;
use crate::abi::perf::{AttrFlags, OpenFlags, RecordHeader};
use crate::abi::pod::{from_bytes, slice_bytes};
use crate::errno::{Errno, SysError, retry_eintr};
use crate::mmap::{Access, Mapping};
use crate::perf::{PerfEvent, PerfEventAttr, Scope};
use crate::proc::page_size;

/// A perf event whose ring keeps the newest records and never loses one for
/// lack of room.
///
/// Dropping it unmaps the ring and closes the event.
pub struct OverwritableRing {
    // First: unmapped before the event is closed.
    map: Mapping,
    event: PerfEvent,
    /// Bytes of the data, a power of two.
    size: usize,
    layout: Layout,
    /// Copy of the data from the head on.
    words: Vec<u64>,
    /// Where the records of the copy begin, newest first.
    starts: Vec<u32>,
}

impl OverwritableRing {
    /// Opens `attr`, which must have the flag
    /// [`WRITE_BACKWARD`](AttrFlags::WRITE_BACKWARD), for `scope` on `cpu`, and
    /// maps a ring of `pages` pages, a power of two, for its samples.
    ///
    /// Requires at least Linux 4.7.
    ///
    /// # Errors
    /// As [`PerfRing::open`](super::PerfRing::open), the direction reversed.
    pub fn open(
        attr: &PerfEventAttr<'_>,
        scope: Scope<'_>,
        cpu: Option<u32>,
        pages: usize,
    ) -> Result<OverwritableRing> {
        let invalid =
            |why: &'static str| SysError::new("mmap(perf event)", Errno::EINVAL).with_detail(why);
        let Some(layout) = Layout::of(attr.raw().sample_type) else {
            return Err(invalid("samples without raw data at a fixed place"));
        };
        if !attr.raw().flags.contains(AttrFlags::WRITE_BACKWARD) {
            return Err(invalid("the event writes its ring forward"));
        }
        let page = page_size();
        let size = pages.checked_mul(page).filter(|_| pages.is_power_of_two());
        let Some(size) = size.filter(|&size| size <= u32::MAX as usize / 2) else {
            return Err(invalid("size is not a power of two, or too large"));
        };
        let event = PerfEvent::open(attr, scope, cpu, None, OpenFlags::empty())?;
        let map = Mapping::new(event.as_fd(), 0, page + size, Access::Read)?;
        let ring = OverwritableRing {
            map,
            event,
            size,
            layout,
            words: Vec::new(),
            starts: Vec::new(),
        };
        let offset = ring.word(DATA_OFFSET).load(Ordering::Acquire);
        let data = ring.word(DATA_SIZE).load(Ordering::Acquire);
        if data != 0 && (data != size as u64 || offset != page as u64) {
            return Err(invalid("unknown layout of the perf ring"));
        }
        Ok(ring)
    }

    /// The event.
    pub fn event(&self) -> &PerfEvent {
        &self.event
    }

    /// Bytes of the ring.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Calls `each` with what the ring holds, oldest first, and returns how
    /// many records that were. What is in the ring stays there and is read
    /// again by the next call. While the ring is copied, programs that write
    /// to it are refused (`ENOENT`) and the kernel counts the sample as lost.
    ///
    /// # Errors
    /// `EINVAL` if output cannot be paused, before Linux 4.7.
    pub fn read(&mut self, each: &mut dyn FnMut(PerfRecord<'_>)) -> Result<usize> {
        self.event.pause_output(true)?;
        grace_period();
        let head = self.copy();
        self.event.pause_output(false)?;
        // The head starts at zero and falls.
        let written = usize::try_from(head.wrapping_neg()).unwrap_or(usize::MAX);
        self.find(written.min(self.size));
        let bytes = slice_bytes(&self.words);
        for &start in self.starts.iter().rev() {
            let record = bytes.get(start as usize..).unwrap_or_default();
            let header = record.get(..HEADER_SIZE).and_then(from_bytes);
            let header: RecordHeader = header.unwrap_or_default();
            let record = record.get(..usize::from(header.size)).unwrap_or_default();
            if let Some(record) = decode(header, record, self.layout) {
                each(record);
            }
        }
        Ok(self.starts.len())
    }

    /// Copies the data, from the head on; returns the head.
    fn copy(&mut self) -> u64 {
        let head = self.word(HEAD).load(Ordering::Acquire);
        let (base, mask) = (page_size(), self.size - 1);
        let mut words = std::mem::take(&mut self.words);
        words.clear();
        words.extend((0..self.size).step_by(8).map(|i| {
            // A multiple of 8, whatever the head is.
            let at = (head as usize & !7).wrapping_add(i) & mask;
            let word = self.map.ptr_at(base + at);
            // SAFETY: `at` is below the data's size and both are multiples of
            // 8, so the word is mapped and aligned, for as long as `self.map`
            // lives. It is only loaded as an atomic.
            unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Relaxed)
        }));
        self.words = words;
        head
    }

    /// Finds the records in the first `len` bytes of the copy.
    fn find(&mut self, len: usize) {
        self.starts.clear();
        let bytes = slice_bytes(&self.words);
        let mut at = 0;
        while let Some(header) = bytes.get(at..at + HEADER_SIZE).and_then(from_bytes) {
            let header: RecordHeader = header;
            let size = usize::from(header.size);
            // The oldest may have been overwritten in part.
            if at >= len || !is_sound(size, len - at) {
                break;
            }
            self.starts.push(at as u32);
            at += size;
        }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        let word = self.map.ptr_at(offset);
        // SAFETY: the constants passed are offsets of 8-byte fields of the
        // control page; the mapping lives as long as `self` and the page is
        // only loaded as atomics.
        unsafe { AtomicU64::from_ptr(word) }
    }
}

/// Waits until every program that was writing has done so.
fn grace_period() {
    const GLOBAL: libc::c_int = 1;
    // Refused on machines with tickless CPUs; see the module.
    let _ = retry_eintr("membarrier", || {
        // SAFETY: takes three numbers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) }
    });
}

impl AsFd for OverwritableRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl fmt::Debug for OverwritableRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OverwritableRing")
            .field("event", &self.event)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
