//! Why an object file was refused.

use std::fmt;

use crate::btf::BtfError;

/// An object file that cannot be used, with the place of the fault.
///
/// The reader of the file adds its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// There are no bytes.
    #[error("the file is empty")]
    Empty,
    /// The magic number is missing.
    #[error("not an ELF file: it starts with {found:02x?} instead of 7f 45 4c 46")]
    NotElf {
        /// The first bytes, at most four.
        found: Vec<u8>,
    },
    /// A 32-bit ELF file.
    #[error("a 32-bit ELF file; eBPF objects are 64-bit")]
    Not64Bit,
    /// Compiled for the other byte order.
    #[error(
        "a {found}-endian object on a {}-endian machine; compile it with -target {}",
        crate::error::host_endian(),
        crate::error::host_target()
    )]
    ByteOrder {
        /// The object's byte order, `"big"` or `"little"`.
        found: &'static str,
    },
    /// Compiled for another processor.
    #[error(
        "an ELF file for {machine} (machine {number}), not for eBPF; compile it with clang -target bpf"
    )]
    NotBpf {
        /// Name of the processor, or `"another processor"`.
        machine: &'static str,
        /// `e_machine`.
        number: u16,
    },
    /// Not a relocatable file.
    #[error("an ELF file of type {found}, not a relocatable object (type 1)")]
    NotRelocatable {
        /// `e_type`.
        found: u16,
    },
    /// Headers, sections or symbols reach outside the file or contradict
    /// themselves.
    #[error("damaged or truncated: {what}{}", crate::error::in_section(section.as_deref()))]
    Malformed {
        /// What is wrong.
        what: String,
        /// The section it was found in, if known.
        section: Option<String>,
    },
    /// The object has something that this build of the library leaves out.
    #[error("{what}: left out of this build; the feature `{feature}` brings it")]
    LeftOut {
        /// What it has.
        what: String,
        /// The feature to enable.
        feature: &'static str,
    },
    /// Nothing to load.
    #[error("the object has no program and no map")]
    NothingInside,
    /// A section's BTF is unusable.
    #[error("section {section}: {source}")]
    Btf {
        /// `.BTF` or `.BTF.ext`.
        section: &'static str,
        /// The fault.
        source: BtfError,
    },
    /// A map definition that cannot be understood.
    #[error("map {map}: {what}")]
    Map {
        /// The map's name.
        map: String,
        /// What is wrong.
        what: String,
    },
    /// A global variable that cannot be set.
    #[error("variable {name} {what}")]
    Variable {
        /// The variable's name.
        name: String,
        /// What is wrong: `"has 4 bytes, the value has 8"`.
        what: String,
    },
    /// A symbol that the object uses and does not define cannot be given a
    /// value.
    #[error("symbol {symbol}: {what}")]
    Symbol {
        /// The symbol's name.
        symbol: String,
        /// What is wrong.
        what: String,
    },
    /// A relocation that cannot be resolved.
    #[error("section {section}, offset {offset:#x} (instruction {}): {what}", offset / 8)]
    Relocation {
        /// Section the instruction stands in.
        section: String,
        /// Byte offset in the section.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A program that no kernel takes.
    #[error("program {program} has more than a million instructions with its subprograms")]
    TooLarge {
        /// The program's name.
        program: String,
    },
    /// A program was asked for that is not in the object.
    #[error("no program {name} in the object")]
    NoSuchProgram {
        /// The name asked for.
        name: String,
    },
}

/// An [`ObjectError`] on its way out. It is one pointer, so that the many
/// results that could be one are handed up in registers.
pub(crate) type Fault = Box<ObjectError>;

impl From<Fault> for ObjectError {
    #[cold]
    fn from(fault: Fault) -> ObjectError {
        *fault
    }
}

pub(crate) fn host_endian() -> &'static str {
    if cfg!(target_endian = "little") {
        "little"
    } else {
        "big"
    }
}

pub(crate) fn host_target() -> &'static str {
    if cfg!(target_endian = "little") {
        "bpfel"
    } else {
        "bpfeb"
    }
}

pub(crate) fn in_section(section: Option<&str>) -> String {
    section
        .map(|s| format!(" (section {s})"))
        .unwrap_or_default()
}

/// The text of a fault is put together here and nowhere else.
#[cold]
#[inline(never)]
pub(crate) fn malformed(what: fmt::Arguments<'_>) -> Fault {
    Box::new(ObjectError::Malformed {
        what: what.to_string(),
        section: None,
    })
}

#[cold]
#[inline(never)]
pub(crate) fn malformed_in(section: &str, what: fmt::Arguments<'_>) -> Fault {
    Box::new(ObjectError::Malformed {
        what: what.to_string(),
        section: Some(section.to_owned()),
    })
}

#[cold]
#[inline(never)]
pub(crate) fn left_out(section: &str, feature: &'static str) -> Fault {
    Box::new(ObjectError::LeftOut {
        what: format!("section {section}"),
        feature,
    })
}

#[cold]
#[inline(never)]
pub(crate) fn bad_btf(section: &'static str, source: BtfError) -> Fault {
    Box::new(ObjectError::Btf { section, source })
}

#[cold]
#[inline(never)]
pub(crate) fn bad_map(map: &str, what: fmt::Arguments<'_>) -> Fault {
    Box::new(ObjectError::Map {
        map: map.to_owned(),
        what: what.to_string(),
    })
}

#[cold]
#[inline(never)]
pub(crate) fn bad_symbol(symbol: &str, what: fmt::Arguments<'_>) -> Fault {
    Box::new(ObjectError::Symbol {
        symbol: symbol.to_owned(),
        what: what.to_string(),
    })
}

#[cold]
#[inline(never)]
pub(crate) fn bad_relocation(section: &str, offset: u64, what: fmt::Arguments<'_>) -> Fault {
    Box::new(ObjectError::Relocation {
        section: section.to_owned(),
        offset,
        what: what.to_string(),
    })
}

/// Name of a machine number that people hand to a BPF loader by mistake.
pub(crate) fn machine_name(number: u16) -> &'static str {
    use object::elf;
    match number {
        elf::EM_X86_64 => "x86-64",
        elf::EM_386 => "x86",
        elf::EM_AARCH64 => "AArch64",
        elf::EM_ARM => "Arm",
        elf::EM_RISCV => "RISC-V",
        elf::EM_PPC64 => "PowerPC 64",
        elf::EM_S390 => "S/390",
        elf::EM_MIPS => "MIPS",
        elf::EM_LOONGARCH => "LoongArch",
        _ => "another processor",
    }
}
