//! Reading side of a perf event's ring: what `bpf_perf_event_output()` wrote,
//! and how much of it was lost.
//!
//! # Protocol
//!
//! Two positions in the mapping's first page count bytes for ever: the kernel
//! advances `data_head`, we advance `data_tail`. Between them lie records, each
//! with a header that gives its size, a multiple of 8. Unlike a BPF ring
//! buffer the data is mapped once, so a record may wrap; such a record is
//! copied into a scratch buffer, all others are lent in place.
//!
//! The kernel writes records, then `data_head` (`perf_output_put_handle()` in
//! `kernel/events/ring_buffer.c` of Linux 6.12, whose comment draws the
//! pairing). We load `data_head` with acquire ordering, which makes the records
//! before it visible, and store `data_tail` with release ordering after the
//! last use of what lies before it. The ring is mapped writable, which tells
//! the kernel to drop new records instead of overwriting unread ones.

use std::fmt;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::abi::perf::{AttrFlags, MmapPage, OpenFlags, RecordHeader, SampleType, record_type};
use crate::abi::pod::from_bytes;
use crate::errno::{Errno, SysError};
use crate::mmap::{Access, Mapping};
use crate::perf::{PerfEvent, PerfEventAttr, Scope};
use crate::proc::page_size;
use crate::ringbuf::{CorruptRing, Position, ReleaseOnDrop};

const HEADER_SIZE: usize = size_of::<RecordHeader>();
const HEAD: usize = std::mem::offset_of!(MmapPage, data_head);
const TAIL: usize = std::mem::offset_of!(MmapPage, data_tail);
const DATA_OFFSET: usize = std::mem::offset_of!(MmapPage, data_offset);
const DATA_SIZE: usize = std::mem::offset_of!(MmapPage, data_size);

/// A record of a perf ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PerfRecord<'r> {
    /// A sample's raw data.
    ///
    /// The kernel pads it: up to seven bytes follow what the program wrote,
    /// and nothing tells them apart. It is aligned to 4 bytes.
    Sample {
        /// The data.
        data: &'r [u8],
        /// When it was written, in nanoseconds of the event's clock, if the
        /// event's samples carry [`TIME`](crate::abi::perf::SampleType::TIME).
        time_ns: Option<u64>,
    },
    /// The ring was full.
    Lost {
        /// Records lost since the last one that was not.
        count: u64,
    },
    /// Something else, such as throttling.
    Other {
        /// See [`record_type`](mod@record_type).
        kind: u32,
    },
}

/// Where in a sample record the kernel puts what, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Layout {
    /// See [`SampleType::time_offset`].
    time: Option<usize>,
    /// See [`SampleType::raw_offset`].
    raw: usize,
}

impl Layout {
    /// Samples of nothing but raw data.
    const PLAIN: Layout = Layout {
        time: None,
        raw: HEADER_SIZE,
    };

    fn of(sample: SampleType) -> Option<Layout> {
        let time = sample.time_offset();
        Some(Layout {
            time,
            raw: sample.raw_offset()?,
        })
    }
}

/// Takes a record apart; `None` if it is too short for what it is.
fn decode(header: RecordHeader, record: &[u8], layout: Layout) -> Option<PerfRecord<'_>> {
    let word = |offset: usize| from_bytes::<u64>(record.get(offset..offset + 8)?);
    match header.kind {
        record_type::SAMPLE => {
            let sized = record.get(layout.raw..)?;
            let (size, data) = sized.split_at_checked(4)?;
            let data = data.get(..from_bytes::<u32>(size)? as usize)?;
            let time_ns = match layout.time {
                Some(at) => Some(word(at)?),
                None => None,
            };
            Some(PerfRecord::Sample { data, time_ns })
        }
        // Behind the header: event id, then the count.
        record_type::LOST => Some(PerfRecord::Lost { count: word(16)? }),
        record_type::LOST_SAMPLES => Some(PerfRecord::Lost { count: word(8)? }),
        kind => Some(PerfRecord::Other { kind }),
    }
}

/// Whether a record of `size` bytes is one: with a header, in whole words, and
/// within what was written.
#[inline]
fn is_sound(size: usize, available: usize) -> bool {
    size >= HEADER_SIZE && size.is_multiple_of(8) && size <= available
}

/// A perf event with its ring.
///
/// Wait on its descriptor for [`READABLE`](crate::poll::Interest::READABLE).
/// The kernel reports that once per wakeup, also when level-triggered: drain
/// the ring before waiting again. Dropping it unmaps the ring and closes the
/// event.
pub struct PerfRing {
    // First: unmapped before the event is closed.
    ring: Ring,
    event: PerfEvent,
    /// Writes to the same ring.
    second: Option<PerfEvent>,
}

impl PerfRing {
    /// Opens `attr` for `scope` on `cpu`, as [`PerfEvent::open`] does, and maps
    /// a ring of `pages` pages, a power of two, for its samples. Each event has
    /// its own ring, so a reader needs one per CPU.
    ///
    /// # Errors
    /// - `EINVAL` if `pages` is no power of two; if the event's samples have
    ///   no raw data, or members of variable size in front of it; or if it
    ///   writes backward.
    /// - `EPERM` if the ring is longer than `perf_event_mlock_kb` and
    ///   `RLIMIT_MEMLOCK` allow a process without `CAP_IPC_LOCK`.
    /// - What perf_event_open(2) and mmap(2) say.
    pub fn open(
        attr: &PerfEventAttr<'_>,
        scope: Scope<'_>,
        cpu: Option<u32>,
        pages: usize,
    ) -> Result<PerfRing> {
        let invalid =
            |why: &'static str| SysError::new("mmap(perf event)", Errno::EINVAL).with_detail(why);
        let Some(layout) = Layout::of(attr.raw().sample_type) else {
            return Err(invalid("samples without raw data at a fixed place"));
        };
        if attr.raw().flags.contains(AttrFlags::WRITE_BACKWARD) {
            return Err(invalid("the event writes its ring backward"));
        }
        if !pages.is_power_of_two() {
            return Err(invalid("size is not a power of two"));
        }
        // Mapped before anybody else sees the event: the first mapping decides
        // whether the kernel overwrites what has not been read, and the ring
        // would be another's if the event wrote to that.
        let event = PerfEvent::open(attr, scope, cpu, None, OpenFlags::empty())?;
        let ring = Ring::map(event.as_fd(), pages, layout)?;
        let second = None;
        Ok(PerfRing {
            ring,
            event,
            second,
        })
    }

    /// Lets `event` write to this ring, too. An event says when readers are
    /// woken up: a program that is given the one or the other as its output
    /// wakes them or does not.
    ///
    /// # Errors
    /// `EINVAL` if its samples look different, or it differs in CPU or clock;
    /// `EBUSY` if there is a second event already.
    pub fn add_event(&mut self, event: PerfEvent) -> Result<()> {
        let op = "ioctl(PERF_EVENT_IOC_SET_OUTPUT)";
        if self.second.is_some() {
            return Err(SysError::new(op, Errno::EBUSY));
        }
        if event.sample_type() != self.event.sample_type() {
            return Err(SysError::new(op, Errno::EINVAL));
        }
        event.set_output(&self.event)?;
        self.second = Some(event);
        Ok(())
    }

    /// The event that [`add_event`](Self::add_event) added.
    pub fn second_event(&self) -> Option<&PerfEvent> {
        self.second.as_ref()
    }

    /// The event.
    pub fn event(&self) -> &PerfEvent {
        &self.event
    }

    /// Bytes of the ring.
    pub fn size(&self) -> usize {
        self.ring.data.mask + 1
    }

    /// Bytes not read yet.
    pub fn available(&self) -> usize {
        self.ring.data.available(self.ring.tail)
    }

    /// Hands records to `each`, in order, until none is left, `max` were
    /// handed over, or `each` breaks. Returns how many were. Fewer than `max`,
    /// without a break, means that it is time to wait.
    ///
    /// The record that `each` breaks or panics at counts as read. Space is
    /// given back to the kernel each quarter of the ring and at the end.
    ///
    /// # Errors
    /// [`CorruptRing`] if there is something else than a record. Records
    /// before it were handed over and are released; reading stays there.
    pub fn drain<F>(&mut self, max: usize, each: F) -> Result<usize, CorruptRing>
    where
        F: FnMut(PerfRecord<'_>) -> ControlFlow<()>,
    {
        self.ring.drain(max, each)
    }
}

impl AsFd for PerfRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl fmt::Debug for PerfRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerfRing")
            .field("event", &self.event)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

/// The ring without its event.
struct Ring {
    data: Data,
    /// What the kernel knows as `data_tail`; a multiple of 8.
    tail: u64,
    layout: Layout,
    /// A record that wraps, put together. Grows to the longest such record.
    scratch: Vec<u8>,
}

impl Ring {
    fn map(fd: BorrowedFd<'_>, pages: usize, layout: Layout) -> Result<Ring> {
        let page = page_size();
        let invalid = || SysError::new("mmap(perf event)", Errno::EINVAL);
        let total = pages.checked_add(1).and_then(|n| n.checked_mul(page));
        let total = total.ok_or_else(invalid)?;
        let map = Mapping::new(fd, 0, total, Access::ReadWrite)?;
        let data = Data {
            map,
            offset: page,
            mask: pages * page - 1,
        };
        // Zero before Linux 4.1, which had the same layout.
        let offset = data.word(DATA_OFFSET).load(Ordering::Acquire);
        let size = data.word(DATA_SIZE).load(Ordering::Acquire);
        if size != 0 && (size != (pages * page) as u64 || offset != page as u64) {
            return Err(invalid().with_detail("unknown layout of the perf ring"));
        }
        let tail = data.word(TAIL).load(Ordering::Acquire);
        if !tail.is_multiple_of(8) {
            return Err(invalid().with_detail("the perf ring's tail is not a multiple of 8"));
        }
        Ok(Ring {
            data,
            tail,
            layout,
            scratch: Vec::new(),
        })
    }

    fn drain<F>(&mut self, max: usize, mut each: F) -> Result<usize, CorruptRing>
    where
        F: FnMut(PerfRecord<'_>) -> ControlFlow<()>,
    {
        let Ring {
            data,
            tail: position,
            layout,
            scratch,
        } = self;
        let (data, layout) = (&*data, *layout);
        let view = data.view();
        let batch = (data.mask + 1) / 4;
        // What a record without a time stamp is; otherwise nothing is.
        let kind = if layout == Layout::PLAIN {
            record_type::SAMPLE
        } else {
            u32::MAX
        };
        let mut guard = ReleaseOnDrop {
            tail: Tail { data, position },
            read: 0,
        };
        let mut handed = 0;
        loop {
            // Everything read is released here.
            let start = *guard.tail.position;
            let available = data.available(start);
            // Positions are multiples of 8, so a header never reaches beyond.
            if available > data.mask + 1 || !available.is_multiple_of(8) {
                return Err(corrupt(start, RecordHeader::default(), available));
            }
            let end = available.min(batch);
            // Bytes up to the end of the data: a record within them is whole.
            let straight = available.min(data.mask + 1 - view.index(start));
            let mut read = 0;
            while read < end {
                if handed == max {
                    return Ok(handed);
                }
                let at = start.wrapping_add(read as u64);
                let (record, size) =
                    match view.plain_sample(at, straight as isize - read as isize, kind) {
                        Some((data, size)) => {
                            let time_ns = None;
                            (PerfRecord::Sample { data, time_ns }, size)
                        }
                        None => view.record(at, available - read, layout, scratch)?,
                    };
                read += size;
                handed += 1;
                // Before the call: a panic must not bring it again.
                guard.read = read;
                if each(record).is_break() {
                    return Ok(handed);
                }
            }
            if read == 0 {
                return Ok(handed);
            }
            guard.release();
        }
    }
}

#[cold]
fn corrupt(position: u64, header: RecordHeader, available: usize) -> CorruptRing {
    let kind = u64::from(header.kind);
    let rest = u64::from(header.misc) << 32 | u64::from(header.size) << 48;
    CorruptRing {
        position,
        header: kind | rest,
        available: available as u64,
    }
}

/// The tail, ours and the kernel's.
struct Tail<'r> {
    data: &'r Data,
    position: &'r mut u64,
}

impl Position for Tail<'_> {
    fn advance(&mut self, bytes: usize) {
        *self.position = self.position.wrapping_add(bytes as u64);
        self.data
            .word(TAIL)
            .store(*self.position, Ordering::Release);
    }
}

/// The mapping: control page, then data.
struct Data {
    map: Mapping,
    /// Bytes before the data: the control page.
    offset: usize,
    /// Size of the data, a power of two, minus one.
    mask: usize,
}

impl Data {
    /// The control page's word at `offset`, one of the constants above.
    fn word(&self, offset: usize) -> &AtomicU64 {
        let word = self.map.ptr_at(offset);
        // SAFETY: the constants are offsets of 8-byte fields of `MmapPage`,
        // which fits into the mapping's first page; the mapping lives as long
        // as `self`, and the control page is only accessed as atomics.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// Bytes written from `position` on.
    fn available(&self, position: u64) -> usize {
        let head = self.word(HEAD).load(Ordering::Acquire);
        usize::try_from(head.wrapping_sub(position)).unwrap_or(usize::MAX)
    }

    fn view(&self) -> View<'_> {
        View {
            start: self.map.ptr_at(self.offset),
            mask: self.mask,
            _map: PhantomData,
        }
    }
}

/// [`Data`] in two registers, so that the calls in between do not make the
/// compiler load them again.
#[derive(Clone, Copy)]
struct View<'m> {
    /// Start of the data.
    start: *mut u8,
    mask: usize,
    _map: PhantomData<&'m Mapping>,
}

impl<'m> View<'m> {
    /// Where `position` lies in the data.
    #[inline]
    fn index(self, position: u64) -> usize {
        position as usize & self.mask
    }

    /// The header at `position`, a multiple of 8 with at least 8 bytes written.
    #[inline]
    fn header(self, position: u64) -> RecordHeader {
        let header: *mut RecordHeader = self.start.wrapping_add(self.index(position)).cast();
        // SAFETY: the index is below the data's size and both are multiples of
        // 8, so all 8 bytes are mapped and aligned. They lie between tail and
        // head: written before the head we loaded with acquire ordering, and
        // left alone until we move the tail.
        unsafe { *header }
    }

    /// The data of the record at `position`, and the record's size, if it is
    /// of this `kind`, the data stands behind the header, and it is whole and
    /// within the `straight` bytes from there on, which were written and do
    /// not wrap. The common case, once through.
    #[inline]
    fn plain_sample(self, position: u64, straight: isize, kind: u32) -> Option<(&'m [u8], usize)> {
        const DATA: usize = HEADER_SIZE + size_of::<u32>();
        let index = self.index(position);
        let header: *mut RecordHeader = self.start.wrapping_add(index).cast();
        // SAFETY: as in `header`; only the two fields are read.
        let found = unsafe { (*header).kind };
        // SAFETY: likewise.
        let size = usize::from(unsafe { (*header).size });
        // A header and eight bytes at least, so that a length is there.
        // Nothing is straight behind the data's end: `straight` is negative.
        if found != kind || !size.is_multiple_of(8) || size < HEADER_SIZE + 8 {
            return None;
        }
        if size as isize > straight {
            return None;
        }
        let len = header.wrapping_add(1).cast::<u32>();
        // SAFETY: `index` is a multiple of 8 and, with `size`, within the data
        // (the caller's `straight`), so the four bytes behind the header are
        // mapped and aligned. They belong to a record between tail and head,
        // see `lend`.
        let len = unsafe { *len } as usize;
        if len > size - DATA {
            return None;
        }
        Some((self.lend(index + DATA, len), size))
    }

    /// Any record, with `available` bytes written from `position` on.
    #[cold]
    fn record<'s>(
        self,
        position: u64,
        available: usize,
        layout: Layout,
        scratch: &'s mut Vec<u8>,
    ) -> Result<(PerfRecord<'s>, usize), CorruptRing>
    where
        'm: 's,
    {
        let header = self.header(position);
        let size = usize::from(header.size);
        if !is_sound(size, available) {
            return Err(corrupt(position, header, available));
        }
        let record = match self.in_place(position, size) {
            Some(record) => record,
            None => self.put_together(position, size, scratch),
        };
        match decode(header, record, layout) {
            Some(record) => Ok((record, size)),
            None => Err(corrupt(position, header, available)),
        }
    }

    /// The `size` written bytes at `position`, unless they wrap.
    fn in_place(self, position: u64, size: usize) -> Option<&'m [u8]> {
        let index = self.index(position);
        (index + size <= self.mask + 1).then(|| self.lend(index, size))
    }

    /// The `size` written bytes at `position`, which wrap.
    #[cold]
    fn put_together(self, position: u64, size: usize, scratch: &mut Vec<u8>) -> &[u8] {
        let index = self.index(position);
        let first = (self.mask + 1 - index).min(size);
        scratch.clear();
        scratch.extend_from_slice(self.lend(index, first));
        scratch.extend_from_slice(self.lend(0, size - first));
        scratch
    }

    /// `size` bytes of a record, from `index` on, that do not wrap.
    #[inline]
    fn lend(self, index: usize, size: usize) -> &'m [u8] {
        let start = self.start.wrapping_add(index);
        // SAFETY: both callers keep `index + size` within the data, which the
        // mapping holds and which lives as long as `'m`. The bytes belong to
        // a record between tail and head (`is_sound`): the acquire load of the
        // head made them visible, and the kernel leaves them alone until the
        // tail passes them, because the ring is mapped writable and is not
        // written backward. Only `drain` moves the tail, when the slice is
        // gone; nobody else can, since `PerfRing` owns all events that write
        // to its ring, and mappings stay inside this crate.
        unsafe { std::slice::from_raw_parts(start, size) }
    }
}

mod overwritable;
#[cfg(test)]
mod tests;

pub use overwritable::OverwritableRing;
