//! Starting and stopping, pausing and resuming.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ebpf_manager_bpf::{LinkError, measure_programs};

use crate::cleanup::{Cleanup, Undo, remove_pin};
use crate::closing::{self, Closing};
use crate::error::ManagerError;
use crate::hook::Sweep;
use crate::live::{Cell, Live};
use crate::load::selection_error;
use crate::manager::{Inner, Manager};
use crate::outcome::{Attached, Outcome, ProbeError};
use crate::probe::ProbeId;
use crate::state::{Action, State};
use crate::stream::Readers;
use crate::wiring::make_routes;

impl Manager {
    /// Keeps every program from running, without giving anything up: events
    /// are still read, maps stay. Programs that look whether they are bypassed
    /// ([`Builder::bypass`](crate::Builder::bypass)) stay attached; others are
    /// detached and attached again by [`Manager::resume`].
    ///
    /// If one cannot be detached, those that were are attached again.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::Busy`],
    /// [`ManagerError::Detach`].
    pub fn pause(&self) -> Result<(), ManagerError> {
        let mut turn = self.inner.begin(Action::Pause)?;
        if turn.step()? {
            let live = self.inner.must_live(Action::Pause)?;
            pause_all(&live, &live.probes)?;
            turn.finish();
        }
        Ok(())
    }

    /// Lets programs run again. If one cannot be attached again, all are
    /// paused still.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::Busy`],
    /// [`ManagerError::Attach`].
    pub fn resume(&self) -> Result<(), ManagerError> {
        let mut turn = self.inner.begin(Action::Resume)?;
        if turn.step()? {
            let live = self.inner.must_live(Action::Resume)?;
            resume_all(&live, &live.probes)?;
            turn.finish();
        }
        Ok(())
    }

    /// As [`Manager::pause`], for one probe.
    ///
    /// # Errors
    /// Those of [`Manager::pause`]; [`ManagerError::NotThere`].
    pub fn pause_probe(&self, id: impl Into<ProbeId>) -> Result<(), ManagerError> {
        self.with_probe(&id.into(), &mut |live, cell| {
            pause_all(live, std::slice::from_ref(cell))
        })
    }

    /// As [`Manager::resume`], for one probe. While the manager is paused, so
    /// is the probe.
    ///
    /// # Errors
    /// Those of [`Manager::resume`]; [`ManagerError::NotThere`].
    pub fn resume_probe(&self, id: impl Into<ProbeId>) -> Result<(), ManagerError> {
        self.with_probe(&id.into(), &mut |live, cell| {
            resume_all(live, std::slice::from_ref(cell))
        })
    }

    /// Attaches a probe that is not attached. Does nothing for one that is.
    ///
    /// # Errors
    /// [`ManagerError::State`] unless the manager runs,
    /// [`ManagerError::NotThere`], [`ManagerError::Attach`] and why else a
    /// probe is not there.
    pub fn attach_probe(&self, id: impl Into<ProbeId>) -> Result<(), ManagerError> {
        self.with_probe(&id.into(), &mut |live, cell| match cell.outcome() {
            Outcome::Attached(_) | Outcome::Paused => Ok(()),
            Outcome::Disabled => Err(of_probe(cell, ProbeError::Disabled)),
            _ => cell.attach(live).map_err(|error| of_probe(cell, error)),
        })
    }

    /// Detaches a probe, which stays what it is and can be attached again.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::NotThere`],
    /// [`ManagerError::Detach`].
    pub fn detach_probe(&self, id: impl Into<ProbeId>) -> Result<(), ManagerError> {
        self.with_probe(&id.into(), &mut |live, cell| {
            let result = cell.detach().map_err(|err| detach_error(cell.id(), err));
            live.release(cell);
            result
        })
    }

    /// Asks the kernel whether a probe's hook still has its program: it has not
    /// when its interface or cgroup is gone, or when somebody else removed it.
    /// False for a probe that is not attached, or paused.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::NotThere`];
    /// [`ManagerError::Attach`] where the kernel does not tell, with
    /// [`LinkError::Impossible`](crate::bpf::LinkError::Impossible).
    pub fn is_attached(&self, id: impl Into<ProbeId>) -> Result<bool, ManagerError> {
        let mut attached = false;
        self.with_probe(&id.into(), &mut |_, cell| {
            // Nobody else touches it while this has its turn.
            let link = cell.status.lock().link.take();
            if let Some(link) = link {
                let answer = link.is_attached();
                cell.status.lock().link = Some(link);
                attached = answer.map_err(|error| of_probe(cell, error.into()))?;
            }
            Ok(())
        })?;
        Ok(attached)
    }

    fn with_probe(
        &self,
        id: &ProbeId,
        act: &mut dyn FnMut(&Live, &Cell) -> Result<(), ManagerError>,
    ) -> Result<(), ManagerError> {
        let mut turn = self.inner.begin(Action::Change)?;
        turn.step()?;
        let live = self.inner.must_live(Action::Change)?;
        if turn.before != State::Running {
            return Err(ManagerError::State {
                action: Action::Change,
                state: turn.before,
            });
        }
        let Some(cell) = live.probe(id) else {
            return Err(ManagerError::not_there("probe", id.to_string()));
        };
        act(&live, cell)
    }
}

pub(crate) fn of_probe(cell: &Cell, error: ProbeError) -> ManagerError {
    ManagerError::of_probe(cell.id().clone(), error)
}

#[cold]
pub(crate) fn detach_error(probe: &ProbeId, error: LinkError) -> ManagerError {
    let (probe, source) = (probe.clone(), Arc::new(error));
    ManagerError::Detach { probe, source }
}

/// Pauses those of these that run; all or nothing.
fn pause_all(live: &Live, cells: &[Cell]) -> Result<(), ManagerError> {
    let all = cells.len() == live.probes.len();
    let mut paused: Vec<&Cell> = Vec::new();
    for cell in cells {
        if !matches!(cell.outcome(), Outcome::Attached(_)) {
            continue;
        }
        let result = pause(live, cell, all);
        paused.push(cell);
        if let Err(error) = result {
            for cell in paused.into_iter().rev() {
                // What cannot be attached again says so itself.
                let _ = resume(live, cell);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn pause(live: &Live, cell: &Cell, all: bool) -> Result<(), ManagerError> {
    // A program that others have as well is bypassed for all of them.
    let shared = || {
        let mut others = live.sharing(cell);
        others.any(|other| other.outcome().is_running())
    };
    if let Some((bypass, number)) = live.bypass_of(cell)
        && (all || !shared())
    {
        bypass.set(number, true)?;
        cell.set(Outcome::Paused);
        return Ok(());
    }
    let link = cell.take_link();
    cell.set(Outcome::Paused);
    if let Some(link) = link {
        let result = link.detach();
        result.map_err(|err| detach_error(cell.id(), err))?;
    }
    Ok(())
}

/// Lets those of these run again that are paused; all or nothing.
fn resume_all(live: &Live, cells: &[Cell]) -> Result<(), ManagerError> {
    let mut resumed: Vec<&Cell> = Vec::new();
    for cell in cells {
        if cell.outcome() != Outcome::Paused {
            continue;
        }
        if let Err(error) = resume(live, cell) {
            for cell in resumed.into_iter().rev() {
                // What cannot be detached was told to, and says so itself.
                let _ = pause(live, cell, true);
            }
            return Err(error);
        }
        resumed.push(cell);
    }
    Ok(())
}

fn resume(live: &Live, cell: &Cell) -> Result<(), ManagerError> {
    unbypass(live, cell);
    let attached = {
        let mut status = cell.status.lock();
        let attached = status.link.as_ref().map(Attached::of);
        let is_attached = attached.is_some();
        if let Some(attached) = attached {
            status.outcome = Outcome::Attached(attached);
        }
        is_attached
    };
    if attached {
        return Ok(());
    }
    cell.attach(live).map_err(|error| {
        cell.set(Outcome::Paused);
        of_probe(cell, error)
    })
}

fn unbypass(live: &Live, cell: &Cell) {
    if let Some((bypass, number)) = live.bypass_of(cell) {
        // The map is an array of ours: this cannot fail but for a closed map.
        let _ = bypass.set(number, false);
    }
}

impl Inner {
    pub(crate) fn must_live(&self, action: Action) -> Result<Arc<Live>, ManagerError> {
        let state = self.turns.state();
        self.live().ok_or(ManagerError::State { action, state })
    }

    pub(crate) fn start(&self) -> Result<(), ManagerError> {
        let live = self.must_live(Action::Start)?;
        sweep(&live);
        if self.declaration.statistics {
            let measuring = measure_programs();
            let measuring = measuring.map_err(|source| ManagerError::Statistics { source })?;
            *live.base.statistics.lock() = Some(measuring);
        }
        let mut routes = Undo::default();
        // Those of buffers that were added.
        let before = self.readers.lock().len();
        let result = self
            .make_routes(&mut routes)
            .and_then(|()| self.start_readers(&live))
            .and_then(|()| attach_all(&live));
        if let Ok(()) = result {
            routes.forget();
        } else {
            // The first error is the one to report.
            detach_all(&live, &mut Vec::new());
            self.stop_readers(before, &mut Vec::new());
            *live.base.statistics.lock() = None;
        }
        result
    }

    /// Before the first program is attached.
    fn make_routes(&self, undo: &mut Undo) -> Result<(), ManagerError> {
        if self.declaration.routes.is_empty() {
            return Ok(());
        }
        let live = self.must_live(Action::Start)?;
        let mut routes = Vec::new();
        for route in &self.declaration.routes {
            routes.push(route(&live)?);
        }
        make_routes(routes, undo)
    }

    pub(crate) fn start_readers(&self, live: &Live) -> Result<(), ManagerError> {
        let streams = &self.declaration.streams;
        if !streams.is_empty() {
            let readers = Readers::start(streams, &|name| live.map(name).cloned())?;
            self.readers.lock().push(readers);
        }
        Ok(())
    }

    /// Lets readers finish what is there, and joins them; all but the first
    /// ones, which stay.
    fn stop_readers(&self, but: usize, errors: &mut Vec<ManagerError>) {
        let all = self.readers.lock().split_off(but);
        for readers in &all {
            errors.extend(readers.signal().err());
        }
        for readers in all {
            if readers.is_current() {
                self.ended.lock().push(readers);
            } else {
                errors.append(&mut readers.join());
            }
        }
    }

    /// Detaches, then lets readers finish, then closes maps and programs. What
    /// goes wrong is added to `errors`; all of it is gone nevertheless.
    pub(crate) fn take_down(&self, cleanup: Cleanup, errors: &mut Vec<ManagerError>) {
        if let Some(live) = self.live() {
            detach_all(&live, errors);
        }
        self.stop_readers(0, errors);
        self.close(cleanup, errors);
    }

    /// As [`Inner::take_down`], in bounded time; returns what is still closing.
    pub(crate) fn take_down_within(
        &self,
        deadline: Instant,
        cleanup: Cleanup,
        errors: &mut Vec<ManagerError>,
    ) -> Closing {
        let mut closing = Closing::done();
        if let Some(live) = self.live() {
            let mut links = Vec::new();
            for cell in live.probes.iter().rev() {
                links.extend(cell.take_link().map(|link| (cell.id().clone(), link)));
            }
            closing = Closing::start(links);
            closing.wait_until(deadline, errors);
        }
        let all = std::mem::take(&mut *self.readers.lock());
        for readers in &all {
            errors.extend(readers.signal().err());
        }
        for readers in all {
            if readers.is_current() {
                self.ended.lock().push(readers);
            } else if readers.end_by(Some(deadline)) {
                errors.append(&mut readers.join());
            } else {
                self.late.lock().push(readers);
            }
        }
        self.close(cleanup, errors);
        let mut all = self.closing.lock();
        all.retain(|before| !before.is_done());
        if !closing.is_done() {
            all.push(closing.clone());
        }
        drop(all);
        closing
    }

    /// Closes maps and programs.
    pub(crate) fn close(&self, cleanup: Cleanup, errors: &mut Vec<ManagerError>) {
        self.forget_loaded();
        let before = std::mem::take(&mut *self.kept.lock());
        let live = self.take_live();
        let mut all = before;
        if let Some(live) = &live {
            // Those that were used again are the live ones.
            all.retain(|entry| live.map(entry.map.name()).is_none());
            all.extend(live.maps.iter().cloned());
            *live.base.statistics.lock() = None;
            if cleanup.contains(Cleanup::INTERNAL_PINNED) {
                for path in &live.base.program_pins {
                    if let Err(source) = remove_pin(path) {
                        errors.push(ManagerError::Unpin { source });
                    }
                }
            }
        }
        let mut kept = Vec::new();
        for entry in all {
            match entry.close(cleanup) {
                Ok(left) => kept.extend(left),
                Err(err) => errors.push(err.into()),
            }
        }
        *self.kept.lock() = kept;
        // Closing may take the kernel a while.
        drop(live);
    }
}

/// Removes what dead processes left where something is going to be
/// attached. Never fails the start.
fn sweep(live: &Live) {
    let mut done: Vec<Sweep> = Vec::new();
    for cell in &live.probes {
        if cell.outcome() != Outcome::Detached {
            continue;
        }
        let known = |sweep: &Sweep| done.iter().any(|f| std::ptr::fn_addr_eq(*f, *sweep));
        let sweep = cell.probe.hook.sweep().filter(|sweep| !known(sweep));
        if let (Some(sweep), Some(program)) = (sweep, cell.program())
            && sweep(&program)
        {
            done.push(sweep);
        }
    }
}

fn attach_all(live: &Live) -> Result<(), ManagerError> {
    let start = Instant::now();
    let mut required = Vec::new();
    for selector in &live.selectors {
        selector.for_each_required(&mut |id| required.push(id.clone()));
    }
    for cell in &live.probes {
        if cell.outcome() == Outcome::Disabled || cell.program().is_none() {
            continue;
        }
        if let Err(error) = cell.attach(live) {
            // A declaration's fault shows on every machine.
            let fault = matches!(error, ProbeError::NoHook { .. });
            if fault || required.contains(cell.id()) && !cell.probe.optional {
                return Err(of_probe(cell, error));
            }
        }
    }
    if let Some((selector, failed)) = live.first_failure(&live.selectors) {
        return Err(selection_error(selector, failed));
    }
    let took = start.elapsed().as_nanos() as u64;
    live.base.attach_ns.store(took, Ordering::Relaxed);
    Ok(())
}

/// Detaches everything, the last first; several at a time where that is
/// worth threads.
fn detach_all(live: &Live, errors: &mut Vec<ManagerError>) {
    let mut links = Vec::new();
    for cell in live.probes.iter().rev() {
        links.extend(cell.take_link().map(|link| (cell.id().clone(), link)));
        if !matches!(cell.outcome(), Outcome::Disabled) && cell.program().is_some() {
            cell.set(Outcome::Detached);
        }
    }
    closing::detach(links, errors);
}
