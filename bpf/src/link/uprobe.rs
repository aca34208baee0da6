//! Places in user code: one by uprobe, many by one multi link.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ebpf_manager_sys::abi::bpf::{AttachType, F_UPROBE_MULTI_RETURN, ProgramType};
use ebpf_manager_sys::bpf::{self as sys, LinkCreate, LinkOptions, Target};
use ebpf_manager_sys::perf::Scope;
use ebpf_manager_sys::tracefs::ProbePlace;
use ebpf_manager_sys::{Errno, SysError};

use super::probe::{
    Place, ProbeOn, attach, c_string, is_session, may_go_one_by_one, nothing_there, one_by_one,
    session_refused, wants,
};
use super::trace::{Way, expect_type, failed};
use super::{Link, Mechanism};
use super::{library, symbols};
use crate::cure::Cure;
use crate::error::LinkError;
use crate::program::Program;

/// Which places of a user binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserPlace {
    /// A function of `.symtab` or `.dynsym`, and bytes into it. Perhaps with
    /// a version: `fork@GLIBC_2.2.5` is of this version, `fork@@GLIBC_2.34`
    /// too, and what programs are linked with today.
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
    /// for in its mappings and then where the dynamic linker would: below
    /// `$LD_LIBRARY_PATH`, in `/etc/ld.so.cache`, in the usual directories.
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
    /// Part of the name of the tracefs event, where one is made: an event is
    /// called `{p,r}_{symbol}_{label}_{pid}`, cut to 63 bytes. At most 30
    /// bytes count.
    pub label: String,
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
            label: String::new(),
            by: None,
        }
    }

    /// Part of the name of a tracefs event; see
    /// [`Uprobe::label`](#structfield.label).
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Uprobe {
        self.label = label.into();
        self
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
    /// For each of `places` the file offset of a counter of attached probes, 0
    /// for none; or nothing at all. Not with a pattern.
    pub ref_counters: Vec<u64>,
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
            ref_counters: Vec::new(),
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
    /// The program's section has to be `uprobe.multi` or `uretprobe.multi`; a
    /// program of a section `uprobe.session` (Linux 6.13) runs at entry and
    /// return, whatever [`UprobeMulti::on`] says.
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
        let places: Vec<At> = offsets
            .iter()
            .enumerate()
            .map(|(index, &offset)| At {
                offset,
                ref_counter: probe.ref_counters.get(index).copied().unwrap_or(0),
                cookie: probe.cookies.get(index).copied().unwrap_or(0),
            })
            .collect();
        let none_or_all = |count| count == 0 || count == places.len();
        if !none_or_all(probe.cookies.len()) || !none_or_all(probe.ref_counters.len()) {
            let err = SysError::new("uprobe.multi", Errno::EINVAL)
                .with_detail("one cookie and one counter for each place, or none");
            return Err(failed(&target, vec![("uprobe.multi", err)]));
        }
        let mut all = Uprobe::offset(&probe.path, 0);
        all.on = probe.on;
        all.pid = probe.pid;
        all.by = probe.by;
        uprobe_many(program, &all, &path, &places, target)
    }
}

pub(super) fn find_binary(path: &Path, pid: Option<u32>) -> Result<PathBuf, LinkError> {
    library::user_file(path, pid).map_err(|source| LinkError::NoTarget {
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
        stem: match &probe.place {
            UserPlace::Symbol { name, .. } => name,
            UserPlace::Offset(_) => {
                let name = path.file_name().and_then(|name| name.to_str());
                name.unwrap_or("user")
            }
        },
        label: &probe.label,
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

/// One of many places in a binary. 0 is no counter, and no cookie.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) offset: u64,
    pub(super) ref_counter: u64,
    pub(super) cookie: u64,
}

/// Attaches to all of `places` in `path`, otherwise as `like` says: by one
/// multi link, or one by one where the kernel has none.
pub(super) fn uprobe_many(
    program: &Program,
    like: &Uprobe,
    path: &Path,
    places: &[At],
    target: String,
) -> Result<Link, LinkError> {
    let mut tried = Vec::new();
    if wants(like.by, Mechanism::UprobeMulti) {
        let c_path = c_string(path.as_os_str().as_bytes())
            .map_err(|e| failed(&target, vec![("uprobe.multi", e)]))?;
        let column = |value: fn(&At) -> u64| -> Vec<u64> { places.iter().map(value).collect() };
        let used = |column: Vec<u64>| -> Vec<u64> {
            if column.iter().all(|value| *value == 0) {
                Vec::new()
            } else {
                column
            }
        };
        let create = LinkCreate {
            object: program.as_fd(),
            target: Target::None,
            attach_type: program
                .attach_type()
                .unwrap_or(AttachType::TRACE_UPROBE_MULTI),
            flags: 0,
            options: LinkOptions::UprobeMulti {
                path: &c_path,
                offsets: &column(|at| at.offset),
                ref_ctr_offsets: &used(column(|at| at.ref_counter)),
                cookies: &used(column(|at| at.cookie)),
                flags: match like.on {
                    ProbeOn::Return if !is_session(program) => F_UPROBE_MULTI_RETURN,
                    _ => 0,
                },
                pid: like.pid.unwrap_or(0),
            },
        };
        match sys::link_create(&create) {
            Ok(fd) => return Ok(Link::of_fd(fd, target, Mechanism::UprobeMulti)),
            Err(err) => tried.push(("uprobe.multi", err)),
        }
    }
    if is_session(program) {
        return Err(session_refused(&target, tried, "6.13"));
    }
    if !may_go_one_by_one(&tried) {
        return Err(failed(&target, tried));
    }
    one_by_one(target, tried, places.len(), &mut |index| {
        let Some(at) = places.get(index) else {
            return Err(failed("uprobe", Vec::new()));
        };
        let single = Uprobe {
            place: UserPlace::Offset(at.offset),
            ref_counter: (at.ref_counter != 0).then_some(at.ref_counter),
            cookie: at.cookie,
            ..like.clone()
        };
        uprobe_at(program, &single, path, at.offset)
    })
}
