//! Live kernel objects: maps, programs, BTF, links and readers, created from
//! specifications, with fallback to old kernels.
//!
//! The way from a file to events:
//!
//! ```no_run
//! use ebpf_manager_bpf::{Collection, Link, LoadOptions, RingBufferReader, open_object};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let object = open_object("trace.bpf.o")?;
//! let collection = Collection::load(&object, LoadOptions::default())?;
//! let program = collection.program("on_exec").ok_or("no such program")?;
//! let link = Link::tracepoint(program, "sched", "sched_process_exec")?;
//! let mut reader = RingBufferReader::new(collection.map("events").ok_or("no such map")?)?;
//! reader.consume(usize::MAX, |record| {
//!     println!("{} bytes", record.len());
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! link.detach()?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything is owned: dropping a value closes what it holds, and a call that
//! fails leaves nothing behind. The crate prints nothing. Its threads:
//!
//! - `ebpf-verify`, several, while programs are loaded, where that pays
//!   ([`LoadOptions::threads`]);
//! - `ebpf-closer`, up to 12, while [`Link::detach_all`] detaches 8 links or
//!   more, and from [`Closing::start`] until the last link is closed;
//! - `netns`, for a moment, where something is attached in, looked up in or
//!   detached from another network namespace.
//!
//! On Linux before 5.11 it may raise `RLIMIT_MEMLOCK` for the whole process:
//! see [`Collection::load`].
#![forbid(unsafe_code)]

mod attach_btf;
mod collection;
mod core;
mod cure;
mod error;
mod externs;
mod host;
mod kconfig;
mod kernel_btf;
mod link;
mod loader;
mod map;
mod memlock;
mod modules;
mod object_btf;
mod old_helpers;
mod program;
mod reader;
mod slot;
mod struct_ops;
mod variable;
mod verifier_log;
mod verify;

pub use attach_btf::AttachTo;
pub use collection::{
    Collection, CoreBy, LoadOptions, LoadTimes, ProgramCopy, link_objects, open_object,
};
pub use cure::Cure;
pub use error::{
    KernelBtfError, LinkError, LoadError, MapError, MissingSymbol, ProgramError, ReaderError,
    Rejection,
};
pub use host::{host_pid, tracepoint_id};
pub use kernel_btf::KernelBtf;
pub use link::{
    AttachedProgram, CgroupOptions, Closing, ClsactOptions, Direction, Fragments, HookPrograms,
    Interface, IterOver, KernelFunction, Kprobe, KprobeMulti, Link, LwtRoute, Mechanism, Method,
    NetNamespace, NetfilterFamily, NetfilterHook, NetfilterOptions, NetkitEnd, Order, PerfHook,
    Place, ProbeOn, QdiscCleanup, Sampling, Sharing, TcAttach, Tracing, Turn, Uprobe, UprobeMulti,
    Usdt, UsdtSpecs, UserPlace, Verdict, XdpMode, XdpOptions, cgroup_programs,
    cgroup_programs_in_effect, remove_stale_filters, remove_stale_probe_events, syscall_function,
    syscall_function_in, traceable_functions,
};
pub use map::{Loss, Map};
pub use program::{Program, RunStats, measure_programs};
pub use reader::{
    Buffer, Cpus, OverwritableBuffer, OwnedRecord, PerfBufferOptions, PerfBufferReader,
    PerfCpuStats, Record, RingBufferReader, UserRingBuffer, UserRingBufferError, Waiter, Wakeup,
};
pub use slot::Occupant;
pub use variable::Variable;
pub use verifier_log::{SourceLine, VerifierLog};

pub use ebpf_manager_elf as elf;
pub use ebpf_manager_sys::abi::bpf::{
    AttachType, CgroupIterOrder, ElemFlags, MapFlags, MapType, ProgramFlags, ProgramType,
    TestRunFlags,
};
pub use ebpf_manager_sys::abi::pod::{self, Pod};
pub use ebpf_manager_sys::bpf::{
    BatchCursor, BatchError, LinkDetail, LinkInfo, MapFd, TestRun, TestRunResult,
};
#[doc(hidden)]
pub use ebpf_manager_sys::lock;
pub use ebpf_manager_sys::map_memory::MapMemory;
pub use ebpf_manager_sys::netns::NamespaceId;
pub use ebpf_manager_sys::perf::PerfEvent;
pub use ebpf_manager_sys::poll::Waker;
pub use ebpf_manager_sys::proc::{KernelVersion, online_cpus, possible_cpus};
pub use ebpf_manager_sys::{Errno, SysError, pod_struct};
