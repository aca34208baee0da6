//! Which instructions of a program can run at all.
//!
//! CO-RE answers become constants in the code, and a guard such as
//! `if (bpf_core_field_exists(..))` becomes a jump whose outcome is known
//! before the program runs. The kernel's verifier never looks behind such a
//! jump, so what is poisoned there does no harm. [`reachable`] repeats as much
//! of that reasoning as compilers' code for such guards needs: constants in
//! registers, through moves, arithmetic and joining paths, into conditional
//! jumps.
//!
//! It errs on one side: an instruction called unreachable is one that no path
//! with the constants at hand leads to. What depends on memory (spilled
//! registers, read-only data), on ranges, or on the arguments of subprograms
//! is taken for reachable, although the verifier may know better. It has the
//! last word.

use ebpf_manager_sys::abi::insn::{CALL, EXIT, Insn, JA, JA32, SRC_X, alu, class, jmp, pseudo};

/// What is known of each register, `r0` to `r10`.
type Registers = [Option<u64>; 11];

/// Nothing is known, as at the start of a function.
const UNKNOWN: Registers = [None; 11];

/// For each instruction of a linked program, with its CO-RE relocations
/// applied, whether it can be reached. The second word of a two-word load
/// counts as its first.
///
/// Any instructions give an answer: jumps that leave the program lead nowhere.
pub fn reachable(insns: &[Insn]) -> Vec<bool> {
    let mut walk = Walk {
        seen: vec![false; insns.len()],
        known: vec![None; insns.len()],
        pending: Vec::new(),
    };
    walk.enter(0, &UNKNOWN);
    while let Some(start) = walk.pending.pop() {
        if !walk.follow(insns, start) {
            // Where an indirect jump leads is written in tables, not here.
            walk.seen.fill(true);
            break;
        }
    }
    walk.seen
}

struct Walk {
    seen: Vec<bool>,
    /// What is known wherever paths begin or meet; at most 11 registers can
    /// be forgotten at each, which bounds the work.
    known: Vec<Option<Box<Registers>>>,
    /// Places whose knowledge changed.
    pending: Vec<usize>,
}

impl Walk {
    /// A path leads to `at`, knowing `registers`. What different paths know
    /// differently is forgotten.
    fn enter(&mut self, at: usize, registers: &Registers) {
        let Some(known) = self.known.get_mut(at) else {
            return;
        };
        let changed = match known {
            None => {
                *known = Some(Box::new(*registers));
                true
            }
            Some(known) => {
                let mut changed = false;
                for (old, new) in known.iter_mut().zip(registers) {
                    if old.is_some() && old != new {
                        *old = None;
                        changed = true;
                    }
                }
                changed
            }
        };
        if changed {
            self.pending.push(at);
        }
    }

    /// Walks from `at` to the next jump. False if it is an indirect one.
    fn follow(&mut self, insns: &[Insn], at: usize) -> bool {
        let Some(Some(start)) = self.known.get(at) else {
            return true;
        };
        let mut registers = **start;
        let mut at = at;
        while let (Some(&insn), Some(seen)) = (insns.get(at), self.seen.get_mut(at)) {
            *seen = true;
            let next = at + 1;
            match insn.class() {
                class::ALU | class::ALU64 => step(insn, &mut registers),
                class::LD if insn.is_ld_imm64() => {
                    let high = insns.get(next).map_or(0, |second| second.imm);
                    let value = insn.imm as u32 as u64 | (high as u32 as u64) << 32;
                    // Other kinds become addresses.
                    set(&mut registers, insn, (insn.src() == 0).then_some(value));
                    if insn.src() == pseudo::FUNC {
                        self.enter(target(next, insn.imm as i64), &UNKNOWN);
                    }
                    if let Some(seen) = self.seen.get_mut(next) {
                        *seen = true;
                    }
                    at += 2;
                    continue;
                }
                // Loads of packet data by the old instructions.
                class::LD => forget_caller_saved(&mut registers),
                class::LDX => set(&mut registers, insn, None),
                class::STX => {
                    // Atomic operations fetch into the source or `r0`.
                    if let Some(value) = registers.get_mut(usize::from(insn.src())) {
                        *value = None;
                    }
                    registers[0] = None;
                }
                class::ST => {}
                _ => match insn.code {
                    EXIT => return true,
                    CALL => {
                        if insn.is_pseudo_call() {
                            self.enter(target(next, insn.imm as i64), &UNKNOWN);
                        }
                        forget_caller_saved(&mut registers);
                    }
                    JA => {
                        self.enter(target(next, insn.off as i64), &registers);
                        return true;
                    }
                    JA32 => {
                        self.enter(target(next, insn.imm as i64), &registers);
                        return true;
                    }
                    code if code & 0xf0 == jmp::JA => return false,
                    _ => {
                        self.branch(insn, next, &registers);
                        return true;
                    }
                },
            }
            at = next;
            // Another path has been here: what it knew counts, too.
            if self.known.get(at).is_some_and(Option::is_some) {
                self.enter(at, &registers);
                return true;
            }
        }
        true
    }

    /// Follows a conditional jump to where it can lead.
    fn branch(&mut self, insn: Insn, next: usize, registers: &Registers) {
        let outcome = outcome(insn, registers);
        if outcome != Some(false) {
            self.enter(target(next, insn.off as i64), registers);
        }
        if outcome != Some(true) {
            self.enter(next, registers);
        }
    }
}

/// Where a jump from before `next` leads; outside the program if nowhere.
fn target(next: usize, distance: i64) -> usize {
    (next as i64)
        .checked_add(distance)
        .and_then(|at| usize::try_from(at).ok())
        .unwrap_or(usize::MAX)
}

fn set(registers: &mut Registers, insn: Insn, value: Option<u64>) {
    if let Some(register) = registers.get_mut(usize::from(insn.dst())) {
        *register = value;
    }
}

fn get(registers: &Registers, register: u8) -> Option<u64> {
    registers.get(usize::from(register)).copied().flatten()
}

/// A call leaves nothing in `r0` to `r5` that was there before.
fn forget_caller_saved(registers: &mut Registers) {
    for register in registers.iter_mut().take(6) {
        *register = None;
    }
}

/// The second operand of an arithmetic instruction or jump.
fn operand(insn: Insn, registers: &Registers) -> Option<u64> {
    if insn.code & SRC_X == 0 {
        Some(insn.imm as u64)
    } else {
        get(registers, insn.src())
    }
}

/// Arithmetic on what is known.
fn step(insn: Insn, registers: &mut Registers) {
    let value = compute(insn, registers);
    set(registers, insn, value);
}

fn compute(insn: Insn, registers: &Registers) -> Option<u64> {
    let wide = insn.class() == class::ALU64;
    let op = insn.code & 0xf0;
    // A move with an offset extends a sign or converts an address; division
    // with one is signed. Byte swaps and division are nobody's guard.
    if insn.off != 0 {
        return None;
    }
    let old = get(registers, insn.dst());
    let by = operand(insn, registers);
    // A shift by more than the width is undefined.
    let shift = |by: Option<u64>| by.filter(|&by| by < if wide { 64 } else { 32 });
    let low = |value: u64| value as u32 as u64;
    let value = match op {
        alu::MOV => by?,
        alu::NEG => old?.wrapping_neg(),
        alu::ADD => old?.wrapping_add(by?),
        alu::SUB => old?.wrapping_sub(by?),
        alu::MUL => old?.wrapping_mul(by?),
        alu::OR => old? | by?,
        alu::AND => match (old, by) {
            (Some(0), _) | (_, Some(0)) => 0,
            _ => old? & by?,
        },
        alu::XOR => old? ^ by?,
        alu::LSH => old? << shift(by)?,
        alu::RSH if wide => old? >> shift(by)?,
        alu::RSH => low(old?) >> shift(by)?,
        alu::ARSH if wide => (old? as i64 >> shift(by)?) as u64,
        alu::ARSH => (old? as i32 >> shift(by)?) as u64,
        _ => return None,
    };
    Some(if wide { value } else { low(value) })
}

/// Whether a conditional jump is taken, if that is known.
fn outcome(insn: Insn, registers: &Registers) -> Option<bool> {
    let (mut left, mut right) = (get(registers, insn.dst())?, operand(insn, registers)?);
    let (mut signed_left, mut signed_right) = (left as i64, right as i64);
    if insn.class() == class::JMP32 {
        (left, right) = (left as u32 as u64, right as u32 as u64);
        (signed_left, signed_right) = (left as i32 as i64, right as i32 as i64);
    }
    Some(match insn.code & 0xf0 {
        jmp::JEQ => left == right,
        jmp::JNE => left != right,
        jmp::JSET => left & right != 0,
        jmp::JGT => left > right,
        jmp::JGE => left >= right,
        jmp::JLT => left < right,
        jmp::JLE => left <= right,
        jmp::JSGT => signed_left > signed_right,
        jmp::JSGE => signed_left >= signed_right,
        jmp::JSLT => signed_left < signed_right,
        jmp::JSLE => signed_left <= signed_right,
        // `may_goto` and what newer kernels add.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mov(dst: u8, imm: i32) -> Insn {
        Insn::mov64_imm(dst, imm)
    }

    fn unreachable(insns: &[Insn]) -> Vec<usize> {
        let seen = reachable(insns);
        assert_eq!(seen.len(), insns.len());
        (0..insns.len()).filter(|&at| !seen[at]).collect()
    }

    #[test]
    fn guards_of_constants_are_folded() {
        for (exists, dead) in [(0, vec![2]), (1, vec![])] {
            let guard = [
                mov(1, exists),
                Insn::jump_imm(jmp::JEQ, 1, 0, 1),
                Insn::call(1),
                mov(0, 0),
                Insn::exit(),
            ];
            assert_eq!(unreachable(&guard), dead);
        }
        // The negation, in a register saved across a call, in 32 bits, and as
        // a two-word load.
        let [low, high] = Insn::ld_imm64(6, 0, 1 << 32);
        let wide = [
            low,
            high,
            Insn::call(5),
            Insn::alu64_imm(alu::RSH, 6, 32),
            Insn::new(class::ALU | alu::XOR, 6, 0, 0, 1),
            Insn::new(class::JMP32 | jmp::JNE, 6, 0, 1, 0),
            Insn::jump(1),
            Insn::call(1),
            mov(0, 0),
            Insn::exit(),
        ];
        assert_eq!(unreachable(&wide), [7]);
    }

    #[test]
    fn unknown_values_keep_both_sides() {
        let load = Insn::load(0x18, 1, 10, -8);
        for first in [load, Insn::call(5)] {
            let code = [
                first,
                Insn::jump_imm(jmp::JEQ, 1, 0, 1),
                Insn::call(1),
                Insn::exit(),
            ];
            assert_eq!(unreachable(&code), Vec::<usize>::new());
        }
        // The address of a map is no constant.
        let [low, high] = Insn::ld_imm64(1, pseudo::MAP_FD, 0);
        let code = [
            low,
            high,
            Insn::jump_imm(jmp::JEQ, 1, 0, 1),
            Insn::call(1),
            Insn::exit(),
        ];
        assert_eq!(unreachable(&code), Vec::<usize>::new());
    }

    #[test]
    fn paths_meet_with_what_both_know() {
        let code = |other: i32| {
            [
                mov(6, 0),
                Insn::call(7),
                Insn::jump_imm(jmp::JGT, 0, 9, 1),
                mov(6, other),
                Insn::jump_imm(jmp::JEQ, 6, 0, 1),
                Insn::call(1),
                Insn::exit(),
            ]
        };
        assert_eq!(unreachable(&code(0)), [5]);
        assert_eq!(unreachable(&code(1)), Vec::<usize>::new());
        // A loop forgets what it changes.
        let counting = [
            mov(6, 0),
            Insn::alu64_imm(alu::ADD, 6, 1),
            Insn::jump_imm(jmp::JLT, 6, 10, -2),
            Insn::exit(),
        ];
        assert_eq!(unreachable(&counting), Vec::<usize>::new());
    }

    #[test]
    fn subprograms_are_reached_by_calls_and_references() {
        let [low, high] = Insn::ld_imm64(2, pseudo::FUNC, 5);
        let code = [
            mov(1, 0),
            Insn::jump_imm(jmp::JEQ, 1, 0, 1),
            Insn::new(CALL, 0, pseudo::CALL, 0, 5), // dead: to 8
            low,
            high,
            Insn::exit(),
            mov(0, 0), // nobody's
            Insn::exit(),
            mov(0, 0),                         // called from the dead
            Insn::jump_imm(jmp::JEQ, 1, 0, 0), // the callback
            Insn::exit(),
        ];
        assert_eq!(unreachable(&code), [2, 6, 7, 8]);
        let mut called = code;
        called[1] = Insn::jump_imm(jmp::JNE, 1, 0, 1);
        assert_eq!(unreachable(&called), [6, 7]);
    }

    #[test]
    fn nonsense_ends() {
        assert_eq!(reachable(&[]), Vec::<bool>::new());
        let code = [Insn::jump(-100), Insn::jump(i16::MAX)];
        assert_eq!(unreachable(&code), [1]);
        assert_eq!(unreachable(&[Insn::jump(-1)]), Vec::<usize>::new());
        assert_eq!(
            unreachable(&[Insn::ld_imm64(15, 15, 0)[0]]),
            Vec::<usize>::new()
        );
        // Every opcode, with registers that do not exist.
        for code in 0..=255 {
            let insns = [Insn::new(code, 15, 15, 1, 70), Insn::call(1), Insn::exit()];
            assert!(reachable(&insns)[0]);
        }
        // An indirect jump goes anywhere.
        let code = [
            Insn::new(JA | SRC_X, 1, 0, 0, 0),
            Insn::call(1),
            Insn::exit(),
        ];
        assert_eq!(unreachable(&code), Vec::<usize>::new());
    }

    /// Constants that paths disagree on are forgotten once each, so a program
    /// of branches takes time in proportion to its length.
    #[test]
    fn work_is_bounded() {
        let mut code = Vec::new();
        for at in 0..50_000 {
            code.push(Insn::call(7));
            code.push(Insn::jump_imm(jmp::JGT, 0, 9, 1));
            code.push(mov(6 + (at % 4) as u8, at));
        }
        code.push(Insn::exit());
        assert_eq!(unreachable(&code), Vec::<usize>::new());
    }
}
