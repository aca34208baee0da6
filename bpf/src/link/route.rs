//! Lightweight tunnels: programs on the packets of a route.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use ebpf_manager_sys::abi::bpf::ProgramType;
use ebpf_manager_sys::route::{MAIN_TABLE, RouteId, RouteProgram, Tunnel};
use ebpf_manager_sys::{Errno, SysError};

use super::event::Owner;
use super::interface::{Interface, NetNamespace};
use super::standing::{Attachment, Standing};
use super::trace::expect_type;
use super::{Inner, Link, Mechanism, net};
use crate::error::LinkError;
use crate::program::Program;

/// A route to be made with a program on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LwtRoute {
    /// Where its packets go to.
    pub destination: IpAddr,
    /// Bits of the destination that count.
    pub prefix_len: u8,
    /// Interface they leave by.
    pub interface: Interface,
    /// Next hop; none by default: the destination is a neighbour.
    pub gateway: Option<IpAddr>,
    /// Routing table; 254, the main one, by default.
    pub table: u32,
    /// Lower wins; 0, the default, is the kernel's (1024 for IPv6).
    pub metric: u32,
    /// Bytes that a program of type `lwt_xmit` may put in front, at most 256;
    /// 0 by default.
    pub headroom: u16,
}

impl LwtRoute {
    /// A route to a network by an interface, in the main table.
    pub fn new(
        destination: impl Into<IpAddr>,
        prefix_len: u8,
        interface: impl Into<Interface>,
    ) -> LwtRoute {
        LwtRoute {
            destination: destination.into(),
            prefix_len,
            interface: interface.into(),
            gateway: None,
            table: MAIN_TABLE,
            metric: 0,
            headroom: 0,
        }
    }
}

impl Link {
    /// Makes a route whose packets meet a program: those that arrive for it
    /// (`lwt_in`), those sent (`lwt_out`), those about to leave (`lwt_xmit`),
    /// or those with a segment routing header (`lwt_seg6local`, IPv6).
    ///
    /// The route goes with the link; one that somebody put in its place stays.
    /// Requires at least Linux 4.10 (4.18 for `lwt_seg6local`).
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::NoInterface`];
    /// [`LinkError::Attach`], with `EEXIST` if there is such a route,
    /// `EOPNOTSUPP` if the kernel is built without (`CONFIG_LWTUNNEL_BPF`,
    /// `CONFIG_IPV6_SEG6_BPF`), `ENETDOWN` if the interface is down.
    pub fn lwt(program: &Program, route: &LwtRoute) -> Result<Link, LinkError> {
        expect_type(
            program,
            "route",
            &[
                ProgramType::LWT_OUT,
                ProgramType::LWT_IN,
                ProgramType::LWT_XMIT,
                ProgramType::LWT_SEG6LOCAL,
            ],
        )?;
        let index = route.interface.index()?;
        let target = format!(
            "route to {}/{} by {}",
            route.destination, route.prefix_len, route.interface
        );
        match Routed::new(program, route, index) {
            Ok(routed) => {
                let inner = Inner::Standing(Standing::new(routed));
                Ok(Link::new(target, Mechanism::LwtRoute, inner))
            }
            Err(err) => {
                let tried = vec![("route", err)];
                let last = Mechanism::LwtRoute;
                let interface = &route.interface;
                Err(net::refused_on(last, interface, index, None, target, tried))
            }
        }
    }
}

/// A name for a program on a route. The kernel tells whose a route is by
/// nothing else, and takes programs of one name for one program: an IPv4 route
/// would keep the old one.
fn unused_name() -> Result<String, SysError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut name = Owner::this_process()?.group();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push('_');
    name.push_str(&number.to_string());
    Ok(name)
}

/// A route of ours.
#[derive(Debug)]
pub(super) struct Routed {
    namespace: NetNamespace,
    id: RouteId,
    tunnel: Tunnel,
    name: String,
}

impl Routed {
    fn new(program: &Program, route: &LwtRoute, index: u32) -> Result<Routed, SysError> {
        let routed = Routed {
            namespace: route.interface.namespace()?,
            id: RouteId {
                destination: route.destination,
                prefix_len: route.prefix_len,
                index,
                gateway: route.gateway,
                table: route.table,
                metric: route.metric,
            },
            tunnel: match program.program_type() {
                ProgramType::LWT_IN => Tunnel::In,
                ProgramType::LWT_XMIT => Tunnel::Xmit {
                    headroom: route.headroom,
                },
                ProgramType::LWT_SEG6LOCAL => Tunnel::Seg6Local,
                _ => Tunnel::Out,
            },
            name: unused_name()?,
        };
        let program = RouteProgram {
            tunnel: routed.tunnel,
            program: program.as_fd(),
            name: &routed.name,
        };
        let mut rtnl = routed.namespace.rtnl()?;
        let result = rtnl.route_add(&routed.id, Some(&program));
        let lost = rtnl.is_torn();
        drop(rtnl);
        match result {
            // Only the answer was lost.
            Err(_) if lost && routed.is_attached()? == Some(true) => Ok(routed),
            result => result.map(|()| routed),
        }
    }
}

impl Attachment for Routed {
    fn detach(&self) -> Result<(), SysError> {
        let mut rtnl = self.namespace.rtnl()?;
        if rtnl.route_has_program(&self.id, &self.name)? {
            rtnl.route_delete(&self.id)?;
        }
        Ok(())
    }

    fn update(&mut self, program: &Program) -> Result<(), SysError> {
        let mut rtnl = self.namespace.rtnl()?;
        if !rtnl.route_has_program(&self.id, &self.name)? {
            return Err(SysError::new("RTM_NEWROUTE", Errno::ENOENT)
                .with_detail("the route is gone or somebody else's"));
        }
        let name = unused_name()?;
        let program = RouteProgram {
            tunnel: self.tunnel,
            program: program.as_fd(),
            name: &name,
        };
        rtnl.route_replace(&self.id, Some(&program))?;
        drop(rtnl);
        self.name = name;
        Ok(())
    }

    fn is_attached(&self) -> Result<Option<bool>, SysError> {
        let mut rtnl = self.namespace.rtnl()?;
        rtnl.route_has_program(&self.id, &self.name).map(Some)
    }
}
