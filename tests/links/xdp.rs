//! XDP, on a veth pair.

use std::time::{Duration, Instant};

use ebpf_manager::bpf::{
    Errno, Interface, Link, LinkError, Mechanism, Method, XdpMode, XdpOptions,
};

use super::life::{Can, Kind, PLAIN, Pin, Second, begin, count, load};
use crate::common::Feature;
use crate::common::net::Net;

const LINK: Feature = Feature::new("XDP link", 5, 9);
const NETLINK: Feature = Feature::new("XDP by netlink", 5, 7);
const FRAGS: Feature = Feature::new("XDP with fragments", 5, 18);
const DEVMAP: Feature = Feature::new("programs in maps of devices", 5, 8);
const CPUMAP: Feature = Feature::new("programs in maps of CPUs", 5, 9);

fn live(mode: XdpMode, method: Method) {
    let net = Net::new();
    let by_link = method != Method::Classic;
    Kind {
        object: "net.bpf.o",
        programs: ["xdp_first", "xdp_second"],
        mechanism: match method {
            Method::Classic => Mechanism::XdpNetlink,
            _ => Mechanism::XdpLink,
        },
        attach: &|program| Link::xdp(program, &net.right(), XdpOptions { mode, method }),
        poke: &|| net.send(),
        again: Second::RefusedByName,
        second: Second::RefusedByName,
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
fn any_mode_by_link() {
    if let Some(_leaks) = begin(&[&LINK]) {
        live(XdpMode::Auto, Method::Auto);
    }
}

#[test]
fn any_mode_by_netlink() {
    if let Some(_leaks) = begin(&[&NETLINK]) {
        live(XdpMode::Auto, Method::Classic);
    }
}

#[test]
fn generic_by_link() {
    if let Some(_leaks) = begin(&[&LINK]) {
        live(XdpMode::Generic, Method::Link);
    }
}

#[test]
fn generic_by_netlink() {
    if let Some(_leaks) = begin(&[&NETLINK]) {
        live(XdpMode::Generic, Method::Classic);
    }
}

#[test]
fn driver_by_link() {
    if let Some(_leaks) = begin(&[&LINK]) {
        live(XdpMode::Driver, Method::Link);
    }
}

#[test]
fn driver_by_netlink() {
    if let Some(_leaks) = begin(&[&NETLINK]) {
        live(XdpMode::Driver, Method::Classic);
    }
}

#[test]
fn with_fragments() {
    let Some(_leaks) = begin(&[&FRAGS]) else {
        return;
    };
    let net = Net::new();
    Kind {
        programs: ["xdp_frags_first", "xdp_frags_second"],
        mechanism: Mechanism::XdpLink,
        attach: &|program| Link::xdp(program, &net.right(), XdpOptions::default()),
        poke: &|| net.send(),
        again: Second::RefusedByName,
        second: Second::RefusedByName,
        update: Can::Yes,
        ..PLAIN
    }
    .live();
}

#[test]
fn on_the_way_out_by_map_of_devices() {
    let Some(_leaks) = begin(&[&DEVMAP, &LINK]) else {
        return;
    };
    let net = Net::new();
    let names = [
        "xdp_device_first",
        "xdp_device_second",
        "xdp_to_device",
        "xdp_pass",
    ];
    let collection = load("hooks.bpf.o", &names, Vec::new());
    let [first, second, redirect, pass] = names.map(|name| collection.program(name).unwrap());
    let map = collection.map("devices").unwrap();
    // A veth sends only if XDP is at the other end.
    let left = Interface::from("left").in_namespace(&net.namespace);
    let _left = Link::xdp(pass, &left, XdpOptions::default()).unwrap();
    map.set_device(0, &net.right(), None).unwrap();
    let fires = |name| {
        let before = count(&collection, name);
        let deadline = Instant::now() + Duration::from_secs(20);
        while count(&collection, name) == before {
            assert!(Instant::now() < deadline, "{name} does not fire");
            net.send();
            std::thread::yield_now();
        }
    };
    map.set_device(0, &net.right(), Some(first)).unwrap();
    let _right = Link::xdp(redirect, &net.right(), XdpOptions::default()).unwrap();
    fires("xdp_device_first");
    map.set_device(0, &net.right(), Some(second)).unwrap();
    fires("xdp_device_second");
    // Without a program the packets go on, without the map's element too.
    map.set_device(0, &net.right(), None).unwrap();
    let before = count(&collection, "xdp_device_second");
    net.send();
    assert_eq!(count(&collection, "xdp_device_second"), before);

    let missing = Interface::from("none").in_namespace(&net.namespace);
    let err = map.set_device(0, &missing, Some(first)).unwrap_err();
    assert!(matches!(err, LinkError::NoInterface { .. }), "{err}");
    let missing = Interface::from(54321).in_namespace(&net.namespace);
    let err = map.set_device(0, &missing, Some(first)).unwrap_err();
    assert!(matches!(err, LinkError::NoInterface { .. }), "{err}");
    // Each in its place.
    for result in [
        map.set_device(0, &net.right(), Some(pass)),
        map.set_cpu(0, 1, Some(first)),
        Link::xdp(first, &net.right(), XdpOptions::default()).map(drop),
    ] {
        let err = result.unwrap_err();
        assert!(matches!(err, LinkError::WrongAttachType { .. }), "{err}");
    }
}

#[test]
fn on_another_cpu_by_map_of_cpus() {
    let Some(_leaks) = begin(&[&CPUMAP, &LINK]) else {
        return;
    };
    let net = Net::new();
    let names = ["xdp_cpu_first", "xdp_to_cpu"];
    let collection = load("hooks.bpf.o", &names, Vec::new());
    let [first, redirect] = names.map(|name| collection.program(name).unwrap());
    let map = collection.map("cpus").unwrap();
    map.set_cpu(0, 64, Some(first)).unwrap();
    // The generic mode redirects to a CPU from Linux 5.15 on.
    let options = XdpOptions {
        mode: XdpMode::Driver,
        ..XdpOptions::default()
    };
    let link = Link::xdp(redirect, &net.right(), options).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while count(&collection, "xdp_cpu_first") == 0 {
        assert!(Instant::now() < deadline, "it does not fire");
        net.send();
        std::thread::yield_now();
    }
    link.detach().unwrap();
    let err = map.set_cpu(1 << 20, 64, Some(first)).unwrap_err();
    assert!(
        err.is(Errno::E2BIG) || err.is(Errno::ENODEV) || err.is(Errno::EINVAL),
        "{err}"
    );
}
