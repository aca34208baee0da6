//! What relocations ask, what they come to, and why they come to nothing.

use std::fmt;

use crate::btf::TypeId;

/// `enum bpf_core_relo_kind`: what a relocation asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ReloKind(pub u32);

impl ReloKind {
    /// Byte offset of a field.
    pub const FIELD_BYTE_OFFSET: ReloKind = ReloKind(0);
    /// Size of a field in bytes.
    pub const FIELD_BYTE_SIZE: ReloKind = ReloKind(1);
    /// Whether a field exists.
    pub const FIELD_EXISTS: ReloKind = ReloKind(2);
    /// Whether a field is signed.
    pub const FIELD_SIGNED: ReloKind = ReloKind(3);
    /// Left shift that brings a bitfield to the top of 64 bits.
    pub const FIELD_LSHIFT_U64: ReloKind = ReloKind(4);
    /// Right shift that brings it down from there.
    pub const FIELD_RSHIFT_U64: ReloKind = ReloKind(5);
    /// Type id in the object's BTF.
    pub const TYPE_ID_LOCAL: ReloKind = ReloKind(6);
    /// Type id in the kernel's BTF.
    pub const TYPE_ID_TARGET: ReloKind = ReloKind(7);
    /// Whether a type exists.
    pub const TYPE_EXISTS: ReloKind = ReloKind(8);
    /// Size of a type in bytes.
    pub const TYPE_SIZE: ReloKind = ReloKind(9);
    /// Whether an enumerator exists.
    pub const ENUMVAL_EXISTS: ReloKind = ReloKind(10);
    /// Value of an enumerator.
    pub const ENUMVAL_VALUE: ReloKind = ReloKind(11);
    /// Whether a type exists that is laid out alike.
    pub const TYPE_MATCHES: ReloKind = ReloKind(12);

    /// libbpf's name for it, or `"unknown"`.
    pub const fn name(self) -> &'static str {
        match self {
            ReloKind::FIELD_BYTE_OFFSET => "byte_off",
            ReloKind::FIELD_BYTE_SIZE => "byte_sz",
            ReloKind::FIELD_EXISTS => "field_exists",
            ReloKind::FIELD_SIGNED => "signed",
            ReloKind::FIELD_LSHIFT_U64 => "lshift_u64",
            ReloKind::FIELD_RSHIFT_U64 => "rshift_u64",
            ReloKind::TYPE_ID_LOCAL => "local_type_id",
            ReloKind::TYPE_ID_TARGET => "target_type_id",
            ReloKind::TYPE_EXISTS => "type_exists",
            ReloKind::TYPE_SIZE => "type_size",
            ReloKind::ENUMVAL_EXISTS => "enumval_exists",
            ReloKind::ENUMVAL_VALUE => "enumval_value",
            ReloKind::TYPE_MATCHES => "type_matches",
            _ => "unknown",
        }
    }

    pub(super) const fn is_field(self) -> bool {
        self.0 <= ReloKind::FIELD_RSHIFT_U64.0
    }

    pub(super) const fn is_type(self) -> bool {
        matches!(
            self,
            ReloKind::TYPE_ID_LOCAL
                | ReloKind::TYPE_ID_TARGET
                | ReloKind::TYPE_EXISTS
                | ReloKind::TYPE_SIZE
                | ReloKind::TYPE_MATCHES
        )
    }

    pub(super) const fn is_enumval(self) -> bool {
        matches!(self, ReloKind::ENUMVAL_EXISTS | ReloKind::ENUMVAL_VALUE)
    }
}

impl fmt::Display for ReloKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A relocation that makes no sense, has contradicting answers, or does not
/// fit its instruction.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("CO-RE relocation #{index} at instruction {insn}, {kind} of {spec}: {what}")]
pub struct CoreError {
    /// Number of the relocation, as the caller counts.
    pub index: u32,
    /// Instruction in its section.
    pub insn: u32,
    /// What was asked for.
    pub kind: ReloKind,
    /// Of what: `struct task_struct.signal.live`.
    pub spec: Box<str>,
    /// What is wrong.
    pub what: CoreProblem,
}

/// What is wrong with a relocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreProblem {
    /// A type of the object or the kernel is missing or refers to itself.
    #[error("missing or circular type")]
    BadType,
    /// The access string does not fit the object's type.
    #[error("access string does not fit the type")]
    BadAccess,
    /// A kind of relocation newer than this crate.
    #[error("unknown kind {0}")]
    UnknownKind(u32),
    /// The type it starts from has no name to look for.
    #[error("the type has no name")]
    Anonymous,
    /// More nesting than libbpf allows (64 steps, 32 types behind each other).
    #[error("nested too deeply")]
    TooDeep,
    /// More types to compare than any real kernel asks for.
    #[error("too complex")]
    TooComplex,
    /// The size of a type that has none is needed.
    #[error("a type has no size")]
    Unsized,
    /// A bitfield that no load of 64 bits covers.
    #[error("the bitfield crosses 64-bit words")]
    Bitfield,
    /// A question about fields, asked of an array element.
    #[error("does not apply to array elements")]
    ArrayElement,
    /// Types of the kernel disagree where the field lies.
    #[error("ambiguous: at bit {0} or bit {1}")]
    AmbiguousOffset(u64, u64),
    /// Types of the kernel disagree about the answer.
    #[error("ambiguous: {0} or {1}")]
    AmbiguousValue(u64, u64),
    /// The instruction does not hold what the object's types say it should.
    #[error("the instruction holds {found}, not {expected}")]
    UnexpectedValue {
        /// Computed from the object's types.
        expected: u64,
        /// In the instruction.
        found: u64,
    },
    /// An instruction with this opcode cannot be relocated, or not in this
    /// form.
    #[error("instruction {0:#04x} cannot be relocated")]
    Instruction(u8),
    /// The answer does not fit the instruction.
    #[error("{0} does not fit the instruction")]
    Range(u64),
    /// The instruction's width is not that of the object's field, or the
    /// kernel's field has a width no instruction has.
    #[error("access of {insn} bytes to a field of {field} bytes that now has {target}")]
    AccessSize {
        /// Width of the instruction.
        insn: u32,
        /// Width of the object's field.
        field: u32,
        /// Width of the kernel's field.
        target: u32,
    },
}

/// Why a relocation has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoisonReason {
    /// The kernel has no type of that name and kind.
    #[error("this kernel has no such type")]
    NoType,
    /// It has, but without the field or enumerator.
    #[error("this kernel's type has no such field or value")]
    NoMatch,
    /// The field changed its size and is not an unsigned integer or pointer
    /// in both, so a load or store of it would go wrong.
    #[error("the field has another size in this kernel and is signed or not an integer")]
    SizeChanged,
}

/// A poisoned instruction: what was looked for, and why it was not found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Poison {
    /// Number of the relocation, as the caller counts; added to [`POISON`](super::POISON).
    pub index: u32,
    /// Position of the instruction in what was patched.
    pub insn: usize,
    /// What was asked for.
    pub kind: ReloKind,
    /// Of what: `struct task_struct.signal.live`.
    pub spec: Box<str>,
    /// Why there is no answer.
    pub reason: PoisonReason,
}

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}: {}", self.kind, self.spec, self.reason)
    }
}

/// The answer to one relocation.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not the states of one thing"
)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resolution {
    /// Value according to the object's types: what the instruction holds.
    pub old: u64,
    /// Value according to the kernel's types.
    pub new: u64,
    /// Whether the instruction must hold `old` before it is patched.
    pub validate: bool,
    /// There is no answer, and the instruction must not run.
    pub poison: Option<PoisonReason>,
    /// A load or store of the field must be poisoned, since its width changed
    /// in a way that loses its value.
    pub resize_fails: bool,
    /// Width of the object's field in bytes; 0 if it does not matter.
    pub old_size: u32,
    /// Width of the kernel's field in bytes; 0 if it does not matter.
    pub new_size: u32,
    /// `old` is the value of a 32-bit enumeration, whose compilers differ in
    /// how they extend it.
    pub(crate) old_is_enum32: bool,
    /// `new` is.
    pub(crate) new_is_enum32: bool,
    /// Number of the target (0 is the first one added) and type in it that
    /// gave the answer.
    pub target: Option<(usize, TypeId)>,
}
