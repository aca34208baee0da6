//! USDT: places that the author of a user program marked for tracing, and
//! where their arguments are when one is reached.
//!
//! Each place has a note in section `.note.stapsdt`: provider, name, address,
//! perhaps the address of a counter ("semaphore"), and the arguments in the
//! assembler's words, such as `-4@%edi 8@-16(%rbp)`.

use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, elf};

use crate::cursor::c_str_at;
use crate::error::{ObjectError, malformed};

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

// ---------------------------------------------------------------- arguments

/// An argument of a marked place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsdtArgument {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Its uppermost bit is a sign.
    pub signed: bool,
    /// Where it is.
    pub value: UsdtValue,
}

/// Where an argument is. Registers are given by their offset in the kernel's
/// `struct pt_regs` (`user_pt_regs` on aarch64), in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UsdtValue {
    /// It is always this.
    Constant(i64),
    /// In a register.
    Register(u16),
    /// In memory, at the sum of these.
    Memory {
        /// A register.
        base: u16,
        /// Bytes.
        displacement: i64,
        /// Another register, shifted to the left by so many bits.
        index: Option<(u16, u8)>,
    },
    /// Where nothing here can read it: a floating-point register, a variable
    /// by its name.
    Unreadable,
}

/// The arguments of a marked place, on processors of the ELF type `machine`
/// (x86-64 and aarch64; those of all others are
/// [unreadable](UsdtValue::Unreadable)).
pub fn arguments(machine: u16, text: &[u8]) -> Vec<UsdtArgument> {
    let registers: fn(&[u8]) -> Option<u16> = match machine {
        elf::EM_X86_64 => x86_register,
        elf::EM_AARCH64 => arm_register,
        _ => |_| None,
    };
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.iter().position(|b| !b.is_ascii_whitespace()) {
        rest = rest.get(start..).unwrap_or_default();
        // `8@[sp, 16]` is one argument.
        let mut depth = 0_u32;
        let end = rest.iter().position(|b| {
            match b {
                b'[' | b'(' => depth += 1,
                b']' | b')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && b.is_ascii_whitespace()
        });
        let (one, after) = rest
            .split_at_checked(end.unwrap_or(rest.len()))
            .unwrap_or((rest, &[]));
        rest = after;
        found.push(argument(machine, one, registers));
    }
    found
}

fn argument(machine: u16, text: &[u8], register: fn(&[u8]) -> Option<u16>) -> UsdtArgument {
    let (size, place) = match text.iter().position(|&b| b == b'@') {
        Some(at) => (text.get(..at), text.get(at + 1..).unwrap_or_default()),
        // Notes of the first kind have no sizes.
        None => (None, text),
    };
    let bytes = size.map_or(Some(8), integer);
    let (size, signed) = match bytes {
        Some(n @ (1 | 2 | 4 | 8)) => (n.unsigned_abs() as u8, false),
        Some(n @ (-1 | -2 | -4 | -8)) => (n.unsigned_abs() as u8, true),
        // `8f`, a floating-point number, and sizes that nobody knows.
        _ => {
            return UsdtArgument {
                size: 8,
                signed: false,
                value: UsdtValue::Unreadable,
            };
        }
    };
    let value = if machine == elf::EM_AARCH64 {
        arm_value(place, register)
    } else {
        x86_value(place, register)
    };
    UsdtArgument {
        size,
        signed,
        value: value.unwrap_or(UsdtValue::Unreadable),
    }
}

/// `$5`, `%rax`, `-16(%rbp)`, `8(%rax,%rcx,4)`.
fn x86_value(place: &[u8], register: fn(&[u8]) -> Option<u16>) -> Option<UsdtValue> {
    let named = |text: &[u8]| register(text.trim_ascii().strip_prefix(b"%")?);
    match place {
        [b'$', number @ ..] => Some(UsdtValue::Constant(integer(number)?)),
        [b'%', ..] => Some(UsdtValue::Register(named(place)?)),
        [front @ .., b')'] => {
            let open = front.iter().position(|&b| b == b'(')?;
            let (number, inside) = front.split_at_checked(open)?;
            let mut parts = inside.get(1..)?.split(|&b| b == b',');
            let base = parts.next().and_then(named)?;
            // What is near the instruction depends on where that ends.
            if base == RIP {
                return None;
            }
            let index = match parts.next() {
                Some(part) => Some((
                    named(part)?,
                    match parts.next().map(<[u8]>::trim_ascii) {
                        None | Some(b"1") => 0,
                        Some(b"2") => 1,
                        Some(b"4") => 2,
                        Some(b"8") => 3,
                        Some(_) => return None,
                    },
                )),
                None => None,
            };
            let displacement = if number.is_empty() {
                0
            } else {
                integer(number)?
            };
            Some(UsdtValue::Memory {
                base,
                displacement,
                index,
            })
        }
        _ => None,
    }
}

/// `5`, `x3`, `[sp]`, `[sp, 16]`, `[x1, x2]`, `[x1, x2, lsl 3]`.
fn arm_value(place: &[u8], register: fn(&[u8]) -> Option<u16>) -> Option<UsdtValue> {
    let Some(inside) = place.strip_prefix(b"[") else {
        return match register(place) {
            Some(at) => Some(UsdtValue::Register(at)),
            None => Some(UsdtValue::Constant(integer(place)?)),
        };
    };
    let mut parts = inside
        .strip_suffix(b"]")?
        .split(|&b| b == b',')
        .map(<[u8]>::trim_ascii);
    let base = register(parts.next()?)?;
    let (displacement, index) = match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => (0, None),
        (Some(part), None, _) => match integer(part) {
            Some(displacement) => (displacement, None),
            None => (0, Some((register(part)?, 0))),
        },
        (Some(part), Some(shift), None) => {
            let bits = integer(shift.strip_prefix(b"lsl")?.trim_ascii())?;
            let bits = u8::try_from(bits).ok().filter(|bits| *bits < 16)?;
            (0, Some((register(part)?, bits)))
        }
        _ => return None,
    };
    Some(UsdtValue::Memory {
        base,
        displacement,
        index,
    })
}

/// Decimal or `0x…`, perhaps with a sign or, on aarch64, a `#` before it.
fn integer(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text.strip_prefix(b"#").unwrap_or(text)).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let size = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    // Assemblers write 64-bit numbers with a sign or without.
    Some(if negative {
        (size as i64).wrapping_neg()
    } else {
        size as i64
    })
}

/// `ip` in `struct pt_regs`.
const RIP: u16 = 128;

/// Names of the general registers, in the order of `struct pt_regs`: 64, 32,
/// 16 and 8 bits.
static X86: [(u16, [&[u8]; 4]); 9] = [
    (32, [b"rbp", b"ebp", b"bp", b"bpl"]),
    (40, [b"rbx", b"ebx", b"bx", b"bl"]),
    (80, [b"rax", b"eax", b"ax", b"al"]),
    (88, [b"rcx", b"ecx", b"cx", b"cl"]),
    (96, [b"rdx", b"edx", b"dx", b"dl"]),
    (104, [b"rsi", b"esi", b"si", b"sil"]),
    (112, [b"rdi", b"edi", b"di", b"dil"]),
    (RIP, [b"rip", b"eip", b"ip", b"ip"]),
    (152, [b"rsp", b"esp", b"sp", b"spl"]),
];

fn x86_register(name: &[u8]) -> Option<u16> {
    if let Some((at, _)) = X86.iter().find(|(_, names)| names.contains(&name)) {
        return Some(*at);
    }
    // r8 to r15 with d, w or b for their lower parts: the last first.
    let number = name.strip_prefix(b"r")?;
    let number = match number {
        [digits @ .., last] if b"dwb".contains(last) => digits,
        digits => digits,
    };
    let at = match integer(number)? {
        n @ 8..=11 => 72 - (n - 8) * 8,
        n @ 12..=15 => (15 - n) * 8,
        _ => return None,
    };
    u16::try_from(at).ok()
}

fn arm_register(name: &[u8]) -> Option<u16> {
    match name {
        b"sp" => Some(248),
        [b'x' | b'w', number @ ..] if number.first().is_some_and(u8::is_ascii_digit) => {
            let number = integer(number).filter(|n| (0..31).contains(n))?;
            u16::try_from(number * 8).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_64: u16 = elf::EM_X86_64;
    const ARM: u16 = elf::EM_AARCH64;

    fn memory(base: u16, displacement: i64, index: Option<(u16, u8)>) -> UsdtValue {
        UsdtValue::Memory {
            base,
            displacement,
            index,
        }
    }

    #[test]
    fn arguments_of_x86() {
        for (text, size, signed, value) in [
            ("-4@%edi", 4, true, UsdtValue::Register(112)),
            ("8@%rax", 8, false, UsdtValue::Register(80)),
            ("1@%sil", 1, false, UsdtValue::Register(104)),
            ("2@%r8w", 2, false, UsdtValue::Register(72)),
            ("8@%r11", 8, false, UsdtValue::Register(48)),
            ("4@%r15d", 4, false, UsdtValue::Register(0)),
            ("8@%rip", 8, false, UsdtValue::Register(128)),
            ("-4@$-9", 4, true, UsdtValue::Constant(-9)),
            ("8@$0x10", 8, false, UsdtValue::Constant(16)),
            ("8@$0xffffffffffffffff", 8, false, UsdtValue::Constant(-1)),
            ("-8@-16(%rbp)", 8, true, memory(32, -16, None)),
            ("8@(%rsp)", 8, false, memory(152, 0, None)),
            ("4@8(%rax,%rcx,4)", 4, false, memory(80, 8, Some((88, 2)))),
            ("1@(%rdx, %r9)", 1, false, memory(96, 0, Some((64, 0)))),
            ("%rbx", 8, false, UsdtValue::Register(40)),
        ] {
            let expected = UsdtArgument {
                size,
                signed,
                value,
            };
            assert_eq!(arguments(X86_64, text.as_bytes()), [expected], "{text}");
        }
        for text in [
            "8f@%xmm0",
            "8@%xmm0",
            "4@counter(%rip)",
            "4@16(%rip)",
            "3@%rax",
            "1@%ah",
            "8@(,%rax,8)",
            "8@1(%rax,%rbx,3)",
            "8@%r16",
            "8@%r7",
            "@",
            "8@",
            "8@)",
            "8@(",
        ] {
            let [one] = arguments(X86_64, text.as_bytes())[..] else {
                panic!("{text}");
            };
            assert_eq!(one.value, UsdtValue::Unreadable, "{text}");
        }
        let all = arguments(X86_64, b"  -4@%esi -4@-24(%rbp)\t8@8(%rax, %rbx, 8) ");
        assert_eq!(all.len(), 3);
        assert_eq!(all[2].value, memory(80, 8, Some((40, 3))));
        assert_eq!(arguments(X86_64, b""), []);
    }

    #[test]
    fn arguments_of_aarch64() {
        for (text, value) in [
            ("-4@w3", UsdtValue::Register(24)),
            ("8@x30", UsdtValue::Register(240)),
            ("8@sp", UsdtValue::Register(248)),
            ("8@5", UsdtValue::Constant(5)),
            ("8@#-5", UsdtValue::Constant(-5)),
            ("8@[x0]", memory(0, 0, None)),
            ("-4@[sp, 60]", memory(248, 60, None)),
            ("-4@[sp,#-60]", memory(248, -60, None)),
            ("8@[x1, x2]", memory(8, 0, Some((16, 0)))),
            ("8@[x1, x2, lsl 3]", memory(8, 0, Some((16, 3)))),
            ("8@[x1, x2, lsl #3]", memory(8, 0, Some((16, 3)))),
            ("8@[x1, w2, sxtw 3]", UsdtValue::Unreadable),
            ("8@[x1, x2, lsl 99]", UsdtValue::Unreadable),
            ("8@x31", UsdtValue::Unreadable),
            ("8@d0", UsdtValue::Unreadable),
        ] {
            let [one] = arguments(ARM, text.as_bytes())[..] else {
                panic!("{text}");
            };
            assert_eq!(one.value, value, "{text}");
        }
        let all = arguments(ARM, b"-4@[sp, 60] 8@x1");
        assert_eq!(all.len(), 2);
        // Of another processor.
        assert_eq!(arguments(1, b"8@x1")[0].value, UsdtValue::Unreadable);
    }

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
        put(18, &X86_64.to_le_bytes());
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
        assert_eq!((file.machine, file.fixed), (X86_64, false));
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
                let _ = arguments(X86_64, place.arguments);
                let _ = arguments(ARM, place.arguments);
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
