//! Giving programs to the kernel's verifier: one after the other, or on
//! several CPUs when that is worth a thread.
//!
//! Programs are prepared in the object's order by the calling thread. As long
//! as little time is at stake it loads them as well. Otherwise threads are
//! started, one at a time while programs wait, and the calling thread helps
//! when enough are waiting. What comes of each program is kept by its number,
//! and the first failure in the object's order is the one that counts: all
//! programs before it were tried, as if there were no threads.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ebpf_manager_elf::LinkedProgram;
use ebpf_manager_elf::core_relo::Poison;
use ebpf_manager_sys::bpf::MapFd;
use ebpf_manager_sys::{proc, signal, thread};

use crate::error::ProgramError;
use crate::program::Program;

/// A program that is ready for the kernel.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) linked: LinkedProgram,
    /// Its instructions that cannot work on this kernel.
    pub(crate) poisons: Vec<Poison>,
    /// CO-RE relocations that are left to the kernel, as it takes them.
    pub(crate) core_relos: Vec<u8>,
    /// Its jump tables, which the program holds once it is loaded.
    pub(crate) jump_tables: Vec<MapFd>,
}

/// What became of a program; `None` if it was not tried, because one that is
/// required had failed.
pub(crate) type Verdict = Option<Result<Program, ProgramError>>;

/// The two steps of loading the program of a number.
pub(crate) struct Steps<'a> {
    /// Makes it ready. Called in order, by the calling thread.
    pub(crate) prepare: &'a mut dyn FnMut(usize, &mut Prepared) -> Result<(), ProgramError>,
    /// Gives it to the kernel.
    pub(crate) verify: &'a (dyn Fn(usize, &Prepared) -> Result<Program, ProgramError> + Sync),
    /// Whether its failure ends the load.
    pub(crate) required: &'a (dyn Fn(usize) -> bool + Sync),
}

/// Time that the programs left must be expected to take before a thread is
/// started, which costs the 10th part of it.
const WORTH_A_THREAD: Duration = Duration::from_micros(600);

/// Programs that wait for each thread before the calling thread helps.
const QUEUED: usize = 4;

/// The threads do little besides one system call.
const STACK_BYTES: usize = 256 * 1024;

/// Runs both steps for `count` programs, on at most `limit` threads, the
/// calling one included; 0 for as many as there are CPUs.
pub(crate) fn run(count: usize, limit: usize, steps: &mut Steps<'_>) -> Vec<Verdict> {
    let mut verdicts = Vec::with_capacity(count);
    let mut buffer = Prepared::default();
    let mut busy = Duration::ZERO;
    while verdicts.len() < count {
        let next = verdicts.len();
        let left = count - next;
        if cfg!(feature = "threads")
            && left > 1
            && limit != 1
            && next > 0
            && busy * left as u32 / next as u32 > WORTH_A_THREAD
        {
            let limit = match limit {
                0 => proc::usable_cpus(),
                limit => limit,
            };
            if limit > 1 {
                parallel(&mut verdicts, count, limit, steps);
                break;
            }
        }
        let verdict = match (steps.prepare)(next, &mut buffer) {
            Ok(()) => {
                let start = Instant::now();
                let verdict = (steps.verify)(next, &buffer);
                busy += start.elapsed();
                verdict
            }
            Err(err) => Err(err),
        };
        let fatal = verdict.is_err() && (steps.required)(next);
        verdicts.push(Some(verdict));
        if fatal {
            break;
        }
    }
    verdicts
}

/// What the threads share.
struct Shared<'a> {
    state: Mutex<State>,
    /// Something was put into the queue, or it was closed.
    changed: Condvar,
    verify: &'a (dyn Fn(usize, &Prepared) -> Result<Program, ProgramError> + Sync),
    required: &'a (dyn Fn(usize) -> bool + Sync),
}

struct State {
    /// Programs that wait, in order.
    queue: VecDeque<(usize, Prepared)>,
    /// Buffers to use again.
    spare: Vec<Prepared>,
    verdicts: Vec<Verdict>,
    /// The first required program that failed; those behind it are not tried.
    failed: usize,
    /// Threads that wait for something to do.
    idle: usize,
    /// Nothing more will come.
    closed: bool,
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what became of a program.
    fn settle(&self, index: usize, verdict: Result<Program, ProgramError>) {
        let fatal = verdict.is_err() && (self.required)(index);
        let mut state = self.lock();
        if fatal {
            state.failed = state.failed.min(index);
        }
        if let Some(slot) = state.verdicts.get_mut(index) {
            *slot = Some(verdict);
        }
    }

    /// Loads the program that waits longest; false if none does.
    fn take_one(&self, mut state: MutexGuard<'_, State>) -> bool {
        let Some((index, program)) = state.queue.pop_front() else {
            return false;
        };
        let skip = index > state.failed;
        drop(state);
        if !skip {
            self.settle(index, (self.verify)(index, &program));
        }
        self.lock().spare.push(program);
        true
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Loads programs until no more come.
    fn work(&self) {
        signal::block_all_in_this_thread();
        loop {
            let mut state = self.lock();
            while state.queue.is_empty() {
                if state.closed {
                    return;
                }
                state.idle += 1;
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
            self.take_one(state);
        }
    }
}

/// The rest of the programs, on several threads.
fn parallel(verdicts: &mut Vec<Verdict>, count: usize, limit: usize, steps: &mut Steps<'_>) {
    let first = verdicts.len();
    let mut all = std::mem::take(verdicts);
    all.resize_with(count, || None);
    let shared = Shared {
        state: Mutex::new(State {
            queue: VecDeque::new(),
            spare: Vec::new(),
            verdicts: all,
            failed: usize::MAX,
            idle: 0,
            closed: false,
        }),
        changed: Condvar::new(),
        verify: steps.verify,
        required: steps.required,
    };
    let mut limit = limit.min(count - first) - 1;
    let work = || shared.work();
    thread::with_helpers(c"ebpf-verify", STACK_BYTES, &work, &mut |helpers| {
        // Also if a patcher panics: the helpers are joined then, too.
        let _close = Close(&shared);
        for index in first..count {
            let state = shared.lock();
            if state.failed != usize::MAX {
                break;
            }
            let waiting = state.queue.len();
            if waiting > QUEUED * helpers.count() {
                // Enough to do for the others meanwhile.
                shared.take_one(state);
            } else {
                drop(state);
            }
            let mut program = shared.lock().spare.pop().unwrap_or_default();
            match (steps.prepare)(index, &mut program) {
                Ok(()) => {
                    let mut state = shared.lock();
                    state.queue.push_back((index, program));
                    let idle = state.idle > 0;
                    drop(state);
                    if idle {
                        shared.changed.notify_one();
                    }
                }
                Err(err) => shared.settle(index, Err(err)),
            }
            let wanted = helpers.count() < limit && waiting >= helpers.count();
            if wanted && helpers.start().is_err() {
                // No more to be had: those there are have to do.
                limit = helpers.count();
            }
        }
        shared.close();
        while shared.take_one(shared.lock()) {}
    });
    *verdicts = shared
        .state
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .verdicts;
}

/// Lets the threads end when the queue is empty.
struct Close<'a>(&'a Shared<'a>);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}
