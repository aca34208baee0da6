//! Control groups: who is in the way, in which order programs run.

use std::path::Path;

use ebpf_manager::bpf::{
    AttachType, CgroupOptions, Cure, Sharing, Turn, cgroup_programs, cgroup_programs_in_effect,
};
use ebpf_manager_sys::abi::bpf::AttachFlags;
use ebpf_manager_sys::bpf::{ProgAttach, Target, prog_attach, prog_detach};

use super::*;

#[test]
fn links_net_cgroup_programs_and_their_neighbours() {
    if !require(&CGROUP) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::cgroup();
    let path = dir.path();
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
    assert!(
        matches!(
            err,
            LinkError::WrongAttachType {
                hook: AttachType::CGROUP_SYSCTL,
                found: AttachType::CGROUP_INET_EGRESS,
            }
        ),
        "{err}"
    );
    assert!(err.to_string().contains("cgroup_inet_egress"), "{err}");

    // Not a cgroup of version 2.
    for method in [Method::Auto, Method::Classic] {
        let options = CgroupOptions {
            method,
            ..CgroupOptions::default()
        };
        let err = Link::cgroup(first, Path::new("/tmp"), options).unwrap_err();
        assert!(matches!(err, LinkError::NoTarget { .. }), "{err}");
        assert!(err.to_string().contains("cgroup2"), "{err}");
    }
}

#[test]
fn links_net_cgroup_programs_run_in_the_order_asked_for() {
    if !require(&CGROUP) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load(&["cgroup_first", "cgroup_second"]);
    let [first, second] = ["cgroup_first", "cgroup_second"].map(|p| collection.program(p).unwrap());
    let dir = TempDir::cgroup();
    let path = dir.path();
    let in_front = CgroupOptions {
        order: Order {
            place: Place::First,
            ..Order::default()
        },
        ..CgroupOptions::default()
    };
    let _one = Link::cgroup(first, path, CgroupOptions::default()).unwrap();
    let result = Link::cgroup(second, path, in_front);
    let found = cgroup_programs(path, AttachType::CGROUP_INET_EGRESS).unwrap();
    let names: Vec<_> = found.programs.iter().map(|p| p.name.as_str()).collect();
    let two = match result {
        // Not somewhere else instead.
        Err(err) if kernel_version() < (6, 17) => {
            assert!(err.to_string().contains("needs Linux 6.17"), "{err}");
            assert_eq!(names, ["cgroup_first"]);
            return;
        }
        // Some older kernels have got it, too.
        result => result.unwrap(),
    };
    assert_eq!(names, ["cgroup_second", "cgroup_first"]);
    drop(two);
    let stale = CgroupOptions {
        order: Order {
            place: Place::Last,
            expected_revision: found.revision,
        },
        ..CgroupOptions::default()
    };
    assert_ne!(found.revision, 0);
    let err = Link::cgroup(second, path, stale).unwrap_err();
    assert!(err.is(Errno::ESTALE), "{err}");
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

#[test]
fn links_net_cgroup_programs_run_before_those_below() {
    if !require(&CGROUP) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let names = ["cgroup_first", "cgroup_second"];
    let collection = load(&names);
    let [first, second] = names.map(|p| collection.program(p).unwrap());
    let parent = TempDir::cgroup();
    let child = parent.path().join("below");
    std::fs::create_dir(&child).unwrap();
    let order = || -> Vec<String> {
        let found = cgroup_programs_in_effect(&child, AttachType::CGROUP_INET_EGRESS).unwrap();
        found.programs.into_iter().map(|p| p.name).collect()
    };
    let below = Link::cgroup(second, &child, CgroupOptions::default()).unwrap();
    let above = Link::cgroup(first, parent.path(), CgroupOptions::default()).unwrap();
    assert_eq!(order(), ["cgroup_second", "cgroup_first"]);
    drop(above);
    for method in [Method::Auto, Method::Link, Method::Classic] {
        let options = CgroupOptions {
            method,
            turn: Turn::BeforeThoseBelow,
            ..CgroupOptions::default()
        };
        let mut above = match Link::cgroup(first, parent.path(), options) {
            // Not at another time instead.
            Err(err) if kernel_version() < (6, 15) => {
                let since = matches!(err.cure(), Some(Cure::KernelTooOld { .. }));
                assert!(since && err.to_string().contains("6.15"), "{err}");
                assert_eq!(order(), ["cgroup_second"]);
                continue;
            }
            result => result.unwrap(),
        };
        assert_eq!(order(), ["cgroup_first", "cgroup_second"], "{method:?}");
        // The one in its place has its turn.
        let other = load(&names[..1]);
        above.update(other.program(names[0]).unwrap()).unwrap();
        assert_eq!(order(), ["cgroup_first", "cgroup_second"], "{method:?}");
        above.detach().unwrap();
        assert_eq!(order(), ["cgroup_second"]);
    }
    drop(below);
    std::fs::remove_dir(&child).unwrap();
}
