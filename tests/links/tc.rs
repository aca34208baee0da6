//! Traffic control, on veth and netkit pairs.

use std::os::fd::AsFd;

use ebpf_manager::bpf::{
    ClsactOptions, Direction, Interface, Link, Mechanism, NetkitEnd, Order, TcAttach,
};
use ebpf_manager_sys::rtnl::Rtnl;

use super::life::{Kind, PLAIN, Pin, Second, begin};
use crate::common::net::Net;
use crate::common::{Feature, NETKIT, TCX};

const CLSACT: Feature = Feature::new("clsact", 4, 5).config(&["CONFIG_NET_CLS_BPF"]);
const PROGRAMS: [&str; 2] = ["tc_first", "tc_second"];

/// Packets go from `left` to `right`.
fn end(net: &Net, direction: Direction) -> Interface {
    let name = match direction {
        Direction::Ingress => "right",
        Direction::Egress => "left",
    };
    Interface::from(name).in_namespace(&net.namespace)
}

fn tcx(direction: Direction) {
    let net = Net::new();
    let interface = end(&net, direction);
    Kind {
        object: "net.bpf.o",
        programs: PROGRAMS,
        mechanism: Mechanism::Tcx,
        attach: &|program| Link::tc(program, &interface, direction, &TcAttach::Auto),
        poke: &|| net.send(),
        again: Second::RefusedByName,
        ..PLAIN
    }
    .live();
    assert_eq!(net.rtnl().clsact(net.right).unwrap(), None);
    assert_eq!(net.rtnl().clsact(net.left).unwrap(), None);
}

#[test]
fn ingress_by_tcx_link() {
    if let Some(_leaks) = begin(&[&TCX]) {
        tcx(Direction::Ingress);
    }
}

#[test]
fn egress_by_tcx_link() {
    if let Some(_leaks) = begin(&[&TCX]) {
        tcx(Direction::Egress);
    }
}

fn clsact(direction: Direction) {
    let net = Net::new();
    let interface = end(&net, direction);
    for (handle, second) in [(0, Second::Shares), (7, Second::RefusedByName)] {
        let options = ClsactOptions {
            handle,
            ..ClsactOptions::default()
        };
        Kind {
            object: "net.bpf.o",
            programs: PROGRAMS,
            mechanism: Mechanism::Clsact,
            attach: &|program| Link::clsact(program, &interface, direction, &options),
            poke: &|| net.send(),
            again: second,
            second,
            pin: Pin::Impossible,
            ..PLAIN
        }
        .live();
    }
}

#[test]
fn ingress_by_clsact_filter() {
    if let Some(_leaks) = begin(&[&CLSACT]) {
        clsact(Direction::Ingress);
    }
}

#[test]
fn egress_by_clsact_filter() {
    if let Some(_leaks) = begin(&[&CLSACT]) {
        clsact(Direction::Egress);
    }
}

fn netkit(end: NetkitEnd) {
    let net = Net::new();
    let mut rtnl = Rtnl::open_in(net.ns.as_fd()).unwrap();
    rtnl.link_add_netkit("primary", "peer", None).unwrap();
    let [primary, peer] = ["primary", "peer"].map(|name| {
        let index = rtnl.link_by_name(name).unwrap().index;
        rtnl.link_set_up(index).unwrap();
        index
    });
    let interface = Interface::from("primary").in_namespace(&net.namespace);
    let from = match end {
        NetkitEnd::Primary => primary,
        NetkitEnd::Peer => peer,
    };
    Kind {
        object: "net.bpf.o",
        programs: PROGRAMS,
        mechanism: Mechanism::Netkit,
        attach: &|program| Link::netkit(program, &interface, end, Order::default()),
        poke: &|| Net::send_over(&net.sender, from),
        again: Second::RefusedByName,
        ..PLAIN
    }
    .live();
}

#[test]
fn netkit_primary() {
    if let Some(_leaks) = begin(&[&NETKIT]) {
        netkit(NetkitEnd::Primary);
    }
}

#[test]
fn netkit_peer() {
    if let Some(_leaks) = begin(&[&NETKIT]) {
        netkit(NetkitEnd::Peer);
    }
}
