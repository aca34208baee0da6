//! Owned descriptors, kept above 2.
//!
//! bpf(2) reads descriptor 0 as "none" in many attribute fields, so a
//! descriptor that happens to get number 0, 1 or 2 (a daemon that closed its
//! standard streams) is moved up at once.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::errno::{SysError, retry_eintr};

/// Takes ownership of a descriptor that the system call `op` just returned,
/// moved above 2.
///
/// # Errors
/// `EMFILE` when moving it needs a descriptor and the table is full; the
/// original is closed then.
#[allow(dead_code, reason = "used as the call wrappers arrive")]
pub(crate) fn own(op: &'static str, raw: i64) -> Result<OwnedFd, SysError> {
    // SAFETY: every caller passes the result of a system call that has just
    // returned a new descriptor, which nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(raw as RawFd) };
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    dup_above_std(op, std::os::fd::AsFd::as_fd(&fd))
}

/// Duplicates `fd` with close-on-exec set, at a number above 2.
pub fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    dup_above_std("fcntl(F_DUPFD_CLOEXEC)", fd)
}

fn dup_above_std(op: &'static str, fd: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    let raw = fd.as_raw_fd();
    let new = retry_eintr(op, || {
        // SAFETY: F_DUPFD_CLOEXEC takes two integers and touches no memory.
        i64::from(unsafe { libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, 3) })
    })?;
    // SAFETY: fcntl returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(new as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn duplicates_stay_above_standard_streams() {
        let fd = dup(std::io::stdin().as_fd()).unwrap();
        assert!(fd.as_raw_fd() > 2);
    }
}
