//! Several objects linked into one.

use ebpf_manager_elf::{Pinning, StaticLinkError, static_link};

use super::allocated::peak;
use super::*;

/// Memory that linking may take, in multiples of what it is given, and beyond
/// that.
const TIMES: usize = 32;
const BEYOND: usize = 4 << 20;

/// Links a file with a small one and with itself, in bounded time and memory.
fn link(what: &str, file: File) -> [Result<Vec<u8>, StaticLinkError>; 2] {
    let bytes = file.finish();
    let mut small = File::new();
    let code = small.add("xdp", PROGBITS, CODE, &EXIT);
    small.function("another", code, 0, 1);
    let small = small.finish();
    [&small, &bytes].map(|other| {
        let given = bytes.len() + other.len();
        let files = [("first", bytes.as_slice()), ("second", other)];
        let (result, peak) = peak(|| in_time(what, given, || static_link(&files)));
        assert!(
            peak <= given * TIMES + BEYOND,
            "{what}: {peak} bytes for {given}"
        );
        if let Ok(linked) = &result {
            assert!(
                linked.len() < given * 8 + BEYOND,
                "{what}: {}",
                linked.len()
            );
        }
        result
    })
}

/// Links a file with others that it fits together with.
fn linked(what: &str, file: File) {
    let [small, _] = link(what, file);
    match small.map(|bytes| Object::parse(bytes).map(drop)) {
        Ok(Ok(())) => {}
        other => panic!("{what}: {other:?}"),
    }
}

fn not_linked(what: &str, file: File, why: &str) {
    let [small, _] = link(what, file);
    let err = small.unwrap_err().to_string();
    assert!(err.contains(why), "{what}: {err}");
}

#[test]
fn linked_sections() {
    // With types and records for each.
    let mut file = File::new();
    let mut b = BtfBuilder::new();
    let at = file.put(&EXIT.repeat(6_000));
    let mut blocks = Vec::new();
    let int = b.add_int("int", 4, true);
    for nth in 0..6_000 {
        let text = format!("socket/{nth:05}");
        let name = file.name(&text);
        let code = file.claim(name, PROGBITS, CODE, at + nth * 8, 8);
        file.function(&format!("main_{nth}"), code, 0, 1);
        blocks.push((b.add_string(text.as_bytes()), vec![0, int]));
        b.add_datasec(&text, 8, &[]);
    }
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    file.add(".BTF.ext", PROGBITS, 0, &ext(0, 8, &blocks));
    linked("many sections", file);

    let mut file = File::new();
    let code = file.add("socket", PROGBITS, CODE, &EXIT);
    file.function("main", code, 0, 1);
    for nth in 0..6_000 {
        file.add(&format!(".data.{nth}"), PROGBITS, WRITE | ALLOC, &[1; 8]);
        file.sections.last_mut().unwrap().align = 1 << 16;
    }
    not_linked("sections on pages", file, "alignment");

    let mut file = File::new();
    for _ in 0..6_000 {
        file.add(".data", PROGBITS, WRITE | ALLOC, &[1; 8]);
        file.sections.last_mut().unwrap().align = 1 << 16;
    }
    not_linked("parts on pages", file, "alignment");

    let mut file = File::new();
    let at = file.put(&vec![1; 300_000]);
    let name = file.name(".data");
    for _ in 0..8_000 {
        file.claim(name, PROGBITS, WRITE | ALLOC, at, 300_000);
    }
    not_linked("sections of the same bytes", file, REPEATS);
}

#[test]
fn linked_symbols() {
    const N: usize = 20_000;
    let mut file = File::new();
    let code = file.add("socket", PROGBITS, CODE, &EXIT.repeat(N));
    for nth in 0..N {
        file.function(&format!("f{nth}"), code, nth, 1);
    }
    linked("many symbols", file);

    let mut file = File::new();
    let code = file.add("socket", PROGBITS, CODE, &EXIT);
    let name = file.name(&"f".repeat(500_000));
    for nth in 0..N as u32 {
        file.symbol(name + nth, GLOBAL | FUNC, code, 0, 8);
    }
    not_linked("long names", file, REPEATS);
}

#[test]
fn linked_relocations() {
    const N: usize = 30_000;
    let mut file = File::new();
    let code = file.add("socket", PROGBITS, CODE, &LD_IMM64);
    file.function("main", code, 0, 2);
    let name = file.name("value");
    let symbol = file.symbol(name, GLOBAL, 0, 0, 0);
    file.relocate(code, (0..N).map(|_| (0, symbol)));
    linked("many relocations", file);
}

/// A file with these types and a program.
fn typed(b: &BtfBuilder) -> File {
    let mut file = File::new();
    let code = file.add("socket", PROGBITS, CODE, &EXIT);
    file.function("main", code, 0, 1);
    file.add(".BTF", PROGBITS, 0, &b.to_bytes().unwrap());
    file
}

#[test]
fn linked_types() {
    // Each refers to the next, so that they can be told apart late.
    let mut b = BtfBuilder::new();
    let mut next = b.add_int("int", 4, true);
    for _ in 0..60_000 {
        next = b.add_ptr(next);
    }
    linked("pointers to pointers", typed(&b));

    let mut b = BtfBuilder::new();
    let int = b.add_int("int", 4, true);
    for nth in 0..20_000 {
        b.add_struct(&format!("s{nth}"), 4, &[member("m", int)]);
    }
    linked("many structures", typed(&b));

    // Functions of one long name.
    let mut b = BtfBuilder::new();
    let proto = b.add_func_proto(0, &[]);
    let name = "f".repeat(500_000);
    for _ in 0..20_000 {
        b.add_func(&name, proto, Linkage::GLOBAL);
    }
    not_linked("functions of a long name", typed(&b), "types");
}

/// Lines whose text is long.
#[test]
fn linked_lines() {
    let mut b = BtfBuilder::new();
    b.add_int("int", 4, true);
    let section = b.add_string(b"socket");
    let long = b.add_string(&b"x".repeat(300_000));
    let lines = |each: u32| {
        let records = (0..20_000).flat_map(|nth| [0, long + nth * each, long + nth * each, nth]);
        ext(1, 16, &[(section, records.collect())])
    };
    let mut file = typed(&b);
    file.add(".BTF.ext", PROGBITS, 0, &lines(0));
    linked("lines of a long text", file);
    let mut file = typed(&b);
    file.add(".BTF.ext", PROGBITS, 0, &lines(1));
    not_linked("lines of many long texts", file, "types");
}

/// Functions of many parameters that are functions of many parameters, of
/// types that two files define in another way.
#[test]
fn linked_prototypes() {
    let file = |inside: &str| {
        let mut b = BtfBuilder::new();
        let int = b.add_int("int", 4, true);
        let mut next = b.add_struct("leaf", 4, &[member(inside, int)]);
        for _ in 0..6 {
            let pointer = b.add_ptr(next);
            next = b.add_func_proto(0, &[("p", pointer); 100]);
        }
        b.add_func("shared", next, Linkage::GLOBAL);
        let mut file = typed(&b);
        let text = file.add(".text", PROGBITS, CODE, &EXIT);
        let name = file.name("shared");
        let weak = 2 << 4;
        file.symbol(name, weak | FUNC, text, 0, 8);
        file.finish()
    };
    let mut first = file("a");
    let second = file("b");
    // `main` of one of the two is another.
    let main = first.windows(5).position(|w| w == b"main\0").unwrap();
    first[main] = b'r';
    let given = first.len() + second.len();
    let files = [("first", first.as_slice()), ("second", &second)];
    let result = in_time("prototypes", given, || static_link(&files));
    Object::parse(result.unwrap()).unwrap();
}

#[test]
fn linked_legacy_maps() {
    const N: usize = 15_000;
    let mut file = File::new();
    let hash = |_| [1, 4, 8, 1, 0, 0];
    let outer = |nth| [12, 4, 4, 1, 0, nth / 2];
    let words = (0..N as u32 / 2)
        .flat_map(hash)
        .chain((0..N as u32 / 2).flat_map(outer));
    let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    let section = file.add("maps", PROGBITS, WRITE | ALLOC, &bytes);
    for nth in 0..N {
        let name = file.name(&format!("m{nth}"));
        file.symbol(name, GLOBAL | OBJECT, section, nth * 24, 24);
    }
    linked("maps by words", file);
}

/// A file with a map by words for each name, whose words are these.
fn by_words(maps: &[(&str, &[u32])]) -> Vec<u8> {
    let mut file = File::new();
    let words = maps.iter().flat_map(|(_, words)| *words);
    let bytes: Vec<u8> = words.flat_map(|w| w.to_ne_bytes()).collect();
    let section = file.add("maps", PROGBITS, WRITE | ALLOC, &bytes);
    let mut at = 0;
    for (text, words) in maps {
        let name = file.name(text);
        // As old compilers left it: without a size.
        file.symbol(name, GLOBAL | OBJECT, section, at, 0);
        at += words.len() * 4;
    }
    file.finish()
}

/// Numbers by which maps by words name each other are those of all files.
#[test]
fn linked_legacy_maps_find_each_other() {
    let first = by_words(&[
        ("a", &[1, 4, 8, 1, 0, 0]),
        ("b", &[12, 4, 4, 1, 0, 0]),
        // None.
        ("c", &[12, 4, 4, 1, 0, 2]),
        // Its definition ends here, though the next file's follow.
        ("d", &[1, 4, 8, 1, 0, 0, 0, 0, 0]),
    ]);
    let second = by_words(&[
        ("e", &[12, 4, 4, 1, 0, 0]),
        ("f", &[1, 4, 16, 1, 0, 0]),
        ("g", &[12, 4, 4, 1, 0, 1]),
        ("h", &[1, 4, 32, 1, 0, 7, 2, 0, u32::MAX]),
        ("i", &[12, 4, 4, 1, 0, 0, 0, 7, u32::MAX]),
    ]);
    let link = |first: &[u8], second: &[u8]| static_link(&[("1", first), ("2", second)]);
    let inner = |object: &Object, name: &str| {
        let inner = object.map(name).unwrap().inner.as_ref();
        inner.map(|inner| inner.value_size)
    };
    for files in [[&first, &second], [&second, &first]] {
        let object = Object::parse(link(files[0], files[1]).unwrap()).unwrap();
        assert_eq!(object.maps().len(), 9);
        for (name, expected) in [("b", Some(8)), ("g", Some(16)), ("i", Some(32))] {
            assert_eq!(inner(&object, name), expected, "{name}");
        }
        for name in ["c", "e"] {
            assert_eq!(inner(&object, name), None, "{name}");
        }
        assert_eq!(object.map("d").unwrap().pinning, Pinning::None);
    }

    let same_id = by_words(&[("x", &[1, 4, 8, 1, 0, 7, 0, 0, u32::MAX])]);
    let err = link(&second, &same_id).unwrap_err();
    assert_eq!(
        err.to_string(),
        "2: map x: its id 7 is that of a map of 1, too"
    );
    let nowhere = by_words(&[("y", &[12, 4, 4, 1, 0, 9])]);
    let err = link(&second, &nowhere).unwrap_err();
    assert_eq!(
        err.to_string(),
        "2: map y: definition 9, its inner map, is none"
    );
}
