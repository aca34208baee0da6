//! Declarative manager for the whole life of eBPF programs.
//!
//! Say what should run, bring it to life, take it down: maps, programs,
//! attachments and reader threads are owned by one [`Manager`], every
//! failure half-way undoes what was done, and dropping the manager leaves
//! nothing behind.
//!
//! ```no_run
//! use ebpf_manager::{Hook, Manager, ObjectSource, Probe};
//!
//! # fn main() -> Result<(), ebpf_manager::ManagerError> {
//! let manager = Manager::builder()
//!     .probe(Probe::new("on_exec").hook(Hook::tracepoint("sched", "sched_process_exec")))
//!     .probe(Probe::new("on_exit").optional())
//!     .ring_buffer("events", |record| println!("{} bytes", record.len()))
//!     .build()?;
//! manager.init(&ObjectSource::path("trace.bpf.o"))?; // parsed, relocated, maps made, verified
//! manager.start()?; // reader running, then attached
//! for (id, outcome) in manager.probes() {
//!     println!("{id}: {outcome}");
//! }
//! manager.stop()?; // detached, drained, closed
//! # Ok(())
//! # }
//! ```
//!
//! The library prints nothing and installs no signal handlers. Its threads:
//!
//! - `ebpf-reader` while a manager with streams runs; one more for each stream
//!   with a thread of its own, and `ebpf-reader-N` for each CPU of a perf
//!   buffer that is read so;
//! - `ebpf-verify`, several, while programs are loaded, where that pays
//!   ([`Builder::load_threads`]);
//! - `ebpf-closer`, up to 12, while 8 links or more are detached, and from
//!   [`Manager::stop_within`] until the last link is closed;
//! - `netns`, for a moment, where something is attached in, looked up in or
//!   detached from another network namespace.
//!
//! On Linux before 5.11 it may raise `RLIMIT_MEMLOCK` for the whole process:
//! see [`Manager::init`].
//!
//! Lower layers are usable on their own: [`bpf`] for live maps, programs and
//! links without a manager, [`elf`] for object files without a kernel.
#![forbid(unsafe_code)]

mod bypass;
mod change;
mod cleanup;
mod clone;
mod closing;
mod constant;
mod defaults;
mod error;
mod hook;
mod live;
mod load;
mod manager;
#[cfg(feature = "manifest")]
pub mod manifest;
mod options;
mod outcome;
mod probe;
mod reads;
mod section;
mod selector;
mod source;
mod start;
mod state;
mod stream;
mod turn;
mod wiring;

#[cfg(doc)]
#[doc = include_str!("SEED.md")]
pub mod seed {
    use super::*;
}

pub use ebpf_manager_bpf as bpf;
pub use ebpf_manager_bpf::elf;

pub use cleanup::Cleanup;
pub use clone::ProgramClone;
pub use closing::Closing;
pub use constant::Constant;
pub use error::ManagerError;
pub use hook::Hook;
pub use live::{ProgramRef, VariableRef};
pub use manager::{Manager, Times};
pub use options::Builder;
pub use outcome::{Attached, Outcome, ProbeError};
pub use probe::{Probe, ProbeId};
pub use reads::ProbeRef;
pub use selector::Selector;
pub use source::ObjectSource;
pub use state::{Action, State};
pub use stream::{PooledRecord, Sink, Stream, StreamHandle, StreamStats, WhenFull};
pub use wiring::{MapOptions, MapRoute, TailCall};

pub use crossbeam_channel as channel;
pub use ebpf_manager_bpf::{OwnedRecord, Record, pod_struct};
