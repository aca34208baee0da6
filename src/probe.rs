//! Probes: which program is attached to which hook.

use std::fmt;
use std::sync::Arc;

use ebpf_manager_bpf::{Link, LinkError, Mechanism, Program, ProgramType};

/// Identifies a probe: the C function, and a name of the caller's choice for
/// when one function is attached several times.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProbeId {
    /// Distinguishes probes of the same function; empty if there is only one.
    pub uid: String,
    /// C function name of the program.
    pub function: String,
}

impl fmt::Display for ProbeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.function)?;
        if !self.uid.is_empty() {
            write!(f, " ({})", self.uid)?;
        }
        Ok(())
    }
}

/// A program to attach, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub(crate) id: ProbeId,
    pub(crate) hook: Hook,
    pub(crate) optional: bool,
}

impl Probe {
    /// The program of this C function, attached where its section name says.
    pub fn new(function: impl Into<String>) -> Probe {
        Probe {
            id: ProbeId {
                uid: String::new(),
                function: function.into(),
            },
            hook: Hook::Section,
            optional: false,
        }
    }

    /// Gives the probe a name of its own, needed when one function is attached
    /// several times.
    #[must_use]
    pub fn uid(mut self, uid: impl Into<String>) -> Probe {
        self.id.uid = uid.into();
        self
    }

    /// Attaches to `hook` instead of what the section name says.
    #[must_use]
    pub fn hook(mut self, hook: Hook) -> Probe {
        self.hook = hook;
        self
    }

    /// Lets the manager start without this probe; its [`Outcome`] says why.
    #[must_use]
    pub fn optional(mut self) -> Probe {
        self.optional = true;
        self
    }

    /// The probe's identity.
    pub fn id(&self) -> &ProbeId {
        &self.id
    }
}

/// A place in the kernel that programs are attached to, with the options that
/// belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Hook {
    /// What the program's section name says:
    /// `SEC("tracepoint/sched/sched_process_exec")`.
    #[default]
    Section,
    /// A tracepoint, as listed below `events` of tracefs. Linux 4.7.
    Tracepoint {
        /// Directory below `events`: `"sched"`.
        category: String,
        /// `"sched_process_exec"`.
        name: String,
    },
    /// A raw tracepoint. Linux 4.17.
    RawTracepoint {
        /// `"sched_process_exit"`.
        name: String,
    },
}

impl Hook {
    /// The tracepoint `category/name`.
    pub fn tracepoint(category: impl Into<String>, name: impl Into<String>) -> Hook {
        Hook::Tracepoint {
            category: category.into(),
            name: name.into(),
        }
    }

    /// The raw tracepoint `name`.
    pub fn raw_tracepoint(name: impl Into<String>) -> Hook {
        Hook::RawTracepoint { name: name.into() }
    }

    /// The hook that a section name stands for; `None` if it names no target
    /// or a kind of hook that this version does not attach.
    fn of_section(program: &Program) -> Option<Hook> {
        let target = program.target()?;
        match program.program_type() {
            ProgramType::TRACEPOINT => target
                .split_once('/')
                .map(|(category, name)| Hook::tracepoint(category, name)),
            ProgramType::RAW_TRACEPOINT | ProgramType::RAW_TRACEPOINT_WRITABLE => {
                Some(Hook::raw_tracepoint(target))
            }
            _ => None,
        }
    }

    /// Attaches `program`; `Ok(None)` if the section name does not say where.
    pub(crate) fn attach(&self, program: &Program) -> Result<Option<Link>, LinkError> {
        let of_section;
        let hook = match self {
            Hook::Section => match Hook::of_section(program) {
                Some(hook) => {
                    of_section = hook;
                    &of_section
                }
                None => return Ok(None),
            },
            hook => hook,
        };
        match hook {
            Hook::Tracepoint { category, name } => {
                Link::tracepoint(program, category, name).map(Some)
            }
            Hook::RawTracepoint { name } => Link::raw_tracepoint(program, name).map(Some),
            Hook::Section => Ok(None),
        }
    }
}

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Not attached at the moment.
    Detached,
    /// Attached, by this kernel interface.
    Attached(Mechanism),
    /// It could not be attached, and was optional.
    Unavailable(Arc<LinkError>),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Detached => f.write_str("detached"),
            Outcome::Attached(mechanism) => write!(f, "attached by {mechanism}"),
            Outcome::Unavailable(err) => write!(f, "unavailable: {err}"),
        }
    }
}
