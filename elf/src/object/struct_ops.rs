//! Sections of kernel structures that programs fill: `.struct_ops` and its
//! variants.

use std::ops::Range;

use object::read::elf::Rel;
use object::{NativeEndian, elf};

use super::file::E;
use super::parser::{Parser, PlacedMap, lookup};
use crate::btf::{Btf, Kind, TypeId, essential_name};
use crate::error::ObjectError;
use crate::sort::sort;
use crate::spec::{Contents, MapSpec, Operation, StructOps};
use ebpf_manager_sys::abi::bpf::{MapFlags, MapType, ProgramType};

/// Members of a structure that are looked at; the kernel takes 64 functions.
const MAX_MEMBERS: usize = 512;

/// A section of such structures.
pub(super) struct OpsSection<'d> {
    pub(super) index: usize,
    pub(super) name: &'d str,
    pub(super) range: Range<usize>,
}

impl OpsSection<'_> {
    /// `(attached by a link, left alone unless asked for)`, if a section's
    /// name says that such structures are in it.
    pub(super) fn kind(name: &str) -> Option<(bool, bool)> {
        let (rest, optional) = match name.strip_prefix('?') {
            Some(rest) => (rest, true),
            None => (name, false),
        };
        match rest {
            ".struct_ops" => Some((false, optional)),
            ".struct_ops.link" => Some((true, optional)),
            _ => None,
        }
    }
}

impl Parser<'_> {
    /// Makes a map of every structure in a section, which is `id` in BTF.
    pub(super) fn place_operations(
        &mut self,
        btf: &Btf<'_>,
        at: usize,
        id: TypeId,
    ) -> Result<(), ObjectError> {
        if !cfg!(feature = "struct-ops") {
            return Ok(());
        }
        let section = &self.struct_ops[at];
        let (index, section_name, range) = (section.index, section.name, section.range.clone());
        let (link, optional) = OpsSection::kind(section_name).unwrap_or_default();
        let mut symbols: Vec<_> = self
            .map_symbols
            .iter()
            .filter(|s| s.section == index)
            .map(|s| (s.name, s.offset))
            .collect();
        sort(&mut symbols, |a, b| a < b);
        let Some(section) = btf.get(id).filter(|s| s.kind() == Kind::DATASEC) else {
            return Ok(());
        };
        for entry in section.sec_vars() {
            let Some(var) = btf.get(entry.type_id) else {
                continue;
            };
            let name = btf.name(var.name_off());
            let fault = |what: &str| ObjectError::Map {
                map: name.to_owned(),
                what: what.to_owned(),
            };
            let found = symbols.binary_search_by(|(known, _)| (*known).cmp(name));
            let Some((_, offset)) = found.ok().and_then(|at| symbols.get(at)) else {
                return Err(fault("defined in BTF, but it has no symbol in its section"));
            };
            let resolved = var
                .target()
                .and_then(|t| btf.skip_modifiers_and_typedefs(t));
            let Some((type_id, ty)) = resolved.filter(|(_, ty)| ty.kind() == Kind::STRUCT) else {
                return Err(fault(
                    "not a structure, so the kernel has no such operations",
                ));
            };
            let size = ty.size().unwrap_or_default();
            let contents = usize::try_from(*offset)
                .ok()
                .and_then(|offset| range.start.checked_add(offset))
                .and_then(|start| Some(start..start.checked_add(size as usize)?))
                .filter(|contents| contents.end <= range.end);
            let Some(contents) = contents else {
                return Err(fault("reaches past the end of its section"));
            };
            let type_name = essential_name(btf.name_bytes(ty.name_off()));
            let type_name = String::from_utf8_lossy(type_name).into_owned();
            self.charge(2 * (name.len() + type_name.len()) + size_of::<MapSpec>() / 2)?;
            self.placed_maps.push(PlacedMap {
                section: index,
                offset: *offset,
                map: self.object.maps.len() as u32,
                values: None,
            });
            self.object.maps.push(MapSpec {
                name: name.to_owned(),
                map_type: MapType::STRUCT_OPS,
                key_size: 4,
                value_size: size,
                max_entries: 1,
                flags: if link {
                    MapFlags::LINK
                } else {
                    MapFlags::empty()
                },
                contents: Contents::Object(self.shared(section_name, contents)?),
                skip: optional,
                operations: Some(Box::new(StructOps {
                    type_name,
                    type_id,
                    programs: Vec::new(),
                })),
                ..MapSpec::default()
            });
        }
        Ok(())
    }

    /// A program that the object puts into a member of a structure.
    pub(super) fn place_operation(
        &mut self,
        btf: &Btf<'_>,
        at: usize,
        rel: &elf::Rel64<NativeEndian>,
    ) -> Result<(), ObjectError> {
        let section = &self.struct_ops[at];
        let offset = rel.r_offset(E);
        let name = section.name;
        let fault = |what: &str| ObjectError::Relocation {
            section: name.to_owned(),
            offset,
            what: what.to_owned(),
        };
        let addend = self
            .addend(section.index, offset)
            .ok_or_else(|| fault("points past the end of the section"))?;
        let next = self
            .placed_maps
            .partition_point(|m| (m.section, m.offset) <= (section.index, offset));
        let place = next.checked_sub(1).and_then(|i| self.placed_maps.get(i));
        let Some(place) = place.filter(|m| m.section == section.index) else {
            return Err(fault("initialises something before the first structure"));
        };
        let (map, inside) = (place.map as usize, offset - place.offset);
        let operations = self
            .object
            .maps
            .get(map)
            .and_then(|m| m.operations.as_ref());
        let ty = operations.and_then(|o| btf.get(o.type_id));
        let bits = inside.checked_mul(8);
        let member = ty
            .into_iter()
            .flat_map(|ty| ty.members().take(MAX_MEMBERS))
            .find(|m| Some(u64::from(m.bit_offset)) == bits)
            .ok_or_else(|| fault("initialises something that is no member of a structure"))?;

        let (section, value) = self.relocated(rel)?;
        let target = value.checked_add(addend).filter(|v| v % 8 == 0);
        let function = section
            .and_then(|s| lookup(&self.code_of, s))
            .zip(target)
            .and_then(|(code, target)| self.object.function_at(code, target / 8))
            .and_then(|f| self.object.functions.get(f as usize))
            .ok_or_else(|| fault("initialises a member with something that is no function"))?;
        let member_name = btf.name(member.name_off);
        self.charge(function.name.len() + member_name.len() + size_of::<Operation>())?;
        let operation = Operation {
            member: member_name.to_owned(),
            program: function.name.clone(),
        };
        if let Some(map) = self.object.maps.get_mut(map)
            && let Some(operations) = &mut map.operations
        {
            operations.programs.push(operation);
        }
        Ok(())
    }

    /// Programs for structures are loaded if and only if one of the structures
    /// that they are in is; those that are in none, if their section says so.
    pub(super) fn autoload_operations(&mut self) {
        let mut used: Vec<(&str, bool)> = Vec::new();
        for map in &self.object.maps {
            if let Some(operations) = &map.operations {
                let names = operations.programs.iter();
                used.extend(names.map(|o| (o.program.as_str(), map.skip)));
            }
        }
        // False, for a map that is created, comes first.
        sort(&mut used, |a, b| a < b);
        let mut programs = std::mem::take(&mut self.object.programs);
        for program in &mut programs {
            if program.program_type != ProgramType::STRUCT_OPS {
                continue;
            }
            let at = used.partition_point(|(name, _)| *name < program.name.as_str());
            if let Some((name, skip)) = used.get(at)
                && *name == program.name
            {
                program.autoload = !skip;
            }
        }
        self.object.programs = programs;
    }
}
