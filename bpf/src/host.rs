//! Facts about this process and this kernel.

use ebpf_manager_sys::tracefs::Tracefs;
use ebpf_manager_sys::{SysError, proc};

/// This process's number as the proc file system at `$HOST_PROC` has it, for a
/// container that sees the host's; in its own pid namespace without that.
pub fn host_pid() -> u32 {
    proc::self_pid(&proc::host_proc()).unwrap_or_else(|_| std::process::id())
}

/// The id of the tracepoint `category/name`, for
/// [`PerfHook::new`](crate::PerfHook::new) with `PERF_TYPE_TRACEPOINT`.
///
/// # Errors
/// `ENOENT` without such a tracepoint, or without a tracefs.
pub fn tracepoint_id(category: &str, name: &str) -> Result<u64, SysError> {
    Tracefs::find()?.event_id(category, name)
}
