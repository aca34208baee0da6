//! The /proc and /sys files a loader reads, and the few process-wide facts
//! (capabilities, limits, `uname`) that belong with them.
//!
//! Small files are read into a caller's buffer, large ones (kallsyms, mount
//! tables) are visited line by line. Nothing is kept but the number of possible
//! CPUs, which never changes. Every text format has a parser that takes bytes
//! and touches no file.

mod capabilities;
mod cpus;
mod kallsyms;
mod limits;
mod mounts;
mod process;
mod read;
mod settings;
mod version;

pub use capabilities::{Capabilities, effective_capabilities, keep_capabilities};
pub use cpus::{online_cpus, parse_cpu_list, possible_cpus, usable_cpus};
pub(crate) use kallsyms::split_module;
pub use kallsyms::{Symbol, SymbolScan, for_each_symbol, parse_symbol};
pub use limits::{
    Rlimit, descriptor_limit, memlock_limit, page_size, set_descriptor_limit, set_memlock_limit,
};
pub use mounts::{Mount, mount_fs, mounts_of, parse_mount};
pub use process::{host_proc, parse_start_time, pid_namespace, self_pid, start_time};
pub(crate) use read::{c_path, decimal, file_system, malformed, read_line, whole_decimal};
pub use read::{for_each_line, for_each_line_of, read_small};
pub use settings::{
    Lockdown, kptr_restrict, lockdown, parse_lockdown, perf_event_paranoid, read_setting,
    unprivileged_bpf_disabled,
};
pub use version::{KernelVersion, Uname};
