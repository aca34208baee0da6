//! Loading an object: BTF, maps, contents, programs, in the order in which
//! they depend on each other.

mod entry;
mod fixups;
mod jumps;
mod maps;
mod programs;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use ebpf_manager_elf::btf::{Btf, NameHit, NameQuery};
use ebpf_manager_elf::core_relo::{Resolver, add_roots};
use ebpf_manager_elf::{Linker, Object, ProgramSpec};
use ebpf_manager_sys::abi::bpf::ProgramType;
use ebpf_manager_sys::bpf::{self as sys, ObjectKind};
use ebpf_manager_sys::proc::KernelVersion;

use crate::attach_btf::{self, Wanted};
use crate::collection::{Collection, CoreBy, LoadOptions, LoadTimes, ProgramCopy};
use crate::core::CoreRelocator;
use crate::error::{LoadError, ProgramError};
use crate::externs::Externs;
use crate::kernel_btf::KernelBtf;
use crate::map::{Loss, Map};
use crate::object_btf;
use crate::program::Program;
use crate::struct_ops::{self, Operations};

use entry::{Entry, entries};
use maps::Pins;

/// What a load leaves behind.
pub(crate) struct Loaded {
    pub(crate) maps: Vec<Map>,
    pub(crate) programs: Vec<Program>,
    pub(crate) failures: Vec<(String, Arc<ProgramError>)>,
    pub(crate) times: LoadTimes,
    pub(crate) losses: Vec<Loss>,
}

/// Loads an object, or into `existing`, which was loaded from it, only the
/// copies that the options name.
pub(crate) fn load(
    object: &Object,
    mut options: LoadOptions,
    existing: Option<&Collection>,
) -> Result<Loaded, LoadError> {
    let start = Instant::now();
    let linker = object
        .linker()
        .map_err(|source| LoadError::Object { path: None, source })?;
    let mut copies = std::mem::take(&mut options.copies);
    let mut entries = entries(object, &options, &mut copies, existing)?;
    let specs: Vec<&ProgramSpec> = entries.iter().map(|entry| entry.spec.as_ref()).collect();
    let externs = Externs::resolve(object, &specs, options.kernel_config.as_deref())
        .map_err(|source| LoadError::Object { path: None, source })?;
    let operations = struct_ops::resolve(object)?;

    // The kernel's types are walked once, for all names the object asks for,
    // and only if it asks for any.
    let targets = entries
        .iter_mut()
        .map(|entry| match entry.failure {
            Some(_) => Ok(None),
            None => attach_btf::wanted(&entry.spec, &options.attach_to)
                .or_else(|err| entry.fail(err).map(|()| None)),
        })
        .collect::<Result<Vec<Option<Wanted>>, _>>()?;
    let relos = linker.core_relos_of(
        entries
            .iter()
            .filter(|entry| entry.failure.is_none())
            .map(|entry| entry.spec.as_ref()),
    );
    let by_kernel = (options.core == CoreBy::Kernel || !cfg!(feature = "co-re"))
        && options.kernel_btf.is_none()
        && linker.kernel_can_relocate()
        && KernelVersion::current().is_ok_and(|version| version.code() >= CORE_IN_KERNEL);
    let mut query = NameQuery::new();
    let by_loader = cfg!(feature = "co-re") && !relos.is_empty() && !by_kernel;
    let local = linker.btf().filter(|_| by_loader);
    if let Some(local) = local {
        add_roots(&mut query, local, relos.iter().copied());
    }
    attach_btf::add_names(&mut query, targets.iter().flatten());
    query.finish();
    let mut hits = Vec::new();
    let kernel = match (query.is_empty(), &options.kernel_btf) {
        (true, _) => None,
        (false, Some(btf)) => Some(Ok(Arc::clone(btf))),
        (false, None) => Some(KernelBtf::vmlinux()),
    };
    let target = match &kernel {
        None => Ok(None),
        Some(Ok(kernel)) => kernel.scan(&query, &mut hits).map(Some),
        Some(Err(err)) => Err(err.clone()),
    };
    let (target, missing) = match target {
        Ok(target) => (target, None),
        Err(err) if entries.iter().all(|entry| entry.required) => return Err(err.into()),
        Err(err) => (None, Some(err)),
    };
    for (entry, want) in entries.iter_mut().zip(&targets) {
        if entry.failure.is_some() {
            continue;
        }
        let kernel = target.as_ref().map(|btf| (btf, hits.as_slice()));
        let name = &entry.spec.name;
        let point = match (&missing, want) {
            _ if entry.spec.program_type == ProgramType::STRUCT_OPS => {
                // Nothing of this kernel would call it.
                entry.required &= !struct_ops::is_absent(&operations, name);
                struct_ops::attach_point(&operations, name)
            }
            (Some(missing), Some(_)) => Err(ProgramError::KernelBtf {
                program: entry.spec.name.clone(),
                source: missing.clone(),
            }),
            _ => attach_btf::resolve(
                &entry.spec,
                want.as_ref(),
                &options.attach_to,
                &query,
                kernel,
            ),
        };
        match point {
            Ok(point) => entry.point = point,
            Err(err) => entry.fail(err)?,
        }
    }
    let mut resolver = local.map(|local| {
        let mut resolver = Resolver::new(local, &query);
        if let Some(target) = &target {
            resolver.add_target(target, hits);
        }
        resolver
    });
    // Modules are those of the running kernel.
    let wants_modules = options.kernel_btf.is_none()
        && resolver
            .as_ref()
            .is_some_and(|resolver| resolver.needs_modules(relos.iter().copied()));
    let modules = match &target {
        Some(target) if wants_modules => modules_with(target, &query),
        _ => Vec::new(),
    };
    let mut split: Vec<(Btf<'_>, Vec<NameHit>)> = Vec::with_capacity(modules.len());
    for module in &modules {
        let mut hits = Vec::new();
        if let Ok(btf) = Btf::scan(module.as_bytes(), target.as_ref(), &query, &mut hits) {
            split.push((btf, hits));
        }
    }
    if let Some(resolver) = &mut resolver {
        for (btf, hits) in &mut split {
            resolver.add_target(btf, std::mem::take(hits));
        }
    }

    let loader = Loader {
        object,
        options,
        linker: &linker,
        externs,
        operations,
        btf: None,
        pins: Pins::default(),
        times: LoadTimes {
            relocate: start.elapsed(),
            ..LoadTimes::default()
        },
        losses: Vec::new(),
    };
    let core = CoreRelocator::new(resolver, missing, by_kernel);
    loader.run(entries, &mut copies, core, existing)
}

/// Linux 5.17, whose verifier takes CO-RE relocations.
const CORE_IN_KERNEL: u32 = 5 << 16 | 17 << 8;

/// One load in progress. Owns what has been created so far.
struct Loader<'o> {
    object: &'o Object,
    options: LoadOptions,
    linker: &'o Linker<'o>,
    externs: Externs<'o>,
    operations: Vec<Operations>,
    btf: Option<OwnedFd>,
    pins: Pins,
    times: LoadTimes,
    losses: Vec<Loss>,
}

impl<'o> Loader<'o> {
    fn run(
        mut self,
        mut entries: Vec<Entry<'o>>,
        copies: &mut [ProgramCopy],
        core: CoreRelocator<'_>,
        existing: Option<&Collection>,
    ) -> Result<Loaded, LoadError> {
        let start = Instant::now();
        self.btf = existing.and_then(object_btf_of);
        if self.btf.is_none() {
            let (btf, losses) = object_btf::load(self.object)?;
            self.btf = btf;
            self.losses = losses;
        }
        let mut maps = Vec::with_capacity(self.object.maps().len());
        for (index, spec) in self.object.maps().iter().enumerate() {
            maps.push(match existing {
                Some(existing) => existing.map(&spec.name).cloned(),
                None if spec.skip && self.object.config_map() != Some(index) => None,
                None => Some(self.obtain_map(index, spec)?),
            });
        }
        let maps = maps.as_slice();
        if existing.is_none() {
            self.fill_slots(maps, &[], false)?;
        }
        for entry in &mut entries {
            let copy = entry.copy.and_then(|at| copies.get(at));
            self.own_maps(entry, copy, maps)?;
        }
        self.times.maps += start.elapsed();

        let (programs, failures) = self.load_programs(entries, copies, core, maps)?;

        let start = Instant::now();
        if existing.is_none() {
            self.fill_slots(maps, &programs, true)?;
            for operations in std::mem::take(&mut self.operations) {
                if let Some(Some(map)) = maps.get(operations.map) {
                    struct_ops::complete(operations, map, &programs);
                }
            }
        }
        self.times.maps += start.elapsed();

        self.pins.0.clear();
        Ok(Loaded {
            maps: match existing {
                Some(_) => Vec::new(),
                None => maps.iter().flatten().cloned().collect(),
            },
            programs,
            failures,
            times: self.times,
            losses: self.losses,
        })
    }
}

/// The BTF that the collection's programs were loaded with, if this process
/// may have it (`CAP_SYS_ADMIN`): types that maps and programs share must come
/// from the same.
fn object_btf_of(collection: &Collection) -> Option<OwnedFd> {
    let btf_id = |program: &Program| Some(sys::prog_info(program.as_fd()).ok()?.btf_id);
    let id = collection.programs().first().and_then(btf_id)?;
    if id == 0 {
        return None;
    }
    sys::fd_by_id(ObjectKind::Btf, id, 0).ok()
}

/// The BTF of those modules that have types of these names. One that cannot be
/// understood has none.
fn modules_with(kernel: &Btf<'_>, query: &NameQuery<'_>) -> Vec<KernelBtf> {
    let mut hits = Vec::new();
    KernelBtf::modules()
        .filter(|module| {
            hits.clear();
            let types = Btf::scan(module.as_bytes(), Some(kernel), query, &mut hits);
            types.is_ok() && !hits.is_empty()
        })
        .collect()
}
