//! Writing an answer into an instruction.

use ebpf_manager_sys::abi::insn::{CALL, Insn, SRC_X, class, size};

use super::{CoreProblem, PoisonReason, Resolution};

/// Helper number that poisoned instructions call, plus the number of the
/// relocation: 0xbad2310, "bad relo".
///
/// No kernel has such a helper. If the instruction can be reached, the
/// verifier says `invalid func unknown#195896080` (and up), which
/// [`poisoned_relo`] turns into the relocation's number; if not, it removes
/// it. libbpf poisons with the same number, without counting on.
pub const POISON: i32 = 0x0bad_2310;

/// Relocation numbers that are told apart in poison.
const POISON_RANGE: u32 = 1 << 24;

/// What became of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patched {
    /// It holds the new value.
    Value,
    /// It is poisoned.
    Poisoned(PoisonReason),
}

/// The number of the relocation that poisoned an instruction, from the helper
/// number in the verifier's message.
pub fn poisoned_relo(helper: u32) -> Option<u32> {
    helper
        .checked_sub(POISON as u32)
        .filter(|&index| index < POISON_RANGE)
}

/// Writes `answer` into the instruction at `position`.
///
/// Understood are arithmetic with an immediate, loads and stores (the offset,
/// and the width where `answer` changes it) and two-word immediate loads.
/// `index` numbers the relocation for [`POISON`]; numbers beyond 2^24 all
/// count as 0.
pub fn patch_insn(
    insns: &mut [Insn],
    position: usize,
    answer: &Resolution,
    index: u32,
) -> Result<Patched, CoreProblem> {
    let words = insns.get_mut(position..).unwrap_or_default();
    let Some((insn, rest)) = words.split_first_mut() else {
        return Err(CoreProblem::Instruction(0));
    };
    if let Some(reason) = answer.poison {
        poison(insn, rest, index);
        return Ok(Patched::Poisoned(reason));
    }
    match insn.class() {
        class::ALU | class::ALU64 => patch_imm(insn, answer)?,
        class::LDX | class::ST | class::STX => {
            let found = insn.off as u64;
            if answer.validate && found != answer.old {
                return Err(CoreProblem::UnexpectedValue {
                    expected: answer.old,
                    found,
                });
            }
            let off = i16::try_from(answer.new).map_err(|_| CoreProblem::Range(answer.new))?;
            if answer.resize_fails {
                poison(insn, rest, index);
                return Ok(Patched::Poisoned(PoisonReason::SizeChanged));
            }
            if answer.new_size != answer.old_size {
                let width = bytes(insn.code);
                let code = size_code(answer.new_size).filter(|_| width == answer.old_size);
                let Some(code) = code else {
                    return Err(CoreProblem::AccessSize {
                        insn: width,
                        field: answer.old_size,
                        target: answer.new_size,
                    });
                };
                insn.code = insn.code & !size::DW | code;
            }
            insn.off = off;
        }
        class::LD => {
            let second = rest.first_mut();
            let Some(second) = second.filter(|second| {
                insn.is_ld_imm64()
                    && (insn.src(), insn.off) == (0, 0)
                    && (second.code, second.dst(), second.src(), second.off) == (0, 0, 0, 0)
            }) else {
                return Err(CoreProblem::Instruction(insn.code));
            };
            let found = insn.imm as u32 as u64 | (second.imm as u32 as u64) << 32;
            // An enumerator above 2^31 is extended by zeroes if the compiler
            // took its type for unsigned, and so is what replaces it.
            let unsigned = answer.old_is_enum32 && found == answer.old as u32 as u64;
            if answer.validate && found != answer.old && !unsigned {
                return Err(CoreProblem::UnexpectedValue {
                    expected: answer.old,
                    found,
                });
            }
            let new = if unsigned && found != answer.old && answer.new_is_enum32 {
                answer.new as u32 as u64
            } else {
                answer.new
            };
            insn.imm = new as i32;
            second.imm = (new >> 32) as i32;
        }
        _ => return Err(CoreProblem::Instruction(insn.code)),
    }
    Ok(Patched::Value)
}

fn patch_imm(insn: &mut Insn, answer: &Resolution) -> Result<(), CoreProblem> {
    if insn.code & SRC_X != 0 {
        return Err(CoreProblem::Instruction(insn.code));
    }
    let found = insn.imm as u64;
    if answer.validate && found != answer.old {
        return Err(CoreProblem::UnexpectedValue {
            expected: answer.old,
            found,
        });
    }
    let imm = answer.new as i32;
    if imm as u64 != answer.new && imm as u32 as u64 != answer.new {
        return Err(CoreProblem::Range(answer.new));
    }
    insn.imm = imm;
    Ok(())
}

/// Makes an instruction one that the verifier refuses. Both words of a
/// two-word load, or it would complain about the orphan first.
fn poison(insn: &mut Insn, rest: &mut [Insn], index: u32) {
    let tag = if index < POISON_RANGE { index } else { 0 };
    let bad = Insn::new(CALL, 0, 0, 0, POISON.wrapping_add(tag as i32));
    if insn.is_ld_imm64()
        && let Some(second) = rest.first_mut()
    {
        *second = bad;
    }
    *insn = bad;
}

/// Width of a load or store.
fn bytes(code: u8) -> u32 {
    match code & size::DW {
        size::B => 1,
        size::H => 2,
        size::W => 4,
        _ => 8,
    }
}

fn size_code(bytes: u32) -> Option<u8> {
    Some(match bytes {
        1 => size::B,
        2 => size::H,
        4 => size::W,
        8 => size::DW,
        _ => return None,
    })
}
