//! Kernel functions: one by kprobe, many by one multi link.

use std::ffi::CString;
use std::os::fd::AsFd;

use ebpf_manager_sys::abi::bpf::{AttachType, F_KPROBE_MULTI_RETURN, ProgramType};
use ebpf_manager_sys::bpf::{self as sys, KprobeSymbols, LinkCreate, LinkOptions, Target};
use ebpf_manager_sys::perf::Scope;
use ebpf_manager_sys::tracefs::ProbePlace;

use super::probe::{
    Place, ProbeOn, attach, c_string, is_session, may_go_one_by_one, nothing_there, one_by_one,
    session_refused, wants,
};
use super::symbols;
use super::trace::{Way, expect_type, failed};
use super::{Link, Mechanism};
use crate::cure::{self, Cure, Need};
use crate::error::LinkError;
use crate::program::Program;

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
    /// Part of the name of the tracefs event, where one is made: an event is
    /// called `{p,r}_{function}_{label}_{pid}`, cut to 63 bytes. At most 30
    /// bytes count.
    pub label: String,
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
            label: String::new(),
            by: None,
        }
    }

    /// Part of the name of a tracefs event; see
    /// [`Kprobe::label`](#structfield.label).
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Kprobe {
        self.label = label.into();
        self
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
            stem: symbol,
            label: &probe.label,
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
    /// The program's section has to be `kprobe.multi` or `kretprobe.multi`; a
    /// program of a section `kprobe.session` (Linux 6.10) runs at entry and
    /// return, whatever [`KprobeMulti::on`] says.
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
                        ProbeOn::Return if !is_session(program) => F_KPROBE_MULTI_RETURN,
                        _ => 0,
                    },
                },
            };
            match sys::link_create(&create) {
                Ok(fd) => return Ok(Link::of_fd(fd, target, Mechanism::KprobeMulti)),
                Err(err) => tried.push(("kprobe.multi", err)),
            }
        }
        if is_session(program) {
            return Err(session_refused(&target, tried, "6.10"));
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
}
