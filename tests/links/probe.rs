//! Kernel and user functions, by every mechanism.

use ebpf_manager::bpf::{
    Kprobe, KprobeMulti, Link, Mechanism, Uprobe, UprobeMulti, syscall_function,
};
use ebpf_manager::elf::symbols;

use super::life::{Can, Kind, PLAIN, Pin, begin};
use crate::common::{Feature, KPROBE, KPROBE_MULTI, KPROBE_PMU, PERF_LINK, UPROBE, UPROBE_MULTI};

/// Events in tracefs.
const KPROBE_EVENTS: Feature = KPROBE.mounted("tracefs");
const UPROBE_EVENTS: Feature = UPROBE.mounted("tracefs");

/// What links to functions share: no other program takes their place.
const FUNCTION: Kind<'static> = Kind {
    update: Can::No,
    ..PLAIN
};

fn pin(mechanism: Mechanism) -> Pin {
    match mechanism {
        Mechanism::PerfEventIoctl | Mechanism::ProbeEvent => Pin::Impossible,
        _ => Pin::Holds,
    }
}

fn getpid() {
    let _ = std::process::id();
}

#[inline(never)]
fn probed_by_the_suite(depth: u32) -> u32 {
    if std::hint::black_box(depth) == 0 {
        1
    } else {
        2
    }
}

fn call() {
    std::hint::black_box(probed_by_the_suite(std::hint::black_box(1)));
}

/// The compiler's name of that function.
fn probed_symbol() -> String {
    let bytes = std::fs::read("/proc/self/exe").unwrap();
    let mut found = None;
    symbols::for_each_function(&bytes, &mut |symbol| {
        let name = String::from_utf8_lossy(symbol.name);
        if name.contains("probed_by_the_suite") {
            found = Some(name.into_owned());
        }
    })
    .unwrap();
    found.expect("it is among the symbols")
}

fn kprobe(mechanism: Mechanism, on_return: bool) {
    let mut probe = Kprobe::syscall("getpid").attach_by(mechanism);
    if on_return {
        probe = probe.on_return();
    }
    Kind {
        programs: ["kprobe_first", "kprobe_second"],
        mechanism,
        attach: &|program| Link::kprobe(program, &probe),
        poke: &getpid,
        pin: pin(mechanism),
        ..FUNCTION
    }
    .live();
}

fn uprobe(mechanism: Mechanism, on_return: bool) {
    let mut probe = Uprobe::symbol("/proc/self/exe", probed_symbol()).attach_by(mechanism);
    if on_return {
        probe = probe.on_return();
    }
    Kind {
        programs: ["uprobe_first", "uprobe_second"],
        mechanism,
        attach: &|program| Link::uprobe(program, &probe),
        poke: &call,
        pin: pin(mechanism),
        ..FUNCTION
    }
    .live();
}

fn kprobe_multi(on_return: bool) {
    let names = ["getpid", "getppid"].map(|name| syscall_function(name).unwrap());
    let mut probe = KprobeMulti::symbols(names);
    if on_return {
        probe = probe.on_return();
    }
    Kind {
        programs: ["kprobe_multi_first", "kprobe_multi_second"],
        mechanism: Mechanism::KprobeMulti,
        attach: &|program| Link::kprobe_multi(program, &probe),
        poke: &getpid,
        pin: Pin::Holds,
        ..FUNCTION
    }
    .live();
}

fn uprobe_multi(on_return: bool) {
    let mut probe = UprobeMulti::symbols("/proc/self/exe", [probed_symbol()]);
    if on_return {
        probe = probe.on_return();
    }
    Kind {
        programs: ["uprobe_multi_first", "uprobe_multi_second"],
        mechanism: Mechanism::UprobeMulti,
        attach: &|program| Link::uprobe_multi(program, &probe),
        poke: &call,
        pin: Pin::Holds,
        ..FUNCTION
    }
    .live();
}

/// One test for each mechanism, for entries and for returns.
macro_rules! probes {
    ($($entry:ident, $returns:ident [$($feature:expr),*] $live:ident($($mechanism:expr)?);)*) => {$(
        #[test]
        fn $entry() {
            if let Some(_leaks) = begin(&[$(&$feature),*]) {
                $live($($mechanism,)? false);
            }
        }

        #[test]
        fn $returns() {
            if let Some(_leaks) = begin(&[$(&$feature),*]) {
                $live($($mechanism,)? true);
            }
        }
    )*};
}

probes! {
    kprobe_by_multi_link, kretprobe_by_multi_link [KPROBE_MULTI] kprobe_multi();
    kprobe_by_perf_event_link, kretprobe_by_perf_event_link
        [KPROBE_PMU, PERF_LINK] kprobe(Mechanism::PerfEventLink);
    kprobe_by_perf_event_ioctl, kretprobe_by_perf_event_ioctl
        [KPROBE_PMU] kprobe(Mechanism::PerfEventIoctl);
    kprobe_by_tracefs_event, kretprobe_by_tracefs_event
        [KPROBE_EVENTS] kprobe(Mechanism::ProbeEvent);
    uprobe_by_multi_link, uretprobe_by_multi_link [UPROBE_MULTI] uprobe_multi();
    uprobe_by_perf_event_link, uretprobe_by_perf_event_link
        [UPROBE, PERF_LINK] uprobe(Mechanism::PerfEventLink);
    uprobe_by_perf_event_ioctl, uretprobe_by_perf_event_ioctl
        [UPROBE] uprobe(Mechanism::PerfEventIoctl);
    uprobe_by_tracefs_event, uretprobe_by_tracefs_event
        [UPROBE_EVENTS] uprobe(Mechanism::ProbeEvent);
}
