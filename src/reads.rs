//! Looking at a manager: maps, programs, probes, variables, specifications.
//! None of these waits for an action in progress.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ebpf_manager_bpf::elf::{MapSpec, ProgramSpec};
use ebpf_manager_bpf::{
    Link, LinkError, Loss, Map, ProgramError, RunStats, TestRun, TestRunResult,
};

use crate::error::ManagerError;
use crate::hook::Hook;
use crate::live::{Cell, ProgramRef, VariableRef};
use crate::manager::Manager;
use crate::options::Dump;
use crate::outcome::{Outcome, ProbeError};
use crate::probe::ProbeId;
use crate::start::of_probe;
use crate::stream::{Stream, StreamHandle, StreamStats};

impl Manager {
    /// The live map of this name: of the object, or added since. `None` if
    /// there is none now. Never waits for an action in progress.
    ///
    /// The map stays open for as long as the answer is kept, also beyond
    /// [`Manager::stop`].
    pub fn map(&self, name: &str) -> Option<Map> {
        if let Some(live) = self.inner.live() {
            return live.map(name).cloned();
        }
        let kept = self.inner.kept.lock();
        let entry = kept.iter().find(|entry| entry.map.name() == name)?;
        Some(entry.map.clone())
    }

    /// All live maps: the object's, in its order, then those added since.
    pub fn maps(&self) -> Vec<Map> {
        let Some(live) = self.inner.live() else {
            return Vec::new();
        };
        live.maps.iter().map(|entry| entry.map.clone()).collect()
    }

    /// The live program of this C function, or the copy of this name; `None` if
    /// there is none now. Never waits for an action in progress.
    ///
    /// The program stays open for as long as the answer is kept, also beyond
    /// [`Manager::stop`].
    pub fn program(&self, name: &str) -> Option<ProgramRef> {
        self.inner.live()?.program(name)
    }

    /// All live programs: the object's, in its order, then those of probes
    /// that have one of their own.
    pub fn programs(&self) -> Vec<ProgramRef> {
        let Some(live) = self.inner.live() else {
            return Vec::new();
        };
        let collection = &live.base.collection;
        let names = collection
            .programs()
            .iter()
            .map(ebpf_manager_bpf::Program::name);
        let mut all: Vec<ProgramRef> = names
            .filter_map(|name| ProgramRef::find(collection, name))
            .collect();
        for program in live.probes.iter().filter_map(Cell::program) {
            if !all.iter().any(|known| known.name() == program.name()) {
                all.push(program);
            }
        }
        all
    }

    /// The programs of all probes of this C function, each once.
    pub fn programs_of(&self, function: &str) -> Vec<ProgramRef> {
        let Some(live) = self.inner.live() else {
            return Vec::new();
        };
        let mut all: Vec<ProgramRef> = live.program(function).into_iter().collect();
        let probes = live.probes.iter();
        for cell in probes.filter(|cell| cell.id().function == function) {
            if let Some(program) = cell.program()
                && !all.iter().any(|known| known.name() == program.name())
            {
                all.push(program);
            }
        }
        all
    }

    /// The global variable of this name: a counter in `.bss`, a constant.
    /// `None` if there is none now. Never waits for an action in progress.
    ///
    /// Its map stays open for as long as the answer is kept, also beyond
    /// [`Manager::stop`].
    pub fn variable(&self, name: &str) -> Option<VariableRef> {
        VariableRef::find(&self.inner.live()?.base.collection, name)
    }

    /// The specification of a map, without its contents: of the object, as it
    /// was loaded, or as it stands if the manager is loaded only.
    pub fn map_spec(&self, name: &str) -> Option<MapSpec> {
        if let Some(live) = self.inner.live() {
            let spec = live.base.maps.iter().find(|spec| spec.name == name);
            return spec.cloned().or_else(|| live.map(name).map(spec_of_live));
        }
        self.inner
            .loaded_object(|object| object.map(name).cloned())
            .flatten()
    }

    /// The specifications of all maps of the object.
    pub fn map_specs(&self) -> Vec<MapSpec> {
        if let Some(live) = self.inner.live() {
            live.base.maps.clone()
        } else {
            let specs = self.inner.loaded_object(|object| object.maps().to_vec());
            specs.unwrap_or_default()
        }
    }

    /// The specification of the program of a C function.
    pub fn program_spec(&self, function: &str) -> Option<ProgramSpec> {
        let mut specs = self.program_specs().into_iter();
        specs.find(|spec| spec.name == function)
    }

    /// The specifications of all programs of the object, loaded or not.
    pub fn program_specs(&self) -> Vec<ProgramSpec> {
        if let Some(live) = self.inner.live() {
            live.base.programs.clone()
        } else {
            let specs = self
                .inner
                .loaded_object(|object| object.programs().to_vec());
            specs.unwrap_or_default()
        }
    }

    /// Every probe, declared or added since, and what became of it.
    pub fn probes(&self) -> Vec<(ProbeId, Outcome)> {
        if let Some(live) = self.inner.live() {
            let probes = live.probes.iter();
            return probes.map(|c| (c.id().clone(), c.outcome())).collect();
        }
        let probes = self.inner.declaration.probes.iter();
        probes
            .map(|probe| (probe.id.clone(), Outcome::Detached))
            .collect()
    }

    /// The probe of this identity; `None` if there is none now.
    pub fn probe(&self, id: impl Into<ProbeId>) -> Option<ProbeRef> {
        let live = self.inner.live()?;
        let cell = live.probe(&id.into())?.clone();
        Some(ProbeRef { cell })
    }

    /// What this kernel is too old to give: for the object as a whole, its
    /// maps and its programs, each with the name of what lost it.
    pub fn losses(&self) -> Vec<(String, Loss)> {
        let Some(live) = self.inner.live() else {
            return Vec::new();
        };
        let all = &live.base.collection;
        let object = all.losses().iter().map(|l| (String::from("object"), *l));
        let maps = all
            .maps()
            .iter()
            .flat_map(|m| m.losses().iter().map(|l| (m.name().to_owned(), *l)));
        let programs = all
            .programs()
            .iter()
            .flat_map(|p| p.losses().iter().map(|l| (p.name().to_owned(), *l)));
        object.chain(maps).chain(programs).collect()
    }

    /// The stream of this map, declared or added since: to pause, resume, stop,
    /// start and flush it, and for its counters. Never waits for an action in
    /// progress.
    pub fn stream(&self, map: &str) -> Option<StreamHandle> {
        let of = |streams: &[Arc<Stream>]| {
            let mut streams = streams.iter();
            streams.find(|s| s.map() == map).map(StreamHandle::new)
        };
        of(&self.inner.declaration.streams).or_else(|| of(&self.inner.live()?.streams))
    }

    /// What has been read from a buffer since the manager was built, or the
    /// buffer was added.
    pub fn stream_stats(&self, map: &str) -> Option<StreamStats> {
        Some(self.stream(map)?.stats())
    }

    /// Stops all streams, handing over what is in their buffers. Programs stay
    /// attached; [`StreamHandle::start`] reads on.
    ///
    /// # Errors
    /// [`ManagerError::Thread`].
    pub fn stop_readers(&self) -> Result<(), ManagerError> {
        let added = self.inner.live().map(|live| live.streams.clone());
        let streams = self.inner.declaration.streams.iter();
        let all = streams.chain(added.iter().flatten());
        let stopped = all.map(|stream| StreamHandle::new(stream).stop());
        stopped.fold(Ok(()), Result::and)
    }

    /// Writes out maps, those added since included, as the declaration says
    /// how ([`Builder::dump`](crate::Builder::dump)): those of these names, in
    /// this order, or all that there is a way for, in the object's.
    ///
    /// # Errors
    /// [`ManagerError::NotThere`] for a map that is not there;
    /// [`ManagerError::Dump`] for one that there is no way for, or if the way
    /// or the writer fails.
    pub fn dump(&self, names: &[&str], out: &mut dyn io::Write) -> Result<(), ManagerError> {
        let maps = self.maps();
        if names.is_empty() {
            for map in &maps {
                if let Some(dump) = self.way(map.name()) {
                    dump_one(&*dump, map, out)?;
                }
            }
        }
        for name in names {
            let map = maps.iter().find(|map| map.name() == *name);
            let map = map.ok_or_else(|| ManagerError::not_there("map", (*name).to_owned()))?;
            let dump = self.way(name).ok_or_else(|| ManagerError::Dump {
                map: (*name).to_owned(),
                message: "the builder was not told how to write it out".to_owned(),
            })?;
            dump_one(&*dump, map, out)?;
        }
        Ok(())
    }

    fn way(&self, name: &str) -> Option<Arc<Dump>> {
        let declaration = &self.inner.declaration;
        let own = declaration.dumps.iter().find(|(map, _)| map == name);
        own.map(|(_, dump)| dump)
            .or(declaration.dump_all.as_ref())
            .cloned()
    }
}

fn dump_one(dump: &Dump, map: &Map, out: &mut dyn io::Write) -> Result<(), ManagerError> {
    dump(map, out).map_err(|err| ManagerError::Dump {
        map: map.name().to_owned(),
        message: err.to_string(),
    })
}

/// What a map that no object declares would be declared as.
fn spec_of_live(map: &Map) -> MapSpec {
    MapSpec {
        name: map.name().to_owned(),
        map_type: map.map_type(),
        key_size: map.key_size() as u32,
        value_size: map.value_size() as u32,
        max_entries: map.max_entries(),
        flags: map.flags(),
        ..MapSpec::default()
    }
}

/// A probe of a manager. It says what became of the probe now, also after the
/// probe was renamed or the manager stopped; its program stays open for as
/// long as this is held.
#[derive(Clone)]
pub struct ProbeRef {
    cell: Cell,
}

impl fmt::Debug for ProbeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeRef")
            .field("id", self.id())
            .field("outcome", &self.outcome())
            .finish_non_exhaustive()
    }
}

impl ProbeRef {
    /// Its identity when it was looked up.
    pub fn id(&self) -> &ProbeId {
        self.cell.id()
    }

    /// Where it is attached.
    pub fn hook(&self) -> &Hook {
        &self.cell.probe.hook
    }

    /// The name of its program.
    pub fn program_name(&self) -> String {
        self.cell.program_name()
    }

    /// What became of it.
    pub fn outcome(&self) -> Outcome {
        self.cell.outcome()
    }

    /// Whether it is attached, paused or not.
    pub fn is_running(&self) -> bool {
        self.outcome().is_running()
    }

    /// Whether its program is loaded.
    pub fn is_initialised(&self) -> bool {
        self.cell.status.lock().program.is_some()
    }

    /// Whether a selector names it, and its program is not excluded.
    pub fn is_activated(&self) -> bool {
        self.outcome() != Outcome::Disabled
    }

    /// What went wrong with it the last time something did.
    pub fn last_error(&self) -> Option<ProbeError> {
        self.cell.status.lock().last_error.clone()
    }

    /// Its program.
    pub fn program(&self) -> Option<ProgramRef> {
        self.cell.program()
    }

    /// The kernel's id of its program. Requires at least Linux 4.13.
    ///
    /// # Errors
    /// [`ManagerError::Program`]; [`ManagerError::NotThere`] if it is not
    /// loaded. The same holds for the methods below.
    pub fn program_id(&self) -> Result<u32, ManagerError> {
        self.ask(&mut |program| program.id())
    }

    /// How often its program ran, and for how long, while a manager with
    /// [`Builder::statistics`](crate::Builder::statistics) ran. Linux 5.1; zero
    /// below.
    pub fn run_stats(&self) -> Result<RunStats, ManagerError> {
        self.ask(&mut |program| program.run_stats())
    }

    /// Runs its program on `data`, attached or not, with up to `room` bytes of
    /// answer: what the program returned, and what it made of the data.
    /// Too little room is an error (`ENOSPC`), and some kinds of programs give
    /// no answer: no room then, 0. Requires at least Linux 4.12, with room 5.0.
    pub fn test(&self, data: &[u8], room: usize) -> Result<(u32, Vec<u8>), ManagerError> {
        let mut out = vec![0; room];
        let result = self.ask(&mut |program| {
            program.test_run(&mut TestRun {
                data_in: data,
                data_out: &mut out,
                ..TestRun::default()
            })
        })?;
        out.truncate(result.data_size_out as usize);
        Ok((result.retval, out))
    }

    /// Runs its program so many times, 0 is once: what it returned the last
    /// time, and how long a run took on average. Requires at least Linux 4.12.
    pub fn benchmark(&self, data: &[u8], times: u32) -> Result<(u32, Duration), ManagerError> {
        let result: TestRunResult = self.ask(&mut |program| {
            program.test_run(&mut TestRun {
                data_in: data,
                repeat: times,
                ..TestRun::default()
            })
        })?;
        let each = Duration::from_nanos(result.duration_ns.into());
        Ok((result.retval, each))
    }

    /// Starts an iteration of a probe that is attached to an iterator
    /// ([`Hook::iter`]): what the program writes is what is read. Each call
    /// starts from the beginning. Requires at least Linux 5.8.
    ///
    /// # Errors
    /// [`ManagerError::NotThere`] if it is not attached, or being detached;
    /// [`ManagerError::Attach`] if its hook is no iterator.
    pub fn read_iter(&self) -> Result<File, ManagerError> {
        self.ask_link(&mut Link::read_iter)
    }

    /// The kernel's id of what attaches it; `None` for mechanisms without one.
    /// Requires at least Linux 5.8.
    ///
    /// # Errors
    /// [`ManagerError::NotThere`] if it is not attached, or being detached;
    /// [`ManagerError::Attach`] if the kernel does not tell.
    pub fn link_id(&self) -> Result<Option<u32>, ManagerError> {
        self.ask_link(&mut Link::id)
    }

    fn ask_link<T>(
        &self,
        question: &mut dyn FnMut(&Link) -> Result<T, LinkError>,
    ) -> Result<T, ManagerError> {
        // The kernel answers at once.
        let status = self.cell.status.lock();
        let Some(link) = &status.link else {
            return Err(ManagerError::not_there(
                "link of probe",
                self.id().to_string(),
            ));
        };
        question(link).map_err(|error| of_probe(&self.cell, error.into()))
    }

    fn ask<T>(
        &self,
        question: &mut dyn FnMut(&ProgramRef) -> Result<T, ProgramError>,
    ) -> Result<T, ManagerError> {
        let Some(program) = self.program() else {
            return Err(ManagerError::not_there("program", self.program_name()));
        };
        question(&program).map_err(ManagerError::from)
    }
}
