//! Jump tables: where the indirect jumps of clang 22 and later may go.

use object::read::elf::Sym;
use object::{NativeEndian, elf};

use super::Target;
use super::file::E;
use super::parser::Parser;
use crate::error::Fault;

/// The section of jump tables. It is a word of 8 bytes for each target, which
/// counts bytes from the start of the section with the code.
pub(super) const JUMP_TABLES: &str = ".jumptables";

/// Bytes of an entry.
pub(crate) const ENTRY: usize = 8;

impl Parser<'_> {
    /// The table that a symbol names. It is copied into the programs that use
    /// it.
    pub(super) fn jump_table(
        &self,
        symbol: &elf::Sym64<NativeEndian>,
    ) -> Result<Option<Target>, Fault> {
        let (start, len) = (symbol.st_value(E), symbol.st_size(E));
        let size = self.object.jump_targets.len() as u64;
        if (start | len) % ENTRY as u64 != 0 || start > size || len > size - start {
            return Ok(None);
        }
        self.charge(len as usize)?;
        Ok(Some(Target::JumpTable {
            start: start as u32,
            len: len as u32,
        }))
    }
}
