//! `/etc/ld.so.cache`: where the dynamic linker of glibc finds libraries by
//! their names.
//!
//! The file says: a header, entries of 24 bytes, and text that they point
//! into. A file written for programs of the last century has their table in
//! front of that. Nothing is kept: the caller brings the bytes.

use crate::cursor::{name_at, slice_at, u32_at};
use crate::error::{ObjectError, malformed};

/// A library that the cache lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CachedLibrary<'a> {
    /// What programs ask for: `libc.so.6`.
    pub name: &'a [u8],
    /// Where it is, from the root of the file system that the cache is in.
    pub path: &'a [u8],
    /// The kind of library: its low byte is 3 for those of glibc, the next
    /// tells the architecture, 3 being 64-bit x86.
    pub kind: u32,
    /// What the processor must have: `x86-64-v3`. `Some` of nothing is what an
    /// old cache says in a way that this reader does not follow.
    pub hardware: Option<&'a [u8]>,
}

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER_LEN: usize = 48;
const ENTRY_LEN: usize = 24;
const EXTENSION_OFFSET: usize = 32;

/// The table in front: its magic number, and the lengths of what it has.
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const OLD_HEADER_LEN: usize = 16;
const OLD_ENTRY_LEN: usize = 12;

/// An entry is for some processors; its low word says which.
const HARDWARE_BY_NUMBER: u64 = 1 << 62;

const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
const HARDWARE_NAMES: u32 = 1;

/// Visits the libraries of a cache that are called `name`, in its order: what
/// is for better processors comes first.
///
/// # Errors
/// [`ObjectError::Malformed`] if the bytes are no such cache, or are cut off.
pub fn for_each_library<'a>(
    bytes: &'a [u8],
    name: &[u8],
    visit: &mut dyn FnMut(CachedLibrary<'a>),
) -> Result<(), ObjectError> {
    let bytes = start(bytes).ok_or_else(|| malformed(format_args!("no cache of libraries")))?;
    let count = u32_at(bytes, MAGIC.len()).unwrap_or_default() as usize;
    let entries = count
        .checked_mul(ENTRY_LEN)
        .and_then(|len| slice_at(bytes, HEADER_LEN, len))
        .ok_or_else(|| malformed(format_args!("a cache of {count} libraries is cut off")))?;
    for entry in entries.chunks_exact(ENTRY_LEN) {
        let word = |at| u32_at(entry, at).unwrap_or_default();
        let text = |at| name_at(bytes, word(at) as usize);
        let Some(called) = text(4).filter(|called| *called == name) else {
            continue;
        };
        let Some(path) = text(8).filter(|path| !path.is_empty()) else {
            continue;
        };
        let hardware = u64::from(word(16)) | u64::from(word(20)) << 32;
        let hardware = match hardware {
            0 => None,
            _ if hardware & HARDWARE_BY_NUMBER == 0 => Some(&[][..]),
            _ => Some(hardware_name(bytes, hardware as u32).unwrap_or_default()),
        };
        visit(CachedLibrary {
            name: called,
            path,
            kind: word(0),
            hardware,
        });
    }
    Ok(())
}

/// The part that is understood here.
fn start(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.starts_with(MAGIC) {
        return Some(bytes);
    }
    if !bytes.starts_with(OLD_MAGIC) {
        return None;
    }
    let count = u32_at(bytes, OLD_MAGIC.len())? as usize;
    let len = count
        .checked_mul(OLD_ENTRY_LEN)?
        .checked_add(OLD_HEADER_LEN)?;
    let rest = bytes.get(len.checked_next_multiple_of(8)?..)?;
    rest.starts_with(MAGIC).then_some(rest)
}

/// The name of a kind of processor, which an extension of the file has.
fn hardware_name(bytes: &[u8], index: u32) -> Option<&[u8]> {
    /// Kind, flags, place, length.
    const SECTION_LEN: usize = 16;
    let at = u32_at(bytes, EXTENSION_OFFSET)? as usize;
    let extension = bytes.get(at..)?;
    if u32_at(extension, 0)? != EXTENSION_MAGIC {
        return None;
    }
    let count = u32_at(extension, 4)? as usize;
    let sections = slice_at(extension, 8, count.checked_mul(SECTION_LEN)?)?;
    let names = sections
        .chunks_exact(SECTION_LEN)
        .find(|section| u32_at(section, 0) == Some(HARDWARE_NAMES))?;
    let (place, len) = (u32_at(names, 8)?, u32_at(names, 12)?);
    let names = slice_at(bytes, place as usize, len as usize)?;
    let text = u32_at(names, (index as usize).checked_mul(4)?)?;
    name_at(bytes, text as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of these libraries, which may be for a processor of a name.
    fn cache(libraries: &[(&str, &str, u32, Option<&str>)]) -> Vec<u8> {
        let mut text = Vec::new();
        let text_at = (HEADER_LEN + ENTRY_LEN * libraries.len()) as u32;
        let mut put = |word: &str| {
            let at = text_at + text.len() as u32;
            text.extend_from_slice(word.as_bytes());
            text.push(0);
            at
        };
        let mut hardware = Vec::new();
        let mut entries = Vec::new();
        for (name, path, kind, processor) in libraries {
            let mut words = [*kind, put(name), put(path), 0, 0, 0];
            if let Some(processor) = processor {
                words[4] = hardware.len() as u32;
                words[5] = 1 << 30;
                hardware.push(put(processor));
            }
            entries.extend(words);
        }
        let mut extension = text_at + text.len() as u32;
        let padding = extension.next_multiple_of(4) - extension;
        extension += padding;
        let count = libraries.len() as u32;
        let header = [count, text.len() as u32, 2, extension, 0, 0, 0];
        let place = extension + 8 + 16;
        let len = 4 * hardware.len() as u32;
        let tail = [EXTENSION_MAGIC, 1, HARDWARE_NAMES, 0, place, len];
        let bytes = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        [
            MAGIC.to_vec(),
            bytes(&header),
            bytes(&entries),
            text,
            vec![0; padding as usize],
            bytes(&tail),
            bytes(&hardware),
        ]
        .concat()
    }

    fn found(bytes: &[u8], name: &str) -> Vec<(String, u32, Option<String>)> {
        let mut found = Vec::new();
        for_each_library(bytes, name.as_bytes(), &mut |library| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            found.push((text(library.path), library.kind, library.hardware.map(text)));
        })
        .unwrap();
        found
    }

    fn example() -> Vec<u8> {
        cache(&[
            ("libx.so.2", "/opt/v3/libx.so.2", 0x303, Some("x86-64-v3")),
            ("libx.so.2", "/opt/libx.so.2", 0x303, None),
            ("libx.so.2", "/opt/32/libx.so.2", 3, None),
            ("libx.so", "/opt/libx.so", 0x303, None),
        ])
    }

    #[test]
    fn libraries_are_found_by_name() {
        let bytes = example();
        let two = found(&bytes, "libx.so.2");
        let expected = [
            ("/opt/v3/libx.so.2", 0x303, Some("x86-64-v3")),
            ("/opt/libx.so.2", 0x303, None),
            ("/opt/32/libx.so.2", 3, None),
        ]
        .map(|(path, kind, processor)| (path.to_owned(), kind, processor.map(str::to_owned)));
        assert_eq!(two, expected);
        assert_eq!(found(&bytes, "libx.so").len(), 1);
        assert_eq!(found(&bytes, "libx"), []);
        // Behind the table of old: the text is counted from the newer part on.
        let mut old = [OLD_MAGIC, &2_u32.to_ne_bytes(), &[0; 24]].concat();
        old.extend_from_slice(&bytes);
        assert_eq!(found(&old, "libx.so.2"), expected);
    }

    /// What the machine's own says, if it has one.
    #[test]
    fn the_cache_of_this_machine() {
        let Ok(bytes) = std::fs::read("/etc/ld.so.cache") else {
            return;
        };
        for (path, kind, _) in found(&bytes, "libc.so.6") {
            assert!(path.ends_with("/libc.so.6"), "{path}");
            assert_eq!(kind & 0xff, 3);
            assert!(std::path::Path::new(&path).is_file(), "{path}");
        }
    }

    #[test]
    fn damage_does_no_harm() {
        let whole = example();
        for len in 0..whole.len() {
            let _ = for_each_library(&whole[..len], b"libx.so.2", &mut |_| ());
        }
        for other in [&b""[..], b"glibc-ld.so.cache1.0", OLD_MAGIC] {
            assert!(for_each_library(other, b"x", &mut |_| ()).is_err());
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                let mut libraries = 0;
                let _ = for_each_library(&bytes, b"libx.so.2", &mut |_| libraries += 1);
                assert!(libraries <= 4, "{libraries}");
            }
        }
        // A count that no file holds.
        let mut many = whole.clone();
        many[20..24].fill(0xff);
        let err = for_each_library(&many, b"libx.so.2", &mut |_| ()).unwrap_err();
        assert!(err.to_string().contains("4294967295"), "{err}");
    }
}
