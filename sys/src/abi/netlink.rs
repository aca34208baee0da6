//! Numbers and layouts of netlink and of the part of rtnetlink that attaches
//! programs: links, queueing disciplines, filters, routes.
//!
//! Sources: `netlink.h`, `rtnetlink.h`, `if_link.h`, `pkt_sched.h`,
//! `pkt_cls.h`, `veth.h`, `lwtunnel.h` and `seg6_local.h`.

use std::fmt;
use std::mem::offset_of;

use bitflags::bitflags;

use super::pod::Pod;

/// Messages, attributes and members of messages start at multiples of this.
pub const ALIGN: usize = 4;

/// `struct nlmsghdr`, at the start of every message.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MessageHeader {
    /// Bytes in the message, header included, padding not.
    pub len: u32,
    /// One of [`message`].
    pub kind: u16,
    /// Some of [`flag`].
    pub flags: u16,
    /// Number of the request; answers repeat it.
    pub seq: u32,
    /// Sender's or receiver's port; 0 is the kernel.
    pub port: u32,
}

const _: () = assert!(size_of::<MessageHeader>() == 16);
const _: () = assert!(offset_of!(MessageHeader, kind) == 4);
const _: () = assert!(offset_of!(MessageHeader, flags) == 6);
const _: () = assert!(offset_of!(MessageHeader, seq) == 8);
const _: () = assert!(offset_of!(MessageHeader, port) == 12);
// SAFETY: integers at offsets 0, 4, 6, 8 and 12, sixteen bytes, no padding.
unsafe impl Pod for MessageHeader {}

/// `struct ifinfomsg`, the fixed part of link messages.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkHeader {
    /// Address family; 0 here.
    pub family: u8,
    /// Padding.
    pub pad: u8,
    /// `ARPHRD_*`.
    pub kind: u16,
    /// Interface index.
    pub index: i32,
    /// `IFF_*`.
    pub flags: u32,
    /// Which of `flags` a request changes.
    pub change: u32,
}

const _: () = assert!(size_of::<LinkHeader>() == 16);
const _: () = assert!(offset_of!(LinkHeader, kind) == 2);
const _: () = assert!(offset_of!(LinkHeader, index) == 4);
const _: () = assert!(offset_of!(LinkHeader, flags) == 8);
const _: () = assert!(offset_of!(LinkHeader, change) == 12);
// SAFETY: integers at offsets 0, 1, 2, 4, 8 and 12, sixteen bytes, no padding.
unsafe impl Pod for LinkHeader {}

/// `struct tcmsg`, the fixed part of traffic-control messages.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcHeader {
    /// Address family; 0 here.
    pub family: u8,
    /// Padding.
    pub pad1: u8,
    /// Padding.
    pub pad2: u16,
    /// Interface index.
    pub index: i32,
    /// Handle of the discipline or filter.
    pub handle: u32,
    /// What it hangs on; see [`TcParent`].
    pub parent: u32,
    /// Filters: priority in the upper half, protocol in network byte order in
    /// the lower one.
    pub info: u32,
}

const _: () = assert!(size_of::<TcHeader>() == 20);
const _: () = assert!(offset_of!(TcHeader, pad2) == 2);
const _: () = assert!(offset_of!(TcHeader, index) == 4);
const _: () = assert!(offset_of!(TcHeader, handle) == 8);
const _: () = assert!(offset_of!(TcHeader, parent) == 12);
const _: () = assert!(offset_of!(TcHeader, info) == 16);
// SAFETY: integers at offsets 0, 1, 2, 4, 8, 12 and 16, twenty bytes, no padding.
unsafe impl Pod for TcHeader {}

/// `struct rtmsg`, the fixed part of route messages.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RouteHeader {
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// Bits of the destination that count.
    pub dst_len: u8,
    /// Bits of the source that count.
    pub src_len: u8,
    /// Type of service.
    pub tos: u8,
    /// Table, if it is below 256; else 0 and an attribute.
    pub table: u8,
    /// Who made it: `RTPROT_*`.
    pub protocol: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `RTN_*`.
    pub kind: u8,
    /// `RTM_F_*`.
    pub flags: u32,
}

const _: () = assert!(size_of::<RouteHeader>() == 12);
const _: () = assert!(offset_of!(RouteHeader, table) == 4);
const _: () = assert!(offset_of!(RouteHeader, kind) == 7);
const _: () = assert!(offset_of!(RouteHeader, flags) == 8);
// SAFETY: eight bytes and an integer at offset 8, twelve bytes, no padding.
unsafe impl Pod for RouteHeader {}

/// Message types.
pub mod message {
    #![allow(missing_docs, reason = "the kernel's names")]
    pub const ERROR: u16 = 2;
    pub const DONE: u16 = 3;
    pub const OVERRUN: u16 = 4;
    /// Types below this belong to netlink itself.
    pub const MIN_TYPE: u16 = 16;
    pub const RTM_NEWLINK: u16 = 16;
    pub const RTM_DELLINK: u16 = 17;
    pub const RTM_GETLINK: u16 = 18;
    pub const RTM_SETLINK: u16 = 19;
    pub const RTM_NEWROUTE: u16 = 24;
    pub const RTM_DELROUTE: u16 = 25;
    pub const RTM_GETROUTE: u16 = 26;
    pub const RTM_NEWQDISC: u16 = 36;
    pub const RTM_DELQDISC: u16 = 37;
    pub const RTM_GETQDISC: u16 = 38;
    pub const RTM_NEWTFILTER: u16 = 44;
    pub const RTM_DELTFILTER: u16 = 45;
    pub const RTM_GETTFILTER: u16 = 46;
}

/// Message flags; their meaning depends on the kind of message.
pub mod flag {
    /// This is a request.
    pub const REQUEST: u16 = 0x1;
    /// Part of an answer of several messages.
    pub const MULTI: u16 = 0x2;
    /// Answer with a result even on success.
    pub const ACK: u16 = 0x4;
    /// Send the resulting notification to the requester too.
    pub const ECHO: u16 = 0x8;
    /// The table changed while it was listed. Linux 3.1.
    pub const DUMP_INTR: u16 = 0x10;
    /// Get requests: list everything.
    pub const DUMP: u16 = 0x300;
    /// New requests: replace what exists.
    pub const REPLACE: u16 = 0x100;
    /// New requests: fail if it exists.
    pub const EXCL: u16 = 0x200;
    /// New requests: create if it does not exist.
    pub const CREATE: u16 = 0x400;
    /// Results: the request is not repeated. Linux 4.12.
    pub const CAPPED: u16 = 0x100;
    /// Results: attributes of [`super::ext_ack`] follow. Linux 4.12.
    pub const ACK_TLVS: u16 = 0x200;
}

/// Attributes of an extended acknowledgement. Linux 4.12.
pub mod ext_ack {
    /// Text.
    pub const MSG: u16 = 1;
    /// Offset of the refused attribute in the request.
    pub const OFFS: u16 = 2;
    /// Type of a missing attribute. Linux 6.1.
    pub const MISS_TYPE: u16 = 5;
}

/// Set in the type of an attribute that contains attributes.
pub const NLA_F_NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that are its type.
pub const NLA_TYPE_MASK: u16 = 0x3fff;

/// Attributes of links: message level.
pub mod ifla {
    #![allow(missing_docs, reason = "the kernel's names")]
    pub const IFNAME: u16 = 3;
    pub const LINKINFO: u16 = 18;
    pub const NET_NS_FD: u16 = 28;
    pub const EXT_MASK: u16 = 29;
    pub const XDP: u16 = 43;
    /// Name of up to 127 bytes. Linux 5.5.
    pub const ALT_IFNAME: u16 = 53;

    /// Within [`LINKINFO`].
    pub mod info {
        pub const KIND: u16 = 1;
        pub const DATA: u16 = 2;
    }

    /// Within [`XDP`].
    pub mod xdp {
        pub const FD: u16 = 1;
        pub const ATTACHED: u16 = 2;
        pub const FLAGS: u16 = 3;
        pub const PROG_ID: u16 = 4;
        pub const DRV_PROG_ID: u16 = 5;
        pub const SKB_PROG_ID: u16 = 6;
        pub const HW_PROG_ID: u16 = 7;
        pub const EXPECTED_FD: u16 = 8;
    }

    /// Within [`info::DATA`] of a veth or netkit pair: the other end, a
    /// [`super::LinkHeader`] and attributes.
    pub const PEER_INFO: u16 = 1;
    /// Within [`info::DATA`] of a netkit pair: with or without Ethernet.
    pub const NETKIT_MODE: u16 = 5;
    /// Value of [`NETKIT_MODE`]: with Ethernet.
    pub const NETKIT_L2: u32 = 0;
    /// Bit of [`EXT_MASK`]: leave out the statistics.
    pub const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
}

/// Attributes of routes.
pub mod rta {
    #![allow(missing_docs, reason = "the kernel's names")]
    pub const DST: u16 = 1;
    pub const OIF: u16 = 4;
    pub const GATEWAY: u16 = 5;
    pub const PRIORITY: u16 = 6;
    pub const TABLE: u16 = 15;
    pub const ENCAP_TYPE: u16 = 21;
    pub const ENCAP: u16 = 22;

    /// Values of [`ENCAP_TYPE`].
    pub mod encap {
        pub const BPF: u16 = 6;
        pub const SEG6_LOCAL: u16 = 7;
    }

    /// Within [`ENCAP`] of type [`encap::BPF`].
    pub mod bpf {
        pub const IN: u16 = 1;
        pub const OUT: u16 = 2;
        pub const XMIT: u16 = 3;
        pub const XMIT_HEADROOM: u16 = 4;
    }

    /// Within [`ENCAP`] of type [`encap::SEG6_LOCAL`].
    pub mod seg6_local {
        pub const ACTION: u16 = 1;
        pub const BPF: u16 = 8;
        /// Value of [`ACTION`]: a program decides. Linux 4.18.
        pub const END_BPF: u32 = 15;
    }

    /// Within each program of both types: descriptor.
    pub const PROG_FD: u16 = 1;
    /// Within each program of both types: name.
    pub const PROG_NAME: u16 = 2;
}

/// Attributes of traffic control.
pub mod tca {
    #![allow(missing_docs, reason = "the kernel's names")]
    pub const KIND: u16 = 1;
    pub const OPTIONS: u16 = 2;
    pub const CHAIN: u16 = 11;

    /// Within [`OPTIONS`] of a filter of kind `bpf`.
    pub mod bpf {
        pub const FD: u16 = 6;
        pub const NAME: u16 = 7;
        pub const FLAGS: u16 = 8;
        pub const FLAGS_GEN: u16 = 9;
        pub const TAG: u16 = 10;
        pub const ID: u16 = 11;
    }
}

/// Longest interface name, with its terminating zero.
pub const IFNAMSIZ: usize = 16;
/// The interface is up.
pub const IFF_UP: u32 = 1;
/// Protocol number that stands for every packet.
pub const ETH_P_ALL: u16 = 3;

/// What a discipline or filter hangs on: `tcm_parent`.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcParent(pub u32);

impl TcParent {
    /// The place of clsact on an interface.
    pub const CLSACT: TcParent = TcParent(0xffff_fff1);
    /// Filters of clsact for arriving packets.
    pub const INGRESS: TcParent = TcParent(0xffff_fff2);
    /// Filters of clsact for leaving packets.
    pub const EGRESS: TcParent = TcParent(0xffff_fff3);
}

impl fmt::Debug for TcParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            TcParent::CLSACT => f.write_str("clsact"),
            TcParent::INGRESS => f.write_str("ingress"),
            TcParent::EGRESS => f.write_str("egress"),
            TcParent(other) => write!(f, "{:x}:{:x}", other >> 16, other & 0xffff),
        }
    }
}

bitflags! {
    /// `TCA_BPF_FLAGS`; bits not named here are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct ClsBpfFlags: u32 {
        /// The program's return value is the verdict (`TC_ACT_*`). Linux 4.4.
        const DIRECT_ACTION = 1 << 0;
        // Others may come.
        const _ = !0;
    }
}

bitflags! {
    /// `XDP_FLAGS_*`; bits not named here are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct XdpFlags: u32 {
        /// Fail with `EBUSY` if a program is attached in the same mode.
        const UPDATE_IF_NOEXIST = 1 << 0;
        /// Generic XDP, works on every interface. Linux 4.12.
        const SKB_MODE = 1 << 1;
        /// In the driver. Linux 4.12.
        const DRV_MODE = 1 << 2;
        /// In the hardware. Linux 4.13.
        const HW_MODE = 1 << 3;
        /// Only replace a given program. Linux 5.7.
        const REPLACE = 1 << 4;
        // Others may come.
        const _ = !0;
    }
}

/// Mode of an attached XDP program: `IFLA_XDP_ATTACHED`.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct XdpMode(pub u8);

impl XdpMode {
    /// None is attached.
    pub const NONE: XdpMode = XdpMode(0);
    /// In the driver.
    pub const DRV: XdpMode = XdpMode(1);
    /// Generic.
    pub const SKB: XdpMode = XdpMode(2);
    /// In the hardware.
    pub const HW: XdpMode = XdpMode(3);
    /// Several, in different modes. Linux 4.19.
    pub const MULTI: XdpMode = XdpMode(4);
}

impl fmt::Debug for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            XdpMode::NONE => f.write_str("none"),
            XdpMode::DRV => f.write_str("drv"),
            XdpMode::SKB => f.write_str("skb"),
            XdpMode::HW => f.write_str("hw"),
            XdpMode::MULTI => f.write_str("multi"),
            XdpMode(other) => write!(f, "{other}"),
        }
    }
}
