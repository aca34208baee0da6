//! The harness itself: a leak check that misses a leak, or a skip that hides
//! a defect, would make every other test worthless.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{
    Feature, LeakCheck, NetNs, PINS, ROOT, TempDir, UPROBE, Verdict, kernel_version, mount_of,
    privileged, require,
};
use ebpf_manager_sys::abi::bpf::MapType;
use ebpf_manager_sys::bpf::{MapCreate, MapFd, map_create};
use ebpf_manager_sys::rtnl::Rtnl;
use ebpf_manager_sys::tracefs::{ProbeFile, Tracefs};

/// What a check says at its end, while what `leak` returned still exists.
fn complaint<T>(leak: impl FnOnce() -> T, release: impl FnOnce(T)) -> String {
    let check = LeakCheck::begin();
    let held = leak();
    let end = AssertUnwindSafe(|| check.finish_within(Duration::from_millis(300)));
    let panic = catch_unwind(end).expect_err("the check fails");
    release(held);
    let text = panic.downcast::<String>().expect("a formatted message");
    *text
}

fn array(name: &str) -> MapFd {
    map_create(&MapCreate {
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        name,
        ..Default::default()
    })
    .unwrap()
}

#[test]
fn leaked_descriptor_is_found() {
    let text = complaint(|| File::open("/proc/self/status").unwrap(), drop);
    assert!(text.contains("descriptor "), "{text}");
    assert!(text.contains("/status"), "{text}");
}

#[test]
fn leaked_thread_is_found() {
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let text = complaint(
        || {
            let thread = thread::Builder::new().name("left-behind".to_owned());
            thread.spawn(move || wait.recv()).unwrap()
        },
        |thread| {
            drop(stop);
            let _ = thread.join().unwrap();
        },
    );
    assert!(text.contains("thread "), "{text}");
    assert!(text.contains("left-behind"), "{text}");
}

#[test]
fn leaked_child_is_found() {
    let text = complaint(
        || {
            let mut command = Command::new("sleep");
            command.arg("60").stdin(Stdio::null()).spawn().unwrap()
        },
        |mut child| {
            child.kill().unwrap();
            child.wait().unwrap();
        },
    );
    assert!(text.contains("child process"), "{text}");
}

/// A map that only a pin keeps: no descriptor betrays it.
#[test]
fn leaked_map_and_pin_are_found() {
    if !require(&PINS) {
        return;
    }
    let text = complaint(
        || {
            let dir = TempDir::on_bpffs();
            let map = array("left_behind");
            let path = dir.path().join("pin");
            ebpf_manager_sys::bpf::obj_pin(map.as_fd(), &path, None).unwrap();
            dir
        },
        drop,
    );
    assert!(text.contains("\"left_behind\""), "{text}");
    assert!(text.contains("/pin"), "{text}");
    assert!(!text.contains("descriptor"), "{text}");
}

#[test]
fn leaked_qdisc_is_found() {
    if !require(&ROOT) {
        return;
    }
    let check = LeakCheck::begin();
    let (ns, left, _) = NetNs::with_veth();
    let text = ns.run(|| {
        let mut rtnl = Rtnl::open().unwrap();
        let before = LeakCheck::network_hooks();
        rtnl.clsact_add(left).unwrap();
        let after = LeakCheck::network_hooks();
        let new: Vec<_> = after.into_iter().filter(|h| !before.contains(h)).collect();
        new.join("\n")
    });
    assert_eq!(text, "qdisc clsact ffff0000 on veth0");
    drop(ns);
    check.finish();
}

/// A probe event outlives the process that made it.
#[test]
fn leaked_probe_event_is_found() {
    if !require(&UPROBE.mounted("tracefs")) {
        return;
    }
    let tracefs = Tracefs::find().unwrap();
    let group = format!("leak_{}", std::process::id());
    let text = complaint(
        || {
            let binary = std::env::current_exe().unwrap();
            let line = format!("p:{group}/left {}:0x40", binary.display());
            tracefs.append(ProbeFile::Uprobe, &line).unwrap();
        },
        |()| {
            tracefs
                .remove_probe(ProbeFile::Uprobe, &group, "left")
                .unwrap();
        },
    );
    assert!(
        text.contains(&format!("probe event p:{group}/left")),
        "{text}"
    );
}

#[test]
fn what_was_there_before_is_no_leak() {
    let mut check = LeakCheck::begin();
    let before = (
        File::open("/proc/self/status").unwrap(),
        privileged().then(|| array("before")),
    );
    check.rebase();
    drop(File::open("/proc/self/stat").unwrap());
    thread::spawn(|| ()).join().unwrap();
    if privileged() {
        drop(array("within"));
        let pins = mount_of("bpf").map(|_| TempDir::on_bpffs());
        drop(pins);
    }
    check.finish();
    drop(before);
}

/// Kernel objects have no owner, but one that another process holds is not
/// ours. The other process is this binary, told by its environment to hold a
/// map until its input ends.
#[test]
fn what_another_process_holds_is_no_leak() {
    const ROLE: &str = "EBPF_MANAGER_TEST_HOLDS_A_MAP";
    if std::env::var_os(ROLE).is_some() {
        let map = array("of_another");
        std::io::stdout().write_all(b"\nready\n").unwrap();
        std::io::stdin().read_line(&mut String::new()).unwrap();
        drop(map);
        return;
    }
    if !require(&PINS) {
        return;
    }
    let text = complaint(
        || {
            let mut other = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "what_another_process_holds_is_no_leak"])
                .env(ROLE, "")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap() == "ready"));
            (other, lines)
        },
        |(mut other, lines)| {
            drop(other.stdin.take());
            lines.for_each(drop);
            assert!(other.wait().unwrap().success());
        },
    );
    assert!(text.contains("child process"), "{text}");
    assert!(!text.contains("of_another"), "{text}");
}

#[test]
fn a_new_kernel_may_not_skip() {
    const MISSING: Feature = Feature::new("the impossible", 3, 0).check(|| Err("never".to_owned()));
    const FUTURE: Feature = Feature::new("the future", 999, 0);
    const FOUND: Feature = Feature::new("a backport", 999, 0).check(|| Ok(()));
    const UNBUILT: Feature = Feature::new("a driver", 3, 0).config(&["CONFIG_NO_SUCH_OPTION"]);

    if !privileged() {
        for feature in [MISSING, FUTURE, FOUND, UNBUILT] {
            assert!(matches!(feature.verdict(), Verdict::Skip(_)));
        }
        return;
    }
    assert!(matches!(MISSING.verdict(), Verdict::Fail(_)));
    assert!(catch_unwind(|| require(&MISSING)).is_err());
    assert!(matches!(FUTURE.verdict(), Verdict::Skip(why) if why.contains("999.0")));
    assert_eq!(FOUND.verdict(), Verdict::Run);
    assert!(require(&ROOT));
    match common::built_with("CONFIG_BPF") {
        Some(_) => assert!(matches!(UNBUILT.verdict(), Verdict::Skip(_))),
        None => assert_eq!(UNBUILT.verdict(), Verdict::Run),
    }
}

#[test]
fn the_kernel_says_its_version_and_options() {
    assert!(kernel_version() >= (4, 14));
    if let Some(bpf) = common::built_with("CONFIG_BPF") {
        assert!(bpf);
        assert_eq!(common::built_with("CONFIG_BP"), Some(false));
    }
}
