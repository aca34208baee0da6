//! What an object file declares: maps, programs, variables, externs. Plain
//! data that a caller may read and edit before anything is created.

use ebpf_manager_sys::abi::bpf::{AttachType, MapFlags, MapType, ProgramFlags, ProgramType};

use crate::btf::TypeId;
use crate::externs::ExternKind;
use crate::image::Bytes;

/// Description of a map, as an object declares it or a caller builds it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct MapSpec {
    /// Name in the object: the C variable, or the section for global data
    /// (`".rodata"`).
    pub name: String,
    /// Map type.
    pub map_type: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Number of elements; bytes for ring buffers.
    ///
    /// 0 is completed before creation where the type allows it: the number of
    /// possible CPUs for perf event arrays.
    pub max_entries: u32,
    /// Creation flags.
    pub flags: MapFlags,
    /// NUMA node for the map's memory.
    pub numa_node: Option<u32>,
    /// Type-specific extra value. Needs Linux 5.16 when not 0.
    pub map_extra: u64,
    /// Whether and where the object wants the map pinned.
    pub pinning: Pinning,
    /// BTF id of the key type in the object's BTF; 0 for none.
    pub key_type_id: u32,
    /// BTF id of the value type in the object's BTF; 0 for none.
    pub value_type_id: u32,
    /// Declared `extern`: another object defines the map. It must be replaced
    /// by a live one, or be pinned already; it is not created.
    pub external: bool,
    /// Definition of the inner map of a map of maps.
    pub inner: Option<Box<MapSpec>>,
    /// Slots filled right after creation: inner maps and tail-call targets
    /// that the object initialises statically.
    pub slots: Vec<(u32, Slot)>,
    /// Initial content of the single value of a global-data map, or of the
    /// start of an arena.
    pub contents: Contents,
    /// Freeze the map once its contents are in place (`.rodata`). Linux 5.2.
    pub freeze: bool,
    /// Not created; programs that use it are refused by the verifier where
    /// they do. Set for structures in `?.struct_ops` sections, and by callers
    /// whose kernel lacks the map's type.
    pub skip: bool,
    /// For a map of type `STRUCT_OPS`: the programs of its structure, whose
    /// other members are the contents.
    pub operations: Option<Box<StructOps>>,
}

/// A structure of the kernel that programs fill: a TCP congestion control, a
/// scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StructOps {
    /// Name of the structure in the kernel, without flavour:
    /// `"tcp_congestion_ops"`.
    pub type_name: String,
    /// The structure in the object's BTF.
    pub type_id: TypeId,
    /// Members that are programs. Members may be set, changed and removed
    /// before loading.
    pub programs: Vec<Operation>,
}

/// A member of a [`StructOps`] that is a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Name of the member.
    pub member: String,
    /// The program's C function.
    pub program: String,
}

/// Where an object wants a map pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pinning {
    /// Not pinned.
    #[default]
    None,
    /// Pinned under its name in the directory the loader is told
    /// (`LIBBPF_PIN_BY_NAME`).
    ByName,
    /// A value that only the object's own loader gives a meaning.
    Custom(u32),
}

/// What a statically initialised slot of a map holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The map of this name.
    Map(String),
    /// The program of this name.
    Program(String),
}

/// Initial content of a global-data map.
#[derive(Clone, Debug, Default)]
pub enum Contents {
    /// None: the kernel's zeroes.
    #[default]
    None,
    /// A part of the object file, unchanged.
    Object(Bytes),
    /// Bytes of the caller's, such as edited constants.
    Owned(Vec<u8>),
}

impl Contents {
    /// The bytes, if there are any.
    pub fn as_slice(&self) -> Option<&[u8]> {
        match self {
            Contents::None => None,
            Contents::Object(bytes) => Some(bytes.as_slice()),
            Contents::Owned(bytes) => Some(bytes),
        }
    }
}

impl PartialEq for Contents {
    fn eq(&self, other: &Contents) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl MapSpec {
    /// The content of a global-data map for editing, copied from the object
    /// on first use; `value_size` bytes, zeroed for `.bss`. Of an arena, the
    /// bytes of its variables.
    pub fn contents_mut(&mut self) -> &mut Vec<u8> {
        if !matches!(self.contents, Contents::Owned(_)) {
            let mut bytes = self.contents.as_slice().unwrap_or_default().to_vec();
            let size = bytes.len().max(self.value_size as usize);
            bytes.resize(size, 0);
            self.contents = Contents::Owned(bytes);
        }
        match &mut self.contents {
            Contents::Owned(bytes) => bytes,
            // Replaced just above.
            Contents::None | Contents::Object(_) => unreachable!("contents were just made owned"),
        }
    }
}

/// Description of a program that can be loaded on its own.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramSpec {
    /// C function name.
    pub name: String,
    /// Section the function stands in, as written.
    pub section: String,
    /// Program type; `UNSPEC` if the section name says nothing. Set it before
    /// loading such a program.
    pub program_type: ProgramType,
    /// Expected attach type, if the section name fixes one.
    pub attach_type: Option<AttachType>,
    /// Load flags.
    pub flags: ProgramFlags,
    /// Index of the interface that an XDP program is for, in the namespace of
    /// the thread that loads it; 0 for any. With
    /// [`ProgramFlags::XDP_DEV_BOUND_ONLY`] (Linux 6.3) the program may ask
    /// that interface's driver about packets; without, it is offloaded to the
    /// hardware.
    pub interface: u32,
    /// What the section name says after the slash: `"sched/sched_process_exec"`.
    pub target: Option<String>,
    /// False if the object asks not to load the program by default.
    pub autoload: bool,
    /// Number of instructions of the function itself, without subprograms.
    pub insn_count: u32,
    pub(crate) function: u32,
}

/// A global variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VariableSpec {
    /// Name of the variable.
    pub name: String,
    /// Index of its map in [`Object::maps`](crate::Object::maps).
    pub map: u32,
    /// Offset in the map's value, in bytes.
    pub offset: u32,
    /// Size in bytes; 0 for an object without symbol sizes.
    pub size: u32,
}

/// A symbol that the object uses and does not define.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternSpec {
    /// Name of the symbol.
    pub name: String,
    /// True if it may stay unresolved, and then reads as zero.
    pub weak: bool,
    /// What it stands for.
    pub kind: ExternKind,
}
