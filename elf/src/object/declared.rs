//! What an object declares: maps, by BTF or by words of the days before it,
//! the types of its data, and what its undefined symbols are.

use ebpf_manager_sys::abi::bpf::{MapFlags, MapType};
use object::read::SectionIndex;

use super::file::bad;
use super::parser::{Parser, PlacedMap};
use super::sections::ARENA_DATA;
use crate::btf::{Btf, Kind, KindSet, NameQuery, TypeId};
use crate::error::{Fault, bad_btf, bad_map, malformed_in};
use crate::externs::{self, Declarations};
use crate::maps::{self, legacy};
use crate::sort::sort;
use crate::spec::{Contents, MapSpec};

impl Parser<'_> {
    /// Checks the object's BTF and reads from it the types of data sections,
    /// the definitions of maps, and where undefined symbols are declared.
    pub(super) fn read_btf(&mut self) -> Result<Declarations, Fault> {
        let mut declarations = Declarations::default();
        self.object.defined_by_btf = self.btf_maps.is_some() || !self.struct_ops.is_empty();
        let Some(btf_bytes) = self.object.btf.clone() else {
            let ops = self.struct_ops.first().map(|s| s.name);
            let core = self.object.needs_btf().then_some(".BTF.ext");
            return match ops.or(self.btf_maps.map(|_| ".maps")).or(core) {
                Some(section) => Err(malformed_in(
                    section,
                    format_args!("the section needs BTF, which the object lacks; compile with -g"),
                )),
                None => Ok(declarations),
            };
        };
        let btf = match Btf::parse(btf_bytes.as_slice()) {
            Ok(btf) => btf,
            Err(source) => {
                let fault = bad_btf(".BTF", source);
                if self.object.needs_btf() {
                    return Err(fault);
                }
                self.object.btf_damage = Some(fault);
                self.object.btf = None;
                for map in &mut self.object.maps {
                    map.flags -= MapFlags::MMAPABLE;
                }
                return Ok(declarations);
            }
        };
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
    ///
    /// # Errors
    /// If BTF that would say it is damaged.
    pub(super) fn classify_externs(&mut self, declarations: Declarations) -> Result<(), Fault> {
        if !self.object.externs.is_empty()
            && let Some(fault) = self.object.btf_damage.take()
        {
            return Err(fault);
        }
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
            let place = match symbols.get_mut(at) {
                Some((name, place)) if *name == spec.name => {
                    place.take().ok_or("two maps have this name")
                }
                _ => Err("defined in BTF, but it has no symbol in section .maps"),
            };
            let (section, offset) =
                place.map_err(|what| bad_map(&spec.name, format_args!("{what}")))?;
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
    pub(super) fn read_legacy_maps(&mut self) -> Result<(), Fault> {
        if !cfg!(feature = "legacy-maps") || self.legacy_maps.is_empty() {
            return Ok(());
        }
        let mut symbols = std::mem::take(&mut self.map_symbols);
        symbols.retain(|s| self.legacy_maps.binary_search(&s.section).is_ok());
        sort(&mut symbols, |a, b| {
            (a.section, a.offset, a.name) < (b.section, b.offset, b.name)
        });
        symbols.dedup_by_key(|s| (s.section, s.offset));
        let mut definitions = Vec::with_capacity(symbols.len());
        let mut own = Vec::new();
        for &section in &self.legacy_maps {
            let header = self.sections.section(SectionIndex(section)).map_err(bad)?;
            let name = self.section_name(header)?;
            let bytes = self.data.get(self.range(name, header)?);
            let first = symbols.partition_point(|s| s.section < section);
            let symbols = symbols.get(first..).unwrap_or_default();
            own.clear();
            own.extend(
                symbols
                    .iter()
                    .take_while(|s| s.section == section)
                    .map(|s| legacy::Symbol {
                        offset: s.offset,
                        size: s.size,
                        name: s.name,
                    }),
            );
            legacy::read(
                name,
                bytes.unwrap_or_default(),
                &own,
                &mut |symbol, _, definition| {
                    self.placed_maps.push(PlacedMap {
                        section,
                        offset: symbol.offset,
                        map: (self.object.maps.len() + definitions.len()) as u32,
                        values: None,
                    });
                    definitions.push(definition);
                },
            )?;
        }
        self.object.maps.append(&mut legacy::join(definitions)?);
        Ok(())
    }

    /// Variables of the address space of arenas are in the object's only arena.
    pub(super) fn join_arena(&mut self) -> Result<(), Fault> {
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
    pub(super) fn map_at(&self, section: usize, offset: u64) -> Option<u32> {
        let found = self
            .placed_maps
            .binary_search_by_key(&(section, offset), |m| (m.section, m.offset));
        Some(self.placed_maps.get(found.ok()?)?.map)
    }
}
