//! Symbols: functions, variables and the names of maps.

use ebpf_manager_sys::abi::bpf::MapFlags;
use object::read::SymbolIndex;
use object::read::elf::Sym;
use object::{NativeEndian, elf};

use super::file::{E, bad};
use super::parser::{MapSymbol, Parser, lookup};
use super::{Function, INSN_SIZE};
use crate::error::{Fault, malformed, malformed_in};
use crate::sort::sort;
use crate::spec::VariableSpec;

/// Whether a symbol of some type and binding may stand for what `wanted` does.
///
/// Clang before 9 gave its symbols no type. Labels inside functions have none
/// either, but are local.
pub(crate) fn is_of_type(kind: u8, bind: u8, wanted: u8) -> bool {
    kind == wanted || kind == elf::STT_NOTYPE && bind != elf::STB_LOCAL
}

impl<'d> Parser<'d> {
    pub(super) fn symbol_name(
        &self,
        symbol: &'d elf::Sym64<NativeEndian>,
    ) -> Result<&'d str, Fault> {
        let name = self.symbols.symbol_name(E, symbol).map_err(bad)?;
        self.charge(name.len())?;
        std::str::from_utf8(name).map_err(|_| malformed(format_args!("a symbol name is not UTF-8")))
    }

    pub(super) fn symbol_section(
        &self,
        symbol: &elf::Sym64<NativeEndian>,
        index: SymbolIndex,
    ) -> Result<Option<usize>, Fault> {
        let section = self.symbols.symbol_section(E, symbol, index).map_err(bad)?;
        Ok(section.map(|s| s.0))
    }

    /// Functions of the code sections, variables of the data sections.
    pub(super) fn read_symbols(&mut self) -> Result<(), Fault> {
        for (index, symbol) in self.symbols.enumerate() {
            let is = |wanted| is_of_type(symbol.st_type(), symbol.st_bind(), wanted);
            if !is(elf::STT_FUNC) && !is(elf::STT_OBJECT) {
                continue;
            }
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

    pub(super) fn holds_maps(&self, section: usize) -> bool {
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
}
