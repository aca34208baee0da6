//! Links: programs attached to hooks, each detached when dropped.

mod event;
mod perf_event;
mod probe;
mod symbols;
mod trace;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use ebpf_manager_sys::bpf as sys;
use ebpf_manager_sys::perf::PerfEvent;
use ebpf_manager_sys::{Errno, SysError};

use crate::error::LinkError;
use crate::program::Program;
use event::ProbeEvent;

pub use event::remove_stale_probe_events;
pub use perf_event::{PerfHook, Sampling};
pub use probe::{KernelFunction, Kprobe, KprobeMulti, ProbeOn, Uprobe, UprobeMulti, UserPlace};
pub use symbols::{syscall_function, syscall_function_in, traceable_functions};
pub use trace::{IterOver, Tracing};

/// A program attached to a hook.
///
/// Dropping it detaches the program and ignores errors; [`Link::detach`]
/// reports them. It does not need the [`Program`](crate::Program) to stay
/// open: the kernel holds the program for as long as it is attached.
#[derive(Debug)]
pub struct Link {
    target: String,
    mechanism: Mechanism,
    inner: Inner,
}

/// What keeps the program attached.
#[derive(Debug)]
enum Inner {
    /// A `bpf_link` of the kernel's.
    Bpf(OwnedFd),
    /// A perf event that runs the program, with a `bpf_link` above it or
    /// without, and below it the tracefs event that was made for it. Closed in
    /// this order.
    Perf {
        link: Option<OwnedFd>,
        event: PerfEvent,
        #[expect(dead_code, reason = "removes the event when dropped")]
        name: Option<ProbeEvent>,
    },
    /// Several of these behind one link: the first and the others.
    Many(Box<Inner>, Vec<Inner>),
}

impl Inner {
    /// The `bpf_link`, if there is one and only one.
    fn link(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Inner::Bpf(link) => Some(link.as_fd()),
            Inner::Perf { link, .. } => link.as_ref().map(AsFd::as_fd),
            Inner::Many(..) => None,
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Inner::Bpf(link)
            | Inner::Perf {
                link: Some(link), ..
            } => link.as_fd(),
            Inner::Perf { event, .. } => event.as_fd(),
            Inner::Many(first, _) => first.fd(),
        }
    }

    /// Stops the hook from running the program. The first error counts.
    fn silence(&self) -> Result<(), SysError> {
        match self {
            Inner::Bpf(_) => Ok(()),
            Inner::Perf { event, .. } => event.disable(),
            Inner::Many(first, rest) => rest
                .iter()
                .fold(first.silence(), |result, part| result.and(part.silence())),
        }
    }
}

/// The kernel interface that a link was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mechanism {
    /// `BPF_RAW_TRACEPOINT_OPEN`. Linux 4.17.
    RawTracepointOpen,
    /// `BPF_LINK_CREATE` on a perf event. Linux 5.15.
    PerfEventLink,
    /// `PERF_EVENT_IOC_SET_BPF`. Linux 4.7.
    PerfEventIoctl,
    /// An event in `kprobe_events` or `uprobe_events` of tracefs, made for
    /// this link. Linux 4.1.
    ProbeEvent,
    /// `BPF_LINK_CREATE` on many kernel functions. Linux 5.18.
    KprobeMulti,
    /// `BPF_LINK_CREATE` on many places of a user binary. Linux 6.6.
    UprobeMulti,
    /// `BPF_LINK_CREATE` for a program that names its hook. Linux 5.19.
    TracingLink,
    /// `BPF_LINK_CREATE` for an iterator. Linux 5.8.
    Iterator,
    /// Opened from a pin.
    Pinned,
}

impl Mechanism {
    /// A few words for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Mechanism::RawTracepointOpen => "raw_tracepoint_open",
            Mechanism::PerfEventLink => "link on a perf event",
            Mechanism::PerfEventIoctl => "perf event ioctl",
            Mechanism::ProbeEvent => "tracefs event",
            Mechanism::KprobeMulti => "kprobe.multi",
            Mechanism::UprobeMulti => "uprobe.multi",
            Mechanism::TracingLink => "tracing link",
            Mechanism::Iterator => "iterator link",
            Mechanism::Pinned => "pinned link",
        }
    }
}

impl std::fmt::Display for Mechanism {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Link {
    /// The hook and its target: `"tracepoint sched/sched_process_exec"`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The kernel interface that was used.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The kernel's id of the link; `None` for mechanisms without one, and
    /// for several links held as one. Requires at least Linux 5.8.
    ///
    /// # Errors
    /// [`LinkError::Operation`].
    pub fn id(&self) -> Result<Option<u32>, LinkError> {
        Ok(self.info()?.map(|info| info.id))
    }

    /// What the kernel tells about the link; `None` as for [`Link::id`].
    /// Requires at least Linux 5.8.
    ///
    /// # Errors
    /// [`LinkError::Operation`].
    pub fn info(&self) -> Result<Option<sys::LinkInfo>, LinkError> {
        match self.inner.link() {
            Some(link) => sys::link_info(link)
                .map(Some)
                .map_err(|source| self.operation(source)),
            None => Ok(None),
        }
    }

    /// Puts `new` in the place of the program at once: no event is missed and
    /// none is seen twice. Iterators can (Linux 5.8); the kernel has no way
    /// for perf events, multi links and traced functions.
    ///
    /// # Errors
    /// [`LinkError::Operation`]; `EINVAL` or `EOPNOTSUPP` where it cannot.
    pub fn update(&self, new: &Program) -> Result<(), LinkError> {
        self.whole("update")
            .and_then(|link| sys::link_update(link, new.as_fd(), None))
            .map_err(|source| self.operation(source))
    }

    /// Pins the link below a BPF file system: the program stays attached when
    /// this is dropped, until the file is removed.
    ///
    /// # Errors
    /// [`LinkError::Operation`]; `EOPNOTSUPP` for links that the kernel knows
    /// nothing of: perf events before Linux 5.15, tracefs events, several held
    /// as one.
    pub fn pin(&self, path: &Path) -> Result<(), LinkError> {
        self.whole("pin")
            .and_then(|link| sys::obj_pin(link, path, None))
            .map_err(|source| self.operation(source.with_path(path)))
    }

    /// Opens a pinned link. Dropping it detaches nothing while the pin is
    /// there.
    ///
    /// # Errors
    /// [`LinkError::Operation`]; `ENOENT` if there is no such pin, `EINVAL` if
    /// something else is pinned there.
    pub fn from_pin(path: &Path) -> Result<Link, LinkError> {
        let target = path.display().to_string();
        let opened = sys::obj_get(path, 0, None)
            // Only a link has these facts.
            .and_then(|fd| sys::link_info(fd.as_fd()).map(|_| fd));
        match opened {
            Ok(fd) => Ok(Link::of_fd(fd, target, Mechanism::Pinned)),
            Err(source) => Err(LinkError::Operation { target, source }),
        }
    }

    /// Detaches the program: when this returns, the hook no longer runs it.
    ///
    /// # Errors
    /// [`LinkError::Detach`] if the kernel refuses; the descriptors are closed
    /// all the same, which detaches too.
    pub fn detach(self) -> Result<(), LinkError> {
        self.inner.silence().map_err(|source| LinkError::Detach {
            target: self.target,
            source,
        })
    }

    /// The descriptor that keeps the program attached; of several, the first.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }

    fn of_fd(fd: OwnedFd, target: String, mechanism: Mechanism) -> Link {
        Link {
            target,
            mechanism,
            inner: Inner::Bpf(fd),
        }
    }

    /// Takes `other` in: both end together.
    fn add(&mut self, other: Link) {
        if let Inner::Many(_, rest) = &mut self.inner {
            rest.push(other.inner);
            return;
        }
        // `other` stands in while the first one moves.
        let first = Box::new(std::mem::replace(&mut self.inner, other.inner));
        let second = std::mem::replace(&mut self.inner, Inner::Many(first, Vec::new()));
        if let Inner::Many(_, rest) = &mut self.inner {
            rest.push(second);
        }
    }

    /// The one `bpf_link` that is all of this link.
    fn whole(&self, op: &'static str) -> Result<BorrowedFd<'_>, SysError> {
        match self.inner.link() {
            Some(link) if self.mechanism != Mechanism::ProbeEvent => Ok(link),
            _ => Err(SysError::new(op, Errno::EOPNOTSUPP).with_detail(self.mechanism.as_str())),
        }
    }

    #[cold]
    fn operation(&self, source: SysError) -> LinkError {
        LinkError::Operation {
            target: self.target.clone(),
            source,
        }
    }
}
