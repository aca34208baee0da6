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
use crate::btf::ext::{Block, CoreRelo, Table};
use crate::error::{Fault, ObjectError, malformed};
use crate::object::{INSN_SIZE, Object, Target};
use crate::sort::sort;
use crate::spec::ProgramSpec;

/// Most instructions of a program: `BPF_COMPLEXITY_LIMIT_INSNS`. Linux 5.2;
/// 4096 before.
const MAX_INSNS: usize = 1_000_000;

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
    /// Where indirect jumps (`gotox`) may go, as clang 22 and later make them
    /// of large `switch` statements: indices in [`LinkedProgram::insns`], one
    /// table behind the other. Requires at least Linux 6.19.
    pub jump_targets: Vec<u32>,
    /// Functions in the order they are laid out.
    pub(crate) placed: Vec<Placed>,
    /// While it is linked, by function of the object: its first instruction
    /// plus one. 0 for those that are not here yet, and for all afterwards.
    pub(crate) starts: Vec<u32>,
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
    /// The address, id or value of the extern with this index in
    /// [`Object::externs`]; constants that were set are in place already.
    Extern(u32),
    /// The descriptor of a map of type `INSN_ARRAY`, frozen and the program's
    /// own, that holds a table: a part of [`LinkedProgram::jump_targets`]. The
    /// offset is in the instruction already.
    JumpTable {
        /// Index of the first target.
        first: u32,
        /// Number of targets.
        count: u32,
    },
}

impl LinkedProgram {
    fn clear(&mut self) {
        self.insns.clear();
        self.fixups.clear();
        self.func_info.clear();
        self.line_info.clear();
        self.core_relos.clear();
        self.jump_targets.clear();
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
    /// [`ObjectError::Btf`] if the object's `.BTF.ext` is damaged and
    /// [needed](Object::btf_damage).
    pub fn linker(&self) -> Result<Linker<'_>, ObjectError> {
        let btf = self.btf();
        let mut blocks = vec![Blocks::default(); self.codes.len()];
        let mut names: Vec<_> = (0..)
            .zip(&self.codes)
            .map(|(index, code)| (code.name.as_str(), index))
            .collect();
        sort(&mut names, |a, b| a < b);
        if let Some(btf) = &btf {
            let ext = match self.read_btf_ext(btf) {
                Err(fault) if self.needs_btf() => return Err(fault.into()),
                ext => ext.unwrap_or_default(),
            };
            assign(&names, &mut blocks, ext.func_info(), |b| &mut b.funcs);
            assign(&names, &mut blocks, ext.line_info(), |b| &mut b.lines);
            assign(&names, &mut blocks, ext.core_relos(), |b| &mut b.core);
        }
        Ok(Linker {
            object: self,
            btf,
            blocks,
        })
    }
}

/// Gives each code section its block. `names` are the sections' names, sorted,
/// with their numbers. Of sections of one name, the next is meant each time.
fn assign<'o>(
    names: &[(&str, usize)],
    blocks: &mut [Blocks<'o>],
    table: &Table<'o>,
    field: impl for<'b> Fn(&'b mut Blocks<'o>) -> &'b mut Option<Block<'o>>,
) {
    let mut next = 0;
    for block in table.blocks() {
        let named = |from| {
            let at = names.partition_point(|name| *name < (block.section(), from));
            names.get(at).filter(|(name, _)| *name == block.section())
        };
        if let Some(&(_, index)) = named(next).or_else(|| named(0))
            && let Some(slot) = blocks.get_mut(index)
        {
            next = index + 1;
            *field(slot) = Some(block.clone());
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
            .filter_map(|b| b.core.as_ref())
            .flat_map(Block::core_relos)
    }

    /// The CO-RE relocations of these programs, those of the functions they
    /// use included.
    pub fn core_relos_of<'p>(
        &self,
        programs: impl IntoIterator<Item = &'p ProgramSpec>,
    ) -> Vec<CoreRelo> {
        let mut relos = Vec::new();
        if self.blocks.iter().all(|blocks| blocks.core.is_none()) {
            return relos;
        }
        let mut pending: Vec<u32> = programs.into_iter().map(|p| p.function).collect();
        let mut seen = vec![false; self.object.functions.len()];
        while let Some(index) = pending.pop() {
            let function = self.object.functions.get(index as usize);
            let (Some(function), Some(seen)) = (function, seen.get_mut(index as usize)) else {
                continue;
            };
            if std::mem::replace(seen, true) {
                continue;
            }
            let blocks = self.blocks.get(function.code as usize);
            if let Some(block) = blocks.and_then(|blocks| blocks.core.as_ref()) {
                let size = block.record_size().max(CoreRelo::SIZE) as usize;
                let records = block.records_in(function.start..function.start + function.len);
                relos.extend(records.chunks_exact(size).filter_map(CoreRelo::from_bytes));
            }
            let refers = function.relocs.start as usize..function.relocs.end as usize;
            for reloc in self.object.relocs.get(refers).unwrap_or_default() {
                if let Target::Call(next) | Target::Address(next) = reloc.target {
                    pending.push(next);
                }
            }
        }
        relos
    }

    /// Whether all code with CO-RE relocations has function records, without
    /// which the kernel does not look at relocations.
    pub fn kernel_can_relocate(&self) -> bool {
        self.blocks
            .iter()
            .all(|blocks| blocks.core.is_none() || blocks.funcs.is_some())
    }

    /// Links `program` into `out`, which is cleared first.
    ///
    /// # Errors
    /// [`ObjectError::NoSuchProgram`] if `program` belongs to another object;
    /// [`ObjectError::Malformed`] if a function refers past its end;
    /// [`ObjectError::TooLarge`] if no kernel would take as many instructions.
    pub fn link(&self, program: &ProgramSpec, out: &mut LinkedProgram) -> Result<(), ObjectError> {
        out.clear();
        if out.starts.len() < self.object.functions.len() {
            out.starts.resize(self.object.functions.len(), 0);
        }
        let result = self.place_all(program, out);
        for placed in &out.placed {
            if let Some(start) = out.starts.get_mut(placed.function as usize) {
                *start = 0;
            }
        }
        Ok(result?)
    }

    /// Lays out a program and all it refers to.
    fn place_all(&self, program: &ProgramSpec, out: &mut LinkedProgram) -> Result<(), Fault> {
        self.place(program.function, out)
            .ok_or_else(|| ObjectError::NoSuchProgram {
                name: program.name.clone(),
            })?;
        let mut next = 0;
        while let Some(&placed) = out.placed.get(next) {
            if out.insns.len() > MAX_INSNS {
                return Err(ObjectError::TooLarge {
                    program: program.name.clone(),
                }
                .into());
            }
            self.resolve(program.function, placed, out)?;
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
        if let Some(start) = out.starts.get(function as usize)?.checked_sub(1) {
            return Some(start);
        }
        // Functions may lie inside each other in the object: laid out one by one
        // they can be far larger than it. `link` refuses what is too large.
        if out.insns.len() > MAX_INSNS {
            return None;
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
        if let Some(entry) = out.starts.get_mut(function as usize) {
            *entry = start + 1;
        }

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

    /// Points a placed function's references at their targets, or at the
    /// numbers set for the program.
    fn resolve(&self, program: u32, placed: Placed, out: &mut LinkedProgram) -> Result<(), Fault> {
        let Some(source) = self.object.functions.get(placed.function as usize) else {
            return Ok(());
        };
        let relocs = source.relocs.start as usize..source.relocs.end as usize;
        for reloc in self.object.relocs.get(relocs).unwrap_or_default() {
            let insn = reloc.insn - source.start + placed.start;
            let at = insn as usize;
            let wide = out.insns.get(at).is_some_and(Insn::is_ld_imm64);
            if wide && reloc.insn + 1 >= source.start + source.len {
                return Err(malformed(format_args!(
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
                Target::JumpTable { .. } if !cfg!(feature = "jump-tables") => continue,
                Target::JumpTable { start, len } => {
                    let range = self.object.jump_targets.start + start as usize;
                    let range = range..range + len as usize;
                    let bytes = self.object.bytes().as_slice().get(range);
                    let first_target = out.jump_targets.len() as u32;
                    for word in bytes.unwrap_or_default().as_chunks().0 {
                        // One that is no multiple comes out too large.
                        let word = u64::from_ne_bytes(*word).rotate_right(3);
                        let insn = word.wrapping_sub(source.start.into());
                        if insn >= source.len.into() {
                            return Err(malformed(format_args!(
                                "a jump table of function {} leads out of it",
                                source.name
                            )));
                        }
                        out.jump_targets.push(placed.start + insn as u32);
                    }
                    if let Some([first, second]) = out.insns.get_mut(at..at + 2) {
                        first.set_src(pseudo::MAP_VALUE);
                        second.imm = std::mem::take(&mut first.imm);
                    }
                    FixupTarget::JumpTable {
                        first: first_target,
                        count: len / 8,
                    }
                }
                Target::Extern(index) => {
                    if wide && let Some(value) = self.object.constant(index, program) {
                        if let Some(words) = out.insns.get_mut(at..at + 2) {
                            let value = Insn::ld_imm64(words[0].dst(), 0, value);
                            words.copy_from_slice(&value);
                        }
                        continue;
                    }
                    FixupTarget::Extern(index)
                }
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
