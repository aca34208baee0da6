//! Network hooks: each kind of link goes through the same life, with packets
//! of the test's own in namespaces of its own.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

#[path = "links_net/cgroup.rs"]
mod cgroup;
#[path = "links_net/filters.rs"]
mod filters;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::net::Net;
use common::{
    Feature, LeakCheck, NETKIT, ROOT, TCX, TempDir, kernel_version, require, skip, testdata,
};
use ebpf_manager::bpf::{
    ClsactOptions, Collection, Direction, Errno, Interface, Link, LinkError, LoadOptions,
    Mechanism, Method, NetNamespace, NetkitEnd, Order, Place, Program, QdiscCleanup, TcAttach,
    XdpMode, XdpOptions, open_object, remove_stale_filters,
};
use ebpf_manager::{Hook, Manager, ObjectSource, Outcome, Probe, ProbeError};
use ebpf_manager_sys::abi::bpf::ProgramFlags;
use ebpf_manager_sys::rtnl::{ClsBpfFlags, FilterSpec, TcParent};
use ebpf_manager_sys::{fd, netns};

const XDP_LINK: Feature = Feature::new("XDP link", 5, 9);
const XDP_NETLINK: Feature = Feature::new("XDP by netlink", 5, 7);
const CLSACT: Feature = Feature::new("clsact", 4, 5).config(&["CONFIG_NET_CLS_BPF"]);
const CGROUP: Feature = Feature::new("cgroup link", 5, 7)
    .config(&["CONFIG_CGROUP_BPF"])
    .mounted("cgroup2");

/// Loads the named programs of `net.bpf.o` and no other.
fn load(programs: &[&str]) -> Collection {
    let object = open_object(testdata("net.bpf.o")).unwrap();
    let mut options = LoadOptions::default();
    options.include = programs.iter().map(|&name| name.to_owned()).collect();
    Collection::load(&object, options).unwrap_or_else(|e| panic!("{programs:?}: {e}"))
}

fn count(collection: &Collection, program: &str) -> u64 {
    let name = format!("{program}_count");
    collection.variable(&name).unwrap().get().unwrap()
}

#[test]
fn links_net_xdp_replaces_the_expected_program_only() {
    if !require(&XDP_NETLINK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["xdp_first", "xdp_second"]);
    let [first, second] = ["xdp_first", "xdp_second"].map(|p| collection.program(p).unwrap());
    let options = XdpOptions {
        mode: XdpMode::Generic,
        method: Method::Classic,
    };
    let old = Link::xdp(first, &net.right(), options).unwrap();
    let err = Link::xdp_replace(second, &net.right(), XdpMode::Generic, second).unwrap_err();
    let LinkError::AlreadyAttached { by, .. } = &err else {
        panic!("{err}")
    };
    assert_eq!(by.name, "xdp_first");
    let new = Link::xdp_replace(second, &net.right(), XdpMode::Generic, first).unwrap();
    // The old one knows, and leaves the new one alone.
    assert!(!old.is_attached().unwrap());
    old.detach().unwrap();
    assert!(new.is_attached().unwrap());
    let mut lost = new;
    net.rtnl()
        .xdp_set(
            net.right,
            Some(first.as_fd()),
            ebpf_manager_sys::rtnl::XdpFlags::SKB_MODE,
            None,
        )
        .unwrap();
    let err = lost.update(second).unwrap_err();
    assert!(err.is(Errno::EEXIST), "{err}");
    drop(lost);
    let link = net.rtnl().link_by_index(net.right).unwrap();
    assert_eq!(link.xdp.skb, first.id().unwrap());
}

#[test]
fn links_net_interfaces_by_name_index_and_namespace() {
    if !require(&XDP_LINK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["xdp_first", "tc_first"]);
    let [xdp, tc] = ["xdp_first", "tc_first"].map(|p| collection.program(p).unwrap());
    assert_eq!(net.right().index().unwrap(), net.right);
    // Inside the namespace it needs no name.
    net.ns.run(|| {
        let here = NetNamespace::current().unwrap();
        assert!(here == net.namespace);
        for interface in [Interface::from("right"), Interface::from(net.right)] {
            for method in [Method::Link, Method::Classic] {
                let mode = XdpMode::Auto;
                Link::xdp(xdp, &interface, XdpOptions { mode, method })
                    .unwrap()
                    .detach()
                    .unwrap();
            }
        }
    });
    net.namespace.close_socket();
    let index = Interface::from(net.right).in_namespace(&net.namespace);
    Link::xdp(xdp, &index, XdpOptions::default()).unwrap();

    let missing = |result: Result<Link, LinkError>, name: &str| {
        let err = result.unwrap_err();
        let LinkError::NoInterface { interface, .. } = &err else {
            panic!("{err}")
        };
        assert!(interface.starts_with(name), "{err}");
        assert!(err.is(Errno::ENODEV), "{err}");
    };
    for wrong in [Interface::from("nosuch"), Interface::from(987_654)] {
        let name = wrong.to_string();
        let wrong = wrong.in_namespace(&net.namespace);
        for method in [Method::Auto, Method::Link, Method::Classic] {
            let mode = XdpMode::Auto;
            missing(Link::xdp(xdp, &wrong, XdpOptions { mode, method }), &name);
        }
        for attach in [TcAttach::Auto, TcAttach::Clsact(ClsactOptions::default())] {
            missing(Link::tc(tc, &wrong, Direction::Egress, &attach), &name);
        }
    }
    let err = Link::xdp(tc, &net.right(), XdpOptions::default()).unwrap_err();
    assert!(matches!(err, LinkError::WrongType { .. }), "{err}");
}

#[test]
fn links_net_survive_their_interface() {
    if !require(&XDP_LINK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["xdp_first", "tc_first"]);
    let [xdp, tc] = ["xdp_first", "tc_first"].map(|p| collection.program(p).unwrap());
    let mut links = Vec::new();
    for (interface, method) in [("left", Method::Link), ("right", Method::Classic)] {
        let interface = Interface::from(interface).in_namespace(&net.namespace);
        let mode = XdpMode::Auto;
        links.push(Link::xdp(xdp, &interface, XdpOptions { mode, method }).unwrap());
        let clsact = TcAttach::Clsact(ClsactOptions {
            qdisc: QdiscCleanup::RemoveIfUnused,
            ..ClsactOptions::default()
        });
        for attach in [TcAttach::Auto, clsact] {
            links.push(Link::tc(tc, &interface, Direction::Ingress, &attach).unwrap());
        }
    }
    net.rtnl().link_delete(net.left).unwrap();
    for link in links {
        assert!(!link.is_attached().unwrap(), "{}", link.target());
        link.detach().unwrap();
    }
}

#[test]
fn links_net_tcx_runs_in_the_order_asked_for() {
    if !require(&TCX) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let names = ["tc_first", "tc_second", "tc_drop"];
    let collection = load(&names);
    let [first, second, dropper] = names.map(|p| collection.program(p).unwrap());
    let right = net.right();
    let at = |program, place| {
        let order = Order {
            place,
            ..Order::default()
        };
        Link::tcx(program, &right, Direction::Ingress, order)
    };
    let listed = || {
        let found = right.tcx_programs(Direction::Ingress).unwrap();
        let names = found.programs.iter().map(|p| p.name.clone());
        (names.collect::<Vec<_>>(), found.revision)
    };
    let (none, start) = listed();
    assert!(none.is_empty());
    let one = at(first, Place::Last).unwrap();
    let (_, revision) = listed();
    assert!(revision > start);
    // The same program twice is refused.
    let err = at(first, Place::Last).unwrap_err();
    let LinkError::AlreadyAttached { by, .. } = &err else {
        panic!("{err}")
    };
    assert_eq!(by.id, first.id().unwrap());
    let two = at(second, Place::First).unwrap();
    assert_eq!(listed().0, ["tc_second", "tc_first"]);
    let between = at(dropper, Place::BeforeLink(one.id().unwrap().unwrap())).unwrap();
    assert_eq!(listed().0, ["tc_second", "tc_drop", "tc_first"]);
    let ids = right.tcx_programs(Direction::Ingress).unwrap();
    assert_eq!(Some(ids.programs[1].link_id), between.id().unwrap());
    // What is dropped does not reach the program behind.
    let deadline = Instant::now() + Duration::from_secs(10);
    while count(&collection, "tc_drop") < 3 && Instant::now() < deadline {
        net.send();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(count(&collection, "tc_drop") >= 3);
    assert!(count(&collection, "tc_second") >= 3);
    assert_eq!(count(&collection, "tc_first"), 0);
    drop(between);
    let between = at(dropper, Place::AfterProgram(second.id().unwrap())).unwrap();
    assert_eq!(listed().0, ["tc_second", "tc_drop", "tc_first"]);
    drop((between, two));
    let stale = Order {
        place: Place::Last,
        expected_revision: revision,
    };
    let err = Link::tcx(second, &right, Direction::Ingress, stale).unwrap_err();
    assert!(err.is(Errno::ESTALE), "{err}");
    let current = Order {
        expected_revision: listed().1,
        ..stale
    };
    Link::tcx(second, &right, Direction::Ingress, current).unwrap();
}

#[test]
fn links_net_clsact_goes_when_nobody_uses_it() {
    if !require(&CLSACT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["tc_first", "tc_second"]);
    let [first, second] = ["tc_first", "tc_second"].map(|p| collection.program(p).unwrap());
    let options = ClsactOptions {
        qdisc: QdiscCleanup::RemoveIfUnused,
        ..ClsactOptions::default()
    };
    let attach = |program, direction| Link::clsact(program, &net.right(), direction, &options);
    let one = attach(first, Direction::Ingress).unwrap();
    let filters = net.rtnl().filters(net.right, TcParent::INGRESS).unwrap();
    let [filter] = filters.as_slice() else {
        panic!("{filters:?}")
    };
    assert_eq!(filter.id.priority, 50);
    let tail = format!(" tc__{}", std::process::id());
    assert!(filter.name.ends_with(&tail), "{}", filter.name);
    assert_eq!(net.namespace.filter_count(net.right), 1);
    assert_eq!(filter.flags, ClsBpfFlags::DIRECT_ACTION);
    assert_eq!(filter.program_id, first.id().unwrap());
    let other = attach(second, Direction::Egress).unwrap();
    one.detach().unwrap();
    assert!(net.has_clsact(), "the other direction has a filter");
    assert_eq!(net.namespace.filter_count(net.right), 1);
    drop(other);
    assert!(!net.has_clsact());
    assert_eq!(net.namespace.filter_count(net.right), 0);

    // A refused filter takes the new clsact back, but not an old one.
    let refused = ClsactOptions {
        name: "n".repeat(300),
        ..ClsactOptions::default()
    };
    let attach = || Link::clsact(first, &net.right(), Direction::Ingress, &refused);
    let err = attach().unwrap_err();
    let LinkError::Attach { tried, .. } = &err else {
        panic!("{err}")
    };
    assert_eq!(tried.len(), 1, "{err}");
    assert!(!net.has_clsact());
    net.rtnl().clsact_add(net.right).unwrap();
    attach().unwrap_err();
    assert!(net.has_clsact());
}

#[test]
fn links_net_clsact_leaves_what_others_put_there() {
    if !require(&CLSACT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["tc_first", "tc_second"]);
    let [first, second] = ["tc_first", "tc_second"].map(|p| collection.program(p).unwrap());
    let options = ClsactOptions {
        qdisc: QdiscCleanup::RemoveIfUnused,
        ..ClsactOptions::default()
    };
    let mut link = Link::clsact(first, &net.right(), Direction::Ingress, &options).unwrap();
    assert!(link.is_attached().unwrap());
    let mut rtnl = net.rtnl();
    let ours = rtnl
        .filters(net.right, TcParent::INGRESS)
        .unwrap()
        .remove(0);
    rtnl.filter_replace(&FilterSpec {
        id: ours.id,
        name: "theirs",
        program: second.as_fd(),
        flags: ours.flags,
    })
    .unwrap();
    assert!(!link.is_attached().unwrap());
    let err = link.update(first).unwrap_err();
    assert!(err.is(Errno::ENOENT), "{err}");
    link.detach().unwrap();
    let left = rtnl.filters(net.right, TcParent::INGRESS).unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].name, "theirs");

    // The whole discipline removed behind our back.
    let link = Link::clsact(first, &net.right(), Direction::Ingress, &options).unwrap();
    rtnl.clsact_delete(net.right).unwrap();
    assert!(!link.is_attached().unwrap());
    link.detach().unwrap();
}

#[test]
fn links_net_tc_falls_back_to_clsact() {
    if !require(&CLSACT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["tc_first"]);
    let program = collection.program("tc_first").unwrap();
    let attach = |attach| Link::tc(program, &net.right(), Direction::Ingress, &attach);
    let auto = attach(TcAttach::Auto).unwrap();
    if kernel_version() < (6, 6) {
        assert_eq!(auto.mechanism(), Mechanism::Clsact);
        let err = attach(TcAttach::Tcx(Order::default())).unwrap_err();
        assert!(matches!(err, LinkError::Attach { .. }), "{err}");
        assert!(err.is(Errno::EINVAL), "{err}");
        assert!(err.to_string().contains("needs Linux 6.6"), "{err}");
    } else {
        assert_eq!(auto.mechanism(), Mechanism::Tcx);
    }
    // What the filter is like is said in case it comes to that.
    drop(auto);
    let options = ClsactOptions {
        qdisc: QdiscCleanup::RemoveIfUnused,
        ..ClsactOptions::default()
    };
    drop(attach(TcAttach::Either(Order::default(), options)).unwrap());
    assert!(!net.has_clsact() || kernel_version() < (6, 6));
}

/// The driver of a veth answers questions about packets.
const BOUND: Feature =
    Feature::new("XDP bound to an interface", 6, 3).config(&["CONFIG_DEBUG_INFO_BTF"]);

#[test]
fn links_net_xdp_bound_to_an_interface() {
    if !require(&BOUND) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let load = |interface, flags| {
        let mut object = open_object(testdata("metadata.bpf.o")).unwrap();
        for spec in object.programs_mut() {
            spec.interface = interface;
            spec.flags |= flags;
        }
        net.ns
            .run(|| Collection::load(&object, LoadOptions::default()))
    };
    let bound = ProgramFlags::XDP_DEV_BOUND_ONLY;
    load(0, ProgramFlags::empty()).map(drop).unwrap_err();
    // A veth has no hardware for programs.
    load(net.right, ProgramFlags::empty())
        .map(drop)
        .unwrap_err();
    let collection = load(net.right, bound).unwrap_or_else(|e| panic!("{e}"));
    let program = collection.program("bound").unwrap();
    let left = Interface::from("left").in_namespace(&net.namespace);
    let err = Link::xdp(program, &left, XdpOptions::default()).unwrap_err();
    assert!(matches!(err, LinkError::Attach { .. }), "{err}");
    let _link = Link::xdp(program, &net.right(), XdpOptions::default()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while count(&collection, "answered") == 0 {
        assert!(Instant::now() < deadline, "the driver does not answer");
        net.send();
        std::thread::yield_now();
    }
    assert!(count(&collection, "bound") >= count(&collection, "answered"));
}

#[test]
fn links_net_a_file_is_no_socket() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load(&["socket_first"]);
    let file = std::fs::File::open("/proc/self/stat").unwrap();
    let program = collection.program("socket_first").unwrap();
    let err = Link::socket_filter(program, file.as_fd()).unwrap_err();
    assert!(err.is(Errno::ENOTSOCK), "{err}");
}

#[test]
fn links_net_a_veth_is_no_netkit() {
    if !require(&NETKIT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["tc_first"]);
    let program = collection.program("tc_first").unwrap();
    let attach = || Link::netkit(program, &net.right(), NetkitEnd::Peer, Order::default());
    let err = attach().unwrap_err();
    assert!(matches!(err, LinkError::Attach { .. }), "not netkit: {err}");
}

#[test]
fn links_net_through_the_manager() {
    if !require(&XDP_LINK) || !require(&CGROUP) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let dir = TempDir::cgroup();
    let socket = fd::dup(net.sender.as_fd()).unwrap();
    let namespace = || Some(net.namespace.clone());
    let hook = |function: &str, hook| Probe::new(function).hook(hook);
    let manager = Manager::builder()
        .probe(hook("xdp_first", Hook::xdp(net.right())))
        .probe(hook("tc_first", Hook::tc(net.right(), Direction::Ingress)))
        .probe(hook("cgroup_first", Hook::cgroup(dir.path())))
        .probe(hook("lookup_first", Hook::sk_lookup(namespace())))
        // Its section says where: this thread's namespace.
        .probe(Probe::new("lookup_second"))
        .probe(hook("socket_first", Hook::socket_filter(socket)))
        .probe(hook(
            "message_first",
            Hook::sockmap("sockets", Method::Auto),
        ))
        .probe(hook("xdp_second", Hook::xdp("no_such_if")).optional())
        .build()
        .unwrap();
    manager
        .init(&ObjectSource::path(testdata("net.bpf.o")))
        .unwrap();
    manager.start().unwrap();
    for (id, outcome) in manager.probes() {
        match (id.function.as_str(), outcome) {
            ("xdp_second", Outcome::Unavailable(ProbeError::Attach(err))) => {
                assert!(matches!(*err, LinkError::NoInterface { .. }), "{err}");
            }
            ("xdp_first", outcome) => {
                let mechanism = outcome.attached().map(|attached| attached.mechanism);
                assert_eq!(mechanism, Some(Mechanism::XdpLink), "{outcome}");
            }
            (name, outcome) => {
                assert!(matches!(outcome, Outcome::Attached(_)), "{name}: {outcome}");
            }
        }
    }
    assert_ne!(net.rtnl().link_by_index(net.right).unwrap().xdp.drv, 0);
    manager.stop().unwrap();
    assert_eq!(net.rtnl().link_by_index(net.right).unwrap().xdp.drv, 0);
}
