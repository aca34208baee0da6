//! Jump tables: where the indirect jumps of clang 22 and later may go.

use super::parser::Parser;
use super::{INSN_SIZE, JumpTable, Target};
use crate::error::{Fault, malformed_in};
use crate::sort::sort;

/// The section of jump tables. It is a word of 8 bytes for each target, which
/// counts bytes from the start of the section with the code.
pub(super) const JUMP_TABLES: &str = ".jumptables";

/// Bytes of an entry.
const ENTRY: u64 = 8;

impl Parser<'_> {
    pub(super) fn holds_jumps(&self, section: usize) -> bool {
        self.jump_tables.is_some_and(|(index, _)| index == section)
    }

    /// Reads the tables, one for each symbol. None reaches into another: each
    /// is copied into the programs that use it.
    pub(super) fn read_jump_tables(&mut self) -> Result<(), Fault> {
        let Some((_, bytes)) = self.jump_tables else {
            return Ok(());
        };
        let mut symbols = std::mem::take(&mut self.jump_symbols);
        sort(&mut symbols, |a, b| a.0 < b.0);
        symbols.dedup_by_key(|s| s.0);
        let mut symbols = symbols.into_iter().peekable();
        while let Some((start, size)) = symbols.next() {
            let end = symbols.peek().map_or(bytes.len() as u64, |next| next.0);
            let room = end.saturating_sub(start);
            let size = if size == 0 { room } else { size };
            let entries = usize::try_from(start)
                .ok()
                .zip(usize::try_from(size).ok())
                .filter(|_| size <= room && start % ENTRY == 0 && size % ENTRY == 0)
                .and_then(|(start, size)| bytes.get(start..start.checked_add(size)?));
            let Some(entries) = entries.filter(|_| u32::try_from(end).is_ok()) else {
                return Err(malformed_in(
                    JUMP_TABLES,
                    format_args!("the table at {start:#x} with {size} bytes does not fit"),
                ));
            };
            let (words, _) = entries.as_chunks();
            let targets = words.iter().map(|word| {
                let byte = u64::from_ne_bytes(*word);
                u32::try_from(byte / INSN_SIZE as u64)
                    .ok()
                    .filter(|_| byte % INSN_SIZE as u64 == 0)
                    .ok_or_else(|| {
                        malformed_in(
                            JUMP_TABLES,
                            format_args!(
                                "an entry of the table at {start:#x} is {byte:#x}, where no \
                                 instruction can start"
                            ),
                        )
                    })
            });
            self.object.jump_tables.push(JumpTable {
                start: start as u32,
                targets: targets.collect::<Result<_, _>>()?,
            });
        }
        Ok(())
    }

    /// The table that a byte of the section is in.
    pub(super) fn jump_table_at(&self, byte: u64) -> Option<Target> {
        let tables = &self.object.jump_tables;
        let next = tables.partition_point(|t| u64::from(t.start) <= byte);
        let index = next.checked_sub(1)?;
        let table = tables.get(index)?;
        let offset = byte - u64::from(table.start);
        (offset < table.targets.len() as u64 * ENTRY).then_some(Target::JumpTable {
            table: index as u32,
            offset: offset as u32,
        })
    }
}
