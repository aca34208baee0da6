//! Traps of the original about hooks, symbols and namespaces.

use common::{NetNs, TempDir, UPROBE, mount_of};
use ebpf_manager::bpf::{
    Interface, KprobeMulti, LinkError, NetNamespace, Uprobe, UprobeMulti, XdpMode, XdpOptions,
    syscall_function_in,
};
use ebpf_manager::elf::symbols;
use ebpf_manager::{ProbeError, ProbeId, ProgramClone, Selector};

use super::manage::{MANAGE, assert_runs, builder, initialised, run};
use super::*;

const UPROBE_EVENTS: Feature = UPROBE.mounted("tracefs");

fn probes_object() -> ObjectSource {
    ObjectSource::path(testdata("probes.bpf.o"))
}

/// The original told of a map that it had never opened.
#[test]
fn trap_closing_what_is_not_there_is_no_error() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = getpid_builder(|_| ()).build().unwrap();
    manager.stop().unwrap();
    manager.stop_readers().unwrap();
    manager.stream("hits").unwrap().stop().unwrap();
    manager.init(&attach_object()).unwrap();
    manager.stop_readers().unwrap();
    manager.stop().unwrap();
    manager.stop().unwrap();
}

/// The original kept the first file's prefix for ever, and made up names.
#[test]
fn trap_every_symbol_file_is_looked_at() {
    let dir = TempDir::new();
    let with = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let old = with("old", "1000 T SyS_open\n1008 T SyS_close\n");
    let new = with("new", "1000 T __se_sys_open\n1008 T __se_sys_dup\n");
    let found = |file| syscall_function_in(file, "open").unwrap();
    assert_eq!(found(&old), "SyS_open");
    assert_eq!(found(&new), "__se_sys_open");
    assert_eq!(found(&old), "SyS_open");
    for (file, absent) in [(&old, "dup"), (&new, "close")] {
        let err = syscall_function_in(file, absent).unwrap_err();
        assert!(matches!(err, LinkError::NoTarget { .. }), "{err}");
        assert!(err.to_string().contains(absent), "{err}");
    }
}

/// The original's error was about nothing.
#[test]
fn trap_file_without_symbols_says_so() {
    let place = |path| Uprobe::symbol(path, "main");
    let dir = TempDir::new();
    // Neither sections nor symbols: a header only.
    let mut bytes = std::fs::read("/proc/self/exe").unwrap();
    bytes.truncate(64);
    let no_sections = |bytes: &mut [u8]| bytes[0x28..0x30].fill(0);
    no_sections(&mut bytes);
    bytes[0x38..0x40].fill(0);
    let bare = dir.path().join("bare");
    std::fs::write(&bare, &bytes).unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "no program").unwrap();
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    for (path, says) in [(bare, "no symbol table"), (text, "not an ELF")] {
        let manager = Manager::builder()
            .probe(Probe::new("on_uprobe").hook(place(path)))
            .build()
            .unwrap();
        manager.init(&probes_object()).unwrap();
        let err = manager.start().unwrap_err();
        let ManagerError::Attach { source, .. } = &err else {
            panic!("{err}")
        };
        assert!(matches!(**source, LinkError::Symbol { .. }), "{err}");
        assert!(err.to_string().contains(says), "{err}");
        manager.stop().unwrap();
    }
}

/// The original remembered for ever that it had found none.
#[test]
fn trap_tracefs_that_is_mounted_later_is_seen() {
    const ROLE: &str = "EBPF_MANAGER_TEST_LATE_TRACEFS";
    const NAME: &str = "hook_traps::trap_tracefs_that_is_mounted_later_is_seen";
    if std::env::var_os(ROLE).is_some() {
        let manager = Manager::builder()
            .probe(Probe::new("attach_exec"))
            .build()
            .unwrap();
        manager.init(&attach_object()).unwrap();
        let err = manager.start().unwrap_err();
        assert!(matches!(err, ManagerError::Attach { .. }), "{err}");
        let mount = Command::new("mount")
            .args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"])
            .status();
        assert!(mount.unwrap().success());
        manager.start().unwrap();
        return manager.stop().unwrap();
    }
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    alone_without_tracefs(ROLE, NAME);
}

/// Runs a test in a process with a mount namespace of its own, where every
/// tracefs is unmounted or hidden.
pub(super) fn alone_without_tracefs(role: &str, test: &str) {
    let script = "for dir in /sys/kernel/tracing /sys/kernel/debug; do \
                      umount -l $dir 2>/dev/null; \
                      if [ -e $dir/trace ] || [ -e $dir/tracing/trace ]; then exit 3; fi; \
                  done; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(role, "")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?} {text}", output.status);
    assert!(text.contains("1 passed"), "{text}");
}

/// The original went where the section says instead, if anywhere.
#[test]
fn trap_pattern_that_matches_nothing_is_an_error() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let nowhere = "no_such_function_*";
    let hooks: [(&str, Hook); 2] = [
        ("on_libc", UprobeMulti::pattern("libc.so.6", nowhere).into()),
        ("on_ksyscall", KprobeMulti::pattern(nowhere).into()),
    ];
    for (function, hook) in hooks {
        let manager = Manager::builder()
            .probe(Probe::new(function).hook(hook).optional())
            .build()
            .unwrap();
        manager.init(&probes_object()).unwrap();
        manager.start().unwrap();
        let probe = manager.probe(function).unwrap();
        assert!(!probe.is_running(), "{:?}", probe.outcome());
        let error = probe.last_error().unwrap();
        assert!(matches!(error, ProbeError::Attach(_)), "{error}");
        manager.stop().unwrap();
    }
}

/// The original tried the second way after whatever error, and told of that
/// alone.
#[test]
fn trap_every_way_that_was_tried_is_told() {
    if !require(&UPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let beyond = Uprobe::offset("/proc/self/exe", 1 << 40);
    let tried = |place: Uprobe| {
        let manager = Manager::builder()
            .probe(Probe::new("on_uprobe").hook(place))
            .build()
            .unwrap();
        manager.init(&probes_object()).unwrap();
        let err = manager.start().unwrap_err();
        manager.stop().unwrap();
        let ManagerError::Attach { source, .. } = &err else {
            panic!("{err}")
        };
        let LinkError::Attach { tried, .. } = &**source else {
            panic!("{err}")
        };
        for (way, _) in tried {
            assert!(err.to_string().contains(way), "{err}");
        }
        tried.iter().map(|(way, _)| *way).collect::<Vec<_>>()
    };
    // With the unit there, an event in tracefs would be refused likewise.
    assert_eq!(tried(beyond.clone()), ["perf event"]);
    assert_eq!(
        tried(beyond.attach_by(Mechanism::ProbeEvent)),
        ["tracefs event"]
    );
}

/// The original took offset 0 for none, and kept what it had looked up.
#[test]
fn trap_offsets_are_as_said_and_looked_up_each_time() {
    if !require(&UPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut files = maps.lines().filter_map(|line| line.split_once('/'));
    let libc = files.find(|(_, path)| path.contains("libc")).unwrap().1;
    let mut bytes = std::fs::read(format!("/{libc}")).unwrap();
    let dir = TempDir::new();
    let path = dir.path().join("library");
    let offset = |bytes: &[u8]| {
        let mut found = None;
        symbols::for_each_function(bytes, &mut |symbol| {
            if symbol.name == b"getppid" {
                found = Some(symbol.offset);
            }
        })
        .unwrap();
        found.unwrap()
    };
    let by_event = |place: Uprobe| place.attach_by(Mechanism::ProbeEvent);
    let manager = Manager::builder()
        .probe(
            Probe::new("on_uprobe")
                .uid("symbol")
                .hook(by_event(Uprobe::symbol(&path, "getppid"))),
        )
        .probe(
            Probe::new("on_uprobe")
                .uid("start")
                .hook(by_event(Uprobe::offset(&path, 0))),
        )
        .build()
        .unwrap();
    let file = mount_of("tracefs").unwrap().join("uprobe_events");
    let place = path.to_str().unwrap().to_owned() + ":";
    let mut seen = Vec::new();
    let first = offset(&bytes);
    for _ in 0..2 {
        let expected = offset(&bytes);
        seen.push(expected);
        std::fs::write(&path, &bytes).unwrap();
        manager.init(&probes_object()).unwrap();
        manager.start().unwrap_or_else(|e| panic!("{e}"));
        let listed = std::fs::read_to_string(&file).unwrap();
        let places = listed.lines().filter_map(|line| line.split_once(&place));
        let places = places.map(|(_, offset)| {
            let digits = offset.split([' ', '(']).next().unwrap();
            u64::from_str_radix(digits.trim_start_matches("0x"), 16).unwrap()
        });
        let mut places: Vec<u64> = places.collect();
        places.sort_unstable();
        assert_eq!(places, [0, expected], "{listed}");
        manager.stop().unwrap();
        // The next library has the function 16 bytes further on.
        move_symbols(&mut bytes, first, 16);
    }
    assert_eq!(seen, [first, first + 16]);
}

/// Moves what the symbol tables say is at `from`.
fn move_symbols(bytes: &mut [u8], from: u64, by: u64) {
    // `st_value`, in a C library the same as the offset, behind an index of a
    // section; then a size.
    let value = from.to_ne_bytes();
    let places: Vec<usize> = (0..bytes.len() - 16)
        .step_by(8)
        .filter(|at| bytes[*at..*at + 8] == value)
        .filter(|at| {
            let size = u64::from_ne_bytes(*bytes[at + 8..].first_chunk().unwrap());
            (1..256).contains(&size)
        })
        .collect();
    for at in places {
        bytes[at..at + 8].copy_from_slice(&(from + by).to_ne_bytes());
    }
}

/// The original had one socket for whatever had no number of its own: the
/// host's.
#[test]
fn trap_namespaces_are_told_apart() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let all: [NetNs; 2] = [NetNs::with_veth().0, NetNs::with_veth().0];
    let namespaces = [&all[0], &all[1]].map(|ns| {
        let fd = std::os::fd::AsFd::as_fd(ns).try_clone_to_owned();
        NetNamespace::from_fd(fd.unwrap()).unwrap()
    });
    let options = XdpOptions {
        mode: XdpMode::Generic,
        ..XdpOptions::default()
    };
    // The same name, and likely the same number, in both.
    let probe = |uid: &str, namespace: &NetNamespace| {
        let interface = Interface::from("veth0").in_namespace(namespace);
        let probe = Probe::new("manage_frames").uid(uid);
        probe.hook(Hook::xdp_with(interface, options))
    };
    let manager = initialised(
        builder()
            .probe(probe("a", &namespaces[0]))
            .probe(probe("b", &namespaces[1])),
    );
    manager.start().unwrap();
    let has = |uid: &str| manager.probe(ProbeId::new("manage_frames", uid)).is_some();
    let attached = |uid: &str| manager.is_attached(ProbeId::new("manage_frames", uid));
    assert!(attached("a").unwrap() && attached("b").unwrap());
    assert!(all.iter().all(common::cycle::has_xdp));
    manager.clean_up_namespace(&namespaces[0]).unwrap();
    assert_eq!((has("a"), has("b")), (false, true));
    assert!(attached("b").unwrap());
    assert_eq!(
        [&all[0], &all[1]].map(common::cycle::has_xdp),
        [false, true]
    );
    manager.stop().unwrap();
    assert!(!common::cycle::has_xdp(&all[1]));
}

/// The original gave up the specification of a function that only copies are
/// of.
#[test]
fn trap_function_of_copies_can_be_cloned() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let copy = |uid: &str| Probe::new("manage_constant").uid(uid).optional();
    let manager = initialised(
        builder()
            .keep_specs()
            .constant("answer", 5_u32)
            .probe(copy("two").copied())
            .probe(Probe::new("manage_calls"))
            .select(Selector::best_effort([Selector::probe(ProbeId::new(
                "manage_constant",
                "two",
            ))])),
    );
    let clone = ProgramClone::new().constant("answer", 9_u32);
    manager.clone_program(copy("three"), clone).unwrap();
    assert_eq!(run(&manager, "manage_constant_two"), 5);
    assert_eq!(run(&manager, "manage_constant_three"), 9);
    let spec = manager.program_spec("manage_constant").unwrap();
    assert_eq!(spec.name, "manage_constant");
    // Nor of one that nothing asked for.
    manager
        .update_activated(&[Selector::probe("manage_calls")])
        .unwrap();
    manager.start().unwrap();
    assert_runs(&manager, true);
    manager.stop().unwrap();
}
