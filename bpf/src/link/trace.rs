//! Tracepoints and raw tracepoints.

use std::ffi::CString;
use std::os::fd::AsFd;

use ebpf_manager_sys::abi::bpf::{AttachType, ProgramType};
use ebpf_manager_sys::abi::perf::OpenFlags;
use ebpf_manager_sys::bpf::{self as sys, LinkCreate, LinkOptions, Target};
use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};
use ebpf_manager_sys::proc;
use ebpf_manager_sys::tracefs::Tracefs;
use ebpf_manager_sys::{Errno, SysError};

use super::{Inner, Link, Mechanism};
use crate::cure::{self, Cure, Need};
use crate::error::LinkError;
use crate::program::Program;

/// Where tracefs is mounted since Linux 4.1.
const USUAL_TRACEFS: &str = "/sys/kernel/tracing";

impl Link {
    /// Attaches a tracepoint program to `category/name`, as listed below
    /// `events` of tracefs.
    ///
    /// A link on a perf event is used from Linux 5.15; below that the event
    /// runs the program without a link of its own. Requires at least
    /// Linux 4.7 and a mounted tracefs.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::NoTarget`] if there is no such
    /// tracepoint or no tracefs; [`LinkError::Attach`] with every way tried.
    pub fn tracepoint(program: &Program, category: &str, name: &str) -> Result<Link, LinkError> {
        expect_type(program, "tracepoint", &[ProgramType::TRACEPOINT])?;
        let path = format!("{category}/{name}");
        let missing = |source: SysError, cure| LinkError::NoTarget {
            kind: "tracepoint",
            name: path.clone(),
            source,
            cure,
        };
        // Where tracefs usually is there are no such files without it: asking
        // first whether it is mounted would be a system call for nothing.
        let id = match Tracefs::at(USUAL_TRACEFS).event_id(category, name) {
            Ok(id) => id,
            Err(_) => Tracefs::find()
                .map_err(|e| missing(e, Some(Cure::MountTracefs)))?
                .event_id(category, name)
                .map_err(|e| {
                    let cure = cure::find(&e, Need::Tracing);
                    missing(e, cure)
                })?,
        };
        let target = format!("tracepoint {path}");
        let event = open_event(id).map_err(|e| failed(&target, vec![("perf_event_open", e)]))?;
        on_perf_event(program, event, target)
    }

    /// Attaches a raw tracepoint program to the tracepoint `name`.
    ///
    /// Requires at least Linux 4.17.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::NoTarget`] if there is no such
    /// tracepoint; [`LinkError::Attach`].
    pub fn raw_tracepoint(program: &Program, name: &str) -> Result<Link, LinkError> {
        expect_type(
            program,
            "raw tracepoint",
            &[
                ProgramType::RAW_TRACEPOINT,
                ProgramType::RAW_TRACEPOINT_WRITABLE,
            ],
        )?;
        let target = format!("raw tracepoint {name}");
        let no_target = |source: SysError| LinkError::NoTarget {
            kind: "raw tracepoint",
            name: name.to_owned(),
            source,
            cure: None,
        };
        let c_name = CString::new(name)
            .map_err(|_| no_target(SysError::new("bpf(BPF_RAW_TRACEPOINT_OPEN)", Errno::ENOENT)))?;
        match sys::raw_tracepoint_open(Some(&c_name), program.as_fd(), 0) {
            Ok(fd) => Ok(Link {
                target,
                mechanism: Mechanism::RawTracepointOpen,
                inner: Inner::Bpf(fd),
            }),
            Err(err) if err.is(Errno::ENOENT) => Err(no_target(err)),
            Err(err) => Err(failed(&target, vec![("raw_tracepoint_open", err)])),
        }
    }
}

/// Opens a tracepoint's event on one CPU. The program runs on every CPU all the
/// same: it belongs to the tracepoint, not to the event.
fn open_event(id: u64) -> Result<PerfEvent, SysError> {
    let open = |cpu| {
        let attr = PerfEventAttr::tracepoint(id);
        PerfEvent::open(
            &attr,
            Scope::AllThreads,
            Some(cpu),
            None,
            OpenFlags::empty(),
        )
    };
    match open(0) {
        // CPU 0 may be offline.
        Err(err) if err.is(Errno::ENODEV) => match proc::online_cpus()?.first() {
            Some(&cpu) => open(cpu),
            None => Err(err),
        },
        result => result,
    }
}

/// Lets a perf event run a program: by a link, or by ioctl where the kernel
/// has no such links.
pub(super) fn on_perf_event(
    program: &Program,
    event: PerfEvent,
    target: String,
) -> Result<Link, LinkError> {
    let create = LinkCreate {
        object: program.as_fd(),
        target: Target::Fd(event.as_fd()),
        attach_type: AttachType::PERF_EVENT,
        flags: 0,
        options: LinkOptions::None,
    };
    let by_link = match sys::link_create(&create) {
        // The program runs from here on: the event was opened enabled.
        Ok(link) => {
            return Ok(Link {
                target,
                mechanism: Mechanism::PerfEventLink,
                inner: Inner::Bpf(link),
            });
        }
        Err(err) => err,
    };
    // EINVAL is how kernels before 5.15 say that they know no such link; any
    // other answer would be the ioctl's too.
    if !by_link.is(Errno::EINVAL) {
        return Err(failed(&target, vec![("perf event link", by_link)]));
    }
    match event.set_bpf(program.as_fd()) {
        Ok(()) => Ok(Link {
            target,
            mechanism: Mechanism::PerfEventIoctl,
            inner: Inner::PerfEvent(event),
        }),
        Err(err) => Err(failed(
            &target,
            vec![("perf event link", by_link), ("perf event ioctl", err)],
        )),
    }
}

#[cold]
fn failed(target: &str, tried: Vec<(&'static str, SysError)>) -> LinkError {
    let cure = tried
        .last()
        .and_then(|(_, err)| cure::find(err, Need::Tracing));
    LinkError::Attach {
        target: target.to_owned(),
        tried,
        cure,
    }
}

fn expect_type(
    program: &Program,
    hook: &'static str,
    expected: &[ProgramType],
) -> Result<(), LinkError> {
    let found = program.program_type();
    match expected.first() {
        Some(&first) if !expected.contains(&found) => Err(LinkError::WrongType {
            hook,
            expected: first,
            found,
        }),
        _ => Ok(()),
    }
}
