//! Relocations of code: what every instruction refers to.

use std::fmt;

use ebpf_manager_sys::abi::insn::{self, Insn};
use object::read::elf::{Rel, SectionHeader, Sym};
use object::read::{SectionIndex, SymbolIndex};
use object::{NativeEndian, elf};

use super::file::{E, bad};
use super::parser::{Parser, lookup};
use super::{INSN_SIZE, Reloc, SECTION, Target};
use crate::error::{Fault, bad_relocation};
use crate::externs::ExternKind;
use crate::sort::sort;
use crate::spec::ExternSpec;

impl<'d> Parser<'d> {
    /// Resolves the relocations of all code sections.
    pub(super) fn read_relocations(&mut self) -> Result<(), Fault> {
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
            if symbol.st_shndx(E) == elf::SHN_COMMON {
                return Err(fault(format_args!(
                    "refers to {name}, which needs -fno-common"
                )));
            }
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
        if cfg!(feature = "jump-tables")
            && self.jump_tables == Some(target_section)
            && let Some(target) = self.jump_table(symbol)?
        {
            return reloc(target);
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
            "refers to section {name}, which holds nothing of use there"
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
}

fn insn_at(bytes: &[u8], index: u64) -> Option<Insn> {
    let start = usize::try_from(index).ok()?.checked_mul(INSN_SIZE)?;
    let word = bytes.get(start..)?.first_chunk::<INSN_SIZE>()?;
    Some(Insn::from_ne_bytes(*word))
}
