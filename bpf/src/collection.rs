//! Loading an object: BTF, maps, contents, programs, in the order in which
//! they depend on each other.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ebpf_manager_elf::btf::NameQuery;
use ebpf_manager_elf::core_relo::{Resolver, add_roots};
use ebpf_manager_elf::edit::Patcher;
use ebpf_manager_elf::{
    FixupTarget, LinkedProgram, Linker, MapSpec, Object, Pinning, ProgramSpec, Slot, VariableSpec,
};
use ebpf_manager_sys::abi::bpf::ProgramType;
use ebpf_manager_sys::map_memory::MapMemory;
use ebpf_manager_sys::{Errno, SysError};

use crate::attach_btf::{self, AttachPoint, AttachTo};
use crate::core::CoreRelocator;
use crate::error::{LoadError, MapError, ProgramError};
use crate::externs::Externs;
use crate::kernel_btf::KernelBtf;
use crate::map::{Loss, Map, MapContext};
use crate::object_btf;
use crate::program::{Program, ProgramContext};
use crate::variable::Variable;

/// How to load an object. Start from `Default`.
#[derive(Debug)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Directory for maps that the object pins by name; `/sys/fs/bpf` unless
    /// set.
    pub pin_dir: PathBuf,
    /// BTF to resolve CO-RE relocations against instead of the running
    /// kernel's.
    pub kernel_btf: Option<Arc<KernelBtf>>,
    /// Text of a kernel configuration (`CONFIG_BPF=y` and so on, a line each)
    /// to use instead of the running kernel's, which is read from
    /// `/proc/config.gz` (with the feature `kconfig-gz`), `/boot` or
    /// `/lib/modules`. Read only if the object has `__kconfig` variables.
    pub kernel_config: Option<Vec<u8>>,
    /// Largest buffer for the verifier's log, in bytes; 64 MiB unless set.
    pub log_limit_bytes: usize,
    /// Programs to load although the object says no (`SEC("?…")`).
    pub include: Vec<String>,
    /// Programs not to load.
    pub exclude: Vec<String>,
    /// Maps to use instead of creating those of the same name.
    pub replace_maps: Vec<Map>,
    /// Where programs go that are loaded for their hook (fentry and its kin,
    /// tp_btf, LSM, iterators), if not where their section says; freplace
    /// programs need one, which names the program to change.
    pub attach_to: Vec<AttachTo>,
    /// Called with every program, in this order, after linking and CO-RE and
    /// before it is loaded, to look at its instructions and change them.
    ///
    /// ```
    /// use ebpf_manager_bpf::LoadOptions;
    /// use ebpf_manager_bpf::elf::edit::{PatchError, Patcher};
    ///
    /// let mut options = LoadOptions::default();
    /// options.patchers.push(Patcher::new(|program, editor| {
    ///     match editor.set_constant("sampling_rate", 100)? {
    ///         0 if program.name == "on_packet" => Err(PatchError::refused("no sampling_rate")),
    ///         _ => Ok(()),
    ///     }
    /// }));
    /// ```
    pub patchers: Vec<Patcher>,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            pin_dir: PathBuf::from("/sys/fs/bpf"),
            kernel_btf: None,
            kernel_config: None,
            log_limit_bytes: 64 << 20,
            include: Vec::new(),
            exclude: Vec::new(),
            replace_maps: Vec::new(),
            attach_to: Vec::new(),
            patchers: Vec::new(),
        }
    }
}

/// Time spent in each phase of a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// Reading sections, symbols and map definitions.
    pub parse: Duration,
    /// Laying out programs and resolving CO-RE, kernel BTF included.
    pub relocate: Duration,
    /// Creating and filling maps, the object's BTF included.
    pub maps: Duration,
    /// Loading programs: the kernel's verifier and compiler.
    pub verify: Duration,
}

/// The live maps and programs of one object.
///
/// Dropping it closes all of them; what is attached or pinned lives on.
#[derive(Debug)]
pub struct Collection {
    maps: Vec<Map>,
    programs: Vec<Program>,
    variables: Vec<VariableSpec>,
    /// By map: its memory, once a variable of it was used.
    memory: Vec<OnceLock<Option<MapMemory>>>,
    times: LoadTimes,
    losses: Vec<Loss>,
}

impl Collection {
    /// Loads an object: its BTF, its maps and its programs.
    ///
    /// On failure everything created is gone again, pins included.
    ///
    /// # Errors
    /// [`LoadError`], naming the map or program.
    pub fn load(object: &Object, options: LoadOptions) -> Result<Collection, LoadError> {
        let start = Instant::now();
        let linker = object
            .linker()
            .map_err(|source| LoadError::Object { path: None, source })?;

        let mut loader = Loader::new(object, options, &linker)?;

        // The kernel's types are walked once, for all names the object asks
        // for, and only if it asks for any.
        let targets = loader
            .wanted
            .iter()
            .map(|spec| attach_btf::wanted(spec, &loader.options.attach_to))
            .collect::<Result<Vec<_>, _>>()?;
        let mut query = NameQuery::new();
        let local = linker
            .btf()
            .filter(|_| linker.core_relos().next().is_some());
        if let Some(local) = local {
            add_roots(&mut query, local, linker.core_relos());
        }
        attach_btf::add_names(&mut query, &targets);
        query.finish();
        let kernel = match (query.is_empty(), &loader.options.kernel_btf) {
            (true, _) => None,
            (false, Some(btf)) => Some(Arc::clone(btf)),
            (false, None) => Some(KernelBtf::vmlinux()?),
        };
        let mut hits = Vec::new();
        let target = match &kernel {
            Some(kernel) => Some(kernel.scan(&query, &mut hits)?),
            None => None,
        };
        loader.attach_points = attach_btf::resolve(
            &loader.wanted,
            &targets,
            &loader.options.attach_to,
            &query,
            target.as_ref().map(|btf| (btf, hits.as_slice())),
        )?;
        let resolver = local.map(|local| {
            let mut resolver = Resolver::new(local, &query);
            if let Some(target) = &target {
                resolver.add_target(target, hits);
            }
            resolver
        });

        loader.times.relocate = start.elapsed();
        loader.run(CoreRelocator::new(resolver))
    }

    /// All maps, in the object's order.
    pub fn maps(&self) -> &[Map] {
        &self.maps
    }

    /// The map of this name.
    pub fn map(&self, name: &str) -> Option<&Map> {
        self.maps.iter().find(|m| m.name() == name)
    }

    /// All programs that were loaded, in the object's order.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// The program whose C function has this name.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.programs.iter().find(|p| p.name() == name)
    }

    /// The global variable of this name.
    pub fn variable(&self, name: &str) -> Option<Variable<'_>> {
        let spec = self.variables.iter().find(|v| v.name == name)?;
        let index = spec.map as usize;
        Some(Variable {
            spec,
            map: self.maps.get(index)?,
            memory: self.memory.get(index)?,
        })
    }

    /// Time spent in each phase. `parse` is the caller's to fill in.
    pub fn times(&self) -> LoadTimes {
        self.times
    }

    /// What this kernel could not give the collection as a whole; maps and
    /// programs list their own.
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// Takes the collection apart.
    pub fn into_parts(self) -> (Vec<Map>, Vec<Program>) {
        (self.maps, self.programs)
    }
}

/// One load in progress. Owns what has been created so far.
struct Loader<'o> {
    object: &'o Object,
    options: LoadOptions,
    linker: &'o Linker<'o>,
    externs: Externs<'o>,
    wanted: Vec<&'o ProgramSpec>,
    /// By wanted program.
    attach_points: Vec<AttachPoint>,
    btf: Option<OwnedFd>,
    maps: Vec<Map>,
    programs: Vec<Program>,
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
    fn new(
        object: &'o Object,
        options: LoadOptions,
        linker: &'o Linker<'o>,
    ) -> Result<Loader<'o>, LoadError> {
        let unknown = options
            .include
            .iter()
            .chain(&options.exclude)
            .map(String::as_str)
            .chain(options.attach_to.iter().map(AttachTo::name))
            .find(|name| object.program(name).is_none())
            .map(|name| ("program", name))
            .or_else(|| {
                let unknown = options
                    .replace_maps
                    .iter()
                    .find(|m| object.map(m.name()).is_none());
                unknown.map(|map| ("map", map.name()))
            });
        if let Some((kind, name)) = unknown {
            return Err(LoadError::NoSuch {
                kind,
                name: name.to_owned(),
            });
        }
        let wanted: Vec<_> = object
            .programs()
            .iter()
            .filter(|p| {
                (p.autoload || options.include.contains(&p.name))
                    && !options.exclude.contains(&p.name)
            })
            .collect();
        for program in &wanted {
            if program.program_type == ProgramType::UNSPEC {
                return Err(LoadError::Program(ProgramError::Untyped {
                    program: program.name.clone(),
                    section: program.section.clone(),
                }));
            }
        }
        let externs = Externs::resolve(object, &wanted, options.kernel_config.as_deref())
            .map_err(|source| LoadError::Object { path: None, source })?;
        Ok(Loader {
            object,
            options,
            linker,
            externs,
            wanted,
            attach_points: Vec::new(),
            btf: None,
            maps: Vec::new(),
            programs: Vec::new(),
            pins: Pins::default(),
            times: LoadTimes::default(),
            losses: Vec::new(),
        })
    }

    fn run(mut self, core: CoreRelocator<'_>) -> Result<Collection, LoadError> {
        let start = Instant::now();
        let (btf, losses) = object_btf::load(self.object)?;
        self.btf = btf;
        self.losses = losses;
        self.create_maps()?;
        self.fill_slots(false)?;
        self.times.maps += start.elapsed();

        self.load_programs(core)?;

        let start = Instant::now();
        self.fill_slots(true)?;
        self.times.maps += start.elapsed();

        self.pins.0.clear();
        Ok(Collection {
            variables: self.object.variables().to_vec(),
            memory: self.maps.iter().map(|_| OnceLock::new()).collect(),
            maps: self.maps,
            programs: self.programs,
            times: self.times,
            losses: self.losses,
        })
    }

    fn create_maps(&mut self) -> Result<(), LoadError> {
        for (index, spec) in self.object.maps().iter().enumerate() {
            let map = self.obtain_map(index, spec)?;
            self.maps.push(map);
        }
        Ok(())
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
        };
        let map = Map::create_in(spec, context)?;
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

    /// Static initialisers: inner maps before programs are loaded, tail-call
    /// targets after.
    fn fill_slots(&self, programs: bool) -> Result<(), LoadError> {
        for (index, spec) in self.object.maps().iter().enumerate() {
            for (key, slot) in &spec.slots {
                let fd = match slot {
                    Slot::Map(name) if !programs => self
                        .maps
                        .iter()
                        .find(|m| m.name() == name)
                        .map(|m| m.as_fd().as_raw_fd()),
                    // A target that is not loaded leaves its slot empty: the
                    // tail call then falls through, as it does for any index.
                    Slot::Program(name) if programs => self
                        .programs
                        .iter()
                        .find(|p| p.name() == name)
                        .map(AsRawFd::as_raw_fd),
                    _ => continue,
                };
                if let (Some(fd), Some(map)) = (fd, self.maps.get(index)) {
                    map.update(&key.to_ne_bytes(), &fd.to_ne_bytes())?;
                }
            }
        }
        Ok(())
    }

    fn load_programs(&mut self, mut core: CoreRelocator<'_>) -> Result<(), LoadError> {
        let license = self.object.license().unwrap_or_default();
        let license = CString::new(license).unwrap_or_default();
        let mut linked = LinkedProgram::default();
        for (at, spec) in std::mem::take(&mut self.wanted).into_iter().enumerate() {
            let start = Instant::now();
            self.linker
                .link(spec, &mut linked)
                .map_err(|source| ProgramError::Link {
                    program: spec.name.clone(),
                    source,
                })?;
            core.apply(spec, &mut linked)?;
            for patcher in &mut self.options.patchers {
                patcher
                    .run(spec, self.linker, &mut linked)
                    .map_err(|source| ProgramError::Patch {
                        program: spec.name.clone(),
                        source,
                    })?;
            }
            self.apply_fixups(spec, &mut linked)?;
            self.times.relocate += start.elapsed();

            let start = Instant::now();
            let point = self.attach_points.get(at);
            let context = ProgramContext {
                attach_btf_id: point.map_or(0, |point| point.btf_id),
                attach_to: point.and_then(AttachPoint::of),
                license: &license,
                kernel_version: self.object.kernel_version().unwrap_or(0),
                btf: self.btf.as_ref().map(AsFd::as_fd),
                log_limit: self.options.log_limit_bytes,
            };
            let program = Program::load(spec, &linked, self.linker, context, &|id| {
                core.explain(id).or_else(|| self.externs.explain(id))
            })?;
            self.programs.push(program);
            self.times.verify += start.elapsed();
        }
        Ok(())
    }

    /// Puts descriptors, and what stands for externs, where instructions wait
    /// for them.
    fn apply_fixups(
        &self,
        spec: &ProgramSpec,
        linked: &mut LinkedProgram,
    ) -> Result<(), ProgramError> {
        let descriptor = |index: usize| self.maps.get(index).map(|m| m.as_fd().as_raw_fd());
        let config = self.object.config_map().and_then(descriptor).unwrap_or(-1);
        for fixup in &linked.fixups {
            match fixup.target {
                FixupTarget::Map(index) | FixupTarget::MapValue(index) => {
                    let insn = linked.insns.get_mut(fixup.insn as usize);
                    if let (Some(insn), Some(fd)) = (insn, descriptor(index as usize)) {
                        insn.imm = fd;
                    }
                }
                FixupTarget::Extern(index) => {
                    let at = fixup.insn as usize;
                    let applied = self.externs.apply(index, &mut linked.insns, at, config);
                    applied.map_err(|reason| {
                        let symbol = self.object.externs().get(index as usize);
                        ProgramError::UndefinedSymbol {
                            program: spec.name.clone(),
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
}

/// Makes the directory for pins, if its parent exists. What goes wrong shows
/// when the pin is made.
fn make_dir(path: &Path) {
    let _ = std::fs::create_dir(path);
}

/// Reads and parses an object file.
///
/// The file is read, not mapped: another process may change or truncate it.
///
/// # Errors
/// [`LoadError::Read`] or [`LoadError::Object`], both with the path.
pub fn open_object(path: impl AsRef<Path>) -> Result<Object, LoadError> {
    let path = path.as_ref();
    let bytes =
        std::fs::read(path).map_err(|err| SysError::from_io("read", &err).with_path(path))?;
    Object::parse(bytes).map_err(|source| LoadError::Object {
        path: Some(path.to_owned()),
        source,
    })
}
