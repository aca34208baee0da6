use super::*;
use crate::abi::bpf::ProgramType;
use crate::abi::insn::Insn;
use crate::ringbuf::testing;
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

fn open(test: &str, attr: &PerfEventAttr<'_>, scope: Scope<'_>) -> Option<PerfEvent> {
    let cpu = matches!(scope, Scope::AllThreads).then_some(0);
    match PerfEvent::open(attr, scope, cpu, None, OpenFlags::empty()) {
        Ok(event) => Some(event),
        Err(err) => {
            eprintln!("skipped: {test}: {err}");
            None
        }
    }
}

#[test]
fn counts_read_in_every_format() {
    for bits in 0..16 {
        // Bit 3 is the group format, which `count` refuses.
        let format = ReadFormat::from_bits_retain(bits & 7 | (bits & 8) << 1);
        let attr = PerfEventAttr::software(software::TASK_CLOCK).read_format(format);
        let test = "counts_read_in_every_format";
        let Some(event) = open(test, &attr, Scope::CallingThread) else {
            return;
        };
        let first = event.count().unwrap();
        let mut second = first;
        while second.value < first.value + 1_000_000 {
            second = event.count().unwrap();
        }
        let asked = |flag| format.contains(flag);
        let enabled = second.enabled_ns;
        assert_eq!(enabled.is_some(), asked(ReadFormat::TOTAL_TIME_ENABLED));
        assert!(enabled.is_none_or(|ns| ns >= 1_000_000));
        let running = second.running_ns;
        assert_eq!(running.is_some(), asked(ReadFormat::TOTAL_TIME_RUNNING));
        let id = asked(ReadFormat::ID).then(|| event.id().unwrap());
        assert_eq!(second.id, id);
        assert_eq!(second.lost, asked(ReadFormat::LOST).then_some(0));
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
    let test = "events_start_stop_and_reset";
    let Some(event) = open(test, &attr, Scope::CallingThread) else {
        return;
    };
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
    let attr = PerfEventAttr::software(software::TASK_CLOCK).read_format(ReadFormat::GROUP);
    let test = "groups_are_read_together";
    let Some(leader) = open(test, &attr, Scope::CallingThread) else {
        return;
    };
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
    let test = "programs_attach_to_a_tracepoint_and_are_listed";
    let path = "/sys/kernel/tracing/events/sched/sched_switch/id";
    let id = match std::fs::read_to_string(path) {
        Ok(id) => id.trim().parse().unwrap(),
        Err(err) => {
            eprintln!("skipped: {test}: {path}: {err}");
            return;
        }
    };
    let attr = PerfEventAttr::tracepoint(id).flags(AttrFlags::DISABLED);
    let Some(event) = open(test, &attr, Scope::AllThreads) else {
        return;
    };
    let code = [Insn::mov64_imm(0, 0), Insn::exit()];
    let program = testing::load(ProgramType::TRACEPOINT, &code);
    event.set_bpf(program.as_fd()).unwrap();
    let again = event.set_bpf(program.as_fd());
    assert!(again.unwrap_err().is(Errno::EEXIST));
    event.enable().unwrap();
    let fdinfo = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    let fdinfo = std::fs::read_to_string(fdinfo).unwrap();
    let id = fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("prog_id:"));
    let id: u32 = id.unwrap().trim().parse().unwrap();
    assert!(event.query_bpf().unwrap().contains(&id));
    let errno = |result: Result<()>| result.unwrap_err().errno();
    assert_eq!(errno(event.set_filter(c"nothing == 1")), Errno::EINVAL);
    event.set_filter(c"prev_pid == 1").unwrap();
    assert_eq!(errno(event.set_filter(c"prev_pid == 1")), Errno::EEXIST);

    let event = open(test, &attr, Scope::AllThreads).unwrap();
    let socket = testing::load(ProgramType::SOCKET_FILTER, &code);
    assert_eq!(errno(event.set_bpf(socket.as_fd())), Errno::EINVAL);
}

#[inline(never)]
extern "C" fn probed(n: u64) -> u64 {
    std::hint::black_box(n).wrapping_mul(0x1234_5679)
}

/// File and offset of the code at `address` in this process.
fn file_offset(address: u64) -> (CString, u64) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (from, to) = fields.next().unwrap().split_once('-').unwrap();
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        if (hex(from)..hex(to)).contains(&address) {
            let start = hex(fields.nth(1).unwrap());
            let path = CString::new(fields.nth(2).unwrap()).unwrap();
            return (path, start + address - hex(from));
        }
    }
    panic!("no mapping at {address:#x}");
}

#[test]
fn uprobes_count_calls_and_returns() {
    let test = "uprobes_count_calls_and_returns";
    let path = "/sys/bus/event_source/devices/uprobe/type";
    let pmu: u32 = match std::fs::read_to_string(path) {
        Ok(kind) => kind.trim().parse().unwrap(),
        Err(err) => {
            eprintln!("skipped: {test}: {path}: {err}");
            return;
        }
    };
    let (file, offset) = file_offset(probed as *const () as u64);
    for retprobe in [0, 1] {
        let attr = PerfEventAttr::uprobe(pmu, retprobe, &file, offset);
        let Some(event) = open(test, &attr, Scope::CallingThread) else {
            return;
        };
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
    let test = "descriptors_are_closed_on_exec";
    let Some(event) = open(test, &attr, Scope::CallingThread) else {
        return;
    };
    // SAFETY: F_GETFD takes no argument and touches no memory.
    let flags = unsafe { libc::fcntl(event.as_fd().as_raw_fd(), libc::F_GETFD) };
    assert_eq!(flags, libc::FD_CLOEXEC);
}
