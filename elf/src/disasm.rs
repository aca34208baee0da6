//! Instructions as text, one line each, as the kernel's verifier writes them.

use std::fmt::{self, Write};

use ebpf_manager_sys::abi::insn::{self, Insn, alu, class, jmp, mode, pseudo, size};

/// Operations of an atomic store that are not plain arithmetic, in `imm`.
mod atomic {
    pub(super) const FETCH: i32 = 0x01;
    pub(super) const XCHG: i32 = 0xe1;
    pub(super) const CMPXCHG: i32 = 0xf1;
    pub(super) const LOAD_ACQUIRE: i32 = 0x100;
    pub(super) const STORE_RELEASE: i32 = 0x110;
}

/// One instruction in the verifier's notation: `r1 = *(u32 *)(r2 +8)`,
/// `if r0 == 0x0 goto pc+3`, `call #1`.
///
/// `high` is the second word's immediate of a two-word load and ignored for
/// others. `symbol` is what a two-word load or a call refers to and takes the
/// place of the number: `r1 = map[events]`, `call leaf`. An opcode without
/// meaning is shown as `.8byte` and its bytes as one number.
pub fn disassemble(insn: Insn, high: i32, symbol: Option<&str>) -> String {
    let mut out = String::new();
    // A String takes everything.
    let _ = line(&mut out, insn, high, symbol);
    out
}

fn line(out: &mut String, insn: Insn, high: i32, symbol: Option<&str>) -> fmt::Result {
    let (dst, src, off, imm) = (insn.dst(), insn.src(), insn.off, insn.imm);
    let (class, op) = (insn.class(), insn.code & 0xf0);
    let by_register = insn.code & insn::SRC_X != 0;
    let width = match insn.code & size::DW {
        size::W => "32",
        size::H => "16",
        size::B => "8",
        _ => "64",
    };
    match class {
        class::ALU | class::ALU64 => {
            let reg = if class == class::ALU { 'w' } else { 'r' };
            match op {
                alu::END => {
                    let how = match (class, by_register) {
                        (class::ALU, false) => "le",
                        (class::ALU, true) => "be",
                        _ => "bswap",
                    };
                    write!(out, "r{dst} = {how}{imm} r{dst}")
                }
                alu::NEG => write!(out, "{reg}{dst} = -{reg}{dst}"),
                alu::MOV if by_register && class == class::ALU64 && off == 1 => {
                    let (to, from) = (imm as u32 >> 16, imm as u16);
                    write!(out, "r{dst} = addr_space_cast(r{src}, {to}, {from})")
                }
                alu::MOV if by_register && class == class::ALU64 && off == -1 => {
                    write!(out, "r{dst} = &(void __percpu *)(r{src})")
                }
                _ => {
                    let Some(sign) = alu_sign(op, off) else {
                        return unknown(out, insn);
                    };
                    write!(out, "{reg}{dst} {sign} ")?;
                    match (by_register, off) {
                        (false, _) => write!(out, "{imm}"),
                        (true, 8 | 16 | 32) if op == alu::MOV => {
                            write!(out, "(s{off}){reg}{src}")
                        }
                        (true, _) => write!(out, "{reg}{src}"),
                    }
                }
            }
        }
        class::JMP | class::JMP32 => {
            let reg = if class == class::JMP { 'r' } else { 'w' };
            match (class, op) {
                (class::JMP, jmp::CALL) => match symbol {
                    Some(symbol) => write!(out, "call {symbol}"),
                    None if src == pseudo::CALL => write!(out, "call pc{imm:+}"),
                    None => write!(out, "call #{imm}"),
                },
                (class::JMP, jmp::EXIT) => write!(out, "exit"),
                (class::JMP, jmp::JA) if by_register => write!(out, "gotox r{dst}"),
                (class::JMP, jmp::JA) => write!(out, "goto pc{off:+}"),
                (_, jmp::JA) => write!(out, "gotol pc{imm:+}"),
                (class::JMP, jmp::JCOND) => write!(out, "may_goto pc{off:+}"),
                _ => match jump_sign(op) {
                    None => unknown(out, insn),
                    Some(sign) if by_register => {
                        write!(out, "if {reg}{dst} {sign} {reg}{src} goto pc{off:+}")
                    }
                    Some(sign) => write!(out, "if {reg}{dst} {sign} {imm:#x} goto pc{off:+}"),
                },
            }
        }
        class::LD => match insn.code & 0xe0 {
            mode::ABS => write!(out, "r0 = *(u{width} *)skb[{imm}]"),
            mode::IND => write!(out, "r0 = *(u{width} *)skb[r{src} + {imm}]"),
            _ if insn.is_ld_imm64() => {
                write!(out, "r{dst} = ")?;
                let value = u64::from(imm as u32) | u64::from(high as u32) << 32;
                match symbol {
                    Some(symbol) => out.write_str(symbol),
                    None => write!(out, "{value:#x}"),
                }
            }
            _ => unknown(out, insn),
        },
        class::LDX => match insn.code & 0xe0 {
            mode::MEM => write!(out, "r{dst} = *(u{width} *)(r{src} {off:+})"),
            mode::MEMSX => write!(out, "r{dst} = *(s{width} *)(r{src} {off:+})"),
            _ => unknown(out, insn),
        },
        class::ST if insn.code & 0xe0 == mode::MEM => {
            write!(out, "*(u{width} *)(r{dst} {off:+}) = {imm}")
        }
        class::STX => match insn.code & 0xe0 {
            mode::MEM => write!(out, "*(u{width} *)(r{dst} {off:+}) = r{src}"),
            mode::ATOMIC => atomic(out, insn, width),
            _ => unknown(out, insn),
        },
        _ => unknown(out, insn),
    }
}

fn atomic(out: &mut String, insn: Insn, width: &str) -> fmt::Result {
    let (dst, src, off, imm) = (insn.dst(), insn.src(), insn.off, insn.imm);
    let suffix = if width == "64" { "64" } else { "" };
    match imm {
        atomic::XCHG => {
            write!(
                out,
                "r{src} = atomic{suffix}_xchg((u{width} *)(r{dst} {off:+}), r{src})"
            )
        }
        atomic::CMPXCHG => {
            write!(
                out,
                "r0 = atomic{suffix}_cmpxchg((u{width} *)(r{dst} {off:+}), r0, r{src})"
            )
        }
        atomic::LOAD_ACQUIRE => {
            write!(out, "r{dst} = load_acquire((u{width} *)(r{src} {off:+}))")
        }
        atomic::STORE_RELEASE => {
            write!(out, "store_release((u{width} *)(r{dst} {off:+}), r{src})")
        }
        _ => {
            let (sign, name) = match imm & !atomic::FETCH {
                0x00 => ("+=", "add"),
                0x40 => ("|=", "or"),
                0x50 => ("&=", "and"),
                0xa0 => ("^=", "xor"),
                _ => return unknown(out, insn),
            };
            if imm & atomic::FETCH == 0 {
                write!(out, "lock *(u{width} *)(r{dst} {off:+}) {sign} r{src}")
            } else {
                write!(
                    out,
                    "r{src} = atomic{suffix}_fetch_{name}((u{width} *)(r{dst} {off:+}), r{src})"
                )
            }
        }
    }
}

fn alu_sign(op: u8, off: i16) -> Option<&'static str> {
    Some(match op {
        alu::ADD => "+=",
        alu::SUB => "-=",
        alu::MUL => "*=",
        alu::DIV if off == 1 => "s/=",
        alu::DIV => "/=",
        alu::OR => "|=",
        alu::AND => "&=",
        alu::LSH => "<<=",
        alu::RSH => ">>=",
        alu::MOD if off == 1 => "s%=",
        alu::MOD => "%=",
        alu::XOR => "^=",
        alu::MOV => "=",
        alu::ARSH => "s>>=",
        _ => return None,
    })
}

fn jump_sign(op: u8) -> Option<&'static str> {
    Some(match op {
        jmp::JEQ => "==",
        jmp::JGT => ">",
        jmp::JGE => ">=",
        jmp::JSET => "&",
        jmp::JNE => "!=",
        jmp::JSGT => "s>",
        jmp::JSGE => "s>=",
        jmp::JLT => "<",
        jmp::JLE => "<=",
        jmp::JSLT => "s<",
        jmp::JSLE => "s<=",
        _ => return None,
    })
}

#[cold]
fn unknown(out: &mut String, insn: Insn) -> fmt::Result {
    write!(
        out,
        ".8byte {:#018x}",
        u64::from_ne_bytes(insn.to_ne_bytes())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> String {
        disassemble(Insn::new(code, dst, src, off, imm), 0, None)
    }

    #[test]
    fn notation() {
        // Each opcode with the words of the kernel's disassembler.
        let cases: &[(u8, u8, u8, i16, i32, &str)] = &[
            (0x07, 1, 0, 0, -8, "r1 += -8"),
            (0x1f, 1, 2, 0, 0, "r1 -= r2"),
            (0x34, 3, 0, 0, 7, "w3 /= 7"),
            (0x3f, 3, 4, 1, 0, "r3 s/= r4"),
            (0x97, 3, 0, 1, 5, "r3 s%= 5"),
            (0xc7, 3, 0, 0, 5, "r3 s>>= 5"),
            (0x87, 3, 0, 0, 0, "r3 = -r3"),
            (0x84, 3, 0, 0, 0, "w3 = -w3"),
            (0xb7, 0, 0, 0, 1, "r0 = 1"),
            (0xbc, 0, 1, 0, 0, "w0 = w1"),
            (0xbf, 0, 1, 8, 0, "r0 = (s8)r1"),
            (0xbf, 0, 1, 32, 0, "r0 = (s32)r1"),
            (0xbf, 0, 1, 1, 0x1_0000, "r0 = addr_space_cast(r1, 1, 0)"),
            (0xbf, 0, 1, -1, 0, "r0 = &(void __percpu *)(r1)"),
            (0xd4, 1, 0, 0, 16, "r1 = le16 r1"),
            (0xdc, 1, 0, 0, 32, "r1 = be32 r1"),
            (0xd7, 1, 0, 0, 64, "r1 = bswap64 r1"),
            (0x61, 1, 2, 8, 0, "r1 = *(u32 *)(r2 +8)"),
            (0x71, 1, 2, 0, 0, "r1 = *(u8 *)(r2 +0)"),
            (0x89, 1, 2, -2, 0, "r1 = *(s16 *)(r2 -2)"),
            (0x7a, 10, 0, -8, 5, "*(u64 *)(r10 -8) = 5"),
            (0x6b, 10, 1, -8, 0, "*(u16 *)(r10 -8) = r1"),
            (0xdb, 1, 2, 0, 0, "lock *(u64 *)(r1 +0) += r2"),
            (0xc3, 1, 2, 0, 0x50, "lock *(u32 *)(r1 +0) &= r2"),
            (
                0xdb,
                1,
                2,
                4,
                0xa1,
                "r2 = atomic64_fetch_xor((u64 *)(r1 +4), r2)",
            ),
            (0xc3, 1, 2, 4, 0xe1, "r2 = atomic_xchg((u32 *)(r1 +4), r2)"),
            (
                0xdb,
                1,
                2,
                4,
                0xf1,
                "r0 = atomic64_cmpxchg((u64 *)(r1 +4), r0, r2)",
            ),
            (0xdb, 1, 2, 4, 0x100, "r1 = load_acquire((u64 *)(r2 +4))"),
            (0xc3, 1, 2, 4, 0x110, "store_release((u32 *)(r1 +4), r2)"),
            (0x30, 0, 0, 0, 12, "r0 = *(u8 *)skb[12]"),
            (0x48, 0, 3, 0, 12, "r0 = *(u16 *)skb[r3 + 12]"),
            (0x05, 0, 0, -4, 0, "goto pc-4"),
            (0x06, 0, 0, 0, 70000, "gotol pc+70000"),
            (0xe5, 0, 0, 3, 0, "may_goto pc+3"),
            (0x0d, 2, 0, 0, 0, "gotox r2"),
            (0x15, 0, 0, 3, 0, "if r0 == 0x0 goto pc+3"),
            (0x56, 0, 0, 3, -1, "if w0 != 0xffffffff goto pc+3"),
            (0x6d, 1, 2, -3, 0, "if r1 s> r2 goto pc-3"),
            (0x85, 0, 0, 0, 1, "call #1"),
            (0x85, 0, 1, 0, 9, "call pc+9"),
            (0x95, 0, 0, 0, 0, "exit"),
            (0xf7, 0, 0, 0, 0, ".8byte"),
            (0x00, 0, 0, 0, 0, ".8byte"),
            (0x86, 0, 0, 0, 0, ".8byte"),
        ];
        for &(code, dst, src, off, imm, expected) in cases {
            let text = text(code, dst, src, off, imm);
            if expected == ".8byte" {
                assert!(text.starts_with(expected), "{code:02x}: {text}");
            } else {
                assert_eq!(text, expected, "{code:02x}");
            }
        }
        let [low, high] = Insn::ld_imm64(1, 0, 0x1234_5678_9abc_def0);
        assert_eq!(disassemble(low, high.imm, None), "r1 = 0x123456789abcdef0");
        assert_eq!(disassemble(low, 0, Some("map[m]")), "r1 = map[m]");
        assert_eq!(disassemble(Insn::call(0), 0, Some("leaf")), "call leaf");
    }

    #[test]
    fn every_opcode_gives_one_line() {
        for code in 0..=255 {
            for (off, imm) in [(0, 0), (-1, i32::MIN), (1, 0x55)] {
                let text = text(code, 15, 15, off, imm);
                assert!(!text.is_empty() && !text.contains('\n'));
            }
        }
    }
}
