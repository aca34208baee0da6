//! Functions of user programs and libraries, as places in their files: where
//! a uprobe goes.
//!
//! Both symbol tables are read, `.symtab` and `.dynsym`; a stripped library
//! has the second one only. Nothing is kept: the caller brings the bytes.

use object::read::SymbolIndex;
use object::read::elf::{FileHeader, ProgramHeader, Sym, SymbolTable, VersionTable};
use object::{Endianness, elf};

use crate::error::{Fault, ObjectError, malformed};
use crate::sort::sort;

/// A function of a user binary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserSymbol<'a> {
    /// Name, without a version.
    pub name: &'a [u8],
    /// Version of the symbol: the `GLIBC_2.34` of `fork@GLIBC_2.34`.
    pub version: Option<&'a [u8]>,
    /// An older version, kept for programs linked long ago (one `@`).
    pub old: bool,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes of code; 0 if the file does not tell.
    pub size: u64,
    /// `STB_GLOBAL`, `STB_WEAK` or `STB_LOCAL`.
    pub binding: u8,
}

/// Why no single place was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SymbolError {
    /// The file is not a usable executable or library.
    #[error(transparent)]
    File(#[from] ObjectError),
    /// No function of that name.
    #[error("no function {name}{}", if *stripped { " (the file has no symbol table)" } else { "" })]
    Absent {
        /// The name asked for.
        name: String,
        /// There are no function symbols at all.
        stripped: bool,
    },
    /// Several functions bear the name, and none is more likely than another.
    #[error("{} functions are called {name}, at file offsets {offsets:x?}", offsets.len())]
    Ambiguous {
        /// The name asked for.
        name: String,
        /// Where they are in the file, ascending.
        offsets: Vec<u64>,
    },
    /// No place of that name is marked (USDT).
    #[error("no USDT probe {name}{}", if *others == 0 { " (the file marks no places)" } else { "" })]
    NotMarked {
        /// Provider and name, with a colon between.
        name: String,
        /// Places of other names.
        others: usize,
    },
    /// The offset lies behind the end of the function.
    #[error("offset {offset} is outside of {name}, which has {size} bytes")]
    Outside {
        /// The name asked for.
        name: String,
        /// Bytes from its start that were asked for.
        offset: u64,
        /// Its length in bytes.
        size: u64,
    },
}

/// Visits every function that `bytes` (an executable, position-independent or
/// not, or a shared library) defines, those of `.symtab` before those of
/// `.dynsym`. A function may be visited twice.
///
/// # Errors
/// [`ObjectError::NotElf`]; [`ObjectError::Malformed`] for damage, and for
/// files that cannot be run, such as relocatable objects.
pub fn for_each_function(
    bytes: &[u8],
    visit: &mut dyn FnMut(UserSymbol<'_>),
) -> Result<(), ObjectError> {
    match bytes {
        [] => Err(ObjectError::Empty),
        [0x7f, b'E', b'L', b'F', elf::ELFCLASS64, ..] => {
            Ok(walk::<elf::FileHeader64<Endianness>>(bytes, visit)?)
        }
        [0x7f, b'E', b'L', b'F', ..] => Ok(walk::<elf::FileHeader32<Endianness>>(bytes, visit)?),
        _ => Err(ObjectError::NotElf {
            found: bytes.iter().take(4).copied().collect(),
        }),
    }
}

/// File offset of the function `name`, which may carry a version: `fork`;
/// `fork@GLIBC_2.2.5`, of this version; `fork@@GLIBC_2.34`, of this version if
/// it is the one that programs are linked with today. `offset` bytes into it.
///
/// Of several functions of that name, a default version goes before an old
/// one, a global one before a weak and that before a local one.
///
/// # Errors
/// [`SymbolError`].
pub fn find_function(bytes: &[u8], name: &str, offset: u64) -> Result<u64, SymbolError> {
    let (wanted, version) = split_version(name.as_bytes());
    // Found so far: how likely they are, their offsets and sizes.
    let mut best = 0;
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut stripped = true;
    for_each_function(bytes, &mut |symbol| {
        stripped = false;
        let other =
            |(version, any): (_, bool)| symbol.version != Some(version) || symbol.old && !any;
        if symbol.name != wanted || version.is_some_and(other) {
            return;
        }
        let rank = match symbol.binding {
            elf::STB_GLOBAL => 3,
            elf::STB_WEAK => 2,
            _ => 1,
        } + if symbol.old { 0 } else { 3 };
        if rank > best {
            best = rank;
            found.clear();
        }
        if rank == best {
            found.push((symbol.offset, symbol.size));
        }
    })?;
    sort(&mut found, |a, b| a < b);
    found.dedup_by_key(|(offset, _)| *offset);
    match found.as_slice() {
        [] => Err(SymbolError::Absent {
            name: name.to_owned(),
            stripped,
        }),
        &[(_, size)] if size != 0 && offset >= size => Err(SymbolError::Outside {
            name: name.to_owned(),
            offset,
            size,
        }),
        &[(start, _)] => Ok(start.saturating_add(offset)),
        many => Err(SymbolError::Ambiguous {
            name: name.to_owned(),
            offsets: many.iter().map(|(offset, _)| *offset).collect(),
        }),
    }
}

/// `name@VERSION` or `name@@VERSION` in its parts; true for one `@`, which is
/// an old version in a symbol table and any in what is asked for.
fn split_version(name: &[u8]) -> (&[u8], Option<(&[u8], bool)>) {
    let Some(at) = name.iter().position(|&b| b == b'@').filter(|&at| at > 0) else {
        return (name, None);
    };
    let (name, version) = name.split_at_checked(at).unwrap_or((name, &[]));
    match version {
        [b'@', b'@', version @ ..] => (name, Some((version, false))),
        [b'@', version @ ..] => (name, Some((version, true))),
        _ => (name, None),
    }
}

/// A part of the file that is mapped when the program runs.
struct Segment {
    address: u64,
    offset: u64,
    size: u64,
}

fn walk<H: FileHeader<Endian = Endianness>>(
    bytes: &[u8],
    visit: &mut dyn FnMut(UserSymbol<'_>),
) -> Result<(), Fault> {
    let bad = |what: &'static str| move |_| malformed(format_args!("{what}"));
    let header = H::parse(bytes).map_err(bad("the ELF header"))?;
    let endian = header.endian().map_err(bad("the byte order"))?;
    let kind = header.e_type(endian);
    if kind != elf::ET_EXEC && kind != elf::ET_DYN {
        return Err(malformed(format_args!(
            "an ELF file of type {kind}, neither executable (2) nor library (3)"
        )));
    }
    let segments: Vec<Segment> = header
        .program_headers(endian, bytes)
        .map_err(bad("the program headers"))?
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .map(|segment| Segment {
            address: segment.p_vaddr(endian).into(),
            offset: segment.p_offset(endian).into(),
            size: segment.p_filesz(endian).into(),
        })
        .collect();
    let sections = header
        .sections(endian, bytes)
        .map_err(bad("the section headers"))?;
    let mut first = Ok(());
    for kind in [elf::SHT_SYMTAB, elf::SHT_DYNSYM] {
        // A damaged table does not hide the other one.
        match sections.symbols(endian, bytes, kind) {
            Ok(symbols) => {
                let versions = if kind == elf::SHT_DYNSYM {
                    sections.versions(endian, bytes).ok().flatten()
                } else {
                    None
                };
                table(endian, &segments, &symbols, versions.as_ref(), visit);
            }
            Err(_) if first.is_ok() => {
                first = Err(malformed(format_args!("a symbol table")));
            }
            Err(_) => return first,
        }
    }
    Ok(())
}

fn table<'d, H: FileHeader<Endian = Endianness>>(
    endian: Endianness,
    segments: &[Segment],
    symbols: &SymbolTable<'d, H>,
    versions: Option<&VersionTable<'d, H>>,
    visit: &mut dyn FnMut(UserSymbol<'_>),
) {
    for (index, symbol) in symbols.enumerate() {
        if symbol.st_type() != elf::STT_FUNC || symbol.st_shndx(endian) == elf::SHN_UNDEF {
            continue;
        }
        let address: u64 = symbol.st_value(endian).into();
        let Some(offset) = file_offset(segments, address) else {
            continue;
        };
        let Ok(name) = symbol.name(endian, symbols.strings()) else {
            continue;
        };
        let (name, inline) = split_version(name);
        let (version, old) = match (inline, versions) {
            (Some((version, old)), _) => (Some(version), old),
            (None, Some(table)) => version_of(endian, table, index),
            (None, None) => (None, false),
        };
        if name.is_empty() {
            continue;
        }
        visit(UserSymbol {
            name,
            version,
            old,
            offset,
            size: symbol.st_size(endian).into(),
            binding: symbol.st_bind(),
        });
    }
}

fn version_of<'d, H: FileHeader<Endian = Endianness>>(
    endian: Endianness,
    table: &VersionTable<'d, H>,
    symbol: SymbolIndex,
) -> (Option<&'d [u8]>, bool) {
    let index = table.version_index(endian, symbol);
    match table.version(index) {
        Ok(Some(version)) => (Some(version.name()), index.is_hidden()),
        _ => (None, false),
    }
}

/// Where in the file the code at `address` is. Nothing that is not in the file
/// can be probed.
fn file_offset(segments: &[Segment], address: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let into = address.checked_sub(segment.address)?;
        (into < segment.size).then(|| segment.offset.checked_add(into))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_binary() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    /// Not inlined, so that it has a symbol.
    #[inline(never)]
    extern "C" fn ebpf_manager_symbols_test_place() -> u32 {
        std::hint::black_box(7)
    }

    #[test]
    fn finds_a_function_of_this_program() {
        assert_eq!(ebpf_manager_symbols_test_place(), 7);
        let bytes = own_binary();
        let mut mangled = String::new();
        for_each_function(&bytes, &mut |symbol| {
            let name = String::from_utf8_lossy(symbol.name);
            if name.contains("ebpf_manager_symbols_test_place") {
                mangled = name.into_owned();
            }
        })
        .unwrap();
        let offset = find_function(&bytes, &mangled, 0).unwrap();
        // The code in the file is the code in memory.
        let address = ebpf_manager_symbols_test_place as *const () as u64;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let place = maps.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let start = u64::from_str_radix(start, 16).ok()?;
            let end = u64::from_str_radix(end, 16).ok()?;
            let base = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
            (start..end)
                .contains(&address)
                .then(|| address - start + base)
        });
        assert_eq!(Some(offset), place);
        let inside = find_function(&bytes, &mangled, 1);
        assert_eq!(inside, Ok(offset + 1));
        let err = find_function(&bytes, &mangled, 1 << 20);
        assert!(matches!(err, Err(SymbolError::Outside { .. })), "{err:?}");
    }

    #[test]
    fn absent_and_foreign() {
        let bytes = own_binary();
        assert_eq!(
            find_function(&bytes, "no_such_function_here", 0),
            Err(SymbolError::Absent {
                name: "no_such_function_here".to_owned(),
                stripped: false
            })
        );
        assert!(matches!(
            find_function(b"#!/bin/sh", "main", 0),
            Err(SymbolError::File(ObjectError::NotElf { .. }))
        ));
        assert!(matches!(
            find_function(b"", "main", 0),
            Err(SymbolError::File(ObjectError::Empty))
        ));
    }

    #[test]
    fn versions_of_names() {
        assert_eq!(split_version(b"fork"), (&b"fork"[..], None));
        assert_eq!(
            split_version(b"fork@@V2"),
            (&b"fork"[..], Some((&b"V2"[..], false)))
        );
        assert_eq!(
            split_version(b"fork@V1"),
            (&b"fork"[..], Some((&b"V1"[..], true)))
        );
        assert_eq!(split_version(b"@x"), (&b"@x"[..], None));
    }

    /// glibc for 64-bit x86 has two of this function.
    #[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
    #[test]
    fn versions_are_told_apart() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let Some(libc) = maps.lines().find_map(|line| {
            line.get(line.find('/')?..)
                .filter(|l| l.contains("/libc.so"))
        }) else {
            return;
        };
        let bytes = std::fs::read(libc).unwrap();
        let find = |name| find_function(&bytes, name, 0);
        let [old, new] = ["realpath@GLIBC_2.2.5", "realpath@GLIBC_2.3"].map(|n| find(n).unwrap());
        assert_ne!(old, new);
        assert_eq!(find("realpath"), Ok(new));
        assert_eq!(find("realpath@@GLIBC_2.3"), Ok(new));
        for name in ["realpath@@GLIBC_2.2.5", "realpath@GLIBC_2.4", "realpath@"] {
            let err = find(name).unwrap_err();
            assert!(matches!(err, SymbolError::Absent { .. }), "{name}: {err}");
        }
    }

    #[test]
    fn segments_give_offsets() {
        let segments = [
            Segment {
                address: 0x1000,
                offset: 0x200,
                size: 0x100,
            },
            Segment {
                address: u64::MAX - 1,
                offset: u64::MAX,
                size: u64::MAX,
            },
        ];
        assert_eq!(file_offset(&segments, 0x1010), Some(0x210));
        assert_eq!(file_offset(&segments, 0x1100), None);
        assert_eq!(file_offset(&segments, 0xfff), None);
        assert_eq!(file_offset(&segments, u64::MAX), None);
    }

    #[test]
    fn damage_does_no_harm() {
        let whole = own_binary();
        let headers = whole.len().min(8192);
        let mut state = 1_u64;
        for round in 0..400 {
            // Small files: the walk over this binary's symbols is long.
            let mut bytes = whole.get(..headers).unwrap().to_vec();
            for _ in 0..=round % 8 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = (state >> 33) as usize % bytes.len().min(1024);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = (state >> 17) as u8;
                }
            }
            let mut count = 0_u64;
            let _ = for_each_function(&bytes, &mut |_| count += 1);
        }
        for len in (0..1024).chain([2048, 4096]) {
            let _ = for_each_function(whole.get(..len).unwrap(), &mut |_| ());
        }
    }
}
