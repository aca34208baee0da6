//! Raw Linux kernel ABI for loading and running eBPF programs.
//!
//! This crate speaks to the kernel and decides nothing: numbers, layouts and
//! calls. It covers bpf(2), perf_event_open(2), rtnetlink, tracefs, the memory
//! rings shared with the kernel, epoll and eventfd, and the few `/proc` files
//! a loader needs. Probing, fallback and defaults live in the crates above.
//!
//! It is the only crate of the workspace that contains `unsafe`. Every public
//! function is safe: descriptors are owned, buffer lengths are checked against
//! what the kernel will read or write, and memory that the kernel may still
//! change is never handed out as a slice.
//!
//! [`abi`] holds numbers and layouts only and makes no calls; the parser crate
//! uses nothing else from here.

pub mod abi;
pub mod bpf;
pub mod claim;
pub mod clock;
pub mod errno;
pub mod fd;
pub mod lock;
pub mod map_memory;
pub mod mmap;
pub mod mntns;
pub mod netlink;
pub mod netns;
pub mod perf;
pub mod perfring;
pub mod pmu;
pub mod poll;
pub mod proc;
pub mod ringbuf;
pub mod route;
pub mod rtnl;
pub mod sched;
#[cfg(any(test, feature = "supervise"))]
pub mod seccomp;
pub mod signal;
pub mod socket;
#[cfg(test)]
mod testing;
pub mod thread;
pub mod tracefs;
pub mod tty;
pub mod uevent;

pub use errno::{Errno, SysError};

/// Result of a system call.
pub type Result<T, E = SysError> = std::result::Result<T, E>;
