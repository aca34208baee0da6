//! Changing a manager while it lives: probes, programs, maps, routes.

use std::sync::Arc;

use ebpf_manager_bpf::elf::MapSpec;
use ebpf_manager_bpf::{Map, NetNamespace};

use crate::cleanup::{MapEntry, Origin, Undo};
use crate::clone::{ProgramClone, load_clone, load_for};
use crate::closing;
use crate::error::ManagerError;
use crate::live::{Cell, Live, ProgramRef, is_selected};
use crate::load::selection_error;
use crate::manager::{Inner, Manager};
use crate::options::{Builder, kind_of};
use crate::outcome::Outcome;
use crate::probe::{Probe, ProbeId};
use crate::selector::Selector;
use crate::start::{detach_error, of_probe};
use crate::state::{Action, State};
use crate::stream::{Readers, Stream};
use crate::turn::Turn;
use crate::wiring::{MapOptions, MapRoute, Route, TailCall, make_routes};

impl Manager {
    /// Adds a probe for a program that is loaded: the one of the probe's
    /// function. If the manager runs it is attached at once, else with the
    /// others. On failure nothing is changed.
    ///
    /// The probe is gone again after [`Manager::stop`].
    ///
    /// ```no_run
    /// # fn added(manager: &ebpf_manager::Manager, index: u32) -> Result<(), ebpf_manager::ManagerError> {
    /// use ebpf_manager::{Hook, Probe, bpf::Direction};
    /// // The interface of a container that has just come up.
    /// let hook = Hook::tc(index, Direction::Ingress);
    /// manager.add_hook(Probe::new("on_packet").uid(index.to_string()).hook(hook))
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::InUse`],
    /// [`ManagerError::NotThere`] if no such program is loaded,
    /// [`ManagerError::Attach`], whatever the reason.
    pub fn add_hook(&self, probe: Probe) -> Result<(), ManagerError> {
        let mut change = self.inner.change()?;
        let name = probe.program_name();
        let program = change.live.program(&name);
        let program = program.ok_or_else(|| ManagerError::not_there("program", name))?;
        change.add(probe, program)?;
        change.commit();
        Ok(())
    }

    /// As [`Manager::add_hook`], with the program of another probe: of a copy,
    /// or of a clone.
    ///
    /// # Errors
    /// As for [`Manager::add_hook`].
    pub fn add_hook_to(&self, of: impl Into<ProbeId>, probe: Probe) -> Result<(), ManagerError> {
        let of = of.into();
        let mut change = self.inner.change()?;
        let program = change.live.probe(&of).and_then(Cell::program);
        let program = program.ok_or_else(|| ManagerError::not_there("program", of.to_string()))?;
        change.add(probe, program)?;
        change.commit();
        Ok(())
    }

    /// Detaches a probe and removes it. Its program stays loaded if it is the
    /// object's, for [`Manager::add_hook`]; one that was cloned is closed with
    /// its last probe.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::NotThere`] if there is no such
    /// probe; [`ManagerError::Detach`], and the probe is gone nevertheless.
    pub fn detach_hook(&self, id: impl Into<ProbeId>) -> Result<(), ManagerError> {
        let id = id.into();
        let mut change = self.inner.change()?;
        let live = &mut change.live;
        let at = live.probes.iter().position(|cell| *cell.id() == id);
        let at = at.ok_or_else(|| ManagerError::not_there("probe", id.to_string()))?;
        let removed = live.probes.remove(at);
        live.forget(&id);
        let result = removed.detach();
        let result = result.map_err(|err| detach_error(removed.id(), err));
        live.release(&removed);
        change.commit();
        result
    }

    /// Loads a program once more, changed, and adds a probe for it. The
    /// original is the program of the probe's function; the clone is named as
    /// [`Probe::copied`] would have it.
    ///
    /// Needs [`Builder::keep_specs`](crate::Builder::keep_specs). On failure
    /// nothing is changed.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::InUse`],
    /// [`ManagerError::NotKept`], [`ManagerError::NoSuch`] for a program or map
    /// that the object does not have, [`ManagerError::Load`],
    /// [`ManagerError::Attach`].
    pub fn clone_program(&self, probe: Probe, clone: ProgramClone) -> Result<(), ManagerError> {
        let probe = probe.copied();
        let mut change = self.inner.change()?;
        check_free(&change.live, &probe.id)?;
        let program = load_clone(&self.inner.declaration, &change.live, &probe, clone)?;
        change.add(probe, program)?;
        change.commit();
        Ok(())
    }

    /// Creates a map, which the manager owns from now on. A route makes it
    /// known to programs.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::InUse`], [`ManagerError::Map`].
    pub fn new_map(&self, spec: &MapSpec, options: &MapOptions) -> Result<Map, ManagerError> {
        let mut change = self.inner.change()?;
        let mut undo = Undo::default();
        let map = change.add_map(spec, options, &mut undo)?;
        undo.forget();
        change.commit();
        Ok(map)
    }

    /// Creates a map like one that the object declares, or that was created
    /// before, under another name.
    ///
    /// # Errors
    /// Those of [`Manager::new_map`]; [`ManagerError::NotThere`].
    pub fn clone_map(
        &self,
        name: &str,
        new_name: impl Into<String>,
        options: &MapOptions,
    ) -> Result<Map, ManagerError> {
        let spec = self.map_spec(name);
        let mut spec = spec.ok_or_else(|| ManagerError::not_there("map", name.to_owned()))?;
        spec.name = new_name.into();
        self.new_map(&spec, options)
    }

    /// Creates a ring buffer or perf buffer and begins to read it as `stream`
    /// says, which has to be of the new map's name. A route makes it known to
    /// programs. Requires at least Linux 5.8 for a ring buffer.
    ///
    /// # Errors
    /// Those of [`Manager::new_map`]; [`ManagerError::NotThere`] if the stream
    /// is of another map; [`ManagerError::Reader`], [`ManagerError::Thread`].
    /// On failure there is no map either.
    pub fn new_buffer(
        &self,
        spec: &MapSpec,
        options: &MapOptions,
        mut stream: Stream,
    ) -> Result<Map, ManagerError> {
        if stream.map() != spec.name || stream.map_type() != spec.map_type {
            return Err(ManagerError::not_there(
                kind_of(&stream),
                stream.map().to_owned(),
            ));
        }
        let mut change = self.inner.change()?;
        let mut undo = Undo::default();
        let map = change.add_map(spec, options, &mut undo)?;
        if let Some((options, settle)) = &self.inner.declaration.perf_buffers {
            settle(&mut stream, options);
        }
        let streams = [Arc::new(stream)];
        let readers = Readers::start(&streams, &|_| Some(map.clone()))?;
        self.inner.readers.lock().push(readers);
        change.live.streams.extend(streams);
        undo.forget();
        change.commit();
        Ok(map)
    }

    /// As [`Manager::new_buffer`], with a map like one that the object declares
    /// or that was created before; it gets the name that `stream` is of.
    ///
    /// # Errors
    /// Those of [`Manager::new_buffer`].
    pub fn clone_buffer(
        &self,
        name: &str,
        options: &MapOptions,
        stream: Stream,
    ) -> Result<Map, ManagerError> {
        let spec = self.map_spec(name);
        let mut spec = spec.ok_or_else(|| ManagerError::not_there("map", name.to_owned()))?;
        stream.map().clone_into(&mut spec.name);
        self.new_buffer(&spec, options, stream)
    }

    /// Puts programs into program arrays: all of them, or none.
    ///
    /// A slot whose program the kernel does not show (without `CAP_SYS_ADMIN`)
    /// is emptied rather than restored if a later route fails.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::NotThere`],
    /// [`ManagerError::Route`].
    pub fn update_tail_calls(&self, routes: &[TailCall]) -> Result<(), ManagerError> {
        self.update_routes(&|live, to| {
            for route in routes {
                to.push(route.resolve(live)?);
            }
            Ok(())
        })
    }

    /// Puts maps into maps of maps: all of them, or none.
    ///
    /// # Errors
    /// As for [`Manager::update_tail_calls`].
    pub fn update_map_routes(&self, routes: &[MapRoute]) -> Result<(), ManagerError> {
        self.update_routes(&|live, to| {
            for route in routes {
                to.push(route.resolve(live)?);
            }
            Ok(())
        })
    }

    fn update_routes(&self, resolve: &Resolve<'_>) -> Result<(), ManagerError> {
        let change = self.inner.change()?;
        let mut routes = Vec::new();
        resolve(&change.live, &mut routes)?;
        let mut undo = Undo::default();
        make_routes(routes, &mut undo)?;
        undo.forget();
        Ok(())
    }

    /// Changes which probes are activated: those that the selectors name are
    /// attached, others detached; without selectors, all of them. If a selector
    /// does not hold then, things are put back as they were.
    ///
    /// A probe whose program nothing asked for so far needs
    /// [`Builder::keep_specs`](crate::Builder::keep_specs).
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::Busy`],
    /// [`ManagerError::NotThere`] if a selector names a probe that is not
    /// there; if a selector does not hold, [`ManagerError::Selection`], or of
    /// one that is a single probe [`ManagerError::Attach`],
    /// [`ManagerError::NoHook`] or [`ManagerError::Program`].
    pub fn update_activated(&self, selectors: &[Selector]) -> Result<(), ManagerError> {
        let mut change = self.inner.change()?;
        let state = change.turn.before;
        activate(&self.inner.declaration, &mut change.live, state, selectors)?;
        change.commit();
        Ok(())
    }

    /// Gives a probe another uid. Whatever names the probe (selectors, routes)
    /// follows.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::NotThere`],
    /// [`ManagerError::InUse`].
    pub fn rename_probe(
        &self,
        id: impl Into<ProbeId>,
        uid: impl Into<String>,
    ) -> Result<(), ManagerError> {
        let old = id.into();
        let new = ProbeId::new(old.function.clone(), uid);
        let mut change = self.inner.change()?;
        let live = &mut change.live;
        let at = live.probes.iter().position(|cell| *cell.id() == old);
        let at = at.ok_or_else(|| ManagerError::not_there("probe", old.to_string()))?;
        check_free(live, &new)?;
        if let Some(cell) = live.probes.get_mut(at) {
            let mut probe = Probe::clone(&cell.probe);
            probe.id = new.clone();
            cell.probe = Arc::new(probe);
        }
        for selector in &mut live.selectors {
            selector.rename(&old, &new);
        }
        match live.renamed.iter_mut().find(|(_, now)| *now == old) {
            Some((_, now)) => *now = new,
            None => live.renamed.push((old, new)),
        }
        change.commit();
        Ok(())
    }

    /// Detaches and removes every probe whose hook was given this network
    /// namespace, and closes the manager's socket in it, so that nothing of
    /// this manager keeps the namespace alive.
    ///
    /// # Errors
    /// [`ManagerError::State`]; [`ManagerError::Detach`] with the first thing
    /// that went wrong, and the probes are gone nevertheless.
    pub fn clean_up_namespace(&self, namespace: &NetNamespace) -> Result<(), ManagerError> {
        let mut change = self.inner.change()?;
        let live = &mut change.live;
        let (mut links, mut errors) = (Vec::new(), Vec::new());
        let mut gone = Vec::new();
        live.probes.retain(|cell| {
            let goes = cell.probe.hook.is_in(namespace);
            if goes {
                gone.push(cell.id().clone());
                links.extend(cell.take_link().map(|link| (cell.id().clone(), link)));
            }
            !goes
        });
        for id in &gone {
            live.forget(id);
        }
        closing::detach(links, &mut errors);
        namespace.close_socket();
        change.commit();
        errors.into_iter().next().map_or(Ok(()), Err)
    }
}

/// Finds the ends of routes.
type Resolve<'r> = dyn Fn(&Live, &mut Vec<Route>) -> Result<(), ManagerError> + 'r;

/// A change in progress, of a copy of what lookups see.
struct Change<'m> {
    inner: &'m Inner,
    turn: Turn<'m>,
    live: Live,
}

impl Inner {
    fn change(&self) -> Result<Change<'_>, ManagerError> {
        let mut turn = self.begin(Action::Change)?;
        turn.step()?;
        let live = Live::clone(&*self.must_live(Action::Change)?);
        Ok(Change {
            inner: self,
            turn,
            live,
        })
    }
}

impl Change<'_> {
    /// Lookups see it from now on. Without this they see what they saw.
    fn commit(self) {
        self.inner.publish(self.live);
        self.turn.finish();
    }

    /// Adds a probe, attached if the manager runs.
    fn add(&mut self, probe: Probe, program: ProgramRef) -> Result<(), ManagerError> {
        let live = &mut self.live;
        check_free(live, &probe.id)?;
        let cell = Cell::new(probe, Some(program), Outcome::Detached);
        match self.turn.before {
            State::Running => cell.attach(live).map_err(|error| of_probe(&cell, error))?,
            State::Paused => cell.set(Outcome::Paused),
            State::Declared | State::Loaded | State::Initialised => {}
        }
        // Whoever adds a probe wants it.
        live.selectors
            .push(Selector::BestEffort(vec![cell.id().clone().into()]));
        live.probes.push(cell);
        Ok(())
    }

    fn add_map(
        &mut self,
        spec: &MapSpec,
        options: &MapOptions,
        undo: &mut Undo,
    ) -> Result<Map, ManagerError> {
        if self.live.map(&spec.name).is_some() {
            return Err(ManagerError::InUse {
                what: "map",
                name: spec.name.clone(),
            });
        }
        let entry = if let Some(entry) = options.open_pin(spec)? {
            entry
        } else {
            let mut entry = MapEntry::new(Map::create(spec)?, Origin::Created);
            options.finish(&mut entry, undo)?;
            entry
        };
        let map = entry.map.clone();
        self.live.maps.push(entry);
        Ok(map)
    }
}

fn check_free(live: &Live, id: &ProbeId) -> Result<(), ManagerError> {
    if live.probe(id).is_none() {
        return Ok(());
    }
    Err(ManagerError::InUse {
        what: "probe",
        name: id.to_string(),
    })
}

/// Attaches what the selectors name and detaches the rest, or nothing.
fn activate(
    declaration: &Builder,
    live: &mut Live,
    state: State,
    selectors: &[Selector],
) -> Result<(), ManagerError> {
    let before = std::mem::replace(&mut live.selectors, selectors.to_vec());
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    let result = (|| {
        for selector in selectors {
            let mut unknown = None;
            selector.for_each(&mut |id| {
                if live.probe(id).is_none() {
                    unknown.get_or_insert_with(|| id.to_string());
                }
            });
            if let Some(name) = unknown {
                return Err(ManagerError::not_there("probe", name));
            }
        }
        for cell in &live.probes {
            let excluded = live.base.excluded.contains(&cell.id().function);
            let wanted = is_selected(selectors, cell.id()) && !excluded;
            let outcome = cell.outcome();
            if wanted && !outcome.is_running() {
                added.push((cell.clone(), outcome, cell.program()));
                enable(declaration, live, state, cell);
            } else if !wanted && outcome != Outcome::Disabled {
                removed.push((cell.clone(), outcome));
            }
        }
        match live.first_failure(selectors) {
            Some((selector, failed)) => Err(selection_error(selector, failed)),
            None => Ok(()),
        }
    })();
    match result {
        Ok(()) => {
            for (cell, _) in removed {
                // What cannot be detached says so.
                if let Err(err) = cell.detach() {
                    cell.status.lock().last_error = Some(crate::ProbeError::Detach(Arc::new(err)));
                }
                cell.set(Outcome::Disabled);
                live.release(&cell);
            }
            Ok(())
        }
        Err(error) => {
            for (cell, outcome, program) in added {
                // The first error is the one to report.
                let _ = cell.detach();
                let mut status = cell.status.lock();
                (status.outcome, status.program) = (outcome, program);
            }
            live.selectors = before;
            Err(error)
        }
    }
}

/// Attaches a probe that was not activated; what goes wrong is its outcome.
fn enable(declaration: &Builder, live: &Live, state: State, cell: &Cell) {
    if cell.program().is_none() {
        match load_for(declaration, live, cell) {
            Ok(program) => cell.status.lock().program = Some(program),
            Err(error) => return cell.fail(error),
        }
    }
    match state {
        // What goes wrong is noted.
        State::Running => drop(cell.attach(live)),
        State::Paused => cell.set(Outcome::Paused),
        State::Declared | State::Loaded | State::Initialised => cell.set(Outcome::Detached),
    }
}
