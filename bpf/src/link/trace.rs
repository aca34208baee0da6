//! Tracepoints, raw tracepoints, and the programs that name their hook when
//! they are loaded: fentry and its kin, LSM, tp_btf, freplace, iterators.

use std::any::Any;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use ebpf_manager_sys::abi::bpf::{AttachType, CgroupIterOrder, ProgramType};
use ebpf_manager_sys::abi::perf::OpenFlags;
use ebpf_manager_sys::bpf::{
    self as sys, IterTarget, LinkCreate, LinkDetail, LinkOptions, ObjectKind, Target,
};
use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};
use ebpf_manager_sys::proc;
use ebpf_manager_sys::tracefs::Tracefs;
use ebpf_manager_sys::{Errno, SysError};

use super::{AttachedProgram, Inner, Link, Mechanism};
use crate::cure::{self, Cure, Need, paranoid};
use crate::error::LinkError;
use crate::map::Map;
use crate::program::Program;

/// Where tracefs is mounted since Linux 4.1.
const USUAL_TRACEFS: &str = "/sys/kernel/tracing";

/// How a program that was loaded for its hook is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tracing {
    /// What `bpf_get_attach_cookie` returns. Needs Linux 5.19 when not 0.
    pub cookie: u64,
    /// The only kernel interface to use; `None` tries all, the newest first.
    pub by: Option<Mechanism>,
}

impl Tracing {
    /// Without a cookie.
    pub fn new() -> Tracing {
        Tracing::default()
    }

    /// What `bpf_get_attach_cookie` returns.
    #[must_use]
    pub fn cookie(mut self, cookie: u64) -> Tracing {
        self.cookie = cookie;
        self
    }

    /// Uses this kernel interface and no other.
    #[must_use]
    pub fn attach_by(mut self, mechanism: Mechanism) -> Tracing {
        self.by = Some(mechanism);
        self
    }
}

/// What an iterator walks.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum IterOver<'a> {
    /// Everything of its kind.
    All,
    /// The elements of a map, for `iter/bpf_map_elem` and its like.
    Map(&'a Map),
    /// Control groups, for `iter/cgroup`. Linux 6.1.
    Cgroup {
        /// The way to walk.
        order: CgroupIterOrder,
        /// Descriptor of the directory to start from.
        directory: BorrowedFd<'a>,
    },
    /// One thread, for `iter/task` and its like. Linux 6.1.
    Task {
        /// Its number.
        tid: u32,
    },
    /// The threads of one process, for `iter/task` and its like. Linux 6.1.
    Process {
        /// Its number.
        pid: u32,
    },
}

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
    /// tracepoint or no tracefs; [`LinkError::AlreadyAttached`] if the program
    /// is there already with this cookie; [`LinkError::Attach`] with every way
    /// tried, and with [`Cure::PerfEventParanoid`] where that is the reason.
    pub fn tracepoint(program: &Program, category: &str, name: &str) -> Result<Link, LinkError> {
        Link::tracepoint_with(program, category, name, 0)
    }

    /// As [`Link::tracepoint`], with what `bpf_get_attach_cookie` returns.
    /// Needs Linux 5.15 when not 0.
    ///
    /// # Errors
    /// As [`Link::tracepoint`]; [`LinkError::Unsupported`].
    pub fn tracepoint_with(
        program: &Program,
        category: &str,
        name: &str,
        cookie: u64,
    ) -> Result<Link, LinkError> {
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
        let event = any_cpu(&PerfEventAttr::tracepoint(id))
            .map_err(|e| not_opened(&target, e, paranoid::TRACEPOINT))?;
        on_event(program, event, None, Way { cookie, by: None }, target)
    }

    /// Attaches a raw tracepoint program to the tracepoint `name`.
    ///
    /// Requires at least Linux 4.17.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::NoTarget`] if there is no such
    /// tracepoint; [`LinkError::AlreadyAttached`] if the program is there
    /// already, which matters before Linux 6.10 only; [`LinkError::Attach`].
    pub fn raw_tracepoint(program: &Program, name: &str) -> Result<Link, LinkError> {
        Link::raw_tracepoint_with(program, name, 0)
    }

    /// As [`Link::raw_tracepoint`], with what `bpf_get_attach_cookie` returns.
    /// Needs Linux 6.10 when not 0.
    ///
    /// # Errors
    /// As [`Link::raw_tracepoint`]; [`LinkError::Unsupported`].
    pub fn raw_tracepoint_with(
        program: &Program,
        name: &str,
        cookie: u64,
    ) -> Result<Link, LinkError> {
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
        match sys::raw_tracepoint_open(Some(&c_name), program.as_fd(), cookie) {
            Ok(fd) => Ok(Link::of_fd(fd, target, Mechanism::RawTracepointOpen)),
            Err(err) if err.is(Errno::ENOENT) => Err(no_target(err)),
            Err(err) if cookie != 0 && matches!(err.errno(), Errno::EINVAL | Errno::E2BIG) => {
                Err(LinkError::Unsupported {
                    feature: "an attach cookie of a raw tracepoint",
                    since: "6.10",
                })
            }
            Err(err) => {
                let tried = vec![("raw_tracepoint_open", err)];
                Err(refused(program, &target, tried))
            }
        }
    }

    /// Attaches a program that was loaded for its hook: fentry, fexit,
    /// fmod_ret (Linux 5.5), freplace (5.6), LSM (5.7), tp_btf (5.5), fsession
    /// (7.0).
    ///
    /// Ways, the newest first: a tracing link (5.19 for most of them), and
    /// `raw_tracepoint_open` without a name.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::AlreadyAttached`] if the program
    /// is attached, which it can be once at a time, or (freplace) another has
    /// replaced the function; [`LinkError::Attach`];
    /// [`LinkError::Unsupported`] for a cookie on an old kernel.
    pub fn tracing(program: &Program, hook: &Tracing) -> Result<Link, LinkError> {
        expect_type(
            program,
            "traced function",
            &[ProgramType::TRACING, ProgramType::LSM, ProgramType::EXT],
        )?;
        let target = match (program.section(), program.name()) {
            ("", name) | (name, _) => format!("tracing {name}"),
        };
        let mut tried = Vec::new();
        if hook.by != Some(Mechanism::RawTracepointOpen) {
            let attach_type = program.attach_type().unwrap_or_default();
            let create = LinkCreate {
                object: program.as_fd(),
                target: Target::None,
                attach_type,
                flags: 0,
                options: match hook.cookie {
                    0 => LinkOptions::None,
                    cookie => LinkOptions::Tracing {
                        target_btf_id: 0,
                        cookie,
                    },
                },
            };
            match sys::link_create(&create) {
                Ok(fd) => return Ok(Link::of_fd(fd, target, Mechanism::TracingLink)),
                Err(err) => {
                    let unknown = err.is(Errno::EINVAL) || err.is(Errno::E2BIG);
                    if !unknown && let Some(by) = occupant(program, &err) {
                        return Err(LinkError::AlreadyAttached {
                            target,
                            by,
                            source: err,
                        });
                    }
                    tried.push(("tracing link", err));
                    if !unknown || hook.by.is_some() {
                        return Err(failed(&target, tried));
                    }
                }
            }
        }
        if hook.cookie != 0 {
            return Err(LinkError::Unsupported {
                feature: "an attach cookie",
                since: "5.19",
            });
        }
        match sys::raw_tracepoint_open(None, program.as_fd(), 0) {
            Ok(fd) => Ok(Link::of_fd(fd, target, Mechanism::RawTracepointOpen).after(tried)),
            Err(err) => {
                if let Some(by) = occupant(program, &err) {
                    return Err(LinkError::AlreadyAttached {
                        target,
                        by,
                        source: err,
                    });
                }
                tried.push(("raw_tracepoint_open", attached_before(program, err)));
                Err(failed(&target, tried))
            }
        }
    }

    /// Makes an iterator ready to be read by [`Link::read_iter`]. Requires at
    /// least Linux 5.8; parameters other than [`IterOver::All`] and
    /// [`IterOver::Map`] 6.1.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::Attach`].
    pub fn iter(program: &Program, over: IterOver<'_>) -> Result<Link, LinkError> {
        expect_type(program, "iterator", &[ProgramType::TRACING])?;
        let target = format!("iterator {}", program.target().unwrap_or(program.name()));
        let options = match over {
            IterOver::All => LinkOptions::None,
            IterOver::Map(map) => LinkOptions::Iter(IterTarget::Map(map.as_fd())),
            IterOver::Cgroup { order, directory } => LinkOptions::Iter(IterTarget::Cgroup {
                order,
                cgroup: Some(directory),
                cgroup_id: 0,
            }),
            IterOver::Task { tid } => LinkOptions::Iter(IterTarget::Task { tid, pid: 0 }),
            IterOver::Process { pid } => LinkOptions::Iter(IterTarget::Task { tid: 0, pid }),
        };
        let create = LinkCreate {
            object: program.as_fd(),
            target: Target::None,
            attach_type: AttachType::TRACE_ITER,
            flags: 0,
            options,
        };
        match sys::link_create(&create) {
            Ok(fd) => Ok(Link::of_fd(fd, target, Mechanism::Iterator)),
            Err(err) => Err(failed(&target, vec![("iterator link", err)])),
        }
    }

    /// Starts an iteration: what the program prints is what is read. Each call
    /// starts from the beginning.
    ///
    /// # Errors
    /// [`LinkError::Operation`]; `EINVAL` if the link is no iterator.
    pub fn read_iter(&self) -> Result<File, LinkError> {
        let Some(link) = self.inner.link() else {
            return Err(self.impossible("be read"));
        };
        sys::iter_create(link)
            .map(File::from)
            .map_err(|source| self.operation(source))
    }
}

/// Says so if the kernel may have refused because the program was attached
/// once already: it says so itself by an error that means many things.
#[cold]
fn attached_before(program: &Program, err: SysError) -> SysError {
    match (program.program_type(), err.errno()) {
        (ProgramType::EXT, Errno::EINVAL) => err.with_detail(
            "one that was attached before goes there again by Link::freplace only (Linux 5.10)",
        ),
        (_, Errno::ENOENT) => err.with_detail(
            "Linux before 5.13 attaches such a program once: load it again to attach it again",
        ),
        _ => err,
    }
}

/// Who is where a typed program was to go: itself, since the kernel attaches it
/// once at a time, or what replaced the same function before. `None` if the
/// kernel had another reason to refuse, or does not tell.
#[cold]
fn occupant(program: &Program, refusal: &SysError) -> Option<AttachedProgram> {
    if !matches!(
        refusal.errno(),
        Errno::EBUSY | Errno::EEXIST | Errno::EINVAL | Errno::ENOENT
    ) {
        return None;
    }
    let own = sys::prog_info(program.as_fd()).ok()?;
    let replaces = program.program_type() == ProgramType::EXT;
    let mut last = 0;
    while let Ok(Some(id)) = sys::next_id(ObjectKind::Link, last) {
        last = id;
        let Ok(link) = sys::fd_by_id(ObjectKind::Link, id, 0) else {
            continue;
        };
        let Ok(info) = sys::link_info(link.as_fd()) else {
            continue;
        };
        let LinkDetail::Tracing(it) = info.detail else {
            continue;
        };
        // The link tells the program that was changed, its program the types
        // of that.
        let same_types = || {
            sys::fd_by_id(ObjectKind::Program, it.target_obj_id, 0)
                .and_then(|target| sys::prog_info(target.as_fd()))
                .is_ok_and(|target| target.btf_id == own.attach_btf_obj_id)
        };
        let same_place = replaces
            && refusal.is(Errno::EBUSY)
            && it.target_btf_id == own.attach_btf_id
            && same_types();
        if info.prog_id == own.id || same_place {
            return Some(AttachedProgram::new(info.prog_id, id));
        }
    }
    None
}

/// No way was left. A tracepoint has a program once, and `EEXIST` says that it
/// has it.
#[cold]
fn refused(program: &Program, target: &str, tried: Vec<(&'static str, SysError)>) -> LinkError {
    let taken = tried.last().filter(|(_, err)| err.is(Errno::EEXIST));
    match (taken, sys::prog_info(program.as_fd())) {
        (Some((_, source)), Ok(own)) => LinkError::AlreadyAttached {
            target: target.to_owned(),
            by: AttachedProgram::itself(&own),
            source: source.clone(),
        },
        _ => failed(target, tried),
    }
}

/// How a program is put on a perf event.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way {
    /// 0 for none.
    pub(super) cookie: u64,
    /// The only mechanism to use.
    pub(super) by: Option<Mechanism>,
}

/// Opens an event on one CPU. The program runs on every CPU all the same: it
/// belongs to the tracepoint or probe, not to the event.
pub(super) fn any_cpu(attr: &PerfEventAttr<'_>) -> Result<PerfEvent, SysError> {
    let open = |cpu| PerfEvent::open(attr, Scope::AllThreads, Some(cpu), None, OpenFlags::empty());
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
/// has no such links. `name` is the tracefs event it is of, if we made it.
pub(super) fn on_event(
    program: &Program,
    event: PerfEvent,
    name: Option<Box<dyn Any + Send + Sync>>,
    way: Way,
    target: String,
) -> Result<Link, LinkError> {
    let made = |link, event, by_perf| {
        let mechanism = if name.is_some() {
            Mechanism::ProbeEvent
        } else {
            by_perf
        };
        let inner = Inner::Perf { link, event, name };
        Link::new(String::new(), mechanism, inner)
    };
    let mut tried = Vec::new();
    if way.by != Some(Mechanism::PerfEventIoctl) {
        let create = LinkCreate {
            object: program.as_fd(),
            target: Target::Fd(event.as_fd()),
            attach_type: AttachType::PERF_EVENT,
            flags: 0,
            options: LinkOptions::PerfEvent { cookie: way.cookie },
        };
        match sys::link_create(&create) {
            // The program runs from here on: events are opened enabled.
            Ok(link) => {
                let made = made(Some(link), event, Mechanism::PerfEventLink);
                return Ok(Link { target, ..made });
            }
            Err(err) => {
                // EINVAL is how kernels before 5.15 say that they know no such
                // link, E2BIG that they know no cookie; any other answer would
                // be the ioctl's too.
                let unknown = err.is(Errno::EINVAL) || err.is(Errno::E2BIG);
                let only = way.by == Some(Mechanism::PerfEventLink);
                if only
                    && err.is(Errno::EINVAL)
                    && let Some(found) = program.attach_type()
                {
                    // A multi link's, to which no other link is made.
                    drop(event);
                    let hook = AttachType::PERF_EVENT;
                    return Err(LinkError::WrongAttachType { hook, found });
                }
                tried.push(("perf event link", err));
                if !unknown || only {
                    // Before what made it in tracefs is removed.
                    drop(event);
                    return Err(refused(program, &target, tried));
                }
            }
        }
    }
    if way.cookie != 0 {
        drop(event);
        return Err(LinkError::Unsupported {
            feature: "an attach cookie",
            since: "5.15",
        });
    }
    match event.set_bpf(program.as_fd()) {
        Ok(()) => {
            let made = made(None, event, Mechanism::PerfEventIoctl);
            Ok(Link { target, ..made }.after(tried))
        }
        Err(err) => {
            tried.push(("perf event ioctl", err));
            drop(event);
            Err(refused(program, &target, tried))
        }
    }
}

#[cold]
pub(super) fn failed(target: &str, tried: Vec<(&'static str, SysError)>) -> LinkError {
    let cure = tried
        .last()
        .and_then(|(_, err)| cure::find(err, Need::Tracing));
    LinkError::Attach {
        target: target.to_owned(),
        tried,
        cure,
    }
}

/// A perf event could not be opened.
#[cold]
pub(super) fn not_opened(target: &str, err: SysError, allowed: i64) -> LinkError {
    LinkError::Attach {
        target: target.to_owned(),
        cure: cure::find_for_event(&err, allowed),
        tried: vec![("perf_event_open", err)],
    }
}

pub(super) fn expect_type(
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
