//! Termination signals read from a descriptor instead of a handler.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use crate::Result;
use crate::errno::{Errno, SysError, retry_eintr};
use crate::fd::own;

/// A signal number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Signal(pub i32);

impl Signal {
    /// Interrupt from the keyboard.
    pub const INT: Signal = Signal(libc::SIGINT);
    /// Request to terminate.
    pub const TERM: Signal = Signal(libc::SIGTERM);
    /// Terminal closed; by custom, reload.
    pub const HUP: Signal = Signal(libc::SIGHUP);
    /// Free for use.
    pub const USR1: Signal = Signal(libc::SIGUSR1);
    /// Free for use.
    pub const USR2: Signal = Signal(libc::SIGUSR2);
}

/// Blocked signals that arrive on a descriptor.
///
/// Dropping it restores the thread's signal mask; a signal that is pending
/// then takes its ordinary effect at once. It stays on the thread that made
/// it, because the mask belongs to that thread.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
    previous: Mask,
    /// A mask is a property of the thread: neither `Send` nor `Sync`.
    _thread: PhantomData<*mut ()>,
}

#[derive(Clone, Copy)]
struct Mask(libc::sigset_t);

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mask")
    }
}

impl SignalFd {
    /// Blocks `signals` in the calling thread and opens a descriptor that
    /// yields them.
    ///
    /// Threads inherit the mask of the thread that starts them, and a signal
    /// sent to the process goes to any thread that does not block it: call
    /// this before starting threads.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal.
    pub fn block(signals: &[Signal]) -> Result<SignalFd> {
        let wanted = Mask::of(signals)?;
        let previous = wanted.apply(libc::SIG_BLOCK)?;
        let raw = retry_eintr("signalfd", || {
            let set = ptr::from_ref(&wanted.0);
            let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
            // SAFETY: `set` points to an initialised set; −1 asks for a new
            // descriptor.
            i64::from(unsafe { libc::signalfd(-1, set, flags) })
        });
        match raw.and_then(|raw| own("signalfd", raw)) {
            Ok(fd) => Ok(SignalFd {
                fd,
                previous,
                _thread: PhantomData,
            }),
            Err(err) => {
                previous.apply(libc::SIG_SETMASK)?;
                Err(err)
            }
        }
    }

    /// The next signal that arrived; `None` if there is none. Never blocks:
    /// wait for [`Interest::READABLE`](crate::poll::Interest::READABLE).
    pub fn read(&self) -> Result<Option<Signal>> {
        let size = size_of::<libc::signalfd_siginfo>();
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let to = info.as_mut_ptr();
        let ret = retry_eintr("read(signalfd)", || {
            // SAFETY: the descriptor is open and `to` points to `size`
            // writable bytes.
            unsafe { libc::read(self.fd.as_raw_fd(), to.cast(), size) as i64 }
        });
        match ret {
            Ok(n) if n == size as i64 => {
                // SAFETY: the kernel filled the whole structure.
                let info = unsafe { info.assume_init() };
                Ok(Some(Signal(info.ssi_signo as i32)))
            }
            Ok(_) => Err(SysError::new("read(signalfd)", Errno::EIO)),
            Err(err) if err.is(Errno::EAGAIN) => Ok(None),
            Err(err) => Err(err),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SignalFd {
    fn drop(&mut self) {
        // Fails only for an operation the kernel does not know.
        let _ = self.previous.apply(libc::SIG_SETMASK);
    }
}

/// Blocks every signal in the calling thread, for good: handlers of the
/// application are not run on a thread it does not know of. A signal sent to
/// the process goes to its other threads.
pub fn block_all_in_this_thread() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is valid for writing a set.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: sigfillset initialised it.
    let set = Mask(unsafe { set.assume_init() });
    // Fails only for an operation the kernel does not know.
    let _ = set.apply(libc::SIG_BLOCK);
}

impl Mask {
    fn of(signals: &[Signal]) -> Result<Mask> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the pointer is valid for writing a set.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: sigemptyset initialised it.
        let mut set = unsafe { set.assume_init() };
        for signal in signals {
            // SAFETY: the set is initialised and exclusively borrowed.
            if unsafe { libc::sigaddset(&raw mut set, signal.0) } != 0 {
                return Err(SysError::last("sigaddset"));
            }
        }
        Ok(Mask(set))
    }

    /// Changes the calling thread's mask, returning what it was.
    fn apply(&self, how: libc::c_int) -> Result<Mask> {
        let mut previous = MaybeUninit::<libc::sigset_t>::uninit();
        let set = ptr::from_ref(&self.0);
        // SAFETY: both pointers are valid for one set, to read and to write.
        let ret = unsafe { libc::pthread_sigmask(how, set, previous.as_mut_ptr()) };
        if ret != 0 {
            return Err(SysError::new("pthread_sigmask", Errno::from_raw(ret)));
        }
        // SAFETY: the call succeeded, so it filled the set.
        Ok(Mask(unsafe { previous.assume_init() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_blocked(signal: Signal) -> bool {
        let now = Mask::of(&[]).unwrap().apply(libc::SIG_BLOCK).unwrap();
        // SAFETY: the set is initialised.
        unsafe { libc::sigismember(&raw const now.0, signal.0) == 1 }
    }

    #[test]
    fn blocked_signals_are_read_and_the_mask_comes_back() {
        assert!(!is_blocked(Signal::USR1));
        let fd = SignalFd::block(&[Signal::USR1, Signal::HUP]).unwrap();
        assert!(is_blocked(Signal::USR1));
        assert_eq!(fd.read(), Ok(None));
        // SAFETY: takes no argument and returns this thread's handle.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: this thread is alive, and blocks the signal.
        let ret = unsafe { libc::pthread_kill(this, libc::SIGUSR1) };
        assert_eq!(ret, 0);
        assert_eq!(fd.read(), Ok(Some(Signal::USR1)));
        assert_eq!(fd.read(), Ok(None));
        drop(fd);
        assert!(!is_blocked(Signal::USR1));
    }

    #[test]
    fn numbers_that_are_no_signal_change_nothing() {
        let err = SignalFd::block(&[Signal::USR2, Signal(4096)]).unwrap_err();
        assert!(err.is(Errno::EINVAL));
        assert!(!is_blocked(Signal::USR2));
    }
}
