//! Probes: which program is attached to which hook.

use std::fmt;
use std::sync::Arc;

use ebpf_manager_bpf::{LinkError, Mechanism};

use crate::hook::Hook;

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
#[derive(Clone, Debug)]
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
            hook: Hook::section(),
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
    pub fn hook(mut self, hook: impl Into<Hook>) -> Probe {
        self.hook = hook.into();
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
