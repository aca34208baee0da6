//! What became of a probe.

use std::fmt;
use std::sync::Arc;

use ebpf_manager_bpf::{
    Cure, Errno, Link, LinkError, Mechanism, ProgramError, SysError, VerifierLog,
};

use crate::error::ManagerError;

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// No selector activates it, or its program is excluded.
    Disabled,
    /// Not attached at the moment.
    Detached,
    /// Attached, in this way.
    Attached(Attached),
    /// Attached, or ready to be attached again, and kept from running.
    Paused,
    /// This machine does not have what it needs: a function, a tracepoint, an
    /// interface, a feature of a later kernel.
    Unavailable(ProbeError),
    /// It could not be loaded or attached for another reason.
    Failed(ProbeError),
}

impl Outcome {
    /// The outcome of a failure.
    pub(crate) fn of_error(error: ProbeError) -> Outcome {
        if error.is_absence() {
            Outcome::Unavailable(error)
        } else {
            Outcome::Failed(error)
        }
    }

    /// Whether it is attached, paused or not.
    pub fn is_running(&self) -> bool {
        matches!(self, Outcome::Attached(_) | Outcome::Paused)
    }

    /// How it is attached, if it is.
    pub fn attached(&self) -> Option<&Attached> {
        match self {
            Outcome::Attached(attached) => Some(attached),
            _ => None,
        }
    }

    /// Why it is not there, if something went wrong.
    pub fn error(&self) -> Option<&ProbeError> {
        match self {
            Outcome::Unavailable(error) | Outcome::Failed(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Disabled => f.write_str("disabled"),
            Outcome::Detached => f.write_str("detached"),
            Outcome::Attached(attached) => write!(f, "attached by {attached}"),
            Outcome::Paused => f.write_str("paused"),
            Outcome::Unavailable(err) => write!(f, "unavailable: {err}"),
            Outcome::Failed(err) => write!(f, "failed: {err}"),
        }
    }
}

/// How a probe is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attached {
    /// The kernel interface that was used.
    pub mechanism: Mechanism,
    /// What was tried before that, and the kernel's answer to it
    /// ([`Link::fallbacks`]). Empty if the first way worked.
    pub fallbacks: Box<[(&'static str, SysError)]>,
}

impl Attached {
    pub(crate) fn of(link: &Link) -> Attached {
        Attached {
            mechanism: link.mechanism(),
            fallbacks: link.fallbacks().into(),
        }
    }
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mechanism.as_str())?;
        let mut before = " (after ";
        for (how, answer) in &self.fallbacks {
            write!(f, "{before}{how}: ")?;
            match answer.errno().name() {
                Some(name) => f.write_str(name)?,
                None => answer.errno().fmt(f)?,
            }
            before = ", ";
        }
        f.write_str(if self.fallbacks.is_empty() { "" } else { ")" })
    }
}

/// Why a probe is not attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// Its program could not be loaded.
    #[error(transparent)]
    Load(Arc<ProgramError>),
    /// It could not be attached.
    #[error(transparent)]
    Attach(Arc<LinkError>),
    /// It could not be detached.
    #[error(transparent)]
    Detach(Arc<LinkError>),
    /// It does not say where to attach, and its section name does not either.
    #[error("section {section} does not say where to attach; give the probe a hook")]
    NoHook {
        /// The program's section.
        section: String,
    },
    /// No selector activates it.
    #[error("it is disabled: no selector names it")]
    Disabled,
    /// Its program was not loaded, because nothing asked for it then.
    #[error("its program was not loaded; keep the specifications to load it later")]
    NotLoaded,
    /// Its program was not loaded when the object was, and what it needs to be
    /// loaded later cannot be had.
    #[error("its program could not be loaded: {0}")]
    LoadLater(Arc<ManagerError>),
    /// There is no such probe.
    #[error("there is no such probe")]
    Unknown,
}

impl ProbeError {
    /// True if the kernel answered `errno`.
    pub fn is(&self, errno: Errno) -> bool {
        match self {
            ProbeError::Load(err) => err.is(errno),
            ProbeError::Attach(err) | ProbeError::Detach(err) => err.is(errno),
            ProbeError::LoadLater(err) => err.is(errno),
            _ => false,
        }
    }

    /// What would help, if that shows.
    pub fn cure(&self) -> Option<&Cure> {
        match self {
            ProbeError::Load(err) => err.cure(),
            ProbeError::Attach(err) | ProbeError::Detach(err) => err.cure(),
            ProbeError::LoadLater(err) => err.cure(),
            _ => None,
        }
    }

    /// The verifier's log, if it refused the program.
    pub fn verifier_log(&self) -> Option<&VerifierLog> {
        match self {
            ProbeError::Load(err) => err.verifier_log(),
            ProbeError::LoadLater(err) => err.verifier_log(),
            _ => None,
        }
    }

    /// Whether the machine lacks something, which is no fault of the probe.
    fn is_absence(&self) -> bool {
        match self {
            ProbeError::Attach(err) => match &**err {
                LinkError::NoTarget { source, .. } | LinkError::NoInterface { source, .. } => {
                    !is_want(source.errno())
                }
                LinkError::Symbol { .. } | LinkError::Unsupported { .. } => true,
                _ => false,
            },
            ProbeError::Load(err) => matches!(**err, ProgramError::NoAttachTarget { .. }),
            _ => false,
        }
    }
}

/// Whether it could not be found out if something is there: for want of a
/// descriptor, memory or a thread.
fn is_want(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS | Errno::EAGAIN | Errno::EIO
    )
}

impl From<LinkError> for ProbeError {
    fn from(err: LinkError) -> ProbeError {
        ProbeError::Attach(Arc::new(err))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_says_what_was_tried_before() {
        let answer = |errno| SysError::new("bpf(BPF_LINK_CREATE)", errno);
        let mut attached = Attached {
            mechanism: Mechanism::ProbeEvent,
            fallbacks: Box::default(),
        };
        let text = Outcome::Attached(attached.clone()).to_string();
        assert_eq!(text, "attached by tracefs event");
        attached.fallbacks = Box::new([
            ("perf event", answer(Errno::ENOENT)),
            ("perf event link", answer(Errno::EINVAL)),
        ]);
        assert_eq!(
            Outcome::Attached(attached).to_string(),
            "attached by tracefs event (after perf event: ENOENT, perf event link: EINVAL)"
        );
    }
}
