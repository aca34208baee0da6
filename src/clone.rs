//! Loading programs once more, changed.

use std::fmt;
use std::sync::Arc;

use ebpf_manager_bpf::elf::ProgramSpec;
use ebpf_manager_bpf::elf::edit::{PatchError, Patcher, ProgramEditor};
use ebpf_manager_bpf::{LoadError, Map, Pod, ProgramCopy, pod};

use crate::bypass;
use crate::error::ManagerError;
use crate::live::{Cell, Live, ProgramRef};
use crate::load::{options, spec_of};
use crate::options::Builder;
use crate::outcome::ProbeError;
use crate::probe::Probe;

/// The program of a probe that was not loaded at first.
pub(crate) fn load_for(
    declaration: &Builder,
    live: &Live,
    cell: &Cell,
) -> Result<ProgramRef, ProbeError> {
    if let Some(program) = live.program(&cell.probe.program_name()) {
        return Ok(program);
    }
    match load_clone(declaration, live, &cell.probe, ProgramClone::new()) {
        Ok(program) => Ok(program),
        Err(ManagerError::NotKept { .. }) => Err(ProbeError::NotLoaded),
        Err(ManagerError::Load(err)) => Err(match *err {
            LoadError::Program(err) => ProbeError::Load(Arc::new(err)),
            err => ProbeError::LoadLater(Arc::new(err.into())),
        }),
        Err(err) => Err(ProbeError::LoadLater(Arc::new(err))),
    }
}

/// Loads one more copy of a program, on the maps that are there.
pub(crate) fn load_clone(
    declaration: &Builder,
    live: &Live,
    probe: &Probe,
    clone: ProgramClone,
) -> Result<ProgramRef, ManagerError> {
    let base = &live.base;
    let function = &probe.id.function;
    if spec_of(base, function).is_none() {
        return Err(ManagerError::NoSuch {
            kind: "program",
            name: function.clone(),
        });
    }
    let Some(object) = &base.object else {
        return Err(ManagerError::NotKept {
            name: function.clone(),
        });
    };
    let mut copy = ProgramCopy::new(function, probe.program_name());
    for (name, map) in clone.maps {
        if object.map(&name).is_none() {
            return Err(ManagerError::NoSuch { kind: "map", name });
        }
        copy.maps.push(map.named(&name)?);
    }
    copy.variables = clone.variables;
    copy.patchers = clone.patchers;
    let mut edited;
    let object = if clone.edits.is_empty() && clone.symbols.is_empty() {
        object
    } else {
        edited = object.clone();
        for (symbol, value) in &clone.symbols {
            edited
                .set_symbol_constant(symbol, *value, &[function])
                .map_err(ManagerError::Constant)?;
        }
        let mut programs = edited.programs_mut().iter_mut();
        if let Some(spec) = programs.find(|spec| spec.name == *function) {
            clone.edits.iter().for_each(|edit| edit(spec));
        }
        &edited
    };
    let mut options = options(declaration)?;
    // It goes where the original does, unless the declaration says otherwise.
    let mut all = std::mem::take(&mut options.attach_to);
    let place = [&copy.name, function].into_iter().find_map(|name| {
        let at = all.iter().position(|to| to.name() == name)?;
        Some(all.swap_remove(at).named(&copy.name))
    });
    options.attach_to.extend(place);
    options.patchers = declaration.patchers();
    let ticket = match &base.bypass {
        Some(bypass) => bypass.reserve()?,
        None => None,
    };
    copy.patchers.extend(ticket.as_ref().map(bypass::patcher));
    let program = base.collection.load_copy(object, copy, options)?;
    Ok(ProgramRef::cloned(program, ticket))
}

type EditSpec = dyn Fn(&mut ProgramSpec) + Send + Sync;

/// How a clone of a program differs from the original.
#[derive(Default)]
pub struct ProgramClone {
    variables: Vec<(String, Vec<u8>)>,
    symbols: Vec<(String, u64)>,
    maps: Vec<(String, Map)>,
    patchers: Vec<Patcher>,
    edits: Vec<Box<EditSpec>>,
}

impl ProgramClone {
    /// Not at all, yet.
    pub fn new() -> ProgramClone {
        ProgramClone::default()
    }

    /// A global variable has another value. The clone gets its own map for all
    /// variables of that section.
    #[must_use]
    pub fn constant(mut self, name: impl Into<String>, value: impl Pod) -> ProgramClone {
        let value = pod::bytes_of(&value).to_vec();
        self.variables.push((name.into(), value));
        self
    }

    /// A symbol that nothing defines is this number; see
    /// [`Constant::symbol`](crate::Constant::symbol). The program has to use it.
    #[must_use]
    pub fn symbol(mut self, name: impl Into<String>, value: u64) -> ProgramClone {
        self.symbols.push((name.into(), value));
        self
    }

    /// It uses `map` instead of the map of this name.
    #[must_use]
    pub fn map(mut self, name: impl Into<String>, map: &Map) -> ProgramClone {
        self.maps.push((name.into(), map.clone()));
        self
    }

    /// Its instructions are changed.
    #[must_use]
    pub fn patch(
        mut self,
        patch: impl FnMut(&ProgramSpec, &mut ProgramEditor<'_>) -> Result<(), PatchError>
        + Send
        + 'static,
    ) -> ProgramClone {
        self.patchers.push(Patcher::new(patch));
        self
    }

    /// Its specification is changed: type, attach type, flags.
    #[must_use]
    pub fn edit(mut self, edit: impl Fn(&mut ProgramSpec) + Send + Sync + 'static) -> ProgramClone {
        self.edits.push(Box::new(edit));
        self
    }
}

impl fmt::Debug for ProgramClone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let maps: Vec<&str> = self.maps.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("ProgramClone")
            .field("maps", &maps)
            .finish_non_exhaustive()
    }
}
