//! The linked object, and how it is written.

use std::collections::BTreeMap;

use ebpf_manager_sys::abi::insn::Insn;
use object::elf;

use super::StaticLinkError;
use super::input::Source;
use super::types::Merged;
use crate::object::SHARING;

/// More than a page is nothing a BPF object could count on.
const MAX_ALIGN: u64 = 1 << 16;

/// Marks numbers of global symbols, which follow the local ones.
const GLOBAL: u32 = 1 << 31;

/// The number of a local symbol.
pub(super) fn local(index: usize) -> u32 {
    index as u32
}

/// The number of a global symbol.
pub(super) fn global(index: usize) -> u32 {
    index as u32 | GLOBAL
}

/// What has been linked so far.
pub(super) struct Output {
    pub(super) sections: Vec<Section>,
    by_name: BTreeMap<String, usize>,
    pub(super) locals: Vec<Symbol>,
    pub(super) globals: Vec<Symbol>,
    /// Bytes that may still be added for the alignment of sections.
    padding: usize,
}

/// A section of the output.
pub(super) struct Section {
    pub(super) name: String,
    pub(super) sh_type: u32,
    pub(super) flags: u64,
    align: u64,
    pub(super) size: u64,
    pub(super) data: Vec<u8>,
    /// Offset, number of the symbol, type.
    pub(super) relocations: Vec<(u64, u32, u32)>,
    /// The input that had it first.
    pub(super) input: usize,
    symbol: Option<u32>,
}

/// A symbol of the output.
pub(super) struct Symbol {
    pub(super) name: String,
    pub(super) bind: u8,
    pub(super) kind: u8,
    pub(super) visibility: u8,
    pub(super) section: Option<usize>,
    pub(super) absolute: bool,
    pub(super) value: u64,
    pub(super) size: u64,
}

impl Section {
    /// An empty section like one of the input with this number.
    fn like(source: &Source<'_>, input: usize) -> Section {
        Section {
            name: source.name.to_owned(),
            sh_type: source.sh_type,
            flags: source.flags,
            align: 1,
            size: 0,
            data: Vec::new(),
            relocations: Vec::new(),
            input,
            symbol: None,
        }
    }

    /// Puts a section of an input at the end; returns the offset of its start.
    /// `padding` is what may be added to align it.
    fn append(&mut self, source: &Source<'_>, padding: &mut usize) -> Result<u64, StaticLinkError> {
        let too_large = StaticLinkError::TooLarge {
            what: "a section has more than 2 GiB",
        };
        let code = self.flags & u64::from(elf::SHF_EXECINSTR) != 0;
        let align = source
            .align
            .max(if code { size_of::<Insn>() as u64 } else { 1 });
        let unfit = StaticLinkError::TooLarge {
            what: "the alignment of a section",
        };
        if !align.is_power_of_two() || align > MAX_ALIGN {
            return Err(unfit);
        }
        let start = self.size.next_multiple_of(align);
        let end = start.saturating_add(source.size);
        // Before this part, and in the file before the whole section.
        let added = (start - self.size) + align.saturating_sub(self.align);
        *padding = padding.checked_sub(added as usize).ok_or(unfit)?;
        if i32::try_from(end).is_err() {
            return Err(too_large);
        }
        if self.sh_type != elf::SHT_NOBITS {
            self.data.resize(start as usize, 0);
            self.data.extend_from_slice(source.data);
            self.data.resize(end as usize, 0);
        }
        self.size = end;
        self.align = self.align.max(align);
        Ok(start)
    }
}

impl Output {
    /// Nothing yet, of files of that many bytes.
    pub(super) fn new(files: usize, bytes: usize) -> Output {
        Output {
            sections: Vec::new(),
            by_name: BTreeMap::new(),
            locals: Vec::new(),
            globals: Vec::new(),
            // What compilers ask for is less by far.
            padding: bytes
                .saturating_mul(SHARING)
                .saturating_add(files.saturating_mul(2 * MAX_ALIGN as usize)),
        }
    }

    /// The index of the section of this name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The index of a section of the name of one of the input with this
    /// number, added if there is none.
    pub(super) fn section_like(&mut self, source: &Source<'_>, input: usize) -> usize {
        if let Some(found) = self.find(source.name) {
            return found;
        }
        let index = self.sections.len();
        self.sections.push(Section::like(source, input));
        self.by_name.insert(source.name.to_owned(), index);
        index
    }

    /// Puts a section of an input at the end of one; returns the offset of its
    /// start.
    pub(super) fn append(
        &mut self,
        section: usize,
        source: &Source<'_>,
    ) -> Result<u64, StaticLinkError> {
        match self.sections.get_mut(section) {
            Some(section) => section.append(source, &mut self.padding),
            None => Ok(0),
        }
    }

    /// The symbol with this number.
    pub(super) fn symbol_mut(&mut self, number: u32) -> Option<&mut Symbol> {
        let index = (number & !GLOBAL) as usize;
        match number & GLOBAL {
            0 => self.locals.get_mut(index),
            _ => self.globals.get_mut(index),
        }
    }

    /// The number of the symbol of a section.
    pub(super) fn section_symbol(&mut self, section: usize) -> u32 {
        let next = local(self.locals.len());
        let Some(target) = self.sections.get_mut(section) else {
            return next;
        };
        if let Some(symbol) = target.symbol {
            return symbol;
        }
        target.symbol = Some(next);
        self.locals.push(Symbol {
            name: String::new(),
            bind: elf::STB_LOCAL,
            kind: elf::STT_SECTION,
            visibility: elf::STV_DEFAULT,
            section: Some(section),
            absolute: false,
            value: 0,
            size: 0,
        });
        next
    }

    /// Size of the section of this name.
    pub(super) fn section_size(&self, name: &str) -> Option<u32> {
        let section = self.sections.get(self.find(name)?)?;
        u32::try_from(section.size).ok()
    }

    /// The bytes of the object.
    pub(super) fn write(self, types: &Merged) -> Result<Vec<u8>, StaticLinkError> {
        let mut file = File::default();
        let locals = self.locals.len() as u32 + 1;
        // ELF numbers sections from 1, in this order.
        let mut symbols = vec![0; SYMBOL_SIZE];
        for symbol in self.locals.iter().chain(&self.globals) {
            let section = match symbol.section {
                Some(section) => section as u16 + 1,
                None if symbol.absolute => elf::SHN_ABS,
                None => elf::SHN_UNDEF,
            };
            let name = file.strings.add(&symbol.name);
            symbols.extend_from_slice(&name.to_ne_bytes());
            symbols.extend_from_slice(&[symbol.bind << 4 | symbol.kind, symbol.visibility]);
            symbols.extend_from_slice(&section.to_ne_bytes());
            symbols.extend_from_slice(&symbol.value.to_ne_bytes());
            symbols.extend_from_slice(&symbol.size.to_ne_bytes());
        }
        let mut relocations = Vec::new();
        for (index, section) in (1..).zip(self.sections) {
            file.section(
                &Header {
                    name: &section.name,
                    sh_type: section.sh_type,
                    flags: section.flags,
                    align: section.align,
                    size: section.size,
                    ..Header::default()
                },
                &section.data,
            );
            if !section.relocations.is_empty() {
                relocations.push((index, section.name, section.relocations));
            }
        }
        let count = relocations.len() + types.sections().count();
        let symtab = file.count() as u32 + count as u32 + 1;
        for (index, name, relocations) in relocations {
            let mut bytes = Vec::with_capacity(relocations.len() * 16);
            for (offset, number, kind) in relocations {
                let symbol = match number & GLOBAL {
                    0 => number + 1,
                    _ => (number & !GLOBAL) + locals,
                };
                let info = u64::from(symbol) << 32 | u64::from(kind);
                bytes.extend_from_slice(&offset.to_ne_bytes());
                bytes.extend_from_slice(&info.to_ne_bytes());
            }
            let name = [".rel", &name].concat();
            file.section(
                &Header {
                    name: &name,
                    sh_type: elf::SHT_REL,
                    flags: elf::SHF_INFO_LINK.into(),
                    link: symtab,
                    info: index,
                    align: 8,
                    entry_size: 16,
                    size: bytes.len() as u64,
                },
                &bytes,
            );
        }
        for (name, bytes) in types.sections() {
            file.section(
                &Header {
                    name,
                    sh_type: elf::SHT_PROGBITS,
                    align: 4,
                    size: bytes.len() as u64,
                    ..Header::default()
                },
                bytes,
            );
        }
        file.section(
            &Header {
                name: ".symtab",
                sh_type: elf::SHT_SYMTAB,
                link: symtab + 1,
                info: locals,
                align: 8,
                entry_size: SYMBOL_SIZE as u64,
                size: symbols.len() as u64,
                flags: 0,
            },
            &symbols,
        );
        file.finish()
    }
}

const SYMBOL_SIZE: usize = 24;
const HEADER_SIZE: usize = 64;
const SECTION_HEADER_SIZE: usize = 64;

/// Names, each once.
struct Strings {
    bytes: Vec<u8>,
    known: BTreeMap<String, u32>,
}

impl Default for Strings {
    fn default() -> Self {
        Strings {
            bytes: vec![0],
            known: BTreeMap::new(),
        }
    }
}

impl Strings {
    fn add(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if let Some(known) = self.known.get(text) {
            return *known;
        }
        let at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.known.insert(text.to_owned(), at);
        at
    }
}

#[derive(Default)]
struct Header<'n> {
    name: &'n str,
    sh_type: u32,
    flags: u64,
    link: u32,
    info: u32,
    align: u64,
    entry_size: u64,
    size: u64,
}

/// An ELF file under construction.
#[derive(Default)]
struct File {
    body: Vec<u8>,
    headers: Vec<u8>,
    /// Of symbols and of sections: one table for both.
    strings: Strings,
}

impl File {
    /// Sections so far, without the first, which is none.
    fn count(&self) -> usize {
        self.headers.len() / SECTION_HEADER_SIZE
    }

    fn section(&mut self, header: &Header<'_>, bytes: &[u8]) {
        let align = header.align.max(1) as usize;
        let start = (HEADER_SIZE + self.body.len()).next_multiple_of(align);
        self.body.resize(start - HEADER_SIZE, 0);
        self.body.extend_from_slice(bytes);
        let name = self.strings.add(header.name);
        for word in [name, header.sh_type] {
            self.headers.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [header.flags, 0, start as u64, header.size] {
            self.headers.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [header.link, header.info] {
            self.headers.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [header.align, header.entry_size] {
            self.headers.extend_from_slice(&word.to_ne_bytes());
        }
    }

    fn finish(mut self) -> Result<Vec<u8>, StaticLinkError> {
        let name = ".strtab";
        self.strings.add(name);
        let strings = std::mem::take(&mut self.strings.bytes);
        self.section(
            &Header {
                name,
                sh_type: elf::SHT_STRTAB,
                align: 1,
                size: strings.len() as u64,
                ..Header::default()
            },
            &strings,
        );
        let sections = self.count() + 1;
        let count = u16::try_from(sections)
            .ok()
            .filter(|c| *c < elf::SHN_LORESERVE);
        let Some(count) = count.filter(|_| u32::try_from(strings.len()).is_ok()) else {
            return Err(StaticLinkError::TooLarge {
                what: "there are too many sections or names",
            });
        };
        let start = (HEADER_SIZE + self.body.len()).next_multiple_of(8);
        self.body.resize(start - HEADER_SIZE, 0);

        let mut file = Vec::with_capacity(start + (sections) * SECTION_HEADER_SIZE);
        let order = if cfg!(target_endian = "little") {
            elf::ELFDATA2LSB
        } else {
            elf::ELFDATA2MSB
        };
        file.extend_from_slice(&elf::ELFMAG);
        file.extend_from_slice(&[elf::ELFCLASS64, order, elf::EV_CURRENT, 0]);
        file.extend_from_slice(&[0; 8]);
        for half in [elf::ET_REL, elf::EM_BPF] {
            file.extend_from_slice(&half.to_ne_bytes());
        }
        file.extend_from_slice(&u32::from(elf::EV_CURRENT).to_ne_bytes());
        for word in [0, 0, start as u64] {
            file.extend_from_slice(&word.to_ne_bytes());
        }
        file.extend_from_slice(&0_u32.to_ne_bytes());
        let halves = [
            HEADER_SIZE as u16,
            0,
            0,
            SECTION_HEADER_SIZE as u16,
            count,
            count - 1,
        ];
        for half in halves {
            file.extend_from_slice(&half.to_ne_bytes());
        }
        file.extend_from_slice(&self.body);
        file.resize(file.len() + SECTION_HEADER_SIZE, 0);
        file.extend_from_slice(&self.headers);
        Ok(file)
    }
}
