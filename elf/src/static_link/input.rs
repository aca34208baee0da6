//! One of the objects to link.

use std::collections::BTreeMap;

use object::read::SectionIndex;
use object::read::elf::{Rel, SectionHeader, Sym};
use object::{NativeEndian, elf};

use super::output::Output;
use crate::btf::Btf;
use crate::btf::ext::BtfExt;
use crate::error::{ObjectError, bad_relocation, malformed, malformed_in};
use crate::object::{SHARING, bad, has_types, open};

const E: NativeEndian = NativeEndian;

/// Relocation of 4 bytes of data.
const ABS32: u32 = 3;

/// An object, read.
pub(super) struct Input<'d> {
    pub(super) name: &'d str,
    /// Bytes of the file.
    pub(super) len: usize,
    /// By ELF section index; `None` for those that are left out.
    pub(super) sections: Vec<Option<Source<'d>>>,
    /// The first section of each name, by ELF section index.
    by_name: BTreeMap<&'d str, usize>,
    /// By ELF section index, where it went.
    pub(super) places: Vec<Option<Place>>,
    /// In the order of the file; without the first, which is none.
    pub(super) symbols: Vec<SourceSymbol<'d>>,
    /// By the same index: number of the output's symbol.
    pub(super) symbol_map: Vec<Option<u32>>,
    relocations: Vec<(usize, &'d [elf::Rel64<NativeEndian>])>,
    pub(super) btf: Option<Btf<'d>>,
    pub(super) ext: BtfExt<'d>,
}

/// A section of an input.
#[derive(Clone)]
pub(super) struct Source<'d> {
    pub(super) name: &'d str,
    pub(super) sh_type: u32,
    pub(super) flags: u64,
    pub(super) align: u64,
    pub(super) size: u64,
    /// Empty for a section without bytes in the file.
    pub(super) data: &'d [u8],
}

/// A symbol of an input.
#[derive(Clone, Copy)]
pub(super) struct SourceSymbol<'d> {
    pub(super) name: &'d str,
    pub(super) bind: u8,
    pub(super) kind: u8,
    pub(super) visibility: u8,
    pub(super) section: Option<usize>,
    pub(super) absolute: bool,
    pub(super) value: u64,
    pub(super) size: u64,
}

/// Where a section of an input went.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Index of the output's section.
    pub(super) section: usize,
    /// Bytes from its start.
    pub(super) offset: u64,
}

impl<'d> Input<'d> {
    pub(super) fn read(name: &'d str, data: &'d [u8]) -> Result<Input<'d>, ObjectError> {
        let (sections, symbols) = open(data)?;
        // Names may share their text, and sections their bytes: what is copied
        // for each could otherwise outgrow the file by far.
        let mut left = data.len().saturating_mul(SHARING);
        let mut charge = |bytes: usize| match left.checked_sub(bytes) {
            Some(rest) => {
                left = rest;
                Ok(())
            }
            None => Err(malformed(format_args!(
                "its sections and symbols repeat more than the file could hold"
            ))),
        };
        let text = |bytes: &'d [u8]| {
            std::str::from_utf8(bytes).map_err(|_| malformed(format_args!("a name is not UTF-8")))
        };
        let mut input = Input {
            name,
            len: data.len(),
            sections: Vec::with_capacity(sections.len()),
            by_name: BTreeMap::new(),
            places: vec![None; sections.len()],
            symbols: Vec::with_capacity(symbols.len()),
            symbol_map: vec![None; symbols.len().saturating_sub(1)],
            relocations: Vec::new(),
            btf: None,
            ext: BtfExt::default(),
        };
        let mut ext = None;
        for header in sections.iter() {
            let name = text(sections.section_name(E, header).map_err(bad)?)?;
            charge(name.len())?;
            let kind = header.sh_type(E);
            let mut source = None;
            if name == ".BTF" {
                let bytes = header.data(E, data).map_err(bad)?;
                if has_types(bytes) {
                    let btf = Btf::parse(bytes).map_err(|source| ObjectError::Btf {
                        section: ".BTF",
                        source,
                    })?;
                    input.btf = Some(btf);
                }
            } else if name == ".BTF.ext" {
                ext = Some(header.data(E, data).map_err(bad)?);
            } else if kind == elf::SHT_REL {
                if let Some((rels, _)) = header.rel(E, data).map_err(bad)? {
                    charge(size_of_val(rels))?;
                    input.relocations.push((header.sh_info(E) as usize, rels));
                }
            } else if matches!(kind, elf::SHT_PROGBITS | elf::SHT_NOBITS)
                && header.sh_flags(E) & u64::from(elf::SHF_ALLOC) != 0
                && header.sh_size(E) != 0
            {
                let bytes = header.data(E, data).map_err(bad)?;
                charge(bytes.len())?;
                if u32::try_from(header.sh_size(E)).is_err() {
                    return Err(malformed_in(name, format_args!("the section is too large")).into());
                }
                input.by_name.entry(name).or_insert(input.sections.len());
                source = Some(Source {
                    name,
                    sh_type: kind,
                    flags: header.sh_flags(E),
                    align: header.sh_addralign(E).max(1),
                    size: header.sh_size(E),
                    data: bytes,
                });
            }
            input.sections.push(source);
        }
        if let (Some(bytes), Some(btf)) = (ext, &input.btf) {
            input.ext = BtfExt::parse(bytes, btf).map_err(|source| ObjectError::Btf {
                section: ".BTF.ext",
                source,
            })?;
        }
        for (index, symbol) in symbols.enumerate().skip(1) {
            let name = text(symbols.symbol_name(E, symbol).map_err(bad)?)?;
            charge(name.len() + size_of::<elf::Sym64<NativeEndian>>())?;
            let section = symbols.symbol_section(E, symbol, index).map_err(bad)?;
            input.symbols.push(SourceSymbol {
                name,
                bind: symbol.st_bind(),
                kind: symbol.st_type(),
                visibility: symbol.st_visibility(),
                section: section.map(|s: SectionIndex| s.0),
                absolute: symbol.st_shndx(E) == elf::SHN_ABS,
                value: symbol.st_value(E),
                size: symbol.st_size(E),
            });
        }
        Ok(input)
    }

    /// Whether the file has a section of this name.
    pub(super) fn has_section(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The place of the first section of this name.
    pub(super) fn place_of(&self, name: &str) -> Option<Place> {
        self.places.get(*self.by_name.get(name)?).copied()?
    }

    /// Copies the relocations of the sections that went into the output.
    pub(super) fn copy_relocations(&self, output: &mut Output) -> Result<(), ObjectError> {
        for (section, rels) in &self.relocations {
            let Some(place) = self.places.get(*section).copied().flatten() else {
                continue;
            };
            for rel in *rels {
                self.copy_relocation(place, rel, output)?;
            }
        }
        Ok(())
    }

    fn copy_relocation(
        &self,
        place: Place,
        rel: &elf::Rel64<NativeEndian>,
        output: &mut Output,
    ) -> Result<(), ObjectError> {
        let Some(target) = output.sections.get_mut(place.section) else {
            return Ok(());
        };
        let offset = rel.r_offset(E);
        let fault = |what: &str| bad_relocation(&target.name, offset, format_args!("{what}"));
        let at = (rel.r_sym(E) as usize).checked_sub(1);
        let symbol = at.and_then(|at| self.symbols.get(at));
        let number = at.and_then(|at| self.symbol_map.get(at).copied().flatten());
        let (Some(symbol), Some(number)) = (symbol, number) else {
            return Err(fault("refers to a symbol that is not there").into());
        };
        let moved = symbol
            .section
            .and_then(|section| self.places.get(section).copied().flatten())
            .map_or(0, |to| to.offset);
        let new = offset.checked_add(place.offset);
        let new = new.ok_or_else(|| fault("points outside of its section"))?;
        if symbol.kind == elf::STT_SECTION && moved != 0 {
            let kind = rel.r_type(E);
            let code = target.flags & u64::from(elf::SHF_EXECINSTR) != 0;
            let bytes = usize::try_from(new)
                .ok()
                .and_then(|at| target.data.get_mut(at..))
                .unwrap_or_default();
            if add(bytes, code, kind, moved).is_none() {
                return Err(bad_relocation(
                    &target.name,
                    offset,
                    format_args!("cannot be moved by {moved} bytes"),
                )
                .into());
            }
        }
        target.relocations.push((new, number, rel.r_type(E)));
        Ok(())
    }
}

/// Adds to the distance from a section's start that a relocated place holds:
/// the immediate of an instruction, counted in instructions for calls, or a
/// word of data.
fn add(bytes: &mut [u8], code: bool, kind: u32, by: u64) -> Option<()> {
    if code {
        let call = *bytes.first()? == ebpf_manager_sys::abi::insn::CALL;
        let by = if call { by / 8 } else { by };
        let imm = bytes.get_mut(4..)?.first_chunk_mut::<4>()?;
        let sum = i64::from(i32::from_ne_bytes(*imm)).checked_add(i64::try_from(by).ok()?)?;
        *imm = i32::try_from(sum).ok()?.to_ne_bytes();
    } else if kind == ABS32 {
        let word = bytes.first_chunk_mut::<4>()?;
        let sum = u32::from_ne_bytes(*word).checked_add(u32::try_from(by).ok()?)?;
        *word = sum.to_ne_bytes();
    } else {
        let word = bytes.first_chunk_mut::<8>()?;
        *word = u64::from_ne_bytes(*word).checked_add(by)?.to_ne_bytes();
    }
    Some(())
}
