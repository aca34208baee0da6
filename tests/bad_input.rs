//! Files that are no usable object: each has an error of its own that names
//! the file and the reason, and nothing is created in the kernel.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

use std::path::{Path, PathBuf};

use common::{LeakCheck, TempDir, testdata};
use ebpf_manager::bpf::{Errno, LoadError, open_object};
use ebpf_manager::elf::{Object, ObjectError};
use ebpf_manager::{Manager, ManagerError, ObjectSource, State};

/// Offsets in an ELF header.
const CLASS: usize = 4;
const BYTE_ORDER: usize = 5;
const TYPE: usize = 16;
const MACHINE: usize = 18;

const HOST: &str = if cfg!(target_endian = "little") {
    "little"
} else {
    "big"
};

/// A committed object that is good.
fn good() -> Vec<u8> {
    std::fs::read(testdata("attach.bpf.o")).unwrap()
}

/// The good object with a 16-bit field replaced.
fn with_field(at: usize, value: u16) -> Vec<u8> {
    let mut bytes = good();
    bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    bytes
}

/// Opens a file in both ways; the one error they give.
fn refused(path: &Path) -> LoadError {
    let err = open_object(path).unwrap_err();
    let manager = Manager::builder().build().unwrap();
    let by_manager = manager.init(&ObjectSource::path(path)).unwrap_err();
    assert_eq!(by_manager.to_string(), err.to_string());
    assert_eq!(by_manager, ManagerError::Load(Box::new(err.clone())));
    assert_eq!(manager.state(), State::Declared);
    err
}

/// A file that can be read and is refused for what is in it. The error reads
/// `PATH: REASON`; from memory there is no path.
fn refused_for(bytes: &[u8], expected: &ObjectError, reason: &str) {
    let dir = TempDir::new();
    let path = dir.path().join("file.o");
    std::fs::write(&path, bytes).unwrap();
    let err = refused(&path);
    assert_eq!(err.to_string(), format!("{}: {reason}", path.display()));
    let LoadError::Object { path: at, source } = err else {
        panic!("{err}")
    };
    assert_eq!(at.as_deref(), Some(path.as_path()));
    assert_eq!(source, *expected);

    let manager = Manager::builder().build().unwrap();
    let from_memory = ObjectSource::bytes(bytes.to_vec());
    let err = manager.init(&from_memory).unwrap_err();
    assert_eq!(err.to_string(), reason);
}

fn malformed(what: &str) -> ObjectError {
    ObjectError::Malformed {
        what: what.to_owned(),
        section: None,
    }
}

#[test]
fn file_that_cannot_be_read() {
    let _leaks = LeakCheck::begin();
    let dir = TempDir::new();
    let unreadable = |path: PathBuf, errno: Errno, reason: &str| {
        let err = refused(&path);
        assert!(err.is(errno), "{err}");
        let LoadError::Read { source } = &err else {
            panic!("{err}")
        };
        assert_eq!(source.path(), Some(path.as_path()));
        let text = format!("cannot read the object: read {}: {reason}", path.display());
        assert_eq!(err.to_string(), text);
    };
    unreadable(
        dir.path().join("missing.o"),
        Errno::ENOENT,
        "ENOENT (No such file or directory)",
    );
    unreadable(
        dir.path().to_owned(),
        Errno::EISDIR,
        "EISDIR (Is a directory)",
    );
    unreadable(
        testdata("attach.bpf.o").join("below"),
        Errno::ENOTDIR,
        "ENOTDIR (Not a directory)",
    );
}

#[test]
fn empty_file() {
    let _leaks = LeakCheck::begin();
    refused_for(b"", &ObjectError::Empty, "the file is empty");
}

#[test]
fn text_file() {
    let _leaks = LeakCheck::begin();
    let not_elf = |found: &[u8]| ObjectError::NotElf {
        found: found.to_vec(),
    };
    refused_for(
        b"#include \"vmlinux.h\"\n",
        &not_elf(b"#inc"),
        "not an ELF file: it starts with [23, 69, 6e, 63] instead of 7f 45 4c 46",
    );
    refused_for(
        b"\n",
        &not_elf(b"\n"),
        "not an ELF file: it starts with [0a] instead of 7f 45 4c 46",
    );
}

#[test]
fn other_class_of_elf() {
    let _leaks = LeakCheck::begin();
    let mut bytes = good();
    bytes[CLASS] = 1;
    refused_for(
        &bytes,
        &ObjectError::Not64Bit,
        "a 32-bit ELF file; eBPF objects are 64-bit",
    );
    bytes[CLASS] = 3;
    refused_for(
        &bytes,
        &malformed("Unsupported ELF header"),
        "damaged or truncated: Unsupported ELF header",
    );
}

/// The test itself, and the good object with another machine's number.
#[test]
fn elf_for_another_processor() {
    let _leaks = LeakCheck::begin();
    let err = refused(Path::new("/proc/self/exe"));
    assert!(
        matches!(
            err,
            LoadError::Object {
                source: ObjectError::NotBpf { .. },
                ..
            }
        ),
        "{err}"
    );
    for (number, machine) in [
        (62, "x86-64"),
        (183, "AArch64"),
        (243, "RISC-V"),
        (0xffff, "another processor"),
    ] {
        refused_for(
            &with_field(MACHINE, number),
            &ObjectError::NotBpf { machine, number },
            &format!(
                "an ELF file for {machine} (machine {number}), not for eBPF; \
                 compile it with clang -target bpf"
            ),
        );
    }
}

#[test]
fn object_of_the_other_byte_order() {
    let _leaks = LeakCheck::begin();
    let fixture = std::fs::read(testdata("bigendian.bpf.o")).unwrap();
    let (found, target) = if HOST == "little" {
        ("big", "bpfel")
    } else {
        ("little", "bpfeb")
    };
    if HOST == "little" {
        refused_for(
            &fixture,
            &ObjectError::ByteOrder { found },
            "a big-endian object on a little-endian machine; compile it with -target bpfel",
        );
    }
    let mut bytes = good();
    bytes[BYTE_ORDER] = 3 - bytes[BYTE_ORDER];
    refused_for(
        &bytes,
        &ObjectError::ByteOrder { found },
        &format!(
            "a {found}-endian object on a {HOST}-endian machine; compile it with -target {target}"
        ),
    );
    bytes[BYTE_ORDER] = 9;
    refused_for(
        &bytes,
        &malformed("Unsupported ELF header"),
        "damaged or truncated: Unsupported ELF header",
    );
}

#[test]
fn elf_that_is_linked() {
    let _leaks = LeakCheck::begin();
    for found in [2, 3, 4] {
        refused_for(
            &with_field(TYPE, found),
            &ObjectError::NotRelocatable { found },
            &format!("an ELF file of type {found}, not a relocatable object (type 1)"),
        );
    }
}

#[test]
fn object_with_nothing_inside() {
    let _leaks = LeakCheck::begin();
    refused_for(
        &std::fs::read(testdata("empty.bpf.o")).unwrap(),
        &ObjectError::NothingInside,
        "the object has no program and no map",
    );
}

#[test]
fn object_that_was_cut_off() {
    let _leaks = LeakCheck::begin();
    let bytes = good();
    let cut = |len: usize, what: &str| {
        refused_for(
            &bytes[..len],
            &malformed(what),
            &format!("damaged or truncated: {what}"),
        );
    };
    for len in [4, 5, 16, 63] {
        cut(len, &format!("the file has {len} bytes, an ELF header 64"));
    }
    let end = bytes.len();
    for len in [64, end / 4, end / 2, end - 64, end - 1] {
        let what = format!("the file has {len} bytes, its section headers end at {end}");
        cut(len, &what);
    }
}

/// The section headers are there, but what they point at is not.
#[test]
fn section_that_reaches_past_the_end() {
    let _leaks = LeakCheck::begin();
    let mut bytes = good();
    let headers = u64::from_ne_bytes(*bytes[40..].first_chunk().unwrap()) as usize;
    let names = u16::from_ne_bytes(*bytes[62..].first_chunk().unwrap());
    let name_at = |bytes: &[u8], section: usize| {
        let word = |at: usize| u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap()) as usize;
        let strings = word(headers + 64 * usize::from(names) + 24);
        let offset = u32::from_ne_bytes(*bytes[headers + 64 * section..].first_chunk().unwrap());
        let name = &bytes[strings + offset as usize..];
        name.split(|b| *b == 0).next().unwrap().to_vec()
    };
    for section in [
        "tracepoint/sched/sched_process_exec",
        ".rodata",
        ".maps",
        "license",
        ".BTF",
        ".BTF.ext",
    ] {
        let index = (1..usize::from(u16::MAX))
            .find(|i| name_at(&bytes, *i) == section.as_bytes())
            .unwrap();
        let size = headers + 64 * index + 32;
        let saved: [u8; 8] = *bytes[size..].first_chunk().unwrap();
        let huge = bytes.len() as u64;
        bytes[size..size + 8].copy_from_slice(&huge.to_ne_bytes());
        let what = "the section reaches past the end of the file";
        refused_for(
            &bytes,
            &ObjectError::Malformed {
                what: what.to_owned(),
                section: Some(section.to_owned()),
            },
            &format!("damaged or truncated: {what} (section {section})"),
        );
        bytes[size..size + 8].copy_from_slice(&saved);
    }
}

/// Bytes need no alignment: an `include_bytes!` has none.
#[test]
fn object_at_an_odd_address_reads_the_same() {
    /// The bytes from the second one on.
    struct Tail(Vec<u8>);
    impl AsRef<[u8]> for Tail {
        fn as_ref(&self) -> &[u8] {
            &self.0[1..]
        }
    }
    for entry in std::fs::read_dir(testdata("")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "o") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let mut shifted = vec![0];
        shifted.extend_from_slice(&bytes);
        let (even, odd) = (Object::parse(bytes), Object::parse(Tail(shifted)));
        match (even, odd) {
            (Ok(even), Ok(odd)) => {
                assert_eq!(even.programs(), odd.programs());
                assert_eq!(even.maps(), odd.maps());
                assert_eq!(even.variables(), odd.variables());
                assert_eq!(even.externs(), odd.externs());
                let (a, b) = (even.linker().unwrap(), odd.linker().unwrap());
                let (mut to_a, mut to_b) = Default::default();
                for program in even.programs() {
                    let linked = (a.link(program, &mut to_a), b.link(program, &mut to_b));
                    assert_eq!(linked, (Ok(()), Ok(())), "{}", path.display());
                    assert_eq!(to_a.insns, to_b.insns);
                    assert_eq!(to_a.fixups, to_b.fixups);
                    assert_eq!(to_a.line_info, to_b.line_info);
                    assert_eq!(to_a.func_info, to_b.func_info);
                }
            }
            (even, odd) => assert_eq!(even.err(), odd.err(), "{}", path.display()),
        }
    }
}
