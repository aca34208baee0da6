//! Network interfaces: listing, virtual pairs, XDP.

use std::os::fd::BorrowedFd;

use super::{Rtnl, XdpFlags, XdpMode, kernel_index, no_answer};
use crate::Result;
use crate::abi::netlink::{IFF_UP, IFNAMSIZ, LinkHeader, flag, ifla, message};
use crate::netlink::{Attrs, Request};

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Index, unique in its namespace and not used again soon.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Kind of a virtual interface, such as `veth`; empty for others.
    pub kind: String,
    /// `IFF_*`.
    pub flags: u32,
    /// Its XDP programs.
    pub xdp: XdpState,
}

/// XDP programs of an interface, by id; 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct XdpState {
    /// In which mode one is attached, or [`XdpMode::MULTI`].
    pub mode: XdpMode,
    /// Program in the driver.
    pub drv: u32,
    /// Generic program.
    pub skb: u32,
    /// Program in the hardware.
    pub hw: u32,
}

impl Rtnl {
    // -------------------------------------------------------------- links

    /// The interface with that name, also by an alternative name (Linux 5.5).
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub fn link_by_name(&mut self, name: &str) -> Result<Link> {
        let mut request = get_link(&LinkHeader::default(), 0);
        let kind = if name.len() < IFNAMSIZ {
            ifla::IFNAME
        } else {
            ifla::ALT_IFNAME
        };
        request.attr_str(kind, name);
        self.link(request)
    }

    /// The interface with that index.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub fn link_by_index(&mut self, index: u32) -> Result<Link> {
        self.link(get_link(&link_header("RTM_GETLINK", index)?, 0))
    }

    /// Every interface.
    ///
    /// # Errors
    /// As [`Netlink::query`](crate::netlink::Netlink::query).
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let answer = self.0.query(get_link(&LinkHeader::default(), flag::DUMP))?;
        Ok(answer
            .iter()
            .filter_map(|m| parse_link(m.payload))
            .collect())
    }

    fn link(&mut self, request: Request) -> Result<Link> {
        let answer = self.0.query(request)?;
        let link = answer.iter().find_map(|m| parse_link(m.payload));
        link.ok_or_else(|| no_answer("RTM_GETLINK"))
    }

    /// Makes a pair of connected virtual interfaces; `peer` starts in the
    /// namespace `peer_ns`, or this one.
    ///
    /// # Errors
    /// `EEXIST` if a name is taken, `EOPNOTSUPP` without the driver, `EPERM`
    /// without CAP_NET_ADMIN.
    pub fn link_add_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_ns: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        self.link_add_pair("veth", name, peer, peer_ns)
    }

    /// Makes a netkit pair in Ethernet mode, `name` the primary; `peer` starts
    /// in the namespace `peer_ns`, or this one. Linux 6.7.
    ///
    /// # Errors
    /// As [`Rtnl::link_add_veth`].
    pub fn link_add_netkit(
        &mut self,
        name: &str,
        peer: &str,
        peer_ns: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        self.link_add_pair("netkit", name, peer, peer_ns)
    }

    fn link_add_pair(
        &mut self,
        kind: &str,
        name: &str,
        peer: &str,
        peer_ns: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let header = LinkHeader::default();
        let flags = flag::CREATE | flag::EXCL;
        let mut request = Request::new("RTM_NEWLINK", message::RTM_NEWLINK, flags, &header);
        request.attr_str(ifla::IFNAME, name);
        let info = request.nest(ifla::LINKINFO);
        request.attr_str(ifla::info::KIND, kind);
        let data = request.nest(ifla::info::DATA);
        if kind == "netkit" {
            request.attr_u32(ifla::NETKIT_MODE, ifla::NETKIT_L2);
        }
        let other = request.nest(ifla::PEER_INFO);
        request.fixed(&header);
        request.attr_str(ifla::IFNAME, peer);
        if let Some(ns) = peer_ns {
            request.attr_fd(ifla::NET_NS_FD, ns);
        }
        request.end(other);
        request.end(data);
        request.end(info);
        self.0.call(request)
    }

    /// Deletes an interface; of a veth pair, both ends.
    ///
    /// # Errors
    /// `ENODEV` if there is none, `EOPNOTSUPP` if it cannot be deleted.
    pub fn link_delete(&mut self, index: u32) -> Result<()> {
        let op = "RTM_DELLINK";
        let header = link_header(op, index)?;
        let request = Request::new(op, message::RTM_DELLINK, 0, &header);
        self.0.call(request)
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// `ENODEV` if there is none, `EPERM` without CAP_NET_ADMIN.
    pub fn link_set_up(&mut self, index: u32) -> Result<()> {
        let op = "RTM_SETLINK";
        let header = LinkHeader {
            flags: IFF_UP,
            change: IFF_UP,
            ..link_header(op, index)?
        };
        let request = Request::new(op, message::RTM_SETLINK, 0, &header);
        self.0.call(request)
    }

    // ---------------------------------------------------------------- XDP

    /// Attaches an XDP program to an interface, or detaches with `None`.
    ///
    /// With `expected`, only if that program is the one attached now
    /// ([`XdpFlags::REPLACE`] is then added; Linux 5.7, `EINVAL` before).
    /// Without a mode among `flags` the driver's is used if it has one.
    ///
    /// # Errors
    /// `EBUSY` if a program is there and [`XdpFlags::UPDATE_IF_NOEXIST`] is
    /// set, or a bpf_link is attached; `EEXIST` if another mode is in use or
    /// `expected` is not what is attached; `EOPNOTSUPP` if the driver cannot.
    pub fn xdp_set(
        &mut self,
        index: u32,
        program: Option<BorrowedFd<'_>>,
        mut flags: XdpFlags,
        expected: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let op = "RTM_SETLINK";
        let header = link_header(op, index)?;
        let mut request = Request::new(op, message::RTM_SETLINK, 0, &header);
        let xdp = request.nest(ifla::XDP);
        match program {
            Some(program) => request.attr_fd(ifla::xdp::FD, program),
            None => request.attr(ifla::xdp::FD, &(-1_i32).to_ne_bytes()),
        }
        if let Some(expected) = expected {
            flags |= XdpFlags::REPLACE;
            request.attr_fd(ifla::xdp::EXPECTED_FD, expected);
        }
        if !flags.is_empty() {
            request.attr_u32(ifla::xdp::FLAGS, flags.bits());
        }
        request.end(xdp);
        self.0.call(request)
    }
}

fn link_header(op: &'static str, index: u32) -> Result<LinkHeader> {
    Ok(LinkHeader {
        index: kernel_index(op, index)?,
        ..LinkHeader::default()
    })
}

fn get_link(header: &LinkHeader, flags: u16) -> Request {
    let mut request = Request::new("RTM_GETLINK", message::RTM_GETLINK, flags, header);
    request.attr_u32(ifla::EXT_MASK, ifla::RTEXT_FILTER_SKIP_STATS);
    request
}

/// Reads the payload of a link message. `None` without an index or name.
pub fn parse_link(payload: &[u8]) -> Option<Link> {
    let (header, attrs) = Attrs::after::<LinkHeader>(payload)?;
    let mut link = Link {
        index: u32::try_from(header.index)
            .ok()
            .filter(|&index| index > 0)?,
        name: attrs.get(ifla::IFNAME)?.text(),
        kind: String::new(),
        flags: header.flags,
        xdp: XdpState::default(),
    };
    if let Some(info) = attrs.get(ifla::LINKINFO)
        && let Some(kind) = info.nested().get(ifla::info::KIND)
    {
        link.kind = kind.text();
    }
    if let Some(xdp) = attrs.get(ifla::XDP) {
        link.xdp = parse_xdp(&xdp.nested());
    }
    Some(link)
}

pub(super) fn parse_xdp(attrs: &Attrs<'_>) -> XdpState {
    let id = |kind| attrs.get(kind).and_then(|a| a.u32()).unwrap_or(0);
    let mode = attrs.get(ifla::xdp::ATTACHED).and_then(|a| a.u8());
    let mut state = XdpState {
        mode: XdpMode(mode.unwrap_or(0)),
        drv: id(ifla::xdp::DRV_PROG_ID),
        skb: id(ifla::xdp::SKB_PROG_ID),
        hw: id(ifla::xdp::HW_PROG_ID),
    };
    // Before Linux 4.19 there is one program, and its id stands alone.
    let only = id(ifla::xdp::PROG_ID);
    match state.mode {
        XdpMode::DRV if state.drv == 0 => state.drv = only,
        XdpMode::SKB if state.skb == 0 => state.skb = only,
        XdpMode::HW if state.hw == 0 => state.hw = only,
        _ => {}
    }
    state
}
