//! The type model: kinds, and a view of one type's record and trailing data.

use std::fmt;

use crate::cursor::{u32_at, words_at};

/// Number of a type inside a BTF; 0 is `void`.
pub type TypeId = u32;

/// Size in bytes of the header every type record starts with.
pub(crate) const TYPE_HEADER_SIZE: usize = 12;

/// `BTF_KIND_*`: what a type is.
///
/// A newtype, because kernels newer than this crate may add kinds that can be
/// stepped over but not understood.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Kind(pub u8);

#[allow(missing_docs, reason = "the kernel's own names, linux/btf.h")]
impl Kind {
    /// Not a record: the meaning of type id 0.
    pub const VOID: Kind = Kind(0);
    pub const INT: Kind = Kind(1);
    pub const PTR: Kind = Kind(2);
    pub const ARRAY: Kind = Kind(3);
    pub const STRUCT: Kind = Kind(4);
    pub const UNION: Kind = Kind(5);
    pub const ENUM: Kind = Kind(6);
    pub const FWD: Kind = Kind(7);
    pub const TYPEDEF: Kind = Kind(8);
    pub const VOLATILE: Kind = Kind(9);
    pub const CONST: Kind = Kind(10);
    pub const RESTRICT: Kind = Kind(11);
    /// Linux 5.0.
    pub const FUNC: Kind = Kind(12);
    /// Linux 5.0.
    pub const FUNC_PROTO: Kind = Kind(13);
    /// Linux 5.2.
    pub const VAR: Kind = Kind(14);
    /// Linux 5.2.
    pub const DATASEC: Kind = Kind(15);
    /// Linux 5.13.
    pub const FLOAT: Kind = Kind(16);
    /// Linux 5.16.
    pub const DECL_TAG: Kind = Kind(17);
    /// Linux 5.17.
    pub const TYPE_TAG: Kind = Kind(18);
    /// Linux 6.0.
    pub const ENUM64: Kind = Kind(19);

    /// The largest kind known here.
    pub const MAX: Kind = Kind::ENUM64;

    /// The name bpftool prints, or `"unknown"`.
    pub const fn name(self) -> &'static str {
        const NAMES: [&str; 20] = [
            "void",
            "int",
            "ptr",
            "array",
            "struct",
            "union",
            "enum",
            "fwd",
            "typedef",
            "volatile",
            "const",
            "restrict",
            "func",
            "func_proto",
            "var",
            "datasec",
            "float",
            "decl_tag",
            "type_tag",
            "enum64",
        ];
        if self.0 < 20 {
            NAMES[self.0 as usize]
        } else {
            "unknown"
        }
    }

    /// `const`, `volatile`, `restrict` or a type tag.
    pub const fn is_modifier(self) -> bool {
        matches!(
            self,
            Kind::CONST | Kind::VOLATILE | Kind::RESTRICT | Kind::TYPE_TAG
        )
    }

    /// Struct or union.
    pub const fn is_composite(self) -> bool {
        matches!(self, Kind::STRUCT | Kind::UNION)
    }

    /// Enumeration of 32-bit or 64-bit values.
    pub const fn is_any_enum(self) -> bool {
        matches!(self, Kind::ENUM | Kind::ENUM64)
    }

    /// The third header word is another type's id rather than a size.
    pub(crate) const fn refers(self) -> bool {
        matches!(
            self,
            Kind::PTR
                | Kind::TYPEDEF
                | Kind::VOLATILE
                | Kind::CONST
                | Kind::RESTRICT
                | Kind::FUNC
                | Kind::FUNC_PROTO
                | Kind::VAR
                | Kind::DECL_TAG
                | Kind::TYPE_TAG
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({} {})", self.0, self.name())
    }
}

/// A set of kinds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KindSet(pub(crate) u32);

impl KindSet {
    /// No kind.
    pub const EMPTY: KindSet = KindSet(0);

    /// The set of the given kinds; unknown kinds are left out.
    pub const fn of(kinds: &[Kind]) -> KindSet {
        let mut bits = 0;
        let mut i = 0;
        while i < kinds.len() {
            bits |= KindSet::bit(kinds[i]);
            i += 1;
        }
        KindSet(bits)
    }

    /// Whether `kind` is in the set.
    #[inline]
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & KindSet::bit(kind) != 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: KindSet) -> KindSet {
        KindSet(self.0 | other.0)
    }

    /// Whether no kind is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[inline]
    const fn bit(kind: Kind) -> u32 {
        if kind.0 < 32 { 1 << kind.0 } else { 0 }
    }
}

/// Linkage of a variable or function. `BTF_VAR_*` and `BTF_FUNC_*` share
/// these numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct Linkage(pub u32);

impl Linkage {
    /// Local to its compilation unit.
    pub const STATIC: Linkage = Linkage(0);
    /// Defined here, visible everywhere.
    pub const GLOBAL: Linkage = Linkage(1);
    /// Defined elsewhere.
    pub const EXTERN: Linkage = Linkage(2);
}

/// Encoding of an integer type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IntEncoding {
    /// `BTF_INT_SIGNED`.
    pub signed: bool,
    /// `BTF_INT_CHAR`.
    pub char: bool,
    /// `BTF_INT_BOOL`.
    pub bool: bool,
    /// Bit offset; other than 0 only in bitfields of old compilers.
    pub bit_offset: u8,
    /// Width in bits.
    pub bits: u8,
}

/// An array's element type, index type and length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Array {
    /// Type of one element.
    pub element: TypeId,
    /// Type of the index.
    pub index: TypeId,
    /// Number of elements; 0 in a flexible array.
    pub len: u32,
}

/// A member of a struct or union.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Name; 0 for an embedded anonymous struct or union.
    pub name_off: u32,
    /// Type.
    pub type_id: TypeId,
    /// Offset from the start of the struct, in bits.
    pub bit_offset: u32,
    /// Width in bits if the struct says so; 0 if the member is no bitfield
    /// (or if an old compiler put the width into the integer type).
    pub bit_size: u8,
}

/// An enumerator of an `ENUM` or `ENUM64`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Enumerator {
    /// Name.
    pub name_off: u32,
    /// Value, sign-extended to 64 bits if the enumeration is signed.
    pub value: u64,
}

/// A parameter of a function prototype. A last parameter without name and
/// type stands for `...`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Param {
    /// Name, 0 if it has none.
    pub name_off: u32,
    /// Type.
    pub type_id: TypeId,
}

/// A variable's place in a data section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecVar {
    /// A `VAR` (or, for functions outside the object, a `FUNC`).
    pub type_id: TypeId,
    /// Byte offset in the section.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
}

/// One type: its header and the data behind it, borrowed.
///
/// The accessors answer `None` or nothing when asked for what the kind does
/// not have.
#[derive(Clone, Copy)]
pub struct Type<'a> {
    pub(crate) name_off: u32,
    pub(crate) info: u32,
    /// A size or another type, as the kind has it.
    pub(crate) payload: u32,
    pub(crate) data: &'a [u8],
}

impl<'a> Type<'a> {
    /// Type 0.
    pub const VOID: Type<'static> = Type {
        name_off: 0,
        info: 0,
        payload: 0,
        data: &[],
    };

    /// What the type is.
    #[inline]
    pub const fn kind(&self) -> Kind {
        info_kind(self.info)
    }

    /// Offset of its name in the string section; 0 if it has none.
    #[inline]
    pub const fn name_off(&self) -> u32 {
        self.name_off
    }

    /// Number of members, enumerators, parameters or section variables.
    #[inline]
    pub const fn vlen(&self) -> u32 {
        info_vlen(self.info)
    }

    /// `kind_flag`: bitfield encoding of structs, signedness of enumerations,
    /// "union" in forward declarations, "attribute" in tags.
    #[inline]
    pub const fn kind_flag(&self) -> bool {
        self.info >> 31 != 0
    }

    /// The size in bytes a struct, union, enumeration, integer, float or data
    /// section carries. [`super::Btf::size_of`] follows references too.
    pub const fn size(&self) -> Option<u32> {
        match self.kind() {
            Kind::INT
            | Kind::STRUCT
            | Kind::UNION
            | Kind::ENUM
            | Kind::ENUM64
            | Kind::FLOAT
            | Kind::DATASEC => Some(self.payload),
            _ => None,
        }
    }

    /// The type a pointer, typedef, modifier, function, variable or tag refers
    /// to, or what a prototype returns.
    pub const fn target(&self) -> Option<TypeId> {
        if self.kind().refers() {
            Some(self.payload)
        } else {
            None
        }
    }

    /// Encoding of an `INT`.
    pub fn int(&self) -> Option<IntEncoding> {
        if self.kind() != Kind::INT {
            return None;
        }
        let word = u32_at(self.data, 0)?;
        Some(IntEncoding {
            signed: word >> 24 & 1 != 0,
            char: word >> 24 & 2 != 0,
            bool: word >> 24 & 4 != 0,
            bit_offset: (word >> 16) as u8,
            bits: word as u8,
        })
    }

    /// Parts of an `ARRAY`.
    pub fn array(&self) -> Option<Array> {
        if self.kind() != Kind::ARRAY {
            return None;
        }
        let [element, index, len] = words_at(self.data, 0)?;
        Some(Array {
            element,
            index,
            len,
        })
    }

    /// Linkage of a `VAR` or `FUNC`.
    pub fn linkage(&self) -> Option<Linkage> {
        match self.kind() {
            Kind::FUNC => Some(Linkage(self.vlen())),
            Kind::VAR => u32_at(self.data, 0).map(Linkage),
            _ => None,
        }
    }

    /// The member or parameter a `DECL_TAG` belongs to; -1 if it belongs to
    /// the type itself.
    pub fn component_index(&self) -> Option<i32> {
        if self.kind() != Kind::DECL_TAG {
            return None;
        }
        u32_at(self.data, 0).map(|v| v as i32)
    }

    /// Member `index` of a struct or union.
    #[inline]
    pub fn member(&self, index: u32) -> Option<Member> {
        if !self.kind().is_composite() {
            return None;
        }
        let [name_off, type_id, offset] = words_at(self.data, index as usize * 12)?;
        let (bit_offset, bit_size) = if self.kind_flag() {
            (offset & 0x00ff_ffff, (offset >> 24) as u8)
        } else {
            (offset, 0)
        };
        Some(Member {
            name_off,
            type_id,
            bit_offset,
            bit_size,
        })
    }

    /// Members of a struct or union, in order.
    pub fn members(&self) -> impl Iterator<Item = Member> + use<'a> {
        let ty = *self;
        (0..).map_while(move |i| ty.member(i))
    }

    /// Enumerator `index` of an `ENUM` or `ENUM64`.
    pub fn enumerator(&self, index: u32) -> Option<Enumerator> {
        match self.kind() {
            Kind::ENUM => {
                let [name_off, value] = words_at(self.data, index as usize * 8)?;
                let value = if self.kind_flag() {
                    value as i32 as u64
                } else {
                    value as u64
                };
                Some(Enumerator { name_off, value })
            }
            Kind::ENUM64 => {
                let [name_off, lo, hi] = words_at(self.data, index as usize * 12)?;
                let value = (hi as u64) << 32 | lo as u64;
                Some(Enumerator { name_off, value })
            }
            _ => None,
        }
    }

    /// Enumerators of an `ENUM` or `ENUM64`, in order.
    pub fn enumerators(&self) -> impl Iterator<Item = Enumerator> + use<'a> {
        let ty = *self;
        (0..).map_while(move |i| ty.enumerator(i))
    }

    /// Parameter `index` of a `FUNC_PROTO`.
    pub fn param(&self, index: u32) -> Option<Param> {
        if self.kind() != Kind::FUNC_PROTO {
            return None;
        }
        let [name_off, type_id] = words_at(self.data, index as usize * 8)?;
        Some(Param { name_off, type_id })
    }

    /// Parameters of a `FUNC_PROTO`, in order.
    pub fn params(&self) -> impl Iterator<Item = Param> + use<'a> {
        let ty = *self;
        (0..).map_while(move |i| ty.param(i))
    }

    /// Entry `index` of a `DATASEC`.
    pub fn sec_var(&self, index: u32) -> Option<SecVar> {
        if self.kind() != Kind::DATASEC {
            return None;
        }
        let [type_id, offset, size] = words_at(self.data, index as usize * 12)?;
        Some(SecVar {
            type_id,
            offset,
            size,
        })
    }

    /// Entries of a `DATASEC`, in order.
    pub fn sec_vars(&self) -> impl Iterator<Item = SecVar> + use<'a> {
        let ty = *self;
        (0..).map_while(move |i| ty.sec_var(i))
    }
}

impl fmt::Debug for Type<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Type")
            .field("kind", &self.kind())
            .field("name_off", &self.name_off)
            .field("vlen", &self.vlen())
            .field("kind_flag", &self.kind_flag())
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}

/// Kind in a type's `info` word. Bits 29 and 30 belong to it since Linux 7.1
/// and were required to be zero before.
#[inline]
pub(crate) const fn info_kind(info: u32) -> Kind {
    Kind((info >> 24) as u8 & 0x7f)
}

/// Element count in a type's `info` word; 24 bits wide since Linux 7.1, 16
/// before with zeroes above.
#[inline]
pub(crate) const fn info_vlen(info: u32) -> u32 {
    info & 0x00ff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accessors_answer_only_their_kind() {
        let void = Type::VOID;
        assert_eq!(void.kind(), Kind::VOID);
        assert!(void.member(0).is_none() && void.param(0).is_none());
        assert!(void.size().is_none() && void.target().is_none());
        assert!(void.int().is_none() && void.array().is_none());
        assert_eq!(void.enumerators().count() + void.sec_vars().count(), 0);
        assert_eq!(Kind(77).name(), "unknown");
        assert_eq!(Kind::ENUM64.name(), "enum64");
    }

    #[test]
    fn enum_values_extend_by_sign() {
        let data = [[0_u32, u32::MAX].map(u32::to_ne_bytes)].concat().concat();
        let mut ty = Type {
            name_off: 0,
            info: 6 << 24 | 1,
            payload: 4,
            data: &data,
        };
        assert_eq!(ty.enumerator(0).map(|e| e.value), Some(u32::MAX as u64));
        ty.info |= 1 << 31;
        assert_eq!(ty.enumerator(0).map(|e| e.value), Some(u64::MAX));
        assert_eq!(ty.enumerator(1), None);
    }

    #[test]
    fn sets_hold_known_kinds() {
        let set = KindSet::of(&[Kind::STRUCT, Kind(90)]);
        assert!(
            set.contains(Kind::STRUCT) && !set.contains(Kind::UNION) && !set.contains(Kind(90))
        );
        assert!(KindSet::EMPTY.is_empty() && !set.is_empty());
    }
}
