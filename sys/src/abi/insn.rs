//! eBPF instruction encoding: the 64-bit instruction word and its opcodes.
//!
//! Source: RFC 9669 (BPF instruction set) and `include/uapi/linux/bpf.h`,
//! `bpf_common.h` of Linux 6.12.

use super::pod::Pod;

/// Instruction class, low three bits of the opcode.
pub mod class {
    #![allow(missing_docs, reason = "RFC 9669, table 3")]
    pub const LD: u8 = 0x00;
    pub const LDX: u8 = 0x01;
    pub const ST: u8 = 0x02;
    pub const STX: u8 = 0x03;
    pub const ALU: u8 = 0x04;
    pub const JMP: u8 = 0x05;
    pub const JMP32: u8 = 0x06;
    pub const ALU64: u8 = 0x07;
}

/// Size of a load or store, bits 3 and 4 of the opcode.
pub mod size {
    #![allow(missing_docs, reason = "RFC 9669, table 12")]
    pub const W: u8 = 0x00;
    pub const H: u8 = 0x08;
    pub const B: u8 = 0x10;
    pub const DW: u8 = 0x18;
}

/// Mode of a load or store, the top three bits of the opcode.
pub mod mode {
    #![allow(missing_docs, reason = "RFC 9669, table 11")]
    pub const IMM: u8 = 0x00;
    pub const ABS: u8 = 0x20;
    pub const IND: u8 = 0x40;
    pub const MEM: u8 = 0x60;
    /// Sign-extending load. Linux 6.6.
    pub const MEMSX: u8 = 0x80;
    pub const ATOMIC: u8 = 0xc0;
}

/// Operation of an arithmetic instruction, the top four bits of the opcode.
pub mod alu {
    #![allow(missing_docs, reason = "RFC 9669, table 4")]
    pub const ADD: u8 = 0x00;
    pub const SUB: u8 = 0x10;
    pub const MUL: u8 = 0x20;
    pub const DIV: u8 = 0x30;
    pub const OR: u8 = 0x40;
    pub const AND: u8 = 0x50;
    pub const LSH: u8 = 0x60;
    pub const RSH: u8 = 0x70;
    pub const NEG: u8 = 0x80;
    pub const MOD: u8 = 0x90;
    pub const XOR: u8 = 0xa0;
    pub const MOV: u8 = 0xb0;
    pub const ARSH: u8 = 0xc0;
    pub const END: u8 = 0xd0;
}

/// Operation of a jump instruction, the top four bits of the opcode.
pub mod jmp {
    #![allow(missing_docs, reason = "RFC 9669, table 8")]
    pub const JA: u8 = 0x00;
    pub const JEQ: u8 = 0x10;
    pub const JGT: u8 = 0x20;
    pub const JGE: u8 = 0x30;
    pub const JSET: u8 = 0x40;
    pub const JNE: u8 = 0x50;
    pub const JSGT: u8 = 0x60;
    pub const JSGE: u8 = 0x70;
    pub const CALL: u8 = 0x80;
    pub const EXIT: u8 = 0x90;
    pub const JLT: u8 = 0xa0;
    pub const JLE: u8 = 0xb0;
    pub const JSLT: u8 = 0xc0;
    pub const JSLE: u8 = 0xd0;
    /// `may_goto`. Linux 6.9.
    pub const JCOND: u8 = 0xe0;
}

/// Source operand bit: the immediate.
pub const SRC_K: u8 = 0x00;
/// Source operand bit: the source register.
pub const SRC_X: u8 = 0x08;

/// Opcode of the two-word 64-bit immediate load (`ld_imm64`).
pub const LD_IMM64: u8 = class::LD | size::DW | mode::IMM;
/// Opcode of a call with an immediate target.
pub const CALL: u8 = class::JMP | jmp::CALL;
/// Opcode of `exit`.
pub const EXIT: u8 = class::JMP | jmp::EXIT;
/// Opcode of an unconditional jump with a 16-bit offset.
pub const JA: u8 = class::JMP | jmp::JA;
/// Opcode of an unconditional jump with a 32-bit offset in `imm`. Linux 6.6.
pub const JA32: u8 = class::JMP32 | jmp::JA;

/// Meaning of the source register of [`LD_IMM64`] and [`CALL`].
pub mod pseudo {
    /// `ld_imm64`: `imm` is a map descriptor.
    pub const MAP_FD: u8 = 1;
    /// `ld_imm64`: `imm` is a map descriptor, the second word's `imm` an
    /// offset into its first value. Linux 5.2.
    pub const MAP_VALUE: u8 = 2;
    /// `ld_imm64`: `imm` is the BTF id of a kernel variable, the second word's
    /// `imm` the descriptor of its module's BTF. Linux 5.10.
    pub const BTF_ID: u8 = 3;
    /// `ld_imm64`: `imm` is the offset of a subprogram. Linux 5.13.
    pub const FUNC: u8 = 4;
    /// `ld_imm64`: index into `fd_array` instead of a map descriptor. Linux 5.14.
    pub const MAP_IDX: u8 = 5;
    /// `ld_imm64`: index into `fd_array` and offset into the value. Linux 5.14.
    pub const MAP_IDX_VALUE: u8 = 6;
    /// `call`: `imm` is the distance to a subprogram.
    pub const CALL: u8 = 1;
    /// `call`: `imm` is the BTF id of a kernel function. Linux 5.13.
    pub const KFUNC_CALL: u8 = 2;
}

/// One 64-bit instruction word.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Insn {
    /// Opcode.
    pub code: u8,
    /// Registers: destination in the low nibble, source in the high one on
    /// little-endian machines, the other way round on big-endian ones.
    regs: u8,
    /// Signed offset.
    pub off: i16,
    /// Signed immediate.
    pub imm: i32,
}

const _: () = assert!(size_of::<Insn>() == 8);

// SAFETY: four integers at offsets 0, 1, 2 and 4, eight bytes, no padding.
unsafe impl Pod for Insn {}

impl Insn {
    /// Builds an instruction from its fields. Registers are taken modulo 16.
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
        Insn {
            code,
            regs: pack(dst, src),
            off,
            imm,
        }
    }

    /// Decodes eight bytes in this machine's byte order.
    pub const fn from_ne_bytes(b: [u8; 8]) -> Insn {
        Insn {
            code: b[0],
            regs: b[1],
            off: i16::from_ne_bytes([b[2], b[3]]),
            imm: i32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        }
    }

    /// Encodes into eight bytes in this machine's byte order.
    pub const fn to_ne_bytes(self) -> [u8; 8] {
        let off = self.off.to_ne_bytes();
        let imm = self.imm.to_ne_bytes();
        [
            self.code, self.regs, off[0], off[1], imm[0], imm[1], imm[2], imm[3],
        ]
    }

    /// Destination register.
    pub const fn dst(&self) -> u8 {
        if cfg!(target_endian = "little") {
            self.regs & 15
        } else {
            self.regs >> 4
        }
    }

    /// Source register, or the [`pseudo`] kind of a load or call.
    pub const fn src(&self) -> u8 {
        if cfg!(target_endian = "little") {
            self.regs >> 4
        } else {
            self.regs & 15
        }
    }

    /// Sets the destination register.
    pub const fn set_dst(&mut self, dst: u8) {
        self.regs = pack(dst, self.src());
    }

    /// Sets the source register or pseudo kind.
    pub const fn set_src(&mut self, src: u8) {
        self.regs = pack(self.dst(), src);
    }

    /// Instruction class.
    pub const fn class(&self) -> u8 {
        self.code & 7
    }

    /// First word of a two-word `ld_imm64`.
    pub const fn is_ld_imm64(&self) -> bool {
        self.code == LD_IMM64
    }

    /// Call of a subprogram of the same object.
    pub const fn is_pseudo_call(&self) -> bool {
        self.code == CALL && self.src() == pseudo::CALL
    }

    /// Call of a helper by number.
    pub const fn is_helper_call(&self) -> bool {
        self.code == CALL && self.src() == 0
    }

    /// `dst = imm` in 64 bits.
    pub const fn mov64_imm(dst: u8, imm: i32) -> Insn {
        Insn::new(class::ALU64 | alu::MOV | SRC_K, dst, 0, 0, imm)
    }

    /// `dst = src` in 64 bits.
    pub const fn mov64_reg(dst: u8, src: u8) -> Insn {
        Insn::new(class::ALU64 | alu::MOV | SRC_X, dst, src, 0, 0)
    }

    /// The two words of `dst = value`.
    pub const fn ld_imm64(dst: u8, src: u8, value: u64) -> [Insn; 2] {
        [
            Insn::new(LD_IMM64, dst, src, 0, value as u32 as i32),
            Insn::new(0, 0, 0, 0, (value >> 32) as u32 as i32),
        ]
    }

    /// `dst op= imm` in 64 bits; `op` is of [`alu`].
    pub const fn alu64_imm(op: u8, dst: u8, imm: i32) -> Insn {
        Insn::new(class::ALU64 | op | SRC_K, dst, 0, 0, imm)
    }

    /// `dst op= src` in 64 bits; `op` is of [`alu`].
    pub const fn alu64_reg(op: u8, dst: u8, src: u8) -> Insn {
        Insn::new(class::ALU64 | op | SRC_X, dst, src, 0, 0)
    }

    /// `dst = *(width *)(src + off)`; `width` is of [`size`].
    pub const fn load(width: u8, dst: u8, src: u8, off: i16) -> Insn {
        Insn::new(class::LDX | mode::MEM | width, dst, src, off, 0)
    }

    /// `*(width *)(dst + off) = src`; `width` is of [`size`].
    pub const fn store_reg(width: u8, dst: u8, src: u8, off: i16) -> Insn {
        Insn::new(class::STX | mode::MEM | width, dst, src, off, 0)
    }

    /// `*(width *)(dst + off) = imm`; `width` is of [`size`].
    pub const fn store_imm(width: u8, dst: u8, off: i16, imm: i32) -> Insn {
        Insn::new(class::ST | mode::MEM | width, dst, 0, off, imm)
    }

    /// `lock *(width *)(dst + off) += src`; `width` is `W` or `DW` of [`size`].
    pub const fn atomic_add(width: u8, dst: u8, src: u8, off: i16) -> Insn {
        let add = alu::ADD as i32;
        Insn::new(class::STX | mode::ATOMIC | width, dst, src, off, add)
    }

    /// Jump over `off` instruction words.
    pub const fn jump(off: i16) -> Insn {
        Insn::new(JA, 0, 0, off, 0)
    }

    /// Jump over `off` instruction words if `dst op imm` holds, in 64 bits;
    /// `op` is of [`jmp`].
    pub const fn jump_imm(op: u8, dst: u8, imm: i32, off: i16) -> Insn {
        Insn::new(class::JMP | op | SRC_K, dst, 0, off, imm)
    }

    /// Jump over `off` instruction words if `dst op src` holds, in 64 bits;
    /// `op` is of [`jmp`].
    pub const fn jump_reg(op: u8, dst: u8, src: u8, off: i16) -> Insn {
        Insn::new(class::JMP | op | SRC_X, dst, src, off, 0)
    }

    /// Call of helper `id`.
    pub const fn call(id: i32) -> Insn {
        Insn::new(CALL, 0, 0, 0, id)
    }

    /// `exit`.
    pub const fn exit() -> Insn {
        Insn::new(EXIT, 0, 0, 0, 0)
    }
}

const fn pack(dst: u8, src: u8) -> u8 {
    if cfg!(target_endian = "little") {
        (src << 4) | (dst & 15)
    } else {
        (dst << 4) | (src & 15)
    }
}

impl std::fmt::Debug for Insn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:02x} dst=r{} src=r{} off={} imm={:#x}",
            self.code,
            self.dst(),
            self.src(),
            self.off,
            self.imm
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_encodings() {
        assert_eq!(Insn::exit().to_ne_bytes()[0], 0x95);
        assert_eq!(Insn::mov64_imm(0, 1).code, 0xb7);
        assert_eq!(LD_IMM64, 0x18);
        assert_eq!(CALL, 0x85);
        let insn = Insn::new(0x7b, 10, 1, -8, 0);
        assert_eq!((insn.dst(), insn.src(), insn.off), (10, 1, -8));
        assert_eq!(Insn::from_ne_bytes(insn.to_ne_bytes()), insn);
        // As clang assembles `r1 = *(u32 *)(r2 + 8)` and so on.
        let bytes = |insn: Insn| {
            let b = insn.to_ne_bytes();
            (b[0], insn.dst(), insn.src(), insn.off, insn.imm)
        };
        assert_eq!(bytes(Insn::load(size::W, 1, 2, 8)), (0x61, 1, 2, 8, 0));
        assert_eq!(
            bytes(Insn::store_reg(size::DW, 10, 1, -8)),
            (0x7b, 10, 1, -8, 0)
        );
        assert_eq!(
            bytes(Insn::store_imm(size::B, 10, -1, 7)),
            (0x72, 10, 0, -1, 7)
        );
        assert_eq!(
            bytes(Insn::atomic_add(size::DW, 1, 2, 16)),
            (0xdb, 1, 2, 16, 0)
        );
        assert_eq!(bytes(Insn::alu64_imm(alu::ADD, 3, -1)), (0x07, 3, 0, 0, -1));
        assert_eq!(bytes(Insn::alu64_reg(alu::XOR, 3, 4)), (0xaf, 3, 4, 0, 0));
        assert_eq!(bytes(Insn::jump(-3)), (0x05, 0, 0, -3, 0));
        assert_eq!(bytes(Insn::jump_imm(jmp::JNE, 1, 9, 2)), (0x55, 1, 0, 2, 9));
        assert_eq!(bytes(Insn::jump_reg(jmp::JLT, 1, 2, 2)), (0xad, 1, 2, 2, 0));
        let [lo, hi] = Insn::ld_imm64(3, 0, 0xdead_beef_0000_0001);
        assert_eq!((lo.imm, hi.imm as u32), (1, 0xdead_beef));
    }
}
