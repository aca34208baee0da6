//! Filters on clsact: whose they are, and what killed processes left.

use super::*;
use ebpf_manager_sys::proc;
use ebpf_manager_sys::rtnl::{ALL_PROTOCOLS, FilterId};

/// `ebpf_manager_PID_START_NAMESPACE`, with other numbers if given.
fn owner(pid: Option<u32>, start_time: Option<u64>, namespace: Option<u64>) -> String {
    let root = proc::host_proc();
    let own = proc::self_pid(&root).unwrap();
    let own_start = proc::start_time(&root, own).unwrap();
    let own_namespace = proc::pid_namespace(&root, own).unwrap();
    format!(
        "ebpf_manager_{}_{}_{}",
        pid.unwrap_or(own),
        start_time.unwrap_or(own_start),
        namespace.unwrap_or(own_namespace)
    )
}

const NOBODY: u32 = 99_999_999;

fn add(net: &Net, parent: TcParent, name: &str, program: &Program) {
    let spec = FilterSpec {
        id: FilterId {
            index: net.right,
            parent,
            priority: 50,
            protocol: ALL_PROTOCOLS,
            handle: 0,
        },
        name,
        program: program.as_fd(),
        flags: ClsBpfFlags::DIRECT_ACTION,
    };
    net.rtnl().filter_add(&spec).unwrap();
}

fn names(net: &Net, parent: TcParent) -> Vec<String> {
    let filters = net.rtnl().filters(net.right, parent).unwrap();
    filters.into_iter().map(|filter| filter.name).collect()
}

/// Of the original: an empty UID matched any filter that ended in a dead
/// number, and a pid alone stood for a process.
#[test]
fn links_net_stale_filters_are_removed() {
    if !require(&CLSACT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["tc_first"]);
    let program = collection.program("tc_first").unwrap();
    assert_eq!(remove_stale_filters(&net.right()).unwrap(), 0);
    net.rtnl().clsact_add(net.right).unwrap();
    let stale = [
        format!("{} tc_uid_1", owner(Some(NOBODY), None, None)),
        format!("{} tc_uid_2", owner(None, Some(1), None)),
    ];
    let kept = [
        format!("{} tc_uid_3", owner(None, None, None)),
        format!("{} tc_uid_4", owner(Some(NOBODY), None, Some(1))),
        format!("tc__{NOBODY}"),
        format!("tc_uid_{NOBODY}"),
        owner(Some(NOBODY), None, None),
    ];
    for parent in [TcParent::INGRESS, TcParent::EGRESS] {
        for name in stale.iter().chain(&kept) {
            add(&net, parent, name, program);
        }
    }
    // Attaching sweeps where it attaches.
    let link = Link::clsact(
        program,
        &net.right(),
        Direction::Egress,
        &ClsactOptions::default(),
    )
    .unwrap();
    assert_eq!(names(&net, TcParent::INGRESS).len(), 7);
    let left = names(&net, TcParent::EGRESS);
    assert_eq!(left.len(), 6, "{left:?}");
    assert!(stale.iter().all(|name| !left.contains(name)), "{left:?}");
    assert!(link.is_attached().unwrap());
    assert_eq!(remove_stale_filters(&net.right()).unwrap(), 2);
    let left = names(&net, TcParent::INGRESS);
    assert!(kept.iter().all(|name| left.contains(name)), "{left:?}");
    assert_eq!(left.len(), kept.len());
    assert_eq!(remove_stale_filters(&net.right()).unwrap(), 0);
    let missing = Interface::from("none").in_namespace(&net.namespace);
    let err = remove_stale_filters(&missing).unwrap_err();
    assert!(matches!(err, LinkError::NoInterface { .. }), "{err}");
}

/// A number that one reads may be another's filter by the time it deletes it.
#[test]
fn links_net_many_start_where_one_was_killed() {
    if !require(&CLSACT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["tc_first"]);
    let program = collection.program("tc_first").unwrap();
    for round in 0..20 {
        net.rtnl().clsact_add(net.right).unwrap();
        let stale = format!("{} tc__{round}", owner(Some(NOBODY), None, None));
        add(&net, TcParent::INGRESS, &stale, program);
        let links: Vec<Link> = std::thread::scope(|scope| {
            let start = || {
                let options = ClsactOptions {
                    qdisc: QdiscCleanup::RemoveIfUnused,
                    ..ClsactOptions::default()
                };
                Link::clsact(program, &net.right(), Direction::Ingress, &options).unwrap()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(names(&net, TcParent::INGRESS).len(), 4);
        assert_eq!(net.namespace.filter_count(net.right), 4);
        for link in links {
            assert!(link.is_attached().unwrap());
            link.detach().unwrap();
        }
        assert!(!net.has_clsact());
    }
}

/// Held by another process, as far as the kernel knows.
#[test]
fn links_net_a_locked_namespace_delays_but_does_not_stop() {
    if !require(&CLSACT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let collection = load(&["tc_first"]);
    let program = collection.program("tc_first").unwrap();
    let options = ClsactOptions {
        qdisc: QdiscCleanup::RemoveIfUnused,
        ..ClsactOptions::default()
    };
    let attach = || Link::clsact(program, &net.right(), Direction::Ingress, &options);
    let lock = netns::try_lock(net.ns.as_fd())
        .unwrap()
        .expect("it is free");
    let link = attach().unwrap();
    let err = remove_stale_filters(&net.right()).unwrap_err();
    assert!(err.is(Errno::EBUSY), "{err}");
    link.detach().unwrap();
    assert!(net.has_clsact(), "somebody may be about to use it");
    drop(lock);
    attach().unwrap().detach().unwrap();
    assert!(!net.has_clsact());
}

/// The kernel runs filters for leaving packets on arriving ones there.
#[test]
fn links_net_egress_is_refused_where_ingress_is_the_qdisc() {
    if !require(&CLSACT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let made = net.ns.run(|| {
        std::process::Command::new("tc")
            .args(["qdisc", "add", "dev", "right", "ingress"])
            .status()
    });
    if !made.is_ok_and(|status| status.success()) {
        skip("tc(8) is not here to make the qdisc");
        return;
    }
    let collection = load(&["tc_first"]);
    let program = collection.program("tc_first").unwrap();
    let options = ClsactOptions::default();
    let attach = |direction| Link::clsact(program, &net.right(), direction, &options);
    let err = attach(Direction::Egress).unwrap_err();
    assert!(err.is(Errno::EEXIST), "{err}");
    assert!(err.to_string().contains("ingress takes the place"), "{err}");
    let link = attach(Direction::Ingress).unwrap();
    assert!(link.is_attached().unwrap());
    assert_eq!(names(&net, TcParent::INGRESS).len(), 1);
    link.detach().unwrap();
    assert_eq!(names(&net, TcParent::INGRESS).len(), 0);
}

/// The name says which probe of a manager it is.
#[test]
fn links_net_the_uid_of_a_probe_is_in_the_name() {
    if !require(&CLSACT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let net = Net::new();
    let options = ClsactOptions::default();
    let hook = Hook::tc_with(net.right(), Direction::Ingress, TcAttach::Clsact(options));
    let manager = Manager::builder()
        .probe(Probe::new("tc_first").uid("agent").hook(hook))
        .build()
        .unwrap();
    manager
        .init(&ObjectSource::path(testdata("net.bpf.o")))
        .unwrap();
    manager.start().unwrap();
    let [name] = names(&net, TcParent::INGRESS).try_into().unwrap();
    let tail = format!(" tc_agent_{}", std::process::id());
    assert!(name.ends_with(&tail), "{name}");
    manager.stop().unwrap();
    assert!(names(&net, TcParent::INGRESS).is_empty());
}
