//! Programs that are loaded for their hook: fentry and its kin, LSM, tp_btf,
//! freplace, iterators and structures of the kernel.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::{
    BPF_LSM, Feature, LeakCheck, ROOT, TRAMPOLINE, kernel_version, mount_of, require, skip,
    testdata,
};
use ebpf_manager::bpf::{
    AttachTo, CgroupIterOrder, Collection, Cure, Errno, IterOver, Link, LinkError, LoadError,
    LoadOptions, MapFlags, Mechanism, Program, ProgramError, TestRun, Tracing, open_object,
    syscall_function,
};
use ebpf_manager::{Manager, ManagerError, ObjectSource, Probe};

const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    collection: Collection,
}

impl Fixture {
    fn program(&self, name: &str) -> &Program {
        self.collection.program(name).unwrap()
    }

    fn hits(&self) -> u64 {
        self.collection.variable("hits").unwrap().get().unwrap()
    }

    /// Calls `act` once; how many more hits there are.
    fn counted(&self, act: &dyn Fn()) -> u64 {
        let before = self.hits();
        act();
        self.hits() - before
    }
}

fn getpid() {
    let _ = std::process::id();
}

// ------------------------------------ programs that are loaded for their hook

const TP_BTF: Feature = Feature::new("tp_btf", 5, 5).config(&["CONFIG_DEBUG_INFO_BTF"]);
const ITERATOR: Feature = Feature::new("iterator", 5, 8).config(&["CONFIG_DEBUG_INFO_BTF"]);

fn load_typed(program: &str, attach_to: Option<AttachTo>) -> Result<Fixture, LoadError> {
    let mut object = open_object(testdata("typed.bpf.o")).unwrap();
    let own = std::process::id().to_ne_bytes();
    object.set_variable("target_tgid", &own).unwrap();
    let mut options = LoadOptions::default();
    options.include = vec![program.to_owned()];
    options.attach_to.extend(attach_to);
    let collection = Collection::load(&object, options)?;
    Ok(Fixture { collection })
}

/// What every link of a program does that can be attached once at a time.
fn conformance_once(fixture: &Fixture, program: &str, times: u64, act: &dyn Fn()) {
    let loaded = fixture.program(program);
    let attach = || Link::tracing(loaded, &Tracing::new());
    let ok = || attach().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert_eq!(fixture.counted(act), 0, "{program}: before");
    let link = ok();
    assert_eq!(fixture.counted(act), times, "{program}: attached");
    assert!(link.id().unwrap().is_some());
    let err = attach().unwrap_err();
    let id = loaded.id().unwrap();
    assert!(
        matches!(&err, LinkError::AlreadyAttached { by, .. } if by.id == id),
        "{program}: {err}"
    );
    assert_eq!(fixture.counted(act), times, "{program}: still attached");
    link.detach().unwrap();
    assert_eq!(fixture.counted(act), 0, "{program}: detached");
    let err = Link::tracepoint(loaded, "sched", "sched_switch").unwrap_err();
    assert!(matches!(err, LinkError::WrongType { .. }), "{err}");
}

fn open_file() {
    drop(std::fs::File::open("/dev/null").unwrap());
}

#[test]
fn links_typed_functions() {
    if !require(&TRAMPOLINE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let getpid_function = syscall_function("getpid").unwrap();
    for program in ["on_fentry", "on_fexit"] {
        let to = AttachTo::kernel(program, &getpid_function);
        let fixture = load_typed(program, Some(to)).unwrap_or_else(|e| panic!("{e}"));
        conformance_once(&fixture, program, 1, &getpid);
    }
    let fixture = load_typed("on_fmod_ret", None).unwrap_or_else(|e| panic!("{e}"));
    conformance_once(&fixture, "on_fmod_ret", 1, &open_file);
    // By the interface of kernels before 5.19.
    let to = AttachTo::kernel("on_fentry", &getpid_function);
    let fixture = load_typed("on_fentry", Some(to)).unwrap();
    let by = Mechanism::RawTracepointOpen;
    let link = Link::tracing(fixture.program("on_fentry"), &Tracing::new().attach_by(by)).unwrap();
    assert_eq!(link.mechanism(), by);
    assert_eq!(fixture.counted(&getpid), 1);
    link.detach().unwrap();
    assert_eq!(fixture.counted(&getpid), 0);
}

#[test]
fn links_typed_security_hooks() {
    let active = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if !require(&BPF_LSM) {
        return;
    }
    if !active.split(',').any(|lsm| lsm.trim() == "bpf") {
        skip("BPF is not among the active security modules");
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = load_typed("on_lsm", None).unwrap_or_else(|e| panic!("{e}"));
    conformance_once(&fixture, "on_lsm", 1, &open_file);
}

#[test]
fn links_typed_replaces_functions() {
    if !require(&TRAMPOLINE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let target = load_typed("whole", None).unwrap_or_else(|e| panic!("{e}"));
    let whole = target.program("whole");
    let result = || {
        let mut run = TestRun {
            data_in: &[0; 64],
            repeat: 1,
            ..TestRun::default()
        };
        whole.test_run(&mut run).unwrap().retval
    };
    assert_eq!(result(), 1);
    let to = AttachTo::program("replacement", whole, Some("replaceable")).unwrap();
    let fixture = load_typed("replacement", Some(to)).unwrap_or_else(|e| panic!("{e}"));
    let link = Link::tracing(fixture.program("replacement"), &Tracing::new()).unwrap();
    assert_eq!(result(), 2, "replaced");
    // Another one for the same function is told who was first.
    let to = AttachTo::program("replacement", whole, Some("replaceable")).unwrap();
    if let Ok(second) = load_typed("replacement", Some(to)) {
        let err = Link::tracing(second.program("replacement"), &Tracing::new()).unwrap_err();
        let first = fixture.program("replacement").id().unwrap();
        match &err {
            LinkError::AlreadyAttached { by, .. } => assert_eq!(by.id, first),
            // Before 5.13 links do not tell what they changed.
            _ => assert!(kernel_version() < (5, 13), "{err}"),
        }
    }
    link.detach().unwrap();
    assert_eq!(result(), 1, "as it was");
    let to = AttachTo::program("replacement", whole, Some("no_such")).unwrap();
    let err = load_typed("replacement", Some(to)).map(drop).unwrap_err();
    assert!(
        matches!(
            &err,
            LoadError::Program(ProgramError::NoAttachTarget { name, .. }) if name == "no_such"
        ),
        "{err}"
    );
}

#[test]
fn links_typed_typed_tracepoint() {
    if !require(&TP_BTF) {
        return;
    }
    let _leaks = LeakCheck::begin();
    for by in [None, Some(Mechanism::RawTracepointOpen)] {
        let fixture = load_typed("on_tp_btf", None).unwrap_or_else(|e| panic!("{e}"));
        let mut hook = Tracing::new();
        hook.by = by;
        let link = Link::tracing(fixture.program("on_tp_btf"), &hook).unwrap();
        let start = fixture.hits();
        let deadline = Instant::now() + PATIENCE;
        // Linux 7.0 may miss some.
        while fixture.hits() == start {
            getpid();
            assert!(Instant::now() < deadline, "never fires");
        }
        link.detach().unwrap();
        assert_eq!(fixture.counted(&getpid), 0, "detached");
    }
}

#[test]
fn links_typed_iterator_is_read() {
    if !require(&ITERATOR) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = load_typed("on_task", None).unwrap_or_else(|e| panic!("{e}"));
    let program = fixture.program("on_task");
    let own = std::process::id().to_ne_bytes();
    let read = |link: &Link| {
        let mut bytes = Vec::new();
        let mut stream = link.read_iter().unwrap();
        std::io::Read::read_to_end(&mut stream, &mut bytes).unwrap();
        bytes
    };
    let mut link = Link::iter(program, IterOver::All).unwrap();
    assert_eq!(link.mechanism(), Mechanism::Iterator);
    for _ in 0..2 {
        let all = read(&link);
        let mut pids = all.chunks_exact(4);
        assert!(pids.any(|pid| pid == own), "{} bytes", all.len());
    }
    // Another program in its place, while the link stays.
    let other = load_typed("on_task", None).unwrap();
    link.update(other.program("on_task")).unwrap();
    assert!(read(&link).chunks_exact(4).any(|pid| pid == own));
    let pid = std::process::id();
    match Link::iter(program, IterOver::Process { pid }) {
        Ok(link) => assert!(read(&link).chunks_exact(4).all(|pid| pid == own)),
        Err(err) => assert!(kernel_version() < (6, 1), "{err}"),
    }
}

#[test]
fn links_typed_iterator_is_read_through_a_manager() {
    if !require(&ITERATOR) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = Manager::builder()
        .probe(Probe::new("on_task"))
        .build()
        .unwrap();
    let object = ObjectSource::path(testdata("typed.bpf.o"));
    manager.init(&object).unwrap();
    let probe = manager.probe("on_task").unwrap();
    let err = probe.read_iter().unwrap_err();
    assert_eq!(err.to_string(), "there is no link of probe on_task");
    manager.start().unwrap();
    assert!(probe.link_id().unwrap().is_some());
    let own = std::process::id().to_ne_bytes();
    for _ in 0..2 {
        let mut bytes = Vec::new();
        let mut stream = probe.read_iter().unwrap();
        std::io::Read::read_to_end(&mut stream, &mut bytes).unwrap();
        assert!(bytes.chunks_exact(4).any(|pid| pid == own));
    }
    manager.stop().unwrap();
    let err = probe.link_id().unwrap_err();
    assert!(matches!(err, ManagerError::NotThere { .. }), "{err}");
}

#[test]
fn links_typed_absent_function_is_named() {
    if !require(&TP_BTF) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let err = load_typed("on_nothing", None).map(drop).unwrap_err();
    assert!(
        matches!(
            &err,
            LoadError::Program(ProgramError::NoAttachTarget { name, .. })
                if name == "no_such_function_anywhere"
        ),
        "{err}"
    );
    // Nothing says where they go.
    for program in ["on_fentry", "replacement"] {
        let err = load_typed(program, None).map(drop).unwrap_err();
        assert!(
            matches!(
                &err,
                LoadError::Program(ProgramError::NoAttachTarget { name, .. }) if name.is_empty()
            ),
            "{err}"
        );
    }
    let to = AttachTo::kernel("no_such_program", "vfs_read");
    let err = load_typed("on_fentry", Some(to)).map(drop).unwrap_err();
    assert!(matches!(err, LoadError::NoSuch { .. }), "{err}");
}

#[test]
fn links_typed_lockdown_is_told() {
    if !require(&ROOT) || !common::locked_down() {
        return;
    }
    let _leaks = LeakCheck::begin();
    let to = AttachTo::kernel("on_fentry", "vfs_read");
    let err = load_typed("on_fentry", Some(to)).map(drop).unwrap_err();
    assert_eq!(err.cure(), Some(&Cure::Lockdown), "{err}");
    assert!(err.to_string().contains("locked down"), "{err}");
}

fn read(link: &Link) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = link.read_iter().unwrap();
    std::io::Read::read_to_end(&mut stream, &mut bytes).unwrap();
    bytes
}

const CGROUP_ITERATOR: Feature =
    Feature::new("cgroup iterator", 6, 1).config(&["CONFIG_DEBUG_INFO_BTF", "CONFIG_CGROUPS"]);

#[test]
fn links_typed_iterator_over_control_groups() {
    if !require(&CGROUP_ITERATOR) {
        return;
    }
    let Some(root) = mount_of("cgroup2") else {
        return skip("no cgroup2 is mounted");
    };
    let _leaks = LeakCheck::begin();
    let top = root.join(format!("ebpf-manager-iter-{}", std::process::id()));
    for name in ["", "a", "a/b", "c"] {
        std::fs::create_dir(top.join(name)).unwrap();
    }
    let fixture = load_typed("on_cgroup", None).unwrap_or_else(|e| panic!("{e}"));
    let program = fixture.program("on_cgroup");
    let walk = |name: &str, order| {
        let directory = std::fs::File::open(top.join(name)).unwrap();
        let directory = directory.as_fd();
        let over = IterOver::Cgroup { order, directory };
        read(&Link::iter(program, over).unwrap_or_else(|e| panic!("{e}"))).len()
    };
    let below = [
        walk("", CgroupIterOrder::DESCENDANTS_PRE),
        walk("a", CgroupIterOrder::DESCENDANTS_POST),
        walk("", CgroupIterOrder::SELF_ONLY),
    ];
    let up = walk("a/b", CgroupIterOrder::ANCESTORS_UP);
    let up_one_less = walk("a", CgroupIterOrder::ANCESTORS_UP);
    for name in ["a/b", "a", "c", ""] {
        std::fs::remove_dir(top.join(name)).unwrap();
    }
    assert_eq!(below, [4, 2, 1]);
    assert_eq!(up, up_one_less + 1);
}

const MAP_ITERATOR: Feature = Feature::new("iterator over elements", 5, 9)
    .config(&["CONFIG_DEBUG_INFO_BTF"])
    .refused_in_lockdown();

#[test]
fn links_typed_iterator_over_elements() {
    if !require(&MAP_ITERATOR) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = load_typed("on_element", None).unwrap_or_else(|e| panic!("{e}"));
    let program = fixture.program("on_element");
    let walked = fixture.collection.map("walked").unwrap();
    for key in [3_u32, 5] {
        walked.set(&key, &0_u32).unwrap();
    }
    let link = Link::iter(program, IterOver::Map(walked)).unwrap_or_else(|e| panic!("{e}"));
    let mut keys: Vec<u32> = read(&link)
        .chunks_exact(4)
        .map(|key| u32::from_ne_bytes(key.try_into().unwrap()))
        .collect();
    keys.sort_unstable();
    assert_eq!(keys, [3, 5]);
    let err = Link::iter(program, IterOver::All).unwrap_err();
    assert!(matches!(err, LinkError::Attach { .. }), "{err}");
}

const SESSION: Feature = Feature::new("fsession", 7, 0)
    .config(&["CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"])
    .refused_in_lockdown();

#[test]
fn links_typed_session() {
    if !require(&SESSION) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let to = AttachTo::kernel("on_fsession", syscall_function("getpid").unwrap());
    let fixture = load_typed("on_fsession", Some(to)).unwrap_or_else(|e| panic!("{e}"));
    conformance_once(&fixture, "on_fsession", 2, &getpid);
}

const CONGESTION_CONTROL: Feature = Feature::new("struct_ops", 5, 6).config(&[
    "CONFIG_BPF_JIT",
    "CONFIG_DEBUG_INFO_BTF",
    "CONFIG_INET",
]);

fn congestion_controls() -> String {
    let path = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn links_typed_structures() {
    if !require(&ROOT) || !require(&CONGESTION_CONTROL) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let links = kernel_version() >= (6, 4);
    let load = || {
        let mut object = open_object(testdata("struct_ops.bpf.o")).unwrap();
        for map in object.maps_mut() {
            map.skip |= !links && map.flags.contains(MapFlags::LINK);
        }
        let mut options = LoadOptions::default();
        if !links {
            options.exclude = vec!["so_static".to_owned(), "so_nowhere".to_owned()];
        }
        Collection::load(&object, options).unwrap_or_else(|e| panic!("{e}"))
    };
    let collection = load();
    let plain = collection.map("so_plain").unwrap();
    let mut link = Link::struct_ops(plain).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(link.mechanism(), Mechanism::StructOpsMap);
    assert!(congestion_controls().contains("em_plain"));
    assert_eq!(link.is_attached(), Ok(true));
    // Another one of that name.
    let other = load();
    let twice = Link::struct_ops(other.map("so_plain").unwrap()).unwrap_err();
    assert!(twice.is(Errno::EEXIST), "{twice}");
    let err = link.update_map(plain).unwrap_err();
    assert!(matches!(err, LinkError::Impossible { .. }), "{err}");
    link.detach().unwrap();
    assert!(!congestion_controls().contains("em_plain"));
    let not_one = load_typed("on_tp_btf", None).unwrap();
    let err = Link::struct_ops(not_one.collection.map("walked").unwrap()).unwrap_err();
    assert!(err.is(Errno::EINVAL), "{err}");
    if !links {
        return;
    }
    let linked = collection.map("so_link").unwrap();
    let mut link = Link::struct_ops(linked).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(link.mechanism(), Mechanism::StructOpsLink);
    assert!(link.id().unwrap().is_some());
    assert!(congestion_controls().contains("em_link"));
    link.update_map(other.map("so_link").unwrap())
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(congestion_controls().contains("em_link"));
    link.detach().unwrap();
    assert!(!congestion_controls().contains("em_link"));
    // Ready as it is, it is linked once more.
    drop(Link::struct_ops(linked).unwrap_or_else(|e| panic!("{e}")));
    assert!(!congestion_controls().contains("em_link"));
}
