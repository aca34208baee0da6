//! Linking: one program with the subprograms it needs, ready for the facts
//! that only the kernel has (map descriptors, BTF ids).
//!
//! Functions are laid out in the order in which they are first referred to,
//! the program itself first, each once. Debug records follow their
//! instructions: they are cut from the object's shared tables and only their
//! offsets are rewritten.

use std::ops::Range;

use ebpf_manager_sys::abi::insn::{Insn, pseudo};
use ebpf_manager_sys::abi::pod::slice_bytes_mut;

use crate::btf::Btf;
use crate::btf::ext::{Block, BtfExt, CoreRelo, Table};
use crate::error::ObjectError;
use crate::object::{INSN_SIZE, Object, Target};
use crate::spec::ProgramSpec;

/// A program's instructions with its subprograms appended, and what is still
/// to be filled in.
///
/// Meant to be reused: [`Linker::link`] clears it and keeps its memory.
#[derive(Clone, Debug, Default)]
pub struct LinkedProgram {
    /// All instructions; the program's own come first.
    pub insns: Vec<Insn>,
    /// Instructions that wait for a kernel fact, in ascending order within
    /// each function.
    pub fixups: Vec<Fixup>,
    /// `struct bpf_func_info` records, one per function; empty without BTF.
    pub func_info: Vec<u8>,
    /// Bytes of one record of [`LinkedProgram::func_info`].
    pub func_info_rec_size: u32,
    /// `struct bpf_line_info` records; empty without BTF.
    pub line_info: Vec<u8>,
    /// Bytes of one record of [`LinkedProgram::line_info`].
    pub line_info_rec_size: u32,
    /// CO-RE relocations: the instruction here, and the record in the
    /// object's `.BTF.ext`.
    pub core_relos: Vec<LinkedCoreRelo>,
    /// Functions in the order they are laid out.
    pub(crate) placed: Vec<Placed>,
}

/// A function of a linked program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Index of the function in the object.
    pub(crate) function: u32,
    /// First instruction in the linked program.
    pub(crate) start: u32,
}

/// A CO-RE relocation of a linked program.
#[derive(Clone, Copy, Debug)]
pub struct LinkedCoreRelo {
    /// Index of the instruction in [`LinkedProgram::insns`].
    pub insn: u32,
    /// The record as the object has it.
    pub record: CoreRelo,
}

/// An instruction that waits for a kernel fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixup {
    /// Index of the instruction in [`LinkedProgram::insns`].
    pub insn: u32,
    /// What belongs there.
    pub target: FixupTarget,
}

/// What an instruction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixupTarget {
    /// The descriptor of the map with this index in [`Object::maps`].
    Map(u32),
    /// The same, for the address of a byte of the map's value. The offset is
    /// in the instruction already.
    MapValue(u32),
    /// The address or value of the extern with this index in
    /// [`Object::externs`].
    Extern(u32),
}

impl LinkedProgram {
    fn clear(&mut self) {
        self.insns.clear();
        self.fixups.clear();
        self.func_info.clear();
        self.line_info.clear();
        self.core_relos.clear();
        self.placed.clear();
        self.func_info_rec_size = 0;
        self.line_info_rec_size = 0;
    }

    /// The function and its own instruction that an instruction of the whole
    /// program belongs to: index for [`Linker::function_name`] and the
    /// distance from its start.
    pub fn locate(&self, insn: u32) -> Option<(usize, u32)> {
        let next = self.placed.partition_point(|p| p.start <= insn);
        let index = next.checked_sub(1)?;
        Some((index, insn - self.placed.get(index)?.start))
    }
}

/// Links the programs of one object. Holds what every link needs, decoded
/// once; shared between threads that link in parallel.
#[derive(Debug)]
pub struct Linker<'o> {
    object: &'o Object,
    btf: Option<Btf<'o>>,
    /// Debug records by code section.
    blocks: Vec<Blocks<'o>>,
}

/// The debug records of one code section.
#[derive(Clone, Debug, Default)]
struct Blocks<'o> {
    funcs: Option<Block<'o>>,
    lines: Option<Block<'o>>,
    core: Option<Block<'o>>,
}

impl Object {
    /// Prepares linking.
    ///
    /// # Errors
    /// [`ObjectError::Btf`] if the object's BTF.ext is damaged.
    pub fn linker(&self) -> Result<Linker<'_>, ObjectError> {
        let btf = self.btf();
        let mut blocks = vec![Blocks::default(); self.codes.len()];
        if let (Some(bytes), Some(btf)) = (&self.btf_ext, &btf) {
            let ext = BtfExt::parse(bytes.as_slice(), btf).map_err(|source| ObjectError::Btf {
                section: ".BTF.ext",
                source,
            })?;
            self.assign(&mut blocks, ext.func_info(), |b| &mut b.funcs);
            self.assign(&mut blocks, ext.line_info(), |b| &mut b.lines);
            self.assign(&mut blocks, ext.core_relos(), |b| &mut b.core);
        }
        Ok(Linker {
            object: self,
            btf,
            blocks,
        })
    }

    /// Finds each code section's block. Blocks usually stand in the order of
    /// the sections, so the search goes on where the last one ended.
    fn assign<'o>(
        &self,
        blocks: &mut [Blocks<'o>],
        table: &Table<'o>,
        field: impl for<'b> Fn(&'b mut Blocks<'o>) -> &'b mut Option<Block<'o>>,
    ) {
        let mut next = 0;
        for block in table.blocks() {
            let (head, tail) = self.codes.split_at(next.min(self.codes.len()));
            let found = tail
                .iter()
                .position(|c| c.name == block.section())
                .map(|i| i + head.len())
                .or_else(|| head.iter().position(|c| c.name == block.section()));
            let Some(found) = found else { continue };
            next = found + 1;
            if let Some(slot) = blocks.get_mut(found) {
                *field(slot) = Some(*block);
            }
        }
    }
}

impl<'o> Linker<'o> {
    /// The object whose programs are linked.
    pub fn object(&self) -> &'o Object {
        self.object
    }

    /// The object's BTF.
    pub fn btf(&self) -> Option<&Btf<'o>> {
        self.btf.as_ref()
    }

    /// Every CO-RE relocation of the object, whichever program it is in.
    pub fn core_relos(&self) -> impl Iterator<Item = CoreRelo> + '_ {
        self.blocks
            .iter()
            .filter_map(|b| b.core)
            .flat_map(|block| block.core_relos())
    }

    /// Links `program` into `out`, which is cleared first.
    ///
    /// # Errors
    /// [`ObjectError::NoSuchProgram`] if `program` belongs to another object;
    /// [`ObjectError::Malformed`] if a function refers past its end.
    pub fn link(&self, program: &ProgramSpec, out: &mut LinkedProgram) -> Result<(), ObjectError> {
        out.clear();
        self.place(program.function, out)
            .ok_or_else(|| ObjectError::NoSuchProgram {
                name: program.name.clone(),
            })?;
        let mut next = 0;
        while let Some(&placed) = out.placed.get(next) {
            self.resolve(placed, out)?;
            next += 1;
        }
        Ok(())
    }

    /// Name of a function of a linked program.
    pub fn function_name(&self, program: &LinkedProgram, index: usize) -> Option<&'o str> {
        let placed = program.placed.get(index)?;
        Some(
            self.object
                .functions
                .get(placed.function as usize)?
                .name
                .as_str(),
        )
    }

    /// Appends a function's instructions and records unless it is there
    /// already; returns its first instruction.
    fn place(&self, function: u32, out: &mut LinkedProgram) -> Option<u32> {
        if let Some(placed) = out.placed.iter().find(|p| p.function == function) {
            return Some(placed.start);
        }
        let source = self.object.functions.get(function as usize)?;
        let code = self.object.codes.get(source.code as usize)?;
        let from = source.start as usize * INSN_SIZE;
        let bytes = self
            .object
            .code_bytes(code)
            .get(from..from + source.len as usize * INSN_SIZE)?;

        let start = out.insns.len();
        out.insns
            .resize(start + source.len as usize, Insn::default());
        slice_bytes_mut(out.insns.get_mut(start..)?).copy_from_slice(bytes);
        let start = start as u32;
        out.placed.push(Placed { function, start });

        if let Some(blocks) = self.blocks.get(source.code as usize) {
            let range = source.start..source.start + source.len;
            if let Some(block) = &blocks.funcs {
                out.func_info_rec_size = block.record_size();
                copy_records(block, range.clone(), start, &mut out.func_info);
            }
            if let Some(block) = &blocks.lines {
                out.line_info_rec_size = block.record_size();
                copy_records(block, range.clone(), start, &mut out.line_info);
            }
            if let Some(block) = &blocks.core {
                let size = block.record_size().max(CoreRelo::SIZE) as usize;
                let records = block.records_in(range);
                for record in records.chunks_exact(size).filter_map(CoreRelo::from_bytes) {
                    let insn = record.insn_off / INSN_SIZE as u32 - source.start + start;
                    out.core_relos.push(LinkedCoreRelo { insn, record });
                }
            }
        }
        Some(start)
    }

    /// Points a placed function's references at their targets.
    fn resolve(&self, placed: Placed, out: &mut LinkedProgram) -> Result<(), ObjectError> {
        let Some(source) = self.object.functions.get(placed.function as usize) else {
            return Ok(());
        };
        let relocs = source.relocs.start as usize..source.relocs.end as usize;
        for reloc in self.object.relocs.get(relocs).unwrap_or_default() {
            let insn = reloc.insn - source.start + placed.start;
            let wide = !matches!(reloc.target, Target::Call(_) | Target::Extern(_));
            let at = insn as usize;
            if wide && reloc.insn + 1 >= source.start + source.len {
                return Err(ObjectError::malformed(format!(
                    "function {} ends inside a two-word instruction",
                    source.name
                )));
            }
            let target = match reloc.target {
                Target::Call(function) | Target::Address(function) => {
                    let Some(start) = self.place(function, out) else {
                        continue;
                    };
                    if let Some(word) = out.insns.get_mut(at) {
                        word.imm = start.wrapping_sub(insn).wrapping_sub(1) as i32;
                        word.set_src(if wide { pseudo::FUNC } else { pseudo::CALL });
                    }
                    if wide && let Some(second) = out.insns.get_mut(at + 1) {
                        second.imm = 0;
                    }
                    continue;
                }
                Target::Map(map) => {
                    if let Some([first, second]) = out.insns.get_mut(at..at + 2) {
                        first.set_src(pseudo::MAP_FD);
                        first.imm = 0;
                        second.imm = 0;
                    }
                    FixupTarget::Map(map)
                }
                Target::MapValue { map, offset } => {
                    if let Some([first, second]) = out.insns.get_mut(at..at + 2) {
                        first.set_src(pseudo::MAP_VALUE);
                        first.imm = 0;
                        second.imm = offset as i32;
                    }
                    FixupTarget::MapValue(map)
                }
                Target::Extern(index) => FixupTarget::Extern(index),
            };
            out.fixups.push(Fixup { insn, target });
        }
        Ok(())
    }
}

/// Copies a block's records for `insns` of its section to the place `to` of the
/// linked program. The first word of a record is a byte offset in the section
/// and becomes an instruction number.
fn copy_records(block: &Block<'_>, insns: Range<u32>, to: u32, out: &mut Vec<u8>) {
    let size = (block.record_size() as usize).max(4);
    let start = out.len();
    out.extend_from_slice(&block.records_in(insns.clone()));
    for record in out
        .get_mut(start..)
        .unwrap_or_default()
        .chunks_exact_mut(size)
    {
        if let Some(offset) = record.first_chunk_mut::<4>() {
            let insn = u32::from_ne_bytes(*offset) / INSN_SIZE as u32;
            *offset = insn
                .wrapping_sub(insns.start)
                .wrapping_add(to)
                .to_ne_bytes();
        }
    }
}
