//! The locked-memory limit that kernels before 5.11 count BPF memory against.

use std::sync::atomic::{AtomicU32, Ordering};

use ebpf_manager_sys::proc::{self, Rlimit};
use ebpf_manager_sys::{Errno, SysError};

use crate::cure;

/// Runs a call that allocates kernel memory; if an old kernel refuses it with
/// `EPERM`, raises `RLIMIT_MEMLOCK` as far as this process may and runs it
/// once more.
///
/// The limit is raised for the whole process and stays: programs and maps
/// remain charged for as long as they live. It is left alone on kernels that
/// do not count, and where it is large enough.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, SysError>) -> Result<T, SysError> {
    let raised = RAISED.load(Ordering::Acquire);
    match call() {
        Err(err) if err.is(Errno::EPERM) && cure::counts_memlock() && raise_since(raised) => call(),
        result => result,
    }
}

/// Times that the limit was raised.
static RAISED: AtomicU32 = AtomicU32::new(0);

/// True if the limit could be raised, or another thread has raised it since
/// it was raised `before` times.
#[cold]
fn raise_since(before: u32) -> bool {
    if raise() {
        RAISED.fetch_add(1, Ordering::Release);
        return true;
    }
    RAISED.load(Ordering::Acquire) != before
}

/// True if the limit could be raised.
fn raise() -> bool {
    let Ok(limit) = proc::memlock_limit() else {
        return false;
    };
    if limit.soft == Rlimit::UNLIMITED.soft {
        return false;
    }
    if proc::set_memlock_limit(Rlimit::UNLIMITED).is_ok() {
        return true;
    }
    let most = Rlimit {
        soft: limit.hard,
        hard: limit.hard,
    };
    limit.soft < limit.hard && proc::set_memlock_limit(most).is_ok()
}
