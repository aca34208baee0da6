//! Reader of perf buffers: a ring per CPU behind one map.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use ebpf_manager_sys::abi::bpf::{ElemFlags, MapType};
use ebpf_manager_sys::abi::perf::{OpenFlags, ReadFormat, SampleType};
use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};
use ebpf_manager_sys::perfring::{PerfRecord, PerfRing};
use ebpf_manager_sys::poll::{Epoll, Event, Interest};
use ebpf_manager_sys::proc::{online_cpus, page_size};
use ebpf_manager_sys::uevent::{CpuEvents, CpuNews};
use ebpf_manager_sys::{Errno, SysError};

use super::claim::{Claim, map_id};
use super::{Buffer, OwnedRecord, Record, check_type, corrupt, kernel};
use crate::cure;
use crate::error::ReaderError;
use crate::map::Map;

/// When programs wake the reader of a perf buffer up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Wakeup {
    /// At each record, until the reader [asks](PerfBufferReader::set_quiet)
    /// not to be woken; then only when a ring is half full. Streams of a
    /// manager ask when they are busy anyway.
    #[default]
    Adaptive,
    /// Each so many records of a CPU. What comes short of it waits until the
    /// reader looks by itself. Zero is read as one.
    Records(u32),
    /// Each so many bytes in a CPU's ring, headers included; zero stands for
    /// half of the ring. What comes short of it waits until the reader looks
    /// by itself.
    Bytes(u32),
}

/// The CPUs whose records a reader takes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Cpus {
    /// All that are online, now or later.
    #[default]
    All,
    /// This one, while it is online.
    One(u32),
    /// All but these.
    AllBut(Vec<u32>),
}

impl Cpus {
    fn contains(&self, cpu: u32) -> bool {
        match self {
            Cpus::All => true,
            Cpus::One(one) => *one == cpu,
            Cpus::AllBut(others) => !others.contains(&cpu),
        }
    }
}

/// Options of a [`PerfBufferReader`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PerfBufferOptions {
    /// Bytes of each CPU's ring, rounded up to pages and to a power of two of
    /// them. 64 KiB unless set.
    pub bytes_per_cpu: usize,
    /// When programs wake the reader up.
    pub wakeup: Wakeup,
    /// Puts the time into each record. Requires at least Linux 4.1.
    pub timestamps: bool,
    /// CPUs to read from.
    pub cpus: Cpus,
}

impl Default for PerfBufferOptions {
    fn default() -> PerfBufferOptions {
        PerfBufferOptions {
            bytes_per_cpu: 64 * 1024,
            wakeup: Wakeup::default(),
            timestamps: false,
            cpus: Cpus::default(),
        }
    }
}

/// What is known about one CPU's ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PerfCpuStats {
    /// The CPU.
    pub cpu: u32,
    /// Records that found the ring full. From Linux 6.0 on the kernel says how
    /// many at any time; before, a loss is known when the next record that
    /// fits has been read.
    pub lost: u64,
    /// Most bytes that were waiting when the reader came to read.
    pub peak_bytes: usize,
}

/// Records handed over from one CPU before the next has its turn.
const TURN: usize = 1024;

/// The reading side of a `BPF_MAP_TYPE_PERF_EVENT_ARRAY` map that programs
/// write to by `bpf_perf_event_output()` with `BPF_F_CURRENT_CPU`.
///
/// Records are lent in place, but for those that wrap around the end of their
/// ring. They are in order on each CPU, not among CPUs. CPUs that come online
/// are picked up, what one that went offline had written is read. Dropping the
/// reader takes the rings away from programs.
///
/// Requires at least Linux 4.4.
#[derive(Debug)]
pub struct PerfBufferReader {
    map: Map,
    /// See [`map_id`].
    map_id: Option<u32>,
    options: PerfBufferOptions,
    epoll: Epoll,
    cpus: Vec<Cpu>,
    /// `None` where the kernel does not tell.
    changes: Option<CpuEvents>,
    /// A CPU that came may have no ring yet.
    incomplete: bool,
    /// Why that is, if the caller has been told.
    told: Option<Errno>,
    paused: bool,
    quiet: bool,
}

#[derive(Debug)]
struct Cpu {
    id: u32,
    /// `None` while it is offline.
    ring: Option<PerfRing>,
    /// While there is a ring.
    claim: Option<Claim>,
    /// From before it went offline, to be read first.
    old: Option<PerfRing>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    /// Lost since the last record handed over.
    lost_before: u64,
    /// Lost as read from the rings.
    lost: u64,
    /// Lost in rings that are closed by now, as the kernel counted.
    lost_closed: u64,
    peak: usize,
}

impl Counts {
    #[cold]
    fn note(&mut self, record: PerfRecord<'_>) {
        if let PerfRecord::Lost { count } = record {
            self.lost += count;
            self.lost_before += count;
        }
    }
}

impl PerfBufferReader {
    /// Makes a ring for each CPU and gives them to programs.
    ///
    /// CPUs beyond the map's `max_entries` are left out.
    ///
    /// # Errors
    /// [`ReaderError::WrongMap`]; [`ReaderError::Kernel`], with `EPERM` if the
    /// rings take more than `perf_event_mlock_kb` without `CAP_IPC_LOCK`, and
    /// with `EBUSY` if this process has a reader of the map for one of the CPUs
    /// already.
    pub fn new(map: &Map, options: PerfBufferOptions) -> Result<PerfBufferReader, ReaderError> {
        check_type(map, MapType::PERF_EVENT_ARRAY)?;
        let fail = |err| kernel(map.name(), err);
        let mut reader = PerfBufferReader {
            map: map.clone(),
            map_id: map_id(map).map_err(fail)?,
            options,
            epoll: Epoll::new().map_err(fail)?,
            cpus: Vec::new(),
            // Before the first look at what is online, to miss no change.
            changes: CpuEvents::open().ok(),
            incomplete: false,
            told: None,
            paused: false,
            quiet: false,
        };
        if let Some(changes) = &reader.changes {
            let fd = changes.as_fd();
            reader
                .epoll
                .add(fd, u64::MAX, Interest::READABLE)
                .map_err(fail)?;
        }
        reader.complete().map_err(fail)?;
        Ok(reader)
    }

    /// Name of the map.
    pub fn name(&self) -> &str {
        self.map.name()
    }

    /// Bytes of each CPU's ring.
    pub fn bytes_per_cpu(&self) -> usize {
        pages(self.options.bytes_per_cpu) * page_size()
    }

    /// Bytes waiting to be read in all rings, headers included.
    pub fn available_bytes(&self) -> usize {
        self.rings().map(PerfRing::available).sum()
    }

    /// Bytes waiting in the fullest ring.
    pub fn fullest_bytes(&self) -> usize {
        self.rings().map(PerfRing::available).max().unwrap_or(0)
    }

    /// When programs wake the reader up.
    pub fn wakeup(&self) -> Wakeup {
        self.options.wakeup
    }

    /// What is known about each CPU that was ever read from. A system call for
    /// each.
    pub fn cpus(&self) -> impl Iterator<Item = PerfCpuStats> {
        self.cpus.iter().map(|cpu| PerfCpuStats {
            cpu: cpu.id,
            lost: cpu.lost(),
            peak_bytes: cpu.counts.peak,
        })
    }

    /// Takes the rings away from programs: what they write from now on is
    /// refused (`ENOENT`) and counted nowhere. What is in the rings can be
    /// read.
    ///
    /// # Errors
    /// [`ReaderError::Kernel`].
    pub fn pause(&mut self) -> Result<(), ReaderError> {
        self.paused = true;
        for cpu in self.cpus.iter().filter(|cpu| cpu.ring.is_some()) {
            if let Err(crate::error::MapError::Access { source, .. }) =
                self.map.delete(&cpu.id.to_ne_bytes())
            {
                return Err(kernel(self.map.name(), source));
            }
        }
        Ok(())
    }

    /// Gives the rings back to programs.
    ///
    /// # Errors
    /// [`ReaderError::Kernel`].
    pub fn resume(&mut self) -> Result<(), ReaderError> {
        self.paused = false;
        self.publish_all()
    }

    /// True between [`pause`](Self::pause) and [`resume`](Self::resume).
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// With [`Wakeup::Adaptive`], asks programs not to wake the reader up at
    /// each record (or to do so again), which makes writing several times
    /// faster. The reader has to look by itself meanwhile. After asking to be
    /// woken again, a record of a program that began before may still come
    /// without: look once more a little later.
    ///
    /// A system call per CPU. Without [`Wakeup::Adaptive`] nothing happens.
    ///
    /// # Errors
    /// [`ReaderError::Kernel`].
    pub fn set_quiet(&mut self, quiet: bool) -> Result<(), ReaderError> {
        if quiet == self.quiet || self.options.wakeup != Wakeup::Adaptive {
            return Ok(());
        }
        self.quiet = quiet;
        if self.paused {
            return Ok(());
        }
        self.publish_all()
    }

    fn publish_all(&self) -> Result<(), ReaderError> {
        for cpu in &self.cpus {
            if let Some(ring) = &cpu.ring {
                self.publish(cpu.id, ring)
                    .map_err(|err| kernel(self.map.name(), err))?;
            }
        }
        Ok(())
    }

    /// Puts the CPU's event at its real number into the map.
    fn publish(&self, cpu: u32, ring: &PerfRing) -> Result<(), SysError> {
        let event = match ring.second_event() {
            Some(second) if self.quiet => second,
            _ => ring.event(),
        };
        let fd = event.as_fd().as_raw_fd().to_ne_bytes();
        self.map
            .update_raw(&cpu.to_ne_bytes(), &fd, ElemFlags::empty())
    }

    /// Hands the records that are waiting to `each`, in place, until none is
    /// left, `max` were handed over, or `each` breaks. Returns how many were.
    /// Never waits. CPUs that came or went are noticed here, which takes one
    /// system call.
    ///
    /// The record that `each` breaks or panics at counts as read.
    ///
    /// # Errors
    /// [`ReaderError::Kernel`], with `EBADMSG` if a ring holds something that
    /// is no record; it cannot be read any further then.
    pub fn consume(
        &mut self,
        max: usize,
        each: impl FnMut(&Record<'_>) -> ControlFlow<()>,
    ) -> Result<usize, ReaderError> {
        self.notice_changes()?;
        self.drain(max, each)
    }

    /// As [`consume`](Self::consume), without noticing CPUs that came or went
    /// and therefore without any system call.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    #[inline]
    pub fn drain(
        &mut self,
        max: usize,
        mut each: impl FnMut(&Record<'_>) -> ControlFlow<()>,
    ) -> Result<usize, ReaderError> {
        let mut handed = 0;
        loop {
            let mut more = false;
            for cpu in &mut self.cpus {
                let quota = TURN.min(max - handed);
                let (n, flow) = cpu
                    .drain(quota, &mut each)
                    .map_err(|err| corrupt(self.map.name(), &err))?;
                handed += n;
                if flow.is_break() || handed == max {
                    return Ok(handed);
                }
                more |= n == TURN;
            }
            if !more {
                return Ok(handed);
            }
        }
    }

    /// Waits until records are there or `timeout` (`None`: for ever) is over,
    /// and [consumes](Self::consume) them. Zero if it timed out.
    ///
    /// # Errors
    /// As [`consume`](Self::consume).
    pub fn poll(
        &mut self,
        timeout: Option<Duration>,
        max: usize,
        each: &mut dyn FnMut(&Record<'_>) -> ControlFlow<()>,
    ) -> Result<usize, ReaderError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let n = self.consume(max, &mut *each)?;
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if n != 0 || max == 0 || left.is_some_and(|left| left.is_zero()) {
                return Ok(n);
            }
            let mut events = [Event::EMPTY; 8];
            self.epoll
                .wait(&mut events, left)
                .map_err(|err| kernel(self.map.name(), err))?;
        }
    }

    /// Copies of the records as they come, each waited for until `timeout`
    /// (`None`: for ever) is over, which ends the iteration. It can be begun
    /// again.
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
            let n = self.poll(timeout, 1, &mut |record| {
                found = Some(record.to_owned());
                ControlFlow::Continue(())
            });
            failed = n.is_err();
            n.map_or_else(|err| Some(Err(err)), |_| found.map(Ok))
        })
    }

    /// Losses that no record handed over told of, per CPU; they count as told
    /// then. For the end of reading: the kernel reports a loss with the next
    /// record that fits, which may never come. Complete from Linux 6.0 on.
    pub fn untold_losses(&mut self, each: &mut dyn FnMut(u32, u64)) {
        for cpu in &mut self.cpus {
            let total = cpu.lost();
            let counts = &mut cpu.counts;
            let untold = counts.lost_before + total.saturating_sub(counts.lost);
            counts.lost = total;
            counts.lost_before = 0;
            if untold != 0 {
                each(cpu.id, untold);
            }
        }
    }

    /// Picks up CPUs that came, closes rings of CPUs that went.
    ///
    /// [`consume`](Self::consume) does that by itself, [`drain`](Self::drain) does
    /// not.
    ///
    /// # Errors
    /// [`ReaderError::Kernel`] if a CPU that came cannot be read from. The
    /// others are, and that one is tried again each time, but the same error is
    /// not returned twice in a row.
    pub fn notice_changes(&mut self) -> Result<(), ReaderError> {
        let result = self.follow_changes();
        let before = std::mem::replace(&mut self.told, result.as_ref().err().map(SysError::errno));
        match result {
            Err(err) if before != Some(err.errno()) => Err(kernel(self.map.name(), err)),
            _ => Ok(()),
        }
    }

    fn follow_changes(&mut self) -> Result<(), SysError> {
        while let Some(changes) = &self.changes {
            match changes.take()? {
                CpuNews::None => break,
                CpuNews::Change(change) => {
                    // An event ends with its CPU's going, and stays dead when
                    // the CPU comes back: a new one is needed in any case.
                    self.went(change.cpu);
                    self.incomplete |= change.online;
                }
                CpuNews::Missed => {
                    let known: Vec<u32> = self.cpus.iter().map(|cpu| cpu.id).collect();
                    for cpu in known {
                        self.went(cpu);
                    }
                    self.incomplete = true;
                }
            }
        }
        if self.incomplete {
            self.complete()?;
        }
        Ok(())
    }

    /// Makes rings for the CPUs that are online and have none.
    fn complete(&mut self) -> Result<(), SysError> {
        self.incomplete = true;
        let mut result = Ok(());
        for cpu in online_cpus()? {
            let came = self.came(cpu);
            result = result.and(came);
        }
        self.incomplete = result.is_err();
        result
    }

    fn came(&mut self, id: u32) -> Result<(), SysError> {
        if id >= self.map.max_entries() || !self.options.cpus.contains(id) {
            return Ok(());
        }
        let at = self.cpus.iter().position(|cpu| cpu.id == id);
        if at.is_some_and(|at| self.cpus.get(at).is_some_and(|cpu| cpu.ring.is_some())) {
            return Ok(());
        }
        let claim = Claim::new(self.map_id, id)?;
        let Some(ring) = self.open(id)? else {
            return Ok(());
        };
        self.epoll
            .add(ring.as_fd(), id.into(), Interest::READABLE)?;
        if !self.paused {
            self.publish(id, &ring)?;
        }
        let at = at.unwrap_or_else(|| {
            self.cpus.push(Cpu {
                id,
                ring: None,
                claim: None,
                old: None,
                counts: Counts::default(),
            });
            self.cpus.len() - 1
        });
        if let Some(cpu) = self.cpus.get_mut(at) {
            (cpu.ring, cpu.claim) = (Some(ring), Some(claim));
        }
        Ok(())
    }

    fn went(&mut self, id: u32) {
        let Some(cpu) = self.cpus.iter_mut().find(|cpu| cpu.id == id) else {
            return;
        };
        if let Some(ring) = cpu.ring.take() {
            // Absent if paused; a dead event in the map does no harm.
            let _ = self.map.delete(&id.to_ne_bytes());
            cpu.claim = None;
            // One that is still there has been drained at least since the CPU
            // came back; both at once take two changes between two looks.
            if let Some(older) = cpu.old.replace(ring) {
                cpu.counts.lost_closed += lost_in(&older).unwrap_or(0);
            }
        }
    }

    /// `None` if the CPU is not online (any more).
    fn open(&self, cpu: u32) -> Result<Option<PerfRing>, SysError> {
        let wakeup = self.options.wakeup;
        let timestamps = self.options.timestamps;
        let pages = pages(self.options.bytes_per_cpu);
        let output = PerfEventAttr::bpf_output();
        let attr = match wakeup {
            Wakeup::Adaptive => output,
            Wakeup::Records(n) => output.wakeup_events(n.max(1)),
            Wakeup::Bytes(n) => output.wakeup_watermark(n),
        };
        let (scope, cpu, mut found) = (Scope::AllThreads, Some(cpu), None);
        open_output(attr, timestamps, &mut |attr| {
            found = Some(PerfRing::open(attr, scope, cpu, pages)?);
            Ok(())
        })?;
        let Some(ring) = found.as_mut().filter(|_| wakeup == Wakeup::Adaptive) else {
            return Ok(found);
        };
        // It wakes nobody by itself; the ring does when half full.
        let quiet = output.wakeup_watermark(u32::MAX);
        open_output(quiet, timestamps, &mut |attr| {
            let flags = OpenFlags::empty();
            ring.add_event(PerfEvent::open(attr, scope, cpu, None, flags)?)
        })?;
        Ok(found.filter(|ring| ring.second_event().is_some()))
    }

    fn rings(&self) -> impl Iterator<Item = &PerfRing> {
        self.cpus
            .iter()
            .flat_map(|cpu| cpu.old.iter().chain(&cpu.ring))
    }
}

impl Cpu {
    #[inline]
    fn drain(
        &mut self,
        max: usize,
        each: &mut impl FnMut(&Record<'_>) -> ControlFlow<()>,
    ) -> Result<(usize, ControlFlow<()>), ebpf_manager_sys::ringbuf::CorruptRing> {
        let mut total = 0;
        if let Some(old) = &mut self.old {
            let (n, flow) = drain_ring(old, self.id, max, &mut self.counts, each)?;
            if flow.is_break() || n == max {
                return Ok((n, flow));
            }
            total = n;
            self.counts.lost_closed += lost_in(old).unwrap_or(0);
            self.old = None;
        }
        let Some(ring) = &mut self.ring else {
            return Ok((total, ControlFlow::Continue(())));
        };
        let (n, flow) = drain_ring(ring, self.id, max - total, &mut self.counts, each)?;
        Ok((total + n, flow))
    }

    fn lost(&self) -> u64 {
        let rings = self.old.iter().chain(&self.ring);
        let exact: u64 = rings.filter_map(lost_in).sum();
        // Whichever knows more: the kernel's count, or what was read.
        self.counts.lost.max(exact + self.counts.lost_closed)
    }
}

/// Hands over at most `max` samples of one ring.
#[inline]
fn drain_ring(
    ring: &mut PerfRing,
    cpu: u32,
    max: usize,
    counts: &mut Counts,
    each: &mut impl FnMut(&Record<'_>) -> ControlFlow<()>,
) -> Result<(usize, ControlFlow<()>), ebpf_manager_sys::ringbuf::CorruptRing> {
    counts.peak = counts.peak.max(ring.available());
    let (mut handed, mut flow) = (0, ControlFlow::Continue(()));
    // What is no sample counts towards the ring's limit, not towards ours.
    while handed < max {
        let limit = max - handed;
        let mut others = 0;
        let read = ring.drain(limit, |record| {
            let (data, time_ns) = match record {
                PerfRecord::Sample { data, time_ns } => (data, time_ns),
                other => {
                    others += 1;
                    counts.note(other);
                    return ControlFlow::Continue(());
                }
            };
            let mut record = Record {
                data,
                cpu: Some(cpu),
                time_ns,
                lost_before: 0,
            };
            if counts.lost_before != 0 {
                record.lost_before = std::mem::take(&mut counts.lost_before);
            }
            let next = each(&record);
            if next.is_break() {
                flow = next;
            }
            next
        })?;
        handed += read - others;
        if read < limit || flow.is_break() {
            break;
        }
    }
    Ok((handed, flow))
}

/// Records that found the ring full, as the kernel counts them.
fn lost_in(ring: &PerfRing) -> Option<u64> {
    let lost = |event: &PerfEvent| event.count().ok()?.lost;
    let second = ring.second_event().and_then(lost).unwrap_or(0);
    Some(lost(ring.event())? + second)
}

/// Calls `open` with an event for output, and with less where the kernel does
/// not know all of it. Not called again if the CPU is not online.
pub(super) fn open_output(
    mut attr: PerfEventAttr<'static>,
    timestamps: bool,
    open: &mut dyn FnMut(&PerfEventAttr<'_>) -> Result<(), SysError>,
) -> Result<(), SysError> {
    if timestamps {
        attr = attr
            .sample_type(SampleType::RAW | SampleType::TIME)
            .monotonic_clock();
    }
    // Linux 6.0 counts losses; older ones do not know the format.
    for format in [ReadFormat::LOST, ReadFormat::empty()] {
        match open(&attr.read_format(format)) {
            Err(err) if err.is(Errno::ENODEV) => return Ok(()),
            Err(err) if err.is(Errno::EINVAL) && !format.is_empty() => {}
            result => return result.map_err(explained),
        }
    }
    Ok(())
}

/// With what would help, if that shows.
#[cold]
fn explained(err: SysError) -> SysError {
    match cure::find_for_event(&err, cure::paranoid::CPU) {
        // Mapping asks for another privilege.
        Some(cure) if err.op() == "perf_event_open" => err.with_detail(cure.to_string()),
        _ => err,
    }
}

/// Pages of a ring of at least so many bytes.
pub(super) fn pages(bytes: usize) -> usize {
    let pages = bytes.div_ceil(page_size()).max(1);
    // An absurd size is left for the kernel to refuse.
    pages.checked_next_power_of_two().unwrap_or(1 << 40)
}

impl Drop for PerfBufferReader {
    fn drop(&mut self) {
        if !self.paused {
            for cpu in self.cpus.iter().filter(|cpu| cpu.ring.is_some()) {
                let _ = self.map.delete(&cpu.id.to_ne_bytes());
            }
        }
    }
}

impl AsFd for PerfBufferReader {
    /// The descriptor to wait on for readability: one for all CPUs.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Buffer for PerfBufferReader {
    fn name(&self) -> &str {
        self.map.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_to_a_power_of_two_of_pages() {
        let page = page_size();
        for (bytes, expected) in [(0, 1), (1, 1), (page, 1), (page + 1, 2), (5 * page, 8)] {
            assert_eq!(pages(bytes), expected);
        }
        assert!(pages(usize::MAX) > 1 << 30);
    }

    #[test]
    fn cpus_are_chosen() {
        assert!(Cpus::All.contains(3));
        assert!(Cpus::One(3).contains(3) && !Cpus::One(3).contains(2));
        let rest = Cpus::AllBut(vec![3]);
        assert!(!rest.contains(3) && rest.contains(2));
    }
}
