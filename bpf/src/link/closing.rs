//! Detaching many links at a time, and in bounded time.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use ebpf_manager_sys::lock::{Condvar, Mutex};

use super::Link;
use crate::error::LinkError;

/// Most threads that detach.
const THREADS: usize = 12;

/// From so many links on threads are worth their while.
const WORTH_THREADS: usize = 8;

/// Links that are being detached, on threads named `ebpf-closer`. Clones are
/// the same.
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
    queue: Vec<(usize, Link)>,
    /// Silent, to be detached: the kernel closes perf events one by one, but
    /// stops several at a time from running their programs.
    silent: Vec<(usize, Link)>,
    /// Begun or not.
    left: Vec<usize>,
    errors: Vec<(usize, LinkError)>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Closing {
    fn of(links: Vec<Link>) -> Closing {
        // Taken from the end.
        let queue: Vec<_> = links.into_iter().enumerate().rev().collect();
        Closing(Arc::new(Shared {
            state: Mutex::new(Work {
                left: (0..queue.len()).collect(),
                queue,
                silent: Vec::new(),
                errors: Vec::new(),
                threads: Vec::new(),
            }),
            changed: Condvar::new(),
        }))
    }

    /// Begins to detach these, at most 12 at a time, and returns. Nothing is
    /// closed while a link waits to be [silenced](Link::silence). Without any
    /// thread to be had, all is done when this returns.
    ///
    /// Links of one uprobe.multi each are closed in a 30th of the time that
    /// they take one after the other; perf events, which the kernel closes one
    /// by one, are silent at once.
    pub fn start(links: Vec<Link>) -> Closing {
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

    /// The links whose detaching has not ended, by their place in what was
    /// given to [`Closing::start`].
    pub fn left(&self) -> Vec<usize> {
        self.0.state.lock().left.clone()
    }

    /// Whether all is done.
    pub fn is_done(&self) -> bool {
        let mut work = self.0.state.lock();
        if !work.left.is_empty() {
            return false;
        }
        // They are ending: their stacks are not kept for a wait that may never
        // come.
        let threads = std::mem::take(&mut work.threads);
        drop(work);
        join(threads);
        true
    }

    /// Waits until all is done; what failed since the last call of this or
    /// [`Closing::wait_until`], by the links' places.
    pub fn wait(&self) -> Vec<(usize, LinkError)> {
        let mut work = self.0.state.lock();
        while !work.left.is_empty() {
            work = self.0.changed.wait(work);
        }
        let threads = std::mem::take(&mut work.threads);
        drop(work);
        join(threads);
        std::mem::take(&mut self.0.state.lock().errors)
    }

    /// As [`Closing::wait`], but not after `deadline`.
    pub fn wait_until(&self, deadline: Instant) -> Vec<(usize, LinkError)> {
        let mut work = self.0.state.lock();
        while !work.left.is_empty() {
            let in_time;
            (work, in_time) = self.0.changed.wait_until(work, deadline);
            if !in_time {
                return std::mem::take(&mut work.errors);
            }
        }
        drop(work);
        self.wait()
    }
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    for thread in threads {
        // A panic is our own bug, and reported where it happened.
        let _ = thread.join();
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let next = self.state.lock().queue.pop();
            if let Some((place, mut link)) = next {
                link.silence();
                self.state.lock().silent.push((place, link));
                continue;
            }
            let Some((place, link)) = self.state.lock().silent.pop() else {
                return;
            };
            let result = link.detach();
            let mut work = self.state.lock();
            work.errors.extend(result.err().map(|err| (place, err)));
            work.left.retain(|left| *left != place);
            drop(work);
            self.changed.notify_all();
        }
    }
}

impl Link {
    /// Detaches all of these: in this order if they are few, else as
    /// [`Closing`] does. What failed, by the links' places; the others are
    /// detached all the same.
    pub fn detach_all(links: Vec<Link>) -> Vec<(usize, LinkError)> {
        if links.len() < WORTH_THREADS {
            let results = links.into_iter().map(Link::detach).enumerate();
            return results
                .filter_map(|(place, result)| result.err().map(|err| (place, err)))
                .collect();
        }
        Closing::start(links).wait()
    }
}
