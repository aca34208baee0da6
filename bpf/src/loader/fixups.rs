//! What takes the place of maps and externs in a program's instructions.

use std::os::fd::{AsFd, AsRawFd};

use ebpf_manager_elf::{FixupTarget, LinkedProgram, Object};
use ebpf_manager_sys::abi::insn::Insn;
use ebpf_manager_sys::bpf::MapFd;

use super::entry::Entry;
use super::jumps::{make_jump_table, refused};
use crate::error::ProgramError;
use crate::externs::Externs;
use crate::map::Map;

/// Puts descriptors, and what stands for externs, where instructions wait for
/// them.
pub(super) fn apply_fixups(
    object: &Object,
    externs: &Externs<'_>,
    entry: &Entry<'_>,
    maps: &[Option<Map>],
    jump_tables: &mut Vec<MapFd>,
    linked: &mut LinkedProgram,
) -> Result<(), ProgramError> {
    jump_tables.clear();
    let descriptor = |index: usize| entry.map(maps, index).map(|m| m.as_fd().as_raw_fd());
    let config = object.config_map().and_then(descriptor).unwrap_or(-1);
    for fixup in &linked.fixups {
        match fixup.target {
            FixupTarget::Map(index) | FixupTarget::MapValue(index) => {
                let at = fixup.insn as usize;
                if let Some(words) = linked.insns.get_mut(at..at + 2) {
                    match descriptor(index as usize) {
                        Some(fd) => words[0].imm = fd,
                        None => words.fill(Insn::call((NO_MAP + index.min(NO_MAP_RANGE)) as i32)),
                    }
                }
            }
            FixupTarget::JumpTable { first, count } => {
                let range = first as usize..first as usize + count as usize;
                if cfg!(feature = "jump-tables")
                    && let Some(table) = linked.jump_targets.get(range)
                {
                    let map = make_jump_table(table, &mut linked.insns);
                    let map = map.map_err(|err| refused(&entry.spec.name, err))?;
                    if let Some(word) = linked.insns.get_mut(fixup.insn as usize) {
                        word.imm = map.as_fd().as_raw_fd();
                    }
                    jump_tables.push(map);
                }
            }
            FixupTarget::Extern(index) => {
                let at = fixup.insn as usize;
                let applied = externs.apply(index, &mut linked.insns, at, config);
                applied.map_err(|reason| {
                    let symbol = object.externs().get(index as usize);
                    ProgramError::UndefinedSymbol {
                        program: entry.spec.name.clone(),
                        insn: fixup.insn,
                        symbol: symbol.map(|s| s.name.clone()).unwrap_or_default(),
                        reason: Box::new(reason),
                    }
                })?;
            }
        }
    }
    Ok(())
}

/// Helper number that stands where a program uses a map that was not created,
/// plus the index of the map: the verifier names it if the place can be
/// reached. libbpf counts from the same number.
const NO_MAP: u32 = 2_001_000_000;

/// Maps told apart by it.
const NO_MAP_RANGE: u32 = 999_999;

/// What the verifier stumbled over when it reports an unknown function of
/// this number.
pub(super) fn explain_skipped(object: &Object, function: u32) -> Option<String> {
    let index = function.checked_sub(NO_MAP)? as usize;
    let map = object.maps().get(index).filter(|map| map.skip)?;
    Some(format!("uses the map {}, which is not created", map.name))
}
