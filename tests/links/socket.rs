//! Sockets, maps of sockets, infrared receivers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use ebpf_manager::bpf::{Errno, Link, Mechanism, Method};
use ebpf_manager_sys::{netns, socket};

use super::life::{Can, Kind, PLAIN, Pin, Second, begin, load};
use crate::common::net::{Net, connection, local_pair};
use crate::common::{Feature, ROOT, kernel_version, skip};

const REUSEPORT: Feature = Feature::new("detaching from a reuseport group", 5, 3);
const SOCKMAP: Feature = Feature::new("sockmap", 5, 10).config(&["CONFIG_BPF_STREAM_PARSER"]);
const SOCKMAP_LINK: Feature =
    Feature::new("sockmap link", 6, 10).config(&["CONFIG_BPF_STREAM_PARSER"]);
/// 5.10.223 locks up in the kernel when a verdict passes data to the socket
/// that it came from.
const STREAM_VERDICT: Feature =
    Feature::new("verdict of a sockmap", 5, 15).config(&["CONFIG_BPF_STREAM_PARSER"]);
const LIRC: Feature = Feature::new("infrared", 4, 18).config(&["CONFIG_BPF_LIRC_MODE2"]);

#[test]
fn filter() {
    let Some(_leaks) = begin(&[&ROOT]) else {
        return;
    };
    let net = Net::new();
    let (sender, receiver) = local_pair(&net);
    let to = receiver.local_addr().unwrap();
    Kind {
        object: "net.bpf.o",
        programs: ["socket_first", "socket_second"],
        mechanism: Mechanism::SocketOption,
        attach: &|program| Link::socket_filter(program, receiver.as_fd()),
        poke: &|| drop(sender.send_to(b"x", to)),
        again: Second::Replaces,
        second: Second::Replaces,
        tells: Can::No,
        pin: Pin::Impossible,
        ..PLAIN
    }
    .live();
}

#[test]
fn reuseport() {
    let Some(_leaks) = begin(&[&REUSEPORT]) else {
        return;
    };
    let net = Net::new();
    let (sender, _) = local_pair(&net);
    // AF_INET, SOCK_DGRAM | SOCK_CLOEXEC; bound by its first packet.
    let receiver = netns::socket_in(net.ns.as_fd(), 2, 2 | 0o2_000_000, 0).unwrap();
    socket::share_port(receiver.as_fd()).unwrap();
    let receiver = UdpSocket::from(receiver);
    receiver
        .send_to(b"x", sender.local_addr().unwrap())
        .unwrap();
    let to = (Ipv4Addr::LOCALHOST, receiver.local_addr().unwrap().port());
    Kind {
        object: "net.bpf.o",
        programs: ["reuseport_first", "reuseport_second"],
        mechanism: Mechanism::SocketOption,
        attach: &|program| Link::reuseport(program, receiver.as_fd()),
        poke: &|| drop(sender.send_to(b"x", to)),
        again: Second::Replaces,
        second: Second::Replaces,
        tells: Can::No,
        pin: Pin::Impossible,
        ..PLAIN
    }
    .live();
}

/// What is sent to a socket of the map, or by one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    Sent,
    Received,
}

fn sockmap(object: &'static str, programs: [&'static str; 2], data: Data, method: Method) {
    let net = Net::new();
    // Programs of one collection are attached to the map of another, because
    // the map must outlive them.
    let holder = load("net.bpf.o", &["message_first"], Vec::new());
    let map = holder.map("sockets").unwrap();
    let by_link = method == Method::Link;
    // Before, the kernel does not tell who is attached.
    let tells = by_link || kernel_version() >= (5, 17);
    Kind {
        object,
        programs,
        mechanism: if by_link {
            Mechanism::SockmapLink
        } else {
            Mechanism::SockmapAttach
        },
        attach: &|program| Link::sockmap(program, map, method),
        // A socket is under the program's rule if it enters while the program
        // is attached.
        poke: &|| {
            let (mut client, mut server) = connection(&net);
            let inside = match data {
                Data::Sent => client.as_raw_fd(),
                Data::Received => server.as_raw_fd(),
            };
            map.set(&0_u32, &inside.unsigned_abs()).unwrap();
            client.write_all(b"x").unwrap();
            server
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            server.read_exact(&mut [0]).unwrap();
        },
        again: if tells {
            Second::RefusedByName
        } else {
            Second::Replaces
        },
        second: if tells {
            Second::RefusedByName
        } else {
            Second::Replaces
        },
        tells: if tells { Can::Yes } else { Can::No },
        pin: if by_link {
            Pin::Detachable
        } else {
            Pin::Impossible
        },
        ..PLAIN
    }
    .live();
}

#[test]
fn sk_msg_by_link() {
    if let Some(_leaks) = begin(&[&SOCKMAP_LINK]) {
        let programs = ["message_first", "message_second"];
        sockmap("net.bpf.o", programs, Data::Sent, Method::Link);
    }
}

#[test]
fn sk_msg_by_attach() {
    if let Some(_leaks) = begin(&[&SOCKMAP]) {
        let programs = ["message_first", "message_second"];
        sockmap("net.bpf.o", programs, Data::Sent, Method::Classic);
    }
}

#[test]
fn verdict_by_link() {
    if let Some(_leaks) = begin(&[&SOCKMAP_LINK]) {
        let programs = ["verdict_first", "verdict_second"];
        sockmap("hooks.bpf.o", programs, Data::Received, Method::Link);
    }
}

#[test]
fn verdict_by_attach() {
    if let Some(_leaks) = begin(&[&STREAM_VERDICT]) {
        let programs = ["verdict_first", "verdict_second"];
        sockmap("hooks.bpf.o", programs, Data::Received, Method::Classic);
    }
}

#[test]
fn stream_verdict_by_attach() {
    if let Some(_leaks) = begin(&[&STREAM_VERDICT]) {
        let programs = ["stream_verdict_first", "stream_verdict_second"];
        sockmap("hooks.bpf.o", programs, Data::Received, Method::Classic);
    }
}

/// A parser works together with a verdict.
#[test]
fn stream_parser_by_attach() {
    if let Some(_leaks) = begin(&[&STREAM_VERDICT]) {
        let net = Net::new();
        let names = ["parser_first", "stream_verdict_first"];
        let collection = load("hooks.bpf.o", &names, Vec::new());
        let holder = load("net.bpf.o", &["message_first"], Vec::new());
        let map = holder.map("sockets").unwrap();
        let [parser, verdict] = names.map(|name| {
            let program = collection.program(name).unwrap();
            Link::sockmap(program, map, Method::Classic).unwrap()
        });
        let (mut client, server) = connection(&net);
        map.set(&0_u32, &server.as_raw_fd().unsigned_abs()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        client.write_all(b"x").unwrap();
        for name in names {
            while super::life::count(&collection, name) == 0 {
                assert!(std::time::Instant::now() < deadline, "{name} does not fire");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        parser.detach().unwrap();
        verdict.detach().unwrap();
    }
}

#[test]
fn infrared() {
    let Some(_leaks) = begin(&[&LIRC]) else {
        return;
    };
    let device = Path::new("/dev/lirc0");
    let collection = load("hooks.bpf.o", &["lirc_first", "lirc_second"], Vec::new());
    let program = collection.program("lirc_first").unwrap();
    if !device.exists() {
        let err = Link::lirc(program, device).unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
        skip("no infrared receiver here");
        return;
    }
    let mut link = Link::lirc(program, device).unwrap();
    assert!(link.is_attached().unwrap());
    link.update(collection.program("lirc_second").unwrap())
        .unwrap();
    link.detach().unwrap();
}
