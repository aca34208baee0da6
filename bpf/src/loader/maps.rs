//! The maps of a load: replaced, found pinned or made, and filled.

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use ebpf_manager_elf::sort::sort;
use ebpf_manager_elf::{MapSpec, Pinning, Slot};
use ebpf_manager_sys::Errno;

use super::Loader;
use super::entry::Entry;
use crate::collection::ProgramCopy;
use crate::error::{LoadError, MapError};
use crate::map::{Map, MapContext};
use crate::program::Program;
use crate::struct_ops;

/// Pins made by a load, removed again unless it succeeds.
#[derive(Debug, Default)]
pub(super) struct Pins(pub(super) Vec<PathBuf>);

impl Drop for Pins {
    fn drop(&mut self) {
        for path in self.0.drain(..).rev() {
            // A pin that is gone already needs no undoing.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The map pinned at `path`, if it is what `spec` declares.
fn pinned_map(spec: &MapSpec, path: &Path) -> Result<Map, MapError> {
    let map = Map::from_pin(&spec.name, path)?;
    map.check(spec, Some(path))?;
    Ok(map)
}

impl Loader<'_> {
    /// The map for a specification: a replacement, a pin that exists, or a new
    /// one.
    pub(super) fn obtain_map(&mut self, index: usize, spec: &MapSpec) -> Result<Map, LoadError> {
        if let Some(at) = self
            .options
            .replace_maps
            .iter()
            .position(|m| m.name() == spec.name)
        {
            let map = self.options.replace_maps.swap_remove(at);
            map.check(spec, None)?;
            return Ok(map);
        }
        let pin = (spec.pinning == Pinning::ByName).then(|| self.options.pin_dir.join(&spec.name));
        if let Some(path) = &pin {
            match pinned_map(spec, path) {
                Err(err) if err.is(Errno::ENOENT) => {}
                result => return Ok(result?),
            }
        }
        if spec.external {
            let what = "declared extern, and neither replaced nor pinned under its name";
            return Err(LoadError::Map(MapError::Spec {
                map: spec.name.clone(),
                what: what.to_owned(),
            }));
        }
        let map = self.create_map(index, spec)?;
        if let Some(path) = pin {
            make_dir(&self.options.pin_dir);
            match map.pin(&path) {
                // Somebody else was faster: both use the same map.
                Err(err) if err.is(Errno::EEXIST) => return Ok(pinned_map(spec, &path)?),
                result => result?,
            }
            self.pins.0.push(path);
        }
        Ok(map)
    }

    fn create_map(&self, index: usize, spec: &MapSpec) -> Result<Map, LoadError> {
        let context = MapContext {
            btf: self.btf.as_ref().map(AsFd::as_fd),
            inner: None,
            operations: struct_ops::of_map(&self.operations, index),
        };
        let map = Map::create_in(spec, context)?;
        if context.operations.is_some() || map.arena().is_some() {
            // Its value needs the programs, or is there already.
            return Ok(map);
        }
        let config = self.externs.config_contents(index);
        if let Some(contents) = config.or(spec.contents.as_slice()) {
            // What the object leaves out at the end is zero already.
            if contents.iter().any(|b| *b != 0) {
                map.update(&0_u32.to_ne_bytes(), contents)?;
            }
        }
        if spec.freeze {
            match map.freeze() {
                // Kernels before 5.2 cannot; programs may not write it anyway.
                Err(err) if err.is(Errno::EINVAL) => {}
                result => result?,
            }
        }
        Ok(map)
    }

    /// Checks the maps that a copy brings, and makes those for variables of
    /// its own.
    pub(super) fn own_maps(
        &self,
        entry: &mut Entry<'_>,
        copy: Option<&ProgramCopy>,
        maps: &[Option<Map>],
    ) -> Result<(), LoadError> {
        for (index, map) in &entry.maps {
            if let Some(spec) = self.object.maps().get(*index) {
                map.check(spec, None)?;
            }
        }
        let Some(copy) = copy.filter(|copy| !copy.variables.is_empty()) else {
            return Ok(());
        };
        let mut object = self.object.clone();
        let mut wanted = Vec::new();
        for (name, value) in &copy.variables {
            object
                .set_variable(name, value)
                .map_err(|source| LoadError::Object { path: None, source })?;
            wanted.extend(object.variable(name).map(|variable| variable.map as usize));
        }
        sort(&mut wanted, |a, b| a < b);
        wanted.dedup();
        for index in wanted
            .into_iter()
            .filter(|at| matches!(maps.get(*at), Some(Some(_))))
        {
            if let Some(spec) = object.maps().get(index) {
                entry.maps.retain(|(at, _)| *at != index);
                entry.maps.push((index, self.create_map(index, spec)?));
            }
        }
        Ok(())
    }

    /// Static initialisers: inner maps before programs are loaded, tail-call
    /// targets after.
    pub(super) fn fill_slots(
        &self,
        maps: &[Option<Map>],
        loaded: &[Program],
        programs: bool,
    ) -> Result<(), LoadError> {
        for (spec, map) in self.object.maps().iter().zip(maps) {
            let Some(map) = map else { continue };
            for (key, slot) in &spec.slots {
                let fd = match slot {
                    Slot::Map(name) if !programs => maps
                        .iter()
                        .flatten()
                        .find(|m| m.name() == name)
                        .map(|m| m.as_fd().as_raw_fd()),
                    // A target that is not loaded leaves its slot empty: the
                    // tail call then falls through, as it does for any index.
                    Slot::Program(name) if programs => loaded
                        .iter()
                        .find(|p| p.name() == name)
                        .map(AsRawFd::as_raw_fd),
                    _ => continue,
                };
                if let Some(fd) = fd {
                    map.update(&key.to_ne_bytes(), &fd.to_ne_bytes())?;
                }
            }
        }
        Ok(())
    }
}

/// Makes the directory for pins, if its parent exists. What goes wrong shows
/// when the pin is made.
fn make_dir(path: &Path) {
    let _ = std::fs::create_dir(path);
}
