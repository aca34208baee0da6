//! Offline: objects of a megabyte made to be slow. What reading and linking
//! them costs grows with the size of the file, not with its square; so does
//! linking several into one, in time and in memory.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

#[path = "mutate/allocated.rs"]
mod allocated;
#[path = "growth/linked.rs"]
mod linked;

use std::time::{Duration, Instant};

use ebpf_manager_elf::btf::encode::{BtfBuilder, BtfFeatures, NewMember};
use ebpf_manager_elf::btf::{Btf, Linkage, NameQuery, SecVar};
use ebpf_manager_elf::core_relo::{Resolver, add_roots};
use ebpf_manager_elf::{LinkedProgram, Object, ObjectError};

/// What a case may take: a second for the megabyte it is made of, several
/// times over for builds that are not optimised and machines that are busy.
/// What is quadratic takes minutes.
const LIMIT: Duration = Duration::from_secs(20);

// --- objects --------------------------------------------------------------------

const PROGBITS: u32 = 1;
const SYMTAB: u32 = 2;
const STRTAB: u32 = 3;
const NOBITS: u32 = 8;
const REL: u32 = 9;
const WRITE: u64 = 1;
const ALLOC: u64 = 2;
const CODE: u64 = ALLOC | 4;
/// Symbols: binding in the high, type in the low half of a byte.
const GLOBAL: u8 = 0x10;
const OBJECT: u8 = 1;
const FUNC: u8 = 2;
const SECTION: u8 = 3;
const HIDDEN: u8 = 2;

const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
const LD_IMM64: [u8; 16] = [0x18, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A relative call.
fn call(distance: i32) -> [u8; 8] {
    let mut insn = [0x85, 0x10, 0, 0, 0, 0, 0, 0];
    insn[4..].copy_from_slice(&distance.to_ne_bytes());
    insn
}

struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    /// Where the bytes are: those of the file from an offset on, which more
    /// than one section may claim.
    offset: usize,
    size: usize,
    link: u32,
    info: u32,
    align: u64,
}

/// An ELF file in the making.
struct File {
    bytes: Vec<u8>,
    sections: Vec<Section>,
    symbols: Vec<u8>,
    strings: Vec<u8>,
}

impl File {
    fn new() -> File {
        let mut file = File {
            bytes: vec![0; 64],
            sections: Vec::new(),
            symbols: vec![0; 24],
            strings: vec![0],
        };
        file.add("", 0, 0, &[]);
        let license = file.name("license");
        let at = file.put(b"GPL\0");
        file.claim(license, PROGBITS, WRITE | ALLOC, at, 4);
        file
    }

    fn name(&mut self, name: &str) -> u32 {
        let at = self.strings.len();
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at as u32
    }

    fn put(&mut self, data: &[u8]) -> usize {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(data);
        at
    }

    fn claim(&mut self, name: u32, kind: u32, flags: u64, offset: usize, size: usize) -> u16 {
        self.sections.push(Section {
            name,
            kind,
            flags,
            offset,
            size,
            link: 0,
            info: 0,
            align: 8,
        });
        self.sections.len() as u16 - 1
    }

    fn add(&mut self, name: &str, kind: u32, flags: u64, data: &[u8]) -> u16 {
        let name = if name.is_empty() { 0 } else { self.name(name) };
        let at = self.put(data);
        self.claim(name, kind, flags, at, data.len())
    }

    fn symbol(&mut self, name: u32, info: u8, section: u16, value: usize, size: usize) -> u32 {
        let index = self.symbols.len() / 24;
        self.symbols.extend_from_slice(&name.to_ne_bytes());
        self.symbols.extend_from_slice(&[info, 0]);
        self.symbols.extend_from_slice(&section.to_ne_bytes());
        self.symbols.extend_from_slice(&value.to_ne_bytes());
        self.symbols.extend_from_slice(&size.to_ne_bytes());
        index as u32
    }

    fn function(&mut self, name: &str, section: u16, insn: usize, insns: usize) -> u32 {
        let name = self.name(name);
        self.symbol(name, GLOBAL | FUNC, section, insn * 8, insns * 8)
    }

    /// Makes the last symbol hidden.
    fn hide(&mut self) {
        let at = self.symbols.len() - 24 + 5;
        self.symbols[at] = HIDDEN;
    }

    /// Relocations: place in bytes and symbol.
    fn relocate(&mut self, section: u16, places: impl Iterator<Item = (usize, u32)>) {
        let mut data = Vec::new();
        for (place, symbol) in places {
            data.extend_from_slice(&place.to_ne_bytes());
            data.extend_from_slice(&(u64::from(symbol) << 32 | 1).to_ne_bytes());
        }
        let at = self.put(&data);
        self.claim_relocations(section, at, data.len());
    }

    fn claim_relocations(&mut self, section: u16, at: usize, size: usize) {
        self.claim(0, REL, 0, at, size);
        self.sections.last_mut().unwrap().info = u32::from(section);
    }

    fn finish(mut self) -> Vec<u8> {
        let symbols = std::mem::take(&mut self.symbols);
        let symtab = self.add(".symtab", SYMTAB, 0, &symbols);
        let strings = self.name(".strtab");
        let table = std::mem::take(&mut self.strings);
        let at = self.put(&table);
        let strtab = self.claim(strings, STRTAB, 0, at, table.len());
        for section in &mut self.sections {
            match section.kind {
                SYMTAB => section.link = strtab.into(),
                REL => section.link = symtab.into(),
                _ => {}
            }
        }
        let headers = self.put(&[]);
        for s in &self.sections {
            let entry: u64 = match s.kind {
                SYMTAB => 24,
                REL => 16,
                _ => 0,
            };
            for word in [s.name, s.kind] {
                self.bytes.extend_from_slice(&word.to_ne_bytes());
            }
            for word in [s.flags, 0, s.offset as u64, s.size as u64] {
                self.bytes.extend_from_slice(&word.to_ne_bytes());
            }
            for word in [s.link, s.info] {
                self.bytes.extend_from_slice(&word.to_ne_bytes());
            }
            for word in [s.align, entry] {
                self.bytes.extend_from_slice(&word.to_ne_bytes());
            }
        }
        let order = if cfg!(target_endian = "little") { 1 } else { 2 };
        let mut header = vec![
            0x7f, b'E', b'L', b'F', 2, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        for half in [1_u16, 247] {
            header.extend_from_slice(&half.to_ne_bytes());
        }
        header.extend_from_slice(&1_u32.to_ne_bytes());
        for word in [0, 0, headers as u64] {
            header.extend_from_slice(&word.to_ne_bytes());
        }
        header.extend_from_slice(&0_u32.to_ne_bytes());
        for half in [64, 0, 0, 64, self.sections.len() as u16, strtab] {
            header.extend_from_slice(&half.to_ne_bytes());
        }
        self.bytes[..64].copy_from_slice(&header);
        self.bytes
    }
}

/// Runs a case and fails if it takes too long.
fn in_time<R>(what: &str, bytes: usize, work: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = work();
    let took = start.elapsed();
    assert!(took < LIMIT, "{what}: {took:?} for {} KiB", bytes >> 10);
    result
}

fn parsed(what: &str, file: File) -> Object {
    let bytes = file.finish();
    let len = bytes.len();
    match in_time(what, len, || Object::parse(bytes)) {
        Ok(object) => object,
        Err(error) => panic!("{what}: {error}"),
    }
}

fn refused(what: &str, file: File, why: &str) {
    let bytes = file.finish();
    let len = bytes.len();
    let error = in_time(what, len, || Object::parse(bytes)).unwrap_err();
    assert!(error.to_string().contains(why), "{what}: {error}");
}

const REPEATS: &str = "repeat more than the file could hold";

fn link_all(what: &str, object: &Object) -> usize {
    in_time(what, object.bytes().len(), || {
        let linker = object.linker().unwrap();
        let mut linked = LinkedProgram::default();
        let mut insns = 0;
        for program in object.programs() {
            linker.link(program, &mut linked).unwrap();
            insns += linked.insns.len();
        }
        insns
    })
}

// --- cases ----------------------------------------------------------------------

#[test]
fn externs() {
    const N: usize = 15_000;
    let mut file = File::new();
    let code = [LD_IMM64.repeat(N), EXIT.to_vec()].concat();
    let code = file.add("socket", PROGBITS, CODE, &code);
    file.function("main", code, 0, 2 * N + 1);
    let symbols: Vec<_> = (0..N)
        .map(|nth| {
            let name = file.name(&format!("symbol_{nth:05}"));
            file.symbol(name, GLOBAL, 0, 0, 0)
        })
        .collect();
    // Each twice.
    let places = (0..N).map(|nth| (nth * 16, symbols[nth / 2]));
    file.relocate(code, places);
    let object = parsed("externs", file);
    assert_eq!(object.externs().len(), N / 2);
    assert_eq!(object.externs()[77].name, "symbol_00077");
    assert_eq!(link_all("externs, linked", &object), 2 * N + 1);
}

#[test]
fn functions_without_size() {
    const N: usize = 40_000;
    let mut file = File::new();
    let code = file.add("socket", PROGBITS, CODE, &EXIT.repeat(2));
    let name = file.name("f");
    for _ in 0..N {
        file.symbol(name, GLOBAL | FUNC, code, 0, 0);
    }
    file.symbol(name, GLOBAL | FUNC, code, 8, 0);
    let object = parsed("functions without size", file);
    assert_eq!(object.programs().len(), N + 1);
    assert!(object.programs().iter().all(|p| p.insn_count == 1));
    assert_eq!(link_all("functions without size, linked", &object), N + 1);
}

#[test]
fn subprograms() {
    const N: usize = 20_000;
    let mut file = File::new();
    // Calls of all the functions, from last to first, twice.
    let mut main = Vec::new();
    for nth in 0..2 * N {
        let function = N - 1 - nth % N;
        main.extend_from_slice(&call((2 * N + 1 + function - nth - 1) as i32));
    }
    main.extend_from_slice(&EXIT);
    main.extend(EXIT.repeat(N));
    let code = file.add("socket", PROGBITS, CODE, &main);
    file.function("main", code, 0, 2 * N + 1);
    let name = file.name("f");
    for nth in 0..N {
        file.symbol(name, FUNC, code, (2 * N + 1 + nth) * 8, 8);
    }
    let object = parsed("subprograms", file);
    assert_eq!(object.programs().len(), 1);
    assert_eq!(link_all("subprograms, linked", &object), 3 * N + 1);
}

/// Programs of one section that each call all that is in it.
#[test]
fn shared_subprograms() {
    const PROGRAMS: usize = 2_000;
    const N: usize = 20_000;
    let mut file = File::new();
    let text = file.add(".text", PROGBITS, CODE, &EXIT.repeat(N));
    file.function("f", text, 0, N);
    let code = [call(-1), EXIT].concat().repeat(PROGRAMS);
    let code = file.add("socket", PROGBITS, CODE, &code);
    for nth in 0..PROGRAMS {
        file.function("p", code, 2 * nth, 2);
    }
    let section = file.symbol(0, SECTION, text, 0, 0);
    file.relocate(code, (0..PROGRAMS).map(|nth| (nth * 16, section)));
    let object = parsed("shared subprograms", file);
    let insns = link_all("shared subprograms, linked", &object);
    assert_eq!(insns, PROGRAMS * (N + 2));
}

/// No kernel takes more than a million instructions.
#[test]
fn endless_programs() {
    let mut file = File::new();
    let code = file.add("socket", PROGBITS, CODE, &EXIT.repeat(1_000_001));
    file.function("main", code, 0, 1_000_001);
    let object = parsed("endless program", file);
    let linker = object.linker().unwrap();
    let program = &object.programs()[0];
    let error = linker.link(program, &mut LinkedProgram::default());
    let program = "main".to_owned();
    assert_eq!(error, Err(ObjectError::TooLarge { program }));
}

#[test]
fn long_names() {
    let mut file = File::new();
    let code = file.add("socket", PROGBITS, CODE, &EXIT);
    let name = file.name(&"f".repeat(500_000));
    for nth in 0..20_000 {
        file.symbol(name + nth, GLOBAL | FUNC, code, 0, 8);
    }
    refused("long names of functions", file, REPEATS);

    let mut file = File::new();
    let name = file.name(&["socket/", &"f".repeat(500_000)].concat());
    let at = file.put(&EXIT);
    for _ in 0..8_000 {
        file.claim(name, PROGBITS, CODE, at, 8);
    }
    refused("long names of sections", file, REPEATS);

    let mut file = File::new();
    let name = file.name(&["socket/", &"f".repeat(500_000)].concat());
    let at = file.put(&EXIT);
    let code = file.claim(name, PROGBITS, CODE, at, 8);
    let name = file.name("f");
    for _ in 0..20_000 {
        file.symbol(name, GLOBAL | FUNC, code, 0, 8);
    }
    refused("programs of a section with a long name", file, REPEATS);
}

#[test]
fn sections_inside_each_other() {
    const N: usize = 60_000;
    let mut file = File::new();
    let calls: Vec<_> = (0..N as i32).flat_map(|nth| call(-nth - 1)).collect();
    let at = file.put(&calls);
    let name = file.name("f");
    let section_name = file.name("socket");
    for _ in 0..8_000 {
        let code = file.claim(section_name, PROGBITS, CODE, at, N * 8);
        file.symbol(name, GLOBAL | FUNC, code, 0, N * 8);
    }
    refused("sections inside each other", file, REPEATS);

    let mut file = File::new();
    let code = file.add("socket", PROGBITS, CODE, &LD_IMM64);
    let name = file.name("f");
    let symbol = file.symbol(name, GLOBAL, 0, 0, 0);
    file.function("main", code, 0, 2);
    file.relocate(code, (0..30_000).map(|_| (0, symbol)));
    let (at, size) = file.sections.last().map(|s| (s.offset, s.size)).unwrap();
    for _ in 0..8_000 {
        file.claim_relocations(code, at, size);
    }
    refused("relocations inside each other", file, REPEATS);
}

/// A definition of a map: a struct whose members are named.
fn definition(b: &mut BtfBuilder, members: &[&str]) -> u32 {
    let int = b.add_int("int", 4, true);
    let array = b.add_array(int, int, 1);
    let pointer = b.add_ptr(array);
    let members: Vec<_> = (0..)
        .zip(members)
        .map(|(nth, name)| NewMember {
            name,
            type_id: pointer,
            bit_offset: nth * 64,
            bit_size: 0,
        })
        .collect();
    b.add_struct("", members.len() as u32 * 8, &members)
}

fn map_file(b: &mut BtfBuilder, definition: u32, maps: usize) -> File {
    let mut file = File::new();
    let size = 8 * maps;
    let at = file.put(&vec![0; size]);
    let name = file.name(".maps");
    let section = file.claim(name, PROGBITS, WRITE | ALLOC, at, size);
    let mut vars = Vec::new();
    for nth in (0..maps).rev() {
        let text = format!("map_{nth:05}");
        let name = file.name(&text);
        file.symbol(name, GLOBAL | OBJECT, section, nth * 8, 8);
        let var = b.add_var(&text, definition, Linkage::GLOBAL);
        vars.push(SecVar {
            type_id: var,
            offset: 0,
            size: 8,
        });
    }
    vars.reverse();
    b.add_datasec(".maps", 0, &vars);
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    file
}

#[test]
fn maps() {
    const N: usize = 5_000;
    let mut b = BtfBuilder::new();
    let simple = definition(&mut b, &["type", "max_entries"]);
    let file = map_file(&mut b, simple, N);
    let object = parsed("maps", file);
    assert_eq!(object.maps().len(), N);
    assert_eq!(object.maps()[N - 1].name, format!("map_{:05}", N - 1));

    let mut b = BtfBuilder::new();
    let long = definition(&mut b, &["type"].repeat(30_000));
    let file = map_file(&mut b, long, N);
    refused("maps of many members", file, "too many members");

    let mut b = BtfBuilder::new();
    let mut nested = definition(&mut b, &["type", "max_entries"]);
    for _ in 0..60 {
        nested = b.add_typedef("t", nested);
    }
    let file = map_file(&mut b, nested, N);
    parsed("maps behind typedefs", file);
}

#[test]
fn data_sections() {
    const N: usize = 5_000;
    let mut file = File::new();
    let mut b = BtfBuilder::new();
    for nth in 0..N {
        let name = format!(".data.{nth:04}");
        file.add(&name, PROGBITS, WRITE | ALLOC, &[1; 8]);
        for _ in 0..6 {
            b.add_datasec(&name, 8, &[]);
        }
    }
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    let object = parsed("data sections", file);
    assert_eq!(object.maps().len(), N);
    assert!(
        (0..)
            .zip(object.maps())
            .all(|(nth, map)| map.value_type_id == nth * 6 + 1)
    );

    let mut file = File::new();
    let mut b = BtfBuilder::new();
    let name = [".data.", &"x".repeat(300_000)].concat();
    file.add(&name, PROGBITS, WRITE | ALLOC, &[1; 8]);
    for _ in 0..2_000 {
        b.add_datasec(&name, 8, &[]);
    }
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    let object = parsed("data section of a long name", file);
    for features in [BtfFeatures::all(), BtfFeatures::empty()] {
        in_time("data section of a long name, BTF", 1 << 20, || {
            let btf = object.btf_for_kernel(features).unwrap().unwrap();
            assert!(btf.len() < 2 << 20);
        });
    }
}

#[test]
fn variables() {
    const N: usize = 20_000;
    let mut file = File::new();
    let mut b = BtfBuilder::new();
    let int = b.add_int("int", 4, true);
    let data = file.add(".data", PROGBITS, WRITE | ALLOC, &vec![0; 4 * N]);
    let mut vars = Vec::new();
    for nth in 0..N {
        let text = format!("variable_{nth:05}");
        let name = file.name(&text);
        file.symbol(name, GLOBAL | OBJECT, data, nth * 4, 4);
        let var = b.add_var(&text, int, Linkage::GLOBAL);
        vars.push(SecVar {
            type_id: var,
            offset: 0,
            size: 4,
        });
    }
    b.add_datasec(".data", 0, &vars);
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    let mut object = parsed("variables", file);
    in_time("variables, set", 1 << 20, || {
        for nth in 0..N as u32 {
            let name = format!("variable_{nth:05}");
            object.set_variable(&name, &nth.to_ne_bytes()).unwrap();
        }
    });
    let contents = object.maps()[0].contents.as_slice().unwrap();
    assert_eq!(contents[4 * 777..][..4], 777_u32.to_ne_bytes());
    let bytes = in_time("variables, BTF", 1 << 20, || {
        object.btf_for_kernel(BtfFeatures::all()).unwrap().unwrap()
    });
    let btf = Btf::parse(&bytes).unwrap();
    let section = btf.get(btf.end_id() - 1).unwrap();
    assert_eq!(section.sec_var(777).unwrap().offset, 777 * 4);
}

#[test]
fn hidden_functions() {
    const N: usize = 15_000;
    let mut file = File::new();
    let mut b = BtfBuilder::new();
    let proto = b.add_func_proto(0, &[]);
    let text = file.add(".text", PROGBITS, CODE, &EXIT.repeat(N));
    for nth in 0..N {
        let name = format!("function_{nth:05}");
        file.function(&name, text, nth, 1);
        if nth % 3 > 0 {
            file.hide();
        }
        b.add_func(&name, proto, Linkage::GLOBAL);
    }
    let code = file.add("socket", PROGBITS, CODE, &EXIT);
    file.function("main", code, 0, 1);
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    let object = parsed("hidden functions", file);
    let bytes = in_time("hidden functions, BTF", 1 << 20, || {
        object.btf_for_kernel(BtfFeatures::all()).unwrap().unwrap()
    });
    let btf = Btf::parse(&bytes).unwrap();
    for (id, ty) in btf.types().skip(1) {
        let global = (id - 2) % 3 == 0;
        assert_eq!(
            ty.linkage(),
            Some(if global {
                Linkage::GLOBAL
            } else {
                Linkage::STATIC
            })
        );
    }
}

/// A `.BTF.ext` with one table: functions (0), lines (1) or relocations (2).
fn ext(slot: usize, record: u32, blocks: &[(u32, Vec<u32>)]) -> Vec<u8> {
    let mut table = vec![record];
    for (section, records) in blocks {
        table.extend([*section, (records.len() * 4) as u32 / record]);
        table.extend(records);
    }
    let mut header = [0_u32; 8];
    header[0] = u32::from_ne_bytes(if cfg!(target_endian = "little") {
        [0x9f, 0xeb, 1, 0]
    } else {
        [0xeb, 0x9f, 1, 0]
    });
    header[1] = 32;
    header[3 + slot * 2] = table.len() as u32 * 4;
    header
        .iter()
        .chain(&table)
        .flat_map(|word| word.to_ne_bytes())
        .collect()
}

/// Many sections, and records of which most belong to none of them.
#[test]
fn debug_records() {
    let mut file = File::new();
    let mut b = BtfBuilder::new();
    // BTF without a type counts as none.
    b.add_int("int", 4, true);
    let at = file.put(&EXIT.repeat(6_000));
    let mut strings = Vec::new();
    for nth in 0..6_000 {
        let text = format!("socket/{nth:05}");
        let name = file.name(&text);
        let code = file.claim(name, PROGBITS, CODE, at + nth * 8, 8);
        file.function("main", code, 0, 1);
        strings.push(b.add_string(text.as_bytes()));
    }
    let none = b.add_string(b"socket/none");
    let blocks: Vec<_> = (0..20_000)
        .map(|nth| {
            (
                strings.get(6_000 - nth / 4).copied().unwrap_or(none),
                vec![0, 1],
            )
        })
        .collect();
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    file.add(".BTF.ext", PROGBITS, 0, &ext(0, 8, &blocks));
    let object = parsed("records of no section", file);
    link_all("records of no section, linked", &object);
}

/// Many functions that choose from records out of order.
#[test]
fn debug_records_out_of_order() {
    const N: u32 = 12_000;
    let mut file = File::new();
    let mut b = BtfBuilder::new();
    // BTF without a type counts as none.
    b.add_int("int", 4, true);
    let code = file.add("socket", PROGBITS, CODE, &EXIT.repeat(N as usize));
    for nth in 0..N as usize {
        file.function("f", code, nth, 1);
    }
    let name = b.add_string(b"socket");
    let records: Vec<_> = (0..N)
        .rev()
        .flat_map(|nth| [nth * 8, 1, 0, nth << 10])
        .collect();
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    file.add(".BTF.ext", PROGBITS, 0, &ext(1, 16, &[(name, records)]));
    let object = parsed("records out of order", file);
    let linker = object.linker().unwrap();
    let mut linked = LinkedProgram::default();
    in_time("records out of order, linked", 1 << 20, || {
        for (nth, program) in (0_u32..).zip(object.programs()) {
            linker.link(program, &mut linked).unwrap();
            let words: Vec<_> = [0, 1, 0, nth << 10]
                .iter()
                .flat_map(|w| w.to_ne_bytes())
                .collect();
            assert_eq!(linked.line_info, words);
        }
    });
}

#[test]
fn slots() {
    let mut b = BtfBuilder::new();
    let simple = definition(&mut b, &["type", "max_entries"]);
    let inner = b.add_ptr(simple);
    let int = b.add_int("int", 4, true);
    let values = b.add_array(inner, int, 0);
    let outer = b.add_struct(
        "",
        0,
        &[NewMember {
            name: "values",
            type_id: values,
            bit_offset: 0,
            bit_size: 0,
        }],
    );
    let mut file = File::new();
    let maps = file.add(".maps", PROGBITS, WRITE | ALLOC, &[0; 16]);
    let long = "m".repeat(4_000);
    let mut vars = Vec::new();
    for (text, ty, at) in [(long.as_str(), simple, 0), ("outer", outer, 8)] {
        let name = file.name(text);
        file.symbol(name, GLOBAL | OBJECT, maps, at, 8);
        let type_id = b.add_var(text, ty, Linkage::GLOBAL);
        vars.push(SecVar {
            type_id,
            offset: 0,
            size: 8,
        });
    }
    b.add_datasec(".maps", 0, &vars);
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    file.relocate(maps, (0..20_000).map(|nth| (8 + nth * 8, 1)));
    refused("slots with a map of a long name", file, "repeat");
}

/// An object with a relocation of `kind` for each root, and an instruction
/// that holds what `access` comes to.
fn relocations(b: &mut BtfBuilder, kind: u32, holds: u8, roots: &[(u32, u32)]) -> File {
    let mut file = File::new();
    let section = b.add_string(b"socket");
    let moves = [0xb7, 1, 0, 0, holds, 0, 0, 0].repeat(roots.len());
    let code = file.add("socket", PROGBITS, CODE, &[moves, EXIT.to_vec()].concat());
    file.function("main", code, 0, roots.len() + 1);
    let records: Vec<_> = (0..)
        .zip(roots)
        .flat_map(|(nth, &(root, access))| [nth * 8, root, access, kind])
        .collect();
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    file.add(".BTF.ext", PROGBITS, 0, &ext(2, 16, &[(section, records)]));
    file
}

fn member(name: &str, type_id: u32) -> NewMember<'_> {
    NewMember {
        name,
        type_id,
        bit_offset: 0,
        bit_size: 0,
    }
}

/// As many roots as relocations, which turn up in descending order.
#[test]
fn relocation_roots() {
    const N: u32 = 15_000;
    let types = |b: &mut BtfBuilder, structs: u32| {
        let int = b.add_int("int", 4, true);
        for _ in 0..structs {
            b.add_struct("s", 4, &[member("a", int)]);
        }
    };
    let mut b = BtfBuilder::new();
    types(&mut b, N);
    let access = b.add_string(b"0:0");
    let roots: Vec<_> = (0..N).map(|nth| (N + 1 - nth, access)).collect();
    let object = parsed("roots", relocations(&mut b, 0, 0, &roots));
    let mut kernel = BtfBuilder::new();
    types(&mut kernel, 1);
    let kernel = kernel.to_bytes().unwrap();
    let refused = in_time("roots, found", 1 << 20, || relocate(&object, &kernel));
    assert_eq!(refused, 0);
}

/// Relocates all programs; how many relocations were refused.
fn relocate(object: &Object, kernel: &[u8]) -> usize {
    let linker = object.linker().unwrap();
    let local = linker.btf().unwrap();
    let mut query = NameQuery::new();
    add_roots(&mut query, local, linker.core_relos());
    query.finish();
    let mut hits = Vec::new();
    let kernel = Btf::scan(kernel, None, &query, &mut hits).unwrap();
    let mut resolver = Resolver::new(local, &query);
    resolver.add_target(&kernel, hits);
    resolver.needs_modules(linker.core_relos());
    let mut linked = LinkedProgram::default();
    let mut refused = 0;
    for program in object.programs() {
        linker.link(program, &mut linked).unwrap();
        let LinkedProgram {
            insns, core_relos, ..
        } = &mut linked;
        let answers = (0..)
            .zip(core_relos)
            .map(|(index, relo)| resolver.apply(insns, relo.insn as usize, &relo.record, index));
        refused += answers.filter(Result::is_err).count();
    }
    refused
}

/// A section without bytes in the file takes none.
#[test]
fn empty_space() {
    let mut file = File::new();
    let name = file.name(".bss");
    let bss = file.claim(name, NOBITS, WRITE | ALLOC, 64, 1 << 30);
    let name = file.name("v");
    file.symbol(name, GLOBAL | OBJECT, bss, 0, 4);
    let object = parsed("empty space", file);
    assert_eq!(object.maps()[0].value_size, 1 << 30);
}
