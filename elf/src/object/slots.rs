//! Relocations of data: what maps are filled with from the start.

use std::fmt;

use object::read::elf::{Rel, SectionHeader, Sym};
use object::read::{SectionIndex, SymbolIndex};
use object::{NativeEndian, elf};

use super::SECTION;
use super::file::{E, bad};
use super::parser::{Parser, lookup};
use crate::btf::Btf;
use crate::error::{Fault, bad_relocation};
use crate::spec::Slot;

impl Parser<'_> {
    /// Static initialisers of `.maps`, inner maps and tail-call targets, and
    /// of kernel structures: programs.
    pub(super) fn fill_slots(&mut self) -> Result<(), Fault> {
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
            let ops = ops.filter(|_| cfg!(feature = "struct-ops"));
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
    pub(super) fn addend(&self, section: usize, offset: u64) -> Option<u64> {
        let header = self.sections.section(SectionIndex(section)).ok()?;
        let bytes = header.data(E, self.data).ok()?;
        let bytes = bytes.get(usize::try_from(offset).ok()?..)?;
        Some(u64::from_ne_bytes(*bytes.first_chunk()?))
    }

    /// Section and value of the symbol that a relocation names.
    pub(super) fn relocated(
        &self,
        rel: &elf::Rel64<NativeEndian>,
    ) -> Result<(Option<usize>, u64), Fault> {
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
}
