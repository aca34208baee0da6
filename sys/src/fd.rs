//! Owned descriptors, kept above 2.
//!
//! bpf(2) reads descriptor 0 as "none" in many attribute fields, so a
//! descriptor that happens to get number 0, 1 or 2 (a daemon that closed its
//! standard streams) is moved up at once.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::errno::{SysError, retry_eintr};

/// Takes ownership of a descriptor that the system call `op` just returned,
/// moved above 2.
///
/// # Errors
/// `EMFILE` when moving it needs a descriptor and the table is full; the
/// original is closed then.
pub(crate) fn own(op: &'static str, raw: i64) -> Result<OwnedFd, SysError> {
    // SAFETY: every caller passes the result of a system call that has just
    // returned a new descriptor, which nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(raw as RawFd) };
    moved_up(op, fd)
}

/// A descriptor taken over from elsewhere, moved above 2.
///
/// # Errors
/// `EMFILE` when moving it needs a descriptor and the table is full; the
/// original is closed then.
pub(crate) fn above_std(fd: OwnedFd) -> Result<OwnedFd, SysError> {
    moved_up("fcntl(F_DUPFD_CLOEXEC)", fd)
}

fn moved_up(op: &'static str, fd: OwnedFd) -> Result<OwnedFd, SysError> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    dup_above_std(op, fd.as_fd())
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

/// Closes descriptors, and those with adjacent numbers by one call
/// (close_range(2), Linux 5.9). Sorts them.
pub fn close_all(mut fds: Vec<OwnedFd>) {
    // Each goes where it belongs among those before it, mostly at their end:
    // a sort of the standard library's would be most of this function.
    for at in 1..fds.len() {
        let (sorted, rest) = fds.split_at(at);
        let Some(number) = rest.first().map(AsRawFd::as_raw_fd) else {
            break;
        };
        let place = sorted.partition_point(|fd| fd.as_raw_fd() < number);
        if let Some(moved) = fds.get_mut(place..=at) {
            moved.rotate_right(1);
        }
    }
    while let Some(last) = fds.last().map(AsRawFd::as_raw_fd) {
        let adjacent = |(fd, number): &(&OwnedFd, RawFd)| fd.as_raw_fd() == *number;
        let run = fds.iter().rev().zip((0..=last).rev());
        let len = run.take_while(adjacent).count();
        let first = last - (len as RawFd - 1);
        // SAFETY: all descriptors from `first` to `last` are in `fds`, whose
        // owner this is.
        let closed =
            len > 1 && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) } == 0;
        for fd in fds.drain(fds.len() - len..) {
            if closed {
                let _ = fd.into_raw_fd();
            }
        }
    }
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

    #[test]
    fn what_is_taken_over_moves_above_standard_streams() {
        let owned = dup(std::io::stdin().as_fd()).unwrap();
        let number = owned.as_raw_fd();
        assert_eq!(above_std(owned).unwrap().as_raw_fd(), number);
        // A table of its own, whose numbers 0 to 2 nobody else misses.
        let alone = std::thread::spawn(|| {
            // SAFETY: gives this thread, which ends here, a table of its own.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            // SAFETY: nobody else owns what this thread's table has at 0.
            let stdin = unsafe { OwnedFd::from_raw_fd(0) };
            let moved = above_std(stdin).unwrap();
            // SAFETY: F_GETFD reads a flag.
            let closed = unsafe { libc::fcntl(0, libc::F_GETFD) } == -1;
            (moved.as_raw_fd() > 2, closed)
        });
        assert_eq!(alone.join().unwrap(), (true, true));
    }

    #[test]
    fn closes_runs_and_single_descriptors() {
        let is_open = |fd: RawFd| std::fs::exists(format!("/proc/self/fd/{fd}")).unwrap();
        let mut fds: Vec<_> = (0..9)
            .map(|_| dup(std::io::stdin().as_fd()).unwrap())
            .collect();
        let kept = fds.remove(4);
        fds.swap(0, 6);
        // Other threads may take a number as soon as it is free: high ones are
        // left alone.
        let high: Vec<OwnedFd> = fds
            .iter()
            .zip(0..)
            .map(|(fd, at)| {
                let raw = fd.as_raw_fd();
                let wanted = 500 + at + i32::from(at > 4);
                // SAFETY: F_DUPFD_CLOEXEC takes two integers.
                let new = unsafe { libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, wanted) };
                assert_eq!(new, wanted);
                // SAFETY: fcntl returned a new descriptor that nobody else owns.
                unsafe { OwnedFd::from_raw_fd(new) }
            })
            .collect();
        let numbers: Vec<_> = high.iter().map(AsRawFd::as_raw_fd).collect();
        close_all(high);
        assert!(numbers.into_iter().all(|number| !is_open(number)));
        assert!(is_open(kept.as_raw_fd()));
        close_all(vec![kept]);
        close_all(Vec::new());
    }
}
