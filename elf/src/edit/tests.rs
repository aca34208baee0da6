use std::sync::OnceLock;

use ebpf_manager_sys::abi::insn::{JA32, class, jmp, pseudo};

use super::*;
use crate::btf::ext::CoreRelo;
use crate::link::{Fixup, LinkedCoreRelo, Placed};

mod model;

const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/programs");

/// An object for editors of programs made by hand. It has maps and functions.
fn object() -> &'static Object {
    static OBJECT: OnceLock<Object> = OnceLock::new();
    OBJECT.get_or_init(|| {
        let bytes = std::fs::read(format!("{TESTDATA}/subprogs.bpf.o")).unwrap();
        Object::parse(bytes).unwrap()
    })
}

fn linker() -> Linker<'static> {
    object().linker().unwrap()
}

/// A program of these words, with functions at `starts` and a line record for
/// each word in `lines`; the number of a line is ten times the word's.
fn program(insns: &[Insn], starts: &[u32], lines: &[u32]) -> LinkedProgram {
    let record =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|w| w.to_ne_bytes()).collect() };
    LinkedProgram {
        insns: insns.to_vec(),
        placed: (0..)
            .zip(starts)
            .map(|(function, &start)| Placed { function, start })
            .collect(),
        func_info: (100..)
            .zip(starts)
            .flat_map(|(id, &start)| record(&[start, id]))
            .collect(),
        func_info_rec_size: 8,
        line_info: lines
            .iter()
            .flat_map(|&at| record(&[at, 1, 2, (at * 10) << 10]))
            .collect(),
        line_info_rec_size: 16,
        ..LinkedProgram::default()
    }
}

/// Position and line number of each line record.
fn lines(program: &LinkedProgram) -> Vec<(u32, u32)> {
    let word = |b: &[u8], i: usize| u32::from_ne_bytes(b[i..i + 4].try_into().unwrap());
    let records = program.line_info.chunks_exact(16);
    records.map(|r| (word(r, 0), word(r, 12) >> 10)).collect()
}

fn starts(program: &LinkedProgram) -> Vec<u32> {
    program.placed.iter().map(|p| p.start).collect()
}

/// Edits a program; what came out, which must be unchanged after an error.
fn edit(
    program: &LinkedProgram,
    change: impl FnOnce(&mut ProgramEditor<'_>) -> Result<(), PatchError>,
) -> Result<LinkedProgram, PatchError> {
    let linker = linker();
    let mut edited = program.clone();
    let mut editor = ProgramEditor::new(&linker, &mut edited);
    let result = change(&mut editor).and_then(|()| editor.apply());
    match result {
        Ok(()) => Ok(edited),
        Err(err) => {
            assert_eq!(format!("{edited:?}"), format!("{program:?}"), "{err}");
            Err(err)
        }
    }
}

fn mov(imm: i32) -> Insn {
    Insn::mov64_imm(0, imm)
}

fn jeq(off: i16) -> Insn {
    Insn::jump_imm(jmp::JEQ, 1, 0, off)
}

const EXIT: Insn = Insn::exit();

#[test]
fn insertions_around_a_forward_jump() {
    // 0: if r1 == 0 goto 2;  1: r0 = 1;  2: exit
    let old = program(&[jeq(1), mov(1), EXIT], &[0], &[0, 2]);
    let before = edit(&old, |e| e.insert_before(2, mov(9))).unwrap();
    assert_eq!(before.insns, [jeq(1), mov(1), mov(9), EXIT]);
    assert_eq!(lines(&before), [(0, 0), (2, 20)]);

    let after = edit(&old, |e| e.insert_after(1, mov(9))).unwrap();
    assert_eq!(after.insns, [jeq(2), mov(1), mov(9), EXIT]);
    assert_eq!(lines(&after), [(0, 0), (3, 20)]);

    // Behind the jump itself: only who does not jump comes there.
    let behind = edit(&old, |e| e.insert_after(0, mov(9))).unwrap();
    assert_eq!(behind.insns, [jeq(2), mov(9), mov(1), EXIT]);
}

#[test]
fn insertions_around_a_backward_jump() {
    // 0: r0 = 0;  1: r0 = 1;  2: if r1 == 0 goto 1;  3: exit
    let old = program(&[mov(0), mov(1), jeq(-2), EXIT], &[0], &[0]);
    let before = edit(&old, |e| e.insert_before(1, [mov(8), mov(9)])).unwrap();
    assert_eq!(
        before.insns,
        [mov(0), mov(8), mov(9), mov(1), jeq(-4), EXIT]
    );
    let after = edit(&old, |e| e.insert_after(0, [mov(8), mov(9)])).unwrap();
    assert_eq!(after.insns, [mov(0), mov(8), mov(9), mov(1), jeq(-2), EXIT]);
    let inside = edit(&old, |e| e.insert_before(2, mov(9))).unwrap();
    assert_eq!(inside.insns, [mov(0), mov(1), mov(9), jeq(-3), EXIT]);
}

#[test]
fn insertions_at_one_place_keep_their_order() {
    let old = program(&[mov(0), EXIT], &[0], &[0, 1]);
    let new = edit(&old, |e| {
        e.insert_before(1, mov(3))?;
        e.insert_after(0, mov(1))?;
        e.insert_before(1, mov(4))?;
        e.insert_after(0, mov(2))?;
        e.prologue(0, mov(-1))?;
        e.replace(1..2, [mov(5), EXIT])
    })
    .unwrap();
    let expected = [
        mov(-1),
        mov(0),
        mov(1),
        mov(2),
        mov(3),
        mov(4),
        mov(5),
        EXIT,
    ];
    assert_eq!(new.insns, expected);
    assert_eq!(lines(&new), [(0, 0), (4, 10)]);
}

#[test]
fn two_word_instructions_stay_whole() {
    let [low, high] = Insn::ld_imm64(2, 0, 0x1_0000_0002);
    // 0: if r1 == 0 goto 3;  1: r2 = 0x100000002;  3: exit
    let old = program(&[jeq(2), low, high, EXIT], &[0], &[0, 1, 3]);
    let new = edit(&old, |e| {
        e.insert_after(1, mov(1))?;
        e.insert_before(1, mov(2))
    })
    .unwrap();
    assert_eq!(new.insns, [jeq(4), mov(2), low, high, mov(1), EXIT]);
    assert_eq!(lines(&new), [(0, 0), (1, 10), (5, 30)]);

    let not = |at| Err(PatchError::NotAnInstruction { at });
    let range = |start, end| Err(PatchError::Range { start, end });
    let result = |change: &dyn Fn(&mut ProgramEditor<'_>) -> Result<(), PatchError>| {
        edit(&old, change).map(|_| ())
    };
    assert_eq!(result(&|e| e.insert_before(2, mov(1))), not(2));
    assert_eq!(result(&|e| e.insert_after(2, mov(1))), not(2));
    assert_eq!(result(&|e| e.insert_before(4, mov(1))), not(4));
    assert_eq!(
        result(&|e| e.insert_before(u32::MAX, mov(1))),
        not(u32::MAX)
    );
    assert_eq!(result(&|e| e.remove(2..3)), not(2));
    assert_eq!(result(&|e| e.remove(1..2)), range(1, 2));
    assert_eq!(result(&|e| e.remove(0..2)), range(0, 2));
    assert_eq!(result(&|e| e.remove(1..1)), range(1, 1));
    assert_eq!(result(&|e| e.remove(0..5)), range(0, 5));
    let split = Err(PatchError::Split { at: 1 });
    assert_eq!(result(&|e| e.set(1, mov(1))), split);
    assert_eq!(result(&|e| e.set(0, low)), Err(PatchError::Split { at: 0 }));
    let new = edit(&old, |e| e.replace(1..3, mov(1))).unwrap();
    assert_eq!(new.insns, [jeq(1), mov(1), EXIT]);

    // A jump between the words never meant anything; it is not moved.
    let odd = program(&[jeq(1), low, high, EXIT], &[0], &[]);
    let err = edit(&odd, |e| e.insert_before(0, mov(1))).unwrap_err();
    assert_eq!(err, PatchError::BadTarget { at: 0 });
}

#[test]
fn every_kind_of_jump_follows() {
    let ja = Insn::jump;
    let far = |imm| Insn::new(JA32, 0, 0, 0, imm);
    let narrow = |off| Insn::new(class::JMP32 | jmp::JSLE, 1, 0, off, 7);
    let may = |off| Insn::new(class::JMP | jmp::JCOND, 0, 0, off, 0);
    let by_register = |off| Insn::jump_reg(jmp::JGT, 1, 2, off);
    let old = [ja(4), far(3), narrow(2), may(1), by_register(0), EXIT];
    let old = program(&old, &[0], &[]);
    let new = edit(&old, |e| e.insert_after(4, [mov(1), mov(2)])).unwrap();
    let expected = [
        ja(6),
        far(5),
        narrow(4),
        may(3),
        by_register(2),
        mov(1),
        mov(2),
        EXIT,
    ];
    assert_eq!(new.insns, expected);

    let indirect = Insn::new(class::JMP | jmp::JA | 0x08, 2, 0, 0, 0);
    let old = program(&[indirect, EXIT], &[0], &[]);
    let err = edit(&old, |e| e.insert_after(0, mov(1))).unwrap_err();
    assert_eq!(err, PatchError::IndirectJump { at: 0 });
}

#[test]
fn jump_tables_follow_their_targets() {
    let indirect = Insn::new(class::JMP | jmp::JA | 0x08, 1, 0, 0, 0);
    let [low, high] = Insn::ld_imm64(1, pseudo::MAP_VALUE, 0);
    let insns = [low, high, indirect, mov(3), EXIT, mov(5), EXIT];
    let mut old = program(&insns, &[0], &[]);
    let target = FixupTarget::JumpTable { first: 0, count: 3 };
    old.fixups.push(Fixup { insn: 0, target });
    old.jump_targets = vec![5, 3, 5];
    let targets = |program: &LinkedProgram| program.jump_targets.clone();

    // What is inserted before a target is jumped to; what is after the
    // instruction before it is not.
    let new = edit(&old, |e| {
        e.prologue(0, mov(9))?;
        e.insert_before(3, mov(8))?;
        e.insert_after(4, mov(7))
    })
    .unwrap();
    assert_eq!(targets(&new), [8, 4, 8]);
    let new = edit(&old, |e| e.replace(5..6, [mov(1), mov(2)])).unwrap();
    assert_eq!(targets(&new), [5, 3, 5]);
    let err = edit(&old, |e| e.remove(3..5)).unwrap_err();
    assert_eq!(err, PatchError::TargetRemoved { at: 0, target: 3 });
    // Nobody uses it any more.
    let new = edit(&old, |e| e.replace(0..5, mov(1))).unwrap();
    assert_eq!(new.fixups, []);
}

fn call(imm: i32) -> Insn {
    Insn::new(CALL, 0, pseudo::CALL, 0, imm)
}

fn address(imm: i32) -> [Insn; 2] {
    Insn::ld_imm64(3, pseudo::FUNC, u64::from(imm as u32))
}

#[test]
fn calls_and_function_addresses_follow() {
    // 0: call 5; 1: r3 = &7; 3: call 7; 4: exit; 5: r0 = 5; 6: exit; 7: r0 = 7;
    // 8: goto 7 if r1 == 0; 9: exit
    let [low, high] = address(5);
    let insns = [
        call(4),
        low,
        high,
        call(3),
        EXIT,
        mov(5),
        EXIT,
        mov(7),
        jeq(-2),
        EXIT,
    ];
    let old = program(&insns, &[0, 5, 7], &[0, 5, 7]);
    let new = edit(&old, |e| {
        e.insert_before(3, mov(1))?;
        e.insert_before(6, mov(2))?;
        // Calls run it, the jump back to the first instruction does not.
        e.prologue(2, [mov(3), mov(4)])
    })
    .unwrap();
    let [low, high] = address(7);
    let expected = [
        call(5),
        low,
        high,
        mov(1),
        call(4),
        EXIT,
        mov(5),
        mov(2),
        EXIT,
        mov(3),
        mov(4),
        mov(7),
        jeq(-2),
        EXIT,
    ];
    assert_eq!(new.insns, expected);
    assert_eq!(starts(&new), [0, 6, 9]);
    assert_eq!(lines(&new), [(0, 0), (6, 50), (9, 70)]);
    let funcs: Vec<u8> = [0_u32, 100, 6, 101, 9, 102]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect();
    assert_eq!(new.func_info, funcs);
    assert_eq!(new.locate(10), Some((2, 1)));

    // The same place, but jumps run it too; and the end of the function before.
    let new = edit(&old, |e| {
        e.insert_before(7, mov(3))?;
        e.insert_after(6, mov(2))
    })
    .unwrap();
    assert_eq!(new.insns[7..], [mov(2), mov(3), mov(7), jeq(-3), EXIT]);
    assert_eq!(starts(&new), [0, 5, 8]);
}

#[test]
fn a_jump_that_no_longer_fits() {
    let mut insns = vec![mov(0); 32_770];
    insns[0] = jeq(i16::MAX);
    insns[32_769] = jeq(i16::MIN);
    let old = program(&insns, &[0], &[0]);
    let far = |at, distance| Err(PatchError::TooFar { at, distance });
    let result = |at| edit(&old, |e| e.insert_before(at, mov(1))).map(|p| p.insns.len());
    assert_eq!(result(5), far(0, 32_768));
    assert_eq!(result(32_768), far(32_769, -32_769));
    assert_eq!(result(0), Ok(32_771));
    let both = edit(&old, |e| {
        e.remove(100..102)?;
        e.insert_before(5, [mov(1), mov(2)])
    });
    assert_eq!(both.unwrap().insns[0], jeq(i16::MAX));
}

#[test]
fn removal_of_a_jump_target() {
    // 0: if r1 == 0 goto 2; 1: r0 = 1; 2: r0 = 2; 3: exit
    let old = program(&[jeq(1), mov(1), mov(2), EXIT], &[0], &[0, 1, 2, 3]);
    let err = edit(&old, |e| e.remove(2..3)).unwrap_err();
    assert_eq!(err, PatchError::TargetRemoved { at: 0, target: 2 });
    let err = edit(&old, |e| e.replace(1..3, mov(9))).unwrap_err();
    assert_eq!(err, PatchError::TargetRemoved { at: 0, target: 2 });

    let new = edit(&old, |e| e.replace(2..3, [mov(7), mov(8)])).unwrap();
    assert_eq!(new.insns, [jeq(1), mov(1), mov(7), mov(8), EXIT]);
    // Code before it is a place to land as well.
    let new = edit(&old, |e| {
        e.remove(2..3)?;
        e.insert_before(2, mov(7))
    })
    .unwrap();
    assert_eq!(new.insns, [jeq(1), mov(1), mov(7), EXIT]);
    // With the jump gone, nothing is in the way. The lines of what is gone
    // give way to that of what follows.
    let new = edit(&old, |e| e.remove(0..3)).unwrap();
    assert_eq!(new.insns, [EXIT]);
    assert_eq!(lines(&new), [(0, 30)]);
    let sparse = program(&[mov(0), mov(1), mov(2), EXIT], &[0], &[0, 1]);
    let new = edit(&sparse, |e| e.remove(1..2)).unwrap();
    assert_eq!(lines(&new), [(0, 0), (1, 10)], "2 is still in line 10");
    let new = edit(&old, |e| e.remove(3..4)).unwrap();
    assert_eq!(lines(&new), [(0, 0), (1, 10), (2, 20)]);

    assert_eq!(
        edit(&old, |e| e.remove(0..4)).unwrap_err(),
        PatchError::EmptyFunction { at: 0 }
    );
    let twice = edit(&old, |e| {
        e.replace(0..2, mov(1))?;
        e.replace(1..3, mov(1))
    });
    assert_eq!(twice.unwrap_err(), PatchError::Overlap { at: 1 });
    let inside = edit(&old, |e| {
        e.insert_after(0, mov(1))?;
        e.replace(0..2, mov(1))
    });
    assert_eq!(inside.unwrap_err(), PatchError::Overlap { at: 1 });
}

#[test]
fn functions_that_nothing_calls_are_left_out() {
    // 0: call 3; 1: call 5; 2: exit | 3: call 5; 4: exit | 5: r0 = 5; 6: exit
    let insns = [call(2), call(3), EXIT, call(1), EXIT, mov(5), EXIT];
    let old = program(&insns, &[0, 3, 5], &[0, 3, 5]);
    let new = edit(&old, |e| e.set(0, mov(1))).unwrap();
    assert_eq!(new.insns, [mov(1), call(1), EXIT, mov(5), EXIT]);
    assert_eq!(starts(&new), [0, 3]);
    assert_eq!(new.placed[1].function, 2);
    assert_eq!(lines(&new), [(0, 0), (3, 50)]);
    assert_eq!(new.func_info.len(), 16);

    let new = edit(&old, |e| e.replace(0..2, mov(1))).unwrap();
    assert_eq!(new.insns, [mov(1), EXIT]);
    // Called from elsewhere now.
    let new = edit(&old, |e| {
        e.set(0, mov(1))?;
        let mut code = Code::new();
        code.call(1);
        e.insert_before(6, code)
    })
    .unwrap();
    assert_eq!(starts(&new), [0, 3, 5]);
    assert_eq!(new.insns[6], call(-4));
    let err = edit(&old, |e| e.remove(5..7)).unwrap_err();
    assert_eq!(err, PatchError::EmptyFunction { at: 5 });
    let err = edit(&old, |e| e.remove(4..6)).unwrap_err();
    assert_eq!(err, PatchError::Range { start: 4, end: 6 });
}

#[test]
fn inserted_code_refers_to_maps_functions_and_places() {
    let insns = [mov(0), jeq(1), mov(1), EXIT, mov(4), EXIT];
    let mut old = program(&insns, &[0, 4], &[0]);
    let load = Insn::ld_imm64(1, pseudo::MAP_FD, 0);
    let target = FixupTarget::Map(0);
    old.insns.splice(0..1, load);
    old.placed[1].start = 5;
    old.fixups.push(Fixup { insn: 0, target });

    let new = edit(&old, |e| {
        let counter = e.map("counter").unwrap();
        let mut code = Code::from([mov(7)]);
        code.load_map_value(1, counter, 16);
        code.call(1);
        code.load_function(2, 1);
        code.jump_to(Insn::jump_imm(jmp::JNE, 0, 5, 0), 4);
        code.load_constant(3, u64::MAX);
        code.load_map(4, 0);
        e.insert_before(0, code)
    })
    .unwrap();
    let counter = object()
        .maps()
        .iter()
        .position(|m| m.name == "counter")
        .unwrap() as u32;
    assert_eq!(new.insns[1].src(), pseudo::MAP_VALUE);
    assert_eq!((new.insns[1].imm, new.insns[2].imm), (0, 16));
    assert_eq!(new.insns[3], call(12));
    assert_eq!((new.insns[4].src(), new.insns[4].imm), (pseudo::FUNC, 11));
    assert_eq!(new.insns[6], Insn::jump_imm(jmp::JNE, 0, 5, 8));
    let fixup = |insn, target| Fixup { insn, target };
    assert_eq!(
        new.fixups,
        [
            fixup(1, FixupTarget::MapValue(counter)),
            fixup(9, FixupTarget::Map(0)),
            fixup(11, target)
        ]
    );

    // Its instruction gone, a fixup is gone.
    let new = edit(&old, |e| e.replace(0..2, mov(1))).unwrap();
    assert_eq!(new.fixups, []);
}

#[test]
fn incomplete_code_is_refused() {
    let old = program(&[mov(0), EXIT], &[0], &[]);
    let index = |code: Code| match edit(&old, |e| e.insert_before(1, code)) {
        Err(PatchError::Code { index }) => index,
        other => panic!("{other:?}"),
    };
    let [low, _] = Insn::ld_imm64(1, 0, 1);
    assert_eq!(index([mov(1), low].into()), 1, "half an instruction");
    assert_eq!(index([low, mov(1)].into()), 0);
    assert_eq!(index([mov(1), jeq(1)].into()), 1, "past the end");
    assert_eq!(index([jeq(-2), mov(1)].into()), 0, "before the start");
    let [first, second] = Insn::ld_imm64(1, 0, 1);
    assert_eq!(index([jeq(1), first, second].into()), 0, "between words");
    assert_eq!(index(call(1).into()), 0, "what would it call");
    let mut code = Code::new();
    code.jump_to(mov(1), 0);
    assert_eq!(index(code), 0, "no jump");
    assert!(edit(&old, |e| e.insert_before(1, [jeq(1), mov(1), jeq(-3)])).is_ok());

    let refused = |fill: &dyn Fn(&mut Code)| {
        let mut code = Code::new();
        fill(&mut code);
        edit(&old, |e| e.insert_before(1, code)).unwrap_err()
    };
    let kind = "map";
    assert_eq!(
        refused(&|c| c.load_map(1, 99)),
        PatchError::NoSuch { kind, index: 99 }
    );
    let kind = "function";
    assert_eq!(
        refused(&|c| c.call(1)),
        PatchError::NoSuch { kind, index: 1 }
    );
    let not = PatchError::NotAnInstruction { at: 2 };
    assert_eq!(refused(&|c| c.jump_to(jeq(0), 2)), not);
    let err = edit(&old, |e| e.prologue(1, mov(1))).unwrap_err();
    assert_eq!(err, PatchError::NoSuch { kind, index: 1 });
    assert!(!err.to_string().is_empty());
}

#[test]
fn setting_an_instruction() {
    let [low, high] = Insn::ld_imm64(1, pseudo::MAP_FD, 0);
    let mut old = program(&[low, high, Insn::call(1), call(-1), EXIT], &[0], &[0, 2]);
    let map = Fixup {
        insn: 0,
        target: FixupTarget::Map(0),
    };
    // A call of an undefined function looks like one of itself.
    let undefined = Fixup {
        insn: 3,
        target: FixupTarget::Extern(0),
    };
    old.fixups = vec![map, undefined];
    let relo = |insn| LinkedCoreRelo {
        insn,
        record: CoreRelo {
            insn_off: 0,
            type_id: 0,
            access_off: 0,
            kind: 0,
        },
    };
    old.core_relos = vec![relo(2), relo(3)];
    let linker = linker();
    let mut new = old.clone();
    let mut editor = ProgramEditor::new(&linker, &mut new);
    assert_eq!(editor.find(|unit| unit.helper() == Some(1)), [2]);
    assert_eq!(editor.find(|unit| unit.map() == Some(0)), [0]);
    let reference = editor.unit(3).unwrap().refers;
    assert_eq!(reference, Some(Reference::Symbol(FixupTarget::Extern(0))));
    assert_eq!(editor.unit(0).map(|unit| unit.end()), Some(2));
    assert_eq!(editor.unit(1), None);
    editor.set(2, Insn::call(5)).unwrap();
    assert_eq!(editor.unit(2).unwrap().helper(), Some(5));
    editor.set(3, mov(0)).unwrap();
    editor.apply().unwrap();
    assert_eq!(new.insns, [low, high, Insn::call(5), mov(0), EXIT]);
    assert_eq!(new.fixups, [map]);
    assert_eq!(new.core_relos.len(), 0);
}

/// The object with its constant `factor` made an undefined symbol.
fn object_with_undefined_symbol() -> Object {
    use object::read::elf::{FileHeader, Sym};
    use object::{NativeEndian, elf};
    let mut bytes = std::fs::read(format!("{TESTDATA}/subprogs.bpf.o")).unwrap();
    let header = elf::FileHeader64::<NativeEndian>::parse(&*bytes).unwrap();
    let sections = header.sections(NativeEndian, &*bytes).unwrap();
    let symbols = sections
        .symbols(NativeEndian, &*bytes, elf::SHT_SYMTAB)
        .unwrap();
    let named = |s: &&elf::Sym64<NativeEndian>| {
        s.name(NativeEndian, symbols.strings()) == Ok(b"factor".as_slice())
    };
    let symbol = symbols.iter().find(named).unwrap();
    let offset = std::ptr::from_ref(symbol).addr() - bytes.as_ptr().addr();
    bytes[offset + 4] = elf::STB_GLOBAL << 4 | elf::STT_NOTYPE;
    bytes[offset + 6..offset + 8].fill(0);
    Object::parse(bytes).unwrap()
}

#[test]
fn constants_of_undefined_symbols() {
    let object = object_with_undefined_symbol();
    let linker = object.linker().unwrap();
    let mut linked = LinkedProgram::default();
    let spec = object.program("calls_static").unwrap();
    linker.link(spec, &mut linked).unwrap();
    let mut editor = ProgramEditor::new(&linker, &mut linked);
    let uses =
        editor.find(|unit| matches!(unit.refers, Some(Reference::Symbol(FixupTarget::Extern(_)))));
    assert_eq!(uses.len(), 1);
    let unit = editor.unit(uses[0]).unwrap();
    let dst = unit.insn.dst();
    assert_eq!(editor.disassemble(&unit), format!("r{dst} = factor"));
    assert_eq!(editor.set_constant("no_such", 1), Ok(0));
    let value = 0xdead_beef_0000_0007;
    assert_eq!(editor.set_constant("factor", value), Ok(1));
    let unit = editor.unit(uses[0]).unwrap();
    assert_eq!(unit.refers, None);
    assert_eq!(editor.disassemble(&unit), format!("r{dst} = {value:#x}"));
    assert_eq!(editor.set_constant("factor", value), Ok(0));
    // A program that does not use it.
    let spec = object.program("calls_nothing").unwrap();
    linker.link(spec, &mut linked).unwrap();
    let mut editor = ProgramEditor::new(&linker, &mut linked);
    assert_eq!(editor.set_constant("factor", value), Ok(0));

    // A call of it is no constant, and nothing is half done.
    let spec = object.program("calls_static").unwrap();
    linker.link(spec, &mut linked).unwrap();
    let target = FixupTarget::Extern(0);
    linked.insns.push(call(-1));
    linked.fixups.push(Fixup {
        insn: linked.insns.len() as u32 - 1,
        target,
    });
    let before = linked.clone();
    let mut editor = ProgramEditor::new(&linker, &mut linked);
    let err = editor.set_constant("factor", value).unwrap_err();
    assert!(matches!(err, PatchError::NotAConstant { .. }), "{err}");
    assert_eq!(format!("{linked:?}"), format!("{before:?}"));
}

#[test]
fn patchers_run_and_refuse() {
    let object = object();
    let linker = linker();
    let mut linked = LinkedProgram::default();
    let mut seen = Vec::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut patcher = Patcher::new(move |spec, editor| {
        sender.send(spec.name.clone()).unwrap();
        if spec.name == "calls_global" {
            return Err(PatchError::refused("not this one"));
        }
        editor.insert_before(0, mov(1))
    });
    for spec in object.programs() {
        linker.link(spec, &mut linked).unwrap();
        let before = linked.insns.len();
        let result = patcher.run(spec, &linker, &mut linked);
        if spec.name == "calls_global" {
            assert_eq!(result.unwrap_err().to_string(), "not this one");
        } else {
            result.unwrap();
            assert_eq!(linked.insns.len(), before + 1);
        }
        seen.push(spec.name.clone());
    }
    assert_eq!(format!("{patcher:?}"), "Patcher");
    drop(patcher);
    assert_eq!(receiver.iter().collect::<Vec<_>>(), seen);
}

/// What an editor may change.
fn everything(program: &LinkedProgram) -> String {
    format!("{program:?}")
}

#[test]
fn real_programs_come_back_unchanged() {
    let mut programs = 0;
    let directories = [TESTDATA.to_owned(), format!("{TESTDATA}/compilers")];
    let entries = directories
        .iter()
        .flat_map(|directory| std::fs::read_dir(directory).unwrap());
    for entry in entries {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "o") {
            continue;
        }
        let Ok(object) = Object::parse(std::fs::read(&path).unwrap()) else {
            continue;
        };
        let linker = object.linker().unwrap();
        let mut linked = LinkedProgram::default();
        for spec in object.programs() {
            let name = format!("{}: {}", path.display(), spec.name);
            linker.link(spec, &mut linked).unwrap();
            let original = everything(&linked);
            let words = linked.insns.len();
            let mut editor = ProgramEditor::new(&linker, &mut linked);
            let units: Vec<Unit> = editor.units().collect();
            assert_eq!(
                units.iter().map(|u| u.end() - u.at).sum::<u32>(),
                words as u32
            );
            for unit in &units {
                let text = editor.disassemble(unit);
                assert!(!text.contains(".8byte"), "{name}: {text}");
            }
            // Nothing to do; laid out anew; and with code that goes again.
            editor.apply().unwrap();
            assert_eq!(everything(editor.program()), original, "{name}");
            editor.prune = true;
            editor.apply().unwrap();
            assert_eq!(everything(editor.program()), original, "{name}");
            let marker = Insn::mov64_imm(9, 0x0123_4567);
            for unit in &units {
                let wide = Insn::ld_imm64(8, 0, 0x0123_4567);
                editor
                    .insert_after(unit.at, [marker, wide[0], wide[1]])
                    .unwrap();
            }
            editor.apply().unwrap();
            assert_eq!(editor.program().insns.len(), words + 3 * units.len());
            for at in editor.find(|unit| unit.insn == marker) {
                editor.remove(at..at + 3).unwrap();
            }
            editor.apply().unwrap();
            assert_eq!(everything(editor.program()), original, "{name}");
            programs += 1;
        }
    }
    assert!(programs > 30, "{programs}");
}

#[test]
fn many_insertions_are_one_pass() {
    let insns = vec![mov(0); 200_000];
    let old = program(&insns, &[0], &[0]);
    let new = edit(&old, |e| {
        (0..200_000)
            .rev()
            .try_for_each(|at| e.insert_after(at, mov(1)))
    })
    .unwrap();
    assert_eq!(new.insns.len(), 400_000);
    assert!(new.insns.chunks(2).all(|pair| pair == [mov(0), mov(1)]));
}
