//! Answers in instructions.

use ebpf_manager_sys::abi::insn::{LD_IMM64, alu, class, mode, size};

use super::*;

fn answer(old: u64, new: u64) -> Resolution {
    let mut answer = value::local_type_id(0);
    (answer.old, answer.new, answer.validate) = (old, new, true);
    answer
}

fn patched(mut insns: Vec<Insn>, answer: &Resolution) -> (Result<Patched, CoreProblem>, Vec<Insn>) {
    let result = patch_insn(&mut insns, 0, answer, 5);
    (result, insns)
}

#[test]
fn immediates() {
    let add = Insn::new(class::ALU64 | alu::ADD, 1, 0, 0, 8);
    let (result, insns) = patched(vec![add], &answer(8, 0xffff_ffff));
    assert_eq!((result, insns[0].imm), (Ok(Patched::Value), -1));
    let (result, insns) = patched(vec![add], &answer(16, 24));
    assert_eq!(
        result,
        Err(CoreProblem::UnexpectedValue {
            expected: 16,
            found: 8
        })
    );
    assert_eq!(insns, [add]);
    let mut unchecked = answer(16, 24);
    unchecked.validate = false;
    assert_eq!(patched(vec![add], &unchecked).1[0].imm, 24);
    assert_eq!(
        patched(vec![add], &answer(8, 1 << 33)).0,
        Err(CoreProblem::Range(1 << 33))
    );
    let mov = Insn::mov64_reg(1, 2);
    assert_eq!(
        patched(vec![mov], &answer(0, 1)).0,
        Err(CoreProblem::Instruction(mov.code))
    );
    assert_eq!(
        patched(vec![Insn::exit()], &answer(0, 1)).0,
        Err(CoreProblem::Instruction(0x95))
    );
    assert_eq!(
        patched(vec![], &answer(0, 1)).0,
        Err(CoreProblem::Instruction(0))
    );
    let minus = Insn::mov64_imm(1, -5);
    assert_eq!(
        patched(vec![minus], &answer(-5_i64 as u64, -6_i64 as u64)).1[0].imm,
        -6
    );
}

#[test]
fn loads_and_stores() {
    for (class, mode) in [
        (class::LDX, mode::MEM),
        (class::STX, mode::MEM),
        (class::ST, mode::MEM),
        (class::LDX, mode::MEMSX),
    ] {
        let insn = Insn::new(class | size::W | mode, 1, 2, 8, 0);
        let (result, insns) = patched(vec![insn], &answer(8, 40));
        assert_eq!(
            (result, insns[0].off, insns[0].code),
            (Ok(Patched::Value), 40, insn.code)
        );
        let (result, _) = patched(vec![insn], &answer(8, 0x8000));
        assert_eq!(result, Err(CoreProblem::Range(0x8000)));
        let mut resized = answer(8, 40);
        (resized.old_size, resized.new_size) = (4, 8);
        let (_, insns) = patched(vec![insn], &resized);
        assert_eq!((insns[0].off, insns[0].code), (40, class | size::DW | mode));
        resized.new_size = 3;
        assert_eq!(
            patched(vec![insn], &resized).0,
            Err(CoreProblem::AccessSize {
                insn: 4,
                field: 4,
                target: 3
            })
        );
        (resized.old_size, resized.new_size) = (8, 4);
        assert!(patched(vec![insn], &resized).0.is_err());
        resized.resize_fails = true;
        let (result, insns) = patched(vec![insn], &resized);
        assert_eq!(result, Ok(Patched::Poisoned(PoisonReason::SizeChanged)));
        assert_eq!(insns, [Insn::call(POISON + 5)]);
    }
    // Arithmetic on the address does not care about sizes.
    let mut resized = answer(8, 40);
    resized.resize_fails = true;
    let add = Insn::new(class::ALU64 | alu::ADD, 1, 0, 0, 8);
    assert_eq!(patched(vec![add], &resized).1[0].imm, 40);
}

#[test]
fn wide_immediates() {
    let load = |value| Insn::ld_imm64(3, 0, value).to_vec();
    let (result, insns) = patched(load(1 << 35), &answer(1 << 35, 0x2_0000_0003));
    assert_eq!((result, insns), (Ok(Patched::Value), load(0x2_0000_0003)));
    assert!(patched(load(7), &answer(8, 9)).0.is_err());
    // A map's address is no place for a number.
    let map = Insn::ld_imm64(3, 1, 8).to_vec();
    assert_eq!(
        patched(map, &answer(8, 9)).0,
        Err(CoreProblem::Instruction(LD_IMM64))
    );
    assert!(patched(load(8)[..1].to_vec(), &answer(8, 9)).0.is_err());

    // 32-bit enumerators above 2^31: both ways to extend them.
    let mut unsigned = answer(0x8000_0001_u32 as i32 as u64, 0x8000_0002_u32 as i32 as u64);
    assert!(patched(load(0x8000_0001), &unsigned).0.is_err());
    (unsigned.old_is_enum32, unsigned.new_is_enum32) = (true, true);
    assert_eq!(patched(load(0x8000_0001), &unsigned).1, load(0x8000_0002));
    assert_eq!(patched(load(unsigned.old), &unsigned).1, load(unsigned.new));
}

#[test]
fn poison_names_its_relocation() {
    let mut none = answer(8, 0);
    none.poison = Some(PoisonReason::NoMatch);
    let (result, insns) = patched(Insn::ld_imm64(1, 0, 8).to_vec(), &none);
    assert_eq!(result, Ok(Patched::Poisoned(PoisonReason::NoMatch)));
    assert_eq!(insns, [Insn::call(195_896_085), Insn::call(195_896_085)]);
    assert_eq!(poisoned_relo(insns[0].imm as u32), Some(5));
    assert_eq!(
        (poisoned_relo(195_896_080), poisoned_relo(12)),
        (Some(0), None)
    );
    let mut insns = vec![Insn::exit()];
    patch_insn(&mut insns, 0, &none, u32::MAX).unwrap();
    assert_eq!(insns[0].imm, 195_896_080);

    let kernel = blob(|_, _| {});
    let relo = local(ReloKind::FIELD_BYTE_OFFSET, "0:1", task);
    relo.with(&kernel, |resolver| {
        let mut insns = [Insn::exit(), Insn::mov64_imm(1, 8)];
        let poison = resolver
            .apply(&mut insns, 1, &relo.relo, 3)
            .unwrap()
            .unwrap();
        assert_eq!(
            (poison.insn, poison.index, poison.reason),
            (1, 3, PoisonReason::NoType)
        );
        assert_eq!(
            poison.to_string(),
            "byte_off of struct task.start: this kernel has no such type"
        );
        assert_eq!(insns, [Insn::exit(), Insn::call(POISON + 3)]);
    });
    let wrong = local(ReloKind::FIELD_EXISTS, "0:1", task);
    wrong.with(&kernel, |resolver| {
        let mut insns = [Insn::mov64_imm(1, 8)];
        let e = resolver.apply(&mut insns, 0, &wrong.relo, 3).unwrap_err();
        assert_eq!(
            e.to_string(),
            "CO-RE relocation #3 at instruction 0, field_exists of struct task.start: \
             the instruction holds 8, not 1"
        );
    });
}
