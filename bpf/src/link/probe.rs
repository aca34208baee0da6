//! What kprobes and uprobes have in common: a perf event of the probe unit, or
//! of an event in tracefs; several of them as one link.

use std::ffi::CString;

use ebpf_manager_sys::abi::bpf::AttachType;
use ebpf_manager_sys::abi::perf::OpenFlags;
use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};
use ebpf_manager_sys::pmu::Pmu;
use ebpf_manager_sys::tracefs::{ProbeFile, ProbeKind, ProbePlace, ProbeSpec, Tracefs};
use ebpf_manager_sys::{Errno, SysError};

use super::event::ProbeEvent;
use super::trace::{Way, any_cpu, failed, on_event};
use super::{Link, Mechanism};
use crate::error::LinkError;
use crate::program::Program;

/// Entry or return of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProbeOn {
    /// When it is called, or a place inside is reached.
    #[default]
    Entry,
    /// When it returns.
    Return,
}

/// One or many probes: EINVAL, EOPNOTSUPP and E2BIG are what kernels answer
/// that do not know multi links, or were built without them.
pub(super) fn may_go_one_by_one(tried: &[(&'static str, SysError)]) -> bool {
    tried.last().is_none_or(|(_, err)| {
        matches!(
            err.errno(),
            Errno::EINVAL | Errno::EOPNOTSUPP | Errno::E2BIG
        )
    })
}

/// A probe for each of `count` places; the first failure takes back the rest.
pub(super) fn one_by_one(
    target: String,
    tried: Vec<(&'static str, SysError)>,
    count: usize,
    attach: &mut dyn FnMut(usize) -> Result<Link, LinkError>,
) -> Result<Link, LinkError> {
    let mut whole: Option<Link> = None;
    for index in 0..count {
        match attach(index) {
            Ok(link) => match &mut whole {
                Some(whole) => whole.add(link),
                None => whole = Some(link),
            },
            // What the multi link answered comes first.
            Err(mut err) => {
                if let LinkError::Attach { target: one, .. } = &mut err {
                    *one = target;
                }
                return Err(err.after(tried));
            }
        }
    }
    match whole {
        Some(link) => Ok(Link { target, ..link }.after(tried)),
        None => Err(failed(&target, tried)),
    }
}

/// Whether to try `way`.
pub(super) fn wants(by: Option<Mechanism>, way: Mechanism) -> bool {
    by.is_none_or(|by| by == way)
}

/// True if the kernel has neither the unit nor the file for this kind of
/// probe.
pub(super) fn nothing_there(tried: &[(&'static str, SysError)]) -> bool {
    tried
        .iter()
        .all(|(_, err)| err.is(Errno::ENOENT) && err.op() == "open")
}

/// Whether the program runs at entry and return of each call, and says at the
/// entry whether it wants to see the return.
pub(super) fn is_session(program: &Program) -> bool {
    matches!(
        program.attach_type(),
        Some(AttachType::TRACE_KPROBE_SESSION | AttachType::TRACE_UPROBE_SESSION)
    )
}

/// Probes one by one are no substitute for a session.
#[cold]
pub(super) fn session_refused(
    target: &str,
    tried: Vec<(&'static str, SysError)>,
    since: &'static str,
) -> LinkError {
    match tried.last() {
        Some((_, err)) if !err.is(Errno::EINVAL) => failed(target, tried),
        _ => LinkError::Unsupported {
            feature: "a session at entry and return",
            since,
        },
    }
}

// ------------------------------------------------------------- one probe

/// What to open with a probe unit.
pub(super) struct Place<'a> {
    pub(super) pmu: &'static str,
    /// Symbol or path.
    pub(super) subject: &'a [u8],
    pub(super) offset: u64,
    pub(super) ref_counter: Option<u64>,
    pub(super) on: ProbeOn,
    pub(super) scope: Scope<'a>,
    /// What the name of a tracefs event says, behind `p_` or `r_`.
    pub(super) stem: &'a str,
    /// And behind that.
    pub(super) label: &'a str,
}

/// By the probe unit, or by a tracefs event where there is none.
pub(super) fn attach(
    program: &Program,
    place: &Place<'_>,
    spec: ProbePlace<'_>,
    maxactive: u32,
    way: Way,
    target: String,
) -> Result<Link, LinkError> {
    let mut tried = Vec::new();
    // The unit has no way to say `maxactive`.
    if way.by != Some(Mechanism::ProbeEvent) && maxactive == 0 {
        match open_by_unit(place) {
            Ok(event) => return on_event(program, event, None, way, target),
            Err(err) => {
                // With the unit there, tracefs would answer the same.
                let absent = err.is(Errno::ENOENT) && err.op() == "open";
                tried.push(("perf event", err));
                if !absent {
                    return Err(failed(&target, tried));
                }
            }
        }
    }
    if !wants(way.by, Mechanism::ProbeEvent) {
        if tried.is_empty() {
            return Err(LinkError::Unsupported {
                feature: "maxactive by any way but a tracefs event",
                since: "no version",
            });
        }
        return Err(failed(&target, tried));
    }
    let kind = match place.on {
        ProbeOn::Entry => ProbeKind::Entry,
        ProbeOn::Return => ProbeKind::Return { maxactive },
    };
    match open_by_tracefs(kind, spec, place) {
        Ok((event, name)) => match on_event(program, event, Some(Box::new(name)), way, target) {
            Ok(link) => Ok(link.after(tried)),
            Err(err) => Err(err.after(tried)),
        },
        Err(err) => {
            tried.push(("tracefs event", err));
            Err(failed(&target, tried))
        }
    }
}

fn open_by_unit(place: &Place<'_>) -> Result<PerfEvent, SysError> {
    let pmu = Pmu::find(place.pmu)?;
    let mut config = match place.on {
        ProbeOn::Entry => 0,
        ProbeOn::Return => pmu.config("retprobe", 1)?,
    };
    if let Some(counter) = place.ref_counter {
        config |= pmu.config("ref_ctr_offset", counter)?;
    }
    let subject = c_string(place.subject)?;
    let attr = PerfEventAttr::uprobe(pmu.kind(), config, &subject, place.offset);
    open(&attr, place.scope)
}

/// An event of all threads is opened on one CPU: the probe fires on all.
fn open(attr: &PerfEventAttr<'_>, scope: Scope<'_>) -> Result<PerfEvent, SysError> {
    match scope {
        Scope::AllThreads => any_cpu(attr),
        scope => PerfEvent::open(attr, scope, None, None, OpenFlags::empty()),
    }
}

fn open_by_tracefs(
    kind: ProbeKind,
    spec: ProbePlace<'_>,
    place: &Place<'_>,
) -> Result<(PerfEvent, ProbeEvent), SysError> {
    let tracefs = Tracefs::find()?;
    let file = match spec {
        ProbePlace::Kernel { .. } => ProbeFile::Kprobe,
        ProbePlace::User { .. } => ProbeFile::Uprobe,
    };
    let prefix = match kind {
        ProbeKind::Entry => "p_",
        ProbeKind::Return { .. } => "r_",
    };
    let stem = [prefix, place.stem].concat();
    let name = ProbeEvent::create(tracefs, file, &stem, place.label, &mut |group, name| {
        tracefs.add_probe(&ProbeSpec {
            kind,
            group,
            name,
            place: spec,
        })
    })?;
    let id = tracefs.event_id(name.group(), name.name())?;
    let event = open(&PerfEventAttr::tracepoint(id), place.scope)?;
    Ok((event, name))
}

/// A name for the kernel. An empty one would stand for an address.
pub(super) fn c_string(bytes: &[u8]) -> Result<CString, SysError> {
    match CString::new(bytes) {
        Ok(name) if !bytes.is_empty() => Ok(name),
        _ => Err(SysError::new("probe", Errno::EINVAL)
            .with_detail("the name is empty or contains a NUL byte")),
    }
}
