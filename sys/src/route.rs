//! Routes of rtnetlink, plain or with a program on them (lightweight tunnels).

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use crate::Result;
use crate::abi::netlink::{RouteHeader, flag, message, rta};
use crate::errno::{Errno, SysError};
use crate::netlink::{Attrs, Request};
use crate::rtnl::{Rtnl, kernel_index};

const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;
/// Made by an administrator.
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
/// To a gateway.
const RT_SCOPE_UNIVERSE: u8 = 0;
/// To a neighbour.
const RT_SCOPE_LINK: u8 = 253;
/// Deletes: of any scope.
const RT_SCOPE_NOWHERE: u8 = 255;
/// The table that is looked at unless rules say otherwise.
pub const MAIN_TABLE: u32 = 254;

/// What names a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteId {
    /// An address of the network it is for.
    pub destination: IpAddr,
    /// Bits of the destination that count.
    pub prefix_len: u8,
    /// Interface packets leave by.
    pub index: u32,
    /// Next hop; `None` if the destination is a neighbour.
    pub gateway: Option<IpAddr>,
    /// Table; [`MAIN_TABLE`] is the usual one.
    pub table: u32,
    /// Lower wins. 0 is the kernel's default: 0 for IPv4, 1024 for IPv6.
    pub metric: u32,
}

/// Where a program is on the way of a route's packets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Tunnel {
    /// Packets that arrive for it. Linux 4.10.
    In,
    /// Packets that this machine sends. Linux 4.10.
    Out,
    /// Packets about to leave. Linux 4.10.
    Xmit {
        /// Bytes that the program may put in front, at most 256.
        headroom: u16,
    },
    /// Packets with a segment routing header that arrive for it: `End.BPF`.
    /// IPv6. Linux 4.18.
    Seg6Local,
}

/// A program on a route.
#[derive(Clone, Copy, Debug)]
pub struct RouteProgram<'a> {
    /// Where.
    pub tunnel: Tunnel,
    /// Program of the type that belongs there.
    pub program: BorrowedFd<'a>,
    /// Name that ip(8) shows, up to 255 bytes; the kernel only stores it.
    pub name: &'a str,
}

impl Rtnl {
    /// Adds a route.
    ///
    /// # Errors
    /// `EEXIST` if there is one to the destination in the table with the
    /// metric; `EOPNOTSUPP` without the tunnel; `ENODEV`, `ENETDOWN`,
    /// `ENETUNREACH` for what they say; `EINVAL` for addresses of different
    /// families and for a program of another type.
    pub fn route_add(&mut self, id: &RouteId, program: Option<&RouteProgram<'_>>) -> Result<()> {
        self.route_new(id, program, flag::CREATE | flag::EXCL)
    }

    /// Puts a route in the place of the one with the same destination, table
    /// and metric, without a gap.
    ///
    /// # Errors
    /// As [`Rtnl::route_add`]; `ENOENT` if there is none.
    pub fn route_replace(
        &mut self,
        id: &RouteId,
        program: Option<&RouteProgram<'_>>,
    ) -> Result<()> {
        self.route_new(id, program, flag::REPLACE)
    }

    /// Deletes a route.
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    pub fn route_delete(&mut self, id: &RouteId) -> Result<()> {
        let mut request = new("RTM_DELROUTE", message::RTM_DELROUTE, 0, id)?;
        request.attr_u32(rta::OIF, id.index);
        self.0.call(request)
    }

    /// Whether there is a route with a program of that name on it. Kernels
    /// tell no more than the name.
    ///
    /// # Errors
    /// As [`crate::netlink::Netlink::query`].
    pub fn route_has_program(&mut self, id: &RouteId, name: &str) -> Result<bool> {
        let op = "RTM_GETROUTE";
        kernel_index(op, id.index)?;
        let (family, _) = octets(&id.destination);
        let header = RouteHeader {
            family,
            ..RouteHeader::default()
        };
        let mut request = Request::new(op, message::RTM_GETROUTE, flag::DUMP, &header);
        request.attr_u32(rta::OIF, id.index);
        request.attr_u32(rta::TABLE, id.table);
        let answer = match self.0.query(request) {
            // Kernels say so of a table that is empty and was never used.
            Err(err) if err.is(Errno::ENOENT) => return Ok(false),
            answer => answer?,
        };
        Ok(answer.iter().any(|m| is_route(m.payload, id, name)))
    }

    fn route_new(
        &mut self,
        id: &RouteId,
        program: Option<&RouteProgram<'_>>,
        flags: u16,
    ) -> Result<()> {
        let mut request = new("RTM_NEWROUTE", message::RTM_NEWROUTE, flags, id)?;
        request.attr_u32(rta::OIF, id.index);
        if let Some(gateway) = &id.gateway {
            request.attr(rta::GATEWAY, octets(gateway).1.as_slice());
        }
        if let Some(program) = program {
            encapsulate(&mut request, program);
        }
        self.0.call(request)
    }
}

/// A request about a route, without interface and gateway.
fn new(op: &'static str, kind: u16, flags: u16, id: &RouteId) -> Result<Request> {
    kernel_index(op, id.index)?;
    let (family, address) = network(id);
    let same_family = id
        .gateway
        .is_none_or(|g| g.is_ipv6() == id.destination.is_ipv6());
    if usize::from(id.prefix_len) > 8 * address.as_slice().len() || !same_family {
        return Err(SysError::new(op, Errno::EINVAL).with_detail("no such network"));
    }
    let header = RouteHeader {
        family,
        dst_len: id.prefix_len,
        table: u8::try_from(id.table).unwrap_or(0),
        protocol: RTPROT_STATIC,
        scope: match (kind, id.gateway) {
            (message::RTM_DELROUTE, _) => RT_SCOPE_NOWHERE,
            (_, None) => RT_SCOPE_LINK,
            (_, Some(_)) => RT_SCOPE_UNIVERSE,
        },
        kind: RTN_UNICAST,
        ..RouteHeader::default()
    };
    let mut request = Request::new(op, kind, flags, &header);
    request.attr(rta::DST, address.as_slice());
    request.attr_u32(rta::TABLE, id.table);
    if id.metric != 0 {
        request.attr_u32(rta::PRIORITY, id.metric);
    }
    Ok(request)
}

fn encapsulate(request: &mut Request, program: &RouteProgram<'_>) {
    let kind = match program.tunnel {
        Tunnel::Seg6Local => rta::encap::SEG6_LOCAL,
        _ => rta::encap::BPF,
    };
    request.attr(rta::ENCAP_TYPE, &kind.to_ne_bytes());
    let encap = request.nest(rta::ENCAP);
    let place = match program.tunnel {
        Tunnel::In => rta::bpf::IN,
        Tunnel::Out => rta::bpf::OUT,
        Tunnel::Xmit { headroom } => {
            if headroom != 0 {
                request.attr_u32(rta::bpf::XMIT_HEADROOM, u32::from(headroom));
            }
            rta::bpf::XMIT
        }
        Tunnel::Seg6Local => {
            request.attr_u32(rta::seg6_local::ACTION, rta::seg6_local::END_BPF);
            rta::seg6_local::BPF
        }
    };
    let place = request.nest(place);
    request.attr_fd(rta::PROG_FD, program.program);
    request.attr_str(rta::PROG_NAME, program.name);
    request.end(place);
    request.end(encap);
}

/// Whether a route message describes the route `id` with a program of that
/// name.
fn is_route(payload: &[u8], id: &RouteId, name: &str) -> bool {
    let Some((header, attrs)) = Attrs::after::<RouteHeader>(payload) else {
        return false;
    };
    let number = |kind| attrs.get(kind).and_then(|a| a.u32());
    let (family, address) = network(id);
    let unspecified = address.as_slice().iter().all(|&byte| byte == 0);
    let to = attrs.get(rta::DST);
    header.family == family
        && header.dst_len == id.prefix_len
        && to.map_or(unspecified, |a| a.data == address.as_slice())
        && number(rta::TABLE).unwrap_or(header.table.into()) == id.table
        && number(rta::OIF) == Some(id.index)
        && (id.metric == 0 || number(rta::PRIORITY) == Some(id.metric))
        && attrs.get(rta::ENCAP).is_some_and(|encap| {
            // The place is nested, whichever it is; numbers beside it have no
            // room for a name.
            encap.nested().any(|place| {
                let named = place.nested().get(rta::PROG_NAME);
                named.is_some_and(|found| found.text() == name)
            })
        })
}

/// Address family, and the first address of the destination.
fn network(id: &RouteId) -> (u8, Octets) {
    let kept = |width: u8| {
        let cleared = width.saturating_sub(id.prefix_len);
        u128::MAX.checked_shl(cleared.into()).unwrap_or(0)
    };
    octets(&match id.destination {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & kept(32) as u32).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & kept(128)).into()),
    })
}

/// Address family, and the address as the kernel takes it.
fn octets(address: &IpAddr) -> (u8, Octets) {
    match address {
        IpAddr::V4(v4) => (AF_INET, Octets::V4(v4.octets())),
        IpAddr::V6(v6) => (AF_INET6, Octets::V6(v6.octets())),
    }
}

enum Octets {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl Octets {
    fn as_slice(&self) -> &[u8] {
        match self {
            Octets::V4(bytes) => bytes,
            Octets::V6(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::bpf::ProgramType;
    use crate::netns;
    use crate::testing::{Random, load, require, returns};
    use std::os::fd::AsFd;

    #[test]
    fn a_route_with_a_program() {
        let ns = require!((4, 3), ["CONFIG_VETH"], netns::create());
        let mut rtnl = Rtnl::open_in(ns.as_fd()).unwrap();
        rtnl.link_add_veth("left", "right", None).unwrap();
        let [index, _] = ["left", "right"].map(|name| {
            let index = rtnl.link_by_name(name).unwrap().index;
            rtnl.link_set_up(index).unwrap();
            index
        });
        let [first, second] = [0, 0].map(|v| load(ProgramType::LWT_OUT, &returns(v)));
        for (destination, prefix_len) in [
            ("192.0.2.7", 24),
            ("2001:db8::1", 32),
            ("10.1.2.3", 32),
            ("::", 0),
        ] {
            let id = RouteId {
                destination: destination.parse().unwrap(),
                prefix_len,
                index,
                gateway: None,
                table: MAIN_TABLE,
                metric: 7,
            };
            let mut on = RouteProgram {
                tunnel: Tunnel::Out,
                program: first.as_fd(),
                name: "ours",
            };
            let added = rtnl.route_add(&id, Some(&on));
            require!((4, 10), ["CONFIG_LWTUNNEL_BPF"], added);
            assert!(rtnl.route_has_program(&id, "ours").unwrap());
            assert!(!rtnl.route_has_program(&id, "our").unwrap());
            let other = RouteId { metric: 8, ..id };
            assert!(!rtnl.route_has_program(&other, "ours").unwrap());
            let err = rtnl.route_add(&id, Some(&on)).unwrap_err();
            assert!(err.is(Errno::EEXIST), "{err}");
            (on.program, on.name) = (second.as_fd(), "theirs");
            rtnl.route_replace(&id, Some(&on)).unwrap();
            assert!(!rtnl.route_has_program(&id, "ours").unwrap());
            assert!(rtnl.route_has_program(&id, "theirs").unwrap());
            rtnl.route_delete(&id).unwrap();
            assert!(!rtnl.route_has_program(&id, "theirs").unwrap());
            let err = rtnl.route_delete(&id).unwrap_err();
            assert!(err.is(Errno::ESRCH), "{err}");
            for (prefix_len, gateway) in [(129, None), (0, Some("::1")), (0, Some("127.0.0.1"))] {
                let gateway: Option<IpAddr> = gateway.map(|g| g.parse().unwrap());
                if gateway.is_some_and(|g| g.is_ipv6() == id.destination.is_ipv6()) {
                    continue;
                }
                let wrong = RouteId {
                    prefix_len,
                    gateway,
                    ..id
                };
                let err = rtnl.route_add(&wrong, None).unwrap_err();
                assert!(err.is(Errno::EINVAL), "{err}");
            }
        }
    }

    #[test]
    fn damaged_messages_do_not_panic() {
        let id = RouteId {
            destination: "192.0.2.0".parse().unwrap(),
            prefix_len: 24,
            index: 4,
            gateway: None,
            table: MAIN_TABLE,
            metric: 0,
        };
        let mut request = new("x", message::RTM_NEWROUTE, 0, &id).unwrap();
        request.attr_u32(rta::OIF, 4);
        let stdin = std::io::stdin();
        encapsulate(
            &mut request,
            &RouteProgram {
                tunnel: Tunnel::Xmit { headroom: 14 },
                program: stdin.as_fd(),
                name: "name",
            },
        );
        let good = request.payload().to_vec();
        assert!(is_route(&good, &id, "name"));
        let mut random = Random(0x9abc_def1_1234_5678);
        for _ in 0..20_000 {
            let _ = is_route(&random.damaged(&good), &id, "name");
        }
    }
}
