//! What can go wrong with a manager.

use std::sync::Arc;

use ebpf_manager_bpf::elf::ObjectError;
use ebpf_manager_bpf::{LinkError, LoadError, ReaderError, SysError};

use crate::probe::ProbeId;
use crate::state::{Action, State};

/// A failed operation of a manager.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// The action makes no sense in the manager's state.
    #[error("cannot {action} a manager that is {state}")]
    State {
        /// What was asked.
        action: Action,
        /// Where the manager is.
        state: State,
    },
    /// Another thread, or an event handler that it waits for, is in the
    /// middle of an action.
    #[error("cannot {action} while another {running} is under way")]
    Busy {
        /// What was asked.
        action: Action,
        /// What is under way.
        running: Action,
    },
    /// Two probes have the same function and uid, or two readers the same map.
    #[error("{what} {name} is declared twice")]
    Duplicate {
        /// `"probe"` or `"ring buffer"`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The object does not have a program, ring buffer or variable that the
    /// declaration names.
    #[error("the object has no {kind} {name}")]
    NoSuch {
        /// `"program"`, `"ring buffer"` or `"variable"`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A constant's value has the wrong size.
    #[error(transparent)]
    Constant(ObjectError),
    /// The object could not be loaded.
    #[error(transparent)]
    Load(#[from] Box<LoadError>),
    /// A probe that is not optional could not be attached.
    #[error("probe {probe}: {source}")]
    Attach {
        /// The probe.
        probe: ProbeId,
        /// Why.
        source: Arc<LinkError>,
    },
    /// A probe could not be detached in order; closing it detached it.
    #[error(transparent)]
    Detach(LinkError),
    /// A probe does not say where to attach, and its section name does not
    /// either.
    #[error("probe {probe}: section {section} does not say where to attach; give the probe a hook")]
    NoHook {
        /// The probe.
        probe: ProbeId,
        /// The program's section.
        section: String,
    },
    /// A ring buffer could not be opened or read.
    #[error(transparent)]
    Reader(#[from] ReaderError),
    /// The reader thread could not be started or could not wait.
    #[error("reader thread: {source}")]
    Thread {
        /// The kernel's answer.
        source: SysError,
    },
    /// The stream is not being read: the manager does not run, or the stream
    /// was stopped or not started.
    #[error("stream {map} is not being read; start the manager, or the stream if it was skipped")]
    StreamIdle {
        /// The buffer's map.
        map: String,
    },
    /// An event handler panicked; its stream has ended and the remaining
    /// events were not read.
    #[error("an event handler panicked: {message}")]
    HandlerPanicked {
        /// The panic's message, if it was text.
        message: String,
    },
    /// Several things went wrong on the way down; the manager is stopped all
    /// the same.
    #[error("stopped, but {}", summary(.0))]
    Stop(
        /// All of them, in order.
        Vec<ManagerError>,
    ),
}

fn summary(errors: &[ManagerError]) -> String {
    match errors {
        [] => String::new(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first}, and {} more errors", rest.len()),
    }
}

impl From<LoadError> for ManagerError {
    fn from(err: LoadError) -> ManagerError {
        ManagerError::Load(Box::new(err))
    }
}
