//! Programs on routes, with packets between two namespaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use ebpf_manager::bpf::{Interface, Link, LwtRoute, Mechanism, NetNamespace};
use ebpf_manager_sys::route::{MAIN_TABLE, RouteId};
use ebpf_manager_sys::{fd, netns};

use super::life::{Can, Kind, PLAIN, Pin, Second, begin};
use crate::common::net::Net;
use crate::common::{Feature, NetNs};

const LWT: Feature = Feature::new("programs on routes", 4, 10).config(&["CONFIG_LWTUNNEL_BPF"]);
const SEG6: Feature = Feature::new("segment routing by program", 4, 18).config(&[
    "CONFIG_LWTUNNEL_BPF",
    "CONFIG_IPV6_SEG6_BPF",
    "CONFIG_IPV6_SEG6_LWTUNNEL",
]);

/// Routes, and programs with them, are freed some time after they are gone.
const FREED: Duration = Duration::from_secs(20);

/// For documentation.
const FAR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

fn kind<'a>(
    programs: [&'static str; 2],
    attach: &'a dyn Fn(&ebpf_manager::bpf::Program) -> Result<Link, ebpf_manager::bpf::LinkError>,
    poke: &'a dyn Fn(),
) -> Kind<'a> {
    Kind {
        programs,
        mechanism: Mechanism::LwtRoute,
        attach,
        poke,
        again: Second::Refused,
        second: Second::Refused,
        update: Can::Yes,
        pin: Pin::Impossible,
        ..PLAIN
    }
}

fn outgoing(programs: [&'static str; 2]) {
    let net = Net::new();
    let left = Interface::from("left").in_namespace(&net.namespace);
    let route = LwtRoute::new(FAR, 32, left.clone());
    kind(programs, &|program| Link::lwt(program, &route), &|| {
        drop(net.sender.send_to(b"x", (FAR, 9)));
    })
    .live();
    // IPv4, with what else a route has.
    let sender = net
        .ns
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    let far = Ipv4Addr::new(192, 0, 2, 7);
    let route = LwtRoute {
        metric: 50,
        headroom: 14,
        ..LwtRoute::new(far, 32, left)
    };
    kind(programs, &|program| Link::lwt(program, &route), &|| {
        drop(sender.send_to(b"x", (far, 9)));
    })
    .live();
}

#[test]
fn lwt_out() {
    if let Some(leaks) = begin(&[&LWT]) {
        outgoing(["lwt_out_first", "lwt_out_second"]);
        leaks.finish_within(FREED);
    }
}

#[test]
fn lwt_xmit() {
    if let Some(leaks) = begin(&[&LWT]) {
        outgoing(["lwt_xmit_first", "lwt_xmit_second"]);
        leaks.finish_within(FREED);
    }
}

/// Two namespaces, connected; the far one forwards, and the near one sends to
/// it whatever is for [`FAR`].
struct Far {
    near: NetNs,
    _there: NetNs,
    namespace: NetNamespace,
}

impl Far {
    fn new() -> Far {
        let [near, far] = [NetNs::new(), NetNs::new()];
        let mut rtnl = ebpf_manager_sys::rtnl::Rtnl::open_in(near.as_fd()).unwrap();
        let mut there = ebpf_manager_sys::rtnl::Rtnl::open_in(far.as_fd()).unwrap();
        for ns in [&near, &far] {
            ns.run(|| {
                for (conf, value) in [("accept_dad", "0"), ("forwarding", "1")] {
                    for interface in ["all", "default"] {
                        let path = format!("/proc/sys/net/ipv6/conf/{interface}/{conf}");
                        std::fs::write(path, value).unwrap();
                    }
                }
            });
        }
        rtnl.link_add_veth("near", "far", Some(far.as_fd()))
            .unwrap();
        let index = rtnl.link_by_name("near").unwrap().index;
        rtnl.link_set_up(index).unwrap();
        let other = there.link_by_name("far").unwrap().index;
        there.link_set_up(other).unwrap();
        let gateway = far.run(link_local_address);
        let route = RouteId {
            destination: IpAddr::V6(FAR),
            prefix_len: 128,
            index,
            gateway: Some(IpAddr::V6(gateway)),
            table: MAIN_TABLE,
            metric: 0,
        };
        rtnl.route_add(&route, None).unwrap();
        Far {
            namespace: NetNamespace::from_fd(fd::dup(far.as_fd()).unwrap()).unwrap(),
            near,
            _there: far,
        }
    }

    fn interface(&self) -> Interface {
        Interface::from("far").in_namespace(&self.namespace)
    }
}

/// The address that the kernel gave the interface `far`.
fn link_local_address() -> Ipv6Addr {
    for _ in 0..1000 {
        let list = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        let line = list.lines().find(|line| line.ends_with(" far"));
        if let Some(hex) = line.and_then(|line| line.get(..32)) {
            return Ipv6Addr::from(u128::from_str_radix(hex, 16).unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the interface has no address");
}

#[test]
fn lwt_in() {
    if let Some(leaks) = begin(&[&LWT]) {
        incoming();
        leaks.finish_within(FREED);
    }
}

fn incoming() {
    let far = Far::new();
    let sender = far
        .near
        .run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
    let route = LwtRoute::new(FAR, 128, far.interface());
    kind(
        ["lwt_in_first", "lwt_in_second"],
        &|program| Link::lwt(program, &route),
        &|| drop(sender.send_to(b"x", (FAR, 9))),
    )
    .live();
}

/// An IPv6 packet to [`FAR`] with a segment routing header, one segment left.
fn segment_packet() -> Vec<u8> {
    const SEGMENTS: [Ipv6Addr; 2] = [Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2), FAR];
    const ROUTING: u8 = 43;
    const UDP: u8 = 17;
    // Next header, length in eights of bytes behind the first, type 4,
    // segments left, last entry, flags, tag.
    let mut payload = vec![UDP, 4, 4, 1, 1, 0, 0, 0];
    for segment in SEGMENTS {
        payload.extend_from_slice(&segment.octets());
    }
    // Ports, length; a checksum nobody looks at.
    payload.extend_from_slice(&[0, 9, 0, 9, 0, 8, 0, 1]);
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, ROUTING, 64];
    packet.extend_from_slice(&Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).octets());
    packet.extend_from_slice(&FAR.octets());
    packet.extend_from_slice(&payload);
    packet
}

#[test]
fn lwt_seg6local() {
    if let Some(leaks) = begin(&[&SEG6]) {
        segments();
        leaks.finish_within(FREED);
    }
}

fn segments() {
    let far = Far::new();
    // AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW: headers and all.
    let sender = netns::socket_in(far.near.as_fd(), 10, 3 | 0o2_000_000, 255).unwrap();
    let sender = UdpSocket::from(sender);
    let packet = segment_packet();
    let route = LwtRoute::new(FAR, 128, far.interface());
    kind(
        ["lwt_seg6local_first", "lwt_seg6local_second"],
        &|program| Link::lwt(program, &route),
        &|| drop(sender.send_to(&packet, (FAR, 0))),
    )
    .live();
}
