//! rtnetlink: links, queueing disciplines, filters, XDP.
//!
//! Everything acts on the network namespace the socket was made in. Nothing is
//! undone on drop: what is attached here stays until it is detached or its
//! interface goes away.

use std::os::fd::BorrowedFd;

use crate::Result;
pub use crate::abi::netlink::{ClsBpfFlags, TcParent, XdpFlags, XdpMode};
use crate::abi::netlink::{
    ETH_P_ALL, IFF_UP, IFNAMSIZ, LinkHeader, TcHeader, flag, ifla, message, tca,
};
use crate::errno::{Errno, SysError};
use crate::netlink::{Attrs, Netlink, Request};
use crate::netns;

/// Protocol number of filters that see every packet: `ETH_P_ALL`.
pub const ALL_PROTOCOLS: u16 = ETH_P_ALL;

/// Handle of clsact itself.
const CLSACT_HANDLE: u32 = 0xffff_0000;

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

/// A queueing discipline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qdisc {
    /// Interface.
    pub index: u32,
    /// Handle, the major number in the upper half.
    pub handle: u32,
    /// What it hangs on.
    pub parent: TcParent,
    /// Kind, such as `clsact` or `fq`.
    pub kind: String,
}

/// What names one filter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FilterId {
    /// Interface.
    pub index: u32,
    /// [`TcParent::INGRESS`] or [`TcParent::EGRESS`] for clsact.
    pub parent: TcParent,
    /// Lower numbers run first. When adding, 0 lets the kernel choose one.
    pub priority: u16,
    /// Protocol as in `ETH_P_*`, in this machine's byte order.
    pub protocol: u16,
    /// Number within its priority. When adding, 0 lets the kernel choose one.
    pub handle: u32,
}

/// A filter of any kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// Which one.
    pub id: FilterId,
    /// Kind; the fields below are empty unless it is `bpf`.
    pub kind: String,
    /// Chain; 0 unless somebody made others. Linux 4.13.
    pub chain: u32,
    /// Name given when it was added.
    pub name: String,
    /// Id of its program; 0 on kernels before 4.14, which do not tell.
    pub program_id: u32,
    /// Tag of its program. Linux 4.10.
    pub tag: [u8; 8],
    /// How the program's return value is read.
    pub flags: ClsBpfFlags,
}

/// A BPF filter to be added.
#[derive(Clone, Copy, Debug)]
pub struct FilterSpec<'a> {
    /// Where, and which number.
    pub id: FilterId,
    /// Name shown by tc(8); the kernel only stores it.
    pub name: &'a str,
    /// Program of type `SCHED_CLS`.
    pub program: BorrowedFd<'a>,
    /// How its return value is read.
    pub flags: ClsBpfFlags,
}

/// An rtnetlink socket.
#[derive(Debug)]
pub struct Rtnl(pub(crate) Netlink);

impl Rtnl {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> Result<Rtnl> {
        Netlink::route().map(Rtnl)
    }

    /// Opens one in the network namespace `ns`.
    ///
    /// # Errors
    /// As [`netns::with_netns`].
    pub fn open_in(ns: BorrowedFd<'_>) -> Result<Rtnl> {
        netns::route_in(ns).map(Rtnl)
    }

    /// As [`Netlink::is_torn`].
    pub fn is_torn(&self) -> bool {
        self.0.is_torn()
    }

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
    /// As [`Netlink::query`].
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

    // ---------------------------------------------- queueing disciplines

    /// The queueing disciplines of an interface.
    ///
    /// # Errors
    /// As [`Netlink::query`].
    pub fn qdiscs(&mut self, index: u32) -> Result<Vec<Qdisc>> {
        let op = "RTM_GETQDISC";
        let header = tc_header(op, index)?;
        let request = Request::new(op, message::RTM_GETQDISC, flag::DUMP, &header);
        let answer = self.0.query(request)?;
        // The kernel lists those of all interfaces.
        let all = answer.iter().filter_map(|m| parse_qdisc(m.payload));
        Ok(all.filter(|qdisc| qdisc.index == index).collect())
    }

    /// The discipline in the place of clsact: that, or the older `ingress`,
    /// which has no filters for leaving packets.
    ///
    /// # Errors
    /// `ENODEV` if there is no such interface.
    pub fn clsact(&mut self, index: u32) -> Result<Option<Qdisc>> {
        let op = "RTM_GETQDISC";
        let header = TcHeader {
            parent: TcParent::CLSACT.0,
            ..tc_header(op, index)?
        };
        // The kernel answers by a notification, which goes to others unless
        // it is echoed.
        let request = Request::new(op, message::RTM_GETQDISC, flag::ECHO, &header);
        match self.0.query(request) {
            // Where there was one once, the kernel answers without a word.
            Ok(answer) => Ok(answer.iter().find_map(|m| parse_qdisc(m.payload))),
            Err(err) if err.is(Errno::ENOENT) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Adds clsact, which holds the filters for arriving and leaving packets.
    /// Linux 4.5.
    ///
    /// # Errors
    /// `EEXIST` if it, or `ingress`, is there; `ENOENT` without the module.
    pub fn clsact_add(&mut self, index: u32) -> Result<()> {
        let flags = flag::CREATE | flag::EXCL;
        self.change_clsact("RTM_NEWQDISC", message::RTM_NEWQDISC, flags, index)
    }

    /// Deletes clsact and every filter on it, whoever added them.
    ///
    /// # Errors
    /// `EINVAL` or `ENOENT` if it is not there.
    pub fn clsact_delete(&mut self, index: u32) -> Result<()> {
        self.change_clsact("RTM_DELQDISC", message::RTM_DELQDISC, 0, index)
    }

    fn change_clsact(&mut self, op: &'static str, kind: u16, flags: u16, index: u32) -> Result<()> {
        let header = TcHeader {
            handle: CLSACT_HANDLE,
            parent: TcParent::CLSACT.0,
            ..tc_header(op, index)?
        };
        let mut request = Request::new(op, kind, flags, &header);
        request.attr_str(tca::KIND, "clsact");
        self.0.call(request)
    }

    // ------------------------------------------------------------ filters

    /// The filters on `parent` of an interface, in the order they run.
    ///
    /// # Errors
    /// As [`Netlink::query`]; `EINVAL` or an empty list if there is no such
    /// parent, depending on the kernel.
    pub fn filters(&mut self, index: u32, parent: TcParent) -> Result<Vec<Filter>> {
        let op = "RTM_GETTFILTER";
        let header = TcHeader {
            parent: parent.0,
            ..tc_header(op, index)?
        };
        let request = Request::new(op, message::RTM_GETTFILTER, flag::DUMP, &header);
        let answer = self.0.query(request)?;
        Ok(answer
            .iter()
            .filter_map(|m| parse_filter(m.payload))
            .collect())
    }

    /// Adds a BPF filter and returns it with the priority, handle and program
    /// id the kernel gave it.
    ///
    /// # Errors
    /// `EEXIST` if priority and handle are taken, `EINVAL` if clsact is not
    /// there or the program has another type, `ENOENT` without the classifier.
    pub fn filter_add(&mut self, spec: &FilterSpec<'_>) -> Result<Filter> {
        self.filter_new(spec, flag::CREATE | flag::EXCL)
    }

    /// Puts a BPF filter in the place of the one with the same priority and
    /// handle, without a gap, or adds it if there is none.
    ///
    /// # Errors
    /// As [`Rtnl::filter_add`]; `EINVAL` if priority or handle is 0, because
    /// then the kernel would add instead of replacing.
    pub fn filter_replace(&mut self, spec: &FilterSpec<'_>) -> Result<Filter> {
        definite("RTM_NEWTFILTER", &spec.id)?;
        self.filter_new(spec, flag::CREATE | flag::REPLACE)
    }

    fn filter_new(&mut self, spec: &FilterSpec<'_>, flags: u16) -> Result<Filter> {
        let op = "RTM_NEWTFILTER";
        let header = filter_header(op, &spec.id)?;
        // The echo tells what the kernel chose.
        let mut request = Request::new(op, message::RTM_NEWTFILTER, flags | flag::ECHO, &header);
        request.attr_str(tca::KIND, "bpf");
        let options = request.nest(tca::OPTIONS);
        request.attr_fd(tca::bpf::FD, spec.program);
        request.attr_str(tca::bpf::NAME, spec.name);
        request.attr_u32(tca::bpf::FLAGS, spec.flags.bits());
        request.end(options);
        let answer = self.0.query(request)?;
        let filter = answer.iter().find_map(|m| parse_filter(m.payload));
        filter.ok_or_else(|| no_answer(op))
    }

    /// Deletes one BPF filter, of chain 0.
    ///
    /// # Errors
    /// `ENOENT` if it is not there (`EINVAL` if clsact is not); `EINVAL` if
    /// priority or handle is 0, because that would delete others too.
    pub fn filter_delete(&mut self, id: &FilterId) -> Result<()> {
        let op = "RTM_DELTFILTER";
        definite(op, id)?;
        let header = filter_header(op, id)?;
        let mut request = Request::new(op, message::RTM_DELTFILTER, 0, &header);
        request.attr_str(tca::KIND, "bpf");
        self.0.call(request)
    }
}

pub(crate) fn no_answer(op: &'static str) -> SysError {
    SysError::new(op, Errno::EPROTO).with_detail("the kernel did not describe the object")
}

/// The kernel's type for an interface index; 0 is none.
pub(crate) fn kernel_index(op: &'static str, index: u32) -> Result<i32> {
    match i32::try_from(index) {
        Ok(index) if index > 0 => Ok(index),
        _ => Err(SysError::new(op, Errno::ENODEV).with_detail("no interface has this index")),
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

fn tc_header(op: &'static str, index: u32) -> Result<TcHeader> {
    Ok(TcHeader {
        index: kernel_index(op, index)?,
        ..TcHeader::default()
    })
}

fn filter_header(op: &'static str, id: &FilterId) -> Result<TcHeader> {
    Ok(TcHeader {
        handle: id.handle,
        parent: id.parent.0,
        info: u32::from(id.priority) << 16 | u32::from(id.protocol.to_be()),
        ..tc_header(op, id.index)?
    })
}

fn definite(op: &'static str, id: &FilterId) -> Result<()> {
    if id.priority == 0 || id.handle == 0 {
        return Err(SysError::new(op, Errno::EINVAL)
            .with_detail("priority and handle 0 do not name one filter"));
    }
    Ok(())
}

// ----------------------------------------------------------------- parsing

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

fn parse_xdp(attrs: &Attrs<'_>) -> XdpState {
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

/// Reads the payload of a queueing-discipline message.
pub fn parse_qdisc(payload: &[u8]) -> Option<Qdisc> {
    let (header, attrs) = Attrs::after::<TcHeader>(payload)?;
    Some(Qdisc {
        index: u32::try_from(header.index).ok()?,
        handle: header.handle,
        parent: TcParent(header.parent),
        kind: attrs.get(tca::KIND)?.text(),
    })
}

/// Reads the payload of a filter message. `None` also for the entry with
/// handle 0 that stands for a whole priority.
pub fn parse_filter(payload: &[u8]) -> Option<Filter> {
    let (header, attrs) = Attrs::after::<TcHeader>(payload)?;
    if header.handle == 0 {
        return None;
    }
    let mut filter = Filter {
        id: FilterId {
            index: u32::try_from(header.index).ok()?,
            parent: TcParent(header.parent),
            priority: (header.info >> 16) as u16,
            protocol: u16::from_be(header.info as u16),
            handle: header.handle,
        },
        kind: attrs.get(tca::KIND)?.text(),
        chain: attrs.get(tca::CHAIN).and_then(|a| a.u32()).unwrap_or(0),
        name: String::new(),
        program_id: 0,
        tag: [0; 8],
        flags: ClsBpfFlags::empty(),
    };
    if filter.kind == "bpf"
        && let Some(options) = attrs.get(tca::OPTIONS)
    {
        for attr in options.nested() {
            match attr.kind {
                tca::bpf::NAME => filter.name = attr.text(),
                tca::bpf::ID => filter.program_id = attr.u32().unwrap_or(0),
                tca::bpf::TAG => filter.tag = attr.data.try_into().unwrap_or_default(),
                tca::bpf::FLAGS => {
                    filter.flags = ClsBpfFlags::from_bits_retain(attr.u32().unwrap_or(0));
                }
                _ => {}
            }
        }
    }
    Some(filter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::bpf::ProgramType;
    use crate::abi::pod::bytes_of;
    use crate::testing::{Random, load, require, returns};
    use std::os::fd::{AsFd, OwnedFd};

    fn attr(kind: u16, data: &[u8]) -> Vec<u8> {
        let len = (data.len() + 4) as u16;
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn payload(fixed: &[u8], attrs: &[Vec<u8>]) -> Vec<u8> {
        [fixed, &attrs.concat()].concat()
    }

    fn link_payload() -> Vec<u8> {
        let header = LinkHeader {
            index: 4,
            flags: IFF_UP,
            ..LinkHeader::default()
        };
        let id = |kind, id: u32| attr(kind, &id.to_ne_bytes());
        let xdp = [
            attr(ifla::xdp::ATTACHED, &[4]),
            id(ifla::xdp::DRV_PROG_ID, 11),
            id(ifla::xdp::SKB_PROG_ID, 12),
            id(ifla::xdp::HW_PROG_ID, 13),
        ]
        .concat();
        payload(
            bytes_of(&header),
            &[
                attr(ifla::IFNAME, b"veth0\0"),
                attr(ifla::LINKINFO, &attr(ifla::info::KIND, b"veth\0")),
                attr(ifla::XDP, &xdp),
            ],
        )
    }

    fn filter_payload(handle: u32) -> Vec<u8> {
        let header = TcHeader {
            index: 4,
            handle,
            parent: TcParent::EGRESS.0,
            info: 50 << 16 | u32::from(3_u16.to_be()),
            ..TcHeader::default()
        };
        let options = [
            attr(tca::bpf::NAME, b"my filter\0"),
            attr(tca::bpf::FLAGS, &1_u32.to_ne_bytes()),
            attr(tca::bpf::ID, &77_u32.to_ne_bytes()),
            attr(tca::bpf::TAG, &[1, 2, 3, 4, 5, 6, 7, 8]),
        ]
        .concat();
        payload(
            bytes_of(&header),
            &[
                attr(tca::KIND, b"bpf\0"),
                attr(tca::CHAIN, &9_u32.to_ne_bytes()),
                attr(tca::OPTIONS | 0x8000, &options),
            ],
        )
    }

    #[test]
    fn links_are_read() {
        let link = parse_link(&link_payload()).unwrap();
        assert_eq!((link.index, link.flags), (4, IFF_UP));
        assert_eq!((link.name.as_str(), link.kind.as_str()), ("veth0", "veth"));
        let all = XdpState {
            mode: XdpMode::MULTI,
            drv: 11,
            skb: 12,
            hw: 13,
        };
        assert_eq!(link.xdp, all);
        assert_eq!(parse_link(&link_payload()[..12]), None);
        assert_eq!(parse_link(&link_payload()[..16]), None);
        let nameless = LinkHeader::default();
        assert_eq!(parse_link(bytes_of(&nameless)), None);
    }

    #[test]
    fn xdp_of_old_kernels() {
        let old = |mode| {
            let bytes = [
                attr(ifla::xdp::ATTACHED, &[mode]),
                attr(ifla::xdp::PROG_ID, &5_u32.to_ne_bytes()),
            ]
            .concat();
            let state = parse_xdp(&Attrs::new(&bytes));
            (state.drv, state.skb, state.hw)
        };
        assert_eq!(old(0), (0, 0, 0));
        assert_eq!(old(1), (5, 0, 0));
        assert_eq!(old(2), (0, 5, 0));
        assert_eq!(old(3), (0, 0, 5));
    }

    #[test]
    fn filters_are_read() {
        let filter = parse_filter(&filter_payload(2)).unwrap();
        let id = FilterId {
            index: 4,
            parent: TcParent::EGRESS,
            priority: 50,
            protocol: 3,
            handle: 2,
        };
        assert_eq!(filter.id, id);
        assert_eq!((filter.kind.as_str(), filter.chain), ("bpf", 9));
        assert_eq!((filter.name.as_str(), filter.program_id), ("my filter", 77));
        assert_eq!(filter.tag, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(filter.flags, ClsBpfFlags::DIRECT_ACTION);
        assert_eq!(parse_filter(&filter_payload(0)), None);
        assert_eq!(
            filter_header("x", &id).unwrap().info,
            50 << 16 | u32::from(3_u16.to_be())
        );
    }

    #[test]
    fn damaged_messages_do_not_panic() {
        let mut random = Random(0x1234_5678_9abc_def1);
        for good in [link_payload(), filter_payload(1)] {
            for _ in 0..20_000 {
                let bytes = random.damaged(&good);
                let _ = parse_link(&bytes);
                let _ = parse_qdisc(&bytes);
                let _ = parse_filter(&bytes);
            }
        }
    }

    // ------------------------------------------------------- on the kernel

    /// A namespace of our own with a veth pair in it.
    struct Pair {
        _ns: OwnedFd,
        rtnl: Rtnl,
        index: u32,
    }

    impl Pair {
        fn new() -> Result<Pair> {
            let ns = netns::create()?;
            let mut rtnl = Rtnl::open_in(ns.as_fd())?;
            rtnl.link_add_veth("left", "right", None)?;
            let index = rtnl.link_by_name("left")?.index;
            Ok(Pair {
                _ns: ns,
                rtnl,
                index,
            })
        }
    }

    #[test]
    fn veth_life() {
        let mut pair = require!((4, 3), ["CONFIG_VETH"], Pair::new());
        let rtnl = &mut pair.rtnl;
        let left = rtnl.link_by_index(pair.index).unwrap();
        assert_eq!(left.name, "left");
        assert_eq!(left.kind, "veth");
        assert_eq!(left.flags & IFF_UP, 0);
        assert_eq!(left.xdp, XdpState::default());
        rtnl.link_set_up(left.index).unwrap();
        let left = rtnl.link_by_name("left").unwrap();
        assert_eq!(left.flags & IFF_UP, IFF_UP);
        let names: Vec<_> = rtnl.links().unwrap().into_iter().map(|l| l.name).collect();
        for name in ["lo", "left", "right"] {
            assert!(names.iter().any(|n| n == name), "{names:?}");
        }
        let err = rtnl.link_add_veth("left", "other", None).unwrap_err();
        assert!(err.is(Errno::EEXIST), "{err}");
        rtnl.link_delete(left.index).unwrap();
        for name in ["left", "right", "a name that is longer than any"] {
            let err = rtnl.link_by_name(name).unwrap_err();
            assert!(err.is(Errno::ENODEV), "{err}");
        }
        let err = rtnl.link_by_index(left.index).unwrap_err();
        assert!(err.is(Errno::ENODEV), "{err}");
        for index in [0, u32::MAX] {
            assert!(
                rtnl.link_by_index(index)
                    .is_err_and(|e| e.is(Errno::ENODEV))
            );
            assert!(rtnl.link_delete(index).is_err_and(|e| e.is(Errno::ENODEV)));
            assert!(rtnl.link_set_up(index).is_err_and(|e| e.is(Errno::ENODEV)));
        }
    }

    #[test]
    fn veth_between_namespaces() {
        let mut pair = require!((4, 3), ["CONFIG_VETH"], Pair::new());
        let other = netns::create().unwrap();
        pair.rtnl
            .link_add_veth("near", "far", Some(other.as_fd()))
            .unwrap();
        assert!(pair.rtnl.link_by_name("far").is_err());
        let mut there = Rtnl::open_in(other.as_fd()).unwrap();
        assert_eq!(there.link_by_name("far").unwrap().kind, "veth");
    }

    #[test]
    fn clsact_life() {
        let mut pair = require!((4, 3), ["CONFIG_VETH"], Pair::new());
        let (rtnl, index) = (&mut pair.rtnl, pair.index);
        let clsact = |rtnl: &mut Rtnl| {
            let all = rtnl.qdiscs(index).unwrap();
            let found = all.into_iter().find(|qdisc| qdisc.kind == "clsact");
            assert_eq!(rtnl.clsact(index).unwrap(), found);
            found
        };
        assert_eq!(clsact(rtnl), None);
        let peer = rtnl.link_by_name("right").unwrap().index;
        require!((4, 5), ["CONFIG_NET_CLS_ACT"], rtnl.clsact_add(peer));
        assert_eq!(clsact(rtnl), None);
        rtnl.clsact_add(index).unwrap();
        let qdisc = clsact(rtnl).unwrap();
        assert!(rtnl.qdiscs(peer).unwrap().iter().all(|q| q.index == peer));
        assert_eq!(qdisc.parent, TcParent::CLSACT);
        assert_eq!(qdisc.handle, CLSACT_HANDLE);
        let err = rtnl.clsact_add(index).unwrap_err();
        assert!(err.is(Errno::EEXIST), "{err}");
        assert_eq!(err.op(), "RTM_NEWQDISC");
        // The kernel's own words (Linux 4.16).
        assert!(err.detail().is_some_and(|d| d.contains("xclusiv")), "{err}");
        rtnl.clsact_delete(index).unwrap();
        assert_eq!(clsact(rtnl), None);
        let err = rtnl.clsact_delete(index).unwrap_err();
        assert!(err.is(Errno::ENOENT) || err.is(Errno::EINVAL), "{err}");
    }

    #[test]
    fn bpf_filter_life() {
        let mut pair = require!((4, 3), ["CONFIG_VETH"], Pair::new());
        let [first, second] = [0, -1].map(|value| load(ProgramType::SCHED_CLS, &returns(value)));
        let (rtnl, index) = (&mut pair.rtnl, pair.index);
        require!((4, 5), ["CONFIG_NET_CLS_ACT"], rtnl.clsact_add(index));
        let mut spec = FilterSpec {
            id: FilterId {
                index,
                parent: TcParent::INGRESS,
                priority: 0,
                protocol: ALL_PROTOCOLS,
                handle: 0,
            },
            name: "first",
            program: first.as_fd(),
            flags: ClsBpfFlags::DIRECT_ACTION,
        };
        let added = require!((4, 13), ["CONFIG_NET_CLS_BPF"], rtnl.filter_add(&spec));
        assert_ne!(added.id.priority, 0);
        assert_ne!(added.id.handle, 0);
        assert_ne!(added.program_id, 0);
        assert_ne!(added.tag, [0; 8]);
        assert_eq!((added.kind.as_str(), added.name.as_str()), ("bpf", "first"));
        assert_eq!(added.id.parent, TcParent::INGRESS);
        assert_eq!(added.id.protocol, ALL_PROTOCOLS);
        assert_eq!(added.flags, ClsBpfFlags::DIRECT_ACTION);
        let listed = rtnl.filters(index, TcParent::INGRESS).unwrap();
        assert_eq!(listed, std::slice::from_ref(&added));
        assert_eq!(rtnl.filters(index, TcParent::EGRESS).unwrap(), []);

        // A second one with chosen numbers runs first.
        spec.id.priority = 7;
        spec.id.handle = 3;
        let chosen = rtnl.filter_add(&spec).unwrap();
        assert_eq!(chosen.id, spec.id);
        let err = rtnl.filter_add(&spec).unwrap_err();
        assert!(err.is(Errno::EEXIST), "{err}");
        assert!(err.detail().is_some(), "{err}");
        let order: Vec<_> = rtnl.filters(index, TcParent::INGRESS).unwrap();
        assert_eq!(order, [chosen.clone(), added.clone()]);

        // In place: same numbers, another program.
        spec.program = second.as_fd();
        spec.name = "second";
        let replaced = rtnl.filter_replace(&spec).unwrap();
        assert_eq!(replaced.id, chosen.id);
        assert_ne!(replaced.program_id, chosen.program_id);
        assert_eq!(replaced.name, "second");
        assert_eq!(rtnl.filters(index, TcParent::INGRESS).unwrap().len(), 2);

        // What would delete more than one filter is refused.
        for (priority, handle) in [(0, 3), (7, 0), (0, 0)] {
            let vague = FilterId {
                priority,
                handle,
                ..spec.id
            };
            let err = rtnl.filter_delete(&vague).unwrap_err();
            assert!(err.is(Errno::EINVAL), "{err}");
        }
        rtnl.filter_delete(&replaced.id).unwrap();
        let left = rtnl.filters(index, TcParent::INGRESS).unwrap();
        assert_eq!(left, std::slice::from_ref(&added));
        let err = rtnl.filter_delete(&replaced.id).unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
        rtnl.filter_delete(&added.id).unwrap();
        assert_eq!(rtnl.filters(index, TcParent::INGRESS).unwrap(), []);
        rtnl.clsact_delete(index).unwrap();
        let err = rtnl.filter_add(&spec).unwrap_err();
        assert!(err.detail().is_some_and(|d| d.contains("Qdisc")), "{err}");
    }

    #[test]
    fn xdp_life() {
        let mut pair = require!((4, 3), ["CONFIG_VETH"], Pair::new());
        let [first, second] = [2, 1].map(|value| load(ProgramType::XDP, &returns(value)));
        let (rtnl, index) = (&mut pair.rtnl, pair.index);
        let (first, second) = (Some(first.as_fd()), Some(second.as_fd()));
        let state = |rtnl: &mut Rtnl| rtnl.link_by_index(index).unwrap().xdp;
        let set = rtnl.xdp_set(index, first, XdpFlags::DRV_MODE, None);
        require!((4, 19), set);
        let driver = state(rtnl);
        assert_eq!(driver.mode, XdpMode::DRV);
        assert!(driver.drv != 0 && driver.skb == 0 && driver.hw == 0);
        let only = XdpFlags::DRV_MODE | XdpFlags::UPDATE_IF_NOEXIST;
        let err = rtnl.xdp_set(index, second, only, None).unwrap_err();
        assert!(err.is(Errno::EBUSY), "{err}");
        assert!(err.detail().is_some(), "{err}");
        // Replacing needs the program that is there.
        let wrong = rtnl.xdp_set(index, second, XdpFlags::DRV_MODE, second);
        assert!(wrong.is_err_and(|e| e.is(Errno::EEXIST)));
        let replace = rtnl.xdp_set(index, second, XdpFlags::DRV_MODE, first);
        require!((5, 7), replace);
        let replaced = state(rtnl);
        assert!(replaced.drv != 0 && replaced.drv != driver.drv);
        rtnl.xdp_set(index, None, XdpFlags::DRV_MODE, second)
            .unwrap();
        assert_eq!(state(rtnl), XdpState::default());
        rtnl.xdp_set(index, first, XdpFlags::SKB_MODE, None)
            .unwrap();
        assert_eq!((state(rtnl).mode, state(rtnl).drv), (XdpMode::SKB, 0));
        rtnl.xdp_set(index, None, XdpFlags::SKB_MODE, None).unwrap();
        assert_eq!(state(rtnl), XdpState::default());
        let err = rtnl.xdp_set(0, first, XdpFlags::empty(), None).unwrap_err();
        assert!(err.is(Errno::ENODEV), "{err}");
    }
}
