//! Which programs a load is about, and what is known of each beforehand.

use std::borrow::Cow;

use ebpf_manager_elf::{Object, ProgramSpec};
use ebpf_manager_sys::abi::bpf::ProgramType;

use crate::attach_btf::{AttachPoint, AttachTo};
use crate::collection::{Collection, LoadOptions, ProgramCopy};
use crate::error::{LoadError, ProgramError};
use crate::map::Map;

/// A program to load.
#[derive(Debug)]
pub(super) struct Entry<'o> {
    /// As the object has it; under another name for a copy.
    pub(super) spec: Cow<'o, ProgramSpec>,
    /// Index of the copy it is.
    pub(super) copy: Option<usize>,
    /// Its failure ends the load.
    pub(super) required: bool,
    /// Why it is not even tried.
    pub(super) failure: Option<ProgramError>,
    pub(super) point: AttachPoint,
    /// By index, maps that it uses instead of the object's.
    pub(super) maps: Vec<(usize, Map)>,
}

impl Entry<'_> {
    /// Keeps the failure, if it may fail.
    pub(super) fn fail(&mut self, error: ProgramError) -> Result<(), LoadError> {
        if self.required {
            return Err(error.into());
        }
        self.failure = Some(error);
        Ok(())
    }

    /// The map that it uses for the object's of this index.
    pub(super) fn map<'m>(&'m self, maps: &'m [Option<Map>], index: usize) -> Option<&'m Map> {
        let own = self.maps.iter().find(|(at, _)| *at == index);
        own.map(|(_, map)| map)
            .or_else(|| maps.get(index)?.as_ref())
    }
}

/// The programs to load, the object's before the copies.
pub(super) fn entries<'o>(
    object: &'o Object,
    options: &LoadOptions,
    copies: &mut [ProgramCopy],
    existing: Option<&Collection>,
) -> Result<Vec<Entry<'o>>, LoadError> {
    let no_such = |kind, name: &str| LoadError::NoSuch {
        kind,
        name: name.to_owned(),
    };
    let known =
        |name: &str| object.program(name).is_some() || copies.iter().any(|copy| copy.name == name);
    let mut named = options
        .include
        .iter()
        .chain(&options.exclude)
        .chain(&options.optional)
        .map(String::as_str)
        .chain(options.attach_to.iter().map(AttachTo::name));
    if let Some(name) = named.find(|name| !known(name)) {
        return Err(no_such("program", name));
    }
    let mut replaced = options
        .replace_maps
        .iter()
        .chain(copies.iter().flat_map(|copy| &copy.maps));
    if let Some(map) = replaced.find(|map| object.map(map.name()).is_none()) {
        return Err(no_such("map", map.name()));
    }
    if let Some(existing) = existing {
        let mut specs = object.maps().iter();
        if let Some(spec) = specs.find(|m| !m.skip && existing.map(&m.name).is_none()) {
            return Err(no_such("map", &spec.name));
        }
        let mut maps = existing.maps().iter();
        if let Some(map) = maps.find(|m| object.map(m.name()).is_none()) {
            return Err(no_such("map", map.name()));
        }
    }
    let wanted = |spec: &ProgramSpec| {
        existing.is_none()
            && (spec.autoload || options.include.contains(&spec.name))
            && !options.exclude.contains(&spec.name)
    };
    let own = object.programs().iter().filter(|spec| wanted(spec));
    let mut entries: Vec<Entry<'_>> = own
        .map(|spec| Entry {
            spec: Cow::Borrowed(spec),
            copy: None,
            required: !options.optional.contains(&spec.name),
            failure: None,
            point: AttachPoint::default(),
            maps: Vec::new(),
        })
        .collect();
    for (at, copy) in copies.iter_mut().enumerate() {
        let Some(spec) = object.program(&copy.program) else {
            return Err(no_such("program", &copy.program));
        };
        let mut spec = spec.clone();
        spec.name.clone_from(&copy.name);
        let maps = std::mem::take(&mut copy.maps)
            .into_iter()
            .filter_map(|map| {
                let at = object.maps().iter().position(|m| m.name == map.name())?;
                Some((at, map))
            });
        entries.push(Entry {
            maps: maps.collect(),
            required: !options.optional.contains(&copy.name),
            spec: Cow::Owned(spec),
            copy: Some(at),
            failure: None,
            point: AttachPoint::default(),
        });
    }
    for entry in &mut entries {
        if entry.spec.program_type == ProgramType::UNSPEC {
            let untyped = ProgramError::Untyped {
                program: entry.spec.name.clone(),
                section: entry.spec.section.clone(),
            };
            entry.fail(untyped)?;
        }
    }
    Ok(entries)
}
