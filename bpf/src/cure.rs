//! What a user can do about a refusal.
//!
//! The kernel answers `EPERM` for many reasons. This module looks at what it
//! can see from outside (capabilities, lockdown, memory limit, version) and
//! names the likely one. It runs only after a failure.

use std::fmt;

use ebpf_manager_sys::proc::{self, Capabilities, KernelVersion, Lockdown};
use ebpf_manager_sys::{Errno, SysError};

/// The likely cure for a failed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cure {
    /// The process lacks a capability.
    Capability {
        /// What is needed, as capabilities(7) spells it.
        needed: &'static str,
    },
    /// The process lacks a capability, and `kernel.perf_event_paranoid` keeps
    /// perf events from such.
    PerfEventParanoid {
        /// Its value.
        level: i64,
        /// The greatest value that lets the event be opened.
        allowed: i64,
        /// What is needed otherwise, as capabilities(7) spells it.
        needed: &'static str,
    },
    /// Kernel lockdown forbids it, whatever the capabilities.
    Lockdown,
    /// Kernels before 5.11 count maps and programs against `RLIMIT_MEMLOCK`.
    Memlock {
        /// The limit in force, in bytes.
        limit_bytes: u64,
    },
    /// The kernel is older than the feature.
    KernelTooOld {
        /// What it lacks.
        feature: &'static str,
        /// The first version that has it.
        since: KernelVersion,
        /// The version that runs.
        running: KernelVersion,
    },
    /// A helper for GPL programs only, in a program without such a licence.
    GplLicence,
    /// The kernel was built without bpf(2).
    NoBpf,
    /// The kernel was built without BTF (`CONFIG_DEBUG_INFO_BTF`).
    NoKernelBtf,
    /// No tracefs is mounted.
    MountTracefs,
    /// A pin path lies outside a BPF file system.
    MountBpffs,
    /// The kernel was built without kprobes.
    NoKprobes,
    /// The kernel was built without uprobes.
    NoUprobes,
    /// The kernel has no function of this name.
    NoSuchSymbol {
        /// Functions that the compiler made of one of that name.
        similar: Vec<String>,
    },
    /// The function exists, and the kernel lets nobody probe it there.
    NotTraceable,
    /// Several functions bear the name.
    AmbiguousSymbol {
        /// How many.
        count: usize,
    },
    /// The machine does not count this event.
    NoSuchEvent,
}

impl fmt::Display for Cure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cure::Capability { needed } => {
                write!(
                    f,
                    "the process lacks {needed}: run it as root or grant the capability"
                )
            }
            Cure::PerfEventParanoid {
                level,
                allowed,
                needed,
            } => write!(
                f,
                "kernel.perf_event_paranoid is {level}, which keeps this from processes without \
                 {needed}: grant the capability, or lower the setting to {allowed}"
            ),
            Cure::Lockdown => f.write_str(
                "the kernel is locked down (lockdown= on its command line, or secure boot), \
                 which forbids this even to root",
            ),
            Cure::Memlock { limit_bytes } => write!(
                f,
                "this kernel counts BPF memory as locked memory and the limit is {limit_bytes} \
                 bytes: raise it (ulimit -l unlimited, or LimitMEMLOCK= of the service)"
            ),
            Cure::KernelTooOld {
                feature,
                since,
                running,
            } => {
                write!(f, "{feature} needs Linux {since}, this is {running}")
            }
            Cure::GplLicence => f.write_str(
                "the program has no GPL-compatible licence: \
                 declare one with char LICENSE[] SEC(\"license\") = \"GPL\"",
            ),
            Cure::NoBpf => f.write_str("this kernel is built without bpf(2) (CONFIG_BPF_SYSCALL)"),
            Cure::NoKernelBtf => f.write_str(
                "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF): supply a BTF file for it",
            ),
            Cure::MountTracefs => {
                f.write_str("mount it: mount -t tracefs tracefs /sys/kernel/tracing")
            }
            Cure::MountBpffs => {
                f.write_str("pin below a BPF file system: mount -t bpf bpf /sys/fs/bpf")
            }
            Cure::NoKprobes => f.write_str(
                "this kernel is built without kprobes (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS): \
                 use a tracepoint or a raw tracepoint",
            ),
            Cure::NoUprobes => {
                f.write_str("this kernel is built without uprobes (CONFIG_UPROBE_EVENTS)")
            }
            Cure::NoSuchSymbol { similar } if similar.is_empty() => f.write_str(
                "the kernel has no function of this name: it is from another version, inlined \
                 everywhere, or in a module that is not loaded",
            ),
            Cure::NoSuchSymbol { similar } => write!(
                f,
                "the compiler left no function of this exact name: try {}",
                similar.join(" or ")
            ),
            Cure::NotTraceable => f.write_str(
                "the function exists but cannot be probed there: it is marked notrace or \
                 nokprobe, or the offset is not where an instruction starts",
            ),
            Cure::AmbiguousSymbol { count } => write!(
                f,
                "{count} functions of the kernel have this name: say module:function, or probe a \
                 caller"
            ),
            Cure::NoSuchEvent => f.write_str(
                "this machine does not count that event (virtual machines often have no hardware \
                 counters): use a software event, such as the CPU clock",
            ),
        }
    }
}

/// What an operation needs besides luck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Maps, BTF and network-independent program types.
    Bpf,
    /// Tracing program types and their attachment.
    Tracing,
    /// Networking program types and their attachment.
    Network,
    /// Perf events of other processes.
    PerfEvent,
}

/// First version with `CAP_BPF` and `CAP_PERFMON`.
const CAP_BPF_SINCE: KernelVersion = KernelVersion::new(5, 8, 0);
/// First version that counts BPF memory by control group.
const MEMCG_SINCE: KernelVersion = KernelVersion::new(5, 11, 0);

/// True if this kernel counts BPF memory against `RLIMIT_MEMLOCK`.
pub(crate) fn counts_memlock() -> bool {
    KernelVersion::current().is_ok_and(|v| v < MEMCG_SINCE)
}

/// The likely reason for `err`, if it shows from outside.
pub(crate) fn find(err: &SysError, need: Need) -> Option<Cure> {
    match err.errno() {
        Errno::ENOSYS => Some(Cure::NoBpf),
        Errno::EPERM | Errno::EACCES => {
            let events = err.op() == "perf_event_open";
            let closed = events.then(no_events_at_all).flatten();
            closed.or_else(|| permission(err.errno(), need))
        }
        _ => None,
    }
}

/// Kernels of some distributions have a level above those of others, which
/// leaves perf events to `CAP_SYS_ADMIN`.
#[cold]
fn no_events_at_all() -> Option<Cure> {
    const ALLOWED: i64 = 2;
    let level = proc::perf_event_paranoid().ok()?;
    let caps = proc::effective_capabilities().ok()?;
    (level > ALLOWED && !caps.contains(Capabilities::SYS_ADMIN)).then_some(
        Cure::PerfEventParanoid {
            level,
            allowed: ALLOWED,
            needed: "CAP_SYS_ADMIN",
        },
    )
}

/// What `kernel.perf_event_paranoid` may be at most for a process without
/// `CAP_PERFMON` that opens an event.
pub(crate) mod paranoid {
    /// A tracepoint's, for all processes.
    pub(crate) const TRACEPOINT: i64 = -1;
    /// A counter's, for all that a CPU does.
    pub(crate) const CPU: i64 = 0;
    /// A counter's, for one thread, in the kernel too.
    pub(crate) const THREAD: i64 = 1;
}

/// As [`find`], for a perf event that any process may open where
/// `kernel.perf_event_paranoid` is at most `allowed`.
#[cold]
pub(crate) fn find_for_event(err: &SysError, allowed: i64) -> Option<Cure> {
    match (find(err, Need::PerfEvent), proc::perf_event_paranoid()) {
        (Some(Cure::Capability { needed }), Ok(level)) if level > allowed => {
            Some(Cure::PerfEventParanoid {
                level,
                allowed,
                needed,
            })
        }
        (cure, _) => cure,
    }
}

fn permission(errno: Errno, need: Need) -> Option<Cure> {
    let missing = missing_capability(need);
    if missing.is_some() {
        return missing;
    }
    if errno == Errno::EPERM && counts_memlock() {
        let limit = proc::memlock_limit().ok()?;
        return Some(Cure::Memlock {
            limit_bytes: limit.soft,
        });
    }
    let locked = proc::lockdown().is_ok_and(|mode| mode != Lockdown::None);
    (errno == Errno::EPERM && need == Need::Tracing && locked).then_some(Cure::Lockdown)
}

/// The cure for a kernel before `since`.
#[cold]
pub(crate) fn needs(feature: &'static str, since: KernelVersion) -> Option<Cure> {
    let running = KernelVersion::current().ok()?;
    (running < since).then_some(Cure::KernelTooOld {
        feature,
        since,
        running,
    })
}

/// The capability that `need` asks for and the process lacks.
pub(crate) fn missing_capability(need: Need) -> Option<Cure> {
    let caps = proc::effective_capabilities().ok()?;
    if caps.contains(Capabilities::SYS_ADMIN) {
        return None;
    }
    let old = KernelVersion::current().is_ok_and(|v| v < CAP_BPF_SINCE);
    let needed = match need {
        _ if old => "CAP_SYS_ADMIN",
        Need::Bpf if !caps.contains(Capabilities::BPF) => "CAP_BPF",
        Need::Tracing
            if !caps.contains(Capabilities::BPF) || !caps.contains(Capabilities::PERFMON) =>
        {
            "CAP_BPF and CAP_PERFMON"
        }
        Need::Network
            if !caps.contains(Capabilities::BPF) || !caps.contains(Capabilities::NET_ADMIN) =>
        {
            "CAP_BPF and CAP_NET_ADMIN"
        }
        Need::PerfEvent if !caps.contains(Capabilities::PERFMON) => "CAP_PERFMON",
        _ => return None,
    };
    Some(Cure::Capability { needed })
}
