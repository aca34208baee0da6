//! Reader threads.
//!
//! A thread drains its streams in turns until none has anything, then waits.
//! Others talk to it by wishes that it fulfils between turns: they note the
//! wish, raise `request` and wake it; it says how far it has come.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use ebpf_manager_bpf::lock::{Condvar, Mutex};
use ebpf_manager_bpf::{Cpus, Map, Record, SysError, Waiter, Waker, online_cpus};

use super::pace::Pace;
use super::source::{Batch, Source};
use super::{Counters, Out, Sink, Stream};
use crate::error::ManagerError;

/// Records of one stream before the next has its turn.
const TURN: usize = 4096;

/// Naps between two looks for other news than records.
const NAPS: u32 = 256;

/// What ends a sink's waiting.
pub(super) type Interrupts = Arc<Mutex<Vec<Box<dyn Fn() + Send>>>>;

thread_local! {
    static IS_READER: Cell<bool> = const { Cell::new(false) };
}

/// How others talk to a reader thread.
pub(super) struct Control {
    waker: Waker,
    /// Counts wishes.
    request: AtomicU64,
    stop: AtomicBool,
    thread: OnceLock<ThreadId>,
    progress: Mutex<Progress>,
    changed: Condvar,
    interrupts: Interrupts,
}

/// Up to which request the thread has come; all of them when it has ended.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// Wishes are fulfilled.
    applied: u64,
    /// What was in the buffers then has been handed over.
    flushed: u64,
}

impl Control {
    /// Makes the thread look at its wishes. Returns the request's number.
    pub(super) fn poke(&self) -> Result<u64, ManagerError> {
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
    pub(super) fn applied(&self, request: u64) {
        let mut progress = self.progress.lock();
        while progress.applied < request {
            progress = self.changed.wait(progress);
        }
    }

    /// Waits until what was there at `request` is handed over; false if it
    /// was not before `deadline`.
    pub(super) fn flushed(&self, request: u64, deadline: Option<Instant>) -> bool {
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

    fn report(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock());
        self.changed.notify_all();
    }
}

/// True on a reader thread of whatever manager: a handler is asking, and must
/// not wait for one.
pub(crate) fn is_reader() -> bool {
    IS_READER.get()
}

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
    pub(super) fn start_one(&self, stream: &Arc<Stream>) -> Result<bool, ManagerError> {
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
        let bug = |panic: Box<dyn std::any::Any + Send>| vec![panicked(&*panic)];
        self.handle.join().unwrap_or_else(bug)
    }
}

/// Opens a stream's buffers, unless it is running already.
fn open(stream: &Arc<Stream>) -> Result<Vec<Task>, ManagerError> {
    let (map, out) = {
        let mut run = stream.run.lock();
        if run.tasks != 0 {
            return Ok(Vec::new());
        }
        let Some(map) = run.map.clone() else {
            return Err(ManagerError::StreamIdle {
                map: stream.map.clone(),
            });
        };
        // Claims it; each task counts as one more.
        run.tasks = 1;
        (map, run.out.take())
    };
    stream.wish.paused.store(false, Ordering::Relaxed);
    stream.wish.stopped.store(false, Ordering::Relaxed);
    let claim = Claim(stream);
    let task = |cpus, out, cpu| {
        stream.run.lock().tasks += 1;
        // From here on it is given back, whatever happens.
        let seat = Seat {
            stream: Arc::clone(stream),
            out,
        };
        let source = (stream.open)(&map, cpus)?;
        stream.counters.size.store(source.size(), Ordering::Relaxed);
        Ok::<_, ManagerError>(Task {
            stream: Arc::clone(stream),
            source,
            cpu,
            ready: true,
            paused: false,
            unread: false,
            left: 0,
            seat,
        })
    };
    let mut tasks = Vec::new();
    match &stream.per_cpu {
        None => tasks.push(task(Cpus::All, out, None)?),
        Some(make) => {
            let online = online_cpus().map_err(|source| ManagerError::Thread { source })?;
            for &cpu in &online {
                let Sink { out } = make.lock()(cpu);
                tasks.push(task(Cpus::One(cpu), Some(out), Some(cpu))?);
            }
            let rest = Rest {
                stream: Arc::clone(stream),
                begun: None,
                outs: Vec::new(),
                blocked: None,
                hurried: false,
            };
            let out: Box<dyn Out> = Box::new(rest);
            tasks.push(task(Cpus::AllBut(online), Some(out), None)?);
        }
    }
    drop(claim);
    Ok(tasks)
}

/// Holds a stream's place while it is being opened.
struct Claim<'s>(&'s Stream);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Stream {
    /// One task less; the last one leaves the stream ready to be started.
    fn leave(&self) {
        let mut run = self.run.lock();
        run.tasks -= 1;
        if run.tasks == 0 {
            run.controls.clear();
        }
    }
}

/// A task's place in its stream, given up on drop.
struct Seat {
    stream: Arc<Stream>,
    /// The stream's sink, to be given back; `None` if its maker made none.
    out: Option<Box<dyn Out>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.stream.per_cpu.is_none()
            && let Some(out) = self.out.take()
        {
            self.stream.run.lock().out = Some(out);
        }
        self.stream.leave();
    }
}

/// The sinks of CPUs that were not online when a per-CPU stream was started.
struct Rest {
    stream: Arc<Stream>,
    begun: Option<(Arc<Counters>, Interrupts)>,
    outs: Vec<(Option<u32>, Box<dyn Out>)>,
    /// Index of one that takes no more.
    blocked: Option<usize>,
    hurried: bool,
}

impl Out for Rest {
    fn record(&mut self, record: &Record<'_>) -> std::ops::ControlFlow<()> {
        let known = self.outs.iter().position(|(cpu, _)| *cpu == record.cpu);
        let at = known.unwrap_or_else(|| {
            if let (Some(make), Some(cpu)) = (&self.stream.per_cpu, record.cpu) {
                let Sink { mut out } = make.lock()(cpu);
                if let Some((counters, interrupts)) = &self.begun {
                    out.begin(counters, interrupts);
                }
                if self.hurried {
                    out.hurry();
                }
                self.outs.push((record.cpu, out));
            }
            self.outs.len().saturating_sub(1)
        });
        let Some((_, out)) = self.outs.get_mut(at) else {
            return std::ops::ControlFlow::Continue(());
        };
        let flow = out.record(record);
        self.blocked = flow.is_break().then_some(at);
        flow
    }

    fn ready(&mut self) -> bool {
        let blocked = self.blocked.and_then(|at| self.outs.get_mut(at));
        let ready = blocked.is_none_or(|(_, out)| out.ready());
        if ready {
            self.blocked = None;
        }
        ready
    }

    fn begin(&mut self, counters: &Arc<Counters>, interrupts: &Interrupts) {
        self.begun = Some((Arc::clone(counters), Arc::clone(interrupts)));
    }

    fn hurry(&mut self) {
        self.hurried = true;
        for (_, out) in &mut self.outs {
            out.hurry();
        }
    }
}

/// A buffer that a thread reads.
struct Task {
    stream: Arc<Stream>,
    source: Box<dyn Source>,
    /// Of a thread per CPU.
    cpu: Option<u32>,
    /// There may be something.
    ready: bool,
    paused: bool,
    /// Paused, and not to be read either.
    unread: bool,
    /// Bytes to hand over before the latest request is fulfilled, at most.
    left: usize,
    // Last: the buffer is closed before the stream can be started again.
    seat: Seat,
}

/// What a turn came to.
#[derive(Default)]
struct Turn {
    records: u64,
    /// Sixteenths of the buffer that were full.
    filled: usize,
    more: bool,
}

impl Task {
    /// Fulfils wishes; `everything` ends.
    fn apply(&mut self, everything: bool) -> Result<(), ManagerError> {
        let wish = &self.stream.wish;
        let paused = wish.paused.load(Ordering::Relaxed);
        if (everything || wish.stopped.load(Ordering::Relaxed))
            && let Some(out) = &mut self.seat.out
        {
            out.hurry();
        }
        if paused != self.paused {
            self.paused = paused;
            self.unread = !self.source.pause(paused)? && paused;
        }
        self.ready = true;
        self.left = self.source.waiting().1;
        Ok(())
    }

    /// Hands over a batch.
    fn turn(&mut self) -> Result<Turn, ManagerError> {
        let mut turn = Turn::default();
        let Some(out) = self.seat.out.as_deref_mut().filter(|_| !self.unread) else {
            (self.left, self.ready) = (0, false);
            return Ok(turn);
        };
        let stream = &*self.stream;
        let counters = &*stream.counters;
        let waiting = self.source.waiting().0;
        turn.filled = waiting.saturating_mul(16) / self.source.size().max(1);
        counters.peak.fetch_max(waiting, Ordering::Relaxed);
        let mut batch = Batch {
            out,
            lost: stream.lost.as_ref(),
            counters,
            records: 0,
            bytes: 0,
        };
        let source = &mut self.source;
        // Others may be waiting for what is left: not much beyond it.
        let max = match self.left {
            0 => TURN,
            left => (left / 64).clamp(64, TURN),
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            if !batch.out.ready() {
                return Ok(true);
            }
            source.drain(max, &mut batch)
        }));
        let (records, bytes) = (batch.records, batch.bytes);
        Counters::add(&counters.records, records);
        Counters::add(&counters.bytes, bytes);
        turn.records = records;
        turn.more = result.map_err(|panic| panicked(&*panic))??;
        self.ready = turn.more;
        let done = if turn.more {
            records as usize
        } else {
            self.left
        };
        self.left = self.left.saturating_sub(done);
        Ok(turn)
    }

    /// Tells the last of its losses.
    fn finish(&mut self) -> Result<(), ManagerError> {
        let Some(out) = &mut self.seat.out else {
            return Ok(());
        };
        let (stream, source) = (&self.stream, &mut self.source);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let batch = Batch {
                out: &mut **out,
                lost: stream.lost.as_ref(),
                counters: &stream.counters,
                records: 0,
                bytes: 0,
            };
            source.untold(&mut |cpu, count| batch.lose(cpu, count));
            batch.out.ready();
        }));
        result.map_err(|panic| panicked(&*panic))
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> ManagerError {
    let message = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    ManagerError::HandlerPanicked {
        message: message.unwrap_or_default(),
    }
}

/// What runs on a reader thread.
struct Thread<'c> {
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
    fn new(control: &'c Control, waiter: Waiter, tasks: Vec<Task>) -> Thread<'c> {
        let min = |of: &dyn Fn(&Task) -> Duration| tasks.iter().map(of).min().unwrap_or_default();
        let latency = min(&|task| task.stream.latency);
        let flush_every = min(&|task| task.stream.flush_every);
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

    fn run(mut self) -> Vec<ManagerError> {
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
                        task.source.notice()?;
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
                task.source.notice()?;
            }
            Ok(())
        });
        Ok(())
    }
}
