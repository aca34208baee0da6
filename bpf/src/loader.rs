//! Loading an object: BTF, maps, contents, programs, in the order in which
//! they depend on each other.

use std::borrow::Cow;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_manager_elf::btf::{Btf, NameHit, NameQuery};
use ebpf_manager_elf::core_relo::{Resolver, add_roots};
use ebpf_manager_elf::sort::sort;
use ebpf_manager_elf::{
    FixupTarget, LinkedProgram, Linker, MapSpec, Object, Pinning, ProgramSpec, Slot,
};
use ebpf_manager_sys::Errno;
use ebpf_manager_sys::abi::bpf::ProgramType;
use ebpf_manager_sys::abi::insn::Insn;
use ebpf_manager_sys::bpf::{self as sys, ObjectKind};
use ebpf_manager_sys::proc::KernelVersion;

use crate::attach_btf::{self, AttachPoint, AttachTo, Wanted};
use crate::collection::{Collection, CoreBy, LoadOptions, LoadTimes, ProgramCopy};
use crate::core::{self, CoreRelocator};
use crate::error::{LoadError, MapError, ProgramError};
use crate::externs::Externs;
use crate::kernel_btf::KernelBtf;
use crate::map::{Loss, Map, MapContext};
use crate::object_btf;
use crate::program::{Program, ProgramContext};
use crate::struct_ops::{self, Operations};
use crate::verify::{self, Prepared, Steps};

/// What a load leaves behind.
pub(crate) struct Loaded {
    pub(crate) maps: Vec<Map>,
    pub(crate) programs: Vec<Program>,
    pub(crate) failures: Vec<(String, ProgramError)>,
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
    let by_kernel = options.core == CoreBy::Kernel
        && options.kernel_btf.is_none()
        && linker.kernel_can_relocate()
        && KernelVersion::current().is_ok_and(|version| version.code() >= CORE_IN_KERNEL);
    let mut query = NameQuery::new();
    let local = linker.btf().filter(|_| !relos.is_empty() && !by_kernel);
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

/// A program to load.
#[derive(Debug)]
struct Entry<'o> {
    /// As the object has it; under another name for a copy.
    spec: Cow<'o, ProgramSpec>,
    /// Index of the copy it is.
    copy: Option<usize>,
    /// Its failure ends the load.
    required: bool,
    /// Why it is not even tried.
    failure: Option<ProgramError>,
    point: AttachPoint,
    /// By index, maps that it uses instead of the object's.
    maps: Vec<(usize, Map)>,
}

impl Entry<'_> {
    /// Keeps the failure, if it may fail.
    fn fail(&mut self, error: ProgramError) -> Result<(), LoadError> {
        if self.required {
            return Err(error.into());
        }
        self.failure = Some(error);
        Ok(())
    }

    /// The map that it uses for the object's of this index.
    fn map<'m>(&'m self, maps: &'m [Option<Map>], index: usize) -> Option<&'m Map> {
        let own = self.maps.iter().find(|(at, _)| *at == index);
        own.map(|(_, map)| map)
            .or_else(|| maps.get(index)?.as_ref())
    }
}

/// The programs to load, the object's before the copies.
fn entries<'o>(
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

/// Pins made by a load, removed again unless it succeeds.
#[derive(Debug, Default)]
struct Pins(Vec<PathBuf>);

impl Drop for Pins {
    fn drop(&mut self) {
        for path in self.0.drain(..).rev() {
            // A pin that is gone already needs no undoing.
            let _ = std::fs::remove_file(path);
        }
    }
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

    /// The map for a specification: a replacement, a pin that exists, or a new
    /// one.
    fn obtain_map(&mut self, index: usize, spec: &MapSpec) -> Result<Map, LoadError> {
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
            match Map::from_pin(&spec.name, path) {
                Ok(map) => {
                    map.check(spec, Some(path))?;
                    return Ok(map);
                }
                Err(err) if err.is(Errno::ENOENT) => {}
                Err(err) => return Err(err.into()),
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
            map.pin(&path)?;
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
    fn own_maps(
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
    fn fill_slots(
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

    /// Links, relocates, patches and loads programs. Those that may fail and
    /// do are returned by name.
    fn load_programs(
        &mut self,
        mut entries: Vec<Entry<'_>>,
        copies: &mut [ProgramCopy],
        mut core: CoreRelocator<'_>,
        maps: &[Option<Map>],
    ) -> Result<Outcome, LoadError> {
        let start = Instant::now();
        let mut relocating = Duration::ZERO;
        let license = self.object.license().unwrap_or_default();
        let license = CString::new(license).unwrap_or_default();
        let mut patchers = std::mem::take(&mut self.options.patchers);
        let mut failed: Vec<_> = entries.iter_mut().map(|e| e.failure.take()).collect();
        let (this, entries) = (&*self, entries.as_slice());
        let (object, linker, externs) = (this.object, this.linker, &this.externs);

        let mut prepare = |index: usize, program: &mut Prepared| {
            let Some(entry) = entries.get(index) else {
                return Ok(());
            };
            let spec = entry.spec.as_ref();
            if let Some(error) = failed.get_mut(index).and_then(Option::take) {
                return Err(error);
            }
            let start = Instant::now();
            let linked = &mut program.linked;
            linker
                .link(spec, linked)
                .map_err(|source| ProgramError::Link {
                    program: spec.name.clone(),
                    source,
                })?;
            core.apply(spec, linked, &mut program.poisons)?;
            let copy = entry.copy.and_then(|at| copies.get_mut(at));
            let own = copy.into_iter().flat_map(|copy| &mut copy.patchers);
            for patcher in patchers.iter_mut().chain(own) {
                patcher
                    .run(spec, linker, linked)
                    .map_err(|source| ProgramError::Patch {
                        program: spec.name.clone(),
                        source,
                    })?;
            }
            apply_fixups(object, externs, entry, maps, linked)?;
            core.hand_over(linked, &mut program.core_relos);
            relocating += start.elapsed();
            Ok(())
        };
        let btf = this.btf.as_ref().map(AsFd::as_fd);
        let modules = externs.descriptors();
        let kernel_version = object.kernel_version().unwrap_or(0);
        let log_limit = this.options.log_limit_bytes;
        let license = license.as_c_str();
        let verify = |index: usize, program: &Prepared| {
            let entry = &entries[index];
            let context = ProgramContext {
                attach_btf_id: entry.point.btf_id,
                attach_to: entry.point.of(),
                member: entry.point.member,
                modules: &modules,
                license,
                kernel_version,
                btf,
                log_limit,
                core_relos: &program.core_relos,
            };
            Program::load(
                &entry.spec,
                &program.linked,
                linker,
                context,
                &|id, insn| {
                    core::explain(program, linker, id, insn)
                        .or_else(|| externs.explain(id))
                        .or_else(|| explain_skipped(object, id))
                },
            )
        };
        let verdicts = verify::run(
            entries.len(),
            this.options.threads,
            &mut Steps {
                prepare: &mut prepare,
                verify: &verify,
                required: &|index| entries.get(index).is_none_or(|entry| entry.required),
            },
        );

        let mut programs = Vec::with_capacity(entries.len());
        let mut failures = Vec::new();
        for (entry, verdict) in entries.iter().zip(verdicts) {
            match verdict {
                Some(Ok(program)) => programs.push(program),
                Some(Err(err)) if entry.required => return Err(err.into()),
                Some(Err(err)) => failures.push((entry.spec.name.clone(), err)),
                None => {}
            }
        }
        self.times.relocate += relocating;
        self.times.verify += start.elapsed().saturating_sub(relocating);
        Ok((programs, failures))
    }
}

/// Programs, and those that failed.
type Outcome = (Vec<Program>, Vec<(String, ProgramError)>);

/// Puts descriptors, and what stands for externs, where instructions wait for
/// them.
fn apply_fixups(
    object: &Object,
    externs: &Externs<'_>,
    entry: &Entry<'_>,
    maps: &[Option<Map>],
    linked: &mut LinkedProgram,
) -> Result<(), ProgramError> {
    let descriptor = |index: usize| entry.map(maps, index).map(|m| m.as_fd().as_raw_fd());
    let config = object.config_map().and_then(descriptor).unwrap_or(-1);
    for fixup in &linked.fixups {
        match fixup.target {
            FixupTarget::Map(index) | FixupTarget::MapValue(index) => {
                let at = fixup.insn as usize;
                if let Some(words) = linked.insns.get_mut(at..at + 2) {
                    match descriptor(index as usize) {
                        Some(fd) => words[0].imm = fd,
                        None => words.fill(Insn::call((NO_MAP + index.min(NO_MAP_RANGE)) as i32)),
                    }
                }
            }
            FixupTarget::Extern(index) => {
                let at = fixup.insn as usize;
                let applied = externs.apply(index, &mut linked.insns, at, config);
                applied.map_err(|reason| {
                    let symbol = object.externs().get(index as usize);
                    ProgramError::UndefinedSymbol {
                        program: entry.spec.name.clone(),
                        insn: fixup.insn,
                        symbol: symbol.map(|s| s.name.clone()).unwrap_or_default(),
                        reason: Box::new(reason),
                    }
                })?;
            }
        }
    }
    Ok(())
}

/// Helper number that stands where a program uses a map that was not created,
/// plus the index of the map: the verifier names it if the place can be
/// reached. libbpf counts from the same number.
const NO_MAP: u32 = 2_001_000_000;

/// Maps told apart by it.
const NO_MAP_RANGE: u32 = 999_999;

/// What the verifier stumbled over when it reports an unknown function of
/// this number.
fn explain_skipped(object: &Object, function: u32) -> Option<String> {
    let index = function.checked_sub(NO_MAP)? as usize;
    let map = object.maps().get(index).filter(|map| map.skip)?;
    Some(format!("uses the map {}, which is not created", map.name))
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

/// Makes the directory for pins, if its parent exists. What goes wrong shows
/// when the pin is made.
fn make_dir(path: &Path) {
    let _ = std::fs::create_dir(path);
}
