//! Wishes to a reader thread, and how far it has come with them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;
use std::time::Instant;

use ebpf_manager_bpf::Waker;
use ebpf_manager_bpf::lock::{Condvar, Mutex};

use crate::error::ManagerError;

/// What ends a sink's waiting.
pub(in crate::stream) type Interrupts = Arc<Mutex<Vec<Box<dyn Fn() + Send>>>>;

/// How others talk to a reader thread.
pub(in crate::stream) struct Control {
    pub(super) waker: Waker,
    /// Counts wishes.
    pub(super) request: AtomicU64,
    pub(super) stop: AtomicBool,
    pub(super) thread: OnceLock<ThreadId>,
    pub(super) progress: Mutex<Progress>,
    pub(super) changed: Condvar,
    pub(super) interrupts: Interrupts,
}

/// Up to which request the thread has come; all of them when it has ended.
#[derive(Clone, Copy, Default)]
pub(super) struct Progress {
    /// Wishes are fulfilled.
    pub(super) applied: u64,
    /// What was in the buffers then has been handed over.
    pub(super) flushed: u64,
}

impl Control {
    /// Makes the thread look at its wishes. Returns the request's number.
    pub(in crate::stream) fn poke(&self) -> Result<u64, ManagerError> {
        // Release: the wish was noted before.
        let request = self.request.fetch_add(1, Ordering::Release) + 1;
        for interrupt in &*self.interrupts.lock() {
            interrupt();
        }
        self.waker
            .wake()
            .map_err(|source| ManagerError::Thread { source })?;
        Ok(request)
    }

    /// Waits until wishes up to `request` are fulfilled.
    pub(in crate::stream) fn applied(&self, request: u64) {
        let mut progress = self.progress.lock();
        while progress.applied < request {
            progress = self.changed.wait(progress);
        }
    }

    /// Waits until what was there at `request` is handed over; false if it
    /// was not before `deadline`.
    pub(in crate::stream) fn flushed(&self, request: u64, deadline: Option<Instant>) -> bool {
        let mut progress = self.progress.lock();
        while progress.flushed < request {
            match deadline {
                None => progress = self.changed.wait(progress),
                Some(deadline) => {
                    let in_time;
                    (progress, in_time) = self.changed.wait_until(progress, deadline);
                    if !in_time {
                        return progress.flushed >= request;
                    }
                }
            }
        }
        true
    }

    pub(super) fn report(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock());
        self.changed.notify_all();
    }
}
