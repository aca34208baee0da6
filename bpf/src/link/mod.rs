//! Links: programs attached to hooks, each detached when dropped.

mod trace;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ebpf_manager_sys::bpf as sys;
use ebpf_manager_sys::perf::PerfEvent;

use crate::error::LinkError;

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
    /// A `bpf_link` of the kernel's. One on a perf event holds the event, too
    /// (`bpf_perf_link_attach` in kernel/bpf/syscall.c of Linux 5.15).
    Bpf(OwnedFd),
    /// A perf event that runs the program, without a link of its own.
    PerfEvent(PerfEvent),
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
}

impl Mechanism {
    /// A few words for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Mechanism::RawTracepointOpen => "raw_tracepoint_open",
            Mechanism::PerfEventLink => "link on a perf event",
            Mechanism::PerfEventIoctl => "perf event ioctl",
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

    /// The kernel's id of the link; `None` for mechanisms without one.
    /// Requires at least Linux 5.8.
    ///
    /// # Errors
    /// [`LinkError::Operation`].
    pub fn id(&self) -> Result<Option<u32>, LinkError> {
        match &self.inner {
            Inner::Bpf(link) => sys::link_info(link.as_fd())
                .map(|info| Some(info.id))
                .map_err(|source| LinkError::Operation {
                    target: self.target.clone(),
                    source,
                }),
            Inner::PerfEvent(_) => Ok(None),
        }
    }

    /// Detaches the program: when this returns, the hook no longer runs it,
    /// unless another process holds a copy of the descriptor.
    ///
    /// # Errors
    /// [`LinkError::Detach`] if the kernel refuses; the descriptors are closed
    /// all the same. What is detached by closing, as all of today's mechanisms
    /// are, never fails.
    pub fn detach(self) -> Result<(), LinkError> {
        // Disabling the event first would not help: a tracepoint's programs
        // run whether or not one of its events counts
        // (`perf_trace_run_bpf_submit` in kernel/events/core.c of Linux 6.12).
        drop(self.inner);
        Ok(())
    }

    /// The descriptor that keeps the program attached.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.inner {
            Inner::Bpf(link) => link.as_fd(),
            Inner::PerfEvent(event) => event.as_fd(),
        }
    }
}
