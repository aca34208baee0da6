//! perf_event_open(2) and the requests on what it opens: counters, samples,
//! and the attachment points of BPF programs that are perf events (kprobes,
//! uprobes, tracepoints, timers).

use std::ffi::CStr;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use crate::Result;
use crate::abi::perf::{
    ATTR_SIZE_VER8, AttrFlags, EventAttr, OpenFlags, ReadFormat, SampleType, TRACE_MAX_PROGS,
    event_type, ioc, software,
};
use crate::errno::{Errno, SysError, retry_eintr};
use crate::fd::own;

/// What to open: a `perf_event_attr`, built up step by step.
///
/// `'a` is the life of the symbol or path that a probe names, which the kernel
/// reads when the event is opened.
#[derive(Clone, Copy, Debug)]
pub struct PerfEventAttr<'a> {
    raw: EventAttr,
    _name: PhantomData<&'a CStr>,
}

impl PerfEventAttr<'static> {
    /// Event `config` of the family or PMU `kind`, see
    /// [`event_type`]. Everything else is zero:
    /// it counts at once, takes no samples and reads as one number.
    pub fn new(kind: u32, config: u64) -> PerfEventAttr<'static> {
        PerfEventAttr {
            raw: EventAttr {
                kind,
                size: ATTR_SIZE_VER8,
                config,
                ..EventAttr::default()
            },
            _name: PhantomData,
        }
    }

    /// A [`software`](mod@software) event.
    pub fn software(config: u64) -> PerfEventAttr<'static> {
        PerfEventAttr::new(event_type::SOFTWARE, config)
    }

    /// The tracepoint with this `id`, from its `id` file in tracefs.
    pub fn tracepoint(id: u64) -> PerfEventAttr<'static> {
        PerfEventAttr::new(event_type::TRACEPOINT, id)
    }

    /// What `bpf_perf_event_output()` writes to: raw samples, each of which
    /// wakes the reader up. To be woken less often, set
    /// [`wakeup_events`](Self::wakeup_events) or
    /// [`wakeup_watermark`](Self::wakeup_watermark).
    ///
    /// Requires at least Linux 4.4.
    pub fn bpf_output() -> PerfEventAttr<'static> {
        PerfEventAttr::software(software::BPF_OUTPUT)
            .sample_type(SampleType::RAW)
            .sample_period(1)
            .wakeup_events(1)
    }

    /// A probe at the kernel `address`.
    ///
    /// `pmu` and `config` as in [`kprobe`](Self::kprobe).
    pub fn kprobe_at(pmu: u32, config: u64, address: u64) -> PerfEventAttr<'static> {
        let mut attr = PerfEventAttr::new(pmu, config);
        attr.raw.config2 = address;
        attr
    }
}

impl<'a> PerfEventAttr<'a> {
    /// A probe `offset` bytes into the kernel function `symbol`.
    ///
    /// `pmu` is the number in `/sys/bus/event_source/devices/kprobe/type`. The
    /// bit that `format/retprobe` there names, set in `config`, probes the
    /// return instead; `offset` has to be zero then.
    ///
    /// Requires at least Linux 4.17; before that the PMU does not exist.
    pub fn kprobe(pmu: u32, config: u64, symbol: &'a CStr, offset: u64) -> PerfEventAttr<'a> {
        let mut attr: PerfEventAttr<'a> = PerfEventAttr::new(pmu, config);
        attr.raw.config1 = symbol.as_ptr() as u64;
        attr.raw.config2 = offset;
        attr
    }

    /// A probe `offset` bytes into the file `path`, in every process that maps
    /// it, unless the event is opened for one.
    ///
    /// `pmu` is the number in `/sys/bus/event_source/devices/uprobe/type`.
    /// `config` holds what `format/` there places in it: `retprobe`, and since
    /// Linux 4.20 `ref_ctr_offset`, the offset of a semaphore to increment.
    ///
    /// Requires at least Linux 4.17; before that the PMU does not exist.
    pub fn uprobe(pmu: u32, config: u64, path: &'a CStr, offset: u64) -> PerfEventAttr<'a> {
        PerfEventAttr::kprobe(pmu, config, path, offset)
    }

    /// Takes a sample each `events` events. Zero, the default, takes none.
    #[must_use]
    pub fn sample_period(mut self, events: u64) -> Self {
        self.raw.sample_period = events;
        self.raw.flags.remove(AttrFlags::FREQ);
        self
    }

    /// Takes so many samples per second.
    #[must_use]
    pub fn sample_frequency(mut self, hertz: u64) -> Self {
        self.raw.sample_period = hertz;
        self.raw.flags.insert(AttrFlags::FREQ);
        self
    }

    /// What each sample carries.
    #[must_use]
    pub fn sample_type(mut self, what: SampleType) -> Self {
        self.raw.sample_type = what;
        self
    }

    /// What reading the count returns besides the count.
    #[must_use]
    pub fn read_format(mut self, what: ReadFormat) -> Self {
        self.raw.read_format = what;
        self
    }

    /// Sets further flags.
    #[must_use]
    pub fn flags(mut self, flags: AttrFlags) -> Self {
        self.raw.flags.insert(flags);
        self
    }

    /// Wakes readers of the ring up each so many samples.
    #[must_use]
    pub fn wakeup_events(mut self, samples: u32) -> Self {
        self.raw.wakeup = samples;
        self.raw.flags.remove(AttrFlags::WATERMARK);
        self
    }

    /// Wakes readers of the ring up each so many bytes; zero stands for half
    /// of the ring. What stays below it waits for the reader's own timeout.
    #[must_use]
    pub fn wakeup_watermark(mut self, bytes: u32) -> Self {
        self.raw.wakeup = bytes;
        self.raw.flags.insert(AttrFlags::WATERMARK);
        self
    }

    /// Takes time stamps from `CLOCK_MONOTONIC`, the clock of
    /// `bpf_ktime_get_ns()`, instead of the scheduler's.
    ///
    /// Requires at least Linux 4.1.
    #[must_use]
    pub fn monotonic_clock(mut self) -> Self {
        self.raw.clockid = libc::CLOCK_MONOTONIC;
        self.raw.flags.insert(AttrFlags::USE_CLOCKID);
        self
    }

    /// The kernel's structure. Its `config1` may be the address of the name.
    pub fn raw(&self) -> &EventAttr {
        &self.raw
    }
}

/// Whose events to take.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'fd> {
    /// Those of the calling thread.
    CallingThread,
    /// Those of this thread, or of a process's first thread; zero is the
    /// calling one.
    Thread(u32),
    /// Those of all threads. Needs a CPU to be given, and `CAP_PERFMON`, or
    /// `CAP_SYS_ADMIN` before Linux 5.8, unless `perf_event_paranoid` is
    /// below 1.
    AllThreads,
    /// Those of the threads in a cgroup: a descriptor of its directory. Needs
    /// a CPU to be given.
    Cgroup(BorrowedFd<'fd>),
}

/// An open perf event. Dropping it closes it, which detaches BPF programs
/// attached by [`set_bpf`](PerfEvent::set_bpf).
///
/// There is no way to make one of a bare descriptor, nor a
/// [`PerfRing`](crate::perfring::PerfRing) of one of these: that relies on
/// having mapped its event first.
#[derive(Debug)]
pub struct PerfEvent {
    fd: OwnedFd,
    sample_type: SampleType,
    read_format: ReadFormat,
}

impl PerfEvent {
    /// Opens `attr` for `scope` on `cpu`, `None` meaning any CPU; `group` is
    /// the event that leads the group to join. The descriptor is closed on
    /// exec in any case.
    ///
    /// # Errors
    /// What perf_event_open(2) says: `EACCES` or `EPERM` without privilege,
    /// `ENOENT` for an event or symbol the kernel does not have, `E2BIG` for
    /// an attribute newer than the kernel, `EINVAL` for most else.
    pub fn open(
        attr: &PerfEventAttr<'_>,
        scope: Scope<'_>,
        cpu: Option<u32>,
        group: Option<BorrowedFd<'_>>,
        flags: OpenFlags,
    ) -> Result<PerfEvent> {
        let mut flags = flags | OpenFlags::FD_CLOEXEC;
        // −1 stands for all threads or any CPU, so no number may become it.
        let number =
            |n: u32| i32::try_from(n).map_err(|_| SysError::new("perf_event_open", Errno::EINVAL));
        let pid = match scope {
            Scope::CallingThread => 0,
            Scope::Thread(id) => number(id)?,
            Scope::AllThreads => -1,
            Scope::Cgroup(dir) => {
                flags |= OpenFlags::PID_CGROUP;
                dir.as_raw_fd()
            }
        };
        let cpu = cpu.map_or(Ok(-1), number)?;
        let group = group.map_or(-1, |group| group.as_raw_fd());
        // The kernel writes the size it knows back when it answers E2BIG.
        let mut raw = attr.raw;
        let raw = ptr::from_mut(&mut raw);
        let fd = retry_eintr("perf_event_open", || {
            let nr = libc::SYS_perf_event_open;
            // SAFETY: `raw` points to a structure as long as its `size` says,
            // which lives through the call. A name in it is terminated and
            // alive, because `attr` carries its lifetime.
            unsafe { libc::syscall(nr, raw, pid, cpu, group, flags.bits()) }
        })?;
        Ok(PerfEvent {
            fd: own("perf_event_open", fd)?,
            sample_type: attr.raw.sample_type,
            read_format: attr.raw.read_format,
        })
    }

    /// Starts counting, and running the attached program.
    pub fn enable(&self) -> Result<()> {
        self.request("ioctl(PERF_EVENT_IOC_ENABLE)", ioc::ENABLE, 0)
    }

    /// Stops counting, and running the attached program.
    pub fn disable(&self) -> Result<()> {
        self.request("ioctl(PERF_EVENT_IOC_DISABLE)", ioc::DISABLE, 0)
    }

    /// Sets the count to zero.
    pub fn reset(&self) -> Result<()> {
        self.request("ioctl(PERF_EVENT_IOC_RESET)", ioc::RESET, 0)
    }

    /// Attaches a loaded program until the event is closed.
    ///
    /// Requires at least Linux 4.1 for kprobes, 4.3 for uprobes, 4.7 for
    /// tracepoints and 4.9 for counters. From 5.15 on a link does it better:
    /// it can be pinned, and its program be replaced.
    ///
    /// # Errors
    /// `EEXIST` if the event has a program already, `E2BIG` if the tracepoint
    /// has 64 programs, `EINVAL` if the program's type does not fit the event.
    pub fn set_bpf(&self, program: BorrowedFd<'_>) -> Result<()> {
        let program = program.as_raw_fd() as libc::c_ulong;
        self.request("ioctl(PERF_EVENT_IOC_SET_BPF)", ioc::SET_BPF, program)
    }

    /// The ids of all programs attached to the tracepoint or probe that this
    /// event stands for, by anyone.
    ///
    /// Requires at least Linux 4.16, and `CAP_PERFMON` or `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// `EINVAL` if the event is no tracepoint or probe.
    pub fn query_bpf(&self) -> Result<Vec<u32>> {
        // struct perf_event_query_bpf: ids_len, prog_cnt, ids[].
        let mut buffer = [0_u32; 2 + TRACE_MAX_PROGS];
        buffer[0] = TRACE_MAX_PROGS as u32;
        // The address is taken from the whole array: the kernel fills it in.
        let at = buffer.as_mut_ptr() as libc::c_ulong;
        self.request("ioctl(PERF_EVENT_IOC_QUERY_BPF)", ioc::QUERY_BPF, at)?;
        let [_, count, ids @ ..] = &buffer;
        let count = (*count as usize).min(ids.len());
        Ok(ids.get(..count).unwrap_or_default().to_vec())
    }

    /// Sets the filter expression of a tracepoint, such as `pid == 1`. It
    /// applies to samples, not to attached programs.
    ///
    /// # Errors
    /// `EINVAL` if the expression is wrong or the event takes none, `EEXIST`
    /// if it has one already.
    pub fn set_filter(&self, filter: &CStr) -> Result<()> {
        let filter = filter.as_ptr() as libc::c_ulong;
        self.request("ioctl(PERF_EVENT_IOC_SET_FILTER)", ioc::SET_FILTER, filter)
    }

    /// The event's id, which samples and lost records carry.
    pub fn id(&self) -> Result<u64> {
        let mut id = 0_u64;
        let at = ptr::from_mut(&mut id) as libc::c_ulong;
        self.request("ioctl(PERF_EVENT_IOC_ID)", ioc::ID, at)?;
        Ok(id)
    }

    /// Pauses (`true`) or resumes writing to the event's ring.
    ///
    /// Requires at least Linux 4.7.
    ///
    /// # Errors
    /// `EINVAL` if the event has no ring.
    pub fn pause_output(&self, pause: bool) -> Result<()> {
        let op = "ioctl(PERF_EVENT_IOC_PAUSE_OUTPUT)";
        self.request(op, ioc::PAUSE_OUTPUT, pause.into())
    }

    /// Sends what is written to this event to the ring of `ring` from now on.
    ///
    /// Not public: whoever then mapped this event would map that ring again.
    ///
    /// # Errors
    /// `EINVAL` if the two are not alike (CPU, clock, direction) or this one
    /// has a ring of its own that is mapped.
    pub(crate) fn set_output(&self, ring: &PerfEvent) -> Result<()> {
        let to = ring.fd.as_raw_fd() as libc::c_ulong;
        self.request("ioctl(PERF_EVENT_IOC_SET_OUTPUT)", ioc::SET_OUTPUT, to)
    }

    /// Reads the count.
    ///
    /// # Errors
    /// `EINVAL` if the event was opened with [`ReadFormat::GROUP`]: read such
    /// a one with [`read_words`](Self::read_words).
    pub fn count(&self) -> Result<Count> {
        let format = self.read_format;
        if format.contains(ReadFormat::GROUP) {
            return Err(SysError::new("read(perf event)", Errno::EINVAL));
        }
        let mut words = [0_u64; 5];
        let n = self.read_words(&mut words)?;
        let mut words = words.iter().take(n).copied();
        // The members stand in this order, each only if asked for.
        let value = words
            .next()
            .ok_or_else(|| SysError::new("read(perf event)", Errno::ENODATA))?;
        let mut member = |flag| format.contains(flag).then(|| words.next()).flatten();
        Ok(Count {
            value,
            enabled_ns: member(ReadFormat::TOTAL_TIME_ENABLED),
            running_ns: member(ReadFormat::TOTAL_TIME_RUNNING),
            id: member(ReadFormat::ID),
            lost: member(ReadFormat::LOST),
        })
    }

    /// Reads what the event's [`ReadFormat`] asked for as it comes, and
    /// returns how many words were filled.
    ///
    /// # Errors
    /// `ENOSPC` if `words` is too short.
    pub fn read_words(&self, words: &mut [u64]) -> Result<usize> {
        let size = size_of_val(words);
        let to = words.as_mut_ptr().cast();
        let n = retry_eintr("read(perf event)", || {
            // SAFETY: the descriptor is open and `to` points to `size`
            // writable bytes, for which every value is valid.
            unsafe { libc::read(self.fd.as_raw_fd(), to, size) as i64 }
        })?;
        Ok(n as usize / size_of::<u64>())
    }

    /// What its samples carry.
    pub fn sample_type(&self) -> SampleType {
        self.sample_type
    }

    /// `arg` is a number, or the address of what `request` reads or writes.
    fn request(&self, op: &'static str, request: libc::Ioctl, arg: libc::c_ulong) -> Result<()> {
        retry_eintr(op, || {
            // SAFETY: the descriptor is open; the callers above pass what
            // `request` takes: a number, or the address of a live object that
            // is at least as large as what the kernel reads or writes.
            i64::from(unsafe { libc::ioctl(self.fd.as_raw_fd(), request, arg) })
        })?;
        Ok(())
    }
}

impl AsFd for PerfEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What [`PerfEvent::count`] read; a member not asked for is `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Count {
    /// The count itself.
    pub value: u64,
    /// Nanoseconds the event was enabled.
    pub enabled_ns: Option<u64>,
    /// Nanoseconds it was counting; less, if it had to share a counter.
    pub running_ns: Option<u64>,
    /// The event's id.
    pub id: Option<u64>,
    /// Samples lost. Requires at least Linux 6.0.
    pub lost: Option<u64>,
}

#[cfg(test)]
mod tests;
