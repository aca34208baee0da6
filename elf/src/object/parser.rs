//! Parsing an object: the order of it, and what is known on the way.

use std::cell::Cell;

use super::file::{Sections, Symbols, open};
use super::struct_ops::OpsSection;
use super::{Object, SHARING, Target};
use crate::error::{Fault, ObjectError, malformed};
use crate::image::Bytes;
use crate::section;
use crate::sort::sort;
use crate::spec::ProgramSpec;

/// An object being read: its file, what was found so far, and where.
pub(super) struct Parser<'d> {
    pub(super) data: &'d [u8],
    pub(super) bytes: &'d Bytes,
    pub(super) sections: Sections<'d>,
    pub(super) symbols: Symbols<'d>,
    pub(super) object: Object,
    /// See [`Parser::charge`].
    pub(super) left: Cell<usize>,
    /// Undefined symbols with their numbers among the externs, by name.
    pub(super) extern_names: Vec<(&'d str, u32)>,
    /// By ELF section index: index into `codes` plus one.
    pub(super) code_of: Vec<u32>,
    /// By ELF section index: index into `data_sections` plus one.
    pub(super) data_of: Vec<u32>,
    /// ELF section index of `.maps`.
    pub(super) btf_maps: Option<usize>,
    /// ELF section indices of `maps` and `maps/…`, ascending.
    pub(super) legacy_maps: Vec<usize>,
    /// Sections of kernel structures, ascending.
    pub(super) struct_ops: Vec<OpsSection<'d>>,
    /// ELF section index of `.jumptables`.
    pub(super) jump_tables: Option<usize>,
    /// Contents of the section for variables in an arena.
    pub(super) arena_data: Option<Bytes>,
    /// Symbols of all sections of maps.
    pub(super) map_symbols: Vec<MapSymbol<'d>>,
    /// Declared maps by section and offset, sorted.
    pub(super) placed_maps: Vec<PlacedMap>,
    /// Maps that other objects define, by name and index.
    pub(super) extern_maps: Vec<(String, u32)>,
}

/// A symbol that names a map.
pub(super) struct MapSymbol<'d> {
    pub(super) section: usize,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) name: &'d str,
}

/// Where a declared map stands.
pub(super) struct PlacedMap {
    pub(super) section: usize,
    pub(super) offset: u64,
    pub(super) map: u32,
    /// Offset of the `values` member in the definition.
    pub(super) values: Option<u32>,
}

impl<'d> Parser<'d> {
    pub(super) fn new(data: &'d [u8], bytes: &'d Bytes) -> Result<Parser<'d>, Fault> {
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
                jump_targets: 0..0,
                license: None,
                kernel_version: None,
                btf: None,
                btf_index: None,
                btf_ext: None,
                btf_damage: None,
                defined_by_btf: false,
            },
            code_of: vec![0; count],
            data_of: vec![0; count],
            btf_maps: None,
            legacy_maps: Vec::new(),
            struct_ops: Vec::new(),
            jump_tables: None,
            arena_data: None,
            map_symbols: Vec::new(),
            placed_maps: Vec::new(),
            extern_maps: Vec::new(),
        })
    }

    pub(super) fn run(mut self) -> Result<Object, Fault> {
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
    pub(super) fn charge(&self, bytes: usize) -> Result<(), Fault> {
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
                interface: 0,
                insn_count: function.len,
                function: index as u32,
            });
        }
        Ok(())
    }
}

/// What a table by ELF section index has for a section.
pub(super) fn lookup(table: &[u32], section: usize) -> Option<u32> {
    table.get(section).copied()?.checked_sub(1)
}
