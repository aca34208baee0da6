//! Watching what system calls a thread makes, and making some of them fail:
//! the supervisor of seccomp(2).
//!
//! What a program does when exactly this call fails shows when exactly this
//! call fails. A supervisor needs no hook in the program and no other tool,
//! sees the calls of the standard library and the C library too, and costs
//! nothing where there is none. For tests: only compiled with the feature
//! `supervise`.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::Result;
use crate::errno::{Errno, SysError, retry_eintr};
use crate::fd::own;

/// `SECCOMP_IOCTL_NOTIF_RECV`, with the size of [`libc::seccomp_notif`].
const RECEIVE: u64 = 0xc050_2100;
/// `SECCOMP_IOCTL_NOTIF_SEND`, with the size of [`libc::seccomp_notif_resp`].
const SEND: u64 = 0xc018_2101;
const _: () = assert!(size_of::<libc::seccomp_notif>() == 0x50);
const _: () = assert!(size_of::<libc::seccomp_notif_resp>() == 0x18);

/// Names and numbers of the system calls of a loader that can fail for want of
/// something. Not here: those that only give back, and those for memory of no
/// file.
pub const CALLS: &[(&str, i64)] = &[
    ("bpf", libc::SYS_bpf),
    ("capget", libc::SYS_capget),
    ("clone", libc::SYS_clone),
    ("clone3", libc::SYS_clone3),
    ("close_range", libc::SYS_close_range),
    ("epoll_create1", libc::SYS_epoll_create1),
    ("epoll_ctl", libc::SYS_epoll_ctl),
    #[cfg(target_arch = "x86_64")]
    ("epoll_wait", libc::SYS_epoll_wait),
    ("epoll_pwait", libc::SYS_epoll_pwait),
    ("eventfd2", libc::SYS_eventfd2),
    ("fcntl", libc::SYS_fcntl),
    ("flock", libc::SYS_flock),
    ("fstat", libc::SYS_fstat),
    ("fstatfs", libc::SYS_fstatfs),
    ("getdents64", libc::SYS_getdents64),
    ("ioctl", libc::SYS_ioctl),
    ("memfd_create", libc::SYS_memfd_create),
    #[cfg(target_arch = "x86_64")]
    ("mkdir", libc::SYS_mkdir),
    ("mkdirat", libc::SYS_mkdirat),
    ("mmap", libc::SYS_mmap),
    ("openat", libc::SYS_openat),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("ppoll", libc::SYS_ppoll),
    ("pread64", libc::SYS_pread64),
    ("prlimit64", libc::SYS_prlimit64),
    ("read", libc::SYS_read),
    #[cfg(target_arch = "x86_64")]
    ("readlink", libc::SYS_readlink),
    ("readlinkat", libc::SYS_readlinkat),
    ("recvfrom", libc::SYS_recvfrom),
    ("sched_getaffinity", libc::SYS_sched_getaffinity),
    ("sched_setaffinity", libc::SYS_sched_setaffinity),
    ("sendto", libc::SYS_sendto),
    ("setns", libc::SYS_setns),
    ("setsockopt", libc::SYS_setsockopt),
    ("socket", libc::SYS_socket),
    ("statfs", libc::SYS_statfs),
    ("statx", libc::SYS_statx),
    #[cfg(target_arch = "x86_64")]
    ("unlink", libc::SYS_unlink),
    ("unlinkat", libc::SYS_unlinkat),
    ("unshare", libc::SYS_unshare),
    ("write", libc::SYS_write),
];

/// Which calls of one number are handed to the supervisor.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// Number of the system call.
    pub call: i64,
    /// Not those whose argument of this index is −1: mmap(2) of no file.
    pub unless_none: Option<u8>,
}

/// A system call that waits for the supervisor's word.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    id: u64,
    /// The thread that makes it.
    pub thread: u32,
    /// Its number.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// Receives the calls of a thread and of all that it starts. Where it is
/// dropped before those have ended, their watched calls fail with `ENOSYS`.
#[derive(Debug)]
pub struct Supervisor {
    listener: OwnedFd,
}

/// Hands the calling thread's watched calls, and those of threads and
/// processes that it starts from now on, to a supervisor. It must be another
/// thread, one that is not watched, and cannot be undone. Requires at least
/// Linux 5.5.
///
/// # Errors
/// `EACCES` without CAP_SYS_ADMIN, `EINVAL` below Linux 5.5 or with more than
/// some thousand watches, `EBUSY` if the thread has a supervisor already.
pub fn supervise(watches: &[Watch]) -> Result<Supervisor> {
    let mut filter = filter(watches);
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len())
            .map_err(|_| SysError::new("seccomp(SET_MODE_FILTER)", Errno::EINVAL))?,
        filter: filter.as_mut_ptr(),
    };
    let (mode, flags) = (
        libc::SECCOMP_SET_MODE_FILTER,
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
    );
    let raw = retry_eintr("seccomp(SET_MODE_FILTER)", || {
        // SAFETY: the program and the instructions it points to are alive, and
        // the kernel copies them.
        unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) }
    })?;
    // From here on this thread must make no watched call: nobody answers yet.
    let listener = own("seccomp(SET_MODE_FILTER)", raw)?;
    Ok(Supervisor { listener })
}

/// The filter as the kernel's classic virtual machine runs it.
fn filter(watches: &[Watch]) -> Vec<libc::sock_filter> {
    let insn = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    // `nr` comes first.
    let mut filter = vec![insn(load, 0, 0, 0)];
    for watch in watches {
        let number = watch.call as u32;
        if let Some(index) = watch.unless_none {
            // The lower half of `args[index]`.
            let low = 16 + 8 * u32::from(index) + 4 * u32::from(cfg!(target_endian = "big"));
            filter.extend([
                insn(equal, 0, 4, number),
                insn(load, 0, 0, low),
                insn(equal, 0, 1, u32::MAX),
                insn(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
                insn(answer, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
            ]);
        } else {
            filter.extend([
                insn(equal, 0, 1, number),
                insn(answer, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
            ]);
        }
    }
    filter.push(insn(answer, 0, 0, libc::SECCOMP_RET_ALLOW));
    filter
}

impl Supervisor {
    /// The next call, waiting for it no longer than `timeout`.
    ///
    /// # Errors
    /// Those of poll(2) and ioctl(2).
    pub fn next(&self, timeout: Duration) -> Result<Option<Call>> {
        let mut poll = libc::pollfd {
            fd: self.listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let slot = &raw mut poll;
        retry_eintr("poll", || {
            // SAFETY: `slot` points at one live structure.
            i64::from(unsafe { libc::poll(slot, 1, millis) })
        })?;
        if poll.revents & libc::POLLIN == 0 {
            return Ok(None);
        }
        let mut caught = MaybeUninit::<libc::seccomp_notif>::zeroed();
        let to = caught.as_mut_ptr();
        let received = self.ioctl("ioctl(SECCOMP_IOCTL_NOTIF_RECV)", RECEIVE, to.cast());
        match received {
            // A signal took the thread out of its call.
            Err(err) if err.is(Errno::ENOENT) => return Ok(None),
            result => result?,
        }
        // SAFETY: all zeros are a valid value, and the kernel wrote over them.
        let caught = unsafe { caught.assume_init() };
        Ok(Some(Call {
            id: caught.id,
            thread: caught.pid,
            number: caught.data.nr.into(),
            arguments: caught.data.args,
        }))
    }

    /// Lets the kernel carry the call out.
    ///
    /// # Errors
    /// Those of ioctl(2). A call that is no longer waited for is none.
    pub fn allow(&self, call: &Call) -> Result<()> {
        self.answer(call, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32)
    }

    /// Makes the call fail with `errno`, without being carried out.
    ///
    /// # Errors
    /// As for [`Supervisor::allow`].
    pub fn refuse(&self, call: &Call, errno: Errno) -> Result<()> {
        self.answer(call, -errno.raw(), 0)
    }

    fn answer(&self, call: &Call, error: i32, flags: u32) -> Result<()> {
        let mut answer = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error,
            flags,
        };
        let from = (&raw mut answer).cast();
        match self.ioctl("ioctl(SECCOMP_IOCTL_NOTIF_SEND)", SEND, from) {
            Err(err) if err.is(Errno::ENOENT) => Ok(()),
            result => result,
        }
    }

    fn ioctl(&self, op: &'static str, request: u64, data: *mut libc::c_void) -> Result<()> {
        let fd = self.listener.as_raw_fd();
        retry_eintr(op, || {
            // SAFETY: both callers point at a live structure of the size that
            // the request's number carries.
            i64::from(unsafe { libc::ioctl(fd, request as _, data) })
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::require;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn calls_are_seen_and_refused() {
        let (send, receive) = mpsc::channel();
        let watched = thread::spawn(move || {
            let watch = Watch {
                call: libc::SYS_openat,
                unless_none: None,
            };
            send.send(supervise(&[watch])).unwrap();
            ["/dev/null", "/dev/null", "/dev/zero"].map(|path| {
                let opened = std::fs::File::open(path);
                opened.map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(0)))
            })
        });
        let supervisor = receive.recv().unwrap();
        let supervisor = require!((5, 5), ["CONFIG_SECCOMP_FILTER"], supervisor);
        let mut seen = 0;
        while seen < 3 {
            let Some(call) = supervisor.next(Duration::from_secs(10)).unwrap() else {
                panic!("{seen} calls");
            };
            assert_eq!(call.number, libc::SYS_openat);
            seen += 1;
            if seen == 2 {
                supervisor.refuse(&call, Errno::EMFILE).unwrap();
            } else {
                supervisor.allow(&call).unwrap();
            }
        }
        let [first, second, third] = watched.join().unwrap();
        assert!(first.is_ok() && third.is_ok());
        assert_eq!(second.unwrap_err(), Errno::EMFILE);
    }
}
