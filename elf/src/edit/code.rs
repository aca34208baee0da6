//! Instructions one by one: what they refer to, and code to insert.

use ebpf_manager_sys::abi::insn::{CALL, Insn, SRC_X, class, jmp, pseudo};

use super::{PatchError, ProgramEditor};
use crate::link::FixupTarget;

/// One instruction of a program, of one or two words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Position of the first word.
    pub at: u32,
    /// The first word.
    pub insn: Insn,
    /// The second word's immediate, for a two-word load.
    pub high: Option<i32>,
    /// What it refers to.
    pub refers: Option<Reference>,
}

/// What an instruction refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// It jumps here.
    Jump(u32),
    /// It calls, or takes the address of, the function with this index in the
    /// linked program.
    Function(u32),
    /// It waits for a kernel fact.
    Symbol(FixupTarget),
}

impl Unit {
    /// Position after the instruction.
    pub fn end(&self) -> u32 {
        self.at + 1 + u32::from(self.high.is_some())
    }

    /// Number of the helper it calls.
    pub fn helper(&self) -> Option<i32> {
        (self.insn.is_helper_call() && self.refers.is_none()).then_some(self.insn.imm)
    }

    /// Index of the map it loads, or of which it takes a value's address.
    pub fn map(&self) -> Option<u32> {
        match self.refers {
            Some(Reference::Symbol(FixupTarget::Map(map) | FixupTarget::MapValue(map))) => {
                Some(map)
            }
            _ => None,
        }
    }
}

/// Instructions to insert.
///
/// Jumps within the code are relative as usual and may go to its end, which is
/// what follows it. What else it refers to is put in by the methods; a map of
/// the caller's own is loaded by its descriptor, with [`Insn::ld_imm64`] and
/// [`pseudo::MAP_FD`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code {
    pub(super) insns: Vec<Insn>,
    /// By instruction, in ascending order.
    pub(super) refs: Vec<(u32, Reference)>,
}

impl Code {
    /// No instructions yet.
    pub fn new() -> Code {
        Code::default()
    }

    /// Number of instruction words so far.
    pub fn len(&self) -> usize {
        self.insns.len()
    }

    /// True without instructions.
    pub fn is_empty(&self) -> bool {
        self.insns.is_empty()
    }

    /// Appends an instruction word.
    pub fn push(&mut self, insn: Insn) {
        self.insns.push(insn);
    }

    /// Appends `jump`, whatever its offset, as a jump to `target`, a position
    /// of the program as it is before the changes are applied.
    pub fn jump_to(&mut self, jump: Insn, target: u32) {
        self.refer(Reference::Jump(target), &[jump]);
    }

    /// Appends a call of a function of the linked program, by its index.
    pub fn call(&mut self, function: u32) {
        let call = Insn::new(CALL, 0, pseudo::CALL, 0, 0);
        self.refer(Reference::Function(function), &[call]);
    }

    /// Appends `dst = value` in 64 bits.
    pub fn load_constant(&mut self, dst: u8, value: u64) {
        self.insns.extend(Insn::ld_imm64(dst, 0, value));
    }

    /// Appends a load of the address of a function of the linked program, as
    /// callbacks need it. Requires at least Linux 5.13.
    pub fn load_function(&mut self, dst: u8, function: u32) {
        let load = Insn::ld_imm64(dst, pseudo::FUNC, 0);
        self.refer(Reference::Function(function), &load);
    }

    /// Appends a load of a map, by its index in
    /// [`Object::maps`](crate::Object::maps).
    pub fn load_map(&mut self, dst: u8, map: u32) {
        let load = Insn::ld_imm64(dst, pseudo::MAP_FD, 0);
        self.refer(Reference::Symbol(FixupTarget::Map(map)), &load);
    }

    /// Appends a load of the address of byte `offset` of the value of a map
    /// with one element. Requires at least Linux 5.2.
    pub fn load_map_value(&mut self, dst: u8, map: u32, offset: u32) {
        let load = Insn::ld_imm64(dst, pseudo::MAP_VALUE, u64::from(offset) << 32);
        self.refer(Reference::Symbol(FixupTarget::MapValue(map)), &load);
    }

    fn refer(&mut self, target: Reference, words: &[Insn]) {
        self.refs.push((self.insns.len() as u32, target));
        self.insns.extend_from_slice(words);
    }

    /// Whether it stands on its own in a program of this editor's.
    pub(super) fn check(&self, editor: &ProgramEditor<'_>) -> Result<(), PatchError> {
        let mut refs = self.refs.iter().peekable();
        for (index, insn) in (0..).zip(self.insns.iter().copied()) {
            let fault = Err(PatchError::Code { index });
            if insn.is_ld_imm64() && !is_second(&self.insns, index + 1) {
                return fault;
            }
            if let Some(&(_, target)) = refs.next_if(|r| r.0 == index) {
                if matches!(target, Reference::Jump(_))
                    && !matches!(jump_of(insn), Some(Jump::Offset | Jump::Immediate))
                {
                    return fault;
                }
                editor.check_reference(target)?;
                continue;
            }
            if function_reference(index, insn).is_some() {
                return fault;
            }
            if let Some(jump) = jump_of(insn) {
                let target = jump.target(index, insn);
                if target > self.insns.len() as u32 || is_second(&self.insns, target) {
                    return fault;
                }
            }
        }
        Ok(())
    }
}

impl<const N: usize> From<[Insn; N]> for Code {
    fn from(insns: [Insn; N]) -> Code {
        Code::from(insns.as_slice())
    }
}

impl From<&[Insn]> for Code {
    fn from(insns: &[Insn]) -> Code {
        Code {
            insns: insns.to_vec(),
            refs: Vec::new(),
        }
    }
}

impl From<Insn> for Code {
    fn from(insn: Insn) -> Code {
        Code::from([insn])
    }
}

/// Where a jump keeps its distance.
#[derive(Clone, Copy)]
pub(super) enum Jump {
    Offset,
    Immediate,
    /// `gotox`: nowhere.
    Register,
}

impl Jump {
    /// Where the jump at `at` goes; past every program for one that goes
    /// before the start.
    pub(super) fn target(self, at: u32, insn: Insn) -> u32 {
        let distance = match self {
            Jump::Offset => i32::from(insn.off),
            Jump::Immediate => insn.imm,
            Jump::Register => return u32::MAX,
        };
        at.wrapping_add(1).wrapping_add_signed(distance)
    }
}

pub(super) fn jump_of(insn: Insn) -> Option<Jump> {
    let class = insn.class();
    if !matches!(class, class::JMP | class::JMP32) {
        return None;
    }
    match insn.code & 0xf0 {
        jmp::CALL | jmp::EXIT => None,
        jmp::JA if insn.code & SRC_X != 0 => Some(Jump::Register),
        jmp::JA if class == class::JMP32 => Some(Jump::Immediate),
        _ => Some(Jump::Offset),
    }
}

/// The second word of a two-word load. It has the opcode 0, which stands for
/// nothing on its own.
pub(super) fn is_second(insns: &[Insn], at: u32) -> bool {
    let before = (at as usize).checked_sub(1).and_then(|at| insns.get(at..));
    matches!(before, Some([first, second, ..]) if first.is_ld_imm64() && second.code == 0)
}

/// Where the function starts that a word calls or takes the address of.
pub(super) fn function_reference(at: u32, insn: Insn) -> Option<u32> {
    let is_address = insn.is_ld_imm64() && insn.src() == pseudo::FUNC;
    (is_address || insn.is_pseudo_call()).then(|| at.wrapping_add(1).wrapping_add_signed(insn.imm))
}
