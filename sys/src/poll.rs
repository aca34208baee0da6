//! Waiting: epoll, and an eventfd that wakes the waiter from another thread.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitflags::bitflags;

use crate::Result;
use crate::errno::{Errno, SysError, retry_eintr};
use crate::fd::own;

bitflags! {
    /// What to wait for, and what came; bits not named here are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Interest: u32 {
        /// Data can be read.
        const READABLE = libc::EPOLLIN as u32;
        /// Data can be written.
        const WRITABLE = libc::EPOLLOUT as u32;
        /// An error is pending; reported without being asked for.
        const ERROR = libc::EPOLLERR as u32;
        /// The other side is gone; reported without being asked for.
        const HANG_UP = libc::EPOLLHUP as u32;
        /// Report each change once instead of as long as it lasts.
        const EDGE = libc::EPOLLET as u32;
        /// Report once, until [`Epoll::modify`] arms it again.
        const ONE_SHOT = libc::EPOLLONESHOT as u32;
        const _ = !0;
    }
}

/// One descriptor that became ready.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Event(libc::epoll_event);

impl Event {
    /// An empty slot for [`Epoll::wait`] to fill.
    pub const EMPTY: Event = Event(libc::epoll_event { events: 0, u64: 0 });

    /// The token the descriptor was added with.
    pub fn token(&self) -> u64 {
        self.0.u64
    }

    /// What it is ready for.
    pub fn ready(&self) -> Interest {
        Interest::from_bits_retain(self.0.events)
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Event")
            .field("token", &self.token())
            .field("ready", &self.ready())
            .finish()
    }
}

/// An epoll instance. Dropping it closes it; the descriptors added stay open.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    /// A new instance that waits for nothing yet.
    pub fn new() -> Result<Epoll> {
        let raw = retry_eintr("epoll_create1", || {
            // SAFETY: takes a number and touches no memory.
            i64::from(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
        })?;
        let fd = own("epoll_create1", raw)?;
        Ok(Epoll { fd })
    }

    /// Waits for `interest` on `fd` too, reporting it as `token`.
    ///
    /// The kernel forgets `fd` by itself when the last duplicate of it is
    /// closed.
    ///
    /// # Errors
    /// `EEXIST` if it is there already, `EPERM` if it cannot be polled.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> Result<()> {
        self.control("epoll_ctl(ADD)", libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    /// Changes token and interest of `fd`, and arms it again after
    /// [`Interest::ONE_SHOT`].
    ///
    /// # Errors
    /// `ENOENT` if it is not there.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> Result<()> {
        self.control("epoll_ctl(MOD)", libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    /// No longer waits for `fd`.
    ///
    /// # Errors
    /// `ENOENT` if it is not there.
    pub fn delete(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let none = Interest::empty();
        self.control("epoll_ctl(DEL)", libc::EPOLL_CTL_DEL, fd, 0, none)
    }

    fn control(
        &self,
        op: &'static str,
        code: libc::c_int,
        fd: BorrowedFd<'_>,
        token: u64,
        interest: Interest,
    ) -> Result<()> {
        let mut event = libc::epoll_event {
            events: interest.bits(),
            u64: token,
        };
        let event = ptr::from_mut(&mut event);
        let epoll = self.fd.as_raw_fd();
        retry_eintr(op, || {
            // SAFETY: both descriptors are open, and `event` points to a live
            // structure, which the kernel only reads.
            i64::from(unsafe { libc::epoll_ctl(epoll, code, fd.as_raw_fd(), event) })
        })?;
        Ok(())
    }

    /// Waits until something is ready or `timeout` is over (`None` waits for
    /// ever), and returns the part of `events` that was filled: empty after a
    /// timeout.
    ///
    /// The timeout is rounded up to milliseconds. An interrupted wait goes on
    /// with the time that is left.
    ///
    /// # Errors
    /// `EINVAL` if `events` is empty.
    pub fn wait<'e>(
        &self,
        events: &'e mut [Event],
        timeout: Option<Duration>,
    ) -> Result<&'e [Event]> {
        // A timeout beyond what the clock can express is no timeout.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let capacity = libc::c_int::try_from(events.len()).unwrap_or(libc::c_int::MAX);
        let mut left = timeout.filter(|_| deadline.is_some());
        loop {
            let millis = left.map_or(-1, round_up_to_millis);
            let slots = events.as_mut_ptr().cast::<libc::epoll_event>();
            // SAFETY: `events` has room for `capacity` entries, each of which
            // is an `epoll_event` in a transparent wrapper.
            let n = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), slots, capacity, millis) };
            if let Ok(n) = usize::try_from(n) {
                return Ok(events.get(..n).unwrap_or_default());
            }
            let errno = Errno::last();
            if errno != Errno::EINTR {
                return Err(SysError::new("epoll_wait", errno));
            }
            left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        }
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Milliseconds, rounded up so that a wait never ends before its time.
fn round_up_to_millis(time: Duration) -> libc::c_int {
    let millis = time.as_nanos().div_ceil(1_000_000);
    libc::c_int::try_from(millis).unwrap_or(libc::c_int::MAX)
}

/// An eventfd: threads call [`wake`](Waker::wake), and the [`Epoll`] it was
/// added to reports it readable until [`drain`](Waker::drain).
///
/// Clones share one descriptor, closed with the last of them.
#[derive(Clone, Debug)]
pub struct Waker {
    fd: Arc<OwnedFd>,
}

impl Waker {
    /// A new waker, not woken.
    pub fn new() -> Result<Waker> {
        let raw = retry_eintr("eventfd", || {
            // SAFETY: takes two numbers and touches no memory.
            i64::from(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
        })?;
        let fd = Arc::new(own("eventfd", raw)?);
        Ok(Waker { fd })
    }

    /// Makes the descriptor readable. Never blocks, and waking twice is the
    /// same as waking once.
    pub fn wake(&self) -> Result<()> {
        let one = 1_u64;
        let ret = retry_eintr("write(eventfd)", || {
            let from = ptr::from_ref(&one).cast();
            // SAFETY: the descriptor is open and `from` points to the 8 bytes
            // of `one`.
            unsafe { libc::write(self.fd.as_raw_fd(), from, 8) as i64 }
        });
        match ret {
            // The counter is full, so the descriptor is readable already.
            Err(err) if err.is(Errno::EAGAIN) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Sleeps for `time`, with the precision of nanoseconds that epoll lacks,
    /// or until woken; true if woken. It stays woken until
    /// [`drain`](Self::drain).
    ///
    /// How much later it returns is up to the thread's timer slack, see
    /// [`set_timer_slack`]. A signal ends the sleep early.
    pub fn sleep(&self, time: Duration) -> Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let time = libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let poll = ptr::from_mut(&mut poll);
        // SAFETY: `poll` and `time` are alive, the count of one is right, and
        // no signal mask is passed.
        let n = unsafe { libc::ppoll(poll, 1, &raw const time, ptr::null()) };
        match n {
            0 => Ok(false),
            1 => Ok(true),
            _ => match Errno::last() {
                Errno::EINTR => Ok(false),
                errno => Err(SysError::new("ppoll", errno)),
            },
        }
    }

    /// Makes the descriptor unreadable; true if it had been woken.
    pub fn drain(&self) -> Result<bool> {
        let mut count = 0_u64;
        let to = ptr::from_mut(&mut count);
        let ret = retry_eintr("read(eventfd)", || {
            // SAFETY: the descriptor is open and `to` points to 8 writable
            // bytes.
            unsafe { libc::read(self.fd.as_raw_fd(), to.cast(), 8) as i64 }
        });
        match ret {
            Err(err) if err.is(Errno::EAGAIN) => Ok(false),
            other => other.map(|_| true),
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// By how many nanoseconds the kernel may delay the end of a sleep of the
/// calling thread, to end several at once: 50,000 unless set.
pub fn set_timer_slack(ns: u32) -> Result<()> {
    retry_eintr("prctl(PR_SET_TIMERSLACK)", || {
        // SAFETY: takes two numbers and touches no memory of ours.
        i64::from(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, libc::c_ulong::from(ns)) })
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn all_are_send_and_sync() {
        fn check<T: Send + Sync>() {}
        check::<Epoll>();
        check::<Event>();
        check::<Waker>();
    }

    #[test]
    fn timeouts_round_up() {
        assert_eq!(round_up_to_millis(Duration::ZERO), 0);
        assert_eq!(round_up_to_millis(Duration::from_nanos(1)), 1);
        assert_eq!(round_up_to_millis(Duration::from_micros(1001)), 2);
        assert_eq!(round_up_to_millis(Duration::MAX), i32::MAX);
    }

    #[test]
    fn waker_wakes_across_threads_and_drains() {
        let epoll = Epoll::new().unwrap();
        let waker = Waker::new().unwrap();
        epoll.add(waker.as_fd(), 42, Interest::READABLE).unwrap();
        let mut events = [Event::EMPTY; 4];
        assert!(
            epoll
                .wait(&mut events, Some(Duration::ZERO))
                .unwrap()
                .is_empty()
        );
        let clone = waker.clone();
        let thread = std::thread::spawn(move || clone.wake().unwrap());
        let ready = epoll.wait(&mut events, None).unwrap();
        assert_eq!(ready.len(), 1);
        assert_eq!(ready[0].token(), 42);
        assert!(ready[0].ready().contains(Interest::READABLE));
        thread.join().unwrap();
        assert_eq!(waker.drain(), Ok(true));
        assert_eq!(waker.drain(), Ok(false));
    }

    #[test]
    fn sleep_ends_by_time_or_by_the_waker() {
        set_timer_slack(1000).unwrap();
        let waker = Waker::new().unwrap();
        let start = Instant::now();
        assert_eq!(waker.sleep(Duration::from_micros(300)), Ok(false));
        assert!(start.elapsed() >= Duration::from_micros(300));
        waker.wake().unwrap();
        assert_eq!(waker.sleep(Duration::MAX), Ok(true));
        assert_eq!(waker.drain(), Ok(true));
    }

    #[test]
    fn full_counter_still_counts_as_woken() {
        let waker = Waker::new().unwrap();
        let almost = u64::MAX - 1;
        let from = ptr::from_ref(&almost).cast();
        // SAFETY: the descriptor is open and `from` points to 8 bytes.
        let n = unsafe { libc::write(waker.fd.as_raw_fd(), from, 8) };
        assert_eq!(n, 8);
        assert_eq!(waker.wake(), Ok(()));
        assert_eq!(waker.drain(), Ok(true));
    }

    #[test]
    fn modify_and_delete() {
        let epoll = Epoll::new().unwrap();
        let waker = Waker::new().unwrap();
        let mut events = [Event::EMPTY; 1];
        let zero = Some(Duration::ZERO);
        assert!(epoll.delete(waker.as_fd()).unwrap_err().is(Errno::ENOENT));
        epoll.add(waker.as_fd(), 1, Interest::READABLE).unwrap();
        let again = epoll.add(waker.as_fd(), 1, Interest::READABLE);
        assert!(again.unwrap_err().is(Errno::EEXIST));
        waker.wake().unwrap();
        epoll.modify(waker.as_fd(), 2, Interest::READABLE).unwrap();
        assert_eq!(epoll.wait(&mut events, zero).unwrap()[0].token(), 2);
        epoll.delete(waker.as_fd()).unwrap();
        assert!(epoll.wait(&mut events, zero).unwrap().is_empty());
        assert!(epoll.wait(&mut [], zero).unwrap_err().is(Errno::EINVAL));
    }

    extern "C" fn ignore(_: libc::c_int) {}

    #[test]
    fn interrupted_wait_keeps_its_deadline() {
        let mut action = libc::sigaction {
            sa_sigaction: ignore as *const () as usize,
            sa_flags: 0,
            sa_restorer: None,
            // SAFETY: an all-zero signal set is the empty set.
            sa_mask: unsafe { std::mem::zeroed() },
        };
        let action = ptr::from_mut(&mut action);
        // SAFETY: `action` is filled in, the handler does nothing, and no
        // other code of this test binary uses SIGUSR2.
        let ret = unsafe { libc::sigaction(libc::SIGUSR2, action, ptr::null_mut()) };
        assert_eq!(ret, 0);
        // SAFETY: takes no argument and returns this thread's handle.
        let waiter = unsafe { libc::pthread_self() };
        let timeout = Duration::from_millis(100);
        let done = AtomicBool::new(false);
        let start = Instant::now();
        std::thread::scope(|scope| {
            // A wait that started over would last as long as the signals come.
            let sender = scope.spawn(|| {
                for _ in 0..2000 {
                    if done.load(Ordering::Relaxed) {
                        return true;
                    }
                    // SAFETY: the waiter is alive: it waits for this thread.
                    unsafe { libc::pthread_kill(waiter, libc::SIGUSR2) };
                    std::thread::sleep(Duration::from_millis(5));
                }
                false
            });
            let mut events = [Event::EMPTY; 1];
            let epoll = Epoll::new().unwrap();
            assert!(epoll.wait(&mut events, Some(timeout)).unwrap().is_empty());
            done.store(true, Ordering::Relaxed);
            assert!(start.elapsed() >= timeout, "ended early");
            assert!(sender.join().unwrap(), "started over at each signal");
        });
    }
}
