//! What can be done to a stream while its manager runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::thread::is_reader;
use super::{Stream, StreamStats};
use crate::error::ManagerError;

/// A stream of a manager, given out by
/// [`Manager::stream`](crate::Manager::stream). It does not keep the manager.
///
/// A handler may call all of this. On a reader's thread nothing waits: what is
/// asked for happens when the handler has returned.
#[derive(Clone, Debug)]
pub struct StreamHandle {
    stream: Arc<Stream>,
}

impl StreamHandle {
    pub(crate) fn new(stream: &Arc<Stream>) -> StreamHandle {
        StreamHandle {
            stream: Arc::clone(stream),
        }
    }

    /// Name of the map.
    pub fn map(&self) -> &str {
        &self.stream.map
    }

    /// Begins to read, on a thread of its own, what the manager's start left
    /// out or [`stop`](Self::stop) stopped. Reading already is no error.
    ///
    /// # Errors
    /// [`ManagerError::StreamIdle`] if the manager is not running;
    /// [`ManagerError::Reader`], [`ManagerError::Thread`].
    pub fn start(&self) -> Result<(), ManagerError> {
        let readers = self.stream.run.lock().readers.clone();
        readers
            .ok_or_else(|| self.idle())?
            .start_one(&self.stream)?;
        Ok(())
    }

    /// True while it is read or paused.
    pub fn is_running(&self) -> bool {
        self.stream.run.lock().tasks != 0
    }

    /// True if it is paused or about to be.
    pub fn is_paused(&self) -> bool {
        self.stream.wish.paused.load(Ordering::Relaxed)
    }

    /// Stops the flow: takes a perf buffer away from programs, whose output is
    /// refused (`ENOENT`) from then on, while what is in it is still read;
    /// stops reading a ring buffer, which fills.
    ///
    /// # Errors
    /// [`ManagerError::StreamIdle`] if it is not being read.
    pub fn pause(&self) -> Result<(), ManagerError> {
        self.set_paused(true)
    }

    /// Lets it flow again.
    ///
    /// # Errors
    /// [`ManagerError::StreamIdle`] if it is not being read.
    pub fn resume(&self) -> Result<(), ManagerError> {
        self.set_paused(false)
    }

    fn set_paused(&self, paused: bool) -> Result<(), ManagerError> {
        let controls = self.stream.run.lock().controls.clone();
        if controls.is_empty() {
            return Err(self.idle());
        }
        self.stream.wish.paused.store(paused, Ordering::Relaxed);
        for control in &controls {
            let request = control.poke()?;
            if !is_reader() {
                control.applied(request);
            }
        }
        Ok(())
    }

    /// Hands over what is in the buffer, then stops reading it and closes it.
    /// A channel that is full is not waited for: the rest is dropped and
    /// counted. Not reading is no error.
    ///
    /// # Errors
    /// [`ManagerError::Thread`].
    pub fn stop(&self) -> Result<(), ManagerError> {
        let controls = self.stream.run.lock().controls.clone();
        self.stream.wish.stopped.store(true, Ordering::Relaxed);
        for control in &controls {
            let request = control.poke()?;
            if !is_reader() {
                control.flushed(request, None);
            }
        }
        Ok(())
    }

    /// Waits until everything that was in the buffer when this was called has
    /// been handed over; false if it was not before `timeout` was over. At
    /// once false on a reader's thread, which cannot wait for itself, and true
    /// if nothing is being read.
    ///
    /// # Errors
    /// [`ManagerError::Thread`].
    pub fn flush(&self, timeout: Duration) -> Result<bool, ManagerError> {
        let deadline = Instant::now().checked_add(timeout);
        let controls = self.stream.run.lock().controls.clone();
        let mut all = true;
        for control in &controls {
            let request = control.poke()?;
            all &= !is_reader() && control.flushed(request, deadline);
        }
        Ok(all)
    }

    /// What was read since the manager was built.
    pub fn stats(&self) -> StreamStats {
        self.stream.stats()
    }

    /// Forgets [`StreamStats::peak_bytes`] and returns what it was.
    pub fn take_peak_bytes(&self) -> usize {
        self.stream.counters.peak.swap(0, Ordering::Relaxed)
    }

    /// Records that found a perf buffer full, per CPU; CPUs that lost none are
    /// left out. See [`StreamStats::lost`].
    pub fn lost_per_cpu(&self) -> Vec<(u32, u64)> {
        self.stream.counters.lost.lock().clone()
    }

    fn idle(&self) -> ManagerError {
        ManagerError::StreamIdle {
            map: self.stream.map.clone(),
        }
    }
}
