//! Opening a stream: its buffers, and the place it holds until they are closed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ebpf_manager_bpf::{Cpus, Record, online_cpus};

use super::control::Interrupts;
use super::task::Task;
use crate::error::ManagerError;
use crate::stream::{Counters, Out, Sink, Stream};

/// Opens a stream's buffers, unless it is running already.
pub(super) fn open(stream: &Arc<Stream>) -> Result<Vec<Task>, ManagerError> {
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
pub(super) struct Seat {
    pub(super) stream: Arc<Stream>,
    /// The stream's sink, to be given back; `None` if its maker made none.
    pub(super) out: Option<Box<dyn Out>>,
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
