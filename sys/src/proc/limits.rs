//! Resource limits of this process, and the size of a page.

use crate::Result;
use crate::errno::retry_eintr;

/// Soft and hard value of a resource limit, in bytes; `u64::MAX` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rlimit {
    /// What the kernel enforces.
    pub soft: u64,
    /// What the process may raise `soft` to.
    pub hard: u64,
}

impl Rlimit {
    /// No limit.
    pub const UNLIMITED: Rlimit = Rlimit {
        soft: u64::MAX,
        hard: u64::MAX,
    };
}

/// RLIMIT_MEMLOCK of this process. Kernels before 5.11 charge maps and
/// programs to it; later ones charge the memory cgroup instead.
///
/// # Errors
/// None that a working system gives; whatever prlimit(2) returns otherwise.
pub fn memlock_limit() -> Result<Rlimit> {
    prlimit("prlimit(RLIMIT_MEMLOCK)", libc::RLIMIT_MEMLOCK as i32, None)
}

/// Sets RLIMIT_MEMLOCK of this process.
///
/// # Errors
/// `EPERM` when the hard value is raised without CAP_SYS_RESOURCE, `EINVAL`
/// when the soft value is above the hard one.
pub fn set_memlock_limit(limit: Rlimit) -> Result<()> {
    prlimit(
        "prlimit(RLIMIT_MEMLOCK)",
        libc::RLIMIT_MEMLOCK as i32,
        Some(limit),
    )
    .map(drop)
}

/// RLIMIT_NOFILE of this process: descriptors have numbers below the soft
/// value.
///
/// # Errors
/// As [`memlock_limit`].
pub fn descriptor_limit() -> Result<Rlimit> {
    prlimit("prlimit(RLIMIT_NOFILE)", libc::RLIMIT_NOFILE as i32, None)
}

/// Sets RLIMIT_NOFILE of this process. Descriptors above it stay open.
///
/// # Errors
/// As [`set_memlock_limit`].
pub fn set_descriptor_limit(limit: Rlimit) -> Result<()> {
    prlimit(
        "prlimit(RLIMIT_NOFILE)",
        libc::RLIMIT_NOFILE as i32,
        Some(limit),
    )
    .map(drop)
}

/// Sets the limit if there is a new one and returns the old one.
fn prlimit(op: &'static str, resource: i32, new: Option<Rlimit>) -> Result<Rlimit> {
    let new = new.map(|limit| libc::rlimit64 {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    });
    let new_ptr = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let old_ptr = std::ptr::from_mut(&mut old);
    retry_eintr(op, || {
        // SAFETY: the kernel reads `new` unless it is null and writes `old`;
        // both are rlimit64 and live until the call returns.
        i64::from(unsafe { libc::prlimit64(0, resource as _, new_ptr, old_ptr) })
    })?;
    Ok(Rlimit {
        soft: old.rlim_cur,
        hard: old.rlim_max,
    })
}

/// Size of a memory page in bytes.
pub fn page_size() -> usize {
    // SAFETY: sysconf takes an integer and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::Errno;
    use crate::testing::raise_memlock_limit;

    #[test]
    fn memlock_round_trip() {
        raise_memlock_limit();
        let limit = memlock_limit().unwrap();
        set_memlock_limit(limit).unwrap();
        assert_eq!(memlock_limit().unwrap(), limit);
        let err = set_memlock_limit(Rlimit { soft: 1, hard: 0 }).unwrap_err();
        assert!(err.is(Errno::EINVAL), "{err}");
    }
}
