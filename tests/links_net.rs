//! Network hooks: each kind of link goes through the same life, with packets
//! of the test's own in namespaces of its own.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{
    Feature, LeakCheck, NETFILTER_LINK, NETKIT, NetNs, PINS, ROOT, TCX, TempDir, kernel_version,
    require, testdata,
};
use ebpf_manager::bpf::{
    AttachType, CgroupOptions, ClsactOptions, Collection, Direction, Errno, Interface, Link,
    LinkError, LoadOptions, Mechanism, Method, NetNamespace, NetfilterHook, NetfilterOptions,
    NetkitEnd, Order, Place, Program, QdiscCleanup, Sharing, TcAttach, XdpMode, XdpOptions,
    cgroup_programs, open_object,
};
use ebpf_manager::{Hook, Manager, ObjectSource, Outcome, Probe, ProbeError};
use ebpf_manager_sys::abi::bpf::AttachFlags;
use ebpf_manager_sys::bpf::{ProgAttach, Target, prog_attach, prog_detach};
use ebpf_manager_sys::rtnl::{ClsBpfFlags, FilterSpec, Rtnl, TcParent};
use ebpf_manager_sys::{fd, netns, socket};

const PORT: u16 = 4242;

const XDP_LINK: Feature = Feature::new("XDP link", 5, 9);
const XDP_NETLINK: Feature = Feature::new("XDP by netlink", 5, 7);
const CLSACT: Feature = Feature::new("clsact", 4, 5).config(&["CONFIG_NET_CLS_BPF"]);
const CGROUP: Feature = Feature::new("cgroup link", 5, 7)
    .config(&["CONFIG_CGROUP_BPF"])
    .mounted("cgroup2");
const SK_LOOKUP: Feature = Feature::new("sk_lookup", 5, 9);
const FLOW_DISSECTOR: Feature = Feature::new("flow dissector link", 5, 8);
const SOCKMAP: Feature = Feature::new("sockmap", 5, 10).config(&["CONFIG_BPF_STREAM_PARSER"]);
const SOCKMAP_LINK: Feature =
    Feature::new("sockmap link", 6, 10).config(&["CONFIG_BPF_STREAM_PARSER"]);
/// 5.10.223 locks up in the kernel when a verdict passes data to the socket
/// that it came from.
const SOCKMAP_VERDICT: Feature =
    Feature::new("verdict of a sockmap", 5, 15).config(&["CONFIG_BPF_STREAM_PARSER"]);
const REUSEPORT: Feature = Feature::new("detaching from a reuseport group", 5, 3);

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

/// A namespace with a connected pair of interfaces, and a socket in it that
/// sends to the test's port over `left`, to arrive at `right`.
struct Net {
    ns: NetNs,
    namespace: NetNamespace,
    left: u32,
    right: u32,
    sender: UdpSocket,
}

impl Net {
    fn new() -> Net {
        let ns = NetNs::new();
        // Addresses may be used at once, without asking whether others have
        // them.
        ns.run(|| {
            for conf in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{conf}/accept_dad");
                std::fs::write(path, "0").unwrap();
            }
        });
        let mut rtnl = Rtnl::open_in(ns.as_fd()).unwrap();
        rtnl.link_add_veth("left", "right", None).unwrap();
        let [left, right, _] = ["left", "right", "lo"].map(|name| {
            let index = rtnl.link_by_name(name).unwrap().index;
            rtnl.link_set_up(index).unwrap();
            index
        });
        let sender = ns.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
        Net {
            namespace: NetNamespace::from_fd(fd::dup(ns.as_fd()).unwrap()).unwrap(),
            ns,
            left,
            right,
            sender,
        }
    }

    /// The receiving interface, seen from another namespace.
    fn right(&self) -> Interface {
        Interface::from("right").in_namespace(&self.namespace)
    }

    /// Sends one packet; fails silently until the interfaces are ready.
    fn send(&self) {
        self.send_from(&self.sender);
    }

    fn send_from(&self, sender: &UdpSocket) {
        Net::send_over(sender, self.left);
    }

    fn send_over(sender: &UdpSocket, interface: u32) {
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let _ = sender.send_to(b"x", SocketAddrV6::new(all_nodes, PORT, 0, interface));
    }

    fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(self.ns.as_fd()).unwrap()
    }

    fn has_clsact(&self) -> bool {
        let qdiscs = self.rtnl().qdiscs(self.right).unwrap();
        qdiscs.iter().any(|qdisc| qdisc.kind == "clsact")
    }
}

/// What differs between kinds of link.
struct Kind<'a> {
    /// Two programs for the same hook.
    programs: [&'static str; 2],
    mechanism: Mechanism,
    attach: &'a dyn Fn(&Program) -> Result<Link, LinkError>,
    /// Makes the hook run its program.
    poke: &'a dyn Fn(),
    /// What attaching the second program beside the first does.
    second: Second,
    update: Can,
    /// Whether the kernel tells if it is attached.
    tells: Can,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Can {
    Yes,
    No,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Second {
    /// It is refused, and the error names the first.
    RefusedByName,
    /// It is refused.
    Refused,
    /// It runs as well.
    Shares,
    /// It takes the place of the first.
    Replaces,
}

impl Kind<'_> {
    fn life(&self) {
        let collection = load(&self.programs);
        let [first, second] = self.programs.map(|name| collection.program(name).unwrap());
        let fires = |name: &str| {
            let before = count(&collection, name);
            let deadline = Instant::now() + Duration::from_secs(10);
            while count(&collection, name) == before {
                assert!(Instant::now() < deadline, "{name} does not fire");
                (self.poke)();
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        let silent = |name: &str| {
            let before = count(&collection, name);
            for _ in 0..3 {
                (self.poke)();
            }
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(count(&collection, name), before, "{name} still fires");
        };
        let attach = |program| (self.attach)(program).unwrap_or_else(|e| panic!("{e}"));
        let [first_name, second_name] = self.programs;
        let has_link = attach(first).id().unwrap().is_some();

        silent(first_name);
        let link = attach(first);
        assert_eq!(link.mechanism(), self.mechanism);
        fires(first_name);
        match self.tells {
            Can::Yes => assert!(link.is_attached().unwrap()),
            Can::No => {
                let err = link.is_attached().unwrap_err();
                assert!(matches!(err, LinkError::Impossible { .. }), "{err}");
            }
        }
        let info = link.info().unwrap();
        assert_eq!(info.map(|info| info.id), link.id().unwrap());
        if let Some(info) = info {
            assert_eq!(info.prog_id, first.id().unwrap());
        }
        link.detach().unwrap();
        silent(first_name);

        let link = attach(first);
        fires(first_name);
        drop(link);
        silent(first_name);

        let mut link = attach(first);
        match (self.update, link.update(second)) {
            (Can::Yes, result) => {
                result.unwrap();
                fires(second_name);
                silent(first_name);
                if self.tells == Can::Yes {
                    assert!(link.is_attached().unwrap());
                }
            }
            (Can::No, result) => {
                let err = result.unwrap_err();
                assert!(matches!(err, LinkError::Impossible { .. }), "{err}");
                fires(first_name);
            }
        }
        link.detach().unwrap();
        silent(first_name);
        silent(second_name);

        let link = attach(first);
        match (self.second, (self.attach)(second)) {
            (Second::RefusedByName, Err(LinkError::AlreadyAttached { by, .. })) => {
                assert_eq!(by.id, first.id().unwrap());
                assert!(
                    first_name.starts_with(&by.name) && !by.name.is_empty(),
                    "{by}"
                );
                fires(first_name);
            }
            (Second::Refused, Err(err)) => {
                assert!(matches!(err, LinkError::Attach { .. }), "{err}");
                fires(first_name);
            }
            (Second::Shares, Ok(other)) => {
                fires(first_name);
                fires(second_name);
                other.detach().unwrap();
                fires(first_name);
            }
            (Second::Replaces, Ok(other)) => {
                fires(second_name);
                silent(first_name);
                other.detach().unwrap();
            }
            (_, Err(err)) => panic!("the second program: {err}"),
            (_, Ok(_)) => panic!("the second program is attached"),
        }
        link.detach().unwrap();
        silent(first_name);
        silent(second_name);

        if PINS.verdict() != common::Verdict::Run {
            return;
        }
        let dir = TempDir::on_bpffs();
        let pin = dir.path().join("link");
        let link = attach(first);
        if !has_link {
            let err = link.pin(&pin).unwrap_err();
            assert!(matches!(err, LinkError::Impossible { .. }), "{err}");
            assert!(!pin.exists());
            return;
        }
        let err = link.pin(Path::new("/tmp/not_on_bpffs")).unwrap_err();
        assert!(err.to_string().contains("mount -t bpf"), "{err}");
        link.pin(&pin).unwrap();
        let id = link.id().unwrap();
        drop(link);
        fires(first_name);
        let link = Link::from_pin(&pin).unwrap();
        assert_eq!((link.id().unwrap(), link.mechanism()), (id, self.mechanism));
        drop(link);
        fires(first_name);
        Link::from_pin(&pin).unwrap().detach().unwrap();
        silent(first_name);
        std::fs::remove_file(&pin).unwrap();
        let err = Link::from_pin(&pin).unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
    }
}

fn xdp_life(method: Method, mechanism: Mechanism) {
    let net = Net::new();
    for mode in [XdpMode::Auto, XdpMode::Generic, XdpMode::Driver] {
        Kind {
            programs: ["xdp_first", "xdp_second"],
            mechanism,
            attach: &|program| Link::xdp(program, &net.right(), XdpOptions { mode, method }),
            poke: &|| net.send(),
            second: Second::RefusedByName,
            update: Can::Yes,
            tells: Can::Yes,
        }
        .life();
    }
}

#[test]
fn links_net_xdp_by_link() {
    if !require(&XDP_LINK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    xdp_life(Method::Auto, Mechanism::XdpLink);
}

#[test]
fn links_net_xdp_by_netlink() {
    if !require(&XDP_NETLINK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    xdp_life(Method::Classic, Mechanism::XdpNetlink);
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
fn links_net_tcx() {
    if !require(&TCX) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let left = Interface::from("left").in_namespace(&net.namespace);
    for (interface, direction) in [(net.right(), Direction::Ingress), (left, Direction::Egress)] {
        Kind {
            programs: ["tc_first", "tc_second"],
            mechanism: Mechanism::Tcx,
            attach: &|program| Link::tc(program, &interface, direction, &TcAttach::Auto),
            poke: &|| net.send(),
            second: Second::Shares,
            update: Can::Yes,
            tells: Can::Yes,
        }
        .life();
    }
    assert!(!net.has_clsact());
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
fn links_net_clsact() {
    if !require(&CLSACT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let left = Interface::from("left").in_namespace(&net.namespace);
    for (interface, direction) in [(net.right(), Direction::Ingress), (left, Direction::Egress)] {
        for (handle, second) in [(0, Second::Shares), (7, Second::RefusedByName)] {
            let options = ClsactOptions {
                handle,
                ..ClsactOptions::default()
            };
            Kind {
                programs: ["tc_first", "tc_second"],
                mechanism: Mechanism::Clsact,
                attach: &|program| Link::clsact(program, &interface, direction, &options),
                poke: &|| net.send(),
                second,
                update: Can::Yes,
                tells: Can::Yes,
            }
            .life();
        }
    }
    assert!(net.has_clsact(), "it stays unless asked for");
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
    assert_eq!((filter.id.priority, filter.name.as_str()), (50, "tc_first"));
    assert_eq!(filter.flags, ClsBpfFlags::DIRECT_ACTION);
    assert_eq!(filter.program_id, first.id().unwrap());
    let other = attach(second, Direction::Egress).unwrap();
    one.detach().unwrap();
    assert!(net.has_clsact(), "the other direction has a filter");
    drop(other);
    assert!(!net.has_clsact());

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
    } else {
        assert_eq!(auto.mechanism(), Mechanism::Tcx);
    }
}

/// The test process inside a cgroup of its own.
struct InCgroup {
    dir: TempDir,
    home: PathBuf,
}

impl InCgroup {
    fn enter() -> InCgroup {
        let mount = common::mount_of("cgroup2").unwrap();
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let home = groups.lines().find_map(|l| l.strip_prefix("0::/")).unwrap();
        let dir = TempDir::cgroup();
        std::fs::write(dir.path().join("cgroup.procs"), "0").unwrap();
        InCgroup {
            home: mount.join(home),
            dir,
        }
    }
}

impl Drop for InCgroup {
    fn drop(&mut self) {
        std::fs::write(self.home.join("cgroup.procs"), "0").unwrap();
    }
}

#[test]
fn links_net_cgroup() {
    if !require(&CGROUP) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let cgroup = InCgroup::enter();
    let path = cgroup.dir.path();
    let sender = net
        .ns
        .run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
    let kinds = [
        (Method::Auto, Sharing::Multi, Second::Shares),
        (Method::Classic, Sharing::Multi, Second::Shares),
        (Method::Classic, Sharing::Override, Second::RefusedByName),
        (Method::Classic, Sharing::Exclusive, Second::RefusedByName),
    ];
    for (method, sharing, second) in kinds {
        let options = CgroupOptions {
            method,
            sharing,
            ..CgroupOptions::default()
        };
        Kind {
            programs: ["cgroup_first", "cgroup_second"],
            mechanism: match method {
                Method::Auto => Mechanism::CgroupLink,
                _ => Mechanism::CgroupAttach,
            },
            attach: &|program| Link::cgroup(program, path, options),
            poke: &|| net.send_from(&sender),
            second,
            update: Can::Yes,
            tells: Can::Yes,
        }
        .life();
    }

    // A link beside a program that shares with nobody names it.
    let collection = load(&["cgroup_first", "cgroup_second"]);
    let [first, second] = ["cgroup_first", "cgroup_second"].map(|p| collection.program(p).unwrap());
    let alone = CgroupOptions {
        method: Method::Classic,
        sharing: Sharing::Exclusive,
        ..CgroupOptions::default()
    };
    let link = Link::cgroup(first, path, alone).unwrap();
    let err = Link::cgroup(second, path, CgroupOptions::default()).unwrap_err();
    let LinkError::AlreadyAttached { by, .. } = &err else {
        panic!("{err}")
    };
    assert_eq!(by.name, "cgroup_first");
    drop(link);

    // One program in the place of another, without a gap.
    let shared = CgroupOptions {
        method: Method::Classic,
        ..CgroupOptions::default()
    };
    let old = Link::cgroup(first, path, shared).unwrap();
    let new = Link::cgroup_replace(second, path, None, first).unwrap();
    let found = cgroup_programs(path, AttachType::CGROUP_INET_EGRESS).unwrap();
    let names: Vec<_> = found.programs.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["cgroup_second"]);
    assert!(!old.is_attached().unwrap());
    old.detach().unwrap();
    assert!(new.is_attached().unwrap());
    drop(new);

    // Somebody else overwrites ours: it is left alone.
    let single = CgroupOptions {
        sharing: Sharing::Override,
        ..shared
    };
    let mut lost = Link::cgroup(first, path, single).unwrap();
    let directory = std::fs::File::open(path).unwrap();
    let mut theirs = ProgAttach::new(
        Target::Fd(directory.as_fd()),
        AttachType::CGROUP_INET_EGRESS,
        second.as_fd(),
    );
    theirs.flags = AttachFlags::ALLOW_OVERRIDE;
    prog_attach(&theirs).unwrap();
    assert!(!lost.is_attached().unwrap());
    let err = lost.update(first).unwrap_err();
    assert!(err.is(Errno::ENOENT), "{err}");
    lost.detach().unwrap();
    let found = cgroup_programs(path, AttachType::CGROUP_INET_EGRESS).unwrap();
    assert_eq!(found.programs.len(), 1, "{found:?}");
    theirs.flags = AttachFlags::empty();
    prog_detach(&theirs).unwrap();

    // Below the mount point, and nowhere.
    let name = path.file_name().unwrap();
    Link::cgroup(first, Path::new(name), CgroupOptions::default()).unwrap();
    let missing = Path::new("no_such_cgroup");
    let err = Link::cgroup(first, missing, CgroupOptions::default()).unwrap_err();
    assert!(matches!(err, LinkError::NoTarget { .. }), "{err}");

    // A hook of another kind of program.
    let wrong = CgroupOptions {
        attach_type: Some(AttachType::CGROUP_SYSCTL),
        ..CgroupOptions::default()
    };
    let err = Link::cgroup(first, path, wrong).unwrap_err();
    let LinkError::Attach { tried, .. } = &err else {
        panic!("{err}")
    };
    assert_eq!(tried.len(), 3, "{err}");
}

#[test]
fn links_net_survive_their_cgroup() {
    if !require(&CGROUP) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load(&["cgroup_first", "cgroup_second"]);
    let [first, second] = ["cgroup_first", "cgroup_second"].map(|p| collection.program(p).unwrap());
    let dir = TempDir::cgroup();
    let classic = CgroupOptions {
        method: Method::Classic,
        ..CgroupOptions::default()
    };
    let links = [
        Link::cgroup(first, dir.path(), CgroupOptions::default()).unwrap(),
        Link::cgroup(second, dir.path(), classic).unwrap(),
    ];
    drop(dir);
    for link in links {
        link.detach().unwrap();
    }
}

/// Two sockets in a namespace: one sends to the other over loopback.
fn local_pair(net: &Net) -> (UdpSocket, UdpSocket) {
    net.ns.run(|| {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT)).unwrap();
        (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), receiver)
    })
}

#[test]
fn links_net_sk_lookup() {
    if !require(&SK_LOOKUP) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let (sender, receiver) = local_pair(&net);
    let to = receiver.local_addr().unwrap();
    Kind {
        programs: ["lookup_first", "lookup_second"],
        mechanism: Mechanism::NetnsLink,
        attach: &|program| Link::sk_lookup(program, Some(&net.namespace)),
        poke: &|| drop(sender.send_to(b"x", to)),
        second: Second::Shares,
        update: Can::Yes,
        tells: Can::Yes,
    }
    .life();
}

/// Without packets: what makes the kernel dissect differs between versions.
#[test]
fn links_net_flow_dissector() {
    if !require(&FLOW_DISSECTOR) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["flow_first", "flow_second"]);
    let [first, second] = ["flow_first", "flow_second"].map(|p| collection.program(p).unwrap());
    for (method, mechanism) in [
        (Method::Auto, Mechanism::NetnsLink),
        (Method::Classic, Mechanism::NetnsAttach),
    ] {
        let attach = |program| Link::flow_dissector(program, Some(&net.namespace), method);
        let mut link = attach(first).unwrap();
        assert_eq!(link.mechanism(), mechanism);
        assert!(link.is_attached().unwrap());
        let err = attach(second).unwrap_err();
        let LinkError::AlreadyAttached { by, .. } = &err else {
            panic!("{err}")
        };
        assert_eq!(by.name, "flow_first");
        link.update(second).unwrap();
        let err = attach(first).unwrap_err();
        assert!(err.to_string().contains("(flow_second)"), "{err}");
        link.detach().unwrap();
        drop(attach(first).unwrap());
    }
}

#[test]
fn links_net_netfilter() {
    if !require(&NETFILTER_LINK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let (sender, receiver) = local_pair(&net);
    let to = receiver.local_addr().unwrap();
    for hook in [NetfilterHook::LocalIn, NetfilterHook::LocalOut] {
        let options = NetfilterOptions::new(hook);
        Kind {
            programs: ["netfilter_first", "netfilter_second"],
            mechanism: Mechanism::Netfilter,
            attach: &|program| Link::netfilter(program, Some(&net.namespace), options),
            poke: &|| drop(sender.send_to(b"x", to)),
            second: Second::Refused,
            update: Can::No,
            tells: Can::Yes,
        }
        .life();
    }
}

#[test]
fn links_net_socket_filter() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let (sender, receiver) = local_pair(&net);
    let to = receiver.local_addr().unwrap();
    Kind {
        programs: ["socket_first", "socket_second"],
        mechanism: Mechanism::SocketOption,
        attach: &|program| Link::socket_filter(program, receiver.as_fd()),
        poke: &|| drop(sender.send_to(b"x", to)),
        second: Second::Replaces,
        update: Can::Yes,
        tells: Can::No,
    }
    .life();
    let collection = load(&["socket_first"]);
    let file = std::fs::File::open("/proc/self/stat").unwrap();
    let program = collection.program("socket_first").unwrap();
    let err = Link::socket_filter(program, file.as_fd()).unwrap_err();
    assert!(err.is(Errno::ENOTSOCK), "{err}");
}

#[test]
fn links_net_reuseport() {
    if !require(&REUSEPORT) {
        return;
    }
    let _leaks = LeakCheck::begin();
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
        programs: ["reuseport_first", "reuseport_second"],
        mechanism: Mechanism::SocketOption,
        attach: &|program| Link::reuseport(program, receiver.as_fd()),
        poke: &|| drop(sender.send_to(b"x", to)),
        second: Second::Replaces,
        update: Can::Yes,
        tells: Can::No,
    }
    .life();
}

/// A connection over loopback.
fn connection(net: &Net) -> (TcpStream, TcpStream) {
    net.ns.run(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    })
}

fn sockmap_life(method: Method, mechanism: Mechanism, tells: Can) {
    let net = Net::new();
    // The map must outlive the collection of each life: programs of one
    // collection are attached to the map of another.
    let holder = load(&["message_first"]);
    let map = holder.map("sockets").unwrap();
    Kind {
        programs: ["message_first", "message_second"],
        mechanism,
        attach: &|program| Link::sockmap(program, map, method),
        // A socket is under the program's rule if it enters while the program
        // is attached.
        poke: &|| {
            let (mut client, mut server) = connection(&net);
            map.set(&0_u32, &(client.as_raw_fd() as u32)).unwrap();
            client.write_all(b"x").unwrap();
            server
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            server.read_exact(&mut [0]).unwrap();
        },
        second: if tells == Can::Yes {
            Second::RefusedByName
        } else {
            Second::Replaces
        },
        update: Can::Yes,
        tells,
    }
    .life();
}

#[test]
fn links_net_sockmap_by_link() {
    if !require(&SOCKMAP_LINK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    sockmap_life(Method::Auto, Mechanism::SockmapLink, Can::Yes);
}

#[test]
fn links_net_sockmap_by_attach() {
    if !require(&SOCKMAP) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // Before, the kernel does not tell who is attached.
    let tells = if kernel_version() < (5, 17) {
        Can::No
    } else {
        Can::Yes
    };
    sockmap_life(Method::Classic, Mechanism::SockmapAttach, tells);
}

#[test]
fn links_net_sockmap_parser_and_verdict() {
    if !require(&SOCKMAP_VERDICT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["parser_first", "verdict_first"]);
    let [parser, verdict] = ["parser_first", "verdict_first"].map(|p| collection.program(p));
    let map = collection.map("sockets").unwrap();
    let links = [parser, verdict].map(|p| Link::sockmap(p.unwrap(), map, Method::Auto).unwrap());
    let (mut client, server) = connection(&net);
    map.set(&0_u32, &(server.as_raw_fd() as u32)).unwrap();
    client.write_all(b"x").unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    for name in ["parser_first", "verdict_first"] {
        while count(&collection, name) == 0 {
            assert!(Instant::now() < deadline, "{name} does not fire");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    for link in links {
        link.detach().unwrap();
    }
}

#[test]
fn links_net_netkit() {
    if !require(&NETKIT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let mut rtnl = net.rtnl();
    rtnl.link_add_netkit("primary", "peer", None).unwrap();
    let [primary, peer] = ["primary", "peer"].map(|name| {
        let index = rtnl.link_by_name(name).unwrap().index;
        rtnl.link_set_up(index).unwrap();
        index
    });
    let interface = Interface::from("primary").in_namespace(&net.namespace);
    for (end, from) in [(NetkitEnd::Primary, primary), (NetkitEnd::Peer, peer)] {
        Kind {
            programs: ["tc_first", "tc_second"],
            mechanism: Mechanism::Netkit,
            attach: &|program| Link::netkit(program, &interface, end, Order::default()),
            poke: &|| Net::send_over(&net.sender, from),
            second: Second::Shares,
            update: Can::Yes,
            tells: Can::Yes,
        }
        .life();
    }
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
                assert_eq!(outcome, Outcome::Attached(Mechanism::XdpLink));
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
