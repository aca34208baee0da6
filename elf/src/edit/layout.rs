//! The program with its changes: cut into pieces, laid out anew, and pointed
//! at its own parts again.

use std::ops::Range;

use ebpf_manager_sys::abi::insn::Insn;

use super::code::{Code, Jump, Reference, function_reference, is_second, jump_of};
use super::{PatchError, ProgramEditor};
use crate::link::{Fixup, FixupTarget, LinkedProgram, Placed};
use crate::sort::sort;

/// A change that waits to be applied.
#[derive(Debug)]
pub(super) struct Edit {
    pub(super) function: u32,
    /// What is replaced; for an insertion empty, at its place.
    pub(super) old: Range<u32>,
    pub(super) place: Place,
    pub(super) code: Code,
}

/// The order of changes at one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Behind the previous instruction: jumps go past it.
    After,
    /// Before a function's first instruction: calls run it, jumps do not.
    Entry,
    /// Jumps to the instruction run it.
    Before,
    /// In the place of instructions.
    Instead,
}

/// A stretch of the new program.
enum Piece<'e> {
    Keep(Range<u32>),
    Edit(&'e Edit),
}

/// What became of an instruction word.
#[derive(Clone, Copy)]
struct Spot {
    /// Where a jump to it goes.
    land: u32,
    /// Where it is, or one of the marks below.
    own: u32,
}

/// Gone, and jumps to it are an error.
const GONE: u32 = u32::MAX;
/// Gone, and jumps to it land on other code.
const REPLACED: u32 = u32::MAX - 1;

/// The new program, the fixups of inserted code, and the targets of jump
/// tables.
type Arranged = (Layout, Vec<Fixup>, Vec<u32>);

/// Lays the program out with these changes.
pub(super) fn arrange(
    editor: &ProgramEditor<'_>,
    edits: &[Edit],
    prune: bool,
) -> Result<Arranged, PatchError> {
    let pieces = pieces(editor, edits)?;
    let live = live(editor, &pieces, prune);
    let mut layout = Layout::new(editor, &pieces, &live)?;
    let fixups = layout.resolve(editor, &pieces, &live)?;
    let targets = layout.jump_targets(editor)?;
    Ok((layout, fixups, targets))
}

/// Cuts the program where it is changed.
fn pieces<'e>(
    editor: &ProgramEditor<'_>,
    edits: &'e [Edit],
) -> Result<Vec<(usize, Piece<'e>)>, PatchError> {
    let mut pieces = Vec::with_capacity(edits.len() * 2 + editor.function_count());
    let mut edits = edits.iter().peekable();
    for function in 0..editor.function_count() {
        let Range { mut start, end } = editor.bounds(function);
        while let Some(edit) = edits.next_if(|e| e.function as usize == function) {
            let at = edit.old.start;
            if at < start {
                return Err(PatchError::Overlap { at });
            }
            if at > start {
                pieces.push((function, Piece::Keep(start..at)));
            }
            pieces.push((function, Piece::Edit(edit)));
            start = edit.old.end;
        }
        if start < end {
            pieces.push((function, Piece::Keep(start..end)));
        }
    }
    Ok(pieces)
}

/// Which functions the program still reaches.
fn live(editor: &ProgramEditor<'_>, pieces: &[(usize, Piece<'_>)], prune: bool) -> Vec<bool> {
    let mut live = vec![!prune; editor.function_count()];
    if !prune {
        return live;
    }
    let mut edges = Vec::new();
    for (caller, piece) in pieces {
        let mut refer = |target| {
            if let Reference::Function(callee) = target {
                edges.push((*caller, callee as usize));
            }
        };
        match piece {
            Piece::Keep(range) => {
                for (at, insn) in editor.words(range.clone()) {
                    editor.reference(at, insn).map(&mut refer);
                }
            }
            Piece::Edit(edit) => edit.code.refs.iter().for_each(|r| refer(r.1)),
        }
    }
    let mut reached = vec![0];
    while let Some(function) = reached.pop() {
        if std::mem::replace(&mut live[function], true) {
            continue;
        }
        // In the order of their callers, as the pieces are.
        let first = edges.partition_point(|e| e.0 < function);
        let calls = edges[first..].iter().take_while(|e| e.0 == function);
        reached.extend(calls.map(|e| e.1));
    }
    live
}

/// The new program in the making.
pub(super) struct Layout {
    insns: Vec<Insn>,
    /// By word of the old program.
    spots: Vec<Spot>,
    /// By function: where it is now. Empty for one that is left out.
    functions: Vec<Range<u32>>,
}

impl Layout {
    /// Lays out the pieces. What they refer to is still where it was.
    fn new(
        editor: &ProgramEditor<'_>,
        pieces: &[(usize, Piece<'_>)],
        live: &[bool],
    ) -> Result<Layout, PatchError> {
        let old = &editor.program.insns;
        let nowhere = Spot {
            land: GONE,
            own: GONE,
        };
        let added = pieces.iter().map(|(_, piece)| match piece {
            Piece::Keep(_) => 0,
            Piece::Edit(edit) => edit.code.len(),
        });
        let mut layout = Layout {
            insns: Vec::with_capacity(old.len() + added.sum::<usize>()),
            spots: vec![nowhere; old.len()],
            functions: vec![0..0; live.len()],
        };
        let mut current = usize::MAX;
        // Where the code inserted before the next instruction starts.
        let mut before = None;
        for (function, piece) in pieces {
            if !live[*function] {
                continue;
            }
            let start = layout.insns.len() as u32;
            if *function != current {
                current = *function;
                layout.functions[current].start = start;
            }
            match piece {
                Piece::Keep(range) => {
                    let words = range.start as usize..range.end as usize;
                    let kept = old.get(words.clone()).unwrap_or_default();
                    layout.insns.extend_from_slice(kept);
                    let spots = layout.spots.get_mut(words).unwrap_or_default();
                    for (new, spot) in (start..).zip(spots) {
                        let land = before.take().unwrap_or(new);
                        *spot = Spot { land, own: new };
                    }
                }
                Piece::Edit(edit) => {
                    layout.insns.extend_from_slice(&edit.code.insns);
                    let end = layout.insns.len() as u32;
                    match edit.place {
                        Place::After | Place::Entry => {}
                        Place::Before => before = before.or(Some(start)),
                        Place::Instead => {
                            let words = edit.old.start as usize..edit.old.end as usize;
                            let mut land = before.take().unwrap_or(start);
                            let mut own = if land < end { REPLACED } else { GONE };
                            for spot in layout.spots.get_mut(words).unwrap_or_default() {
                                *spot = Spot { land, own };
                                (land, own) = (end, GONE);
                            }
                        }
                    }
                }
            }
            layout.functions[current].end = layout.insns.len() as u32;
        }
        for (function, range) in layout.functions.iter().enumerate() {
            if live[function] && range.is_empty() {
                let at = editor.bounds(function).start;
                return Err(PatchError::EmptyFunction { at });
            }
        }
        Ok(layout)
    }

    /// Points jumps and calls at the new places; the fixups that inserted code
    /// brings.
    fn resolve(
        &mut self,
        editor: &ProgramEditor<'_>,
        pieces: &[(usize, Piece<'_>)],
        live: &[bool],
    ) -> Result<Vec<Fixup>, PatchError> {
        let mut fixups = Vec::new();
        let mut new = 0;
        for (_, piece) in pieces.iter().filter(|p| live[p.0]) {
            match piece {
                Piece::Keep(range) => {
                    for (at, insn) in editor.words(range.clone()) {
                        let from = new;
                        new += 1;
                        let to = match editor.reference(at, insn) {
                            Some(Reference::Jump(target)) => self.landing(editor, at, target)?,
                            Some(Reference::Function(f)) => self.start(f),
                            None if jump_of(insn).is_some() => {
                                if !editor.program.jump_targets.is_empty() {
                                    continue;
                                }
                                return Err(PatchError::IndirectJump { at });
                            }
                            None if function_reference(at, insn).is_some() => {
                                return Err(PatchError::BadTarget { at });
                            }
                            Some(Reference::Symbol(_)) | None => continue,
                        };
                        self.retarget(at, from, to)?;
                    }
                }
                Piece::Edit(edit) => {
                    let at = edit.old.start;
                    for &(index, target) in &edit.code.refs {
                        let from = new + index;
                        let to = match target {
                            Reference::Jump(target) => self.landing(editor, at, target)?,
                            Reference::Function(f) => self.start(f),
                            Reference::Symbol(target) => {
                                fixups.push(Fixup { insn: from, target });
                                continue;
                            }
                        };
                        self.retarget(at, from, to)?;
                    }
                    new += edit.code.len() as u32;
                }
            }
        }
        Ok(fixups)
    }

    /// The targets of jump tables where they are now; of those that are not in
    /// use any more, where they were.
    fn jump_targets(&self, editor: &ProgramEditor<'_>) -> Result<Vec<u32>, PatchError> {
        let mut targets = editor.program.jump_targets.clone();
        for fixup in &editor.program.fixups {
            let FixupTarget::JumpTable { first, count } = fixup.target else {
                continue;
            };
            let spot = self.spots.get(fixup.insn as usize);
            if spot.is_none_or(|spot| spot.own >= REPLACED) {
                continue;
            }
            let range = first as usize..first as usize + count as usize;
            for target in targets.get_mut(range).unwrap_or_default() {
                *target = self.landing(editor, fixup.insn, *target)?;
            }
        }
        Ok(targets)
    }

    /// Where a function starts now.
    fn start(&self, function: u32) -> u32 {
        let range = self.functions.get(function as usize);
        range.map_or(0, |range| range.start)
    }

    /// Makes the jump or reference at `from` go to `to`, both in the new
    /// program. An error names `at`, in the old one.
    fn retarget(&mut self, at: u32, from: u32, to: u32) -> Result<(), PatchError> {
        let distance = i64::from(to) - i64::from(from) - 1;
        let far = |_| PatchError::TooFar { at, distance };
        if let Some(insn) = self.insns.get_mut(from as usize) {
            match jump_of(*insn) {
                Some(Jump::Offset) => insn.off = i16::try_from(distance).map_err(far)?,
                _ => insn.imm = i32::try_from(distance).map_err(far)?,
            }
        }
        Ok(())
    }

    /// Where a jump from `at` to `target`, both in the old program, goes now.
    fn landing(&self, editor: &ProgramEditor<'_>, at: u32, target: u32) -> Result<u32, PatchError> {
        match self.spots.get(target as usize) {
            Some(_) if is_second(&editor.program.insns, target) => {
                Err(PatchError::BadTarget { at })
            }
            Some(spot) if spot.own == GONE => Err(PatchError::TargetRemoved { at, target }),
            Some(spot) => Ok(spot.land),
            None => Err(PatchError::BadTarget { at }),
        }
    }

    /// Puts the new program in the place of the old one.
    pub(super) fn commit(self, program: &mut LinkedProgram, fixups: Vec<Fixup>) {
        let own = |insn: &mut u32| match self.spots.get(*insn as usize) {
            Some(spot) if spot.own < REPLACED => {
                *insn = spot.own;
                true
            }
            _ => false,
        };
        program.fixups.retain_mut(|fixup| own(&mut fixup.insn));
        if !fixups.is_empty() {
            program.fixups.extend(fixups);
            sort(&mut program.fixups, |a, b| a.insn < b.insn);
        }
        program.core_relos.retain_mut(|relo| own(&mut relo.insn));

        let placed = std::mem::take(&mut program.placed);
        let place = |insn: u32| {
            let next = placed.partition_point(|p| p.start <= insn).max(1);
            let start = placed.get(next - 1).map_or(0, |p| p.start);
            let range = self.functions.get(next - 1)?;
            // The record of a function's first instruction marks its start.
            let at = if insn == start {
                range.start
            } else {
                self.spots.get(insn as usize)?.land
            };
            (at < range.end).then_some(at)
        };
        move_records(&mut program.func_info, program.func_info_rec_size, &place);
        move_records(&mut program.line_info, program.line_info_rec_size, &place);
        program.placed = placed
            .into_iter()
            .zip(&self.functions)
            .filter(|(_, range)| !range.is_empty())
            .map(|(placed, range)| Placed {
                start: range.start,
                ..placed
            })
            .collect();
        program.insns = self.insns;
    }
}

/// Moves records to where `place` says, and drops those it gives no place. Of
/// several that come together, as those of removed instructions do with that
/// of what follows, the last one holds: the kernel wants them to ascend.
fn move_records(records: &mut Vec<u8>, size: u32, place: &dyn Fn(u32) -> Option<u32>) {
    let size = (size as usize).max(4);
    let (mut kept, mut last) = (0, None);
    for from in (0..records.len() / size).map(|index| index * size) {
        let word = records.get(from..).and_then(|r| r.first_chunk::<4>());
        let Some(at) = word.and_then(|word| place(u32::from_ne_bytes(*word))) else {
            continue;
        };
        if last.replace(at) == Some(at) {
            kept -= size;
        }
        records.copy_within(from..from + size, kept);
        if let Some(word) = records.get_mut(kept..kept + 4) {
            word.copy_from_slice(&at.to_ne_bytes());
        }
        kept += size;
    }
    records.truncate(kept);
}
