//! Kernel error numbers and the error every call of this crate returns.

use std::fmt;
use std::path::{Path, PathBuf};

/// A kernel error number.
///
/// `Display` prints the symbolic name where it has one, then the C library's
/// description: `EPERM (Operation not permitted)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident)*) => {
        #[allow(missing_docs, reason = "the names are errno(3)'s own")]
        impl Errno {
            $(pub const $name: Errno = Errno(libc::$name);)*
            /// `ENOTSUPP`: kernel-internal number that bpf(2) leaks to callers.
            pub const ENOTSUPP: Errno = Errno(524);
        }

        /// By position, what `NAMES` names: one string takes less room than a
        /// pointer to each.
        const NUMBERS: &[u8] = &[$(libc::$name as u8),*];
        const NAMES: &str = concat!($(stringify!($name), " "),*);

        impl Errno {
            /// Symbolic name, such as `"ENOENT"`; `None` for a number not listed here.
            pub fn name(self) -> Option<&'static str> {
                if self == Errno::ENOTSUPP {
                    return Some("ENOTSUPP");
                }
                let number = u8::try_from(self.0).ok()?;
                let at = NUMBERS.iter().position(|n| *n == number)?;
                NAMES.split(' ').nth(at)
            }
        }
    };
}

errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM
    EACCES EFAULT EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE
    ENOTTY EFBIG ENOSPC ESPIPE EROFS ERANGE EDOM ENAMETOOLONG ENOSYS ENOTEMPTY
    ELOOP ENODATA EOVERFLOW EILSEQ EOPNOTSUPP EAFNOSUPPORT EADDRINUSE ENETDOWN
    ENOBUFS ETIMEDOUT EALREADY ESTALE ECANCELED EPROTO EBADMSG EMSGSIZE
    EPROTONOSUPPORT ENOTSOCK ENOPROTOOPT
}

impl Errno {
    /// Wraps a positive error number as the kernel or `errno` gives it.
    pub const fn from_raw(raw: i32) -> Errno {
        Errno(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// The calling thread's `errno`.
    pub fn last() -> Errno {
        Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    /// True for the two numbers that stand for a missing privilege.
    pub fn is_permission(self) -> bool {
        matches!(self, Errno::EPERM | Errno::EACCES)
    }
}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        let text = match text.find(" (os error") {
            Some(end) => &text[..end],
            None => &text,
        };
        match self.name() {
            Some("ENOTSUPP") => f.write_str("ENOTSUPP (not supported by this kernel)"),
            Some(name) => write!(f, "{name} ({text})"),
            None => write!(f, "errno {} ({text})", self.0),
        }
    }
}

/// A system call that failed: which operation, on which path if it had one,
/// and the error number.
///
/// The layers above add what they know (map, program, interface) and keep this
/// as their source. It is one pointer, so that results which seldom have it
/// are handed up in registers.
#[derive(Clone, PartialEq, Eq)]
pub struct SysError(Box<Parts>);

#[derive(Clone, PartialEq, Eq)]
struct Parts {
    op: &'static str,
    errno: Errno,
    path: Option<PathBuf>,
    detail: Option<String>,
}

impl std::error::Error for SysError {}

impl SysError {
    /// Failure of `op` with `errno`.
    #[cold]
    #[inline(never)]
    pub fn new(op: &'static str, errno: Errno) -> SysError {
        SysError(Box::new(Parts {
            op,
            errno,
            path: None,
            detail: None,
        }))
    }

    /// Failure of `op` with the calling thread's `errno`.
    #[cold]
    #[inline(never)]
    pub fn last(op: &'static str) -> SysError {
        SysError::new(op, Errno::last())
    }

    /// Failure of `op` as the standard library reports it. An error without a
    /// number (unexpected end of file, bad UTF-8) becomes `EIO` with its text
    /// as the detail.
    #[cold]
    #[inline(never)]
    pub fn from_io(op: &'static str, err: &std::io::Error) -> SysError {
        match err.raw_os_error() {
            Some(raw) => SysError::new(op, Errno(raw)),
            None => SysError::new(op, Errno::EIO).with_detail(err.to_string()),
        }
    }

    /// Adds the path the operation was about.
    #[must_use]
    pub fn with_path(self, path: impl Into<PathBuf>) -> SysError {
        self.with(Some(path.into()), None)
    }

    /// Adds what the kernel said beyond the number, such as netlink's extended
    /// acknowledgement.
    #[must_use]
    pub fn with_detail(self, detail: impl Into<String>) -> SysError {
        self.with(None, Some(detail.into()))
    }

    #[cold]
    #[inline(never)]
    fn with(mut self, path: Option<PathBuf>, detail: Option<String>) -> SysError {
        if path.is_some() {
            self.0.path = path;
        }
        if detail.is_some() {
            self.0.detail = detail;
        }
        self
    }

    /// The operation: `"bpf(BPF_MAP_CREATE)"`, `"open"`, `"RTM_NEWQDISC"`.
    pub fn op(&self) -> &'static str {
        self.0.op
    }

    /// The error number.
    pub fn errno(&self) -> Errno {
        self.0.errno
    }

    /// The path, for operations on files.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The kernel's own message, when it gave one.
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// True if the call failed with `errno`.
    pub fn is(&self, errno: Errno) -> bool {
        self.0.errno == errno
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op())?;
        if let Some(path) = self.path() {
            write!(f, " {}", path.display())?;
        }
        write!(f, ": {}", self.errno())?;
        if let Some(detail) = self.detail() {
            write!(f, ": {detail}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SysError({self})")
    }
}

/// Runs a system call that returns −1 and sets `errno`, again while it is
/// interrupted (`EINTR`). The one retry loop for interruption in this crate.
#[inline]
pub(crate) fn retry_eintr(
    op: &'static str,
    mut call: impl FnMut() -> i64,
) -> Result<i64, SysError> {
    loop {
        let ret = call();
        if ret >= 0 {
            return Ok(ret);
        }
        let errno = Errno::last();
        if errno != Errno::EINTR {
            return Err(SysError::new(op, errno));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_number_and_meaning() {
        let err = SysError::new("bpf(BPF_MAP_CREATE)", Errno::EPERM);
        assert_eq!(
            err.to_string(),
            "bpf(BPF_MAP_CREATE): EPERM (Operation not permitted)"
        );
        let err = SysError::new("open", Errno::ENOENT)
            .with_path("/x")
            .with_detail("why");
        assert_eq!(
            err.to_string(),
            "open /x: ENOENT (No such file or directory): why"
        );
        assert_eq!(
            Errno::from_raw(524).to_string(),
            "ENOTSUPP (not supported by this kernel)"
        );
        assert_eq!(format!("{:?}", Errno::from_raw(4095)), "errno 4095");
    }

    #[test]
    fn interrupted_calls_run_again() {
        let mut left = 3;
        let ret = retry_eintr("test", || {
            if left == 0 {
                return 7;
            }
            left -= 1;
            // SAFETY: takes no argument and returns this thread's location.
            let errno = unsafe { libc::__errno_location() };
            // SAFETY: the location is valid and writable for this thread.
            unsafe { *errno = libc::EINTR };
            -1
        });
        assert_eq!(ret, Ok(7));
        assert_eq!(left, 0);
    }
}
