//! Errors, one enum per kind of object. Causes stay sources; what a message
//! needs to be acted on (name, path, likely cure) is in the variant.

use std::fmt;
use std::path::PathBuf;

use ebpf_manager_elf::ObjectError;
use ebpf_manager_elf::StaticLinkError;
use ebpf_manager_elf::btf::BtfError;
use ebpf_manager_elf::core_relo::CoreError;
use ebpf_manager_elf::edit::PatchError;
use ebpf_manager_elf::symbols::SymbolError;
use ebpf_manager_sys::abi::bpf::{AttachType, ProgramType};
use ebpf_manager_sys::{Errno, SysError};

use crate::cure::Cure;
use crate::link::{AttachedProgram, Mechanism};
use crate::verifier_log::{SourceLine, VerifierLog};

/// `": cure"` or nothing.
pub(crate) fn hint(cure: Option<&Cure>) -> String {
    cure.map(|c| format!("; {c}")).unwrap_or_default()
}

fn no_target(what: &str, name: &str) -> String {
    if name.is_empty() {
        format!("its section names no {what}; say which in the load options")
    } else {
        format!("no {what} {name} here (looked for in BTF)")
    }
}

/// A failed operation on a map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The kernel refused to create the map.
    #[error("map {map}: {source}{}", hint(cure.as_ref()))]
    Create {
        /// The map's name.
        map: String,
        /// The kernel's answer.
        source: SysError,
        /// What would help, if that shows.
        cure: Option<Cure>,
    },
    /// The specification cannot work.
    #[error("map {map}: {what}")]
    Spec {
        /// The map's name.
        map: String,
        /// What is wrong with it.
        what: String,
    },
    /// An element could not be read or written.
    #[error("map {map}: {source}")]
    Access {
        /// The map's name.
        map: String,
        /// The kernel's answer.
        source: SysError,
    },
    /// The map could not be pinned, or a pin could not be opened.
    #[error("map {map}: {source}{}", hint(cure.as_ref()))]
    Pin {
        /// The map's name.
        map: String,
        /// The kernel's answer, with the path.
        source: SysError,
        /// What would help, if that shows.
        cure: Option<Cure>,
    },
    /// A pinned map or a replacement differs from what the object declares.
    #[error("map {map}: {field} is {found}, the object declares {expected}{}",
        path.as_ref().map(|p| format!(" (pinned at {}: remove the pin, or pin elsewhere)", p.display())).unwrap_or_default())]
    Mismatch {
        /// The map's name.
        map: String,
        /// Where the other map is pinned, if it is.
        path: Option<PathBuf>,
        /// The field that differs.
        field: &'static str,
        /// The value that the object declares.
        expected: String,
        /// The value that the other map has.
        found: String,
    },
}

impl MapError {
    /// True if the kernel answered `errno`.
    pub fn is(&self, errno: Errno) -> bool {
        match self {
            MapError::Create { source, .. }
            | MapError::Access { source, .. }
            | MapError::Pin { source, .. } => source.is(errno),
            MapError::Spec { .. } | MapError::Mismatch { .. } => false,
        }
    }

    /// What would help, if that shows.
    pub fn cure(&self) -> Option<&Cure> {
        match self {
            MapError::Create { cure, .. } | MapError::Pin { cure, .. } => cure.as_ref(),
            _ => None,
        }
    }
}

/// A program that could not be loaded or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// The object refers to something that cannot be resolved.
    #[error("program {program}: {source}")]
    Link {
        /// C function name.
        program: String,
        /// The fault.
        source: ObjectError,
    },
    /// The section name does not say what kind of program it is.
    #[error("program {program}: section {section} names no program type; set one before loading")]
    Untyped {
        /// C function name.
        program: String,
        /// Section name as written.
        section: String,
    },
    /// The program uses a symbol that it does not define, and neither does
    /// this kernel.
    #[error("program {program}: instruction {insn} uses {symbol}, {reason}")]
    UndefinedSymbol {
        /// C function name.
        program: String,
        /// Instruction, counted from the start of the program.
        insn: u32,
        /// The symbol.
        symbol: String,
        /// Where it was looked for.
        reason: Box<MissingSymbol>,
    },
    /// The place that the program is loaded for does not exist here, or
    /// nothing says which it is.
    #[error("program {program}: {}", no_target(what, name))]
    NoAttachTarget {
        /// C function name.
        program: String,
        /// `"kernel function"`, `"tracepoint"`, `"LSM hook"`, `"iterator"` or
        /// `"function of a target program"`.
        what: &'static str,
        /// Its name; empty if none was given.
        name: String,
    },
    /// The program needs something that this build of the library leaves out.
    #[error("program {program}: {what}: left out of this build; the feature `{feature}` brings it")]
    LeftOut {
        /// C function name.
        program: String,
        /// What it needs.
        what: &'static str,
        /// The feature to enable.
        feature: &'static str,
    },
    /// The program needs the kernel's types and they cannot be had.
    #[error("program {program}: {source}")]
    KernelBtf {
        /// C function name.
        program: String,
        /// Why not.
        source: KernelBtfError,
    },
    /// A CO-RE relocation is malformed or ambiguous.
    #[error("program {program}: {source}")]
    CoRe {
        /// C function name.
        program: String,
        /// What is wrong.
        source: CoreError,
    },
    /// A patcher refused the program, or asked for a change that cannot be
    /// made.
    #[error("program {program}: {source}")]
    Patch {
        /// C function name.
        program: String,
        /// What is wrong.
        source: PatchError,
    },
    /// The verifier or the kernel refused the program.
    #[error(transparent)]
    Rejected(Box<Rejection>),
    /// An operation on a loaded program failed, or the map for a jump table
    /// could not be made.
    #[error("program {program}: {source}{}", hint(cure.as_ref()))]
    Operation {
        /// C function name.
        program: String,
        /// The kernel's answer.
        source: SysError,
        /// What would help, if that shows.
        cure: Option<Cure>,
    },
}

/// Why nothing stands for a symbol that a program uses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MissingSymbol {
    /// It is neither a symbol of the kernel nor a constant.
    #[error("which nothing defines")]
    Undefined,
    /// Declared as the kernel's, which this build does not look for.
    #[error("a symbol of the kernel, which only the feature `kernel-symbols` looks up")]
    LeftOut,
    /// `/proc/kallsyms` does not list it.
    #[error("which is not among this kernel's symbols")]
    NoAddress,
    /// `/proc/kallsyms` lists it with several addresses.
    #[error("of which this kernel has several")]
    Ambiguous,
    /// `/proc/kallsyms` shows this process no addresses.
    #[error("whose address this kernel hides: CAP_SYSLOG is missing, or kernel.kptr_restrict is 2")]
    Hidden,
    /// `/proc/kallsyms` cannot be read.
    #[error("but the kernel's symbols cannot be read: {0}")]
    NoSymbols(SysError),
    /// The kernel's BTF has no such function or variable.
    #[error("which neither this kernel's BTF nor that of a loaded module has")]
    NoType,
    /// The kernel has one of another type.
    #[error("which this kernel declares with another type")]
    OtherType,
    /// The kernel's BTF cannot be read.
    #[error("but {0}")]
    NoTypes(KernelBtfError),
    /// The kernel's configuration does not set the option.
    #[error("which this kernel's configuration does not set")]
    NotConfigured,
    /// The kernel's configuration cannot be read.
    #[error("but the kernel's configuration cannot be read: {0}")]
    NoConfig(SysError),
}

/// A program that the verifier or the kernel refused, with all that is known
/// about why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// C function name.
    pub program: String,
    /// Program type it was loaded as.
    pub program_type: ProgramType,
    /// The kernel's answer.
    pub source: SysError,
    /// The verifier's log, whole.
    pub log: VerifierLog,
    /// The instruction the verifier stopped at, counted from the start of the
    /// program.
    pub insn: Option<u32>,
    /// Its C source line, if the object has line information.
    pub source_line: Option<SourceLine>,
    /// What the loader could not resolve and the verifier stumbled over: a
    /// CO-RE relocation (kind, type, field and why this kernel cannot satisfy
    /// it), or a weak function that this kernel does not have.
    pub core: Option<String>,
    /// What would help, if that shows.
    pub cure: Option<Cure>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "program {} ({}): {}",
            self.program, self.program_type, self.source
        )?;
        if let Some(reason) = self.core.as_deref().or_else(|| self.log.summary()) {
            write!(f, ": {reason}")?;
        }
        if let Some(line) = &self.source_line {
            write!(f, "; at {line}")?;
        }
        f.write_str(&hint(self.cure.as_ref()))
    }
}

impl std::error::Error for Rejection {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl ProgramError {
    /// The verifier's log, if the kernel wrote one.
    pub fn verifier_log(&self) -> Option<&VerifierLog> {
        match self {
            ProgramError::Rejected(rejection) => Some(&rejection.log),
            _ => None,
        }
    }

    /// True if the kernel answered `errno`.
    pub fn is(&self, errno: Errno) -> bool {
        match self {
            ProgramError::Rejected(rejection) => rejection.source.is(errno),
            ProgramError::Operation { source, .. }
            | ProgramError::KernelBtf {
                source: KernelBtfError::Read { source, .. },
                ..
            } => source.is(errno),
            _ => false,
        }
    }

    /// What would help, if that shows.
    pub fn cure(&self) -> Option<&Cure> {
        match self {
            ProgramError::Rejected(rejection) => rejection.cure.as_ref(),
            ProgramError::Operation { cure, .. }
            | ProgramError::KernelBtf {
                source: KernelBtfError::Read { cure, .. },
                ..
            } => cure.as_ref(),
            _ => None,
        }
    }
}

/// An object that could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read the object: {source}")]
    Read {
        /// The kernel's answer, with the path.
        #[from]
        source: SysError,
    },
    /// The file is not a usable eBPF object.
    #[error("{}{source}", path.as_ref().map(|p| format!("{}: ", p.display())).unwrap_or_default())]
    Object {
        /// Path of the file, if it came from one.
        path: Option<PathBuf>,
        /// The fault.
        source: ObjectError,
    },
    /// Object files cannot be linked into one.
    #[error(transparent)]
    StaticLink {
        /// The fault, with the file's path.
        #[from]
        source: StaticLinkError,
    },
    /// The object's own BTF was refused by the kernel.
    #[error("the object's BTF: {source}: {}{}", log.summary().unwrap_or("no reason given"), hint(cure.as_ref()))]
    Btf {
        /// The kernel's answer.
        source: SysError,
        /// The kernel's log, whole.
        log: VerifierLog,
        /// What would help, if that shows.
        cure: Option<Cure>,
    },
    /// The running kernel's BTF is needed and cannot be had.
    #[error(transparent)]
    KernelBtf(#[from] KernelBtfError),
    /// A map could not be created.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A program could not be loaded.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The options name a map or program that the object does not have.
    #[error("the object has no {kind} {name}")]
    NoSuch {
        /// `"map"` or `"program"`.
        kind: &'static str,
        /// The name.
        name: String,
    },
}

impl LoadError {
    /// The log of the verifier, or of the kernel's BTF checker, if it wrote one.
    pub fn verifier_log(&self) -> Option<&VerifierLog> {
        match self {
            LoadError::Btf { log, .. } => Some(log),
            LoadError::Program(err) => err.verifier_log(),
            _ => None,
        }
    }

    /// True if the kernel answered `errno`.
    pub fn is(&self, errno: Errno) -> bool {
        match self {
            LoadError::Read { source }
            | LoadError::Btf { source, .. }
            | LoadError::KernelBtf(KernelBtfError::Read { source, .. }) => source.is(errno),
            LoadError::Map(err) => err.is(errno),
            LoadError::Program(err) => err.is(errno),
            _ => false,
        }
    }

    /// What would help, if that shows.
    pub fn cure(&self) -> Option<&Cure> {
        match self {
            LoadError::Btf { cure, .. }
            | LoadError::KernelBtf(KernelBtfError::Read { cure, .. }) => cure.as_ref(),
            LoadError::Map(err) => err.cure(),
            LoadError::Program(err) => err.cure(),
            _ => None,
        }
    }
}

/// The kernel's BTF could not be read or understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelBtfError {
    /// The file could not be read.
    #[error("the kernel's BTF: {source}{}", hint(cure.as_ref()))]
    Read {
        /// The kernel's answer, with the path.
        source: SysError,
        /// What would help, if that shows.
        cure: Option<Cure>,
    },
    /// The file is damaged.
    #[error("the kernel's BTF: {source}")]
    Parse {
        /// The fault.
        source: BtfError,
    },
}

/// A program that could not be attached, or a link operation that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The place to attach to does not exist.
    #[error("no {kind} {name} in this kernel: {source}{}", hint(cure.as_ref()))]
    NoTarget {
        /// `"tracepoint"`, `"raw tracepoint"`, …
        kind: &'static str,
        /// Its name.
        name: String,
        /// The kernel's answer.
        source: SysError,
        /// What would help, if that shows.
        cure: Option<Cure>,
    },
    /// A user binary has no such function, or more than one.
    #[error("{}: {source}", path.display())]
    Symbol {
        /// The binary.
        path: PathBuf,
        /// What is wrong.
        source: SymbolError,
    },
    /// The program is of the wrong type for this hook.
    #[error("a {found} program cannot be attached to a {hook}; it takes {expected}")]
    WrongType {
        /// The hook.
        hook: &'static str,
        /// The type the hook takes.
        expected: ProgramType,
        /// The program's type.
        found: ProgramType,
    },
    /// The program was loaded for another hook of the same family.
    #[error(
        "the program was loaded for {found}, not for {hook}; set its attach type before loading"
    )]
    WrongAttachType {
        /// The hook that was asked for.
        hook: AttachType,
        /// The hook it was loaded for.
        found: AttachType,
    },
    /// The kernel refused to attach. Every way that was tried is listed, the
    /// newest first.
    #[error("attach to {target}: {}{}", attempts(tried), hint(cure.as_ref()))]
    Attach {
        /// The hook and its target: `"tracepoint sched/sched_process_exec"`.
        target: String,
        /// Mechanism and the kernel's answer to it.
        tried: Vec<(&'static str, SysError)>,
        /// What would help, if that shows.
        cure: Option<Cure>,
    },
    /// There is no such network interface.
    #[error("no {interface}: {source}")]
    NoInterface {
        /// Name or index, and the namespace if it was named.
        interface: String,
        /// The kernel's answer.
        source: SysError,
    },
    /// Another program is in the way.
    #[error("attach to {target}: {by} is attached there: {source}")]
    AlreadyAttached {
        /// The hook and its target: `"XDP of eth0"`.
        target: String,
        /// The program.
        by: AttachedProgram,
        /// The kernel's answer.
        source: SysError,
    },
    /// What holds this attachment has no such operation on any kernel.
    #[error("link to {target}: a {mechanism} cannot {operation}")]
    Impossible {
        /// The hook and its target.
        target: String,
        /// How it is attached.
        mechanism: Mechanism,
        /// `"be pinned"`, `"change its program"`, …
        operation: &'static str,
    },
    /// The link could not be pinned, or a pin could not be opened.
    #[error("{source}{}", hint(cure.as_ref()))]
    Pin {
        /// The kernel's answer, with the path.
        source: SysError,
        /// What would help, if that shows.
        cure: Option<Cure>,
    },
    /// The link could not be taken down.
    #[error("detach from {target}: {source}")]
    Detach {
        /// The hook and its target.
        target: String,
        /// The kernel's answer.
        source: SysError,
    },
    /// Another operation on a link failed.
    #[error("link to {target}: {source}")]
    Operation {
        /// The hook and its target.
        target: String,
        /// The kernel's answer.
        source: SysError,
    },
    /// The kernel lacks the feature.
    #[error("{feature} needs Linux {since}")]
    Unsupported {
        /// What is missing.
        feature: &'static str,
        /// First version that has it.
        since: &'static str,
    },
}

fn attempts(tried: &[(&'static str, SysError)]) -> String {
    let lines: Vec<String> = tried
        .iter()
        .map(|(how, err)| format!("by {how}: {err}"))
        .collect();
    lines.join(", then ")
}

impl LinkError {
    /// What would help, if that shows.
    pub fn cure(&self) -> Option<&Cure> {
        match self {
            LinkError::NoTarget { cure, .. }
            | LinkError::Attach { cure, .. }
            | LinkError::Pin { cure, .. } => cure.as_ref(),
            _ => None,
        }
    }

    /// Puts what was tried before in front of what was tried.
    #[cold]
    pub(crate) fn after(mut self, mut before: Vec<(&'static str, SysError)>) -> LinkError {
        if let LinkError::Attach { tried, .. } = &mut self {
            before.append(tried);
            *tried = before;
        }
        self
    }

    /// True if the kernel's last answer was `errno`.
    pub fn is(&self, errno: Errno) -> bool {
        match self {
            LinkError::NoTarget { source, .. }
            | LinkError::NoInterface { source, .. }
            | LinkError::AlreadyAttached { source, .. }
            | LinkError::Pin { source, .. }
            | LinkError::Detach { source, .. }
            | LinkError::Operation { source, .. } => source.is(errno),
            LinkError::Attach { tried, .. } => tried.last().is_some_and(|(_, e)| e.is(errno)),
            LinkError::Symbol { .. }
            | LinkError::WrongType { .. }
            | LinkError::WrongAttachType { .. }
            | LinkError::Unsupported { .. }
            | LinkError::Impossible { .. } => false,
        }
    }
}

/// A buffer that could not be opened or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReaderError {
    /// The map is of another type.
    #[error("map {map} is of type {found}, not {expected}")]
    WrongMap {
        /// The map's name.
        map: String,
        /// Type the reader needs.
        expected: ebpf_manager_sys::abi::bpf::MapType,
        /// Type the map has.
        found: ebpf_manager_sys::abi::bpf::MapType,
    },
    /// The kernel refused the mapping, or the wait.
    #[error("buffer {map}: {source}")]
    Kernel {
        /// The map's name.
        map: String,
        /// The kernel's answer.
        source: SysError,
    },
}

impl ReaderError {
    /// True if the kernel answered `errno`.
    pub fn is(&self, errno: Errno) -> bool {
        match self {
            ReaderError::Kernel { source, .. } => source.is(errno),
            ReaderError::WrongMap { .. } => false,
        }
    }
}
