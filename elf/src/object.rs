//! Reading an ELF object: sections, symbols and what they declare.
//!
//! Everything is digested once. What remains is a list of functions with
//! their relocations already resolved to maps, variables and other functions,
//! so that linking a program (see [`crate::link`]) never looks at ELF again.
//!
//! [`parser`] has the order of it; each of the others reads one thing.

mod declared;
mod file;
mod jumps;
mod parser;
mod relocs;
mod sections;
mod slots;
mod struct_ops;
mod symbols;

use std::ops::Range;

use crate::btf::ext::{self, BtfExt};
use crate::btf::{Btf, BtfIndex};
use crate::error::{Fault, ObjectError, bad_btf};
use crate::externs::Constant;
use crate::image::Bytes;
use crate::section::SectionKind;
use crate::spec::{ExternSpec, MapSpec, ProgramSpec, VariableSpec};

use parser::Parser;

pub(crate) use file::{bad, has_types, open};
pub(crate) use sections::is_legacy_maps;
pub(crate) use symbols::is_of_type;

/// Bytes of an instruction word.
pub(crate) const INSN_SIZE: usize = 8;

/// Bytes of names and sections that are read, per byte of the file.
///
/// Names may end in the same text and sections claim the same bytes: what is
/// copied or looked through for each of them could grow with the square of the
/// file. Compilers share little text and no sections, whose bytes count
/// [`SECTION`]fold.
pub(crate) const SHARING: usize = 8;
const SECTION: usize = 4;

/// An eBPF object file, parsed.
///
/// It shares the bytes it was parsed from and is independent of the file.
/// Specifications may be read and edited; linking a program does not change
/// the object, so programs may be linked from several threads.
#[derive(Clone, Debug)]
pub struct Object {
    bytes: Bytes,
    pub(crate) codes: Vec<Code>,
    pub(crate) functions: Vec<Function>,
    pub(crate) relocs: Vec<Reloc>,
    programs: Vec<ProgramSpec>,
    maps: Vec<MapSpec>,
    variables: Vec<VariableSpec>,
    externs: Vec<ExternSpec>,
    pub(crate) constants: Vec<Constant>,
    pub(crate) config_map: Option<usize>,
    data_sections: Vec<DataSection>,
    /// Bytes of the file that are `.jumptables`.
    pub(crate) jump_targets: Range<usize>,
    license: Option<String>,
    kernel_version: Option<u32>,
    btf: Option<Bytes>,
    /// Present if `btf` is: where its types are, so that it is validated once.
    btf_index: Option<BtfIndex>,
    pub(crate) btf_ext: Option<Bytes>,
    /// What is wrong with BTF that nothing needs.
    btf_damage: Option<Fault>,
    /// Whether maps or structures are defined by BTF.
    defined_by_btf: bool,
}

/// A section of instructions.
#[derive(Clone, Debug)]
pub(crate) struct Code {
    pub(crate) name: String,
    pub(crate) file_range: Range<usize>,
}

/// A function of a code section.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Index into `Object::codes`.
    pub(crate) code: u32,
    /// First instruction, counted from the start of the section.
    pub(crate) start: u32,
    /// Number of instruction words.
    pub(crate) len: u32,
    pub(crate) global: bool,
    pub(crate) hidden: bool,
    /// The function's part of `Object::relocs`.
    pub(crate) relocs: Range<u32>,
}

/// An instruction of a code section that refers to something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reloc {
    code: u32,
    /// Instruction, counted from the start of the section.
    pub(crate) insn: u32,
    pub(crate) target: Target,
}

impl Reloc {
    /// The order in which functions find theirs.
    fn before(&self, other: &Reloc) -> bool {
        (self.code, self.insn) < (other.code, other.insn)
    }
}

/// What an instruction refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A map, by index.
    Map(u32),
    /// A byte of a global-data map's value.
    MapValue { map: u32, offset: u32 },
    /// The function called.
    Call(u32),
    /// The function whose address is taken.
    Address(u32),
    /// An undefined symbol, by index into the externs.
    Extern(u32),
    /// A jump table: where it is in `Object::jump_targets`, in bytes.
    JumpTable { start: u32, len: u32 },
}

/// A section of global variables, which is also a map.
#[derive(Clone, Debug)]
struct DataSection {
    map: u32,
    size: u32,
}

impl Object {
    /// Parses an object from its bytes: a `Vec<u8>` read from a file, or the
    /// `&'static [u8]` of an `include_bytes!`. Nothing is copied but names.
    ///
    /// # Errors
    /// Every [`ObjectError`] but `NoSuchProgram`.
    pub fn parse(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Object, ObjectError> {
        Object::from_bytes(&Bytes::new(bytes))
    }

    /// Parses an object from bytes that are shared already.
    pub fn from_bytes(bytes: &Bytes) -> Result<Object, ObjectError> {
        Ok(Parser::new(bytes.as_slice(), bytes)?.run()?)
    }

    /// Programs, in the order of their sections and addresses.
    pub fn programs(&self) -> &[ProgramSpec] {
        &self.programs
    }

    /// Programs, for editing.
    pub fn programs_mut(&mut self) -> &mut [ProgramSpec] {
        &mut self.programs
    }

    /// Gives programs the type that `hook` finds in the names of their
    /// sections, for names that [`section::parse`] does not know or knows
    /// otherwise. Sections without an answer stay as they are.
    ///
    /// ```
    /// use ebpf_manager_elf::section::{self, SectionKind};
    ///
    /// # let mut object = ebpf_manager_elf::Object::parse(include_bytes!("../../tests/programs/sections.bpf.o")).unwrap();
    /// object.type_sections(&mut |name| {
    ///     let rest = name.strip_prefix("agent/tc/")?;
    ///     Some(SectionKind { target: Some(rest), ..section::parse("tc") })
    /// });
    /// ```
    ///
    /// [`section::parse`]: crate::section::parse
    pub fn type_sections(
        &mut self,
        hook: &mut dyn for<'s> FnMut(&'s str) -> Option<SectionKind<'s>>,
    ) {
        for program in &mut self.programs {
            if let Some(kind) = hook(&program.section) {
                program.program_type = kind.program_type;
                program.attach_type = kind.attach_type;
                program.flags = kind.flags;
                program.autoload = kind.autoload;
                program.target = kind.target.map(str::to_owned);
            }
        }
    }

    /// The program whose C function has this name.
    pub fn program(&self, name: &str) -> Option<&ProgramSpec> {
        self.programs.iter().find(|p| p.name == name)
    }

    /// Maps: first those of global data, then the declared ones in the
    /// object's order.
    pub fn maps(&self) -> &[MapSpec] {
        &self.maps
    }

    /// Maps, for editing before they are created.
    pub fn maps_mut(&mut self) -> &mut [MapSpec] {
        &mut self.maps
    }

    /// The map of this name.
    pub fn map(&self, name: &str) -> Option<&MapSpec> {
        self.maps.iter().find(|m| m.name == name)
    }

    /// Global variables, sorted by name.
    pub fn variables(&self) -> &[VariableSpec] {
        &self.variables
    }

    /// The global variable of this name.
    pub fn variable(&self, name: &str) -> Option<&VariableSpec> {
        let at = self.variables.partition_point(|v| v.name.as_str() < name);
        self.variables.get(at).filter(|v| v.name == name)
    }

    /// Gives a global variable its initial value, in this machine's byte
    /// order: the usual way to configure a `const volatile` before loading.
    ///
    /// # Errors
    /// [`ObjectError::Variable`] if there is no such variable or `value` has
    /// another size.
    pub fn set_variable(&mut self, name: &str, value: &[u8]) -> Result<(), ObjectError> {
        let fault = |what: String| ObjectError::Variable {
            name: name.to_owned(),
            what,
        };
        let Some(var) = self.variable(name) else {
            return Err(fault("is not in the object".to_owned()));
        };
        let (map, start, size) = (var.map, var.offset as usize, var.size as usize);
        if size != value.len() {
            let found = value.len();
            return Err(fault(format!("has {size} bytes, the value has {found}")));
        }
        self.maps
            .get_mut(map as usize)
            .and_then(|map| map.contents_mut().get_mut(start..start + size))
            .ok_or_else(|| fault("lies outside its section".to_owned()))?
            .copy_from_slice(value);
        Ok(())
    }

    /// Symbols that the object uses and does not define, and what each stands
    /// for.
    pub fn externs(&self) -> &[ExternSpec] {
        &self.externs
    }

    /// The licence string, if the object has a `license` section. The kernel
    /// treats its absence like a licence that is not GPL-compatible.
    pub fn license(&self) -> Option<&str> {
        self.license.as_deref()
    }

    /// The number in the `version` section, which kprobe programs needed
    /// before Linux 5.0.
    pub fn kernel_version(&self) -> Option<u32> {
        self.kernel_version
    }

    /// The object's BTF, if it has any.
    pub fn btf(&self) -> Option<Btf<'_>> {
        Btf::with_index(
            self.btf.as_ref()?.as_slice(),
            None,
            self.btf_index.as_ref()?,
        )
        .ok()
    }

    /// What is wrong with the object's BTF or `.BTF.ext`, if either is damaged
    /// and nothing in the object needs it. It is left out then: programs are
    /// loaded without types, names of their functions and source lines.
    ///
    /// Needed it is by maps of section `.maps`, kernel structures, symbols
    /// that the object does not define, and CO-RE relocations. An object that
    /// has any of them is refused, by [`Object::parse`] for its BTF, by
    /// [`Object::linker`] for `.BTF.ext`.
    pub fn btf_damage(&self) -> Option<ObjectError> {
        match &self.btf_damage {
            Some(fault) => Some(ObjectError::clone(fault)),
            None => self.read_btf_ext(&self.btf()?).err().map(ObjectError::from),
        }
    }

    /// The records of `.BTF.ext`, with their strings in the object's BTF.
    pub(crate) fn read_btf_ext<'o>(&'o self, btf: &Btf<'o>) -> Result<BtfExt<'o>, Fault> {
        let Some(bytes) = &self.btf_ext else {
            return Ok(BtfExt::default());
        };
        let fault = |source| bad_btf(".BTF.ext", source);
        BtfExt::parse(bytes.as_slice(), btf).map_err(fault)
    }

    /// Whether BTF that is damaged makes the object useless.
    pub(crate) fn needs_btf(&self) -> bool {
        let ext = self.btf_ext.as_ref();
        self.defined_by_btf
            || !self.externs.is_empty()
            || ext.is_some_and(|bytes| ext::has_core_relos(bytes.as_slice()))
    }

    /// Bytes of the object file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Instruction bytes of a code section.
    pub(crate) fn code_bytes(&self, code: &Code) -> &[u8] {
        self.bytes
            .as_slice()
            .get(code.file_range.clone())
            .unwrap_or_default()
    }

    /// The function that starts at an instruction of a code section.
    fn function_at(&self, code: u32, insn: u64) -> Option<u32> {
        let insn = u32::try_from(insn).ok()?;
        let at = self
            .functions
            .partition_point(|f| (f.code, f.start) < (code, insn));
        let found = self.functions.get(at)?;
        (found.code == code && found.start == insn).then_some(at as u32)
    }
}
