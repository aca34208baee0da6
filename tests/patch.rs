//! Programs whose instructions are changed on their way into the kernel: the
//! verifier takes them, they do what they did or what they were changed to,
//! and their debug records still fit.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::AsFd;
use std::sync::mpsc;

use common::{Feature, LeakCheck, ROOT, kernel_version, require, testdata};
use ebpf_manager::bpf::{
    Collection, LoadError, LoadOptions, Program, ProgramError, ProgramType, TestRun, open_object,
};
use ebpf_manager::elf::edit::{Code, PatchError, Patcher, ProgramEditor, Reference};
use ebpf_manager::elf::insn::{self, Insn, alu, class, jmp, size};
use ebpf_manager::elf::{FixupTarget, Object, ProgramSpec, disassemble};
use ebpf_manager_sys::bpf::{self as sys, Log, ProgLoad};

/// `bpf_for_each_map_elem` and `bpf_loop` with function references.
const CALLBACKS: Feature = Feature::new("bpf_loop", 5, 17);
/// Indirect jumps.
const JUMP_TABLES: Feature = Feature::new("jump tables", 6, 19).config(&["CONFIG_BPF_JIT"]);
/// Instructions of `-mcpu=v4`.
const V4: Feature = Feature::new("sign-extending loads and long jumps", 6, 6);

const LOOKUP: i32 = 1;

fn object(name: &str) -> Object {
    open_object(testdata(name)).unwrap()
}

fn patched<F>(patch: F) -> LoadOptions
where
    F: FnMut(&ProgramSpec, &mut ProgramEditor<'_>) -> Result<(), PatchError> + Send + 'static,
{
    let mut options = LoadOptions::default();
    options.patchers.push(Patcher::new(patch));
    options
}

/// Options that load one program of an object.
fn alone(object: &Object, name: &str, mut options: LoadOptions) -> LoadOptions {
    let others = object.programs().iter().filter(|p| p.name != name);
    options.exclude = others.map(|p| p.name.clone()).collect();
    options
}

/// Runs a program once: the line of its first check that fails, or 0.
fn run(program: &Program) -> u32 {
    let data = [0_u8; 64];
    let takes_data = !matches!(
        program.program_type(),
        ProgramType::RAW_TRACEPOINT | ProgramType::SYSCALL
    );
    let mut run = TestRun {
        data_in: if takes_data { &data } else { &[] },
        repeat: u32::from(takes_data),
        ..TestRun::default()
    };
    program.test_run(&mut run).unwrap().retval
}

/// The lines of a loaded program in their order, without positions, and the
/// number of its functions.
fn debug_records(program: &Program) -> (Vec<(u32, u32)>, u32) {
    let lines = sys::prog_line_info(program.as_fd()).unwrap();
    let functions = sys::prog_info(program.as_fd()).unwrap().nr_func_info;
    let lines = lines.iter().map(|l| (l.line_off, l.line_col));
    (lines.collect(), functions)
}

/// Loads an object as it is and patched; both must pass their own checks and
/// have the same lines.
fn compare(
    name: &str,
    programs: &[&str],
    patch: impl FnMut(&ProgramSpec, &mut ProgramEditor<'_>) -> Result<(), PatchError> + Send + 'static,
) {
    let object = object(name);
    let plain = Collection::load(&object, LoadOptions::default()).unwrap();
    let changed = Collection::load(&object, patched(patch)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(plain.programs().len(), changed.programs().len());
    for program in programs {
        let [plain, changed] = [&plain, &changed].map(|c| c.program(program).unwrap());
        assert_eq!(run(plain), 0, "{name}: {program}");
        assert_eq!(run(changed), 0, "{name}: {program}, patched");
        let (lines, functions) = debug_records(plain);
        assert!(!lines.is_empty());
        assert_eq!((lines, functions), debug_records(changed), "{program}");
        assert!(changed.losses().is_empty());
    }
}

/// Code that leaves everything a function's caller gave it as it is.
fn prologue() -> Code {
    let mut code = Code::new();
    code.load_constant(0, 0x1234_5678_9abc_def0);
    code.push(Insn::jump_imm(jmp::JNE, 0, 0, 2));
    code.push(Insn::mov64_imm(0, -1));
    code.push(Insn::exit());
    code
}

/// Every function gets a prologue, and every instruction company.
fn crowd(_: &ProgramSpec, editor: &mut ProgramEditor<'_>) -> Result<(), PatchError> {
    for (function, _) in (0..).zip(editor.functions().collect::<Vec<_>>()) {
        editor.prologue(function, prologue())?;
    }
    for at in editor.find(|_| true) {
        editor.insert_before(at, Insn::jump(0))?;
    }
    let ends = [insn::EXIT, insn::JA, insn::JA | insn::SRC_X];
    for at in editor.find(|unit| !ends.contains(&unit.insn.code)) {
        editor.insert_after(at, [Insn::jump(0), Insn::jump(0)])?;
    }
    // Again, in what came out.
    editor.apply()?;
    editor.prologue(0, prologue())
}

#[test]
fn patch_prologues_into_every_function() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let prologues = |_: &ProgramSpec, editor: &mut ProgramEditor<'_>| {
        for (function, _) in (0..).zip(editor.functions().collect::<Vec<_>>()) {
            editor.prologue(function, prologue())?;
        }
        Ok(())
    };
    let subprograms = [
        "calls_nothing",
        "calls_static",
        "calls_reordered",
        "calls_global",
        "calls_from_tc",
        "calls_from_xdp",
    ];
    compare("subprogs.bpf.o", &subprograms, prologues);
    compare("globals.bpf.o", &["globals_initial"], prologues);
    compare("sections.bpf.o", &["sections_check"], prologues);
}

#[test]
fn patch_around_callbacks() {
    if !require(&CALLBACKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    compare("callback.bpf.o", &["callback_each", "callback_loop"], crowd);
}

#[test]
fn patch_around_jump_tables() {
    if !require(&JUMP_TABLES) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let programs = ["jumps_own", "jumps_shared_elsewhere", "jumps_callback"];
    compare("compilers/jumps.bpf.o", &programs, crowd);
}

#[test]
fn patch_around_every_instruction() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    compare("subprogs.bpf.o", &["calls_static", "calls_global"], crowd);
    compare("globals.bpf.o", &["globals_initial"], crowd);
    compare("tailcall.bpf.o", &["tailcall_entry"], crowd);
}

/// An object file whose BTF goes by a name that nobody looks for.
fn without_btf(name: &str) -> Vec<u8> {
    let mut bytes = std::fs::read(testdata(name)).unwrap();
    for at in 0..bytes.len() - 4 {
        if &bytes[at..at + 4] == b".BTF" {
            bytes[at + 1] = b'X';
        }
    }
    bytes
}

#[test]
fn patch_an_object_without_btf() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = Object::parse(without_btf("sections.bpf.o")).unwrap();
    assert!(object.btf().is_none());
    let collection = Collection::load(&object, patched(crowd)).unwrap_or_else(|e| panic!("{e}"));
    let program = collection.program("sections_check").unwrap();
    assert_eq!(run(program), 0);
    assert_eq!(debug_records(program), (Vec::new(), 0));
}

#[test]
fn patch_a_helper_call() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("subprogs.bpf.o");
    // The lookup finds nothing any more, which the program notices.
    let (sender, found) = mpsc::channel();
    let options = patched(move |_, editor| {
        for at in editor.find(|unit| unit.helper() == Some(LOOKUP)) {
            sender.send(at).unwrap();
            editor.set(at, Insn::mov64_imm(0, 0))?;
        }
        Ok(())
    });
    let options = alone(&object, "calls_static", options);
    let collection = Collection::load(&object, options).unwrap();
    assert_eq!(found.iter().count(), 1);
    assert_ne!(run(collection.program("calls_static").unwrap()), 0);
}

#[test]
fn patch_counts_helper_calls() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("subprogs.bpf.o");
    let options = patched(|_, editor| {
        let counter = editor
            .map("counter")
            .ok_or_else(|| PatchError::refused("no counter"))?;
        for at in editor.find(|unit| unit.helper() == Some(LOOKUP)) {
            // A call leaves r1 to r5 free.
            let mut code = Code::new();
            code.load_map_value(1, counter, 0);
            code.push(Insn::mov64_imm(2, 1000));
            code.push(Insn::atomic_add(size::DW, 1, 2, 0));
            editor.insert_after(at, code)?;
        }
        Ok(())
    });
    let collection = Collection::load(&object, alone(&object, "calls_reordered", options)).unwrap();
    let program = collection.program("calls_reordered").unwrap();
    for _ in 0..3 {
        assert_eq!(run(program), 0);
    }
    let mut value = [0; 8];
    let counter = collection.map("counter").unwrap();
    assert!(counter.lookup(&[0; 4], &mut value).unwrap());
    // Two lookups in each run, and one that the program counts itself.
    assert_eq!(u64::from_ne_bytes(value), 3 * 2001);
}

#[test]
fn patch_away_a_subprogram() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("subprogs.bpf.o");
    let options = patched(|_, editor| {
        let tree = editor.functions().position(|(name, _)| name == "tree");
        let tree = tree.map(|index| Reference::Function(index as u32));
        for at in editor.find(|unit| unit.refers == tree) {
            // What tree(1) gives.
            editor.set(at, Insn::mov64_imm(0, 14 * 3 + 2))?;
        }
        Ok(())
    });
    let collection = Collection::load(&object, alone(&object, "calls_static", options)).unwrap();
    let program = collection.program("calls_static").unwrap();
    assert_eq!(run(program), 0);
    assert_eq!(debug_records(program).1, 3, "leaf and branch are left");
}

/// An object whose constant `ro_u64` is made a symbol that nothing defines.
fn with_undefined_symbol() -> Object {
    let mut bytes = without_btf("globals.bpf.o");
    let number = |at: usize, size: usize| {
        let bytes = bytes[at..at + size].iter().rev();
        bytes.fold(0, |n, b| n << 8 | usize::from(*b))
    };
    let section = |index: usize| number(0x28, 8) + index * number(0x3a, 2);
    let symtab = (0..number(0x3c, 2))
        .map(section)
        .find(|at| number(at + 4, 4) == 2)
        .unwrap();
    let names = number(section(number(symtab + 0x28, 4)) + 0x18, 8);
    let symbols = number(symtab + 0x18, 8);
    let symbol = (symbols..symbols + number(symtab + 0x20, 8))
        .step_by(24)
        .find(|at| bytes[names + number(*at, 4)..].starts_with(b"ro_u64\0"))
        .unwrap();
    bytes[symbol + 4] = 1 << 4;
    bytes[symbol + 6..symbol + 8].fill(0);
    Object::parse(bytes).unwrap()
}

#[test]
fn patch_a_constant_by_its_symbol() {
    if !require(&ROOT) || cfg!(target_endian = "big") {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = with_undefined_symbol();
    assert_eq!(object.externs()[0].name, "ro_u64");
    let options = alone(&object, "globals_initial", LoadOptions::default());
    // A constant that nobody patches is 0, which is no address to read from.
    let err = Collection::load(&object, options).unwrap_err();
    assert!(
        matches!(err, LoadError::Program(ProgramError::Rejected(_))),
        "{err}"
    );

    let patch = |value| {
        patched(move |_, editor| {
            let symbol = Some(Reference::Symbol(FixupTarget::Extern(0)));
            for at in editor.find(|unit| unit.refers == symbol) {
                // The C source takes it for a variable and reads it.
                let load = editor.unit(at).unwrap();
                let read = editor.unit(load.end()).unwrap();
                assert_eq!(read.insn.src(), load.insn.dst());
                let move_it = Insn::mov64_reg(read.insn.dst(), read.insn.src());
                editor.set(read.at, move_it)?;
            }
            match editor.set_constant("ro_u64", value)? {
                1 => Ok(()),
                n => Err(PatchError::refused(format!("used {n} times"))),
            }
        })
    };
    for (value, works) in [(0x8687_8889_9091_9293, true), (0x9091_9293, false)] {
        let options = alone(&object, "globals_initial", patch(value));
        let collection = Collection::load(&object, options).unwrap_or_else(|e| panic!("{e}"));
        let line = run(collection.program("globals_initial").unwrap());
        assert_eq!(line == 0, works, "{value:#x}");
    }
}

#[test]
fn patch_errors_name_the_program() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("subprogs.bpf.o");
    let options = patched(|spec, editor| {
        if spec.name == "calls_global" {
            editor.remove(0..1_000_000)?;
        }
        Ok(())
    });
    let err = Collection::load(&object, options).unwrap_err();
    let LoadError::Program(ProgramError::Patch { program, source }) = &err else {
        panic!("{err}");
    };
    assert_eq!(program, "calls_global");
    assert!(matches!(source, PatchError::Range { .. }), "{source}");
    assert!(
        err.to_string().starts_with("program calls_global: "),
        "{err}"
    );
}

/// One of each instruction, in an order the verifier walks through.
fn catalogue() -> Vec<Insn> {
    let atomic = |width, imm| Insn::new(class::STX | 0xc0 | width, 10, 1, -8, imm);
    let mut insns = vec![Insn::mov64_reg(6, 1)];
    insns.extend(Insn::ld_imm64(1, 0, 0x1_2345_6789));
    insns.push(Insn::mov64_imm(2, 5));
    let operations = [
        alu::ADD,
        alu::SUB,
        alu::MUL,
        alu::DIV,
        alu::OR,
        alu::AND,
        alu::LSH,
        alu::RSH,
        alu::MOD,
        alu::XOR,
        alu::MOV,
        alu::ARSH,
    ];
    for op in operations {
        insns.push(Insn::alu64_imm(op, 1, 3));
        insns.push(Insn::alu64_reg(op, 1, 2));
        insns.push(Insn::new(class::ALU | op, 1, 0, 0, 3));
        insns.push(Insn::new(class::ALU | op | insn::SRC_X, 1, 2, 0, 0));
    }
    for class in [class::ALU, class::ALU64] {
        insns.push(Insn::new(class | alu::NEG, 1, 0, 0, 0));
        for width in [16, 32, 64] {
            insns.push(Insn::new(class | alu::END, 1, 0, 0, width));
        }
    }
    insns.push(Insn::new(class::ALU | alu::END | insn::SRC_X, 1, 0, 0, 32));
    for off in [8, 16, 32] {
        insns.push(Insn::new(
            class::ALU64 | alu::MOV | insn::SRC_X,
            1,
            2,
            off,
            0,
        ));
    }
    insns.push(Insn::new(class::ALU64 | alu::DIV, 1, 0, 1, 3));
    insns.push(Insn::new(class::ALU | alu::MOD | insn::SRC_X, 1, 2, 1, 0));
    for (n, width) in (1..).zip([size::DW, size::W, size::H, size::B]) {
        insns.push(Insn::store_imm(width, 10, -8, n));
        insns.push(Insn::store_reg(width, 10, 1, -8));
        insns.push(Insn::load(width, 1, 10, -8));
        if width != size::DW {
            insns.push(Insn::new(class::LDX | 0x80 | width, 1, 10, -8, 0));
        }
    }
    for imm in [0x00, 0x40, 0x50, 0xa0, 0x01, 0x41, 0x51, 0xa1, 0xe1, 0xf1] {
        // What is exchanged must be a number, and r0 too.
        insns.push(Insn::store_imm(size::DW, 10, -8, 9));
        insns.push(Insn::mov64_imm(0, 9));
        insns.push(Insn::mov64_imm(1, 9));
        insns.push(atomic(size::DW, imm));
        insns.push(atomic(size::W, imm));
    }
    if kernel_version() >= (6, 15) {
        insns.push(Insn::new(class::STX | 0xc0 | size::DW, 1, 10, -8, 0x100));
        insns.push(atomic(size::W, 0x110));
    }
    insns.push(Insn::call(7));
    insns.push(Insn::mov64_reg(7, 0));
    insns.push(Insn::mov64_imm(8, 100));
    for op in (0x10..=0xd0).step_by(0x10) {
        if op != jmp::CALL && op != jmp::EXIT {
            insns.push(Insn::jump_imm(op, 7, -2, 0));
            insns.push(Insn::jump_reg(op, 7, 8, 0));
            insns.push(Insn::new(class::JMP32 | op, 7, 0, 0, 9));
            insns.push(Insn::new(class::JMP32 | op | insn::SRC_X, 7, 8, 0, 0));
        }
    }
    insns.push(Insn::new(class::LD | 0x20 | size::H, 0, 0, 0, 12));
    insns.push(Insn::new(class::LD | 0x40 | size::B, 0, 8, 0, 12));
    insns.push(Insn::jump(0));
    insns.push(Insn::new(insn::JA32, 0, 0, 0, 0));
    insns.push(Insn::new(insn::CALL, 0, insn::pseudo::CALL, 0, 1));
    insns.push(Insn::exit());
    insns.push(Insn::mov64_imm(0, -7));
    insns.push(Insn::exit());
    insns
}

#[test]
fn patch_disassembly_reads_like_the_verifiers() {
    if !require(&V4) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let insns = catalogue();
    let load = ProgLoad {
        prog_type: ProgramType::SOCKET_FILTER,
        insns: &insns,
        license: c"GPL",
        ..ProgLoad::default()
    };
    let mut buffer = vec![0; 4 << 20];
    let mut log = Log::new(2, &mut buffer);
    let result = sys::prog_load(&load, Some(&mut log));
    let text = String::from_utf8_lossy(log.bytes()).into_owned();
    result.unwrap_or_else(|e| panic!("{e}: {text}"));

    // `12: (61) r1 = *(u32 *)(r2 +8)      ; R1=…`, with the helper's name
    // before its number.
    let mut expected = BTreeMap::new();
    for line in text.lines() {
        let Some((at, rest)) = line.split_once(": (") else {
            continue;
        };
        let (Ok(at), Some((_, insn))) = (at.parse::<usize>(), rest.split_once(") ")) else {
            continue;
        };
        let mut insn = insn.split("  ;").next().unwrap().trim().to_owned();
        if let Some((_, number)) = insn.split_once('#') {
            insn = format!("call #{number}");
        }
        expected.insert(at, insn);
    }
    let mut differences = String::new();
    let mut at = 0;
    while at < insns.len() {
        let insn = insns[at];
        let high = insns.get(at + 1).map_or(0, |second| second.imm);
        let ours = disassemble(insn, high, None);
        if expected.get(&at) != Some(&ours) {
            let _ = writeln!(differences, "{at}: {ours} | {:?}", expected.get(&at));
        }
        at += 1 + usize::from(insn.is_ld_imm64());
    }
    assert!(differences.is_empty(), "\n{differences}");
}
