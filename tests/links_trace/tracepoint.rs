//! Tracepoints and perf events.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::ROOT;
use ebpf_manager::bpf::{Cure, PerfHook};
use ebpf_manager_sys::abi::perf::{AttrFlags, OpenFlags, event_type, software};
use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn links_trace_writable_raw_tracepoint() {
    if !require(&ROOT) || common::kernel_version() < (5, 2) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&["on_raw_tp_writable"]);
    let program = fixture.program("on_raw_tp_writable");
    let link = Link::raw_tracepoint(program, "sys_enter").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(link.mechanism(), Mechanism::RawTracepointOpen);
    assert_eq!(fixture.counted(&getpid), 1);
    link.detach().unwrap();
    assert_eq!(fixture.counted(&getpid), 0);
}

#[test]
fn links_trace_perf_event() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_perf_event");
    let cpu = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let last: u32 = cpu
        .trim()
        .rsplit(['-', ','])
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let mut hooks = vec![
        PerfHook::cpu_clock(1000),
        PerfHook::cpu_clock(1000).attach_by(Mechanism::PerfEventIoctl),
        PerfHook::cpu_clock(1000).cpus((0..=last).collect::<Vec<_>>()),
    ];
    // The main thread of a test binary waits; this is another one.
    let tid = std::fs::read_link("/proc/thread-self").unwrap();
    let tid = tid.file_name().unwrap().to_str().unwrap().parse().unwrap();
    hooks.push(PerfHook::cpu_clock(1000).pid(tid));
    for hook in &hooks {
        let link = Link::perf_event(program, hook).unwrap_or_else(|e| panic!("{hook:?}: {e}"));
        if let Some(by) = hook.by {
            assert_eq!(link.mechanism(), by);
        }
        let start = fixture.hits();
        let deadline = Instant::now() + PATIENCE;
        while fixture.hits() == start {
            assert!(Instant::now() < deadline, "{hook:?} never fires");
        }
        link.detach().unwrap();
        let end = fixture.hits();
        let spin = Instant::now() + Duration::from_millis(50);
        while Instant::now() < spin {}
        assert_eq!(fixture.hits(), end, "{hook:?} fires on");
    }
    let hook = PerfHook::cpu_clock(1000).cpus([1 << 20]);
    let err = Link::perf_event(program, &hook).unwrap_err();
    assert!(matches!(err, LinkError::Attach { .. }), "{err}");
    let hook = PerfHook::software(9999, ebpf_manager::bpf::Sampling::Period(1));
    let err = Link::perf_event(program, &hook).unwrap_err();
    assert!(
        matches!(
            err,
            LinkError::Attach {
                cure: Some(Cure::NoSuchEvent),
                ..
            }
        ),
        "{err}"
    );
}

#[test]
fn links_trace_event_of_the_caller() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let fixture = Fixture::load(&[]);
    let program = fixture.program("on_perf_event");
    let attr = PerfEventAttr::new(event_type::SOFTWARE, software::CPU_CLOCK)
        .sample_frequency(1000)
        .flags(AttrFlags::DISABLED);
    let open = |attr| {
        let scope = Scope::CallingThread;
        PerfEvent::open(attr, scope, None, None, OpenFlags::empty()).unwrap()
    };
    let spin = || {
        let end = Instant::now() + Duration::from_millis(50);
        while Instant::now() < end {}
    };
    let event = open(&attr);
    let leader = open(&attr);
    let link = Link::opened_event(program, event, 0).unwrap_or_else(|e| panic!("{e}"));
    // Nobody has enabled it.
    assert_eq!(fixture.counted(&spin), 0);
    drop(link);
    let scope = Scope::CallingThread;
    let member =
        PerfEventAttr::new(event_type::SOFTWARE, software::CPU_CLOCK).sample_frequency(1000);
    let group = Some(leader.as_fd());
    let event = PerfEvent::open(&member, scope, None, group, OpenFlags::empty()).unwrap();
    let link = Link::opened_event(program, event, 0).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(fixture.counted(&spin), 0);
    leader.enable().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while fixture.counted(&spin) == 0 {
        assert!(Instant::now() < deadline, "never fires");
    }
    link.detach().unwrap();
    assert_eq!(fixture.counted(&spin), 0);
    // A tracepoint's program is none for a counter.
    let wrong = Link::opened_event(fixture.program("on_uprobe"), leader, 0).unwrap_err();
    assert!(matches!(wrong, LinkError::Attach { .. }), "{wrong}");
}
