//! Kprobes and uprobes: one place by perf event or tracefs event, many places
//! by one multi link.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ebpf_manager_sys::abi::bpf::{
    AttachType, F_KPROBE_MULTI_RETURN, F_UPROBE_MULTI_RETURN, ProgramType,
};
use ebpf_manager_sys::abi::perf::OpenFlags;
use ebpf_manager_sys::bpf::{self as sys, KprobeSymbols, LinkCreate, LinkOptions, Target};
use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};
use ebpf_manager_sys::pmu::Pmu;
use ebpf_manager_sys::tracefs::{ProbeFile, ProbeKind, ProbePlace, ProbeSpec, Tracefs};
use ebpf_manager_sys::{Errno, SysError};

use super::event::ProbeEvent;
use super::symbols;
use super::trace::{Way, any_cpu, expect_type, failed, on_event};
use super::{Link, Mechanism};
use crate::cure::{self, Cure, Need};
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

/// A kernel function to probe, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kprobe {
    /// Function, as in kallsyms; `module:function` for one of a module.
    pub function: KernelFunction,
    /// Bytes from its start, for [`ProbeOn::Entry`] only.
    pub offset: u64,
    /// Entry or return.
    pub on: ProbeOn,
    /// Calls that can be in flight at once, for [`ProbeOn::Return`]; 0 lets
    /// the kernel choose. Anything else needs a tracefs event, and Linux 4.12.
    pub maxactive: u32,
    /// What `bpf_get_attach_cookie` returns. Needs Linux 5.15 when not 0.
    pub cookie: u64,
    /// The only kernel interface to use; `None` tries all, the newest first.
    pub by: Option<Mechanism>,
}

/// Which kernel function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelFunction {
    /// By name.
    Symbol(String),
    /// The one that serves a system call, whatever this kernel calls it:
    /// `"openat"`.
    Syscall(String),
}

impl Kprobe {
    /// The entry of the function `symbol`.
    pub fn new(symbol: impl Into<String>) -> Kprobe {
        Kprobe::of(KernelFunction::Symbol(symbol.into()))
    }

    /// The entry of the function behind the system call `name`; see
    /// [`syscall_function`](crate::syscall_function).
    pub fn syscall(name: impl Into<String>) -> Kprobe {
        Kprobe::of(KernelFunction::Syscall(name.into()))
    }

    fn of(function: KernelFunction) -> Kprobe {
        Kprobe {
            function,
            offset: 0,
            on: ProbeOn::Entry,
            maxactive: 0,
            cookie: 0,
            by: None,
        }
    }

    /// So many bytes into the function.
    #[must_use]
    pub fn offset(mut self, bytes: u64) -> Kprobe {
        self.offset = bytes;
        self
    }

    /// The function's return.
    #[must_use]
    pub fn on_return(mut self) -> Kprobe {
        self.on = ProbeOn::Return;
        self
    }

    /// Calls in flight at once; see [`Kprobe::maxactive`](#structfield.maxactive).
    #[must_use]
    pub fn maxactive(mut self, calls: u32) -> Kprobe {
        self.maxactive = calls;
        self
    }

    /// What `bpf_get_attach_cookie` returns.
    #[must_use]
    pub fn cookie(mut self, cookie: u64) -> Kprobe {
        self.cookie = cookie;
        self
    }

    /// Uses this kernel interface and no other.
    #[must_use]
    pub fn attach_by(mut self, mechanism: Mechanism) -> Kprobe {
        self.by = Some(mechanism);
        self
    }
}

/// Many kernel functions to probe with one link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KprobeMulti {
    /// Functions by name.
    pub symbols: Vec<String>,
    /// All traceable functions that this matches, `*` and `?` being
    /// wildcards.
    pub pattern: Option<String>,
    /// A cookie for each of `symbols`, or none at all. Not with a pattern.
    pub cookies: Vec<u64>,
    /// Entry or return.
    pub on: ProbeOn,
    /// The only kernel interface to use; `None` tries all, the newest first.
    pub by: Option<Mechanism>,
}

impl KprobeMulti {
    /// The entries of these functions.
    pub fn symbols<S: Into<String>>(symbols: impl IntoIterator<Item = S>) -> KprobeMulti {
        KprobeMulti {
            symbols: symbols.into_iter().map(Into::into).collect(),
            ..KprobeMulti::default()
        }
    }

    /// The entries of all traceable functions that `pattern` matches.
    pub fn pattern(pattern: impl Into<String>) -> KprobeMulti {
        KprobeMulti {
            pattern: Some(pattern.into()),
            ..KprobeMulti::default()
        }
    }

    /// A cookie for each symbol.
    #[must_use]
    pub fn cookies(mut self, cookies: impl Into<Vec<u64>>) -> KprobeMulti {
        self.cookies = cookies.into();
        self
    }

    /// The functions' returns.
    #[must_use]
    pub fn on_return(mut self) -> KprobeMulti {
        self.on = ProbeOn::Return;
        self
    }

    /// Uses this kernel interface and no other.
    #[must_use]
    pub fn attach_by(mut self, mechanism: Mechanism) -> KprobeMulti {
        self.by = Some(mechanism);
        self
    }
}

/// Which places of a user binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserPlace {
    /// A function of `.symtab` or `.dynsym`, perhaps with a version
    /// (`fork@GLIBC_2.2.5`), and bytes into it.
    Symbol {
        /// Its name.
        name: String,
        /// Bytes from its start.
        offset: u64,
    },
    /// Bytes from the start of the file.
    Offset(u64),
}

/// A place in user code to probe, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Uprobe {
    /// The executable or library. With [`Uprobe::pid`](#structfield.pid) it
    /// is looked up in that process's root; a bare name is a library, looked
    /// for in its mappings and then where the dynamic linker would.
    pub path: PathBuf,
    /// Where in it.
    pub place: UserPlace,
    /// Entry or return.
    pub on: ProbeOn,
    /// Only this process; `None` for all.
    pub pid: Option<u32>,
    /// File offset of a 16-bit counter that is above zero while the probe is
    /// attached. Needs Linux 4.20.
    pub ref_counter: Option<u64>,
    /// What `bpf_get_attach_cookie` returns. Needs Linux 5.15 when not 0.
    pub cookie: u64,
    /// The only kernel interface to use; `None` tries all, the newest first.
    pub by: Option<Mechanism>,
}

impl Uprobe {
    /// The entry of the function `symbol` of `path`.
    pub fn symbol(path: impl Into<PathBuf>, symbol: impl Into<String>) -> Uprobe {
        Uprobe::at(
            path.into(),
            UserPlace::Symbol {
                name: symbol.into(),
                offset: 0,
            },
        )
    }

    /// The place `offset` bytes into the file `path`.
    pub fn offset(path: impl Into<PathBuf>, offset: u64) -> Uprobe {
        Uprobe::at(path.into(), UserPlace::Offset(offset))
    }

    /// So many bytes into the function. An offset into the file stays as it
    /// is.
    #[must_use]
    pub fn into_symbol(mut self, bytes: u64) -> Uprobe {
        if let UserPlace::Symbol { offset, .. } = &mut self.place {
            *offset = bytes;
        }
        self
    }

    fn at(path: PathBuf, place: UserPlace) -> Uprobe {
        Uprobe {
            path,
            place,
            on: ProbeOn::Entry,
            pid: None,
            ref_counter: None,
            cookie: 0,
            by: None,
        }
    }

    /// The function's return.
    #[must_use]
    pub fn on_return(mut self) -> Uprobe {
        self.on = ProbeOn::Return;
        self
    }

    /// Only in this process.
    #[must_use]
    pub fn pid(mut self, pid: u32) -> Uprobe {
        self.pid = Some(pid);
        self
    }

    /// Counts attached probes at this file offset.
    #[must_use]
    pub fn ref_counter(mut self, offset: u64) -> Uprobe {
        self.ref_counter = Some(offset);
        self
    }

    /// What `bpf_get_attach_cookie` returns.
    #[must_use]
    pub fn cookie(mut self, cookie: u64) -> Uprobe {
        self.cookie = cookie;
        self
    }

    /// Uses this kernel interface and no other.
    #[must_use]
    pub fn attach_by(mut self, mechanism: Mechanism) -> Uprobe {
        self.by = Some(mechanism);
        self
    }
}

/// Many places in one user binary to probe with one link.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UprobeMulti {
    /// The executable or library, looked up as [`Uprobe`] does.
    pub path: PathBuf,
    /// Places.
    pub places: Vec<UserPlace>,
    /// All functions that this matches, `*` and `?` being wildcards.
    pub pattern: Option<String>,
    /// A cookie for each of `places`, or none at all. Not with a pattern.
    pub cookies: Vec<u64>,
    /// Entry or return.
    pub on: ProbeOn,
    /// Only this process; `None` for all.
    pub pid: Option<u32>,
    /// The only kernel interface to use; `None` tries all, the newest first.
    pub by: Option<Mechanism>,
}

impl UprobeMulti {
    /// The entries of these functions of `path`.
    pub fn symbols<S: Into<String>>(
        path: impl Into<PathBuf>,
        symbols: impl IntoIterator<Item = S>,
    ) -> UprobeMulti {
        let places = symbols
            .into_iter()
            .map(|name| UserPlace::Symbol {
                name: name.into(),
                offset: 0,
            })
            .collect();
        UprobeMulti {
            path: path.into(),
            places,
            pattern: None,
            cookies: Vec::new(),
            on: ProbeOn::Entry,
            pid: None,
            by: None,
        }
    }

    /// The entries of all functions of `path` that `pattern` matches.
    pub fn pattern(path: impl Into<PathBuf>, pattern: impl Into<String>) -> UprobeMulti {
        let mut multi = UprobeMulti::symbols(path, [""; 0]);
        multi.pattern = Some(pattern.into());
        multi
    }

    /// A cookie for each place.
    #[must_use]
    pub fn cookies(mut self, cookies: impl Into<Vec<u64>>) -> UprobeMulti {
        self.cookies = cookies.into();
        self
    }

    /// The functions' returns.
    #[must_use]
    pub fn on_return(mut self) -> UprobeMulti {
        self.on = ProbeOn::Return;
        self
    }

    /// Only in this process.
    #[must_use]
    pub fn pid(mut self, pid: u32) -> UprobeMulti {
        self.pid = Some(pid);
        self
    }

    /// Uses this kernel interface and no other.
    #[must_use]
    pub fn attach_by(mut self, mechanism: Mechanism) -> UprobeMulti {
        self.by = Some(mechanism);
        self
    }
}

impl Link {
    /// Attaches a kprobe program to a kernel function.
    ///
    /// Ways, the newest first: a link on a perf event (Linux 5.15), a perf
    /// event that runs the program (4.17), an event in `kprobe_events`, which
    /// is removed with the link. Requires at least Linux 4.1 with
    /// `CONFIG_KPROBES`.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::NoTarget`] for a system call
    /// that this kernel does not have; [`LinkError::Attach`] with every way
    /// tried, and with [`Cure::NoSuchSymbol`], [`Cure::NotTraceable`],
    /// [`Cure::AmbiguousSymbol`] or [`Cure::NoKprobes`] where that shows;
    /// [`LinkError::Unsupported`] for a cookie on an old kernel.
    pub fn kprobe(program: &Program, probe: &Kprobe) -> Result<Link, LinkError> {
        expect_type(program, "kprobe", &[ProgramType::KPROBE])?;
        let resolved;
        let symbol = match &probe.function {
            KernelFunction::Symbol(symbol) => symbol,
            KernelFunction::Syscall(name) => {
                resolved = symbols::syscall_function(name)?;
                &resolved
            }
        };
        let kind = match probe.on {
            ProbeOn::Entry => "kprobe",
            ProbeOn::Return => "kretprobe",
        };
        let target = match probe.offset {
            0 => [kind, " ", symbol].concat(),
            offset => format!("{kind} {symbol}+{offset}"),
        };
        let place = Place {
            pmu: "kprobe",
            subject: symbol.as_bytes(),
            offset: probe.offset,
            ref_counter: None,
            on: probe.on,
            scope: Scope::AllThreads,
        };
        let spec = ProbePlace::Kernel {
            symbol,
            offset: probe.offset,
        };
        let maxactive = match probe.on {
            ProbeOn::Entry => 0,
            ProbeOn::Return => probe.maxactive,
        };
        let way = Way {
            cookie: probe.cookie,
            by: probe.by,
        };
        attach(program, &place, spec, maxactive, way, target).map_err(|err| match err {
            LinkError::Attach { target, tried, .. } => {
                let cure = tried
                    .last()
                    .filter(|_| !nothing_there(&tried))
                    .and_then(|(_, err)| symbols::why_not(symbol, err))
                    .or_else(|| nothing_there(&tried).then_some(Cure::NoKprobes));
                LinkError::Attach {
                    target,
                    tried,
                    cure,
                }
            }
            err => err,
        })
    }

    /// Attaches a program to many kernel functions with one link
    /// (kprobe.multi, Linux 5.18 with `CONFIG_FPROBE`). Kernels without it get
    /// one probe for each function, held by the same link.
    ///
    /// The program's section has to be `kprobe.multi` or `kretprobe.multi`.
    ///
    /// # Errors
    /// As [`Link::kprobe`]; [`LinkError::NoTarget`] also if nothing matches
    /// the pattern or the list of functions cannot be read.
    pub fn kprobe_multi(program: &Program, probe: &KprobeMulti) -> Result<Link, LinkError> {
        expect_type(program, "kprobe.multi", &[ProgramType::KPROBE])?;
        let mut all = probe.symbols.clone();
        if let Some(pattern) = &probe.pattern {
            all.extend(symbols::traceable_functions(pattern)?);
        }
        let target = match (all.as_slice(), &probe.pattern) {
            (_, Some(pattern)) => format!("kprobe.multi {pattern}"),
            ([one], None) => format!("kprobe.multi {one}"),
            (many, None) => format!("kprobe.multi {} functions", many.len()),
        };
        let mut tried = Vec::new();
        if wants(probe.by, Mechanism::KprobeMulti) {
            let names: Result<Vec<CString>, _> =
                all.iter().map(|s| c_string(s.as_bytes())).collect();
            let names = names.map_err(|e| failed(&target, vec![("kprobe.multi", e)]))?;
            let names: Vec<_> = names.iter().map(CString::as_c_str).collect();
            let create = LinkCreate {
                object: program.as_fd(),
                target: Target::None,
                attach_type: program
                    .attach_type()
                    .unwrap_or(AttachType::TRACE_KPROBE_MULTI),
                flags: 0,
                options: LinkOptions::KprobeMulti {
                    symbols: KprobeSymbols::Names(&names),
                    cookies: &probe.cookies,
                    flags: match probe.on {
                        ProbeOn::Entry => 0,
                        ProbeOn::Return => F_KPROBE_MULTI_RETURN,
                    },
                },
            };
            match sys::link_create(&create) {
                Ok(fd) => return Ok(Link::of_fd(fd, target, Mechanism::KprobeMulti)),
                Err(err) => tried.push(("kprobe.multi", err)),
            }
        }
        if !may_go_one_by_one(&tried) {
            let cure = match (tried.last(), all.as_slice()) {
                (Some((_, err)), [one]) => symbols::why_not(one, err),
                (Some((_, err)), _) => cure::find(err, Need::Tracing),
                (None, _) => None,
            };
            return Err(LinkError::Attach {
                target,
                tried,
                cure,
            });
        }
        one_by_one(target, tried, all.len(), &mut |index| {
            let mut single = Kprobe::new(all.get(index).cloned().unwrap_or_default());
            single.on = probe.on;
            single.cookie = probe.cookies.get(index).copied().unwrap_or(0);
            single.by = probe.by;
            Link::kprobe(program, &single)
        })
    }

    /// Attaches a uprobe program to a place in an executable or library.
    ///
    /// Ways, the newest first: a link on a perf event (Linux 5.15), a perf
    /// event that runs the program (4.17), an event in `uprobe_events`, which
    /// is removed with the link. Requires at least Linux 4.3 with
    /// `CONFIG_UPROBES`.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::NoTarget`] if there is no such
    /// file; [`LinkError::Symbol`] if it has no such function;
    /// [`LinkError::Attach`] with every way tried;
    /// [`LinkError::Unsupported`] for a cookie on an old kernel.
    pub fn uprobe(program: &Program, probe: &Uprobe) -> Result<Link, LinkError> {
        expect_type(program, "uprobe", &[ProgramType::KPROBE])?;
        let path = find_binary(&probe.path, probe.pid)?;
        let offset = match &probe.place {
            UserPlace::Offset(offset) => *offset,
            UserPlace::Symbol { name, offset } => {
                let bytes = symbols::read_binary(&path)?;
                symbols::user_offset(&bytes, &path, name, *offset)?
            }
        };
        uprobe_at(program, probe, &path, offset)
    }

    /// Attaches a program to many places of a binary with one link
    /// (uprobe.multi, Linux 6.6). Kernels without it get one probe for each
    /// place, held by the same link.
    ///
    /// The program's section has to be `uprobe.multi` or `uretprobe.multi`.
    ///
    /// # Errors
    /// As [`Link::uprobe`].
    pub fn uprobe_multi(program: &Program, probe: &UprobeMulti) -> Result<Link, LinkError> {
        expect_type(program, "uprobe.multi", &[ProgramType::KPROBE])?;
        let path = find_binary(&probe.path, probe.pid)?;
        let bytes = symbols::read_binary(&path)?;
        let mut offsets = Vec::with_capacity(probe.places.len());
        for place in &probe.places {
            offsets.push(match place {
                UserPlace::Offset(offset) => *offset,
                UserPlace::Symbol { name, offset } => {
                    symbols::user_offset(&bytes, &path, name, *offset)?
                }
            });
        }
        if let Some(pattern) = &probe.pattern {
            offsets.extend(symbols::user_offsets(&bytes, &path, pattern)?);
        }
        drop(bytes);
        let target = format!(
            "uprobe.multi {}: {} places",
            probe.path.display(),
            offsets.len()
        );
        let mut tried = Vec::new();
        if wants(probe.by, Mechanism::UprobeMulti) {
            let c_path = c_string(path.as_os_str().as_bytes())
                .map_err(|e| failed(&target, vec![("uprobe.multi", e)]))?;
            let create = LinkCreate {
                object: program.as_fd(),
                target: Target::None,
                attach_type: program
                    .attach_type()
                    .unwrap_or(AttachType::TRACE_UPROBE_MULTI),
                flags: 0,
                options: LinkOptions::UprobeMulti {
                    path: &c_path,
                    offsets: &offsets,
                    ref_ctr_offsets: &[],
                    cookies: &probe.cookies,
                    flags: match probe.on {
                        ProbeOn::Entry => 0,
                        ProbeOn::Return => F_UPROBE_MULTI_RETURN,
                    },
                    pid: probe.pid.unwrap_or(0),
                },
            };
            match sys::link_create(&create) {
                Ok(fd) => return Ok(Link::of_fd(fd, target, Mechanism::UprobeMulti)),
                Err(err) => tried.push(("uprobe.multi", err)),
            }
        }
        if !may_go_one_by_one(&tried) {
            return Err(failed(&target, tried));
        }
        one_by_one(target, tried, offsets.len(), &mut |index| {
            let offset = offsets.get(index).copied().unwrap_or(0);
            let mut single = Uprobe::offset(&probe.path, offset);
            single.on = probe.on;
            single.pid = probe.pid;
            single.cookie = probe.cookies.get(index).copied().unwrap_or(0);
            single.by = probe.by;
            uprobe_at(program, &single, &path, offset)
        })
    }
}

/// One or many probes: EINVAL, EOPNOTSUPP and E2BIG are what kernels answer
/// that do not know multi links, or were built without them.
fn may_go_one_by_one(tried: &[(&'static str, SysError)]) -> bool {
    tried.last().is_none_or(|(_, err)| {
        matches!(
            err.errno(),
            Errno::EINVAL | Errno::EOPNOTSUPP | Errno::E2BIG
        )
    })
}

/// A probe for each of `count` places; the first failure takes back the rest.
fn one_by_one(
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
            Err(LinkError::Attach {
                tried: more, cure, ..
            }) => {
                let tried = tried.into_iter().chain(more).collect();
                return Err(LinkError::Attach {
                    target,
                    tried,
                    cure,
                });
            }
            Err(err) => return Err(err),
        }
    }
    match whole {
        Some(link) => Ok(Link { target, ..link }),
        None => Err(failed(&target, tried)),
    }
}

/// Whether to try `way`.
fn wants(by: Option<Mechanism>, way: Mechanism) -> bool {
    by.is_none_or(|by| by == way)
}

/// True if the kernel has neither the unit nor the file for this kind of
/// probe.
fn nothing_there(tried: &[(&'static str, SysError)]) -> bool {
    tried
        .iter()
        .all(|(_, err)| err.is(Errno::ENOENT) && err.op() == "open")
}

fn find_binary(path: &Path, pid: Option<u32>) -> Result<PathBuf, LinkError> {
    symbols::user_file(path, pid).map_err(|source| LinkError::NoTarget {
        kind: "binary",
        name: path.display().to_string(),
        source,
        cure: None,
    })
}

fn uprobe_at(
    program: &Program,
    probe: &Uprobe,
    path: &Path,
    offset: u64,
) -> Result<Link, LinkError> {
    let kind = match probe.on {
        ProbeOn::Entry => "uprobe",
        ProbeOn::Return => "uretprobe",
    };
    let file = probe.path.display();
    let target = match &probe.place {
        UserPlace::Offset(offset) => format!("{kind} {file}:{offset:#x}"),
        UserPlace::Symbol { name, offset: 0 } => format!("{kind} {file}:{name}"),
        UserPlace::Symbol { name, offset } => format!("{kind} {file}:{name}+{offset}"),
    };
    let place = Place {
        pmu: "uprobe",
        subject: path.as_os_str().as_bytes(),
        offset,
        ref_counter: probe.ref_counter,
        on: probe.on,
        scope: probe.pid.map_or(Scope::AllThreads, Scope::Thread),
    };
    let Some(text) = path.to_str() else {
        let err = SysError::new("open", Errno::EINVAL)
            .with_path(path)
            .with_detail("the path is not UTF-8");
        return Err(failed(&target, vec![("perf event", err)]));
    };
    let spec = ProbePlace::User {
        path: text,
        offset,
        ref_counter: probe.ref_counter,
    };
    let way = Way {
        cookie: probe.cookie,
        by: probe.by,
    };
    attach(program, &place, spec, 0, way, target).map_err(|err| match err {
        LinkError::Attach {
            target,
            tried,
            cure,
        } => {
            let cure = cure.or_else(|| nothing_there(&tried).then_some(Cure::NoUprobes));
            LinkError::Attach {
                target,
                tried,
                cure,
            }
        }
        err => err,
    })
}

// ------------------------------------------------------------- one probe

/// What to open with a probe unit.
struct Place<'a> {
    pmu: &'static str,
    /// Symbol or path.
    subject: &'a [u8],
    offset: u64,
    ref_counter: Option<u64>,
    on: ProbeOn,
    scope: Scope<'a>,
}

/// By the probe unit, or by a tracefs event where there is none.
fn attach(
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
    match open_by_tracefs(kind, spec, place.scope) {
        Ok((event, name)) => on_event(program, event, Some(Box::new(name)), way, target),
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
    place: ProbePlace<'_>,
    scope: Scope<'_>,
) -> Result<(PerfEvent, ProbeEvent), SysError> {
    let tracefs = Tracefs::find()?;
    let file = match place {
        ProbePlace::Kernel { .. } => ProbeFile::Kprobe,
        ProbePlace::User { .. } => ProbeFile::Uprobe,
    };
    let stem = match (kind, place) {
        (ProbeKind::Entry, ProbePlace::Kernel { symbol, .. }) => ["p_", symbol].concat(),
        (ProbeKind::Return { .. }, ProbePlace::Kernel { symbol, .. }) => ["r_", symbol].concat(),
        (ProbeKind::Entry, ProbePlace::User { .. }) => "p_user".to_owned(),
        (ProbeKind::Return { .. }, ProbePlace::User { .. }) => "r_user".to_owned(),
    };
    let name = ProbeEvent::create(tracefs, file, &stem, &mut |group, name| {
        tracefs.add_probe(&ProbeSpec {
            kind,
            group,
            name,
            place,
        })
    })?;
    let id = tracefs.event_id(name.group(), name.name())?;
    let event = open(&PerfEventAttr::tracepoint(id), scope)?;
    Ok((event, name))
}

/// A name for the kernel. An empty one would stand for an address.
fn c_string(bytes: &[u8]) -> Result<CString, SysError> {
    match CString::new(bytes) {
        Ok(name) if !bytes.is_empty() => Ok(name),
        _ => Err(SysError::new("probe", Errno::EINVAL)
            .with_detail("the name is empty or contains a NUL byte")),
    }
}
