//! What can be done with a link once it is there: another program, a pin,
//! questions about it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ebpf_manager_sys::abi::bpf::LinkType;
use ebpf_manager_sys::bpf::{self as sys, LinkDetail, LinkInfo};
use ebpf_manager_sys::{Errno, SysError};

use super::{Inner, Link, Mechanism};
use crate::cure::Cure;
use crate::error::LinkError;
use crate::program::Program;

impl Mechanism {
    fn of_link(link_type: LinkType) -> Mechanism {
        match link_type {
            LinkType::RAW_TRACEPOINT => Mechanism::RawTracepointOpen,
            LinkType::PERF_EVENT => Mechanism::PerfEventLink,
            LinkType::KPROBE_MULTI => Mechanism::KprobeMulti,
            LinkType::UPROBE_MULTI => Mechanism::UprobeMulti,
            LinkType::TRACING => Mechanism::TracingLink,
            LinkType::ITER => Mechanism::Iterator,
            LinkType::XDP => Mechanism::XdpLink,
            LinkType::TCX => Mechanism::Tcx,
            LinkType::NETKIT => Mechanism::Netkit,
            LinkType::NETFILTER => Mechanism::Netfilter,
            LinkType::NETNS => Mechanism::NetnsLink,
            LinkType::CGROUP => Mechanism::CgroupLink,
            LinkType::SOCKMAP => Mechanism::SockmapLink,
            LinkType::STRUCT_OPS => Mechanism::StructOpsLink,
            _ => Mechanism::OtherLink,
        }
    }

    /// Whether the kernel takes down such a link although others hold it.
    fn has_link_detach(self) -> bool {
        matches!(
            self,
            Mechanism::XdpLink
                | Mechanism::Tcx
                | Mechanism::Netkit
                | Mechanism::Netfilter
                | Mechanism::NetnsLink
                | Mechanism::CgroupLink
                | Mechanism::SockmapLink
                | Mechanism::StructOpsLink
        )
    }
}

/// Detaches a link, from its pins too where the kernel can.
pub(super) fn detach(link: &OwnedFd, mechanism: Mechanism) -> Result<(), SysError> {
    if !mechanism.has_link_detach() {
        return Ok(());
    }
    match sys::link_detach(link.as_fd()) {
        // Before 5.9 closing is all there is.
        Err(err) if matches!(err.errno(), Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(()),
        result => result,
    }
}

impl Link {
    /// Puts another program of the same type in the place of this one. No
    /// packet or event meets a hook without a program.
    ///
    /// Works for iterators, for every link to a network hook but netfilter's, and for
    /// attachments without a link; there it is refused if somebody else
    /// replaced the program and the kernel tells. Requires at least Linux 5.6 for a cgroup whose
    /// programs share a hook without a link.
    ///
    /// # Errors
    /// [`LinkError::Impossible`] where no kernel can;
    /// [`LinkError::Operation`], with `EINVAL` for a program of another type.
    pub fn update(&mut self, program: &Program) -> Result<(), LinkError> {
        self.replace(program, None)
    }

    fn replace(&mut self, program: &Program, expected: Option<&Program>) -> Result<(), LinkError> {
        let result = match &mut self.inner {
            Inner::Bpf(link) => match self.mechanism {
                Mechanism::Netfilter
                | Mechanism::StructOpsLink
                | Mechanism::RawTracepointOpen
                | Mechanism::PerfEventLink
                | Mechanism::KprobeMulti
                | Mechanism::UprobeMulti
                | Mechanism::TracingLink => {
                    return Err(self.impossible("change its program"));
                }
                _ => sys::link_update(link.as_fd(), program.as_fd(), expected.map(AsFd::as_fd)),
            },
            Inner::Perf { .. } | Inner::Keeping(..) | Inner::Many(..) => {
                return Err(self.impossible("change its program"));
            }
            Inner::Standing(_) if expected.is_some() => {
                return Err(self.impossible("compare its program"));
            }
            Inner::Standing(standing) => standing.update(program),
        };
        result.map_err(|source| self.operation(source))
    }

    /// Puts another program in the place of this one, if that is `expected`
    /// now: what another user of a pinned link put there stays.
    ///
    /// Works for the links that [`Link::update`] works for, but not for
    /// attachments without a link, which nobody else holds.
    ///
    /// # Errors
    /// As [`Link::update`]; [`LinkError::Operation`] with `EPERM` if it is not
    /// `expected`.
    pub fn update_from(&mut self, program: &Program, expected: &Program) -> Result<(), LinkError> {
        self.replace(program, Some(expected))
    }

    /// The first half of [`Link::detach`], for who detaches many: whatever the
    /// hook can be told quickly to make it stop running the program. Nothing
    /// for most kinds, and nothing that shows if a pin holds the link.
    ///
    /// Probes on perf events with a link (Linux 5.15) are silent then: that
    /// takes a tenth to a third of the time of detaching them, and any number
    /// can be silenced at the same time by as many threads, while the kernel
    /// closes their events one after the other. Counters are silent too.
    pub fn silence(&mut self) {
        self.inner.silence();
    }

    /// Pins the link below a BPF file system: dropping it no longer detaches
    /// the program, [`Link::detach`] still does where the kernel can.
    ///
    /// # Errors
    /// [`LinkError::Impossible`] for attachments without a link;
    /// [`LinkError::Pin`], with `EEXIST` if the path is taken, `EINVAL` or
    /// `EPERM` if it is not below a BPF file system.
    pub fn pin(&self, path: &Path) -> Result<(), LinkError> {
        // An event made in tracefs goes with this process, pinned link or not.
        let link = self
            .inner
            .link()
            .filter(|_| self.mechanism != Mechanism::ProbeEvent);
        let Some(link) = link else {
            return Err(self.impossible("be pinned"));
        };
        sys::obj_pin(link, path, None).map_err(|source| LinkError::Pin {
            cure: matches!(source.errno(), Errno::EPERM | Errno::EINVAL)
                .then_some(Cure::MountBpffs),
            source: source.with_path(path),
        })?;
        if let Inner::Keeping(_, kept) = &self.inner {
            kept.pinned();
        }
        Ok(())
    }

    /// Opens a pinned link. The pin stays, and so does the attachment when
    /// the link is dropped.
    ///
    /// # Errors
    /// [`LinkError::Pin`]: `ENOENT` if there is no such pin, `EINVAL` if it is
    /// not a link's.
    pub fn from_pin(path: &Path) -> Result<Link, LinkError> {
        let open = || {
            let fd = sys::obj_get(path, 0, None)?;
            let info = sys::link_info(fd.as_fd())?;
            Ok((fd, info))
        };
        let (fd, info) = open().map_err(|source: SysError| LinkError::Pin {
            source: source.with_path(path),
            cure: None,
        })?;
        let target = format!("what {} is pinned for", path.display());
        Ok(Link::of_fd(fd, target, Mechanism::of_link(info.link_type)))
    }

    /// What the kernel tells about the link; `None` for attachments without
    /// one. Requires at least Linux 5.8.
    ///
    /// # Errors
    /// [`LinkError::Operation`].
    pub fn info(&self) -> Result<Option<LinkInfo>, LinkError> {
        match self.inner.link() {
            Some(link) => sys::link_info(link)
                .map(Some)
                .map_err(|source| self.operation(source)),
            None => Ok(None),
        }
    }

    /// Whether the hook still has this program. It has not when its interface,
    /// cgroup, map or namespace is gone, and for attachments without a link
    /// when somebody else removed or replaced it.
    ///
    /// # Errors
    /// [`LinkError::Impossible`] where the kernel does not tell: options of
    /// sockets, and maps of sockets without a link before Linux 5.17;
    /// [`LinkError::Operation`].
    pub fn is_attached(&self) -> Result<bool, LinkError> {
        let standing = match &self.inner {
            Inner::Standing(standing) => standing,
            Inner::Bpf(_) | Inner::Perf { .. } | Inner::Keeping(..) | Inner::Many(..) => {
                let detail = self.info()?.map(|info| info.detail);
                return Ok(match detail {
                    Some(LinkDetail::Xdp(it) | LinkDetail::Tcx(it) | LinkDetail::Netkit(it)) => {
                        it.ifindex != 0
                    }
                    Some(LinkDetail::Cgroup(it)) => it.cgroup_id != 0,
                    Some(LinkDetail::Netns(it)) => it.netns_ino != 0,
                    Some(LinkDetail::Sockmap(it)) => it.map_id != 0,
                    _ => true,
                });
            }
        };
        match standing.is_attached() {
            Ok(Some(attached)) => Ok(attached),
            Ok(None) => Err(self.impossible("tell whether it is attached")),
            Err(source) => Err(self.operation(source)),
        }
    }

    #[cold]
    pub(super) fn impossible(&self, operation: &'static str) -> LinkError {
        LinkError::Impossible {
            target: self.target.clone(),
            mechanism: self.mechanism,
            operation,
        }
    }

    #[cold]
    pub(super) fn operation(&self, source: SysError) -> LinkError {
        LinkError::Operation {
            target: self.target.clone(),
            source,
        }
    }
}
