//! XDP: by link, or by rtnetlink on kernels before 5.9.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ebpf_manager_sys::abi::bpf::{AttachType, ElemFlags, ProgramType};
use ebpf_manager_sys::abi::pod;
use ebpf_manager_sys::bpf::{LinkCreate, LinkOptions, Target};
use ebpf_manager_sys::rtnl::{Rtnl, XdpFlags};
use ebpf_manager_sys::{Errno, SysError, fd};

use super::interface::{Interface, NetNamespace};
use super::net::{self, Method};
use super::standing::{Attachment, Standing};
use super::trace::expect_type;
use super::{Inner, Link, Mechanism};
use crate::error::LinkError;
use crate::map::Map;
use crate::program::Program;

/// Where an interface runs an XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// In the driver if it can, else generic: the kernel's choice.
    #[default]
    Auto,
    /// Generic (`skb`), after the kernel made a socket buffer: works on every
    /// interface.
    Generic,
    /// In the driver.
    Driver,
    /// In the network card.
    Hardware,
}

impl XdpMode {
    fn flags(self) -> XdpFlags {
        match self {
            XdpMode::Auto => XdpFlags::empty(),
            XdpMode::Generic => XdpFlags::SKB_MODE,
            XdpMode::Driver => XdpFlags::DRV_MODE,
            XdpMode::Hardware => XdpFlags::HW_MODE,
        }
    }
}

/// How to attach an XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct XdpOptions {
    /// Where it runs.
    pub mode: XdpMode,
    /// Kernel interface.
    pub method: Method,
}

impl Link {
    /// Attaches an XDP program to an interface that has none in this mode.
    ///
    /// A link is used from Linux 5.9; below that rtnetlink. Requires at least
    /// Linux 4.8 (4.12 for a mode other than [`XdpMode::Auto`]).
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::WrongAttachType`] for a program
    /// that belongs into a map; [`LinkError::NoInterface`];
    /// [`LinkError::AlreadyAttached`] if the interface has an XDP program;
    /// [`LinkError::Attach`] with every way tried.
    pub fn xdp(
        program: &Program,
        interface: &Interface,
        options: XdpOptions,
    ) -> Result<Link, LinkError> {
        expect_type(program, "XDP hook", &[ProgramType::XDP])?;
        net::expect_attach_type(program, AttachType::XDP)?;
        let index = interface.index()?;
        let target = format!("XDP of {interface}");
        let mut tried = Vec::new();
        if options.method != Method::Classic {
            let create = LinkCreate {
                object: program.as_fd(),
                target: Target::Ifindex(index),
                attach_type: AttachType::XDP,
                flags: options.mode.flags().bits(),
                options: LinkOptions::None,
            };
            match net::link_create_in(interface.named_namespace(), &create) {
                Ok(fd) => return Ok(net::link(target, Mechanism::XdpLink, fd)),
                Err(err) => {
                    let next = options.method == Method::Auto && net::too_old(&err);
                    tried.push(("link", err));
                    if !next {
                        let last = Mechanism::XdpLink;
                        return Err(refused(interface, index, last, target, tried));
                    }
                }
            }
        }
        by_netlink(program, interface, index, options.mode, None, target, tried)
    }

    /// Puts an XDP program in the place of `expected`, which rtnetlink
    /// attached in the same mode, without a gap. Detaching leaves the
    /// interface without a program.
    ///
    /// Requires at least Linux 5.7.
    ///
    /// # Errors
    /// As [`Link::xdp`]; [`LinkError::AlreadyAttached`] if it is not
    /// `expected` that is attached.
    pub fn xdp_replace(
        program: &Program,
        interface: &Interface,
        mode: XdpMode,
        expected: &Program,
    ) -> Result<Link, LinkError> {
        expect_type(program, "XDP hook", &[ProgramType::XDP])?;
        net::expect_attach_type(program, AttachType::XDP)?;
        let index = interface.index()?;
        let target = format!("XDP of {interface}");
        by_netlink(
            program,
            interface,
            index,
            mode,
            Some(expected),
            target,
            Vec::new(),
        )
    }
}

impl Map {
    /// Lets packets that are redirected to `key` of this map of devices
    /// (`BPF_MAP_TYPE_DEVMAP`, `_DEVMAP_HASH`) leave by `interface`, `program`
    /// running on each of them first.
    ///
    /// The program (`SEC("xdp/devmap")`) needs a map with values of 8 bytes,
    /// `struct bpf_devmap_val`, and Linux 5.8. It goes with the element.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::WrongAttachType`];
    /// [`LinkError::NoInterface`]; [`LinkError::Operation`], with `EINVAL` if
    /// the map has no room for a program.
    pub fn set_device(
        &self,
        key: u32,
        interface: &Interface,
        program: Option<&Program>,
    ) -> Result<(), LinkError> {
        let index = interface.index()?;
        let set = || self.set_redirect(key, index, program, AttachType::XDP_DEVMAP);
        // The map looks the interface up where the calling thread is.
        let result = match interface.named_namespace() {
            None => set(),
            Some(namespace) => {
                let mut result = Ok(());
                namespace
                    .run(&mut || {
                        result = set();
                        Ok(())
                    })
                    .map_err(|source| self.refuses(source))?;
                result
            }
        };
        match result {
            Err(LinkError::Operation { target, source }) => {
                let tried = |namespace: NetNamespace| namespace.rtnl()?.link_by_index(index);
                match interface.namespace().and_then(tried) {
                    Err(source) if source.is(Errno::ENODEV) => Err(interface.missing(source)),
                    _ => Err(LinkError::Operation { target, source }),
                }
            }
            result => result,
        }
    }

    /// Lets packets that are redirected to `cpu` of this map of CPUs
    /// (`BPF_MAP_TYPE_CPUMAP`) be handled there, up to `queue_size` of them
    /// waiting, `program` running on each first.
    ///
    /// The program (`SEC("xdp/cpumap")`) needs a map with values of 8 bytes,
    /// `struct bpf_cpumap_val`, and Linux 5.9. It goes with the element.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::WrongAttachType`];
    /// [`LinkError::Operation`], with `EINVAL` if the map has no room for a
    /// program, `ENODEV` if there is no such CPU.
    pub fn set_cpu(
        &self,
        cpu: u32,
        queue_size: u32,
        program: Option<&Program>,
    ) -> Result<(), LinkError> {
        self.set_redirect(cpu, queue_size, program, AttachType::XDP_CPUMAP)
    }

    fn set_redirect(
        &self,
        key: u32,
        value: u32,
        program: Option<&Program>,
        hook: AttachType,
    ) -> Result<(), LinkError> {
        let Some(program) = program else {
            // A descriptor of 0 is none in both maps.
            let value = [value, 0];
            let bytes = pod::bytes_of(&value);
            let bytes = bytes.get(..self.value_size()).unwrap_or(bytes);
            return self.set_raw(key, bytes);
        };
        expect_type(program, "XDP map", &[ProgramType::XDP])?;
        net::expect_attach_type(program, hook)?;
        let value = [value, program.as_fd().as_raw_fd().unsigned_abs()];
        self.set_raw(key, pod::bytes_of(&value))
    }

    fn set_raw(&self, key: u32, value: &[u8]) -> Result<(), LinkError> {
        self.raw()
            .update(&key.to_ne_bytes(), value, ElemFlags::empty())
            .map_err(|source| self.refuses(source))
    }

    #[cold]
    fn refuses(&self, source: SysError) -> LinkError {
        LinkError::Operation {
            target: format!("map {}", self.name()),
            source,
        }
    }
}

fn by_netlink(
    program: &Program,
    interface: &Interface,
    index: u32,
    mode: XdpMode,
    expected: Option<&Program>,
    target: String,
    mut tried: Vec<(&'static str, SysError)>,
) -> Result<Link, LinkError> {
    match XdpAttached::new(program, interface, index, mode.flags(), expected) {
        Ok(attached) => {
            let inner = Inner::Standing(Standing::new(attached));
            Ok(Link::new(target, Mechanism::XdpNetlink, inner).after(tried))
        }
        Err(err) => {
            tried.push(("rtnetlink", err));
            let last = Mechanism::XdpNetlink;
            Err(refused(interface, index, last, target, tried))
        }
    }
}

/// Says who is in the way, or that the interface is gone.
#[cold]
fn refused(
    interface: &Interface,
    index: u32,
    last: Mechanism,
    target: String,
    tried: Vec<(&'static str, SysError)>,
) -> LinkError {
    let taken = tried.last().is_some_and(|(_, err)| net::is_taken(err));
    let holder = taken
        .then(|| {
            interface
                .namespace()
                .ok()?
                .rtnl()
                .ok()?
                .link_by_index(index)
                .ok()
        })
        .flatten()
        // A mode without a program counts as 0.
        .map(|link| link.xdp.drv.max(link.xdp.skb).max(link.xdp.hw));
    net::refused_on(last, interface, index, holder, target, tried)
}

/// A program attached by rtnetlink.
#[derive(Debug)]
pub(super) struct XdpAttached {
    namespace: NetNamespace,
    index: u32,
    flags: XdpFlags,
    program: OwnedFd,
}

impl XdpAttached {
    fn new(
        program: &Program,
        interface: &Interface,
        index: u32,
        flags: XdpFlags,
        expected: Option<&Program>,
    ) -> Result<XdpAttached, SysError> {
        let attached = XdpAttached {
            namespace: interface.namespace()?,
            index,
            flags,
            program: fd::dup(program.as_fd())?,
        };
        let only = match expected {
            Some(_) => XdpFlags::empty(),
            // Without this, the kernel replaces whatever is there.
            None => XdpFlags::UPDATE_IF_NOEXIST,
        };
        let (program, expected) = (attached.program.as_fd(), expected.map(AsFd::as_fd));
        let mut rtnl = attached.namespace.rtnl()?;
        let result = rtnl.xdp_set(index, Some(program), flags | only, expected);
        let lost = rtnl.is_torn();
        drop(rtnl);
        match result {
            // Only the answer was lost.
            Err(_) if lost && attached.is_ours(&mut *attached.namespace.rtnl()?)? => Ok(attached),
            result => result.map(|()| attached),
        }
    }

    /// Replaces our program; `EEXIST` if it is not there any more.
    fn set(&self, new: Option<&OwnedFd>) -> Result<(), SysError> {
        let new = new.map(AsFd::as_fd);
        let mut rtnl = self.namespace.rtnl()?;
        let result = rtnl.xdp_set(self.index, new, self.flags, Some(self.program.as_fd()));
        match result {
            // Before 5.7 the kernel cannot be told which program to replace.
            Err(err) if err.is(Errno::EINVAL) => {
                if !self.is_ours(&mut rtnl)? {
                    return Err(SysError::new("RTM_SETLINK", Errno::EEXIST)
                        .with_detail("another program is attached"));
                }
                rtnl.xdp_set(self.index, new, self.flags, None)
            }
            result => result,
        }
    }

    fn is_ours(&self, rtnl: &mut Rtnl) -> Result<bool, SysError> {
        let id = net::program_id(self.program.as_fd())?;
        let xdp = rtnl.link_by_index(self.index)?.xdp;
        Ok([xdp.drv, xdp.skb, xdp.hw].contains(&id))
    }
}

impl Attachment for XdpAttached {
    fn detach(&self) -> Result<(), SysError> {
        match self.set(None) {
            // Somebody else's program is attached by now.
            Err(err) if err.is(Errno::EEXIST) => Ok(()),
            result => result,
        }
    }

    fn update(&mut self, program: &Program) -> Result<(), SysError> {
        let new = fd::dup(program.as_fd())?;
        self.set(Some(&new))?;
        self.program = new;
        Ok(())
    }

    fn is_attached(&self) -> Result<Option<bool>, SysError> {
        self.is_ours(&mut *self.namespace.rtnl()?).map(Some)
    }
}
