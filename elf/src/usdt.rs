//! USDT: places that the author of a user program marked for tracing, and
//! where their arguments are when one is reached.
//!
//! Each place has a note in section `.note.stapsdt`: provider, name, address,
//! perhaps the address of a counter ("semaphore"), and the arguments in the
//! assembler's words, such as `-4@%edi 8@-16(%rbp)`.

mod arguments;

use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, elf};

use crate::cursor::c_str_at;
use crate::error::{ObjectError, malformed};

pub use arguments::{UsdtArgument, UsdtValue, arguments};

/// A marked place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsdtPlace<'a> {
    /// Who marked it: `libc`.
    pub provider: &'a [u8],
    /// What is marked: `setjmp`. Several places may have one name.
    pub name: &'a [u8],
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Address; from wherever the file is loaded, unless that is fixed.
    pub address: u64,
    /// Bytes from the start of the file to the counter that is above zero
    /// while somebody traces; a program may leave out the place while it is 0.
    pub semaphore: Option<u64>,
    /// The arguments; see [`arguments`].
    pub arguments: &'a [u8],
}

/// What holds for all places of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsdtFile {
    /// `EM_*`: the processor that the arguments are of.
    pub machine: u16,
    /// The file is loaded at the addresses in it, being no library and not
    /// position-independent.
    pub fixed: bool,
}

type Header = elf::FileHeader64<Endianness>;

const NOTES: &[u8] = b".note.stapsdt";
const BASE: &[u8] = b".stapsdt.base";
const NOTE_NAME: &[u8] = b"stapsdt";
const NOTE_TYPE: u32 = 3;

/// Visits the marked places of a 64-bit executable or library, in the order
/// of its notes. Places that are not in the file and notes of another form are
/// passed over.
///
/// # Errors
/// [`ObjectError::NotElf`]; [`ObjectError::Malformed`] for damage and for
/// 32-bit files.
pub fn for_each_place(
    bytes: &[u8],
    visit: &mut dyn FnMut(UsdtPlace<'_>),
) -> Result<UsdtFile, ObjectError> {
    match bytes {
        [] => return Err(ObjectError::Empty),
        [0x7f, b'E', b'L', b'F', elf::ELFCLASS64, ..] => {}
        [0x7f, b'E', b'L', b'F', ..] => {
            return Err(malformed(format_args!(
                "an ELF file of 32 bits, whose USDT arguments nothing here can read"
            ))
            .into());
        }
        _ => {
            return Err(ObjectError::NotElf {
                found: bytes.iter().take(4).copied().collect(),
            });
        }
    }
    let bad = |what: &'static str| move |_| ObjectError::from(malformed(format_args!("{what}")));
    let header = Header::parse(bytes).map_err(bad("the ELF header"))?;
    let endian = header.endian().map_err(bad("the byte order"))?;
    let segments = header
        .program_headers(endian, bytes)
        .map_err(bad("the program headers"))?;
    let sections = header
        .sections(endian, bytes)
        .map_err(bad("the section headers"))?;
    let in_file = |address: u64| {
        segments
            .iter()
            .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
            .find_map(|segment| {
                let into = address.checked_sub(segment.p_vaddr(endian))?;
                (into < segment.p_filesz(endian))
                    .then(|| segment.p_offset(endian).checked_add(into))?
            })
    };
    let base = sections
        .section_by_name(endian, BASE)
        .map(|(_, section)| section.sh_addr(endian));
    let read = |at: &[u8]| at.first_chunk().map(|word| word_of(endian, *word));
    if let Some((_, section)) = sections.section_by_name(endian, NOTES) {
        let notes = section
            .notes(endian, bytes)
            .map_err(bad("the USDT notes"))?;
        for note in notes.into_iter().flatten() {
            let Ok(note) = note else { break };
            if note.name() != NOTE_NAME || note.n_type(endian) != NOTE_TYPE {
                continue;
            }
            let desc = note.desc();
            let Some((place, texts)) = split_note(desc, &read) else {
                continue;
            };
            // Whoever moved the file afterwards (prelink) left the notes.
            let moved = base.map_or(0, |base| base.wrapping_sub(place.base));
            let address = place.address.wrapping_add(moved);
            let Some(offset) = in_file(address) else {
                continue;
            };
            let semaphore = match place.semaphore {
                0 => None,
                at => match in_file(at.wrapping_add(moved)) {
                    Some(offset) => Some(offset),
                    None => continue,
                },
            };
            visit(UsdtPlace {
                provider: texts[0],
                name: texts[1],
                offset,
                address,
                semaphore,
                arguments: texts[2],
            });
        }
    }
    Ok(UsdtFile {
        machine: header.e_machine(endian),
        fixed: header.e_type(endian) == elf::ET_EXEC,
    })
}

struct Addresses {
    address: u64,
    base: u64,
    semaphore: u64,
}

/// Three addresses and three texts.
fn split_note<'d>(
    desc: &'d [u8],
    read: &dyn Fn(&[u8]) -> Option<u64>,
) -> Option<(Addresses, [&'d [u8]; 3])> {
    let addresses = Addresses {
        address: read(desc)?,
        base: read(desc.get(8..)?)?,
        semaphore: read(desc.get(16..)?)?,
    };
    let mut at = 24;
    let mut texts = [&[][..]; 3];
    for text in &mut texts {
        *text = c_str_at(desc, at)?;
        at += text.len() + 1;
    }
    Some((addresses, texts))
}

fn word_of(endian: Endianness, word: [u8; 8]) -> u64 {
    match endian {
        Endianness::Little => u64::from_le_bytes(word),
        Endianness::Big => u64::from_be_bytes(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one segment at 0x1000, a counter and two notes.
    fn file(kind: u16, base: u64) -> Vec<u8> {
        let note = |address: u64, semaphore: u64, texts: &[u8]| {
            let mut desc = Vec::new();
            for word in [address, 0x5000, semaphore] {
                desc.extend(word.to_le_bytes());
            }
            desc.extend(texts);
            let mut note = Vec::new();
            for word in [8, desc.len() as u32, NOTE_TYPE] {
                note.extend(word.to_le_bytes());
            }
            note.extend(b"stapsdt\0");
            note.extend(&desc);
            note.resize(note.len().next_multiple_of(4), 0);
            note
        };
        let mut notes = note(0x1010, 0x1100, b"app\0start\x008@%rdi\0");
        notes.extend(note(0x1020, 0, b"app\0stop\0\0"));
        // Outside of the file.
        notes.extend(note(0x9000, 0, b"app\0lost\0\0"));
        notes.extend(note(0x1030, 0x9000, b"app\0uncounted\0\0"));
        // Cut short.
        notes.extend(note(0x1020, 0, b"app\0stop"));
        let names = b"\0.note.stapsdt\0.stapsdt.base\0.shstrtab\0";
        let (notes_at, names_at) = (0x1000, 0x1000 + notes.len());
        let sections_at = (names_at + names.len()).next_multiple_of(8);
        let mut out = vec![0; 64];
        out[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        let mut put = |at: usize, bytes: &[u8]| {
            if out.len() < at + bytes.len() {
                out.resize(at + bytes.len(), 0);
            }
            out[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(16, &kind.to_le_bytes());
        put(18, &elf::EM_X86_64.to_le_bytes());
        put(20, &1_u32.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(40, &(sections_at as u64).to_le_bytes());
        for (at, half) in [(52, 64_u16), (54, 56), (56, 1), (58, 64), (60, 4), (62, 3)] {
            put(at, &half.to_le_bytes());
        }
        // PT_LOAD, r-x, file 0x200, address 0x1000, 0x200 bytes.
        put(64, &1_u32.to_le_bytes());
        put(68, &5_u32.to_le_bytes());
        for (index, word) in [0x200_u64, 0x1000, 0x1000, 0x200, 0x200, 0x1000]
            .iter()
            .enumerate()
        {
            put(72 + index * 8, &word.to_le_bytes());
        }
        put(notes_at, &notes);
        put(names_at, names);
        let mut section =
            |index: usize, name: u32, kind: u32, address: u64, at: usize, len: usize| {
                let start = sections_at + index * 64;
                put(start, &name.to_le_bytes());
                put(start + 4, &kind.to_le_bytes());
                put(start + 16, &address.to_le_bytes());
                put(start + 24, &(at as u64).to_le_bytes());
                put(start + 32, &(len as u64).to_le_bytes());
                put(start + 48, &4_u64.to_le_bytes());
                put(start + 56, &[0; 8]);
            };
        section(1, 1, elf::SHT_NOTE, 0, notes_at, notes.len());
        section(2, 15, elf::SHT_PROGBITS, base, 0x200, 1);
        section(3, 29, elf::SHT_STRTAB, 0, names_at, names.len());
        section(0, 0, 0, 0, 0, 0);
        out
    }

    /// What is marked and its arguments, where, at which address, and its counter.
    type Found = (String, u64, u64, Option<u64>);

    fn places(bytes: &[u8]) -> (UsdtFile, Vec<Found>) {
        let mut found = Vec::new();
        let file = for_each_place(bytes, &mut |place| {
            let text = [place.provider, b":", place.name, b" ", place.arguments].concat();
            found.push((
                String::from_utf8(text).unwrap(),
                place.offset,
                place.address,
                place.semaphore,
            ));
        });
        (file.unwrap(), found)
    }

    #[test]
    fn notes_are_read() {
        let (file, found) = places(&file(elf::ET_DYN, 0x5000));
        assert_eq!((file.machine, file.fixed), (elf::EM_X86_64, false));
        assert_eq!(
            found,
            [
                ("app:start 8@%rdi".to_owned(), 0x210, 0x1010, Some(0x300)),
                ("app:stop ".to_owned(), 0x220, 0x1020, None),
            ]
        );
    }

    #[test]
    fn moved_files_are_read() {
        let (file, found) = places(&file(elf::ET_EXEC, 0x5010));
        assert!(file.fixed);
        assert_eq!(found[0].1, 0x220);
        assert_eq!(found[0].3, Some(0x310));
    }

    #[test]
    fn damage_does_no_harm() {
        let whole = file(elf::ET_DYN, 0x5000);
        let mut state = 7_u64;
        for round in 0..2000 {
            let mut bytes = whole.clone();
            for _ in 0..=round % 6 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                // Headers and notes, not what is between.
                let at = (state >> 33) as usize % (bytes.len() - 0xe00);
                let at = if at < 0x200 { at } else { at + 0xe00 };
                bytes[at] = (state >> 17) as u8;
            }
            let _ = for_each_place(&bytes, &mut |place| {
                let _ = arguments(elf::EM_X86_64, place.arguments);
                let _ = arguments(elf::EM_AARCH64, place.arguments);
            });
        }
        for len in 0..whole.len() {
            let _ = for_each_place(&whole[..len], &mut |_| ());
        }
        for foreign in [&b"#!/bin/sh"[..], b"", b"\x7fELF\x01"] {
            assert!(for_each_place(foreign, &mut |_| ()).is_err());
        }
    }
}
