//! Changing a linked program's instructions before it is loaded.
//!
//! A [`Patcher`] is given to the loader and called with every program, after
//! linking and CO-RE and before descriptors are filled in. It looks at
//! instructions through a [`ProgramEditor`] and asks for changes; jumps,
//! calls, references to maps and symbols, and debug records follow.
//!
//! ```
//! use ebpf_manager_elf::edit::{Code, Patcher};
//! use ebpf_manager_elf::insn::{Insn, size};
//!
//! let patcher = Patcher::new(|spec, editor| {
//!     if !spec.section.starts_with("xdp") {
//!         return Ok(());
//!     }
//!     // `bpf_xdp_adjust_head` is not called, it fails.
//!     for at in editor.find(|unit| unit.helper() == Some(44)) {
//!         editor.set(at, Insn::mov64_imm(0, -1))?;
//!     }
//!     // Counts every run in the value of a map.
//!     if let Some(counters) = editor.map("counters") {
//!         let mut code = Code::new();
//!         code.push(Insn::mov64_reg(6, 1));
//!         code.load_map_value(1, counters, 0);
//!         code.push(Insn::mov64_imm(2, 1));
//!         code.push(Insn::atomic_add(size::DW, 1, 2, 0));
//!         code.push(Insn::mov64_reg(1, 6));
//!         editor.prologue(0, code)?;
//!     }
//!     // A constant that the C source takes as `asm("%0 = LIMIT ll")`.
//!     editor.set_constant("LIMIT", 1000)?;
//!     Ok(())
//! });
//! # let _ = patcher;
//! ```
//!
//! Positions are instruction words, counted from the start of the linked
//! program, subprograms included. A two-word load (`ld_imm64`) is one unit
//! that takes two positions. Insertions and removals are collected and made
//! together by [`ProgramEditor::apply`], so positions stay what they are until
//! then, and many changes cost one pass over the program.

use std::fmt;
use std::ops::Range;

use ebpf_manager_sys::abi::insn::{CALL, Insn, LD_IMM64};

use code::{Jump, function_reference, is_second, jump_of};
use layout::{Edit, Place};

use crate::disasm::disassemble;
use crate::link::{FixupTarget, LinkedProgram, Linker};
use crate::object::Object;
use crate::spec::ProgramSpec;

mod code;
mod layout;
#[cfg(test)]
mod tests;

pub use code::{Code, Reference, Unit};

/// A change that cannot be made, or a patcher that refuses a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// No instruction starts here: past the end, or the second word of a
    /// two-word load.
    #[error("no instruction starts at {at}")]
    NotAnInstruction {
        /// The position.
        at: u32,
    },
    /// A range that is empty, ends inside a two-word load or reaches into
    /// another function.
    #[error("instructions {start} to {end} are not whole ones of one function")]
    Range {
        /// First position.
        start: u32,
        /// Position after the last.
        end: u32,
    },
    /// One instruction word cannot take the place of two, nor two of one.
    #[error("the change would split the two-word instruction at {at}")]
    Split {
        /// Position of the instruction.
        at: u32,
    },
    /// Two changes are about the same instructions.
    #[error("instruction {at} is changed twice")]
    Overlap {
        /// The first position they share.
        at: u32,
    },
    /// A jump goes to an instruction that is removed.
    #[error("the jump at {at} goes to instruction {target}, which is removed")]
    TargetRemoved {
        /// Position of the jump, or where the code with the jump is inserted.
        at: u32,
        /// Where it goes.
        target: u32,
    },
    /// A jump or call goes to no instruction, or to no function's start.
    #[error("instruction {at} jumps to no instruction")]
    BadTarget {
        /// Position of the jump, or where the code with the jump is inserted.
        at: u32,
    },
    /// A jump through a register in a program without jump tables: its targets
    /// lie in a map of the caller's and would not follow.
    #[error("instruction {at} jumps through a register, and no jump table says where to")]
    IndirectJump {
        /// Position of the jump.
        at: u32,
    },
    /// A jump would have to go farther than its offset reaches.
    #[error("the jump at {at} would go over {distance} instructions, which does not fit")]
    TooFar {
        /// Position of the jump, or where the code with the jump is inserted.
        at: u32,
        /// The offset it needs.
        distance: i64,
    },
    /// Nothing would be left of a function.
    #[error("nothing is left of the function at {at}")]
    EmptyFunction {
        /// Its first position.
        at: u32,
    },
    /// Inserted code is not complete in itself: it jumps out of itself, calls
    /// a subprogram by distance, or ends inside a two-word load.
    #[error("inserted code is not complete: its instruction {index}")]
    Code {
        /// The instruction, counted from the start of the code.
        index: u32,
    },
    /// Inserted code refers to something the object does not have.
    #[error("inserted code refers to {kind} {index}, which does not exist")]
    NoSuch {
        /// `"map"`, `"function"` or `"extern"`.
        kind: &'static str,
        /// Its index.
        index: u32,
    },
    /// A symbol that is not used as a constant alone.
    #[error("instruction {at} uses {symbol}, but not as a constant")]
    NotAConstant {
        /// The symbol.
        symbol: String,
        /// Position of the instruction.
        at: u32,
    },
    /// The patcher's own reason.
    #[error("{what}")]
    Refused {
        /// What is wrong.
        what: String,
    },
}

impl PatchError {
    /// A patcher's own reason to refuse a program.
    pub fn refused(what: impl Into<String>) -> PatchError {
        PatchError::Refused { what: what.into() }
    }
}

/// Changes programs on their way into the kernel.
pub struct Patcher(Box<Run>);

type Run =
    dyn FnMut(&ProgramSpec, &Linker<'_>, &mut LinkedProgram) -> Result<(), PatchError> + Send;

impl Patcher {
    /// Makes a patcher of a closure, which is called once for every program.
    /// What it asked of the editor is applied when it returns.
    pub fn new<F>(mut patch: F) -> Patcher
    where
        F: FnMut(&ProgramSpec, &mut ProgramEditor<'_>) -> Result<(), PatchError> + Send + 'static,
    {
        // The editor is only reached from here, so that it is not part of a
        // binary that makes no patcher.
        Patcher(Box::new(move |spec, linker, program| {
            let mut editor = ProgramEditor::new(linker, program);
            patch(spec, &mut editor)?;
            editor.apply()
        }))
    }

    /// Runs the patcher on a program that was linked by `linker`.
    ///
    /// # Errors
    /// What the closure returns, or a change it asked for that cannot be made.
    pub fn run(
        &mut self,
        spec: &ProgramSpec,
        linker: &Linker<'_>,
        program: &mut LinkedProgram,
    ) -> Result<(), PatchError> {
        (self.0)(spec, linker, program)
    }
}

impl fmt::Debug for Patcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Patcher")
    }
}

/// Looks at a linked program and changes it.
///
/// A change that fails leaves the program as it was. Changes that were not
/// applied are lost when the editor is dropped.
#[derive(Debug)]
pub struct ProgramEditor<'p> {
    linker: &'p Linker<'p>,
    program: &'p mut LinkedProgram,
    edits: Vec<Edit>,
    /// A reference to a function was removed.
    prune: bool,
}

impl<'p> ProgramEditor<'p> {
    /// An editor for a program that was linked by `linker`.
    pub fn new(linker: &'p Linker<'p>, program: &'p mut LinkedProgram) -> ProgramEditor<'p> {
        ProgramEditor {
            linker,
            program,
            edits: Vec::new(),
            prune: false,
        }
    }

    /// The object the program is from, whose maps and externs the
    /// instructions refer to by index.
    pub fn object(&self) -> &'p Object {
        self.linker.object()
    }

    /// The program as it stands, without the changes that wait.
    pub fn program(&self) -> &LinkedProgram {
        self.program
    }

    /// Name and positions of each function, the program's own first.
    pub fn functions(&self) -> impl Iterator<Item = (&'p str, Range<u32>)> + '_ {
        (0..self.function_count()).map(|index| {
            let name = self.linker.function_name(self.program, index);
            (name.unwrap_or_default(), self.bounds(index))
        })
    }

    /// Index of the map of this name.
    pub fn map(&self, name: &str) -> Option<u32> {
        let found = self.object().maps().iter().position(|m| m.name == name);
        found.map(|index| index as u32)
    }

    /// The instruction that starts at this position.
    pub fn unit(&self, at: u32) -> Option<Unit> {
        let insn = *self.program.insns.get(at as usize)?;
        if is_second(&self.program.insns, at) {
            return None;
        }
        let high = is_second(&self.program.insns, at + 1)
            .then(|| self.program.insns.get(at as usize + 1))
            .flatten();
        Some(Unit {
            at,
            insn,
            high: high.map(|second| second.imm),
            refers: self.reference(at, insn),
        })
    }

    /// All instructions.
    pub fn units(&self) -> impl Iterator<Item = Unit> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let unit = self.unit(at)?;
            at = unit.end();
            Some(unit)
        })
    }

    /// Positions of the instructions that `wanted` says yes to.
    pub fn find(&self, mut wanted: impl FnMut(&Unit) -> bool) -> Vec<u32> {
        let found = self.units().filter(|unit| wanted(unit));
        found.map(|unit| unit.at).collect()
    }

    /// An instruction as a line of text, with the names of what it refers to.
    pub fn disassemble(&self, unit: &Unit) -> String {
        let object = self.object();
        let map = |index: u32| object.maps().get(index as usize);
        let symbol = match unit.refers {
            Some(Reference::Function(index)) => {
                let name = self.linker.function_name(self.program, index as usize);
                name.map(str::to_owned)
            }
            Some(Reference::Symbol(FixupTarget::Map(index))) => {
                map(index).map(|map| format!("map[{}]", map.name))
            }
            Some(Reference::Symbol(FixupTarget::MapValue(index))) => {
                let offset = unit.high.unwrap_or(0) as u32;
                map(index).map(|map| format!("map[{}][0]+{offset}", map.name))
            }
            Some(Reference::Symbol(FixupTarget::Extern(index))) => {
                let symbol = object.externs().get(index as usize);
                symbol.map(|symbol| symbol.name.clone())
            }
            Some(Reference::Symbol(FixupTarget::JumpTable { first, .. })) => {
                Some(format!("jump_table[{first}]"))
            }
            Some(Reference::Jump(_)) | None => None,
        };
        disassemble(unit.insn, unit.high.unwrap_or(0), symbol.as_deref())
    }

    /// Puts a one-word instruction in the place of another, at once. A jump's
    /// offset counts in the program as it stands.
    ///
    /// # Errors
    /// [`PatchError::NotAnInstruction`]; [`PatchError::Split`] if either has
    /// two words.
    pub fn set(&mut self, at: u32, insn: Insn) -> Result<(), PatchError> {
        let unit = self.expect(at)?;
        if unit.high.is_some() || insn.is_ld_imm64() {
            return Err(PatchError::Split { at });
        }
        if let Some(word) = self.program.insns.get_mut(at as usize) {
            *word = insn;
        }
        self.prune |= matches!(unit.refers, Some(Reference::Function(_)));
        let fixups = &mut self.program.fixups;
        if let Ok(index) = fixups.binary_search_by_key(&at, |fixup| fixup.insn) {
            fixups.remove(index);
        }
        self.program.core_relos.retain(|relo| relo.insn != at);
        Ok(())
    }

    /// Makes an undefined symbol that the program loads (`asm("%0 = NAME ll")`
    /// in C, with no definition) the constant `value`, at once. Returns the
    /// number of instructions that load it; 0 if the program does not.
    ///
    /// # Errors
    /// [`PatchError::NotAConstant`] if an instruction other than a 64-bit load
    /// uses the symbol. Nothing is changed then.
    pub fn set_constant(&mut self, symbol: &str, value: u64) -> Result<usize, PatchError> {
        let externs = self.object().externs();
        let Some(index) = externs.iter().position(|e| e.name == symbol) else {
            return Ok(0);
        };
        let target = FixupTarget::Extern(index as u32);
        let uses = self.find(|unit| unit.refers == Some(Reference::Symbol(target)));
        for &at in &uses {
            if !is_second(&self.program.insns, at + 1) {
                let symbol = symbol.to_owned();
                return Err(PatchError::NotAConstant { symbol, at });
            }
        }
        for &at in &uses {
            let at = at as usize;
            if let Some([first, second]) = self.program.insns.get_mut(at..at + 2) {
                [*first, *second] = Insn::ld_imm64(first.dst(), 0, value);
            }
        }
        self.program.fixups.retain(|fixup| fixup.target != target);
        Ok(uses.len())
    }

    /// Inserts code before the instruction at `at`: whoever comes to it, by a
    /// jump or not, runs the code first. Code that is inserted here again runs
    /// after it. For the line records it belongs to the instruction's line.
    ///
    /// # Errors
    /// [`PatchError::NotAnInstruction`], and what is wrong with `code`:
    /// [`PatchError::Code`], [`PatchError::NoSuch`].
    pub fn insert_before(&mut self, at: u32, code: impl Into<Code>) -> Result<(), PatchError> {
        self.expect(at)?;
        self.add(self.function_at(at), at..at, Place::Before, code.into())
    }

    /// Inserts code after the instruction at `at`: it runs when that is done
    /// and has not jumped, and not on jumps to what follows. Code that is
    /// inserted here again runs after it. For the line records it belongs to
    /// the instruction's line.
    ///
    /// # Errors
    /// As [`ProgramEditor::insert_before`].
    pub fn insert_after(&mut self, at: u32, code: impl Into<Code>) -> Result<(), PatchError> {
        let end = self.expect(at)?.end();
        self.add(self.function_at(at), end..end, Place::After, code.into())
    }

    /// Inserts code that runs each time a function is entered, and not when
    /// the function jumps back to its first instruction. Function 0 is the
    /// program itself.
    ///
    /// # Errors
    /// [`PatchError::NoSuch`] and as [`ProgramEditor::insert_before`].
    pub fn prologue(&mut self, function: u32, code: impl Into<Code>) -> Result<(), PatchError> {
        self.check_reference(Reference::Function(function))?;
        let start = self.bounds(function as usize).start;
        self.add(function, start..start, Place::Entry, code.into())
    }

    /// Puts code in the place of whole instructions of one function. Jumps to
    /// the first of them go to the code; the others must not be jumped to.
    ///
    /// A function that nothing refers to any more is left out, because the
    /// kernel refuses code that cannot be reached.
    ///
    /// # Errors
    /// [`PatchError::NotAnInstruction`], [`PatchError::Range`] and as
    /// [`ProgramEditor::insert_before`].
    pub fn replace(&mut self, old: Range<u32>, code: impl Into<Code>) -> Result<(), PatchError> {
        let mut unit = self.expect(old.start)?;
        let function = self.function_at(old.start);
        let (start, end) = (old.start, old.end);
        if end <= start || end > self.bounds(function as usize).end {
            return Err(PatchError::Range { start, end });
        }
        let mut prune = false;
        loop {
            prune |= matches!(unit.refers, Some(Reference::Function(_)));
            if unit.end() >= end {
                break;
            }
            unit = self.expect(unit.end())?;
        }
        if unit.end() != end {
            return Err(PatchError::Range { start, end });
        }
        self.add(function, old, Place::Instead, code.into())?;
        self.prune |= prune;
        Ok(())
    }

    /// Removes whole instructions of one function, which must not be jumped to.
    ///
    /// # Errors
    /// As [`ProgramEditor::replace`].
    pub fn remove(&mut self, old: Range<u32>) -> Result<(), PatchError> {
        self.replace(old, Code::new())
    }

    /// Makes the changes that wait. Positions are those of the new program
    /// afterwards.
    ///
    /// # Errors
    /// [`PatchError::Overlap`], [`PatchError::TargetRemoved`],
    /// [`PatchError::BadTarget`], [`PatchError::TooFar`],
    /// [`PatchError::EmptyFunction`], [`PatchError::IndirectJump`]. The changes
    /// are dropped then and the program is as it was.
    pub fn apply(&mut self) -> Result<(), PatchError> {
        if self.edits.is_empty() && !self.prune {
            return Ok(());
        }
        self.rearrange()
    }

    fn rearrange(&mut self) -> Result<(), PatchError> {
        let mut edits = std::mem::take(&mut self.edits);
        edits.sort_by_key(|e| (e.function, e.old.start, e.place));
        let prune = std::mem::take(&mut self.prune);
        let (layout, fixups, targets) = layout::arrange(self, &edits, prune)?;
        self.program.jump_targets = targets;
        layout.commit(self.program, fixups);
        Ok(())
    }

    fn words(&self, range: Range<u32>) -> impl Iterator<Item = (u32, Insn)> {
        let words = range.start as usize..range.end as usize;
        let words = self.program.insns.get(words).unwrap_or_default();
        range.zip(words.iter().copied())
    }

    fn add(
        &mut self,
        function: u32,
        old: Range<u32>,
        place: Place,
        code: Code,
    ) -> Result<(), PatchError> {
        code.check(self)?;
        if !code.is_empty() || place == Place::Instead {
            self.edits.push(Edit {
                function,
                old,
                place,
                code,
            });
        }
        Ok(())
    }

    fn expect(&self, at: u32) -> Result<Unit, PatchError> {
        self.unit(at).ok_or(PatchError::NotAnInstruction { at })
    }

    fn check_reference(&self, target: Reference) -> Result<(), PatchError> {
        let object = self.object();
        let (kind, index, count) = match target {
            Reference::Jump(at) => return self.expect(at).map(drop),
            Reference::Function(index) => ("function", index, self.function_count()),
            Reference::Symbol(FixupTarget::Map(index) | FixupTarget::MapValue(index)) => {
                ("map", index, object.maps().len())
            }
            Reference::Symbol(FixupTarget::Extern(index)) => {
                ("extern", index, object.externs().len())
            }
            Reference::Symbol(FixupTarget::JumpTable { first, .. }) => {
                ("jump table", first, self.program.jump_targets.len())
            }
        };
        if (index as usize) < count {
            Ok(())
        } else {
            Err(PatchError::NoSuch { kind, index })
        }
    }

    /// Functions of the program; at least one, itself.
    fn function_count(&self) -> usize {
        self.program.placed.len().max(1)
    }

    fn bounds(&self, function: usize) -> Range<u32> {
        let start = |index: usize| self.program.placed.get(index).map(|p| p.start);
        start(function).unwrap_or(0)..start(function + 1).unwrap_or(self.program.insns.len() as u32)
    }

    fn function_at(&self, at: u32) -> u32 {
        self.program.locate(at).map_or(0, |(index, _)| index as u32)
    }

    /// What a word refers to.
    fn reference(&self, at: u32, insn: Insn) -> Option<Reference> {
        if let Some(jump) = jump_of(insn) {
            return match jump {
                Jump::Register => None,
                _ => Some(Reference::Jump(jump.target(at, insn))),
            };
        }
        if !matches!(insn.code, LD_IMM64 | CALL) {
            return None;
        }
        // First, because a call of an undefined function looks like one of a
        // subprogram.
        let fixups = &self.program.fixups;
        let next = fixups.partition_point(|fixup| fixup.insn < at);
        if let Some(fixup) = fixups.get(next).filter(|fixup| fixup.insn == at) {
            return Some(Reference::Symbol(fixup.target));
        }
        let start = function_reference(at, insn)?;
        let placed = &self.program.placed;
        let found = placed.binary_search_by_key(&start, |p| p.start).ok();
        found.map(|index| Reference::Function(index as u32))
    }
}
