//! How programs and maps are wired together: options of maps, routes through
//! program arrays and maps of maps.

use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use ebpf_manager_bpf::elf::{MapSpec, Object};
use ebpf_manager_bpf::{Errno, LoadOptions, Map, MapError, Occupant, Pod, Program, pod};

use crate::cleanup::{MapEntry, Origin, Undo};
use crate::constant::Number;
use crate::error::ManagerError;
use crate::live::{Live, ProgramRef};
use crate::probe::ProbeId;

type Place = fn(&mut Draft) -> Result<(), ManagerError>;

/// An object on its way into the kernel, with how it is going to be loaded.
pub(crate) struct Draft {
    pub(crate) object: Object,
    pub(crate) options: LoadOptions,
    /// Maps that are there already, beside `options.replace_maps`.
    pub(crate) existing: Vec<MapEntry>,
    /// Programs that are there already, by name.
    pub(crate) programs: Vec<(String, ProgramRef)>,
    /// Functions that the user excluded.
    pub(crate) excluded: Vec<String>,
    /// Numbers for symbols, the last one counts.
    pub(crate) numbers: Vec<Number>,
    /// Puts the numbers in; reached only if there are any.
    pub(crate) place_numbers: Option<Place>,
}

impl Draft {
    /// Uses a map that is there already.
    pub(crate) fn reuse(&mut self, entry: MapEntry) {
        self.options.replace_maps.push(entry.map.clone());
        self.existing.push(entry);
    }
}

/// What a load just made, before it counts.
pub(crate) struct Fresh<'f> {
    pub(crate) maps: &'f mut [MapEntry],
    pub(crate) programs: &'f [(String, ProgramRef)],
    pub(crate) program_pins: &'f mut Vec<PathBuf>,
    pub(crate) undo: &'f mut Undo,
}

/// What to do with a map beyond what the object says. Start from `new`.
#[derive(Clone, Debug, Default)]
pub struct MapOptions {
    pub(crate) pin: Option<PathBuf>,
    pub(crate) always_cleanup: bool,
    pub(crate) freeze: bool,
    pub(crate) entries: Vec<(Vec<u8>, Vec<u8>)>,
}

impl MapOptions {
    /// Nothing yet.
    pub fn new() -> MapOptions {
        MapOptions::default()
    }

    /// Pins the map here when the manager is initialised; a map that is pinned
    /// here already is used instead, if it is what the object declares.
    ///
    /// The pin outlives the manager, unless it is stopped with
    /// [`Cleanup::INTERNAL_PINNED`](crate::Cleanup::INTERNAL_PINNED).
    #[must_use]
    pub fn pin(mut self, path: impl Into<PathBuf>) -> MapOptions {
        self.pin = Some(path.into());
        self
    }

    /// Cleans the map up at every stop, its pin included, whoever made that.
    #[must_use]
    pub fn always_cleanup(mut self) -> MapOptions {
        self.always_cleanup = true;
        self
    }

    /// Puts an element into the map when the manager is initialised, beside
    /// what the object puts there. Not into a map that was there already.
    #[must_use]
    pub fn entry(self, key: &impl Pod, value: &impl Pod) -> MapOptions {
        self.entry_bytes(pod::bytes_of(key), pod::bytes_of(value))
    }

    /// As [`MapOptions::entry`], with the bytes of key and value.
    #[must_use]
    pub fn entry_bytes(mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> MapOptions {
        self.entries.push((key.into(), value.into()));
        self
    }

    /// Forbids user space to change the map once its elements are in it.
    /// Requires at least Linux 5.2.
    #[must_use]
    pub fn freeze(mut self) -> MapOptions {
        self.freeze = true;
        self
    }

    /// The map that is pinned where this one would be, if it is what `spec`
    /// says.
    pub(crate) fn open_pin(&self, spec: &MapSpec) -> Result<Option<MapEntry>, MapError> {
        let Some(path) = &self.pin else {
            return Ok(None);
        };
        match Map::from_pin(&spec.name, path) {
            Ok(map) => {
                map.check(spec, Some(path))?;
                let mut entry = MapEntry::new(map, Origin::Pin);
                entry.pin = Some(path.clone());
                entry.always_cleanup = self.always_cleanup;
                Ok(Some(entry))
            }
            Err(MapError::Pin { source, .. }) if source.is(Errno::ENOENT) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Fills, freezes and pins a map that was just created.
    pub(crate) fn finish(&self, entry: &mut MapEntry, undo: &mut Undo) -> Result<(), MapError> {
        for (key, value) in &self.entries {
            entry.map.update(key, value)?;
        }
        if self.freeze {
            entry.map.freeze()?;
        }
        if let Some(path) = &self.pin {
            entry.map.pin(path)?;
            entry.pin = Some(path.clone());
            entry.pinned_here = true;
            let path = path.clone();
            // What is gone already needs no undoing.
            undo.push(move || drop(std::fs::remove_file(path)));
        }
        entry.always_cleanup = self.always_cleanup;
        Ok(())
    }
}

/// A place in a program array, and the program that belongs there.
#[derive(Clone, Debug)]
pub struct TailCall {
    array: String,
    index: u32,
    target: ProgramTarget,
}

#[derive(Clone, Debug)]
enum ProgramTarget {
    Name(String),
    Probe(ProbeId),
    Handle(ProgramRef),
}

impl TailCall {
    /// The program of a C function, or a copy by its name.
    pub fn new(array: impl Into<String>, index: u32, program: impl Into<String>) -> TailCall {
        let target = ProgramTarget::Name(program.into());
        TailCall {
            array: array.into(),
            index,
            target,
        }
    }

    /// The program of a probe.
    pub fn to_probe(array: impl Into<String>, index: u32, probe: impl Into<ProbeId>) -> TailCall {
        let target = ProgramTarget::Probe(probe.into());
        TailCall {
            array: array.into(),
            index,
            target,
        }
    }

    /// Any loaded program, also one of another manager.
    pub fn to(array: impl Into<String>, index: u32, program: impl Into<ProgramRef>) -> TailCall {
        let target = ProgramTarget::Handle(program.into());
        TailCall {
            array: array.into(),
            index,
            target,
        }
    }

    /// The function that has to be loaded for it.
    pub(crate) fn function(&self) -> Option<&str> {
        match &self.target {
            ProgramTarget::Name(name) => Some(name),
            ProgramTarget::Probe(id) => Some(&id.function),
            ProgramTarget::Handle(_) => None,
        }
    }

    pub(crate) fn resolve(&self, live: &Live) -> Result<Route, ManagerError> {
        let program = match &self.target {
            ProgramTarget::Name(name) => live.program(name).ok_or_else(|| name.clone()),
            ProgramTarget::Probe(id) => {
                let id = live.current_id(id);
                let program = live.probe(id).and_then(super::live::Cell::program);
                program.ok_or_else(|| id.to_string())
            }
            ProgramTarget::Handle(program) => Ok(program.clone()),
        };
        let program = program.map_err(|name| ManagerError::not_there("program", name))?;
        Ok(Route {
            map: find_map(live, &self.array)?,
            key: self.index.to_ne_bytes().to_vec(),
            key_text: self.index.to_string(),
            target: Target::Program(program),
        })
    }
}

/// A key of a map of maps, and the map that belongs there.
#[derive(Clone, Debug)]
pub struct MapRoute {
    outer: String,
    key: Vec<u8>,
    inner: MapTarget,
}

#[derive(Clone, Debug)]
enum MapTarget {
    Name(String),
    Handle(Map),
}

impl MapRoute {
    /// The map of this name.
    pub fn new(outer: impl Into<String>, key: &impl Pod, inner: impl Into<String>) -> MapRoute {
        MapRoute {
            outer: outer.into(),
            key: pod::bytes_of(key).to_vec(),
            inner: MapTarget::Name(inner.into()),
        }
    }

    /// Any map, also one of another manager.
    pub fn to(outer: impl Into<String>, key: &impl Pod, inner: &Map) -> MapRoute {
        MapRoute {
            outer: outer.into(),
            key: pod::bytes_of(key).to_vec(),
            inner: MapTarget::Handle(inner.clone()),
        }
    }

    pub(crate) fn resolve(&self, live: &Live) -> Result<Route, ManagerError> {
        let inner = match &self.inner {
            MapTarget::Name(name) => find_map(live, name)?,
            MapTarget::Handle(map) => map.clone(),
        };
        let mut key_text = String::from("0x");
        for byte in &self.key {
            // Writing to a string does not fail.
            let _ = write!(key_text, "{byte:02x}");
        }
        Ok(Route {
            map: find_map(live, &self.outer)?,
            key: self.key.clone(),
            key_text,
            target: Target::Map(inner),
        })
    }
}

fn find_map(live: &Live, name: &str) -> Result<Map, ManagerError> {
    live.map(name)
        .cloned()
        .ok_or_else(|| ManagerError::not_there("map", name.to_owned()))
}

/// A route whose ends are found.
pub(crate) struct Route {
    map: Map,
    key: Vec<u8>,
    key_text: String,
    target: Target,
}

enum Target {
    Program(ProgramRef),
    Map(Map),
}

/// Makes routes; what was there before is noted in `undo`.
pub(crate) fn make_routes(routes: Vec<Route>, undo: &mut Undo) -> Result<(), ManagerError> {
    for route in routes {
        let fd = match &route.target {
            Target::Program(program) => Program::as_fd(program).as_raw_fd(),
            Target::Map(map) => map.as_fd().as_raw_fd(),
        };
        let occupant = Occupant::of(&route.map, &route.key);
        if let Err(source) = route.map.update(&route.key, &fd.to_ne_bytes()) {
            return Err(ManagerError::Route {
                route: format!("{}[{}]", route.map.name(), route.key_text),
                source: Box::new(source),
            });
        }
        undo.push(move || {
            // The map may be closed elsewhere, or frozen by now.
            let _ = occupant.restore(&route.map, &route.key);
        });
    }
    Ok(())
}
