//! The live maps and programs of an object, and how to load it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ebpf_manager_elf::edit::Patcher;
use ebpf_manager_elf::{Object, VariableSpec};
use ebpf_manager_sys::map_memory::MapMemory;
use ebpf_manager_sys::{SysError, fd};

use crate::attach_btf::AttachTo;
use crate::error::{LoadError, ProgramError};
use crate::kernel_btf::KernelBtf;
use crate::link::UsdtSpecs;
use crate::loader;
use crate::map::{Loss, Map};
use crate::program::Program;
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
    /// Who resolves CO-RE relocations; the loader unless set.
    pub core: CoreBy,
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
    /// Most threads that give programs to the kernel, the calling one
    /// included: 0, the default, for as many as there are CPUs that it may
    /// run on; 1 for one program after the other, on the calling thread.
    ///
    /// Threads named `ebpf-verify` are started only when the programs left
    /// are expected to take long enough, and joined before the load returns.
    /// Results, errors and logs are the same with any number.
    pub threads: usize,
    /// Programs, also copies, that may fail: one that cannot be linked, whose
    /// kernel symbols, types or attach target are missing, or that the kernel
    /// refuses is in [`Collection::failures`] and the load goes on. Slots of
    /// program arrays that name it stay empty.
    pub optional: Vec<String>,
    /// Programs to load once more, under another name.
    pub copies: Vec<ProgramCopy>,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions {
            pin_dir: PathBuf::from("/sys/fs/bpf"),
            kernel_btf: None,
            core: CoreBy::Loader,
            kernel_config: None,
            log_limit_bytes: 64 << 20,
            include: Vec::new(),
            exclude: Vec::new(),
            replace_maps: Vec::new(),
            attach_to: Vec::new(),
            patchers: Vec::new(),
            threads: 0,
            optional: Vec::new(),
            copies: Vec::new(),
        }
    }
}

/// Who resolves CO-RE relocations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CoreBy {
    /// The loader: on every kernel, and with [`LoadOptions::kernel_btf`]
    /// against another's types. If the verifier reaches an instruction that
    /// cannot work, the error says what this kernel lacks, and why.
    #[default]
    Loader,
    /// The kernel's verifier, from Linux 5.17 on; below that, for an object
    /// without function records, and with [`LoadOptions::kernel_btf`], the
    /// loader all the same. The kernel's types are not touched for it, which
    /// spares what reading them takes before Linux 6.16: some milliseconds
    /// and 5 MB. Patchers see instructions that are not relocated.
    Kernel,
}

/// One more copy of a program of an object: the same instructions, with
/// constants and maps of its own where it says so.
///
/// It is loaded by [`LoadOptions::copies`] together with the object, behind
/// the object's own programs, or later by [`Collection::load_copy`]. Where it
/// says nothing it is like the original, numbers set with
/// [`Object::set_symbol_constant`] and [`LoadOptions::patchers`] included.
#[derive(Debug)]
#[non_exhaustive]
pub struct ProgramCopy {
    /// C function name of the program to copy. That one need not be loaded
    /// itself.
    pub program: String,
    /// Name of the copy: of [`Collection::program`], in [`LoadOptions`], in
    /// errors, and, its first 15 bytes, in the kernel.
    pub name: String,
    /// Global variables that have other initial values for the copy, in this
    /// machine's byte order. The copy gets a map of its own for all variables
    /// of each section that they are in.
    pub variables: Vec<(String, Vec<u8>)>,
    /// Maps that the copy uses instead of those of the same name.
    pub maps: Vec<Map>,
    /// Called with the copy after [`LoadOptions::patchers`].
    pub patchers: Vec<Patcher>,
}

impl ProgramCopy {
    /// A copy called `name` of the C function `program`, without differences.
    pub fn new(program: impl Into<String>, name: impl Into<String>) -> ProgramCopy {
        ProgramCopy {
            program: program.into(),
            name: name.into(),
            variables: Vec::new(),
            maps: Vec::new(),
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
    failures: Vec<(String, Arc<ProgramError>)>,
    variables: Vec<VariableSpec>,
    /// By map: its memory, once a variable of it was used.
    memory: Vec<OnceLock<Option<MapMemory>>>,
    /// Once a USDT probe was attached.
    usdt: OnceLock<UsdtSpecs>,
    times: LoadTimes,
    losses: Vec<Loss>,
}

impl Collection {
    /// Loads an object: its BTF, its maps and its programs.
    ///
    /// On failure everything created is gone again, pins included.
    ///
    /// Linux before 5.11 counts maps and programs as locked memory: if it
    /// refuses one for that (`EPERM`), `RLIMIT_MEMLOCK` is raised as far as
    /// may be, for the whole process and for good. Nothing else changes it.
    ///
    /// # Errors
    /// [`LoadError`], naming the map or program. What fails of the programs in
    /// [`LoadOptions::optional`] is in [`Collection::failures`] instead.
    pub fn load(object: &Object, options: LoadOptions) -> Result<Collection, LoadError> {
        let loaded = loader::load(object, options, None)?;
        Ok(Collection {
            variables: variables(object, &loaded.maps),
            memory: loaded.maps.iter().map(|_| OnceLock::new()).collect(),
            usdt: OnceLock::new(),
            maps: loaded.maps,
            programs: loaded.programs,
            failures: loaded.failures,
            times: loaded.times,
            losses: loaded.losses,
        })
    }

    /// Loads one more copy of a program of the object that the collection was
    /// loaded from, on the collection's maps. The collection does not keep
    /// it.
    ///
    /// Of the options, those about maps and about which programs to load are
    /// not looked at.
    ///
    /// # Errors
    /// [`LoadError`]; [`LoadError::NoSuch`] also if `object` has other maps
    /// than the collection.
    pub fn load_copy(
        &self,
        object: &Object,
        copy: ProgramCopy,
        mut options: LoadOptions,
    ) -> Result<Program, LoadError> {
        let name = copy.name.clone();
        options.copies = vec![copy];
        options.optional.clear();
        let loaded = loader::load(object, options, Some(self))?;
        let program = loaded.programs.into_iter().next();
        program.ok_or(LoadError::NoSuch {
            kind: "program",
            name,
        })
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

    pub(crate) fn usdt_cell(&self) -> &OnceLock<UsdtSpecs> {
        &self.usdt
    }

    /// The optional programs that could not be loaded, in the object's order,
    /// each with its name and why.
    pub fn failures(&self) -> &[(String, Arc<ProgramError>)] {
        &self.failures
    }

    /// Why the optional program of this name could not be loaded; `None` if
    /// it could, or was not tried.
    pub fn failure(&self, name: &str) -> Option<&ProgramError> {
        let failure = self.failures.iter().find(|(failed, _)| failed == name);
        failure.map(|(_, error)| &**error)
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
    pub fn into_parts(mut self) -> (Vec<Map>, Vec<Program>) {
        (
            std::mem::take(&mut self.maps),
            std::mem::take(&mut self.programs),
        )
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        let maps = self.maps.drain(..).filter_map(Map::into_fd);
        let programs = self.programs.drain(..).map(Program::into_fd);
        // They were opened one after the other, so that few calls close all.
        fd::close_all(maps.chain(programs).collect());
    }
}

/// The variables whose maps were created, by the index of the map there.
fn variables(object: &Object, maps: &[Map]) -> Vec<VariableSpec> {
    let mut created = maps.iter().zip(0..).peekable();
    let places: Vec<Option<u32>> = object
        .maps()
        .iter()
        .map(|spec| created.next_if(|(map, _)| map.name() == spec.name))
        .map(|found| found.map(|(_, index)| index))
        .collect();
    let mut variables = object.variables().to_vec();
    variables.retain_mut(|variable| {
        let place = places.get(variable.map as usize).copied().flatten();
        variable.map = place.unwrap_or_default();
        place.is_some()
    });
    variables
}

/// Reads and parses an object file.
///
/// The file is read, not mapped: another process may change or truncate it.
///
/// # Errors
/// [`LoadError::Read`] or [`LoadError::Object`], both with the path.
pub fn open_object(path: impl AsRef<Path>) -> Result<Object, LoadError> {
    let path = path.as_ref();
    let bytes = read(path).map_err(|err| SysError::from_io("read", &err).with_path(path))?;
    Object::parse(bytes).map_err(|source| LoadError::Object {
        path: Some(path.to_owned()),
        source,
    })
}

/// A file's contents, with the fewest calls.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len() as usize;
    let mut bytes = vec![0; size];
    let mut len = 0;
    while len < size {
        match file.read(&mut bytes[len..]) {
            // It has shrunk.
            Ok(0) => break,
            Ok(more) => len += more,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Reads object files and links them into one ([`static_link`]), for
/// [`Object::parse`] or to be written.
///
/// # Errors
/// [`LoadError::Read`] or [`LoadError::StaticLink`], both with the path.
///
/// [`static_link`]: ebpf_manager_elf::static_link
pub fn link_objects(paths: &[impl AsRef<Path>]) -> Result<Vec<u8>, LoadError> {
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|err| SysError::from_io("read", &err).with_path(path))?;
        files.push((path.display().to_string(), bytes));
    }
    let inputs: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), &b[..])).collect();
    Ok(ebpf_manager_elf::static_link(&inputs)?)
}
