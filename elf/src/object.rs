//! Reading an ELF object: sections, symbols and what they declare.
//!
//! Everything is digested once. What remains is a list of functions with
//! their relocations already resolved to maps, variables and other functions,
//! so that linking a program (see [`crate::link`]) never looks at ELF again.

mod struct_ops;

use std::cell::Cell;
use std::fmt;
use std::ops::Range;

use ebpf_manager_sys::abi::bpf::{MapFlags, MapType};
use ebpf_manager_sys::abi::insn::{self, Insn};
use object::read::elf::{FileHeader, Rel, SectionHeader, SectionTable, Sym, SymbolTable};
use object::read::{SectionIndex, SymbolIndex};
use object::{NativeEndian, elf};

use crate::btf::{Btf, BtfIndex, Kind, KindSet, NameQuery, TypeId};
use crate::cursor::{slice_at, u32_at};
use crate::error::{
    Fault, ObjectError, bad_map, bad_relocation, machine_name, malformed, malformed_in,
};
use crate::externs::{self, Constant, Declarations, ExternKind};
use crate::image::Bytes;
use crate::maps;
use crate::section::{self, SectionKind};
use crate::sort::sort;
use crate::spec::{Contents, ExternSpec, MapSpec, ProgramSpec, Slot, VariableSpec};

use struct_ops::OpsSection;

type Header = elf::FileHeader64<NativeEndian>;
pub(crate) type Sections<'d> = SectionTable<'d, Header>;
pub(crate) type Symbols<'d> = SymbolTable<'d, Header>;

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

/// Where clang puts variables of the address space of arenas.
const ARENA_DATA: &str = ".addr_space.1";

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
    license: Option<String>,
    kernel_version: Option<u32>,
    btf: Option<Bytes>,
    /// Present if `btf` is: where its types are, so that it is validated once.
    btf_index: Option<BtfIndex>,
    pub(crate) btf_ext: Option<Bytes>,
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
}

/// A section of global variables, which is also a map.
#[derive(Clone, Debug)]
struct DataSection {
    map: u32,
    size: u32,
}

/// How a section is used.
enum Role {
    Code,
    Data,
    BtfMaps,
    LegacyMaps,
    StructOps,
    ArenaData,
    License,
    Version,
    Btf,
    BtfExt,
    Other,
}

fn role(name: &str, sh_type: u32, flags: u64) -> Role {
    let alloc = flags & u64::from(elf::SHF_ALLOC) != 0;
    match name {
        "license" => Role::License,
        "version" => Role::Version,
        ".BTF" => Role::Btf,
        ".BTF.ext" => Role::BtfExt,
        ".maps" => Role::BtfMaps,
        "maps" => Role::LegacyMaps,
        _ if name.starts_with("maps/") => Role::LegacyMaps,
        ARENA_DATA => Role::ArenaData,
        _ if OpsSection::kind(name).is_some() => Role::StructOps,
        _ if sh_type == elf::SHT_PROGBITS && flags & u64::from(elf::SHF_EXECINSTR) != 0 => {
            Role::Code
        }
        _ if alloc
            && matches!(sh_type, elf::SHT_PROGBITS | elf::SHT_NOBITS)
            && [".data", ".rodata", ".bss"].iter().any(|p| {
                name.strip_prefix(p)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            }) =>
        {
            Role::Data
        }
        _ => Role::Other,
    }
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
}

struct Parser<'d> {
    data: &'d [u8],
    bytes: &'d Bytes,
    sections: Sections<'d>,
    symbols: Symbols<'d>,
    object: Object,
    /// See [`Parser::charge`].
    left: Cell<usize>,
    /// Undefined symbols with their numbers among the externs, by name.
    extern_names: Vec<(&'d str, u32)>,
    /// By ELF section index: index into `codes` plus one.
    code_of: Vec<u32>,
    /// By ELF section index: index into `data_sections` plus one.
    data_of: Vec<u32>,
    /// ELF section index of `.maps`.
    btf_maps: Option<usize>,
    /// ELF section indices of `maps` and `maps/…`, ascending.
    legacy_maps: Vec<usize>,
    /// Sections of kernel structures, ascending.
    struct_ops: Vec<OpsSection<'d>>,
    /// Contents of the section for variables in an arena.
    arena_data: Option<Bytes>,
    /// Symbols of all sections of maps.
    map_symbols: Vec<MapSymbol<'d>>,
    /// Declared maps by section and offset, sorted.
    placed_maps: Vec<PlacedMap>,
    /// Maps that other objects define, by name and index.
    extern_maps: Vec<(String, u32)>,
}

/// A symbol that names a map.
struct MapSymbol<'d> {
    section: usize,
    offset: u64,
    size: u64,
    name: &'d str,
}

/// Where a declared map stands.
struct PlacedMap {
    section: usize,
    offset: u64,
    map: u32,
    /// Offset of the `values` member in the definition.
    values: Option<u32>,
}

const E: NativeEndian = NativeEndian;

pub(crate) fn bad(err: object::read::Error) -> Fault {
    malformed(format_args!("{err}"))
}

/// Whether there is anything in BTF. GCC writes the header alone where there
/// are no types.
pub(crate) fn has_types(btf: &[u8]) -> bool {
    // `type_len` in the header.
    u32_at(btf, 12) != Some(0)
}

/// Checks that these are the bytes of an eBPF object, and finds its sections
/// and symbols.
pub(crate) fn open(data: &[u8]) -> Result<(Sections<'_>, Symbols<'_>), Fault> {
    let ident = data.get(..data.len().min(4)).unwrap_or_default();
    if data.is_empty() {
        return Err(ObjectError::Empty.into());
    }
    if ident != elf::ELFMAG {
        return Err(ObjectError::NotElf {
            found: ident.to_vec(),
        }
        .into());
    }
    if data.get(4) == Some(&elf::ELFCLASS32) {
        return Err(ObjectError::Not64Bit.into());
    }
    match (data.get(5), cfg!(target_endian = "little")) {
        (Some(&elf::ELFDATA2MSB), true) => {
            return Err(ObjectError::ByteOrder { found: "big" }.into());
        }
        (Some(&elf::ELFDATA2LSB), false) => {
            return Err(ObjectError::ByteOrder { found: "little" }.into());
        }
        _ => {}
    }
    let have = data.len();
    if have < size_of::<Header>() {
        let need = size_of::<Header>();
        return Err(malformed(format_args!(
            "the file has {have} bytes, an ELF header {need}"
        )));
    }
    let header = Header::parse(data).map_err(bad)?;
    let machine = header.e_machine(E);
    // Clang before 3.9 wrote no machine number of its own.
    if machine != elf::EM_BPF && machine != elf::EM_NONE {
        return Err(ObjectError::NotBpf {
            machine: machine_name(machine),
            number: machine,
        }
        .into());
    }
    if header.e_type(E) != elf::ET_REL {
        return Err(ObjectError::NotRelocatable {
            found: header.e_type(E),
        }
        .into());
    }
    // They come last in a file, so this is where one that was cut off shows.
    let headers = u64::from(header.e_shnum(E)) * u64::from(header.e_shentsize(E));
    let end = header.e_shoff(E).saturating_add(headers);
    if end > have as u64 {
        return Err(malformed(format_args!(
            "the file has {have} bytes, its section headers end at {end}"
        )));
    }
    let sections = header.sections(E, data).map_err(bad)?;
    let symbols = sections.symbols(E, data, elf::SHT_SYMTAB).map_err(bad)?;
    Ok((sections, symbols))
}

impl<'d> Parser<'d> {
    fn new(data: &'d [u8], bytes: &'d Bytes) -> Result<Parser<'d>, Fault> {
        let (sections, symbols) = open(data)?;
        let count = sections.len();
        Ok(Parser {
            data,
            bytes,
            sections,
            symbols,
            left: Cell::new(data.len().saturating_mul(SHARING)),
            extern_names: Vec::new(),
            object: Object {
                bytes: bytes.clone(),
                codes: Vec::new(),
                functions: Vec::new(),
                relocs: Vec::new(),
                programs: Vec::new(),
                maps: Vec::new(),
                variables: Vec::new(),
                externs: Vec::new(),
                constants: Vec::new(),
                config_map: None,
                data_sections: Vec::new(),
                license: None,
                kernel_version: None,
                btf: None,
                btf_index: None,
                btf_ext: None,
            },
            code_of: vec![0; count],
            data_of: vec![0; count],
            btf_maps: None,
            legacy_maps: Vec::new(),
            struct_ops: Vec::new(),
            arena_data: None,
            map_symbols: Vec::new(),
            placed_maps: Vec::new(),
            extern_maps: Vec::new(),
        })
    }

    fn run(mut self) -> Result<Object, Fault> {
        self.read_sections()?;
        self.read_symbols()?;
        let declarations = self.read_btf()?;
        self.read_legacy_maps()?;
        self.join_arena()?;
        sort(&mut self.placed_maps, |a, b| {
            (a.section, a.offset) < (b.section, b.offset)
        });
        self.read_relocations()?;
        self.classify_externs(declarations)?;
        self.fill_slots()?;
        self.find_programs()?;
        self.autoload_operations();
        if self.object.programs.is_empty() && self.object.maps.is_empty() {
            return Err(ObjectError::NothingInside.into());
        }
        Ok(self.object)
    }

    /// Accounts for bytes that are about to be copied or looked through, once
    /// for each place that refers to them.
    ///
    /// # Errors
    /// If too many places share the same bytes, see [`SHARING`].
    fn charge(&self, bytes: usize) -> Result<(), Fault> {
        match self.left.get().checked_sub(bytes) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(malformed(format_args!(
                "its sections and symbols repeat more than the file could hold"
            ))),
        }
    }

    fn section_name(
        &self,
        header: &'d elf::SectionHeader64<NativeEndian>,
    ) -> Result<&'d str, Fault> {
        let name = self.sections.section_name(E, header).map_err(bad)?;
        self.charge(name.len())?;
        std::str::from_utf8(name)
            .map_err(|_| malformed(format_args!("a section name is not UTF-8")))
    }

    /// The file range of a section that has bytes.
    fn range(
        &self,
        name: &str,
        header: &elf::SectionHeader64<NativeEndian>,
    ) -> Result<Range<usize>, Fault> {
        let outside = || {
            malformed_in(
                name,
                format_args!("the section reaches past the end of the file"),
            )
        };
        let (offset, size) = header.file_range(E).unwrap_or((0, 0));
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let end = usize::try_from(size)
            .ok()
            .and_then(|s| start.checked_add(s))
            .ok_or_else(outside)?;
        if end > self.data.len() {
            return Err(outside());
        }
        self.charge((end - start).saturating_mul(SECTION))?;
        Ok(start..end)
    }

    fn shared(&self, name: &str, range: Range<usize>) -> Result<Bytes, Fault> {
        self.bytes.slice(range).ok_or_else(|| {
            malformed_in(
                name,
                format_args!("the section reaches past the end of the file"),
            )
        })
    }

    fn read_sections(&mut self) -> Result<(), Fault> {
        for (index, header) in self.sections.enumerate() {
            let name = self.section_name(header)?;
            let index = index.0;
            match role(name, header.sh_type(E), header.sh_flags(E)) {
                Role::Code => {
                    let range = self.range(name, header)?;
                    if range.is_empty() {
                        continue;
                    }
                    if range.len() % INSN_SIZE != 0 || u32::try_from(range.len()).is_err() {
                        return Err(malformed_in(
                            name,
                            format_args!(
                                "{} bytes are not a whole number of instructions",
                                range.len()
                            ),
                        ));
                    }
                    self.object.codes.push(Code {
                        name: name.to_owned(),
                        file_range: range,
                    });
                    self.code_of[index] = self.object.codes.len() as u32;
                }
                Role::Data => self.add_data_section(index, name, header)?,
                Role::BtfMaps => {
                    self.range(name, header)?;
                    self.btf_maps = Some(index);
                }
                Role::LegacyMaps => {
                    if !self.range(name, header)?.is_empty() {
                        self.legacy_maps.push(index);
                    }
                }
                Role::ArenaData => {
                    let range = self.range(name, header)?;
                    let size = u32::try_from(range.len()).unwrap_or(u32::MAX);
                    if size != 0 {
                        self.arena_data = Some(self.shared(name, range)?);
                        self.data_of[index] = self.object.data_sections.len() as u32 + 1;
                        // The map is known later.
                        let map = u32::MAX;
                        self.object.data_sections.push(DataSection { map, size });
                    }
                }
                Role::StructOps => {
                    let range = self.range(name, header)?;
                    if !range.is_empty() {
                        self.struct_ops.push(OpsSection { index, name, range });
                    }
                }
                Role::License => {
                    let range = self.range(name, header)?;
                    let text = self.data.get(range).unwrap_or_default();
                    let text = text.split(|b| *b == 0).next().unwrap_or_default();
                    self.object.license = Some(String::from_utf8_lossy(text).into_owned());
                }
                Role::Version => {
                    let range = self.range(name, header)?;
                    let word = self.data.get(range).and_then(|b| b.first_chunk::<4>());
                    let word = word.ok_or_else(|| {
                        malformed_in(
                            name,
                            format_args!("shorter than the four bytes of a version"),
                        )
                    })?;
                    self.object.kernel_version = Some(u32::from_ne_bytes(*word));
                }
                Role::Btf => {
                    let bytes = self.shared(name, self.range(name, header)?)?;
                    if has_types(bytes.as_slice()) {
                        self.object.btf = Some(bytes);
                    }
                }
                Role::BtfExt => {
                    let range = self.range(name, header)?;
                    self.object.btf_ext = Some(self.shared(name, range)?);
                }
                Role::Other => {}
            }
        }
        Ok(())
    }

    /// A data section becomes an array map with one element.
    fn add_data_section(
        &mut self,
        index: usize,
        name: &str,
        header: &elf::SectionHeader64<NativeEndian>,
    ) -> Result<(), Fault> {
        let size = header.sh_size(E);
        if size == 0 {
            return Ok(());
        }
        let size = i32::try_from(size)
            .map_err(|_| malformed_in(name, format_args!("{size} bytes of data are too many")))?
            as u32;
        let contents = if header.sh_type(E) == elf::SHT_NOBITS {
            Contents::None
        } else {
            let range = self.range(name, header)?;
            Contents::Object(self.shared(name, range)?)
        };
        let read_only = name.starts_with(".rodata");
        self.data_of[index] = self.object.data_sections.len() as u32 + 1;
        self.object.data_sections.push(DataSection {
            map: self.object.maps.len() as u32,
            size,
        });
        self.object.maps.push(MapSpec {
            name: name.to_owned(),
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size: size,
            max_entries: 1,
            flags: if read_only {
                MapFlags::RDONLY_PROG
            } else {
                MapFlags::empty()
            },
            contents,
            freeze: read_only,
            ..MapSpec::default()
        });
        Ok(())
    }

    fn symbol_name(&self, symbol: &'d elf::Sym64<NativeEndian>) -> Result<&'d str, Fault> {
        let name = self.symbols.symbol_name(E, symbol).map_err(bad)?;
        self.charge(name.len())?;
        std::str::from_utf8(name).map_err(|_| malformed(format_args!("a symbol name is not UTF-8")))
    }

    fn symbol_section(
        &self,
        symbol: &elf::Sym64<NativeEndian>,
        index: SymbolIndex,
    ) -> Result<Option<usize>, Fault> {
        let section = self.symbols.symbol_section(E, symbol, index).map_err(bad)?;
        Ok(section.map(|s| s.0))
    }

    /// Functions of the code sections, variables of the data sections.
    fn read_symbols(&mut self) -> Result<(), Fault> {
        for (index, symbol) in self.symbols.enumerate() {
            let kind = match symbol.st_type() {
                // Clang before 9 gave its symbols no type. Labels inside
                // functions have none either, but are local.
                elf::STT_NOTYPE if symbol.st_bind() != elf::STB_LOCAL => None,
                kind @ (elf::STT_FUNC | elf::STT_OBJECT) => Some(kind),
                _ => continue,
            };
            let is = |wanted| kind.is_none_or(|kind| kind == wanted);
            let Some(section) = self.symbol_section(symbol, index)? else {
                continue;
            };
            if is(elf::STT_FUNC)
                && let Some(code) = lookup(&self.code_of, section)
            {
                self.add_function(symbol, code)?;
            } else if is(elf::STT_OBJECT)
                && let Some(data) = lookup(&self.data_of, section)
            {
                self.add_variable(symbol, data)?;
            } else if is(elf::STT_OBJECT) && self.holds_maps(section) {
                self.map_symbols.push(MapSymbol {
                    section,
                    offset: symbol.st_value(E),
                    size: symbol.st_size(E),
                    name: self.symbol_name(symbol)?,
                });
            }
        }
        // Of several of one name the first in the file comes first.
        let place = |v: &VariableSpec| (v.map, v.offset, v.size);
        sort(&mut self.object.variables, |a, b| {
            (&a.name, place(a)) < (&b.name, place(b))
        });
        self.close_functions()
    }

    fn holds_maps(&self, section: usize) -> bool {
        self.btf_maps == Some(section)
            || self.legacy_maps.binary_search(&section).is_ok()
            || self.struct_ops.iter().any(|s| s.index == section)
    }

    fn add_function(
        &mut self,
        symbol: &'d elf::Sym64<NativeEndian>,
        code: u32,
    ) -> Result<(), Fault> {
        let name = self.symbol_name(symbol)?;
        let section = &self.object.codes[code as usize];
        let total = section.file_range.len() as u64;
        let (start, size) = (symbol.st_value(E), symbol.st_size(E));
        if start >= total || size > total - start || start % 8 != 0 || size % 8 != 0 {
            return Err(malformed_in(
                &section.name,
                format_args!(
                    "function {name} at {start:#x} with {size} bytes does not fit its section"
                ),
            ));
        }
        self.object.functions.push(Function {
            name: name.to_owned(),
            code,
            start: (start / 8) as u32,
            len: (size / 8) as u32,
            global: symbol.st_bind() != elf::STB_LOCAL,
            hidden: matches!(symbol.st_visibility(), elf::STV_HIDDEN | elf::STV_INTERNAL),
            relocs: 0..0,
        });
        Ok(())
    }

    fn add_variable(
        &mut self,
        symbol: &'d elf::Sym64<NativeEndian>,
        data: u32,
    ) -> Result<(), Fault> {
        let name = self.symbol_name(symbol)?;
        let section = &self.object.data_sections[data as usize];
        let (start, size) = (symbol.st_value(E), symbol.st_size(E));
        if start > u64::from(section.size) || size > u64::from(section.size) - start {
            return Err(malformed(format_args!(
                "variable {name} at {start:#x} with {size} bytes does not fit its section"
            )));
        }
        if symbol.st_bind() != elf::STB_LOCAL
            && self.object.btf.is_some()
            && let Some(map) = self.object.maps.get_mut(section.map as usize)
        {
            // A variable that user space may name is worth mapping.
            map.flags |= MapFlags::MMAPABLE;
        }
        self.object.variables.push(VariableSpec {
            name: name.to_owned(),
            map: section.map,
            offset: start as u32,
            size: size as u32,
        });
        Ok(())
    }

    /// Sorts functions by place and gives those without a size the room up to
    /// the next one. Several may be one and the same, but none may reach into
    /// another: linking copies each, so the copies would outgrow the file.
    fn close_functions(&mut self) -> Result<(), Fault> {
        let functions = &mut self.object.functions;
        // Among names for one place a global one is first, for calls to find.
        let key = |f: &Function| (f.code, f.start, !f.global);
        sort(functions, |a, b| (key(a), &a.name) < (key(b), &b.name));
        let (mut place, mut end) = ((u32::MAX, 0), 0);
        for function in functions.iter_mut().rev() {
            let section = &self.object.codes[function.code as usize];
            if place != (function.code, function.start) {
                end = if place.0 == function.code {
                    place.1
                } else {
                    (section.file_range.len() / INSN_SIZE) as u32
                };
                place = (function.code, function.start);
            }
            let room = end - function.start;
            if function.len == 0 {
                function.len = room;
            }
            if function.len > room {
                return Err(malformed_in(
                    &section.name,
                    format_args!("function {} reaches into the next one", function.name),
                ));
            }
        }
        Ok(())
    }

    /// Checks the object's BTF and reads from it the types of data sections,
    /// the definitions of maps, and where undefined symbols are declared.
    fn read_btf(&mut self) -> Result<Declarations, Fault> {
        let mut declarations = Declarations::default();
        let Some(btf_bytes) = self.object.btf.clone() else {
            let ops = self.struct_ops.first().map(|s| s.name);
            return match ops.or(self.btf_maps.map(|_| ".maps")) {
                Some(section) => Err(malformed_in(
                    section,
                    format_args!("the section needs BTF, which the object lacks; compile with -g"),
                )),
                None => Ok(declarations),
            };
        };
        let btf = Btf::parse(btf_bytes.as_slice()).map_err(|source| ObjectError::Btf {
            section: ".BTF",
            source,
        })?;
        // Only data sections have maps so far.
        let data = &self.object.maps;
        let mut query = NameQuery::new();
        let ops: Vec<&str> = self.struct_ops.iter().map(|s| s.name).collect();
        let sections = data.iter().map(|map| map.name.as_str());
        let known = [".maps", externs::KCONFIG, externs::KSYMS];
        for name in sections.chain(known).chain(ops.iter().copied()) {
            query.add(name.as_bytes(), KindSet::of(&[Kind::DATASEC]));
        }
        query.finish();
        let mut hits = Vec::new();
        btf.find_all(&query, &mut hits);
        sort(&mut hits, |a, b| a < b);
        let section = |name: &str| {
            let position = query.position(name.as_bytes())?;
            let hit = hits.get(hits.partition_point(|hit| hit.name < position))?;
            (hit.name == position).then_some(hit.id)
        };
        declarations.kconfig = section(externs::KCONFIG);
        declarations.ksyms = section(externs::KSYMS);
        let maps = section(".maps");
        let types: Vec<_> = data.iter().map(|map| section(&map.name)).collect();
        let ops: Vec<_> = ops.into_iter().map(section).collect();
        for (map, id) in self.object.maps.iter_mut().zip(types) {
            map.value_type_id = id.unwrap_or_default();
        }
        if let Some(id) = maps {
            self.place_maps(&btf, id)?;
        }
        for (at, id) in ops.into_iter().enumerate() {
            if let Some(id) = id {
                self.place_operations(&btf, at, id)?;
            }
        }
        self.object.btf_index = Some(btf.into_index());
        Ok(declarations)
    }

    /// Says what every undefined symbol is, and adds the map for the values
    /// of the kernel's configuration.
    fn classify_externs(&mut self, declarations: Declarations) -> Result<(), Fault> {
        let bytes = self.object.btf.clone();
        let index = self.object.btf_index.take();
        if let (Some(bytes), Some(index)) = (&bytes, &index)
            && let Ok(btf) = Btf::with_index(bytes.as_slice(), None, index)
            && let Some(map) = externs::classify(&btf, declarations, &mut self.object.externs)?
        {
            self.object.config_map = Some(self.object.maps.len());
            self.object.maps.push(map);
        }
        self.object.btf_index = index;
        Ok(())
    }

    /// Reads the definitions of `.maps` and finds the symbol of each; a symbol
    /// is one map's.
    fn place_maps(&mut self, btf: &Btf<'_>, section: TypeId) -> Result<(), Fault> {
        let symbols = self.map_symbols.iter();
        let mut symbols: Vec<_> = symbols
            .filter(|s| Some(s.section) == self.btf_maps)
            .map(|s| (s.name, Some((s.section, s.offset))))
            .collect();
        sort(&mut symbols, |a, b| a < b);
        maps::btf_maps(btf, section, &mut |definition| {
            let spec = definition.spec;
            // The inner map's name derives from it.
            self.charge(2 * spec.name.len())?;
            let map = self.object.maps.len() as u32;
            if spec.external {
                // No symbol bounds their number.
                self.charge(size_of::<MapSpec>() / 2)?;
                self.extern_maps.push((spec.name.clone(), map));
                self.object.maps.push(spec);
                return Ok(());
            }
            // clang leaves the variable's offset in BTF at 0; the symbol has it.
            let at = symbols.partition_point(|(name, _)| *name < spec.name.as_str());
            let place = symbols.get_mut(at).filter(|(name, _)| *name == spec.name);
            let Some((section, offset)) = place.and_then(|(_, place)| place.take()) else {
                return Err(bad_map(
                    &spec.name,
                    format_args!("defined in BTF, but it has no symbol in section .maps"),
                ));
            };
            self.placed_maps.push(PlacedMap {
                section,
                offset,
                map,
                values: definition.values,
            });
            self.object.maps.push(spec);
            Ok(())
        })?;
        sort(&mut self.extern_maps, |a, b| a < b);
        Ok(())
    }

    /// Maps defined by words, one for each symbol of `maps` and `maps/…`.
    fn read_legacy_maps(&mut self) -> Result<(), Fault> {
        let mut symbols = std::mem::take(&mut self.map_symbols);
        symbols.retain(|s| self.legacy_maps.binary_search(&s.section).is_ok());
        sort(&mut symbols, |a, b| {
            (a.section, a.offset, a.name) < (b.section, b.offset, b.name)
        });
        symbols.dedup_by_key(|s| (s.section, s.offset));
        let mut definitions = Vec::with_capacity(symbols.len());
        for &section in &self.legacy_maps {
            let header = self.sections.section(SectionIndex(section)).map_err(bad)?;
            let section_name = self.section_name(header)?;
            let bytes = self
                .data
                .get(self.range(section_name, header)?)
                .unwrap_or_default();
            let first = symbols.partition_point(|s| s.section < section);
            let own = symbols.get(first..).unwrap_or_default();
            let mut own = own.iter().take_while(|s| s.section == section).peekable();
            if own.peek().is_none() {
                return Err(malformed_in(
                    section_name,
                    format_args!("no symbol names the maps in it"),
                ));
            }
            while let Some(symbol) = own.next() {
                // A definition ends with its symbol, or where the next begins.
                let end = own.peek().map_or(bytes.len() as u64, |next| next.offset);
                let room = end.saturating_sub(symbol.offset);
                let size = if symbol.size == 0 { room } else { symbol.size };
                let definition = usize::try_from(symbol.offset)
                    .ok()
                    .zip(usize::try_from(size).ok())
                    .filter(|_| size <= room)
                    .and_then(|(at, size)| slice_at(bytes, at, size));
                let Some(definition) = definition else {
                    return Err(malformed_in(
                        section_name,
                        format_args!("map {} does not fit its section", symbol.name),
                    ));
                };
                definitions.push(maps::legacy_map(symbol.name, definition)?);
                self.placed_maps.push(PlacedMap {
                    section,
                    offset: symbol.offset,
                    map: (self.object.maps.len() + definitions.len() - 1) as u32,
                    values: None,
                });
            }
        }
        self.object
            .maps
            .append(&mut maps::join_legacy(definitions)?);
        Ok(())
    }

    /// Variables of the address space of arenas are in the object's only arena.
    fn join_arena(&mut self) -> Result<(), Fault> {
        let Some(contents) = self.arena_data.take() else {
            return Ok(());
        };
        let arenas = self.object.maps.iter_mut().zip(0..);
        let mut arenas = arenas.filter(|(map, _)| map.map_type == MapType::ARENA);
        let (Some((arena, index)), None) = (arenas.next(), arenas.next()) else {
            return Err(malformed_in(
                ARENA_DATA,
                format_args!("its variables need exactly one map of type BPF_MAP_TYPE_ARENA"),
            ));
        };
        arena.contents = Contents::Object(contents);
        for section in &mut self.object.data_sections {
            if section.map == u32::MAX {
                section.map = index;
            }
        }
        for variable in &mut self.object.variables {
            if variable.map == u32::MAX {
                variable.map = index;
            }
        }
        Ok(())
    }

    /// The declared map that starts at an offset of a section.
    fn map_at(&self, section: usize, offset: u64) -> Option<u32> {
        let found = self
            .placed_maps
            .binary_search_by_key(&(section, offset), |m| (m.section, m.offset));
        Some(self.placed_maps.get(found.ok()?)?.map)
    }

    /// Resolves the relocations of all code sections.
    fn read_relocations(&mut self) -> Result<(), Fault> {
        for header in self.sections.iter() {
            if header.sh_type(E) != elf::SHT_REL {
                continue;
            }
            let Some(code) = lookup(&self.code_of, header.sh_info(E) as usize) else {
                continue;
            };
            let Some((rels, _)) = header.rel(E, self.data).map_err(bad)? else {
                continue;
            };
            self.charge(size_of_val(rels).saturating_mul(SECTION))?;
            for rel in rels {
                let reloc = self.code_reloc(code, rel)?;
                self.object.relocs.push(reloc);
            }
        }
        sort(&mut self.object.relocs, Reloc::before);
        self.add_local_calls()?;
        self.assign_relocs();
        Ok(())
    }

    fn code_reloc(&mut self, code: u32, rel: &elf::Rel64<NativeEndian>) -> Result<Reloc, Fault> {
        let offset = rel.r_offset(E);
        let section = &self.object.codes[code as usize];
        let name = section.name.as_str();
        let fault = |what: fmt::Arguments<'_>| bad_relocation(name, offset, what);
        let bytes = self.object.code_bytes(section);
        if !offset.is_multiple_of(8) {
            return Err(fault(format_args!("does not point at an instruction")));
        }
        let Some(insn) = insn_at(bytes, offset / 8) else {
            return Err(fault(format_args!("points past the end of the section")));
        };
        let index = SymbolIndex(rel.r_sym(E) as usize);
        let symbol = self.symbols.symbol(index).map_err(bad)?;
        let at = (offset / 8) as u32;
        let reloc = |target| {
            Ok(Reloc {
                code,
                insn: at,
                target,
            })
        };

        let Some(target_section) = self.symbol_section(symbol, index)? else {
            let name = self.symbol_name(symbol)?;
            if name.is_empty() {
                return Err(fault(format_args!(
                    "refers to a symbol without a name or a section"
                )));
            }
            if !insn.is_ld_imm64() && insn.code != insn::CALL {
                return Err(fault(format_args!(
                    "refers to {name} from opcode {:#04x}",
                    insn.code
                )));
            }
            if insn.is_ld_imm64()
                && let Ok(found) = self
                    .extern_maps
                    .binary_search_by(|(known, _)| known.as_str().cmp(name))
            {
                return reloc(Target::Map(self.extern_maps[found].1));
            }
            let weak = symbol.st_bind() == elf::STB_WEAK;
            return reloc(Target::Extern(self.extern_index(name, weak)));
        };
        let value = symbol.st_value(E);
        // What the instruction's immediate adds to the symbol.
        let byte = |imm: i32| value.checked_add_signed(i64::from(imm));

        if let Some(target_code) = lookup(&self.code_of, target_section) {
            let target_insn = if insn.is_pseudo_call() {
                (value / 8).checked_add_signed(i64::from(insn.imm) + 1)
            } else if insn.is_ld_imm64() {
                byte(insn.imm).filter(|b| b % 8 == 0).map(|b| b / 8)
            } else {
                return Err(fault(format_args!(
                    "refers to code from opcode {:#04x}",
                    insn.code
                )));
            };
            let function = target_insn.and_then(|i| self.object.function_at(target_code, i));
            let Some(function) = function else {
                let name = &self.object.codes[target_code as usize].name;
                return Err(fault(format_args!(
                    "refers to a place in {name} where no function starts"
                )));
            };
            return reloc(if insn.is_pseudo_call() {
                Target::Call(function)
            } else {
                Target::Address(function)
            });
        }
        if !insn.is_ld_imm64() {
            return Err(fault(format_args!(
                "refers to data from opcode {:#04x}",
                insn.code
            )));
        }
        if let Some(data) = lookup(&self.data_of, target_section) {
            let data = &self.object.data_sections[data as usize];
            let offset = byte(insn.imm).filter(|o| *o < u64::from(data.size));
            let Some(offset) = offset else {
                return Err(fault(format_args!(
                    "refers past the end of its data section"
                )));
            };
            return reloc(Target::MapValue {
                map: data.map,
                offset: offset as u32,
            });
        }
        let header = self
            .sections
            .section(SectionIndex(target_section))
            .map_err(bad)?;
        let name = self.section_name(header)?;
        if self.holds_maps(target_section) {
            return match byte(insn.imm).and_then(|o| self.map_at(target_section, o)) {
                Some(map) => reloc(Target::Map(map)),
                None => Err(fault(format_args!(
                    "refers to a place in {name} where no map starts"
                ))),
            };
        }
        Err(fault(format_args!(
            "refers to section {name}, which holds neither code, data nor maps"
        )))
    }

    fn extern_index(&mut self, name: &'d str, weak: bool) -> u32 {
        match self.extern_names.binary_search_by_key(&name, |(n, _)| n) {
            Ok(found) => self.extern_names[found].1,
            Err(place) => {
                let index = self.object.externs.len() as u32;
                self.extern_names.insert(place, (name, index));
                self.object.externs.push(ExternSpec {
                    name: name.to_owned(),
                    weak,
                    kind: ExternKind::Constant,
                });
                index
            }
        }
    }

    /// Calls within a section carry no relocation: the assembler has resolved
    /// them. They are recorded like the others, because linking moves code.
    fn add_local_calls(&mut self) -> Result<(), Fault> {
        let mut found = Vec::new();
        for (code, section) in self.object.codes.iter().enumerate() {
            let code = code as u32;
            let first = self.object.relocs.partition_point(|r| r.code < code);
            let mut known = self.object.relocs[first..]
                .iter()
                .take_while(|r| r.code == code)
                .map(|r| r.insn)
                .peekable();
            let mut wide = false;
            for (at, word) in self
                .object
                .code_bytes(section)
                .chunks_exact(INSN_SIZE)
                .enumerate()
            {
                if std::mem::take(&mut wide) {
                    continue;
                }
                wide = word[0] == insn::LD_IMM64;
                if word[0] != insn::CALL {
                    continue;
                }
                let at = at as u32;
                while known.next_if(|k| *k < at).is_some() {}
                let Some(insn) = insn_at(word, 0).filter(Insn::is_pseudo_call) else {
                    continue;
                };
                if known.peek() == Some(&at) {
                    continue;
                }
                let target = u64::from(at).checked_add_signed(i64::from(insn.imm) + 1);
                let Some(function) = target.and_then(|t| self.object.function_at(code, t)) else {
                    return Err(bad_relocation(
                        &section.name,
                        u64::from(at) * 8,
                        format_args!("calls a place where no function starts"),
                    ));
                };
                found.push(Reloc {
                    code,
                    insn: at,
                    target: Target::Call(function),
                });
            }
        }
        if !found.is_empty() {
            self.object.relocs.append(&mut found);
            sort(&mut self.object.relocs, Reloc::before);
        }
        Ok(())
    }

    /// Gives every function its part of the sorted relocations.
    fn assign_relocs(&mut self) {
        let relocs = &self.object.relocs;
        for function in &mut self.object.functions {
            let key =
                |insn: u32| relocs.partition_point(|r| (r.code, r.insn) < (function.code, insn));
            function.relocs = key(function.start) as u32..key(function.start + function.len) as u32;
        }
    }

    /// Static initialisers of `.maps`, inner maps and tail-call targets, and
    /// of kernel structures: programs.
    fn fill_slots(&mut self) -> Result<(), Fault> {
        if self.btf_maps.is_none() && self.struct_ops.is_empty() {
            return Ok(());
        }
        let bytes = self.object.btf.clone();
        let index = self.object.btf_index.take();
        let btf = bytes.as_ref().zip(index.as_ref());
        let btf =
            btf.and_then(|(bytes, index)| Btf::with_index(bytes.as_slice(), None, index).ok());
        for header in self.sections.iter() {
            let target = header.sh_info(E) as usize;
            let is_maps = self.btf_maps == Some(target);
            let ops = self.struct_ops.iter().position(|s| s.index == target);
            if header.sh_type(E) != elf::SHT_REL || !is_maps && ops.is_none() {
                continue;
            }
            let Some((rels, _)) = header.rel(E, self.data).map_err(bad)? else {
                continue;
            };
            self.charge(size_of_val(rels).saturating_mul(SECTION))?;
            for rel in rels {
                match (ops, &btf) {
                    (Some(ops), Some(btf)) => self.place_operation(btf, ops, rel)?,
                    _ => self.fill_slot(target, rel)?,
                }
            }
        }
        self.object.btf_index = index;
        Ok(())
    }

    /// What a relocated place in a section of data holds.
    fn addend(&self, section: usize, offset: u64) -> Option<u64> {
        let header = self.sections.section(SectionIndex(section)).ok()?;
        let bytes = header.data(E, self.data).ok()?;
        let bytes = bytes.get(usize::try_from(offset).ok()?..)?;
        Some(u64::from_ne_bytes(*bytes.first_chunk()?))
    }

    /// Section and value of the symbol that a relocation names.
    fn relocated(&self, rel: &elf::Rel64<NativeEndian>) -> Result<(Option<usize>, u64), Fault> {
        let index = SymbolIndex(rel.r_sym(E) as usize);
        let symbol = self.symbols.symbol(index).map_err(bad)?;
        Ok((self.symbol_section(symbol, index)?, symbol.st_value(E)))
    }

    fn fill_slot(
        &mut self,
        maps_section: usize,
        rel: &elf::Rel64<NativeEndian>,
    ) -> Result<(), Fault> {
        let offset = rel.r_offset(E);
        let fault = |what: fmt::Arguments<'_>| bad_relocation(".maps", offset, what);
        let next = self
            .placed_maps
            .partition_point(|m| (m.section, m.offset) <= (maps_section, offset));
        let place = next.checked_sub(1).and_then(|i| self.placed_maps.get(i));
        let Some(place) = place.filter(|m| m.section == maps_section) else {
            return Err(fault(format_args!(
                "initialises something before the first map"
            )));
        };
        let slot = place
            .values
            .and_then(|values| (offset - place.offset).checked_sub(values.into()));
        let Some(slot) = slot.filter(|s| s % 8 == 0) else {
            return Err(fault(format_args!(
                "initialises something other than a map's values"
            )));
        };
        let map = place.map;
        let (section, value) = self.relocated(rel)?;
        // Those that no other file sees are named by their section.
        let value = value.wrapping_add(self.addend(maps_section, offset).unwrap_or_default());
        let target = if let Some(section) = section.filter(|s| self.holds_maps(*s)) {
            let inner = self
                .map_at(section, value)
                .and_then(|i| self.object.maps.get(i as usize))
                .ok_or_else(|| fault(format_args!("names a map that does not exist")))?;
            self.charge(inner.name.len())?;
            Slot::Map(inner.name.clone())
        } else if let Some(code) = section.and_then(|s| lookup(&self.code_of, s)) {
            let function = self.object.function_at(code, value / 8);
            let function = function
                .and_then(|f| self.object.functions.get(f as usize))
                .ok_or_else(|| fault(format_args!("names a function that does not exist")))?;
            self.charge(function.name.len())?;
            Slot::Program(function.name.clone())
        } else {
            return Err(fault(format_args!("names neither a map nor a program")));
        };
        if let Some(map) = self.object.maps.get_mut(map as usize) {
            map.slots.push(((slot / 8) as u32, target));
        }
        Ok(())
    }

    /// Programs are the functions outside `.text` that the object does not
    /// use as subprograms: global ones always, static ones if nothing refers
    /// to them from code.
    fn find_programs(&mut self) -> Result<(), Fault> {
        let mut called = vec![false; self.object.functions.len()];
        for reloc in &self.object.relocs {
            if let Target::Call(f) | Target::Address(f) = reloc.target
                && let Some(called) = called.get_mut(f as usize)
            {
                *called = true;
            }
        }
        for (index, function) in self.object.functions.iter().enumerate() {
            let section = &self.object.codes[function.code as usize];
            if section.name == ".text" || (!function.global && called[index]) {
                continue;
            }
            // The section's name is copied, and so is the target in it.
            self.charge(function.name.len() + 2 * section.name.len())?;
            let kind = section::parse(&section.name);
            self.object.programs.push(ProgramSpec {
                name: function.name.clone(),
                section: section.name.clone(),
                program_type: kind.program_type,
                attach_type: kind.attach_type,
                flags: kind.flags,
                target: kind.target.map(str::to_owned),
                autoload: kind.autoload,
                insn_count: function.len,
                function: index as u32,
            });
        }
        Ok(())
    }
}

impl Object {
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

fn insn_at(bytes: &[u8], index: u64) -> Option<Insn> {
    let start = usize::try_from(index).ok()?.checked_mul(INSN_SIZE)?;
    let word = bytes.get(start..)?.first_chunk::<INSN_SIZE>()?;
    Some(Insn::from_ne_bytes(*word))
}

fn lookup(table: &[u32], section: usize) -> Option<u32> {
    table.get(section).copied()?.checked_sub(1)
}
