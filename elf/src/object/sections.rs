//! Sections: what each is for, and its bytes.

use std::ops::Range;

use ebpf_manager_sys::abi::bpf::{MapFlags, MapType};
use object::read::elf::SectionHeader;
use object::{NativeEndian, elf};

use super::file::{E, bad, has_types};
use super::jumps::JUMP_TABLES;
use super::parser::Parser;
use super::struct_ops::OpsSection;
use super::{Code, DataSection, INSN_SIZE, SECTION};
use crate::error::{Fault, left_out, malformed, malformed_in};
use crate::image::Bytes;
use crate::spec::{Contents, MapSpec};

/// Where clang puts variables of the address space of arenas.
pub(super) const ARENA_DATA: &str = ".addr_space.1";

/// How a section is used.
enum Role {
    Code,
    Data,
    BtfMaps,
    LegacyMaps,
    StructOps,
    ArenaData,
    JumpTables,
    License,
    Version,
    Btf,
    BtfExt,
    Other,
}

/// Whether a section of this name defines maps by words.
pub(crate) fn is_legacy_maps(name: &str) -> bool {
    name == "maps" || name.starts_with("maps/")
}

fn role(name: &str, sh_type: u32, flags: u64) -> Role {
    let alloc = flags & u64::from(elf::SHF_ALLOC) != 0;
    match name {
        "license" => Role::License,
        "version" => Role::Version,
        ".BTF" => Role::Btf,
        ".BTF.ext" => Role::BtfExt,
        ".maps" => Role::BtfMaps,
        _ if is_legacy_maps(name) => Role::LegacyMaps,
        ARENA_DATA => Role::ArenaData,
        JUMP_TABLES => Role::JumpTables,
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

impl<'d> Parser<'d> {
    pub(super) fn section_name(
        &self,
        header: &'d elf::SectionHeader64<NativeEndian>,
    ) -> Result<&'d str, Fault> {
        let name = self.sections.section_name(E, header).map_err(bad)?;
        self.charge(name.len())?;
        std::str::from_utf8(name)
            .map_err(|_| malformed(format_args!("a section name is not UTF-8")))
    }

    /// The file range of a section that has bytes.
    pub(super) fn range(
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

    pub(super) fn shared(&self, name: &str, range: Range<usize>) -> Result<Bytes, Fault> {
        self.bytes.slice(range).ok_or_else(|| {
            malformed_in(
                name,
                format_args!("the section reaches past the end of the file"),
            )
        })
    }

    pub(super) fn read_sections(&mut self) -> Result<(), Fault> {
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
                        if !cfg!(feature = "legacy-maps") {
                            return Err(left_out(name, "legacy-maps"));
                        }
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
                Role::JumpTables => {
                    if !cfg!(feature = "jump-tables") {
                        return Err(left_out(name, "jump-tables"));
                    }
                    self.object.jump_targets = self.range(name, header)?;
                    self.jump_tables = Some(index);
                }
                Role::StructOps => {
                    let range = self.range(name, header)?;
                    if !range.is_empty() {
                        if !cfg!(feature = "struct-ops") {
                            return Err(left_out(name, "struct-ops"));
                        }
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
}
