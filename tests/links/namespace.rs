//! Hooks of a whole network namespace.

use ebpf_manager::bpf::{
    Link, Mechanism, Method, NetfilterFamily, NetfilterHook, NetfilterOptions,
};

use super::life::{Can, Kind, PLAIN, Second, begin, impossible, load};
use crate::common::net::{Net, local_pair};
use crate::common::{Feature, NETFILTER_LINK};

const SK_LOOKUP: Feature = Feature::new("sk_lookup", 5, 9);
const FLOW_LINK: Feature = Feature::new("flow dissector link", 5, 8);
const FLOW_ATTACH: Feature = Feature::new("flow dissector of a namespace", 4, 20);

#[test]
fn sk_lookup() {
    let Some(_leaks) = begin(&[&SK_LOOKUP]) else {
        return;
    };
    let net = Net::new();
    let (sender, receiver) = local_pair(&net);
    let to = receiver.local_addr().unwrap();
    Kind {
        object: "net.bpf.o",
        programs: ["lookup_first", "lookup_second"],
        mechanism: Mechanism::NetnsLink,
        attach: &|program| Link::sk_lookup(program, Some(&net.namespace)),
        poke: &|| drop(sender.send_to(b"x", to)),
        ..PLAIN
    }
    .live();
}

/// Without packets: what makes the kernel dissect differs between versions.
fn flow_dissector(method: Method, mechanism: Mechanism) {
    let net = Net::new();
    let names = ["flow_first", "flow_second"];
    let collection = load("net.bpf.o", &names, Vec::new());
    let [first, second] = names.map(|name| collection.program(name).unwrap());
    let attach = |program| Link::flow_dissector(program, Some(&net.namespace), method);
    let mut link = attach(first).unwrap();
    assert_eq!(link.mechanism(), mechanism);
    assert!(link.is_attached().unwrap());
    for program in [first, second] {
        let err = attach(program).unwrap_err();
        assert!(err.to_string().contains("(flow_first)"), "{err}");
    }
    link.update(second).unwrap();
    let err = attach(first).unwrap_err();
    assert!(err.to_string().contains("(flow_second)"), "{err}");
    if link.id().unwrap().is_none() {
        impossible(link.pin("/sys/fs/bpf/unused".as_ref()));
    }
    link.detach().unwrap();
    drop(attach(first).unwrap());
    drop(attach(second).unwrap());
}

#[test]
fn flow_dissector_by_link() {
    if let Some(_leaks) = begin(&[&FLOW_LINK]) {
        flow_dissector(Method::Auto, Mechanism::NetnsLink);
    }
}

#[test]
fn flow_dissector_by_attach() {
    if let Some(_leaks) = begin(&[&FLOW_ATTACH]) {
        flow_dissector(Method::Classic, Mechanism::NetnsAttach);
    }
}

fn netfilter(family: NetfilterFamily, hook: NetfilterHook) {
    let net = Net::new();
    let (sender, receiver) = local_pair(&net);
    let to = receiver.local_addr().unwrap();
    let options = NetfilterOptions {
        family,
        ..NetfilterOptions::new(hook)
    };
    Kind {
        object: "net.bpf.o",
        programs: ["netfilter_first", "netfilter_second"],
        mechanism: Mechanism::Netfilter,
        attach: &|program| Link::netfilter(program, Some(&net.namespace), options),
        poke: &|| match family {
            NetfilterFamily::Ipv4 => drop(sender.send_to(b"x", to)),
            NetfilterFamily::Ipv6 => net.send(),
        },
        again: Second::Refused,
        second: Second::Refused,
        update: Can::No,
        ..PLAIN
    }
    .live();
}

#[test]
fn netfilter_ipv4() {
    if let Some(_leaks) = begin(&[&NETFILTER_LINK]) {
        for hook in [
            NetfilterHook::PreRouting,
            NetfilterHook::LocalIn,
            NetfilterHook::LocalOut,
            NetfilterHook::PostRouting,
        ] {
            netfilter(NetfilterFamily::Ipv4, hook);
        }
    }
}

#[test]
fn netfilter_ipv6() {
    if let Some(_leaks) = begin(&[&NETFILTER_LINK]) {
        for hook in [NetfilterHook::PreRouting, NetfilterHook::LocalOut] {
            netfilter(NetfilterFamily::Ipv6, hook);
        }
    }
}
