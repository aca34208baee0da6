//! Probes: which program is attached to which hook.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

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

impl ProbeId {
    /// The probe of `function` that is called `uid`.
    pub fn new(function: impl Into<String>, uid: impl Into<String>) -> ProbeId {
        ProbeId {
            uid: uid.into(),
            function: function.into(),
        }
    }
}

impl From<&str> for ProbeId {
    /// The probe of this function without a uid.
    fn from(function: &str) -> ProbeId {
        ProbeId::new(function, "")
    }
}

impl From<String> for ProbeId {
    /// The probe of this function without a uid.
    fn from(function: String) -> ProbeId {
        ProbeId::new(function, "")
    }
}

impl From<(&str, &str)> for ProbeId {
    /// The probe of this function and uid.
    fn from((function, uid): (&str, &str)) -> ProbeId {
        ProbeId::new(function, uid)
    }
}

impl From<&ProbeId> for ProbeId {
    fn from(id: &ProbeId) -> ProbeId {
        id.clone()
    }
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
    pub(crate) copied: bool,
    pub(crate) pin: Option<PathBuf>,
    pub(crate) retry: Option<Retry>,
}

/// How often, and after which pause, something is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Retry {
    /// Tries after the first.
    pub(crate) times: u32,
    pub(crate) delay: Duration,
}

impl Probe {
    /// The program of this C function, attached where its section name says.
    pub fn new(function: impl Into<String>) -> Probe {
        Probe::with_hook(function, Hook::section())
    }

    /// The program of this C function, attached to `hook`. A small program that
    /// names its hooks this way does not contain those that sections may name.
    pub fn with_hook(function: impl Into<String>, hook: impl Into<Hook>) -> Probe {
        Probe {
            id: ProbeId::new(function, ""),
            hook: hook.into(),
            optional: false,
            copied: false,
            pin: None,
            retry: None,
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

    /// Lets the manager start without this probe; its
    /// [`Outcome`](crate::Outcome) says why. A selector that names it goes on
    /// as if it did not when the probe cannot be had: "all of" does without,
    /// and "one of" needs another, if it names one that is not optional.
    #[must_use]
    pub fn optional(mut self) -> Probe {
        self.optional = true;
        self
    }

    /// Loads the program once more for this probe alone: with constants of its
    /// own ([`Constant::only_for`](crate::Constant::only_for) its
    /// [`Probe::program_name`]), or to be attached where one program can be
    /// attached only once.
    #[must_use]
    pub fn copied(mut self) -> Probe {
        self.copied = true;
        self
    }

    /// Pins the program here once it is loaded; if something is pinned here
    /// already, that is used instead of loading the program.
    ///
    /// The pin outlives the manager, unless it is stopped with
    /// [`Cleanup::INTERNAL_PINNED`](crate::Cleanup::INTERNAL_PINNED).
    #[must_use]
    pub fn pin(mut self, path: impl Into<PathBuf>) -> Probe {
        self.pin = Some(path.into());
        self
    }

    /// Tries again so many times, after this pause each, when it cannot be
    /// attached. Unless set, what the manager says holds; nothing is tried
    /// again unless that says so.
    #[must_use]
    pub fn retry(mut self, times: u32, delay: Duration) -> Probe {
        self.retry = Some(Retry { times, delay });
        self
    }

    /// The name of its program: the function's, followed by `_` and the uid
    /// for a copy.
    pub fn program_name(&self) -> String {
        if self.copied {
            format!("{}_{}", self.id.function, self.id.uid)
        } else {
            self.id.function.clone()
        }
    }

    /// The probe's identity.
    pub fn id(&self) -> &ProbeId {
        &self.id
    }
}
