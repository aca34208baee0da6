//! Threads of the C library, in little code.
//!
//! `std::thread` carries scopes, packets, hooks for captured output and
//! handlers of stack overflow: 20 KiB in a program that starts one helper.
//! These have a name, a stack and a panic that is handed to whoever joins.

use std::any::Any;
use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;

use crate::Result;
use crate::errno::{Errno, SysError};

/// What a thread panicked with.
pub type Panic = Box<dyn Any + Send>;

type Work<'a> = Box<dyn FnOnce() + Send + 'a>;

/// A running thread. Dropping it lets it run on, and nobody can join it then.
#[derive(Debug)]
pub struct Thread(libc::pthread_t);

impl Thread {
    /// Starts a thread. The kernel shows `name`, of 15 bytes at most; the
    /// stack has `stack_bytes`, 0 for the C library's default.
    ///
    /// # Errors
    /// `EAGAIN` if the system has no thread to give; `EINVAL` if the stack is
    /// smaller than the C library wants.
    pub fn spawn(name: &'static CStr, stack_bytes: usize, work: Work<'static>) -> Result<Thread> {
        // SAFETY: it borrows nothing.
        unsafe { start(name, stack_bytes, work) }
    }

    /// Waits for the thread to end.
    ///
    /// # Errors
    /// What it panicked with. A `String` that says why if it cannot be waited
    /// for, because it is the calling thread; it runs on then.
    pub fn join(self) -> Result<(), Panic> {
        let mut answer = ptr::null_mut();
        let error = if self.is_current() {
            // Not every C library notices.
            libc::EDEADLK
        } else {
            // SAFETY: the thread was started joinable, and neither joined nor
            // detached before: both take the one value that stands for it.
            unsafe { libc::pthread_join(self.0, &raw mut answer) }
        };
        if error != 0 {
            let err = SysError::new("pthread_join", Errno::from_raw(error));
            return Err(Box::new(err.to_string()));
        }
        std::mem::forget(self);
        if answer.is_null() {
            return Ok(());
        }
        // SAFETY: a thread's answer is null or a box that it gave away, which
        // only its one joiner sees.
        Err(*unsafe { Box::from_raw(answer.cast::<Panic>()) })
    }

    /// True if the calling thread is this one.
    pub fn is_current(&self) -> bool {
        // SAFETY: takes nothing.
        let current = unsafe { libc::pthread_self() };
        // SAFETY: compares two numbers; this thread's is not given to another
        // before it is joined or detached.
        unsafe { libc::pthread_equal(self.0, current) != 0 }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: as in `join`.
        unsafe { libc::pthread_detach(self.0) };
    }
}

/// Threads that do the same work until `body` is through and they are joined.
#[derive(Debug)]
pub struct Helpers<'a> {
    work: Helper<'a>,
    name: &'static CStr,
    stack_bytes: usize,
    threads: Vec<Thread>,
    panic: Option<Panic>,
}

struct Helper<'a>(&'a (dyn Fn() + Sync));

impl std::fmt::Debug for Helper<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Helper")
    }
}

impl Helpers<'_> {
    /// Starts one more.
    ///
    /// # Errors
    /// Those of [`Thread::spawn`].
    pub fn start(&mut self) -> Result<()> {
        let work = Box::new(self.work.0);
        // SAFETY: the thread is joined when this is dropped at the latest,
        // which `with_helpers` makes certain within the life of the borrow.
        let thread = unsafe { start(self.name, self.stack_bytes, work) }?;
        self.threads.push(thread);
        Ok(())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                self.panic.get_or_insert(panic);
            }
        }
    }
}

impl Drop for Helpers<'_> {
    fn drop(&mut self) {
        self.join();
    }
}

/// Runs `body`, which may start helpers: threads that run `work`. They are
/// joined before this returns or `body`'s panic goes on, so `body` must see to
/// it that they end. If one of them panics, so does this.
pub fn with_helpers(
    name: &'static CStr,
    stack_bytes: usize,
    work: &(dyn Fn() + Sync),
    body: &mut dyn FnMut(&mut Helpers<'_>),
) {
    // Not reachable for anybody but `body`, which gets it lent: its drop is
    // certain to run.
    let mut helpers = Helpers {
        work: Helper(work),
        name,
        stack_bytes,
        threads: Vec::new(),
        panic: None,
    };
    body(&mut helpers);
    helpers.join();
    if let Some(panic) = helpers.panic.take() {
        panic::resume_unwind(panic);
    }
}

/// What a thread is started with: one pointer to a box, which itself is two.
struct Start<'a>(Work<'a>);

/// Starts a thread.
///
/// # Safety
/// What `work` borrows must outlive the thread.
unsafe fn start(name: &'static CStr, stack_bytes: usize, work: Work<'_>) -> Result<Thread> {
    let failed = |raw| Err(SysError::new("pthread_create", Errno::from_raw(raw)));
    let mut attr = MaybeUninit::uninit();
    // SAFETY: writes the attribute, which is large enough.
    match unsafe { libc::pthread_attr_init(attr.as_mut_ptr()) } {
        0 => {}
        raw => return failed(raw),
    }
    let mut answer = 0;
    if stack_bytes != 0 {
        // SAFETY: the attribute was initialised above.
        answer = unsafe { libc::pthread_attr_setstacksize(attr.as_mut_ptr(), stack_bytes) };
    }
    let mut thread = MaybeUninit::uninit();
    if answer == 0 {
        let start = Box::into_raw(Box::new(Start(work)));
        // SAFETY: the attribute was initialised above, and `enter` takes what
        // it is given here, once.
        answer = unsafe {
            libc::pthread_create(thread.as_mut_ptr(), attr.as_ptr(), enter, start.cast())
        };
        if answer != 0 {
            // SAFETY: no thread was started, so the box is still ours.
            drop(unsafe { Box::from_raw(start) });
        }
    }
    // SAFETY: the attribute was initialised above and is not used again.
    unsafe { libc::pthread_attr_destroy(attr.as_mut_ptr()) };
    if answer != 0 {
        return failed(answer);
    }
    // SAFETY: the call that writes it succeeded.
    let thread = Thread(unsafe { thread.assume_init() });
    // By this thread, so that it has its name when the caller goes on.
    // SAFETY: the thread is neither joined nor detached, the name terminated.
    unsafe { libc::pthread_setname_np(thread.0, name.as_ptr()) };
    Ok(thread)
}

extern "C" fn enter(start: *mut c_void) -> *mut c_void {
    // SAFETY: `start` made this box for this thread and gave it away.
    let start = unsafe { Box::from_raw(start.cast::<Start<'_>>()) };
    match panic::catch_unwind(AssertUnwindSafe(start.0)) {
        Ok(()) => ptr::null_mut(),
        Err(panic) => Box::into_raw(Box::new(panic)).cast(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn threads_have_names_and_are_joined() {
        let seen = Arc::new(AtomicU32::new(0));
        let (shared, name) = (Arc::clone(&seen), c"sys-thread");
        let (end, wait) = std::sync::mpsc::channel();
        let work = move || {
            wait.recv().unwrap();
            shared.fetch_add(1, Ordering::Relaxed);
        };
        let thread = Thread::spawn(name, 0, Box::new(work)).unwrap();
        assert!(!thread.is_current());
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let names = threads.map(|t| std::fs::read_to_string(t.unwrap().path().join("comm")));
        assert!(names.flatten().any(|name| name == "sys-thread\n"));
        end.send(()).unwrap();
        thread.join().unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), 1);
        assert_eq!(Arc::strong_count(&seen), 1);
    }

    #[test]
    fn a_panic_goes_to_the_joiner() {
        // Without the message that a panic would print.
        let work = || panic::resume_unwind(Box::new("on purpose"));
        let thread = Thread::spawn(c"sys-panics", 0, Box::new(work)).unwrap();
        let panic = thread.join().unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"on purpose"));
    }

    #[test]
    fn a_thread_that_waits_for_itself_is_told() {
        let (send, told) = std::sync::mpsc::channel();
        let work = move || {
            // SAFETY: takes nothing.
            let this = Thread(unsafe { libc::pthread_self() });
            let panic = this.join().unwrap_err();
            send.send(panic.downcast::<String>().map(|text| *text).ok())
                .unwrap();
        };
        let thread = Thread::spawn(c"sys-itself", 0, Box::new(work)).unwrap();
        // The other one has detached it.
        std::mem::forget(thread);
        let text = told.recv().unwrap().unwrap();
        assert!(text.starts_with("pthread_join: "), "{text}");
    }

    #[test]
    fn stacks_that_are_too_small_are_refused() {
        let err = Thread::spawn(c"sys-small", 1, Box::new(|| {})).unwrap_err();
        assert_eq!(err.errno(), Errno::EINVAL);
    }

    #[test]
    fn helpers_borrow_and_end_with_their_body() {
        let done = AtomicU32::new(0);
        let work = || {
            done.fetch_add(1, Ordering::Relaxed);
        };
        with_helpers(c"sys-helper", 64 << 10, &work, &mut |helpers| {
            helpers.start().unwrap();
            helpers.start().unwrap();
            assert_eq!(helpers.count(), 2);
        });
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn panics_of_helpers_and_body_leave_no_helper_behind() {
        let done = AtomicU32::new(0);
        let count = || {
            done.fetch_add(1, Ordering::Relaxed);
        };
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            with_helpers(c"sys-helper", 0, &count, &mut |helpers| {
                helpers.start().unwrap();
                panic!("body");
            });
        }));
        assert_eq!(result.unwrap_err().downcast_ref(), Some(&"body"));
        assert_eq!(done.load(Ordering::Relaxed), 1);

        let fails = || panic::resume_unwind(Box::new("helper"));
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            with_helpers(c"sys-helper", 0, &fails, &mut |helpers| {
                helpers.start().unwrap();
            });
        }));
        assert_eq!(result.unwrap_err().downcast_ref(), Some(&"helper"));
    }
}
