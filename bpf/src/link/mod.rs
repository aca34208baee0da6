//! Links: programs attached to hooks, each detached when dropped.

mod cgroup;
mod closing;
mod clsact;
mod event;
mod interface;
mod kprobe;
mod library;
mod net;
mod netns;
mod operations;
mod perf_event;
mod probe;
mod replace;
mod route;
mod socket;
mod standing;
mod struct_ops;
pub(crate) mod symbols;
mod tc;
mod trace;
mod uprobe;
pub(crate) mod usdt;
mod usdt_spec;
mod xdp;

pub use cgroup::{CgroupOptions, Sharing, Turn, cgroup_programs, cgroup_programs_in_effect};
pub use closing::Closing;
pub use clsact::remove_stale_filters;
pub use interface::{Interface, NetNamespace};
pub use net::{AttachedProgram, HookPrograms, Method, Order, Place};
pub use netns::{Fragments, NetfilterFamily, NetfilterHook, NetfilterOptions};
pub use route::LwtRoute;
pub use tc::{ClsactOptions, Direction, NetkitEnd, QdiscCleanup, TcAttach, Verdict};
pub use xdp::{XdpMode, XdpOptions};

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ebpf_manager_sys::SysError;
use ebpf_manager_sys::perf::PerfEvent;
use ebpf_manager_sys::proc::KernelVersion;

use self::standing::Standing;
use crate::error::LinkError;

pub use event::remove_stale_probe_events;
pub use kprobe::{KernelFunction, Kprobe, KprobeMulti};
pub use perf_event::{PerfHook, Sampling};
pub use probe::ProbeOn;
pub use symbols::{syscall_function, syscall_function_in, traceable_functions};
pub use trace::{IterOver, Tracing};
pub use uprobe::{Uprobe, UprobeMulti, UserPlace};
pub use usdt::{Usdt, UsdtSpecs};

/// A program attached to a hook.
///
/// Dropping it detaches the program and ignores errors; [`Link::detach`]
/// reports them. It does not need the [`Program`](crate::Program) to stay
/// open: the kernel holds the program for as long as it is attached.
#[derive(Debug)]
pub struct Link {
    target: String,
    mechanism: Mechanism,
    fallbacks: Box<[(&'static str, SysError)]>,
    inner: Inner,
}

/// What keeps the program attached.
#[derive(Debug)]
enum Inner {
    /// A `bpf_link` of the kernel's.
    Bpf(OwnedFd),
    /// A perf event that runs the program, with a `bpf_link` above it or
    /// without, and below it the tracefs event that was made for it (known
    /// only to those who make such). Closed in this order.
    Perf {
        link: Option<OwnedFd>,
        event: PerfEvent,
        #[expect(dead_code, reason = "removes the event when dropped")]
        name: Option<Box<dyn Any + Send + Sync>>,
    },
    /// One of these, and what it needs for as long as it is there.
    Keeping(Box<Inner>, Box<dyn Keep>),
    /// Several of these behind one link: the first and the others.
    Many(Box<Inner>, Vec<Inner>),
    /// Something that stands until it is taken down.
    Standing(Standing),
}

/// What goes when a link goes. Behind a pointer, so that programs which make no
/// such links do not contain how it goes.
trait Keep: std::fmt::Debug + Send + Sync {
    /// The link is pinned: what it needs has to outlive this process.
    fn pinned(&self) {}
}

impl Inner {
    /// The `bpf_link`, if there is one and only one.
    fn link(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Inner::Bpf(link) => Some(link.as_fd()),
            Inner::Perf { link, .. } => link.as_ref().map(AsFd::as_fd),
            Inner::Keeping(inner, _) => inner.link(),
            Inner::Many(..) | Inner::Standing(_) => None,
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Inner::Bpf(link)
            | Inner::Perf {
                link: Some(link), ..
            } => Some(link.as_fd()),
            Inner::Perf { event, .. } => Some(event.as_fd()),
            Inner::Keeping(inner, _) => inner.fd(),
            Inner::Many(first, _) => first.fd(),
            Inner::Standing(_) => None,
        }
    }

    /// Stops running the program where that takes less than closing.
    fn silence(&mut self) {
        match self {
            // A link keeps a program on an event: it goes first.
            Inner::Perf { link, event, .. } => {
                drop(link.take());
                // And this does for counters.
                let _ = event.disable();
            }
            Inner::Keeping(inner, _) => inner.silence(),
            Inner::Many(first, rest) => {
                first.silence();
                rest.iter_mut().for_each(Inner::silence);
            }
            Inner::Bpf(_) | Inner::Standing(_) => {}
        }
    }

    /// Stops the hook from running the program. The first error counts.
    fn detach(self, mechanism: Mechanism) -> Result<(), SysError> {
        match self {
            Inner::Bpf(link) => operations::detach(&link, mechanism),
            Inner::Perf { event, .. } => event.disable(),
            Inner::Keeping(inner, _keep) => inner.detach(mechanism),
            Inner::Many(first, rest) => rest
                .into_iter()
                .fold(first.detach(mechanism), |result, part| {
                    result.and(part.detach(mechanism))
                }),
            Inner::Standing(standing) => standing.detach(),
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
    /// A route with a program on it, by rtnetlink. Linux 4.10.
    LwtRoute,
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
    /// `BPF_LINK_CREATE` for a structure of the kernel. Linux 6.4.
    StructOpsLink,
    /// A map that is a structure of the kernel. Linux 5.6.
    StructOpsMap,
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
            Mechanism::LwtRoute => "route",
            Mechanism::ProbeEvent => "tracefs event",
            Mechanism::KprobeMulti => "kprobe.multi",
            Mechanism::UprobeMulti => "uprobe.multi",
            Mechanism::TracingLink => "tracing link",
            Mechanism::Iterator => "iterator link",
            Mechanism::StructOpsLink => "struct_ops link",
            Mechanism::StructOpsMap => "struct_ops map",
        }
    }

    /// The first version of Linux that has it.
    pub fn since(self) -> KernelVersion {
        let (major, minor) = match self {
            Mechanism::SocketOption => (3, 19),
            Mechanism::ProbeEvent => (4, 1),
            Mechanism::Clsact => (4, 5),
            Mechanism::PerfEventIoctl => (4, 7),
            Mechanism::XdpNetlink => (4, 8),
            Mechanism::CgroupAttach | Mechanism::LwtRoute => (4, 10),
            Mechanism::SockmapAttach => (4, 14),
            Mechanism::RawTracepointOpen => (4, 17),
            Mechanism::LircAttach => (4, 18),
            Mechanism::NetnsAttach => (4, 20),
            Mechanism::OtherLink | Mechanism::CgroupLink => (5, 7),
            Mechanism::NetnsLink | Mechanism::Iterator => (5, 8),
            Mechanism::XdpLink => (5, 9),
            Mechanism::PerfEventLink => (5, 15),
            Mechanism::KprobeMulti => (5, 18),
            Mechanism::TracingLink => (5, 19),
            Mechanism::Netfilter | Mechanism::StructOpsLink => (6, 4),
            Mechanism::Tcx | Mechanism::UprobeMulti => (6, 6),
            Mechanism::Netkit => (6, 7),
            Mechanism::SockmapLink => (6, 10),
            Mechanism::StructOpsMap => (5, 6),
        };
        KernelVersion::new(major, minor, 0)
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

    /// What was tried before that, in this order, and the kernel's answer to
    /// it: names as in [`LinkError::Attach`]. Empty if the first way worked,
    /// and for links that were opened from a pin; of several links held as
    /// one, what was tried for all of them and for the first.
    pub fn fallbacks(&self) -> &[(&'static str, SysError)] {
        &self.fallbacks
    }

    /// The kernel's id of the link; `None` for mechanisms without one, and
    /// for several links held as one. Requires at least Linux 5.8.
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
        self.inner
            .detach(self.mechanism)
            .map_err(|source| LinkError::Detach {
                target: self.target,
                source,
            })
    }

    /// The descriptor that keeps the program attached, if that is what does;
    /// of several, the first.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.fd()
    }

    fn of_fd(fd: OwnedFd, target: String, mechanism: Mechanism) -> Link {
        Link::new(target, mechanism, Inner::Bpf(fd))
    }

    fn new(target: String, mechanism: Mechanism, inner: Inner) -> Link {
        Link {
            target,
            mechanism,
            fallbacks: Box::default(),
            inner,
        }
    }

    /// Notes what was tried before this link was.
    fn after(mut self, mut tried: Vec<(&'static str, SysError)>) -> Link {
        if !tried.is_empty() {
            tried.extend(std::mem::take(&mut self.fallbacks));
            self.fallbacks = tried.into_boxed_slice();
        }
        self
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
}
