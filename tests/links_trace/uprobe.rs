//! Probes of functions in files, one by one, many at a time and in sessions.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use common::{PERF_LINK, UPROBE, UPROBE_MULTI, mount_of};
use ebpf_manager::bpf::{Closing, SysError, Uprobe, UprobeMulti, remove_stale_probe_events};
use ebpf_manager::{Hook, Manager, ObjectSource, Probe};
use ebpf_manager_sys::{mntns, proc};

use super::*;

const UPROBE_EVENTS: Feature = UPROBE.mounted("tracefs");

const UPROBE_SESSION: Feature =
    Feature::new("uprobe.session", 6, 13).config(&["CONFIG_UPROBES", "CONFIG_UPROBE_EVENTS"]);

#[test]
fn links_trace_uprobe_session() {
    if !require(&UPROBE_MULTI) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&["on_uprobe_session"]);
    let program = fixture.program("on_uprobe_session");
    let probe = UprobeMulti::symbols("/proc/self/exe", [probed_symbol()]);
    if common::kernel_version() < (6, 13) {
        let err = Link::uprobe_multi(program, &probe).unwrap_err();
        assert!(matches!(err, LinkError::Unsupported { .. }), "{err}");
    } else if require(&UPROBE_SESSION) {
        conformance(&fixture, Mechanism::UprobeMulti, 2, &call_probed, &|| {
            Link::uprobe_multi(program, &probe)
        });
    }
}

/// Where the probe unit is missing the reason stays in the error, even if an
/// event in tracefs was made and then something else was wanting.
#[test]
fn links_trace_uprobe_errors_tell_every_way_tried() {
    if !require(&UPROBE_EVENTS) || !require(&PERF_LINK) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let symbol = probed_symbol();
    let attach = || {
        let units = "/sys/bus/event_source/devices";
        mntns::mount_privately("tmpfs", std::path::Path::new(units)).unwrap();
        let mut errors = Vec::new();
        let attach = || {
            let probe = Uprobe::symbol("/proc/self/exe", &symbol);
            Link::uprobe(fixture.program("on_uprobe"), &probe)
        };
        let before = proc::descriptor_limit().unwrap();
        let free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
        for soft in (u64::try_from(free).unwrap()..).take(64) {
            proc::set_descriptor_limit(proc::Rlimit { soft, ..before }).unwrap();
            let result = attach();
            proc::set_descriptor_limit(before).unwrap();
            match result {
                Ok(link) => {
                    assert_eq!(link.mechanism(), Mechanism::ProbeEvent);
                    let [(way, err)] = link.fallbacks() else {
                        panic!("{:?}", link.fallbacks());
                    };
                    assert!(
                        *way == "perf event" && err.is(Errno::ENOENT),
                        "{way}: {err}"
                    );
                    return errors;
                }
                Err(err) => errors.push(err.to_string()),
            }
        }
        panic!("{errors:?}");
    };
    let errors = std::thread::scope(|scope| scope.spawn(attach).join().unwrap());
    let at_the_link: Vec<_> = errors
        .iter()
        .filter(|err| err.contains("perf event link: "))
        .collect();
    assert!(!at_the_link.is_empty(), "{errors:?}");
    for err in at_the_link {
        assert!(err.contains("by perf event: open"), "{err}");
        assert!(err.contains("ENOENT"), "{err}");
    }
}

#[test]
fn links_trace_many_links_are_detached_together() {
    if !require(&UPROBE_MULTI) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&["on_uprobe_multi"]);
    let program = fixture.program("on_uprobe_multi");
    let symbol = probed_symbol();
    let attach = |count: u64| -> Vec<Link> {
        let probe = UprobeMulti::symbols("/proc/self/exe", [&symbol]);
        let link = |_| Link::uprobe_multi(program, &probe).unwrap();
        let links = (0..count).map(link).collect();
        assert_eq!(fixture.counted(&call_probed), count);
        links
    };
    // One after the other, and by threads.
    for count in [0, 1, 7, 24] {
        assert_eq!(Link::detach_all(attach(count)), []);
        assert_eq!(fixture.counted(&call_probed), 0, "{count}");
    }
    // Without waiting.
    let closing = Closing::start(attach(24));
    assert_eq!(closing.wait_until(std::time::Instant::now()), []);
    let left = closing.left();
    assert!(left.iter().all(|place| *place < 24), "{left:?}");
    assert_eq!(closing.clone().wait(), []);
    assert!(closing.is_done() && closing.left().is_empty());
    assert_eq!(fixture.counted(&call_probed), 0);
}

fn uprobe_by(mechanism: Mechanism) {
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_uprobe");
    let symbol = probed_symbol();
    let own = std::process::id();
    let entry = Uprobe::symbol("/proc/self/exe", &symbol).attach_by(mechanism);
    conformance(&fixture, mechanism, 1, &call_probed, &|| {
        Link::uprobe(program, &entry)
    });
    conformance(&fixture, mechanism, 1, &call_probed, &|| {
        Link::uprobe(program, &entry.clone().on_return())
    });
    conformance(&fixture, mechanism, 1, &call_probed, &|| {
        Link::uprobe(program, &entry.clone().pid(own))
    });
    // A library by its name.
    let library = Uprobe::symbol("libc.so.6", "getpid")
        .pid(own)
        .attach_by(mechanism);
    conformance(&fixture, mechanism, 1, &getpid, &|| {
        Link::uprobe(program, &library)
    });
    // Another process's probe does not fire here.
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    let path = std::fs::read_link("/proc/self/exe").unwrap();
    let elsewhere = Uprobe::symbol(path, &symbol).pid(child.id());
    let link = Link::uprobe(program, &elsewhere.attach_by(mechanism));
    let count = fixture.counted(&call_probed);
    drop(link.unwrap_or_else(|e| panic!("{mechanism}: {e}")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(count, 0);
}

#[test]
fn links_trace_uprobe_by_link() {
    if !require(&PERF_LINK) || !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    uprobe_by(Mechanism::PerfEventLink);
    let fixture = Fixture::load(&["on_cookie"]);
    let program = fixture.program("on_cookie");
    let probe = Uprobe::symbol("/proc/self/exe", probed_symbol()).cookie(0xc00_c1e5);
    let link = Link::uprobe(program, &probe).unwrap();
    assert_eq!(link.mechanism(), Mechanism::PerfEventLink, "the newest");
    assert_eq!(fixture.counted(&call_probed), 1);
    assert_eq!(fixture.variable("last_cookie"), 0xc00_c1e5);
    drop(link);
    if mount_of("bpf").is_some() {
        conformance_of_kernel_links(&fixture, 1, &call_probed, &|| Link::uprobe(program, &probe));
    }
}

#[test]
fn links_trace_uprobe_by_ioctl() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    uprobe_by(Mechanism::PerfEventIoctl);
    let fixture = Fixture::load(&[]);
    let probe = Uprobe::symbol("/proc/self/exe", probed_symbol())
        .cookie(1)
        .attach_by(Mechanism::PerfEventIoctl);
    let err = Link::uprobe(fixture.program("on_uprobe"), &probe).unwrap_err();
    assert!(matches!(err, LinkError::Unsupported { .. }), "{err}");
}

#[test]
fn links_trace_uprobe_by_tracefs() {
    if !require(&UPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    uprobe_by(Mechanism::ProbeEvent);
    // The kernel refuses the program where it knows multi links: the event
    // that was made for it is gone again, which the leak check sees.
    let fixture = Fixture::load(&[]);
    let probe = Uprobe::symbol("/proc/self/exe", probed_symbol());
    let probe = probe.attach_by(Mechanism::ProbeEvent);
    drop(Link::uprobe(fixture.program("on_uprobe_multi"), &probe));
}

/// In the file, because it is not zero.
#[used]
static SEMAPHORE: AtomicU16 = AtomicU16::new(1);

/// File offset of the semaphore.
fn semaphore_offset() -> u64 {
    let address = (&raw const SEMAPHORE) as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let offset = maps.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let base = hex(fields.nth(1)?);
        (hex(start)..hex(end))
            .contains(&address)
            .then(|| address - hex(start) + base)
    });
    offset.expect("the semaphore is mapped")
}

#[test]
fn links_trace_uprobe_counts_in_its_semaphore() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_uprobe");
    let probe = Uprobe::symbol("/proc/self/exe", probed_symbol()).ref_counter(semaphore_offset());
    for mechanism in [Mechanism::PerfEventIoctl, Mechanism::ProbeEvent] {
        if mechanism == Mechanism::ProbeEvent && mount_of("tracefs").is_none() {
            continue;
        }
        let link = Link::uprobe(program, &probe.clone().attach_by(mechanism)).unwrap();
        // Some kernels count the registration and the opening.
        let held = SEMAPHORE.load(Ordering::Relaxed);
        assert!((2..=3).contains(&held), "{mechanism}: {held}");
        assert_eq!(fixture.counted(&call_probed), 1);
        link.detach().unwrap();
        assert_eq!(SEMAPHORE.load(Ordering::Relaxed), 1, "{mechanism}");
    }
}

#[test]
fn links_trace_uprobe_multi() {
    if !require(&UPROBE_MULTI) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_uprobe_multi");
    uprobe_many(&fixture, program, Mechanism::UprobeMulti, None);
    let probe = UprobeMulti::symbols("/proc/self/exe", symbols_with("probed_function"));
    if mount_of("bpf").is_some() {
        conformance_of_kernel_links(&fixture, 2, &call_both, &|| {
            Link::uprobe_multi(program, &probe)
        });
    }
}

#[test]
fn links_trace_many_uprobes_on_old_kernels() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let by = Mechanism::PerfEventIoctl;
    uprobe_many(&fixture, fixture.program("on_uprobe"), by, Some(by));
}

/// No kernel attaches to many what was not loaded for that.
#[test]
fn links_trace_uprobe_says_what_was_tried_before() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let probe = UprobeMulti::symbols("/proc/self/exe", symbols_with("probed_function"));
    let is_right = |mechanism: Mechanism, fallbacks: &[(&'static str, SysError)]| {
        let (first, others) = fallbacks.split_first().expect("a multi link was tried");
        assert_eq!(first.0, "uprobe.multi");
        assert!(first.1.is(Errno::EINVAL) || first.1.is(Errno::E2BIG));
        match (mechanism, others) {
            (Mechanism::PerfEventLink, []) => {}
            (Mechanism::PerfEventIoctl, [(how, answer)]) => {
                assert_eq!(*how, "perf event link");
                assert!(answer.is(Errno::EINVAL), "{answer}");
            }
            _ => panic!("{mechanism} after {fallbacks:?}"),
        }
    };
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_uprobe");
    let link = Link::uprobe_multi(program, &probe).unwrap();
    is_right(link.mechanism(), link.fallbacks());
    link.detach().unwrap();
    let by = probe.clone().attach_by(Mechanism::PerfEventIoctl);
    let link = Link::uprobe_multi(program, &by).unwrap();
    assert_eq!(link.fallbacks(), []);
    link.detach().unwrap();

    let manager = Manager::builder()
        .probe(Probe::new("on_uprobe").hook(Hook::uprobe_multi(probe)))
        .build()
        .unwrap();
    manager
        .init(&ObjectSource::path(testdata("probes.bpf.o")))
        .unwrap();
    let outcome = || manager.probes()[0].1.clone();
    manager.start().unwrap();
    let attached = outcome().attached().cloned().unwrap();
    is_right(attached.mechanism, &attached.fallbacks);
    let said = outcome().to_string();
    assert!(said.contains(" (after uprobe.multi: E"), "{said}");
    manager.pause().unwrap();
    assert_eq!(outcome().attached(), None);
    manager.resume().unwrap();
    assert_eq!(outcome().to_string(), said);
    manager.stop().unwrap();
}

fn uprobe_many(fixture: &Fixture, program: &Program, is: Mechanism, by: Option<Mechanism>) {
    let forced = |mut probe: UprobeMulti| {
        probe.by = by;
        probe
    };
    let names = symbols_with("probed_function");
    assert_eq!(names.len(), 2, "{names:?}");
    let exe = "/proc/self/exe";
    let own = std::process::id();
    conformance(fixture, is, 2, &call_both, &|| {
        Link::uprobe_multi(program, &forced(UprobeMulti::symbols(exe, names.clone())))
    });
    conformance(fixture, is, 2, &call_both, &|| {
        let probe = UprobeMulti::pattern(exe, "*probed_function*").pid(own);
        Link::uprobe_multi(program, &forced(probe.on_return()))
    });
}

#[test]
fn links_trace_uprobe_errors_say_what_to_do() {
    if !require(&UPROBE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_uprobe");
    let attach = |probe: &Uprobe| Link::uprobe(program, probe).map(drop).unwrap_err();
    let err = attach(&Uprobe::symbol("/proc/self/exe", "no_such_function"));
    assert!(matches!(err, LinkError::Symbol { .. }), "{err}");
    assert!(err.to_string().contains("no_such_function"), "{err}");
    let err = attach(&Uprobe::symbol("/nowhere/at/all", "main"));
    assert!(err.is(Errno::ENOENT), "{err}");
    let err = attach(&Uprobe::symbol("libnowhere.so.9", "main"));
    assert!(err.is(Errno::ENOENT), "{err}");
    // An object is not a program.
    let err = attach(&Uprobe::symbol(testdata("probes.bpf.o"), "on_uprobe"));
    assert!(matches!(err, LinkError::Symbol { .. }), "{err}");
    let err = attach(&Uprobe::offset("/proc/self/exe", 1 << 40));
    assert!(matches!(err, LinkError::Attach { .. }), "{err}");
}

#[test]
fn links_trace_stale_events_are_removed() {
    if !require(&UPROBE_EVENTS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let file = mount_of("tracefs").unwrap().join("uprobe_events");
    let listed = || std::fs::read_to_string(&file).unwrap();
    let probe = Uprobe::symbol("/proc/self/exe", probed_symbol()).attach_by(Mechanism::ProbeEvent);
    let link = Link::uprobe(fixture.program("on_uprobe"), &probe).unwrap();
    // What a test that was killed left, too.
    remove_stale_probe_events().unwrap();
    let before = listed();
    let own = format!(":ebpf_manager_{}_", std::process::id());
    let line = before.lines().find(|l| l.contains(&own));
    let (head, place) = line.expect("the event is listed").split_once(' ').unwrap();
    let group = head.split([':', '/']).nth(1).unwrap();
    let numbers: Vec<&str> = group.rsplit('_').collect();
    let [_, namespace, start, pid, ..] = numbers.as_slice() else {
        panic!("{group}");
    };
    assert_eq!(pid, &std::process::id().to_string());
    let add = |group: &str| {
        let line = format!("p:{group}/left_behind {place}");
        let mut events = std::fs::OpenOptions::new().append(true).open(&file);
        std::io::Write::write_all(events.as_mut().unwrap(), line.as_bytes()).unwrap();
    };
    let remove = |group: &str| {
        let line = format!("-:{group}/left_behind");
        let mut events = std::fs::OpenOptions::new().append(true).open(&file);
        std::io::Write::write_all(events.as_mut().unwrap(), line.as_bytes())
    };
    // This number at an earlier time; a number nobody has; another namespace;
    // another program.
    let recycled = format!("ebpf_manager_{pid}_1_{namespace}_0");
    let dead = format!("ebpf_manager_99999999_{start}_{namespace}");
    let elsewhere = format!("ebpf_manager_99999999_{start}_1");
    let foreign = format!("other_manager_99999999_{start}_{namespace}");
    for group in [&recycled, &dead, &elsewhere, &foreign] {
        add(group);
    }
    let removed = remove_stale_probe_events();
    let after = listed();
    let kept = [remove(&elsewhere), remove(&foreign)];
    let gone = [remove(&recycled), remove(&dead)];
    assert_eq!(removed, Ok(2));
    assert!(after.contains(group), "the living keep theirs: {after}");
    assert!(kept.iter().all(Result::is_ok), "{after}");
    assert!(gone.iter().all(Result::is_err), "{after}");
    assert_eq!(remove_stale_probe_events(), Ok(0));
    assert_eq!(fixture.counted(&call_probed), 1);
    link.detach().unwrap();
    assert!(!listed().contains(group), "{}", listed());
}
