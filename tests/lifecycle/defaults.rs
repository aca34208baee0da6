//! What is said once for all probes, buffers and loads of a manager.

use common::{KPROBE, Random, TRAMPOLINE, TempDir, UPROBE, mount_of};
use ebpf_manager::bpf::{
    AttachTo, Kprobe, LinkError, MapType, PerfBufferOptions, Uprobe, Wakeup, syscall_function,
};
use ebpf_manager::elf::section::{self, SectionKind};
use ebpf_manager::{MapOptions, ProbeError, ProgramClone, Sink, Stream};

use super::*;

const UPROBE_EVENTS: Feature = UPROBE.mounted("tracefs");
const KPROBE_EVENTS: Feature = KPROBE.mounted("tracefs");

fn started(builder: Builder) -> Manager {
    let manager = builder.build().unwrap();
    manager
        .init(&ObjectSource::path(testdata("probes.bpf.o")))
        .unwrap_or_else(|e| panic!("{e}"));
    manager.start().unwrap_or_else(|e| panic!("{e}"));
    manager
}

fn mechanisms(manager: &Manager) -> Vec<Option<Mechanism>> {
    let probes = manager.probes();
    let outcomes = probes.iter().map(|(_, outcome)| outcome.attached());
    outcomes.map(|way| Some(way?.mechanism)).collect()
}

/// Lines of a file of probe events that are of this process and this uid.
fn events(file: &str, uid: &str) -> Vec<String> {
    let path = mount_of("tracefs").unwrap().join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let end = format!("_{uid}_{}", std::process::id());
    let lines = text.lines();
    lines
        .filter(|line| {
            line.split(' ')
                .next()
                .is_some_and(|name| name.ends_with(&end))
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn uprobes_are_attached_as_the_manager_says() {
    if !require(&UPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let uid = format!("u{:x}", Random::from_environment().next() & 0xffff);
    let place = Uprobe::symbol("libc.so.6", "getpid");
    let newest = if common::kernel_version() >= (5, 15) {
        Mechanism::PerfEventLink
    } else {
        Mechanism::PerfEventIoctl
    };
    let manager = started(
        Manager::builder()
            .uprobes_by(Mechanism::ProbeEvent)
            .probe(Probe::new("on_uprobe").uid(&uid).hook(place.clone()))
            // Its section says where.
            .probe(Probe::new("on_libc").uid(&uid))
            // What it says itself counts more.
            .probe(
                Probe::new("on_uprobe")
                    .uid("own")
                    .hook(place.attach_by(newest)),
            ),
    );
    let by_event = Some(Mechanism::ProbeEvent);
    assert_eq!(mechanisms(&manager), [by_event, by_event, Some(newest)]);
    assert_eq!(events("uprobe_events", &uid).len(), 2, "by their uid");
    manager.stop().unwrap();
    assert!(events("uprobe_events", &uid).is_empty());
}

#[test]
fn kprobes_are_attached_as_the_manager_says() {
    if !require(&KPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let place = || Kprobe::syscall("getpid");
    let probes = |builder: Builder| {
        started(
            builder
                .probe(Probe::new("on_kprobe").uid("entry").hook(place()))
                .probe(Probe::new("on_kprobe").uid("all").hook(place().on_return()))
                // Its section says where.
                .probe(Probe::new("on_kretsyscall").uid("named"))
                .probe(Probe::new("on_kprobe").uid("few").hook({
                    let returns = place().on_return();
                    returns.maxactive(7)
                })),
        )
    };
    let manager = probes(Manager::builder().kprobe_maxactive(33));
    for (uid, start) in [("all", "r33:"), ("named", "r33:"), ("few", "r7:")] {
        let found = events("kprobe_events", uid);
        assert!(found.len() == 1 && found[0].starts_with(start), "{found:?}");
    }
    // A perf event is newer than events in tracefs.
    let expected = events("kprobe_events", "entry");
    assert!(expected.is_empty(), "{expected:?}");
    manager.stop().unwrap();

    let manager = probes(Manager::builder().kprobes_by(Mechanism::ProbeEvent));
    assert_eq!(mechanisms(&manager), [Some(Mechanism::ProbeEvent); 4]);
    for (uid, start) in [
        ("all", "r"),
        ("named", "r"),
        ("entry", "p:"),
        ("few", "r7:"),
    ] {
        let found = events("kprobe_events", uid);
        assert!(found.len() == 1 && found[0].starts_with(start), "{found:?}");
    }
    manager.stop().unwrap();
}

/// Whatever can be attached on this kernel: the file is looked at first.
#[test]
fn system_calls_are_looked_for_in_the_symbol_file() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::new();
    let file = dir.path().join("symbols");
    let function = syscall_function("getpid").unwrap();
    std::fs::write(&file, format!("1000 T {function}\n")).unwrap();
    let manager = started(
        Manager::builder()
            .symbol_file(&file)
            .probe(Probe::new("on_ksyscall").optional())
            .probe(
                Probe::new("on_kprobe")
                    .hook(Kprobe::syscall("getppid"))
                    .optional(),
            ),
    );
    let outcomes = manager.probes();
    let [(_, known), (_, unknown)] = outcomes.as_slice() else {
        panic!("{outcomes:?}")
    };
    // Without kprobes it gets as far as that.
    let is_known = match known.error() {
        None => known.attached().is_some(),
        Some(error) => !error.to_string().contains("system call"),
    };
    assert!(is_known, "{known}");
    let Some(ProbeError::Attach(error)) = unknown.error() else {
        panic!("{unknown}")
    };
    assert!(
        matches!(
            **error,
            LinkError::NoTarget {
                kind: "system call",
                ..
            }
        ),
        "{unknown}"
    );
    manager.stop().unwrap();
}

#[test]
fn buffers_are_of_the_size_that_the_manager_says() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let of_bytes = |bytes_per_cpu| PerfBufferOptions {
        bytes_per_cpu,
        wakeup: Wakeup::Bytes(4096),
        ..PerfBufferOptions::default()
    };
    let ignore = || Sink::handler(|_| ());
    let size = |manager: &Manager, map: &str| {
        wait_until("it is read", || {
            manager
                .stream_stats(map)
                .is_some_and(|stats| stats.size_bytes > 0)
        });
        manager.stream_stats(map).unwrap().size_bytes
    };
    let initialised = |builder: Builder, object: &str| {
        let manager = builder.build().unwrap();
        manager.init(&ObjectSource::path(testdata(object))).unwrap();
        manager.start().unwrap();
        manager
    };
    for (options, expected) in [(None, 128 << 10), (Some(of_bytes(32 << 10)), 32 << 10)] {
        let manager = initialised(
            // Whichever is said first.
            Manager::builder()
                .stream(Stream::perf_buffer("buffers", options, ignore()))
                .perf_buffers(of_bytes(128 << 10)),
            "perfbuf.bpf.o",
        );
        assert_eq!(size(&manager, "buffers"), expected);
        let later = Stream::perf_buffer("later", None, ignore());
        manager
            .clone_buffer("buffers", &MapOptions::new(), later)
            .unwrap();
        assert_eq!(size(&manager, "later"), 128 << 10);
        manager.stop().unwrap();
    }
    let manager = initialised(
        Manager::builder().stream(Stream::perf_buffer("buffers", None, ignore())),
        "perfbuf.bpf.o",
    );
    assert_eq!(size(&manager, "buffers"), 64 << 10);
    manager.stop().unwrap();
}

/// The original's default and the buffer's own size were never looked at.
#[test]
fn trap_ring_buffer_has_the_size_that_was_asked_for() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let size = |builder: Builder| {
        let manager = builder.ring_buffer_bytes(128 << 10).build().unwrap();
        manager.init(&generator_object()).unwrap();
        manager.start().unwrap();
        let ring = manager.map("ring").unwrap();
        assert_eq!(ring.map_type(), MapType::RINGBUF);
        manager.stop().unwrap();
        ring.max_entries()
    };
    let without = || {
        Manager::builder().edit_object(|object| {
            let mut maps = object.maps_mut().iter_mut();
            maps.find(|map| map.name == "ring").unwrap().max_entries = 0;
            Ok(())
        })
    };
    assert_eq!(size(without()), 128 << 10);
    let edited = without().edit_map("ring", |spec| spec.max_entries = 8192);
    assert_eq!(size(edited), 8192);
    let declared = size(Manager::builder());
    assert_eq!(declared, 64 << 10, "the object says how large");
}

#[test]
fn sections_mean_what_the_declaration_says() {
    const NAME: &str = "?raw_tp/no_such_event";

    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let declared = || {
        Manager::builder()
            .probe(Probe::new("attach_missing_raw"))
            .constant("target_tgid", std::process::id())
    };
    let absent = declared().build().unwrap();
    absent.init(&attach_object()).unwrap();
    absent.start().unwrap_err();
    absent.stop().unwrap();
    let typed = |target: &'static str| {
        declared().section_types(move |name| {
            let kind = section::parse("tracepoint");
            let target = Some(target);
            (name == NAME).then_some(SectionKind { target, ..kind })
        })
    };
    for builder in [
        typed("sched/sched_process_fork"),
        declared().section_hooks(|name| (name == NAME).then(|| Hook::raw_tracepoint("sys_enter"))),
        typed("nothing/at_all").section_hooks(|name| {
            (name == NAME).then(|| Hook::tracepoint("sched", "sched_process_fork"))
        }),
    ] {
        let manager = builder.build().unwrap();
        manager.init(&attach_object()).unwrap();
        manager.start().unwrap_or_else(|e| panic!("{e}"));
        assert!(manager.is_attached("attach_missing_raw").unwrap_or(true));
        manager.stop().unwrap();
    }
    // A hook that asks the section again gets what the section says.
    let asking = declared().section_hooks(|_| Some(Hook::section()));
    let manager = asking.build().unwrap();
    manager.init(&attach_object()).unwrap();
    let err = manager.start().unwrap_err();
    assert!(matches!(err, ManagerError::Attach { .. }), "{err}");
    manager.stop().unwrap();
}

#[test]
fn options_of_the_loader_are_all_within_reach() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let seen = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&seen);
    let manager = Manager::builder()
        .keep_specs()
        .log_limit(1 << 20)
        .load_options(move |options| {
            assert_eq!(options.log_limit_bytes, 1 << 20, "what is said before");
            counter.fetch_add(1, Ordering::Relaxed);
            options.kernel_config = Some(b"CONFIG_T_BOOL=m\n".to_vec());
        })
        .build()
        .unwrap();
    let err = manager
        .init(&ObjectSource::path(testdata("kconfig.bpf.o")))
        .unwrap_err();
    assert!(err.to_string().contains("CONFIG_T_BOOL"), "{err}");
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    // For clones, too.
    manager.init(&attach_object()).unwrap();
    let clone = Probe::new("attach_enter").uid("again");
    manager.clone_program(clone, ProgramClone::new()).unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 3);
    manager.stop().unwrap();
}

#[test]
fn clones_go_where_the_declaration_says() {
    if !require(&TRAMPOLINE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let to = |program, function| move || Ok(AttachTo::kernel(program, function));
    let manager = Manager::builder()
        .keep_specs()
        .probe(Probe::new("on_fentry"))
        .attach_to(to("on_fentry", "vfs_read"))
        .build()
        .unwrap();
    manager
        .init(&ObjectSource::path(testdata("typed.bpf.o")))
        .unwrap();
    manager.start().unwrap();
    // Its section names no function.
    manager
        .clone_program(Probe::new("on_fentry").uid("two"), ProgramClone::new())
        .unwrap();
    let two = manager.probe(ebpf_manager::ProbeId::new("on_fentry", "two"));
    assert!(two.unwrap().is_running());
    manager.stop().unwrap();
}
