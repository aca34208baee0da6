//! Network namespaces by descriptor.
//!
//! A thread's namespace is an invisible global, so no function here changes
//! the caller's: work in another namespace runs on a helper thread that enters
//! it and ends. What the work makes (a socket) keeps acting there.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::Path;

use crate::Result;
use crate::errno::{Errno, SysError, retry_eintr};
use crate::fd::own;
use crate::netlink::{Netlink, socket};

/// Identity of a namespace, as long as it exists: two descriptors with equal
/// ids are of the same one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NamespaceId {
    /// Device of the namespace file system.
    pub device: u64,
    /// Inode number, the one in `net:[4026531840]`.
    pub inode: u64,
}

/// Opens a namespace by a path such as `/proc/1/ns/net`. The descriptor keeps
/// the namespace alive.
///
/// # Errors
/// Those of open(2). Whether it is a network namespace shows when it is
/// entered.
pub fn open(path: &Path) -> Result<OwnedFd> {
    let file = File::open(path).map_err(|e| SysError::from_io("open", &e).with_path(path))?;
    own("open", file.into_raw_fd().into())
}

/// Opens a namespace that `ip netns add` made, by its name.
///
/// # Errors
/// `EINVAL` if the name is not a single path component; those of open(2).
pub fn open_named(name: &str) -> Result<OwnedFd> {
    let path = Path::new("/run/netns").join(name);
    if matches!(name, "" | "." | "..") || name.contains('/') {
        return Err(SysError::new("open", Errno::EINVAL)
            .with_path(path)
            .with_detail("not the name of a namespace"));
    }
    open(&path)
}

/// Opens the calling thread's namespace.
///
/// # Errors
/// Those of open(2): proc must be mounted. Linux 3.17.
pub fn current() -> Result<OwnedFd> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// Makes a new, empty namespace; it ends with its last descriptor, socket and
/// process.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; as [`with_netns`].
pub fn create() -> Result<OwnedFd> {
    let mut made = None;
    on_thread(&mut || {
        retry_eintr("unshare(CLONE_NEWNET)", || {
            // SAFETY: unshare takes an integer and touches no memory; only
            // this short-lived thread moves.
            i64::from(unsafe { libc::unshare(libc::CLONE_NEWNET) })
        })?;
        made = Some(current()?);
        Ok(())
    })?;
    made.ok_or_else(|| SysError::new("unshare(CLONE_NEWNET)", Errno::ECANCELED))
}

/// The identity of the namespace behind `ns`.
///
/// # Errors
/// Those of fstat(2).
pub fn id(ns: BorrowedFd<'_>) -> Result<NamespaceId> {
    let fd = ns.as_raw_fd();
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    let ptr = stat.as_mut_ptr();
    retry_eintr("fstat", || {
        // SAFETY: `ptr` points at room for one stat that outlives the call.
        i64::from(unsafe { libc::fstat(fd, ptr) })
    })?;
    // SAFETY: the call succeeded, so the kernel filled in the whole struct.
    let stat = unsafe { stat.assume_init() };
    Ok(NamespaceId {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// Runs `work` in the namespace `ns`, on a thread of its own, and returns what
/// it returns. The caller's thread stays where it is.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `EINVAL` if `ns` is no network namespace,
/// `EAGAIN` if there can be no further thread, `ECANCELED` with the message as
/// detail if `work` panicked.
pub fn with_netns<T: Send>(ns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T> {
    let mut work = Some(work);
    let mut result = None;
    on_thread(&mut || {
        enter(ns)?;
        result = work.take().map(|work| work());
        Ok(())
    })?;
    result.ok_or_else(|| SysError::new("setns", Errno::ECANCELED))
}

/// Makes a socket(2) that belongs to the namespace `ns`. Pass
/// `libc::SOCK_CLOEXEC` with the kind.
///
/// # Errors
/// Those of socket(2); as [`with_netns`].
pub fn socket_in(ns: BorrowedFd<'_>, domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    with_netns(ns, || socket(domain, kind, protocol))?
}

/// [`Netlink::route`] for the namespace `ns`.
///
/// # Errors
/// Those of socket(2); as [`with_netns`].
pub fn route_in(ns: BorrowedFd<'_>) -> Result<Netlink> {
    with_netns(ns, Netlink::route)?
}

/// A namespace that this process changes and other users of this module do
/// not, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    #[expect(dead_code, reason = "the lock goes with the descriptor")]
    fd: OwnedFd,
}

/// Locks the namespace `ns` among the users of this function in all processes
/// (flock(2) on the namespace's file); `None` if it is locked.
///
/// # Errors
/// Those of open(2): proc must be mounted. Those of flock(2).
pub fn try_lock(ns: BorrowedFd<'_>) -> Result<Option<Lock>> {
    // A descriptor of its own, because duplicates share their locks.
    let fd = open(&Path::new("/proc/thread-self/fd").join(ns.as_raw_fd().to_string()))?;
    let raw = fd.as_raw_fd();
    let locked = retry_eintr("flock", || {
        // SAFETY: flock takes two integers and touches no memory.
        i64::from(unsafe { libc::flock(raw, libc::LOCK_EX | libc::LOCK_NB) })
    });
    match locked {
        Ok(_) => Ok(Some(Lock { fd })),
        Err(err) if err.is(Errno::EAGAIN) => Ok(None),
        Err(err) => Err(err),
    }
}

/// Moves the calling thread.
fn enter(ns: BorrowedFd<'_>) -> Result<()> {
    let fd = ns.as_raw_fd();
    retry_eintr("setns(CLONE_NEWNET)", || {
        // SAFETY: setns takes two integers and touches no memory; only the
        // helper thread, which ends after its work, calls this.
        i64::from(unsafe { libc::setns(fd, libc::CLONE_NEWNET) })
    })?;
    Ok(())
}

/// Runs `work` on a new thread and waits for it.
fn on_thread(work: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(|e| SysError::from_io("clone", &e))?;
        thread.join().unwrap_or_else(|panic| {
            let text = match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => match panic.downcast::<&'static str>() {
                    Ok(text) => (*text).to_owned(),
                    Err(_) => "panic".to_owned(),
                },
            };
            Err(SysError::new("netns thread", Errno::ECANCELED).with_detail(text))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::require;
    use std::os::fd::AsFd;

    fn here() -> NamespaceId {
        id(current().unwrap().as_fd()).unwrap()
    }

    #[test]
    fn caller_stays_where_it_is() {
        let ns = require!((3, 8), create());
        let before = here();
        let there = with_netns(ns.as_fd(), here).unwrap();
        assert_eq!(there, id(ns.as_fd()).unwrap());
        assert_ne!(there, before);
        assert_eq!(here(), before);
        let result = with_netns(ns.as_fd(), || 7);
        assert_eq!(result, Ok(7));
    }

    #[test]
    fn a_namespace_is_locked_once() {
        let ns = require!((3, 8), create());
        let lock = try_lock(ns.as_fd()).unwrap();
        assert!(lock.is_some());
        let again = crate::fd::dup(ns.as_fd()).unwrap();
        assert!(try_lock(again.as_fd()).unwrap().is_none());
        drop(lock);
        assert!(try_lock(again.as_fd()).unwrap().is_some());
    }

    #[test]
    fn sockets_belong_to_their_namespace() {
        let ns = require!((3, 8), create());
        // SIOCGSKNS: the namespace a socket is in. Linux 3.19.
        let namespace_of = |socket: &OwnedFd| {
            let fd = socket.as_raw_fd();
            // SAFETY: SIOCGSKNS takes no argument and returns a descriptor.
            let raw = unsafe { libc::ioctl(fd, 0x894c) };
            assert!(raw >= 0);
            id(own("ioctl", raw.into()).unwrap().as_fd()).unwrap()
        };
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let socket = socket_in(ns.as_fd(), libc::AF_INET, kind, 0).unwrap();
        assert_eq!(namespace_of(&socket), id(ns.as_fd()).unwrap());
        let err = socket_in(ns.as_fd(), -1, kind, 0).unwrap_err();
        assert!(err.is(Errno::EAFNOSUPPORT), "{err}");
    }

    #[test]
    fn failures_come_back_as_errors() {
        let err = with_netns(current().unwrap().as_fd(), || -> u32 {
            std::panic::resume_unwind(Box::new(format!("because {}", 7)));
        })
        .unwrap_err();
        let told = if err.is(Errno::ECANCELED) {
            Ok(())
        } else {
            Err(&err)
        };
        require!((3, 8), told);
        assert_eq!(err.detail(), Some("because 7"));
        let file = File::open("/proc/self/stat").unwrap();
        let err = with_netns(file.as_fd(), || ()).unwrap_err();
        assert!(err.is(Errno::EINVAL), "{err}");
    }

    #[test]
    fn names_cannot_leave_their_directory() {
        for bad in ["", ".", "..", "a/b", "/proc/self/ns/net"] {
            assert!(open_named(bad).is_err_and(|e| e.is(Errno::EINVAL)));
        }
        let err = open_named("no-such-namespace").unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
    }
}
