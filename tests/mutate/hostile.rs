//! Objects that are small and mean: whose parts share what real ones have of
//! their own, so that a careless reader needs the square of their size.

use super::*;

/// Symbols, code and their relocations in one section, written from scratch.
#[derive(Default)]
struct Hostile {
    section: &'static str,
    code: Vec<Insn>,
    strings: Vec<u8>,
    /// Name, `st_info`, section, value, size.
    symbols: Vec<(u32, u8, u16, u64, u64)>,
    /// Instruction and symbol.
    relocs: Vec<(u64, u64)>,
}

const FUNC: u8 = 0x12;
const UNDEFINED: u8 = 0x10;

impl Hostile {
    fn new(section: &'static str) -> Hostile {
        Hostile {
            section,
            strings: vec![0],
            symbols: vec![(0, 0, 0, 0, 0)],
            ..Hostile::default()
        }
    }

    fn string(&mut self, text: &str) -> u32 {
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    /// A global function of these instructions of the section.
    fn function(&mut self, name: u32, start: usize, len: usize) {
        let (start, len) = (start as u64 * 8, len as u64 * 8);
        self.symbols.push((name, FUNC, 1, start, len));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut names = vec![0];
        let mut name_of = |name: &str| {
            let at = names.len() as u32;
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            at
        };
        let code: Vec<u8> = self.code.iter().flat_map(|i| i.to_ne_bytes()).collect();
        let symbols = self
            .symbols
            .iter()
            .flat_map(|(name, info, at, value, size)| {
                let mut bytes = name.to_ne_bytes().to_vec();
                bytes.extend_from_slice(&[*info, 0]);
                bytes.extend_from_slice(&at.to_ne_bytes());
                bytes.extend_from_slice(&value.to_ne_bytes());
                bytes.extend_from_slice(&size.to_ne_bytes());
                bytes
            });
        let symbols: Vec<u8> = symbols.collect();
        let relocs = self.relocs.iter().flat_map(|(insn, symbol)| {
            let mut bytes = (insn * 8).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&(symbol << 32 | 0xa).to_ne_bytes());
            bytes
        });
        let relocs: Vec<u8> = relocs.collect();
        // Name, type, flags, link, info, size of an element, bytes.
        let names_at = name_of(".shstrtab");
        let mut sections = vec![
            (0, 0, 0, 0, 0, 0, Vec::new()),
            (name_of(self.section), 1, 6, 0, 0, 0, code),
            (name_of(".symtab"), 2, 0, 3, 1, 24, symbols),
            (name_of(".strtab"), 3, 0, 0, 0, 0, self.strings.clone()),
            (name_of(".rel"), 9, 0, 2, 1, 16, relocs),
        ];
        sections.push((names_at, 3, 0, 0, 0, 0, names));

        let mut body = Vec::new();
        let mut headers = Vec::new();
        for (name, kind, flags, link, info, each, bytes) in &sections {
            body.resize(body.len().next_multiple_of(8), 0);
            let offset = 64 + body.len() as u64;
            body.extend_from_slice(bytes);
            let words: [u32; 2] = [*name, *kind];
            headers.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
            let words: [u64; 4] = [*flags, 0, offset, bytes.len() as u64];
            headers.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
            let words: [u32; 2] = [*link, *info];
            headers.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
            let words: [u64; 2] = [8, *each];
            headers.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        }
        body.resize(body.len().next_multiple_of(8), 0);
        let mut file = b"\x7fELF\x02".to_vec();
        file.push(if cfg!(target_endian = "little") { 1 } else { 2 });
        file.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let halves: [u16; 2] = [1, 247];
        file.extend(halves.iter().flat_map(|h| h.to_ne_bytes()));
        file.extend_from_slice(&1_u32.to_ne_bytes());
        let words: [u64; 3] = [0, 0, 64 + body.len() as u64];
        file.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        file.extend_from_slice(&0_u32.to_ne_bytes());
        let count = sections.len() as u16;
        let halves: [u16; 6] = [64, 0, 0, 64, count, count - 1];
        file.extend(halves.iter().flat_map(|h| h.to_ne_bytes()));
        file.extend_from_slice(&body);
        file.extend_from_slice(&headers);
        file
    }

    /// Reads it, within the bounds of any other input.
    fn survive(&self, what: &str) -> Result<(), ObjectError> {
        let bytes = self.bytes();
        let mut result = Ok(());
        bounded("hostile", 0, what, bytes.len(), || {
            result = exercise(&bytes, None);
        });
        result
    }
}

const SIZE: usize = 2000;

fn repeats(result: &Result<(), ObjectError>) {
    let err = result.as_ref().unwrap_err().to_string();
    assert_eq!(
        err,
        "damaged or truncated: its sections and symbols repeat more than the file could hold"
    );
}

#[test]
fn writer_of_hostile_objects_writes_good_ones() {
    let mut object = Hostile::new("socket");
    object.code = vec![Insn::mov64_imm(0, 0), Insn::exit(), Insn::exit()];
    let (a, b) = (object.string("a"), object.string("b"));
    object.function(a, 0, 2);
    object.function(b, 2, 1);
    object.survive("nothing").unwrap();
    let object = Object::parse(object.bytes()).unwrap();
    let names: Vec<_> = object.programs().iter().map(|p| &p.name).collect();
    assert_eq!(names, ["a", "b"]);
}

/// Every symbol is named by one long string.
#[test]
fn names_may_be_shared() {
    let mut object = Hostile::new("socket");
    object.code = vec![Insn::exit(); SIZE];
    let name = object.string(&"n".repeat(SIZE * 20));
    for at in 0..SIZE {
        object.function(name, at, 1);
    }
    repeats(&object.survive("one long name"));
}

/// So are the undefined symbols.
#[test]
fn undefined_symbols_may_be_many() {
    let mut object = Hostile::new("socket");
    object.code = Insn::ld_imm64(1, 0, 0).repeat(SIZE);
    object.code.push(Insn::exit());
    let name = object.string("program");
    object.function(name, 0, object.code.len());
    let long = object.string(&format!("{:0>1$}", 0, SIZE * 20));
    for nth in 0..SIZE as u32 {
        object.symbols.push((long + nth, UNDEFINED, 0, 0, 0));
        let symbol = object.symbols.len() as u64 - 1;
        object.relocs.push((u64::from(nth) * 2, symbol));
    }
    repeats(&object.survive("many long undefined symbols"));
}

/// Functions that lie inside each other, called one by the other.
#[test]
fn functions_may_not_overlap() {
    let mut object = Hostile::new("socket");
    for _ in 0..SIZE {
        object.code.push(Insn::new(0x85, 0, 1, 0, 0));
    }
    object.code.push(Insn::exit());
    for at in 0..SIZE {
        let name = object.string(&format!("f{at}"));
        object.function(name, at, SIZE + 1 - at);
    }
    let name = object.string("last");
    object.function(name, SIZE, 1);
    let err = object.survive("functions in each other").unwrap_err();
    assert_eq!(
        err.to_string(),
        format!(
            "damaged or truncated: function f{} reaches into the next one (section socket)",
            SIZE - 1
        )
    );
}

/// Aliases are allowed: many names for one function.
#[test]
fn functions_may_have_many_names() {
    for len in [0, 1] {
        let mut object = Hostile::new("socket");
        object.code = vec![Insn::exit(); 2];
        for at in 0..SIZE {
            let name = object.string(&format!("f{at}"));
            object.function(name, at % 2, len);
        }
        object.survive("aliases").unwrap();
    }
}

/// The section is named like a long attach target.
#[test]
fn section_names_may_be_long() {
    let long: &'static str = Box::leak(format!("kprobe/{}", "x".repeat(SIZE * 20)).into());
    let mut object = Hostile::new(long);
    object.code = vec![Insn::exit(); SIZE];
    for at in 0..SIZE {
        let name = object.string(&format!("f{at}"));
        object.function(name, at, 1);
    }
    repeats(&object.survive("a long section name"));
}
