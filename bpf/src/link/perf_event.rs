//! Programs that run when a counter has counted so far, or so often a second.

use ebpf_manager_sys::abi::bpf::ProgramType;
use ebpf_manager_sys::abi::perf::{OpenFlags, event_type, software};
use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};
use ebpf_manager_sys::{Errno, SysError, proc};

use super::trace::{Way, expect_type, not_opened, on_event};
use super::{Link, Mechanism};
use crate::cure::{Cure, paranoid};
use crate::error::LinkError;
use crate::program::Program;

/// When a counter runs the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// Each time it has counted so many events.
    Period(u64),
    /// So many times per second, as well as the kernel can arrange.
    Frequency(u64),
}

/// A counter that runs a program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PerfHook {
    /// Family or unit of the event: `PERF_TYPE_HARDWARE` is 0,
    /// `PERF_TYPE_SOFTWARE` 1, `PERF_TYPE_RAW` 4.
    pub kind: u32,
    /// Which event of that family.
    pub config: u64,
    /// When the program runs.
    pub sampling: Sampling,
    /// Only this thread, or a process's first thread; `None` for all.
    pub pid: Option<u32>,
    /// Only on these CPUs. If empty: on all that are online, or wherever the
    /// thread runs.
    pub cpus: Vec<u32>,
    /// What `bpf_get_attach_cookie` returns. Needs Linux 5.15 when not 0.
    pub cookie: u64,
    /// The only kernel interface to use; `None` tries all, the newest first.
    pub by: Option<Mechanism>,
}

impl PerfHook {
    /// Event `config` of the family or unit `kind`.
    pub fn new(kind: u32, config: u64, sampling: Sampling) -> PerfHook {
        PerfHook {
            kind,
            config,
            sampling,
            pid: None,
            cpus: Vec::new(),
            cookie: 0,
            by: None,
        }
    }

    /// A software event, `PERF_COUNT_SW_*`.
    pub fn software(config: u64, sampling: Sampling) -> PerfHook {
        PerfHook::new(event_type::SOFTWARE, config, sampling)
    }

    /// A hardware event, `PERF_COUNT_HW_*`.
    pub fn hardware(config: u64, sampling: Sampling) -> PerfHook {
        PerfHook::new(event_type::HARDWARE, config, sampling)
    }

    /// The clock of each CPU, which every machine has: a profiler that runs
    /// `hertz` times per second and CPU.
    pub fn cpu_clock(hertz: u64) -> PerfHook {
        PerfHook::software(software::CPU_CLOCK, Sampling::Frequency(hertz))
    }

    /// Only this thread.
    #[must_use]
    pub fn pid(mut self, pid: u32) -> PerfHook {
        self.pid = Some(pid);
        self
    }

    /// Only on these CPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: impl Into<Vec<u32>>) -> PerfHook {
        self.cpus = cpus.into();
        self
    }

    /// What `bpf_get_attach_cookie` returns.
    #[must_use]
    pub fn cookie(mut self, cookie: u64) -> PerfHook {
        self.cookie = cookie;
        self
    }

    /// Uses this kernel interface and no other.
    #[must_use]
    pub fn attach_by(mut self, mechanism: Mechanism) -> PerfHook {
        self.by = Some(mechanism);
        self
    }
}

impl Link {
    /// Lets a perf event that the caller opened run a program, with what
    /// `bpf_get_attach_cookie` returns (Linux 5.15 when not 0): a counter that
    /// [`PerfHook`] cannot describe, a breakpoint, one of a group. Closed with
    /// the link.
    ///
    /// The event is neither enabled nor disabled: one that was opened disabled
    /// runs the program once something enables it.
    ///
    /// # Errors
    /// [`LinkError::Attach`], with `EINVAL` if the program's type does not fit
    /// the event and `EEXIST` if the event has a program;
    /// [`LinkError::Unsupported`] for a cookie on an old kernel.
    pub fn opened_event(
        program: &Program,
        event: PerfEvent,
        cookie: u64,
    ) -> Result<Link, LinkError> {
        let way = Way { cookie, by: None };
        on_event(program, event, None, way, "perf event".to_owned())
    }

    /// Lets a counter run a perf_event program, on each CPU that `hook` names.
    ///
    /// Ways, the newest first: a link on each perf event (Linux 5.15), perf
    /// events that run the program. Requires at least Linux 4.9.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::Attach`], with
    /// [`Cure::NoSuchEvent`] if the machine has no such counter and
    /// [`Cure::PerfEventParanoid`] where that is the reason;
    /// [`LinkError::Unsupported`] for a cookie on an old kernel.
    pub fn perf_event(program: &Program, hook: &PerfHook) -> Result<Link, LinkError> {
        expect_type(program, "perf_event", &[ProgramType::PERF_EVENT])?;
        let target = format!("perf_event {}:{:#x}", hook.kind, hook.config);
        let cannot_open = |err: SysError| {
            let absent = matches!(err.errno(), Errno::ENOENT | Errno::EOPNOTSUPP);
            let allowed = match hook.pid {
                Some(_) => paranoid::THREAD,
                None => paranoid::CPU,
            };
            match not_opened(&target, err, allowed) {
                LinkError::Attach {
                    target,
                    tried,
                    cure,
                } => LinkError::Attach {
                    target,
                    tried,
                    cure: if absent {
                        Some(Cure::NoSuchEvent)
                    } else {
                        cure
                    },
                },
                err => err,
            }
        };
        let attr = PerfEventAttr::new(hook.kind, hook.config);
        let attr = match hook.sampling {
            Sampling::Period(events) => attr.sample_period(events),
            Sampling::Frequency(hertz) => attr.sample_frequency(hertz),
        };
        let scope = hook.pid.map_or(Scope::AllThreads, Scope::Thread);
        let online;
        let cpus: &[u32] = if hook.cpus.is_empty() && hook.pid.is_none() {
            online = proc::online_cpus().map_err(cannot_open)?;
            &online
        } else {
            &hook.cpus
        };
        let mut places: Vec<Option<u32>> = cpus.iter().copied().map(Some).collect();
        if places.is_empty() {
            places.push(None);
        }
        let way = Way {
            cookie: hook.cookie,
            by: hook.by,
        };
        let mut whole: Option<Link> = None;
        let mut gone = None;
        for cpu in places {
            let event = match PerfEvent::open(&attr, scope, cpu, None, OpenFlags::empty()) {
                Ok(event) => event,
                // It went offline since the list was read.
                Err(err) if err.is(Errno::ENODEV) && hook.cpus.is_empty() => {
                    gone = Some(err);
                    continue;
                }
                Err(err) => return Err(cannot_open(err)),
            };
            let link = on_event(program, event, None, way, target.clone())?;
            match &mut whole {
                Some(whole) => whole.add(link),
                None => whole = Some(link),
            }
        }
        whole.ok_or_else(|| {
            cannot_open(gone.unwrap_or_else(|| SysError::new("perf_event_open", Errno::ENODEV)))
        })
    }
}
