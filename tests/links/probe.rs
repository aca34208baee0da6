//! Kernel and user functions, by every mechanism.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{
    Kprobe, KprobeMulti, Link, Mechanism, Uprobe, UprobeMulti, Usdt, syscall_function,
};
use ebpf_manager::elf::symbols;

use super::life::{Can, Kind, PLAIN, Pin, begin, load};
use crate::common::{Feature, KPROBE, KPROBE_MULTI, KPROBE_PMU, PERF_LINK, UPROBE, UPROBE_MULTI};

/// Events in tracefs.
const KPROBE_EVENTS: Feature = KPROBE.mounted("tracefs");
const UPROBE_EVENTS: Feature = UPROBE.mounted("tracefs");

/// Programs that run at entry and return of each call.
const KPROBE_SESSION: Feature =
    Feature::new("kprobe.session", 6, 10).config(&["CONFIG_KPROBES", "CONFIG_FPROBE"]);
const UPROBE_SESSION: Feature =
    Feature::new("uprobe.session", 6, 13).config(&["CONFIG_UPROBES", "CONFIG_UPROBE_EVENTS"]);
/// Uprobes with a counter of who is attached.
const USDT: Feature = Feature::new("uprobe reference counter", 4, 20)
    .config(&["CONFIG_UPROBES", "CONFIG_UPROBE_EVENTS"]);

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
    kernel_functions(["kprobe_multi_first", "kprobe_multi_second"], on_return);
}

fn kernel_functions(programs: [&str; 2], on_return: bool) {
    let names = ["getpid", "getppid"].map(|name| syscall_function(name).unwrap());
    let mut probe = KprobeMulti::symbols(names);
    if on_return {
        probe = probe.on_return();
    }
    Kind {
        programs,
        mechanism: Mechanism::KprobeMulti,
        attach: &|program| Link::kprobe_multi(program, &probe),
        poke: &getpid,
        pin: Pin::Holds,
        ..FUNCTION
    }
    .live();
}

fn uprobe_multi(on_return: bool) {
    user_functions(["uprobe_multi_first", "uprobe_multi_second"], on_return);
}

fn user_functions(programs: [&str; 2], on_return: bool) {
    let mut probe = UprobeMulti::symbols("/proc/self/exe", [probed_symbol()]);
    if on_return {
        probe = probe.on_return();
    }
    Kind {
        programs,
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

#[test]
fn kprobe_session() {
    if let Some(_leaks) = begin(&[&KPROBE_SESSION]) {
        kernel_functions(["kprobe_session_first", "kprobe_session_second"], false);
    }
}

#[test]
fn uprobe_session() {
    if let Some(_leaks) = begin(&[&UPROBE_SESSION]) {
        user_functions(["uprobe_session_first", "uprobe_session_second"], false);
    }
}

/// A place of this program that is marked, with a counter and arguments, by
/// the assembler of this architecture.
#[cfg(target_arch = "x86_64")]
fn usdt(mechanism: Mechanism) {
    // The maps that tell where the arguments are must outlive the programs.
    let holder = load("usdt.bpf.o", &["on_usdt"], Vec::new());
    let specs = holder.usdt_specs().unwrap().unwrap();
    // Kernels without cookies know places by their address in one process.
    let place = Usdt::new("/proc/self/exe", "ebpf_manager", "marked")
        .pid(std::process::id())
        .attach_by(mechanism);
    Kind {
        programs: match mechanism {
            // Programs of section `usdt` are for multi links, where there are.
            Mechanism::PerfEventLink => ["uprobe_first", "uprobe_second"],
            _ => ["usdt_first", "usdt_second"],
        },
        mechanism,
        attach: &|program| Link::usdt(program, Some(&specs), &place),
        poke: &|| crate::marks::marked(1, 2, &[0; 8], 3),
        pin: pin(mechanism),
        ..FUNCTION
    }
    .live();
    // The kernel lets go of what a pin held when it has the time.
    let deadline = Instant::now() + Duration::from_secs(20);
    while crate::marks::COUNTER.load(Ordering::Relaxed) != 0 {
        assert!(Instant::now() < deadline, "it counts on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn usdt_by_multi_link() {
    if let Some(_leaks) = begin(&[&USDT, &UPROBE_MULTI]) {
        usdt(Mechanism::UprobeMulti);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn usdt_by_perf_event_link() {
    if let Some(_leaks) = begin(&[&USDT, &PERF_LINK]) {
        usdt(Mechanism::PerfEventLink);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn usdt_by_perf_event_ioctl() {
    if let Some(_leaks) = begin(&[&USDT]) {
        usdt(Mechanism::PerfEventIoctl);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn usdt_by_tracefs_event() {
    if let Some(_leaks) = begin(&[&USDT, &UPROBE_EVENTS]) {
        usdt(Mechanism::ProbeEvent);
    }
}
