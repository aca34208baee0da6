//! An ELF file that is an eBPF object, before anything in it is understood.

use object::read::elf::{FileHeader, SectionTable, SymbolTable};
use object::{NativeEndian, elf};

use crate::cursor::u32_at;
use crate::error::{Fault, ObjectError, machine_name, malformed};

type Header = elf::FileHeader64<NativeEndian>;
pub(crate) type Sections<'d> = SectionTable<'d, Header>;
pub(crate) type Symbols<'d> = SymbolTable<'d, Header>;

pub(super) const E: NativeEndian = NativeEndian;

pub(crate) fn bad(err: object::read::Error) -> Fault {
    malformed(format_args!("{err}"))
}

/// Whether there is anything in BTF. GCC writes the header alone where there
/// are no types.
pub(crate) fn has_types(btf: &[u8]) -> bool {
    // `type_len` in the header.
    u32_at(btf, 12) != Some(0)
}

/// Checks that these are the bytes of an eBPF object, and finds its sections
/// and symbols.
pub(crate) fn open(data: &[u8]) -> Result<(Sections<'_>, Symbols<'_>), Fault> {
    let ident = data.get(..data.len().min(4)).unwrap_or_default();
    if data.is_empty() {
        return Err(ObjectError::Empty.into());
    }
    if ident != elf::ELFMAG {
        return Err(ObjectError::NotElf {
            found: ident.to_vec(),
        }
        .into());
    }
    if data.get(4) == Some(&elf::ELFCLASS32) {
        return Err(ObjectError::Not64Bit.into());
    }
    match (data.get(5), cfg!(target_endian = "little")) {
        (Some(&elf::ELFDATA2MSB), true) => {
            return Err(ObjectError::ByteOrder { found: "big" }.into());
        }
        (Some(&elf::ELFDATA2LSB), false) => {
            return Err(ObjectError::ByteOrder { found: "little" }.into());
        }
        _ => {}
    }
    let have = data.len();
    if have < size_of::<Header>() {
        let need = size_of::<Header>();
        return Err(malformed(format_args!(
            "the file has {have} bytes, an ELF header {need}"
        )));
    }
    let header = Header::parse(data).map_err(bad)?;
    let machine = header.e_machine(E);
    // Clang before 3.9 wrote no machine number of its own.
    if machine != elf::EM_BPF && machine != elf::EM_NONE {
        return Err(ObjectError::NotBpf {
            machine: machine_name(machine),
            number: machine,
        }
        .into());
    }
    if header.e_type(E) != elf::ET_REL {
        return Err(ObjectError::NotRelocatable {
            found: header.e_type(E),
        }
        .into());
    }
    // They come last in a file, so this is where one that was cut off shows.
    let headers = u64::from(header.e_shnum(E)) * u64::from(header.e_shentsize(E));
    let end = header.e_shoff(E).saturating_add(headers);
    if end > have as u64 {
        return Err(malformed(format_args!(
            "the file has {have} bytes, its section headers end at {end}"
        )));
    }
    let sections = header.sections(E, data).map_err(bad)?;
    let symbols = sections.symbols(E, data, elf::SHT_SYMTAB).map_err(bad)?;
    Ok((sections, symbols))
}
