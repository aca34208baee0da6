use super::*;
use crate::abi::bpf::ProgramType;
use crate::testing::{code_at, load, require, returns, with_mounted};
use std::ffi::CString;

#[test]
fn all_are_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<PerfEvent>();
    check::<PerfEventAttr<'_>>();
    check::<Scope<'_>>();
}

#[test]
fn builder_fills_in_the_attribute() {
    let attr = PerfEventAttr::kprobe(8, 1, c"do_exit", 4);
    assert_eq!(attr.raw().kind, 8);
    assert_eq!(attr.raw().config, 1);
    assert_eq!(attr.raw().config1, c"do_exit".as_ptr() as u64);
    assert_eq!(attr.raw().config2, 4);
    assert_eq!(attr.raw().size, 136);
    let attr = PerfEventAttr::kprobe_at(8, 0, 77);
    assert_eq!((attr.raw().config1, attr.raw().config2), (0, 77));
    let attr = PerfEventAttr::bpf_output().wakeup_watermark(4096);
    assert_eq!(attr.raw().wakeup, 4096);
    assert_eq!(attr.raw().flags, AttrFlags::WATERMARK);
    assert_eq!(attr.raw().sample_type, SampleType::RAW);
    let attr = attr.wakeup_events(2).sample_frequency(99);
    assert_eq!(attr.raw().flags, AttrFlags::FREQ);
    assert_eq!(attr.sample_period(3).raw().flags, AttrFlags::empty());
}

fn open(attr: &PerfEventAttr<'_>, scope: Scope<'_>) -> Result<PerfEvent> {
    let cpu = matches!(scope, Scope::AllThreads).then_some(0);
    PerfEvent::open(attr, scope, cpu, None, OpenFlags::empty())
}

/// Opens a clock of this thread that reads in `format`.
fn clock(format: ReadFormat) -> Result<PerfEvent> {
    let attr = PerfEventAttr::software(software::TASK_CLOCK).read_format(format);
    open(&attr, Scope::CallingThread)
}

fn reads_in(event: &PerfEvent, format: ReadFormat) {
    let first = event.count().unwrap();
    let mut second = first;
    while second.value < first.value + 1_000_000 {
        second = event.count().unwrap();
    }
    let asked = |flag| format.contains(flag);
    for (flag, before, after) in [
        (
            ReadFormat::TOTAL_TIME_ENABLED,
            first.enabled_ns,
            second.enabled_ns,
        ),
        (
            ReadFormat::TOTAL_TIME_RUNNING,
            first.running_ns,
            second.running_ns,
        ),
    ] {
        assert_eq!(after.is_some(), asked(flag));
        assert_eq!(after > before, asked(flag), "{before:?} to {after:?}");
    }
    let id = asked(ReadFormat::ID).then(|| event.id().unwrap());
    assert_eq!(second.id, id);
    assert_eq!(second.lost, asked(ReadFormat::LOST).then_some(0));
}

#[test]
fn counts_read_in_every_format() {
    for bits in 0..8 {
        let format = ReadFormat::from_bits_retain(bits);
        reads_in(&require!((3, 12), clock(format)), format);
    }
}

#[test]
fn counts_read_with_those_lost() {
    for bits in 0..8 {
        let format = ReadFormat::from_bits_retain(bits) | ReadFormat::LOST;
        reads_in(&require!((6, 0), clock(format)), format);
    }
}

#[test]
fn no_number_stands_for_all_threads_or_any_cpu() {
    let attr = PerfEventAttr::software(software::DUMMY);
    let open = |scope, cpu| PerfEvent::open(&attr, scope, cpu, None, OpenFlags::empty());
    let err = open(Scope::Thread(u32::MAX), Some(0)).unwrap_err();
    assert!(err.is(Errno::EINVAL));
    let err = open(Scope::CallingThread, Some(u32::MAX)).unwrap_err();
    assert!(err.is(Errno::EINVAL));
}

#[test]
fn events_start_stop_and_reset() {
    let attr = PerfEventAttr::software(software::TASK_CLOCK).flags(AttrFlags::DISABLED);
    let event = require!((3, 12), open(&attr, Scope::CallingThread));
    let value = || event.count().unwrap().value;
    assert_eq!(value(), 0);
    event.enable().unwrap();
    while value() == 0 {}
    event.disable().unwrap();
    let stopped = value();
    assert_eq!(value(), stopped);
    event.reset().unwrap();
    assert_eq!(value(), 0);
    assert!(event.pause_output(true).unwrap_err().is(Errno::EINVAL));
    assert!(event.query_bpf().unwrap_err().is(Errno::EINVAL));
    assert!(event.read_words(&mut []).unwrap_err().is(Errno::ENOSPC));
}

#[test]
fn groups_are_read_together() {
    let leader = require!((3, 12), clock(ReadFormat::GROUP));
    let second = PerfEventAttr::software(software::PAGE_FAULTS);
    let group = Some(leader.as_fd());
    let scope = Scope::CallingThread;
    let _second = PerfEvent::open(&second, scope, None, group, OpenFlags::empty()).unwrap();
    let mut words = [0; 8];
    assert_eq!(leader.read_words(&mut words).unwrap(), 3);
    assert_eq!(words[0], 2);
    assert!(leader.count().unwrap_err().is(Errno::EINVAL));
}

#[test]
fn programs_attach_to_a_tracepoint_and_are_listed() {
    with_mounted("tracefs", |tracefs| {
        let id = tracefs.join("events/sched/sched_switch/id");
        let id = std::fs::read_to_string(id).unwrap();
        let id = id.trim().parse().unwrap();
        let attr = PerfEventAttr::tracepoint(id).flags(AttrFlags::DISABLED);
        let event = require!((4, 7), open(&attr, Scope::AllThreads));
        let program = load(ProgramType::TRACEPOINT, &returns(0));
        event.set_bpf(program.as_fd()).unwrap();
        let again = event.set_bpf(program.as_fd());
        assert!(again.unwrap_err().is(Errno::EEXIST));
        event.enable().unwrap();
        let info = crate::bpf::prog_info(program.as_fd()).unwrap();
        let listed = require!((4, 16), event.query_bpf());
        assert!(listed.contains(&info.id));
        let errno = |result: Result<()>| result.unwrap_err().errno();
        assert_eq!(errno(event.set_filter(c"nothing == 1")), Errno::EINVAL);
        event.set_filter(c"prev_pid == 1").unwrap();
        assert_eq!(errno(event.set_filter(c"prev_pid == 1")), Errno::EEXIST);

        let event = open(&attr, Scope::AllThreads).unwrap();
        let socket = load(ProgramType::SOCKET_FILTER, &returns(0));
        assert_eq!(errno(event.set_bpf(socket.as_fd())), Errno::EINVAL);
    });
}

#[inline(never)]
extern "C" fn probed(n: u64) -> u64 {
    std::hint::black_box(n).wrapping_mul(0x1234_5679)
}

#[test]
fn uprobes_count_calls_and_returns() {
    let path = "/sys/bus/event_source/devices/uprobe/type";
    let pmu = std::fs::read_to_string(path);
    let pmu = require!((4, 17), ["CONFIG_UPROBE_EVENTS"], pmu);
    let pmu = pmu.trim().parse().unwrap();
    let (file, offset) = code_at(probed as *const () as usize);
    let file = CString::new(file.into_os_string().into_encoded_bytes()).unwrap();
    for retprobe in [0, 1] {
        let attr = PerfEventAttr::uprobe(pmu, retprobe, &file, offset);
        let event = require!((4, 17), open(&attr, Scope::CallingThread));
        for n in 0..10 {
            std::hint::black_box(probed(n));
        }
        assert_eq!(event.count().unwrap().value, 10);
    }
    let attr = PerfEventAttr::uprobe(pmu, 0, c"/no/such/file", 0);
    let scope = Scope::CallingThread;
    let err = PerfEvent::open(&attr, scope, None, None, OpenFlags::empty());
    assert!(err.unwrap_err().is(Errno::ENOENT));
}

#[test]
fn descriptors_are_closed_on_exec() {
    let attr = PerfEventAttr::software(software::DUMMY);
    let event = require!((3, 12), open(&attr, Scope::CallingThread));
    // SAFETY: F_GETFD takes no argument and touches no memory.
    let flags = unsafe { libc::fcntl(event.as_fd().as_raw_fd(), libc::F_GETFD) };
    assert_eq!(flags, libc::FD_CLOEXEC);
}
