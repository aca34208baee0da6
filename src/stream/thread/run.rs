//! What runs on a reader thread: turns, naps and waiting.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ebpf_manager_bpf::{SysError, Waiter};

use super::IS_READER;
use super::control::Control;
use super::task::Task;
use crate::error::ManagerError;
use crate::stream::pace::Pace;

/// Naps between two looks for other news than records.
const NAPS: u32 = 256;

/// What runs on a reader thread.
pub(super) struct Thread<'c> {
    control: &'c Control,
    waiter: Waiter,
    /// Their tokens are their places; ended ones leave a hole.
    tasks: Vec<Option<Task>>,
    pace: Pace,
    flush_every: Duration,
    /// Programs are asked not to wake us.
    quiet: bool,
    /// After that: when to look again for what came without a wake-up.
    settle: Option<Duration>,
    errors: Vec<ManagerError>,
}

impl<'c> Thread<'c> {
    pub(super) fn new(control: &'c Control, waiter: Waiter, tasks: Vec<Task>) -> Thread<'c> {
        let min = |of: &dyn Fn(&Task) -> Duration| tasks.iter().map(of).min().unwrap_or_default();
        let latency = min(&|task| task.stream.latency);
        let flush_every = min(&|task| task.stream.flush_interval());
        let size = tasks.iter().map(|task| task.source.size()).min();
        Thread {
            control,
            waiter,
            pace: Pace::new(latency, size.unwrap_or(0)),
            flush_every,
            tasks: tasks.into_iter().map(Some).collect(),
            quiet: false,
            settle: None,
            errors: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Vec<ManagerError> {
        IS_READER.set(true);
        // Without it naps are a little longer.
        let _ = Waiter::precise_naps();
        if let Err(source) = self.read() {
            self.errors.push(ManagerError::Thread { source });
        }
        for at in 0..self.tasks.len() {
            self.end(at, None);
        }
        self.control.report(|progress| {
            (progress.applied, progress.flushed) = (u64::MAX, u64::MAX);
        });
        self.errors
    }

    /// Ends a task, because of `err` or because it is told to.
    fn end(&mut self, at: usize, err: Option<ManagerError>) {
        let Some(mut task) = self.tasks.get_mut(at).and_then(Option::take) else {
            return;
        };
        let finished = task.finish().err();
        for err in err.into_iter().chain(finished) {
            task.stream.report(&err);
            self.errors.push(err);
        }
        // Only now is the stream seen to be stopped.
        drop(task);
    }

    /// Does `act` to each task; ends those that fail.
    fn each(&mut self, mut act: impl FnMut(usize, &mut Task) -> Result<(), ManagerError>) {
        for at in 0..self.tasks.len() {
            let Some(Some(task)) = self.tasks.get_mut(at) else {
                continue;
            };
            if let Err(err) = act(at, task) {
                self.end(at, Some(err));
            }
        }
    }

    fn read(&mut self) -> Result<(), SysError> {
        let (mut seen, mut flushed, mut naps) = (0, 0, 0);
        let (mut records, mut filled) = (0, 0);
        let start = Instant::now();
        let now = move || start.elapsed().as_nanos() as u64;
        loop {
            // Acquire: wishes were noted before it was raised.
            let request = self.control.request.load(Ordering::Acquire);
            let stop = self.control.stop.load(Ordering::Acquire);
            if request != seen {
                seen = request;
                self.each(|_, task| task.apply(stop));
                self.control.report(|progress| progress.applied = request);
            }
            let (mut more, mut pending) = (false, false);
            self.each(|_, task| {
                if task.ready {
                    let turn = task.turn()?;
                    records += turn.records;
                    filled = filled.max(turn.filled);
                    more |= turn.more;
                }
                pending |= task.left != 0;
                Ok(())
            });
            if seen != flushed && !pending {
                flushed = seen;
                for at in 0..self.tasks.len() {
                    let task = self.tasks.get(at).and_then(Option::as_ref);
                    let stopped = |t: &Task| t.stream.wish.stopped.load(Ordering::Relaxed);
                    if stop || task.is_some_and(stopped) {
                        self.end(at, None);
                    }
                }
                self.control.report(|progress| progress.flushed = flushed);
            }
            if self.tasks.iter().all(Option::is_none) {
                return Ok(());
            }
            if more || pending {
                continue;
            }
            if let Some(nap) = self.pace.next(records, filled, &now) {
                self.hush(self.pace.is_steady());
                naps += 1;
                self.waiter.nap(nap)?;
                let notice = naps % NAPS == 0;
                self.each(|_, task| {
                    task.ready = true;
                    if notice {
                        task.notice();
                    }
                    Ok(())
                });
            } else if self.quiet {
                self.hush(false);
                self.each(|_, task| {
                    task.ready = true;
                    Ok(())
                });
            } else {
                self.wait()?;
            }
            (records, filled) = (0, 0);
        }
    }

    fn hush(&mut self, quiet: bool) {
        if quiet == self.quiet {
            return;
        }
        self.quiet = quiet;
        let mut settle = false;
        self.each(|_, task| {
            settle |= task.source.quiet(quiet)?;
            Ok(())
        });
        // A program that began before the change may end after our last look.
        self.settle = settle.then_some(Duration::from_millis(1));
    }

    fn wait(&mut self) -> Result<(), SysError> {
        let mut timeout = self.flush_every;
        if let Some(settle) = self.settle {
            timeout = timeout.min(settle);
            self.settle = Some(settle * 10).filter(|next| *next <= Duration::from_secs(1));
        }
        let timeout = Some(timeout).filter(|timeout| *timeout != Duration::MAX);
        let mut any = false;
        let tasks = &mut self.tasks;
        let woken = self.waiter.wait(timeout, &mut |token| {
            if let Some(Some(task)) = tasks.get_mut(token as usize) {
                task.ready = true;
                any = true;
            }
        })?;
        let timed_out = !any && !woken;
        self.each(|_, task| {
            task.ready |= timed_out;
            if task.ready {
                task.notice();
            }
            Ok(())
        });
        Ok(())
    }
}
