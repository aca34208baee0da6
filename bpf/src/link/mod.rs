//! Links: programs attached to hooks, each detached when dropped.

mod cgroup;
mod interface;
mod net;
mod netns;
mod operations;
mod socket;
mod standing;
mod tc;
mod trace;
mod xdp;

pub use cgroup::{CgroupOptions, Sharing, cgroup_programs};
pub use interface::{Interface, NetNamespace};
pub use net::{AttachedProgram, HookPrograms, Method, Order, Place};
pub use netns::{Fragments, NetfilterFamily, NetfilterHook, NetfilterOptions};
pub use tc::{ClsactOptions, Direction, NetkitEnd, QdiscCleanup, TcAttach, Verdict};
pub use xdp::{XdpMode, XdpOptions};

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ebpf_manager_sys::perf::PerfEvent;

use self::standing::Standing;
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
    /// A `bpf_link` of the kernel's.
    Bpf(OwnedFd),
    /// A `bpf_link` and the perf event below it.
    PerfLink { link: OwnedFd, event: PerfEvent },
    /// A perf event that runs the program, without a link of its own.
    PerfEvent(PerfEvent),
    /// Something that stands until it is taken down.
    Standing(Standing),
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
    /// A link of a kind this version does not make.
    OtherLink,
    /// A link to XDP. Linux 5.9.
    XdpLink,
    /// XDP by rtnetlink. Linux 4.8.
    XdpNetlink,
    /// A tcx link. Linux 6.6.
    Tcx,
    /// A filter on clsact, by rtnetlink. Linux 4.5.
    Clsact,
    /// A netkit link. Linux 6.7.
    Netkit,
    /// A netfilter link. Linux 6.4.
    Netfilter,
    /// A link to a network namespace. Linux 5.8.
    NetnsLink,
    /// `BPF_PROG_ATTACH` to a network namespace. Linux 4.20.
    NetnsAttach,
    /// A link to a cgroup. Linux 5.7.
    CgroupLink,
    /// `BPF_PROG_ATTACH` to a cgroup. Linux 4.10.
    CgroupAttach,
    /// A link to a map of sockets. Linux 6.10.
    SockmapLink,
    /// `BPF_PROG_ATTACH` to a map of sockets. Linux 4.14.
    SockmapAttach,
    /// `BPF_PROG_ATTACH` to an infrared receiver. Linux 4.18.
    LircAttach,
    /// An option of a socket. Linux 3.19.
    SocketOption,
}

impl Mechanism {
    /// A few words for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Mechanism::RawTracepointOpen => "raw_tracepoint_open",
            Mechanism::PerfEventLink => "link on a perf event",
            Mechanism::PerfEventIoctl => "perf event ioctl",
            Mechanism::OtherLink => "link",
            Mechanism::XdpLink => "xdp link",
            Mechanism::XdpNetlink => "rtnetlink",
            Mechanism::Tcx => "tcx link",
            Mechanism::Clsact => "clsact filter",
            Mechanism::Netkit => "netkit link",
            Mechanism::Netfilter => "netfilter link",
            Mechanism::NetnsLink => "network namespace link",
            Mechanism::CgroupLink => "cgroup link",
            Mechanism::SockmapLink => "sockmap link",
            Mechanism::NetnsAttach
            | Mechanism::CgroupAttach
            | Mechanism::SockmapAttach
            | Mechanism::LircAttach => "prog_attach",
            Mechanism::SocketOption => "socket option",
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
        Ok(self.info()?.map(|info| info.id))
    }

    /// Detaches the program: when this returns, the hook no longer runs it.
    ///
    /// What is gone already (an interface, a cgroup, a filter that somebody
    /// else removed) is detached. A pin holds tracing and perf event links
    /// attached, and all others below Linux 5.9, until its file is removed.
    ///
    /// # Errors
    /// [`LinkError::Detach`] if the kernel refuses; the descriptors are closed
    /// all the same, which detaches too.
    pub fn detach(self) -> Result<(), LinkError> {
        let result = match self.inner {
            Inner::Bpf(link) => operations::detach(&link, self.mechanism),
            Inner::PerfLink { event, .. } | Inner::PerfEvent(event) => event.disable(),
            Inner::Standing(standing) => standing.detach(),
        };
        result.map_err(|source| LinkError::Detach {
            target: self.target,
            source,
        })
    }

    /// The descriptor that keeps the program attached, if that is what does.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.inner {
            Inner::Bpf(link) | Inner::PerfLink { link, .. } => Some(link.as_fd()),
            Inner::PerfEvent(event) => Some(event.as_fd()),
            Inner::Standing(_) => None,
        }
    }
}
