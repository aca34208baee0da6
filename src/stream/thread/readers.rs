//! A manager's reader threads: starting, telling and joining them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ebpf_manager_bpf::lock::{Condvar, Mutex};
use ebpf_manager_bpf::{Map, SysError, Waiter};

use super::control::Control;
use super::open::open;
use super::run::Thread;
use super::task::{Task, panicked};
use crate::error::ManagerError;
use crate::stream::Stream;

/// A manager's reader threads.
#[derive(Clone)]
pub(crate) struct Readers {
    group: Arc<Group>,
}

struct Group {
    streams: Vec<Arc<Stream>>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    /// No thread may be added any more.
    closed: bool,
    running: Vec<Running>,
    /// Of threads that ended by themselves.
    errors: Vec<ManagerError>,
}

struct Running {
    handle: JoinHandle<Vec<ManagerError>>,
    control: Arc<Control>,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Readers {
    /// Opens the buffers and starts the threads. On failure nothing is left.
    pub(crate) fn start(
        streams: &[Arc<Stream>],
        map: &dyn Fn(&str) -> Option<Map>,
    ) -> Result<Readers, ManagerError> {
        let readers = Readers {
            group: Arc::new(Group {
                streams: streams.to_vec(),
                threads: Mutex::default(),
            }),
        };
        let started = readers.start_all(map);
        if let Err(err) = started {
            // The first error is the one to report.
            let _ = readers.signal();
            readers.join();
            return Err(err);
        }
        Ok(readers)
    }

    fn start_all(&self, map: &dyn Fn(&str) -> Option<Map>) -> Result<(), ManagerError> {
        let mut shared = Vec::new();
        for stream in &self.group.streams {
            let Some(map) = map(&stream.map) else {
                continue;
            };
            {
                let mut run = stream.run.lock();
                run.map = Some(map);
                run.readers = Some(self.clone());
            }
            if stream.skipped {
                continue;
            }
            let mut tasks = open(stream)?;
            if stream.per_cpu.is_none() && !stream.own_thread {
                shared.append(&mut tasks);
            } else {
                self.spawn_each(tasks)?;
            }
        }
        if !shared.is_empty() {
            self.spawn(shared)?;
        }
        Ok(())
    }

    /// Starts a stream by itself; false if it is running already.
    pub(in crate::stream) fn start_one(&self, stream: &Arc<Stream>) -> Result<bool, ManagerError> {
        let tasks = open(stream)?;
        let started = !tasks.is_empty();
        self.spawn_each(tasks)?;
        Ok(started)
    }

    fn spawn_each(&self, tasks: Vec<Task>) -> Result<(), ManagerError> {
        for task in tasks {
            self.spawn(vec![task])?;
        }
        Ok(())
    }

    fn spawn(&self, mut tasks: Vec<Task>) -> Result<(), ManagerError> {
        let failed = |source| ManagerError::Thread { source };
        let waiter = Waiter::new().map_err(failed)?;
        let control = Arc::new(Control {
            waker: waiter.waker(),
            request: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            thread: OnceLock::new(),
            progress: Mutex::default(),
            changed: Condvar::new(),
            interrupts: Arc::default(),
        });
        for (token, task) in (0..).zip(&mut tasks) {
            waiter.add(task.source.buffer(), token)?;
            if let Some(out) = &mut task.seat.out {
                out.begin(&task.stream.counters, &control.interrupts);
            }
        }
        // Held until the thread is in the list: whoever closes the group has
        // to know it.
        let mut threads = self.group.threads.lock();
        if threads.closed {
            return Err(ManagerError::StreamIdle {
                map: tasks
                    .first()
                    .map_or_else(String::new, |t| t.stream.map.clone()),
            });
        }
        for task in &tasks {
            task.stream.run.lock().controls.push(Arc::clone(&control));
        }
        let name = match tasks.first().and_then(|task| task.cpu) {
            Some(cpu) => format!("ebpf-reader-{cpu}"),
            None => "ebpf-reader".to_owned(),
        };
        let own = Arc::clone(&control);
        let handle = thread::Builder::new()
            .name(name)
            .spawn(move || Thread::new(&own, waiter, tasks).run())
            .map_err(|err| failed(SysError::from_io("start a thread", &err)))?;
        let _ = control.thread.set(handle.thread().id());
        // Streams that were stopped leave ended threads.
        let all = std::mem::take(&mut threads.running);
        for thread in all {
            if thread.handle.is_finished() {
                threads.errors.append(&mut thread.join());
            } else {
                threads.running.push(thread);
            }
        }
        threads.running.push(Running { handle, control });
        Ok(())
    }

    /// True if the calling thread is one of them: a handler is asking.
    pub(crate) fn is_current(&self) -> bool {
        let me = thread::current().id();
        let threads = self.group.threads.lock();
        threads.running.iter().any(|t| t.handle.thread().id() == me)
    }

    /// True if the threads have ended, and joining them takes no time.
    pub(crate) fn is_finished(&self) -> bool {
        let threads = self.group.threads.lock();
        threads.running.iter().all(|t| t.handle.is_finished())
    }

    /// Whether the threads end by the deadline, which this waits for; without
    /// one, whoever joins them does.
    pub(crate) fn end_by(&self, deadline: Option<Instant>) -> bool {
        let Some(deadline) = deadline else {
            return true;
        };
        while !self.is_finished() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Asks the threads to read what is there and end. None can be added after
    /// that.
    pub(crate) fn signal(&self) -> Result<(), ManagerError> {
        for stream in &self.group.streams {
            let mut run = stream.run.lock();
            run.map = None;
            run.readers = None;
        }
        let controls: Vec<_> = {
            let mut threads = self.group.threads.lock();
            threads.closed = true;
            threads
                .running
                .iter()
                .map(|t| Arc::clone(&t.control))
                .collect()
        };
        let mut result = Ok(());
        for control in controls {
            control.stop.store(true, Ordering::Release);
            result = result.and(control.poke().map(drop));
        }
        result
    }

    /// Waits for the threads to end; what went wrong with them.
    pub(crate) fn join(self) -> Vec<ManagerError> {
        let (running, mut errors) = {
            let mut threads = self.group.threads.lock();
            let Threads {
                running, errors, ..
            } = &mut *threads;
            (std::mem::take(running), std::mem::take(errors))
        };
        for thread in running {
            errors.append(&mut thread.join());
        }
        errors
    }
}

impl Running {
    fn join(self) -> Vec<ManagerError> {
        // Not a handler's panic, which is caught: our own bug.
        let bug = |panic: Box<dyn std::any::Any + Send>| vec![panicked("", &*panic)];
        self.handle.join().unwrap_or_else(bug)
    }
}
