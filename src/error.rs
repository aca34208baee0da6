//! What can go wrong with a manager.

use std::fmt::Write;
use std::sync::Arc;

use ebpf_manager_bpf::elf::ObjectError;
use ebpf_manager_bpf::{
    Cure, Errno, LinkError, LoadError, MapError, ProgramError, ReaderError, SysError, VerifierLog,
};

use crate::outcome::ProbeError;
use crate::probe::ProbeId;
use crate::state::{Action, State};

/// A failed operation of a manager.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// The action makes no sense in the manager's state.
    #[error("cannot {action} a manager that is {state}; {} it first", state.before(*action))]
    State {
        /// What was asked.
        action: Action,
        /// Where the manager is.
        state: State,
    },
    /// An action is under way that may be waiting for the caller: the caller
    /// is an event handler and the manager stops, or it is a callback of that
    /// action. Others wait for their turn.
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
        /// `"probe"`, `"map"`, `"ring buffer"` or `"perf buffer"`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// What is to be added would have the name of something that is there.
    #[error("there is already a {what} {name}")]
    InUse {
        /// `"probe"` or `"map"`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The object does not have a program, ring buffer, map, variable or
    /// symbol that the declaration names.
    #[error("the object has no {kind} {name}")]
    NoSuch {
        /// `"program"`, `"ring buffer"`, `"perf buffer"`, `"map"`,
        /// `"variable"` or `"symbol"`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The manager has no such probe, program or map now.
    #[error("there is no {kind} {name}")]
    NotThere {
        /// `"probe"`, `"program"` (not loaded), `"map"`, or `"ring buffer"` or
        /// `"perf buffer"` if a stream is of another map, or `"link of probe"`
        /// for one that is not attached.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A variable is to have a value of its own in a program that shares the
    /// object's variables.
    #[error(
        "variable {variable}: {program} is no copy, and only a copy has variables of its own; \
         declare its probe copied() and name its program_name()"
    )]
    NotCopied {
        /// The variable.
        variable: String,
        /// The program, as [`Constant::only_for`](crate::Constant::only_for)
        /// was given it.
        program: String,
    },
    /// A constant's value has the wrong size, or the program does not use it.
    #[error(transparent)]
    Constant(ObjectError),
    /// A map could not be created, opened, filled or pinned.
    #[error(transparent)]
    Map(Box<MapError>),
    /// A program could not be opened, pinned or asked.
    #[error(transparent)]
    Program(Arc<ProgramError>),
    /// A route could not be made; those before it are taken back.
    #[error("route {route}: {source}")]
    Route {
        /// Map and key: `"jump_table[3]"`.
        route: String,
        /// Why.
        source: Box<MapError>,
    },
    /// A pin could not be removed.
    #[error(transparent)]
    Unpin {
        /// The kernel's answer, with the path.
        source: SysError,
    },
    /// What is needed to load a program later was given up after the load.
    #[error("the specification of {name} was not kept; ask the builder to keep specifications")]
    NotKept {
        /// The program.
        name: String,
    },
    /// A dump could not be written.
    #[error("dump of map {map}: {message}")]
    Dump {
        /// The map.
        map: String,
        /// The writer's error.
        message: String,
    },
    /// The kernel does not measure programs.
    #[error("run-time statistics of programs: {source}; they need CAP_SYS_ADMIN and Linux 5.8")]
    Statistics {
        /// The kernel's answer.
        source: SysError,
    },
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
    /// A selector does not hold.
    #[error("{selector} does not hold: {}", reasons(.failed))]
    Selection {
        /// The selector, as text.
        selector: String,
        /// The probes that make it fail, each with its reason.
        failed: Vec<(ProbeId, ProbeError)>,
    },
    /// A probe could not be detached in order; closing it detached it.
    #[error("probe {probe}: {source}")]
    Detach {
        /// The probe.
        probe: ProbeId,
        /// Why.
        source: Arc<LinkError>,
    },
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
    #[error("an event handler of {map} panicked: {message}")]
    HandlerPanicked {
        /// The buffer's map.
        map: String,
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

fn reasons(failed: &[(ProbeId, ProbeError)]) -> String {
    let mut text = String::new();
    for (i, (id, error)) in failed.iter().enumerate() {
        // Writing to a string does not fail.
        let _ = write!(text, "{}{id}: {error}", if i > 0 { " | " } else { "" });
    }
    if text.is_empty() {
        text.push_str("it names no probe");
    }
    text
}

fn summary(errors: &[ManagerError]) -> String {
    match errors {
        [] => String::new(),
        [only] => only.to_string(),
        [first, _] => format!("{first}, and another error"),
        [first, rest @ ..] => format!("{first}, and {} more errors", rest.len()),
    }
}

impl From<LoadError> for ManagerError {
    fn from(err: LoadError) -> ManagerError {
        ManagerError::Load(Box::new(err))
    }
}

impl From<MapError> for ManagerError {
    fn from(err: MapError) -> ManagerError {
        ManagerError::Map(Box::new(err))
    }
}

impl From<ProgramError> for ManagerError {
    fn from(err: ProgramError) -> ManagerError {
        ManagerError::Program(Arc::new(err))
    }
}

impl ManagerError {
    /// True if the kernel answered `errno`. Of several things that went wrong,
    /// to any of them.
    pub fn is(&self, errno: Errno) -> bool {
        match self {
            ManagerError::Map(err) | ManagerError::Route { source: err, .. } => err.is(errno),
            ManagerError::Program(err) => err.is(errno),
            ManagerError::Load(err) => err.is(errno),
            ManagerError::Attach { source, .. } | ManagerError::Detach { source, .. } => {
                source.is(errno)
            }
            ManagerError::Unpin { source }
            | ManagerError::Statistics { source }
            | ManagerError::Thread { source } => source.is(errno),
            ManagerError::Reader(err) => err.is(errno),
            ManagerError::Selection { failed, .. } => failed.iter().any(|(_, e)| e.is(errno)),
            ManagerError::Stop(all) => all.iter().any(|err| err.is(errno)),
            _ => false,
        }
    }

    /// What would help, if that shows. Of several things that went wrong, the
    /// first that can be helped.
    pub fn cure(&self) -> Option<&Cure> {
        match self {
            ManagerError::Map(err) | ManagerError::Route { source: err, .. } => err.cure(),
            ManagerError::Program(err) => err.cure(),
            ManagerError::Load(err) => err.cure(),
            ManagerError::Attach { source, .. } | ManagerError::Detach { source, .. } => {
                source.cure()
            }
            ManagerError::Selection { failed, .. } => failed.iter().find_map(|(_, e)| e.cure()),
            ManagerError::Stop(all) => all.iter().find_map(ManagerError::cure),
            _ => None,
        }
    }

    /// The verifier's log, if it refused a program: whole, where the error as
    /// text has one line of it. Of several programs, the first one's.
    pub fn verifier_log(&self) -> Option<&VerifierLog> {
        match self {
            ManagerError::Program(err) => err.verifier_log(),
            ManagerError::Load(err) => err.verifier_log(),
            ManagerError::Selection { failed, .. } => {
                failed.iter().find_map(|(_, err)| err.verifier_log())
            }
            _ => None,
        }
    }

    pub(crate) fn not_there(kind: &'static str, name: String) -> ManagerError {
        ManagerError::NotThere { kind, name }
    }

    /// The error of one probe.
    pub(crate) fn of_probe(probe: ProbeId, error: ProbeError) -> ManagerError {
        match error {
            ProbeError::Attach(source) => ManagerError::Attach { probe, source },
            ProbeError::NoHook { section } => ManagerError::NoHook { probe, section },
            ProbeError::Load(source) => ManagerError::Program(source),
            error => ManagerError::Selection {
                selector: probe.to_string(),
                failed: vec![(probe, error)],
            },
        }
    }
}
