//! Detaching many probes at a time, and in bounded time.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use ebpf_manager_bpf::Link;
use ebpf_manager_bpf::lock::{Condvar, Mutex};

use crate::error::ManagerError;
use crate::probe::ProbeId;

/// Most threads that detach.
const THREADS: usize = 12;

/// From so many probes on threads are worth their while.
const WORTH_THREADS: usize = 8;

/// What a stop that ran out of time is still closing. Clones are the same.
///
/// Dropping it changes nothing: closing goes on.
#[derive(Clone, Debug)]
pub struct Closing(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug)]
struct Work {
    queue: Vec<(ProbeId, Link)>,
    /// Silent, to be detached: the kernel closes perf events one by one, but
    /// stops several at a time from running their programs.
    silent: Vec<(ProbeId, Link)>,
    /// Begun or not.
    left: Vec<ProbeId>,
    errors: Vec<ManagerError>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Closing {
    /// Nothing is left to do.
    pub(crate) fn done() -> Closing {
        Closing::of(Vec::new())
    }

    fn of(mut links: Vec<(ProbeId, Link)>) -> Closing {
        let left = links.iter().map(|(id, _)| id.clone()).collect();
        // Taken from the end.
        links.reverse();
        Closing(Arc::new(Shared {
            state: Mutex::new(Work {
                queue: links,
                silent: Vec::new(),
                left,
                errors: Vec::new(),
                threads: Vec::new(),
            }),
            changed: Condvar::new(),
        }))
    }

    /// Begins to detach, on threads of its own. Without any to be had, here.
    pub(crate) fn start(links: Vec<(ProbeId, Link)>) -> Closing {
        let count = links.len().min(THREADS);
        let closing = Closing::of(links);
        for _ in 0..count {
            let shared = Arc::clone(&closing.0);
            let thread = thread::Builder::new()
                .name("ebpf-closer".to_owned())
                .spawn(move || shared.work());
            match thread {
                Ok(thread) => closing.0.state.lock().threads.push(thread),
                Err(_) => break,
            }
        }
        if closing.0.state.lock().threads.is_empty() {
            closing.0.work();
        }
        closing
    }

    /// The probes whose detaching has not ended.
    pub fn probes(&self) -> Vec<ProbeId> {
        self.0.state.lock().left.clone()
    }

    /// Whether all is done.
    pub fn is_done(&self) -> bool {
        self.0.state.lock().left.is_empty()
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// [`ManagerError::Stop`] with what went wrong since the stop returned.
    pub fn wait(&self) -> Result<(), ManagerError> {
        let mut work = self.0.state.lock();
        while !work.left.is_empty() {
            work = self.0.changed.wait(work);
        }
        let threads = std::mem::take(&mut work.threads);
        drop(work);
        for thread in threads {
            // A panic is our own bug, and reported where it happened.
            let _ = thread.join();
        }
        let errors = std::mem::take(&mut self.0.state.lock().errors);
        if errors.is_empty() {
            Ok(())
        } else {
            Err(ManagerError::Stop(errors))
        }
    }

    /// Waits until all is done or time is up, and hands over the errors.
    pub(crate) fn wait_until(&self, deadline: Instant, errors: &mut Vec<ManagerError>) {
        let mut work = self.0.state.lock();
        while !work.left.is_empty() {
            let in_time;
            (work, in_time) = self.0.changed.wait_until(work, deadline);
            if !in_time {
                break;
            }
        }
        errors.append(&mut work.errors);
        let done = work.left.is_empty();
        drop(work);
        if done {
            errors.extend(self.wait().err());
        }
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let next = self.state.lock().queue.pop();
            if let Some((id, mut link)) = next {
                link.silence();
                self.state.lock().silent.push((id, link));
                continue;
            }
            let Some((id, link)) = self.state.lock().silent.pop() else {
                return;
            };
            let result = link.detach();
            let mut work = self.state.lock();
            work.errors.extend(result.err().map(ManagerError::Detach));
            work.left.retain(|left| *left != id);
            drop(work);
            self.changed.notify_all();
        }
    }
}

/// Detaches all of these in this order, several at a time if they are many.
pub(crate) fn detach(links: Vec<(ProbeId, Link)>, errors: &mut Vec<ManagerError>) {
    if links.len() < WORTH_THREADS {
        for (_, link) in links {
            errors.extend(link.detach().err().map(ManagerError::Detach));
        }
        return;
    }
    let closing = Closing::start(links);
    match closing.wait() {
        Err(ManagerError::Stop(more)) => errors.extend(more),
        result => errors.extend(result.err()),
    }
}
