//! Seeded damage to bytes, and as much of ELF as is needed to aim it.

use std::ops::Range;

/// Values at the edges of what parsers compute with.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x00ff_ffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff8,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Damages bytes as its seed says (xorshift64*).
pub(crate) struct Mutator(u64);

impl Mutator {
    pub(crate) fn new(seed: u64) -> Mutator {
        // Neighbouring seeds must not begin alike, and the state not be 0.
        Mutator((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// Less than `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Damages up to eight places within `place`; tells what was done.
    pub(crate) fn damage(&mut self, bytes: &mut [u8], place: Range<usize>) -> String {
        let mut done = String::new();
        for _ in 0..=self.below(8) {
            let what = self.once(&mut bytes[place.clone()], place.start);
            done.push_str(&what);
        }
        done
    }

    fn once(&mut self, bytes: &mut [u8], start: usize) -> String {
        let len = bytes.len();
        let at = self.below(len);
        // Fields are aligned, so most damage is.
        let width = 1 << self.below(4);
        let at = if self.below(4) == 0 {
            at
        } else {
            at & !(width - 1)
        };
        let field = at..(at + width).min(len);
        let described = |what: &str| format!("{what} at {:#x}; ", start + at);
        match self.below(7) {
            0 => {
                bytes[at] ^= 1 << self.below(8);
                described("a bit")
            }
            1 | 2 => {
                let edge = EDGES[self.below(EDGES.len())];
                let word = if self.below(2) == 0 { edge } else { len as u64 };
                let word = word.wrapping_add(self.below(3) as u64).wrapping_sub(1);
                let field = &mut bytes[field];
                let size = field.len();
                field.copy_from_slice(&word.to_le_bytes()[..size]);
                described(&format!("{word:#x}"))
            }
            3 => {
                let by = [1, 4, 8, 12, 16, 24][self.below(6)] as u8;
                let down = self.below(2) == 0;
                bytes[at] = if down {
                    bytes[at].wrapping_sub(by)
                } else {
                    bytes[at].wrapping_add(by)
                };
                described("a little more or less")
            }
            4 => {
                let to = (at + self.below(32)).min(len);
                let value = [0, 0xff, b'x'][self.below(3)];
                bytes[at..to].fill(value);
                described(&format!("{} times {value:#x}", to - at))
            }
            5 => {
                // Another field of the same sort, so that references stay
                // plausible and become circular or crossed.
                let from = self.below(len) & !(width - 1);
                let count = width.min(len - from).min(len - at);
                bytes.copy_within(from..from + count, at);
                described(&format!("{count} bytes of {:#x}", start + from))
            }
            _ => {
                let count = [12, 16, 24, 64][self.below(4)].min(len - at);
                let from = self.below(len - count + 1);
                bytes.copy_within(from..from + count, at);
                described(&format!("{count} bytes of {:#x}", start + from))
            }
        }
    }
}

/// A section that has bytes.
pub(crate) struct Section {
    name: u32,
    /// Empty for a section without.
    pub(crate) bytes: Range<usize>,
    pub(crate) is_code: bool,
}

/// Where things are in an undamaged object of this machine's byte order (or,
/// for the one fixture that is not, nowhere).
pub(crate) struct Elf {
    headers: usize,
    pub(crate) sections: Vec<Section>,
    names: usize,
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(word)
}

impl Elf {
    pub(crate) fn read(bytes: &[u8]) -> Elf {
        let mut elf = Elf {
            headers: 0,
            sections: Vec::new(),
            names: 0,
        };
        // Big-endian: refused before anything else is looked at.
        if bytes[5] != 1 {
            return elf;
        }
        elf.headers = word::<8>(bytes, 40) as usize;
        elf.names = word::<2>(bytes, 62) as usize;
        for index in 0..word::<2>(bytes, 60) as usize {
            let header = elf.headers + 64 * index;
            let has_bytes = !matches!(word::<4>(bytes, header + 4), 0 | 8);
            let start = word::<8>(bytes, header + 24) as usize;
            let size = word::<8>(bytes, header + 32) as usize;
            elf.sections.push(Section {
                name: word::<4>(bytes, header) as u32,
                bytes: if has_bytes { start..start + size } else { 0..0 },
                is_code: has_bytes && word::<8>(bytes, header + 8) & 4 != 0,
            });
        }
        elf
    }

    /// The section headers.
    pub(crate) fn headers(&self) -> Range<usize> {
        self.headers..self.headers + 64 * self.sections.len()
    }

    /// Where the named section is.
    pub(crate) fn range(&self, bytes: &[u8], name: &str) -> Option<Range<usize>> {
        let names = &bytes[self.sections.get(self.names)?.bytes.clone()];
        let section = self.sections.iter().find(|section| {
            let rest = &names[section.name as usize..];
            rest.split(|b| *b == 0).next() == Some(name.as_bytes())
        });
        section.map(|section| section.bytes.clone())
    }

    /// Bytes of the named section.
    pub(crate) fn named<'b>(&self, bytes: &'b [u8], name: &str) -> Option<&'b [u8]> {
        self.range(bytes, name).map(|range| &bytes[range])
    }

    /// The same object with the section headers right behind the file's.
    pub(crate) fn headers_first(&self, bytes: &[u8]) -> Vec<u8> {
        let headers = self.headers();
        let shift = headers.len() as u64;
        let mut moved = bytes[..64.min(bytes.len())].to_vec();
        moved.extend_from_slice(&bytes[headers]);
        moved.extend_from_slice(&bytes[64..]);
        if !self.sections.is_empty() {
            moved[40..48].copy_from_slice(&64_u64.to_le_bytes());
        }
        for index in 0..self.sections.len() {
            let at = 64 + 64 * index + 24;
            let offset = word::<8>(&moved, at) + shift;
            moved[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        }
        moved
    }
}

/// For each type of a BTF blob, where in it another type is named that every
/// walk over types follows; `None` where there is nothing to follow.
pub(crate) fn references(btf: &[u8]) -> Vec<Option<usize>> {
    let header = word::<4>(btf, 4) as usize;
    let (start, len) = (word::<4>(btf, 8) as usize, word::<4>(btf, 12) as usize);
    let mut at = header + start;
    let end = at + len;
    let mut found = Vec::new();
    while at < end {
        let info = word::<4>(btf, at + 4) as usize;
        let (kind, vlen) = (info >> 24 & 0x1f, info & 0xffff);
        // Bytes behind the header, and the reference from the start of it.
        let (size, reference) = match kind {
            1 | 17 => (4, (kind == 17).then_some(8)),
            3 => (12, Some(12)),
            4 | 5 => (12 * vlen, (vlen > 0).then_some(16)),
            6 => (8 * vlen, None),
            13 => (8 * vlen, Some(8)),
            14 => (4, Some(8)),
            15 | 19 => (12 * vlen, None),
            7 | 16 => (0, None),
            _ => (0, Some(8)),
        };
        found.push(reference.map(|reference| at + reference));
        at += 12 + size;
    }
    assert_eq!(at, end);
    found
}
