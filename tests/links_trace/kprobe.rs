//! Probes of kernel functions, one by one, many at a time and in sessions.

use common::{KPROBE, KPROBE_MULTI, KPROBE_PMU, ROOT, mount_of};
use ebpf_manager::bpf::{Cure, Kprobe, KprobeMulti};
use ebpf_manager::{Manager, ObjectSource, Outcome, Probe};

use super::*;

/// A link on a kprobe's perf event.
const KPROBE_LINK: Feature =
    Feature::new("perf_event link", 5, 15).config(&["CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS"]);

/// Events in tracefs.
const KPROBE_EVENTS: Feature = KPROBE.mounted("tracefs");

/// Programs at entry and return of each call.
const KPROBE_SESSION: Feature =
    Feature::new("kprobe.session", 6, 10).config(&["CONFIG_KPROBES", "CONFIG_FPROBE"]);

#[test]
fn links_trace_kprobe_session() {
    if !require(&KPROBE_MULTI) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&["on_kprobe_session"]);
    let program = fixture.program("on_kprobe_session");
    let probe = KprobeMulti::symbols([syscall_function("getpid").unwrap()]);
    if common::kernel_version() < (6, 10) {
        let err = Link::kprobe_multi(program, &probe).unwrap_err();
        assert!(matches!(err, LinkError::Unsupported { .. }), "{err}");
    } else if require(&KPROBE_SESSION) {
        conformance(&fixture, Mechanism::KprobeMulti, 2, &getpid, &|| {
            Link::kprobe_multi(program, &probe)
        });
    }
}

fn kprobe_by(mechanism: Mechanism) {
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe");
    conformance(&fixture, mechanism, 1, &getpid, &|| {
        Link::kprobe(program, &Kprobe::syscall("getpid").attach_by(mechanism))
    });
    conformance(&fixture, mechanism, 1, &getpid, &|| {
        let probe = Kprobe::syscall("getpid").on_return();
        Link::kprobe(program, &probe.attach_by(mechanism))
    });
}

#[test]
fn links_trace_kprobe_by_link() {
    if !require(&KPROBE_LINK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    kprobe_by(Mechanism::PerfEventLink);
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe");
    let probe = Kprobe::syscall("getpid");
    let link = Link::kprobe(program, &probe).unwrap();
    assert_eq!(link.mechanism(), Mechanism::PerfEventLink, "the newest");
    drop(link);
    if mount_of("bpf").is_some() {
        conformance_of_kernel_links(&fixture, 1, &getpid, &|| Link::kprobe(program, &probe));
    }
}

#[test]
fn links_trace_kprobe_by_ioctl() {
    if !require(&KPROBE_PMU) {
        return;
    }
    let _leaks = LeakCheck::begin();
    kprobe_by(Mechanism::PerfEventIoctl);
}

#[test]
fn links_trace_kprobe_by_tracefs() {
    if !require(&KPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    kprobe_by(Mechanism::ProbeEvent);
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe");
    // maxactive has no other way.
    conformance(&fixture, Mechanism::ProbeEvent, 1, &getpid, &|| {
        let probe = Kprobe::syscall("getpid").on_return().maxactive(17);
        Link::kprobe(program, &probe)
    });
    let probe = Kprobe::syscall("getpid")
        .on_return()
        .maxactive(17)
        .label("my-label");
    let link = Link::kprobe(program, &probe).unwrap();
    let events = std::fs::read_to_string(mount_of("tracefs").unwrap().join("kprobe_events"));
    let events = events.unwrap();
    let line = events
        .lines()
        .find(|line| line.starts_with("r17:ebpf_manager_"));
    let name = line.unwrap().split(['/', ' ']).nth(1).unwrap();
    let function = syscall_function("getpid").unwrap();
    assert_eq!(
        name,
        format!("r_{function}_my_label_{}", std::process::id())
    );
    let err = link.pin("/sys/fs/bpf/unused".as_ref()).unwrap_err();
    assert!(matches!(err, LinkError::Impossible { .. }), "{err}");
}

#[test]
fn links_trace_kprobe_inside_a_function() {
    if !require(&KPROBE_PMU) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe");
    let symbol = syscall_function("getpid").unwrap();
    let mut fired = 0;
    let mut refused = 0;
    for offset in 1..12 {
        match Link::kprobe(program, &Kprobe::new(&symbol).offset(offset)) {
            Ok(_link) => fired += fixture.counted(&getpid),
            Err(LinkError::Attach {
                cure: Some(Cure::NotTraceable),
                ..
            }) => refused += 1,
            Err(err) => panic!("{err}"),
        }
    }
    assert!(fired > 0 && refused > 0, "{fired} fired, {refused} refused");
}

#[test]
fn links_trace_kprobe_errors_say_what_to_do() {
    if !require(&KPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe");
    for by in [None, Some(Mechanism::ProbeEvent)] {
        let mut probe = Kprobe::new("no_such_function_anywhere");
        probe.by = by;
        let err = Link::kprobe(program, &probe).unwrap_err();
        assert!(
            matches!(
                &err,
                LinkError::Attach {
                    cure: Some(Cure::NoSuchSymbol { similar }),
                    ..
                } if similar.is_empty()
            ),
            "{err}"
        );
    }
    // Marked nokprobe on every kernel.
    let err = Link::kprobe(program, &Kprobe::new("do_int3")).map(drop);
    if let Err(err) = err {
        assert!(
            matches!(
                &err,
                LinkError::Attach {
                    cure: Some(Cure::NotTraceable | Cure::NoSuchSymbol { .. }),
                    ..
                }
            ),
            "{err}"
        );
    }
    let err = Link::kprobe(program, &Kprobe::syscall("no_such_call")).unwrap_err();
    assert!(
        matches!(
            err,
            LinkError::NoTarget {
                kind: "system call",
                ..
            }
        ),
        "{err}"
    );
    let err = Link::kprobe(program, &Kprobe::new("")).unwrap_err();
    assert!(err.is(Errno::EINVAL), "{err}");
    // A program that cannot be attached there: the event is gone again.
    let wrong = fixture.program("on_perf_event");
    let err = Link::kprobe(wrong, &Kprobe::syscall("getpid")).unwrap_err();
    assert!(matches!(err, LinkError::WrongType { .. }), "{err}");
}

#[test]
fn links_trace_no_kprobes_is_told() {
    if !require(&ROOT) || built_with("CONFIG_KPROBES") != Some(false) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let err = Link::kprobe(fixture.program("on_kprobe"), &Kprobe::new("vfs_read")).unwrap_err();
    assert!(
        matches!(
            &err,
            LinkError::Attach {
                cure: Some(Cure::NoKprobes),
                tried,
                ..
            } if tried.len() == 2
        ),
        "{err}"
    );
    assert!(err.to_string().contains("CONFIG_KPROBES"), "{err}");
}

#[test]
fn links_trace_kprobe_multi() {
    if !require(&KPROBE_MULTI) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_kprobe_multi");
    let names = ["getpid", "getppid"].map(|name| syscall_function(name).unwrap());
    let both = || {
        getpid();
        let _ = std::os::unix::process::parent_id();
    };
    conformance(&fixture, Mechanism::KprobeMulti, 2, &both, &|| {
        Link::kprobe_multi(program, &KprobeMulti::symbols(names.clone()))
    });
    conformance(&fixture, Mechanism::KprobeMulti, 2, &both, &|| {
        let probe = KprobeMulti::symbols(names.clone()).on_return();
        Link::kprobe_multi(program, &probe)
    });
    if mount_of("tracefs").is_some() {
        // The list has one name for each place: __do_sys_getpid, perhaps.
        let pattern = "__*_sys_getp*id";
        conformance(&fixture, Mechanism::KprobeMulti, 2, &both, &|| {
            Link::kprobe_multi(program, &KprobeMulti::pattern(pattern))
        });
        let err = Link::kprobe_multi(program, &KprobeMulti::pattern("no_such_*")).unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
    }
    let absent = KprobeMulti::symbols(["no_such_function_anywhere"]);
    let err = Link::kprobe_multi(program, &absent).unwrap_err();
    assert!(
        matches!(
            &err,
            LinkError::Attach {
                cure: Some(Cure::NoSuchSymbol { .. }),
                ..
            }
        ),
        "{err}"
    );
}

#[test]
fn links_trace_many_kprobes_on_old_kernels() {
    if !require(&KPROBE_PMU) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    // Loaded as a plain kprobe: no kernel takes it for a multi link.
    let program = fixture.program("on_kprobe");
    let names = ["getpid", "getppid"].map(|name| syscall_function(name).unwrap());
    let both = || {
        getpid();
        let _ = std::os::unix::process::parent_id();
    };
    conformance(&fixture, Mechanism::PerfEventIoctl, 2, &both, &|| {
        let probe = KprobeMulti::symbols(names.clone());
        Link::kprobe_multi(program, &probe.attach_by(Mechanism::PerfEventIoctl))
    });
    // The first one is taken back when the second fails.
    let names = [&names[0], "no_such_function_anywhere"];
    let err = Link::kprobe_multi(program, &KprobeMulti::symbols(names)).unwrap_err();
    assert!(matches!(err, LinkError::Attach { .. }), "{err}");
    assert_eq!(fixture.counted(&both), 0);
}

#[test]
fn links_trace_manager_attaches_system_calls() {
    if !require(&KPROBE_PMU) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = Manager::builder()
        .probe(Probe::new("on_ksyscall"))
        .probe(Probe::new("on_kretsyscall"))
        .constant("target_tgid", std::process::id())
        .build()
        .unwrap();
    manager
        .init(&ObjectSource::path(testdata("probes.bpf.o")))
        .unwrap();
    manager.start().unwrap();
    getpid();
    let hits: u64 = manager.variable("hits").unwrap().get().unwrap();
    assert!(hits >= 2, "{hits} hits");
    for (id, outcome) in manager.probes() {
        assert!(matches!(outcome, Outcome::Attached(_)), "{id}: {outcome}");
    }
    manager.stop().unwrap();
}
