//! Sockets, maps of sockets, infrared receivers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use ebpf_manager::bpf::{Collection, Errno, Link, Map, Mechanism, Method};
use ebpf_manager_sys::{netns, socket};

use super::life::{Can, Kind, PLAIN, Pin, Second, begin, count, load};
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

/// Two maps of sockets, by number and by key, which must outlive the programs
/// attached to them: those are of other collections.
struct Maps {
    _holders: [Collection; 2],
    by_number: Map,
    by_key: Map,
}

fn maps() -> Maps {
    let holders = [
        ("net.bpf.o", "message_first"),
        ("hooks.bpf.o", "lwt_in_first"),
    ]
    .map(|(object, program)| load(object, &[program], Vec::new()));
    let [net, hooks] = &holders;
    Maps {
        by_number: net.map("sockets").unwrap().clone(),
        by_key: hooks.map("sockets_by_key").unwrap().clone(),
        _holders: holders,
    }
}

const MESSAGES: [&str; 2] = ["message_first", "message_second"];
const VERDICTS: [&str; 2] = ["verdict_first", "verdict_second"];
const STREAM_VERDICTS: [&str; 2] = ["stream_verdict_first", "stream_verdict_second"];
const PARSERS: [&str; 2] = ["parser_first", "parser_second"];

fn sockmap(map: &Map, programs: [&'static str; 2], data: Data, method: Method) {
    let net = Net::new();
    let object = if programs == MESSAGES {
        "net.bpf.o"
    } else {
        "hooks.bpf.o"
    };
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

/// A parser works together with a verdict.
fn parser(map: &Map, programs: [&'static str; 2], data: Data, method: Method) {
    let verdicts = load("hooks.bpf.o", &STREAM_VERDICTS[..1], Vec::new());
    let verdict = verdicts.program(STREAM_VERDICTS[0]).unwrap();
    let verdict = Link::sockmap(verdict, map, method).unwrap();
    sockmap(map, programs, data, method);
    assert_ne!(count(&verdicts, STREAM_VERDICTS[0]), 0);
    verdict.detach().unwrap();
}

/// Each kind of program, by link and by attach, on a map by number and on one
/// by key.
macro_rules! sockmaps {
    ($($name:ident, $name_by_key:ident [$feature:expr]
        $live:ident($programs:expr, $data:expr, $method:expr);)*) => {$(
        #[test]
        fn $name() {
            if let Some(_leaks) = begin(&[&$feature]) {
                $live(&maps().by_number, $programs, $data, $method);
            }
        }

        #[test]
        fn $name_by_key() {
            if let Some(_leaks) = begin(&[&$feature]) {
                $live(&maps().by_key, $programs, $data, $method);
            }
        }
    )*};
}

sockmaps! {
    sk_msg_by_link, sk_msg_of_sockhash_by_link
        [SOCKMAP_LINK] sockmap(MESSAGES, Data::Sent, Method::Link);
    sk_msg_by_attach, sk_msg_of_sockhash_by_attach
        [SOCKMAP] sockmap(MESSAGES, Data::Sent, Method::Classic);
    verdict_by_link, verdict_of_sockhash_by_link
        [SOCKMAP_LINK] sockmap(VERDICTS, Data::Received, Method::Link);
    verdict_by_attach, verdict_of_sockhash_by_attach
        [STREAM_VERDICT] sockmap(VERDICTS, Data::Received, Method::Classic);
    stream_verdict_by_link, stream_verdict_of_sockhash_by_link
        [SOCKMAP_LINK] sockmap(STREAM_VERDICTS, Data::Received, Method::Link);
    stream_verdict_by_attach, stream_verdict_of_sockhash_by_attach
        [STREAM_VERDICT] sockmap(STREAM_VERDICTS, Data::Received, Method::Classic);
    stream_parser_by_link, stream_parser_of_sockhash_by_link
        [SOCKMAP_LINK] parser(PARSERS, Data::Received, Method::Link);
    stream_parser_by_attach, stream_parser_of_sockhash_by_attach
        [STREAM_VERDICT] parser(PARSERS, Data::Received, Method::Classic);
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
