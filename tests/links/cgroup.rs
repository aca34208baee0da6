//! Control groups: the test's process is in one of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use ebpf_manager::bpf::{CgroupOptions, Link, Mechanism, Method, Sharing, Turn};

use super::life::{Kind, PLAIN, Pin, Second, begin};
use crate::common::net::{InCgroup, Net};
use crate::common::{Feature, TempDir, kernel_version};

/// A hook that cgroups of version 2 have since then.
const fn since(name: &'static str, major: u32, minor: u32) -> Feature {
    Feature::new(name, major, minor)
        .config(&["CONFIG_CGROUP_BPF"])
        .mounted("cgroup2")
}

const LINK: Feature = since("cgroup link", 5, 7);
const BEFORE_THOSE_BELOW: Feature = since("running before cgroups below", 6, 15);
const ATTACH: Feature = since("cgroup programs that share", 4, 15);

/// Attaches by a link and by `BPF_PROG_ATTACH`.
fn live(name: &str, poke: fn(&Net)) {
    for method in [Method::Link, Method::Classic] {
        let sharing = Sharing::Multi;
        one_way(name, poke, method, sharing, Second::Shares);
    }
}

fn one_way(name: &str, poke: fn(&Net), method: Method, sharing: Sharing, second: Second) {
    let options = CgroupOptions {
        method,
        sharing,
        ..CgroupOptions::default()
    };
    with(name, poke, options, second);
}

fn one_turn(turn: Turn, method: Method) {
    let options = CgroupOptions {
        method,
        turn,
        ..CgroupOptions::default()
    };
    with("egress", udp4, options, Second::Shares);
}

fn with(name: &str, poke: fn(&Net), options: CgroupOptions, second: Second) {
    let net = Net::new();
    let cgroup = InCgroup::enter();
    let names = ["first", "second"].map(|which| format!("{name}_{which}"));
    let method = options.method;
    let by_link = method != Method::Classic;
    Kind {
        programs: [&names[0], &names[1]],
        mechanism: if by_link {
            Mechanism::CgroupLink
        } else {
            Mechanism::CgroupAttach
        },
        attach: &|program| Link::cgroup(program, cgroup.dir.path(), options),
        poke: &|| net.ns.run(|| poke(&net)),
        // The kernel takes a program once without a link, and says EINVAL.
        again: if by_link {
            Second::Shares
        } else {
            Second::RefusedByName
        },
        second,
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
fn egress_by_link() {
    if let Some(_leaks) = begin(&[&LINK]) {
        one_way("egress", udp4, Method::Auto, Sharing::Multi, Second::Shares);
    }
}

#[test]
fn egress_by_link_before_cgroups_below() {
    if let Some(_leaks) = begin(&[&BEFORE_THOSE_BELOW]) {
        one_turn(Turn::BeforeThoseBelow, Method::Link);
    }
}

#[test]
fn egress_by_attach_before_cgroups_below() {
    if let Some(_leaks) = begin(&[&BEFORE_THOSE_BELOW]) {
        one_turn(Turn::BeforeThoseBelow, Method::Classic);
    }
}

#[test]
fn egress_by_attach_multi() {
    if let Some(_leaks) = begin(&[&ATTACH]) {
        let second = Second::Shares;
        one_way("egress", udp4, Method::Classic, Sharing::Multi, second);
    }
}

#[test]
fn egress_by_attach_override() {
    if let Some(_leaks) = begin(&[&ATTACH]) {
        let second = Second::RefusedByName;
        one_way("egress", udp4, Method::Classic, Sharing::Override, second);
    }
}

#[test]
fn egress_by_attach_exclusive() {
    if let Some(_leaks) = begin(&[&ATTACH]) {
        let second = Second::RefusedByName;
        one_way("egress", udp4, Method::Classic, Sharing::Exclusive, second);
    }
}

// ------------------------------------------------------------------ events

/// Two sockets; one sends, the other receives.
fn udp(receiver: impl Into<SocketAddr>) {
    let receiver = UdpSocket::bind(receiver.into()).unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let to = receiver.local_addr().unwrap();
    let mut from = to;
    from.set_port(0);
    let sender = UdpSocket::bind(from).unwrap();
    sender.send_to(b"x", to).unwrap();
    receiver.recv_from(&mut [0]).unwrap();
}

fn udp4(_: &Net) {
    udp((Ipv4Addr::LOCALHOST, 0));
}

fn udp6(_: &Net) {
    udp((Ipv6Addr::LOCALHOST, 0));
}

/// A connection; both ends ask for their addresses.
fn tcp(at: impl Into<SocketAddr>) {
    let listener = TcpListener::bind(at.into()).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.local_addr().unwrap();
    client.peer_addr().unwrap();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
}

fn tcp4(_: &Net) {
    tcp((Ipv4Addr::LOCALHOST, 0));
}

fn tcp6(_: &Net) {
    tcp((Ipv6Addr::LOCALHOST, 0));
}

/// The same over sockets with names in the file system.
fn unix(_: &Net) {
    let dir = TempDir::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    let listener = UnixListener::bind(&a).unwrap();
    let client = UnixStream::connect(&a).unwrap();
    let _server = listener.accept().unwrap();
    // One without a name is not asked about.
    listener.local_addr().unwrap();
    client.peer_addr().unwrap();
    let receiver = UnixDatagram::bind(&b).unwrap();
    let sender = UnixDatagram::bind(&c).unwrap();
    sender.send_to(b"x", &b).unwrap();
    receiver.recv_from(&mut [0]).unwrap();
}

fn sockopt(_: &Net) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_ttl(socket.ttl().unwrap()).unwrap();
}

fn sysctl_read(_: &Net) {
    std::fs::read("/proc/sys/kernel/ostype").unwrap();
}

fn device_open(_: &Net) {
    drop(File::open("/dev/null").unwrap());
}

/// One test for each hook of a cgroup.
macro_rules! hooks {
    ($($name:ident ($major:literal, $minor:literal) $poke:ident;)*) => {$(
        #[test]
        fn $name() {
            let hook = since(concat!("cgroup hook ", stringify!($name)), $major, $minor);
            if let Some(_leaks) = begin(&[&hook, &LINK]) {
                live(stringify!($name), $poke);
            }
        }
    )*};
}

hooks! {
    ingress (4, 10) udp4;
    sock_create (4, 10) udp4;
    sock_release (5, 9) udp4;
    post_bind4 (4, 17) udp4;
    post_bind6 (4, 17) udp6;
    bind4 (4, 17) udp4;
    bind6 (4, 17) udp6;
    connect4 (4, 17) tcp4;
    connect6 (4, 17) tcp6;
    sendmsg4 (4, 18) udp4;
    sendmsg6 (4, 18) udp6;
    recvmsg4 (5, 2) udp4;
    recvmsg6 (5, 2) udp6;
    getpeername4 (5, 8) tcp4;
    getpeername6 (5, 8) tcp6;
    getsockname4 (5, 8) tcp4;
    getsockname6 (5, 8) tcp6;
    connect_unix (6, 7) unix;
    sendmsg_unix (6, 7) unix;
    recvmsg_unix (6, 7) unix;
    getpeername_unix (6, 7) unix;
    getsockname_unix (6, 7) unix;
    sysctl (5, 2) sysctl_read;
    getsockopt (5, 3) sockopt;
    setsockopt (5, 3) sockopt;
    device (4, 15) device_open;
    sock_ops (4, 13) tcp4;
}

#[test]
fn lsm() {
    const LSM: Feature = since("LSM of a cgroup", 6, 0)
        .config(&["CONFIG_BPF_LSM", "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"])
        .refused_in_lockdown();
    if let Some(_leaks) = begin(&[&LSM]) {
        assert!(kernel_version() >= (6, 0));
        let sharing = Sharing::Multi;
        one_way("lsm_cgroup", udp4, Method::Link, sharing, Second::Shares);
    }
}
