//! `.BTF.ext`: function, line and CO-RE records, per ELF section.
//!
//! Records may be longer than what is known here (newer compilers add
//! fields); the extra bytes are carried along in raw slices.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::parse::{BtfError, BtfProblem, MAGIC};
use super::{Btf, TypeId};
use crate::cursor::{slice_at, u16_at, u32_at, words_at};
use crate::sort::sort;

/// `struct bpf_func_info` as it stands in an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FuncInfo {
    /// Byte offset of the function's first instruction in its section.
    pub insn_off: u32,
    /// Its `FUNC`.
    pub type_id: TypeId,
}

/// `struct bpf_line_info` as it stands in an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineInfo {
    /// Byte offset of the instruction in its section.
    pub insn_off: u32,
    /// Name of the source file.
    pub file_name_off: u32,
    /// Text of the line.
    pub line_off: u32,
    /// Line number.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

/// `struct bpf_core_relo` as it stands in an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoreRelo {
    /// Byte offset of the instruction in its section.
    pub insn_off: u32,
    /// Root type in the object's BTF.
    pub type_id: TypeId,
    /// Access string, such as `0:1:2`.
    pub access_off: u32,
    /// `enum bpf_core_relo_kind`.
    pub kind: u32,
}

impl FuncInfo {
    /// Smallest record in bytes.
    pub const SIZE: u32 = 8;

    /// Decodes the start of a record.
    pub fn from_bytes(record: &[u8]) -> Option<FuncInfo> {
        let [insn_off, type_id] = words_at(record, 0)?;
        Some(FuncInfo { insn_off, type_id })
    }
}

impl LineInfo {
    /// Smallest record in bytes.
    pub const SIZE: u32 = 16;

    /// Decodes the start of a record.
    pub fn from_bytes(record: &[u8]) -> Option<LineInfo> {
        let [insn_off, file_name_off, line_off, line_col] = words_at(record, 0)?;
        Some(LineInfo {
            insn_off,
            file_name_off,
            line_off,
            line: line_col >> 10,
            column: line_col & 0x3ff,
        })
    }
}

impl CoreRelo {
    /// Smallest record in bytes.
    pub const SIZE: u32 = 16;

    /// Decodes the start of a record.
    pub fn from_bytes(record: &[u8]) -> Option<CoreRelo> {
        let [insn_off, type_id, access_off, kind] = words_at(record, 0)?;
        Some(CoreRelo {
            insn_off,
            type_id,
            access_off,
            kind,
        })
    }
}

/// A parsed `.BTF.ext` section.
#[derive(Clone, Debug, Default)]
pub struct BtfExt<'a> {
    func: Table<'a>,
    line: Table<'a>,
    core: Table<'a>,
}

impl<'a> BtfExt<'a> {
    /// Reads and checks the section that belongs to `btf`: bounds, record
    /// sizes and section names.
    pub fn parse(bytes: &'a [u8], btf: &Btf<'a>) -> Result<BtfExt<'a>, BtfError> {
        use BtfProblem as P;
        let error = |what, offset| BtfError::new(what, offset, 0);
        if u32::try_from(bytes.len()).is_err() {
            return Err(error(P::TooLarge, 0));
        }
        match u16_at(bytes, 0) {
            Some(MAGIC) => {}
            Some(m) if m.swap_bytes() == MAGIC => return Err(error(P::ByteOrder, 0)),
            Some(_) => return Err(error(P::Magic, 0)),
            None => return Err(error(P::Truncated, bytes.len())),
        }
        if bytes.get(2) != Some(&1) {
            return Err(error(P::Version, 2));
        }
        let Some(hdr_len) = u32_at(bytes, 4) else {
            return Err(error(P::Truncated, bytes.len()));
        };
        let hdr_len = hdr_len as usize;
        // Offset and length of the function and line tables always, of the
        // CO-RE table in headers that are long enough.
        if hdr_len < 24 {
            return Err(error(P::Header, 4));
        }
        let (Some(header), Some(body)) = (bytes.get(..hdr_len), bytes.get(hdr_len..)) else {
            return Err(error(P::Truncated, 4));
        };
        let table = |at: usize, min: u32| -> Result<Table<'a>, BtfError> {
            let Some([offset, len]) = words_at(header, at) else {
                return Ok(Table::default());
            };
            if len == 0 {
                return Ok(Table::default());
            }
            if offset % 4 != 0 {
                return Err(error(P::Header, at));
            }
            match slice_at(body, offset as usize, len as usize) {
                Some(data) => Table::parse(data, hdr_len + offset as usize, min, btf),
                None => Err(error(P::Truncated, at)),
            }
        };
        Ok(BtfExt {
            func: table(8, FuncInfo::SIZE)?,
            line: table(16, LineInfo::SIZE)?,
            core: table(24, CoreRelo::SIZE)?,
        })
    }

    /// Function records: first [`FuncInfo`], then whatever was added.
    pub fn func_info(&self) -> &Table<'a> {
        &self.func
    }

    /// Line records.
    pub fn line_info(&self) -> &Table<'a> {
        &self.line
    }

    /// CO-RE records.
    pub fn core_relos(&self) -> &Table<'a> {
        &self.core
    }
}

/// Whether a `.BTF.ext` section has CO-RE records, as far as its header can be
/// read.
pub(crate) fn has_core_relos(bytes: &[u8]) -> bool {
    let long = u32_at(bytes, 4).is_some_and(|len| len >= 32);
    u16_at(bytes, 0) == Some(MAGIC) && long && u32_at(bytes, 28).is_some_and(|len| len != 0)
}

/// Records of one sort, grouped by the ELF section they describe.
#[derive(Clone, Debug, Default)]
pub struct Table<'a> {
    record_size: u32,
    blocks: Vec<Block<'a>>,
}

impl<'a> Table<'a> {
    fn parse(data: &'a [u8], at: usize, min: u32, btf: &Btf<'a>) -> Result<Table<'a>, BtfError> {
        use BtfProblem as P;
        let fail = |what, offset: usize| Err(BtfError::new(what, at + offset, 0));
        let Some(record_size) = u32_at(data, 0) else {
            return fail(P::Truncated, 0);
        };
        if record_size < min || record_size % 4 != 0 {
            return fail(P::RecordSize, 0);
        }
        let mut blocks = Vec::new();
        let mut offset = 4;
        while offset < data.len() {
            let Some([name_off, count]) = words_at(data, offset) else {
                return fail(P::Truncated, offset);
            };
            if !btf.has_string(name_off) {
                return fail(P::Name, offset);
            }
            if count == 0 {
                return fail(P::RecordSize, offset + 4);
            }
            let records = (count as usize)
                .checked_mul(record_size as usize)
                .and_then(|len| slice_at(data, offset + 8, len));
            let Some(records) = records else {
                return fail(P::Truncated, offset + 4);
            };
            blocks.push(Block {
                section: btf.name(name_off),
                record_size,
                records,
                order: order(records, record_size as usize),
            });
            offset += 8 + records.len();
        }
        Ok(Table {
            record_size,
            blocks,
        })
    }

    /// Bytes per record; 0 if the table is absent.
    pub fn record_size(&self) -> u32 {
        self.record_size
    }

    /// Groups of records, in the order of the file.
    pub fn blocks(&self) -> &[Block<'a>] {
        &self.blocks
    }

    /// The records of ELF section `name`.
    pub fn section(&self, name: &str) -> Option<&Block<'a>> {
        self.blocks.iter().find(|block| block.section == name)
    }

    /// Records of section `name` whose instruction is in `insns` (numbers of
    /// instructions, not bytes); empty if there are none.
    pub fn records_in(&self, name: &str, insns: Range<u32>) -> Cow<'a, [u8]> {
        match self.section(name) {
            Some(block) => block.records_in(insns),
            None => Cow::Borrowed(&[]),
        }
    }
}

/// Numbers of the records in the order of their instructions; `None` if that
/// is how they stand.
fn order(records: &[u8], size: usize) -> Option<Arc<[u32]>> {
    let records = records.chunks_exact(size);
    let insn = |record: &[u8]| u32_at(record, 0);
    if records.clone().is_sorted_by_key(insn) {
        return None;
    }
    let mut places: Vec<_> = records.map(insn).zip(0..).collect();
    sort(&mut places, |a, b| a < b);
    Some(places.into_iter().map(|(_, nth)| nth).collect())
}

/// The records of one ELF section.
#[derive(Clone, Debug)]
pub struct Block<'a> {
    section: &'a str,
    record_size: u32,
    records: &'a [u8],
    /// See [`order`].
    order: Option<Arc<[u32]>>,
}

impl<'a> Block<'a> {
    /// Name of the ELF section.
    pub fn section(&self) -> &'a str {
        self.section
    }

    /// Bytes per record.
    pub fn record_size(&self) -> u32 {
        self.record_size
    }

    /// All records as they stand in the file.
    pub fn raw(&self) -> &'a [u8] {
        self.records
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len() / self.record_size as usize
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Each record's bytes.
    pub fn records(&self) -> std::slice::ChunksExact<'a, u8> {
        self.records.chunks_exact(self.record_size as usize)
    }

    /// Records decoded as function records.
    pub fn func_infos(&self) -> impl Iterator<Item = FuncInfo> + use<'a> {
        self.records().filter_map(FuncInfo::from_bytes)
    }

    /// Records decoded as line records.
    pub fn line_infos(&self) -> impl Iterator<Item = LineInfo> + use<'a> {
        self.records().filter_map(LineInfo::from_bytes)
    }

    /// Records decoded as CO-RE records.
    pub fn core_relos(&self) -> impl Iterator<Item = CoreRelo> + use<'a> {
        self.records().filter_map(CoreRelo::from_bytes)
    }

    /// Records whose instruction is in `insns` (numbers of instructions, not
    /// bytes), in that order. Compilers write records in order, so this is a
    /// binary search and a borrow; records out of order are copied.
    pub fn records_in(&self, insns: Range<u32>) -> Cow<'a, [u8]> {
        let bytes = insns.start as u64 * 8..insns.end as u64 * 8;
        let first = self.records_before(bytes.start);
        let end = self.records_before(bytes.end);
        let Some(order) = &self.order else {
            let size = self.record_size as usize;
            return Cow::Borrowed(self.records.get(first * size..end * size).unwrap_or(&[]));
        };
        let mut found = Vec::new();
        for &nth in order.get(first..end).unwrap_or_default() {
            found.extend_from_slice(self.record(nth as usize));
        }
        Cow::Owned(found)
    }

    fn record(&self, nth: usize) -> &'a [u8] {
        let size = self.record_size as usize;
        slice_at(self.records, nth * size, size).unwrap_or_default()
    }

    /// Number of records before a byte of the section.
    fn records_before(&self, byte: u64) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let nth = match &self.order {
                Some(order) => order.get(middle).copied().unwrap_or_default() as usize,
                None => middle,
            };
            if u32_at(self.record(nth), 0).is_some_and(|at| u64::from(at) < byte) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::encode::BtfBuilder;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// One table at `slot` (0 functions, 1 lines, 2 CO-RE).
    fn ext(slot: usize, table: &[u32]) -> Vec<u8> {
        let mut header = [0_u32; 8];
        header[0] = u32::from_ne_bytes([MAGIC.to_ne_bytes()[0], MAGIC.to_ne_bytes()[1], 1, 0]);
        header[1] = 32;
        header[2 + slot * 2 + 1] = table.len() as u32 * 4;
        let mut bytes = words(&header);
        bytes.extend(words(table));
        bytes
    }

    fn strings() -> (Vec<u8>, [u32; 2]) {
        let mut b = BtfBuilder::new();
        let names = [b.add_string(b".text"), b.add_string(b"xdp")];
        (b.to_bytes().unwrap(), names)
    }

    #[test]
    fn records_by_section_and_instruction() {
        let (btf, [text, xdp]) = strings();
        let btf = Btf::parse(&btf).unwrap();
        // Records of 12 bytes: the last word is from a newer compiler.
        let bytes = ext(
            0,
            &[
                12, xdp, 3, 0, 1, 91, 16, 2, 92, 40, 3, 93, text, 3, 24, 4, 94, 0, 5, 95, 8, 6, 96,
            ],
        );
        let ext = BtfExt::parse(&bytes, &btf).unwrap();
        let table = ext.func_info();
        assert_eq!((table.record_size(), table.blocks().len()), (12, 2));
        let ids = |section, insns| {
            let found = table.records_in(section, insns);
            let borrowed = matches!(found, Cow::Borrowed(_));
            let ids: Vec<_> = found
                .chunks(12)
                .map(|record| FuncInfo::from_bytes(record).unwrap().type_id)
                .collect();
            (ids, borrowed)
        };
        assert_eq!(ids("xdp", 0..2), (vec![1], true));
        assert_eq!(ids("xdp", 1..6), (vec![2, 3], true));
        assert_eq!(ids("xdp", 0..u32::MAX), (vec![1, 2, 3], true));
        assert_eq!(ids("xdp", 6..9), (vec![], true));
        assert_eq!(ids("none", 0..9), (vec![], true));
        // Out of order: sorted.
        assert_eq!(ids(".text", 0..2), (vec![5, 6], false));
        assert_eq!(ids(".text", 1..4), (vec![6, 4], false));
        let block = table.section(".text").unwrap();
        assert_eq!((block.len(), block.section()), (3, ".text"));
        assert_eq!(
            block.func_infos().map(|f| f.insn_off).collect::<Vec<_>>(),
            [24, 0, 8]
        );
        assert!(ext.core_relos().blocks().is_empty());
    }

    #[test]
    fn lines_and_relocations() {
        let (btf, [text, _]) = strings();
        let btf = Btf::parse(&btf).unwrap();
        let lines = ext(1, &[16, text, 1, 8, 1, 2, 10 << 10 | 3]);
        let lines = BtfExt::parse(&lines, &btf).unwrap();
        let line = lines.line_info().blocks()[0].line_infos().next().unwrap();
        assert_eq!((line.insn_off, line.line, line.column), (8, 10, 3));
        let relos = ext(2, &[16, text, 1, 8, 5, 1, 2]);
        let relos = BtfExt::parse(&relos, &btf).unwrap();
        let relo = relos.core_relos().blocks()[0].core_relos().next().unwrap();
        assert_eq!(
            (relo.insn_off, relo.type_id, relo.access_off, relo.kind),
            (8, 5, 1, 2)
        );
    }

    #[test]
    fn damage() {
        let (btf, [text, _]) = strings();
        let btf = Btf::parse(&btf).unwrap();
        let problem = |bytes: &[u8]| BtfExt::parse(bytes, &btf).unwrap_err().what;
        assert_eq!(problem(&ext(0, &[4, text, 1, 0])), BtfProblem::RecordSize);
        assert_eq!(problem(&ext(0, &[10, text, 1, 0])), BtfProblem::RecordSize);
        assert_eq!(problem(&ext(0, &[8, text, 0])), BtfProblem::RecordSize);
        assert_eq!(
            problem(&ext(0, &[8, text, u32::MAX])),
            BtfProblem::Truncated
        );
        assert_eq!(problem(&ext(0, &[8, text])), BtfProblem::Truncated);
        assert_eq!(problem(&ext(0, &[8, 99, 1, 0, 0])), BtfProblem::Name);
        let good = ext(2, &[16, text, 1, 8, 5, 1, 2]);
        for len in 0..good.len() {
            assert!(BtfExt::parse(&good[..len], &btf).is_err(), "{len}");
        }
        let mut swapped = good.clone();
        swapped.swap(0, 1);
        assert_eq!(problem(&swapped), BtfProblem::ByteOrder);
        let mut short = good.clone();
        short[4] = 20;
        assert_eq!(problem(&short), BtfProblem::Header);
    }
}
