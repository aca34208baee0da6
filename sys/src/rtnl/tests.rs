//! Tests of rtnetlink: messages as the kernel writes them, and pairs of veth.

use std::os::fd::{AsFd, OwnedFd};

use super::link::parse_xdp;
use super::tc::{CLSACT_HANDLE, filter_header};
use super::*;
use crate::abi::bpf::ProgramType;
use crate::abi::netlink::{IFF_UP, LinkHeader, TcHeader, ifla, tca};
use crate::abi::pod::bytes_of;
use crate::netlink::Attrs;
use crate::testing::{Random, load, require, returns};

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
