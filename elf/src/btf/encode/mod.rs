//! Writing BTF: from scratch, and as an edited copy of an object's.
//!
//! Compilers leave gaps that only the linked object can fill (sizes and
//! offsets of data sections), and older kernels refuse kinds they do not know.
//! [`BtfBuilder`] copies a blob, fills and rewrites it in place so that type
//! ids keep their numbers, and gives the bytes for `BPF_BTF_LOAD`.

mod merge;
mod sanitize;

pub use sanitize::{BtfFeatures, ObjectFacts, VarFact};

use crate::btf::parse::{BtfError, BtfProblem, HEADER_SIZE, MAGIC};
use crate::btf::types::{Kind, Linkage, SecVar, Type, TypeId};
use crate::btf::{Btf, TYPE_HEADER_SIZE, info_kind, info_vlen, utf8_prefix};
use crate::cursor::{c_str_at, name_at, u32_at};

/// What a word behind a type's header is.
enum Meaning {
    Name,
    Type,
    Number,
}

/// What word `nth` behind the header of a type of this kind is.
fn meaning(kind: Kind, nth: usize) -> Meaning {
    // Words per element, and which of them are a name and a type id.
    let (each, name_at, type_at) = match kind {
        Kind::STRUCT | Kind::UNION => (3, Some(0), Some(1)),
        Kind::FUNC_PROTO => (2, Some(0), Some(1)),
        Kind::ENUM => (2, Some(0), None),
        Kind::ENUM64 => (3, Some(0), None),
        Kind::DATASEC => (3, None, Some(0)),
        _ => (1, None, None),
    };
    let place = Some(nth % each);
    if place == name_at {
        Meaning::Name
    } else if place == type_at || kind == Kind::ARRAY && nth < 2 {
        Meaning::Type
    } else {
        Meaning::Number
    }
}

/// A member for [`BtfBuilder::add_struct`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewMember<'n> {
    /// Name; empty for an anonymous struct or union.
    pub name: &'n str,
    /// Type.
    pub type_id: TypeId,
    /// Offset in bits.
    pub bit_offset: u32,
    /// Width of a bitfield in bits; 0 for other members.
    pub bit_size: u8,
}

/// BTF under construction.
#[derive(Clone, Debug)]
pub struct BtfBuilder {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where each type begins in `types`.
    offsets: Vec<u32>,
    /// Offsets of the strings added here, sorted by string.
    added: Vec<u32>,
    first_id: TypeId,
    first_str: u32,
    /// Something did not fit; reported when the bytes are asked for.
    overflow: bool,
}

impl BtfBuilder {
    /// Without any type.
    pub fn new() -> BtfBuilder {
        BtfBuilder {
            types: Vec::new(),
            strings: vec![0],
            offsets: Vec::new(),
            added: Vec::new(),
            first_id: 1,
            first_str: 0,
            overflow: false,
        }
    }

    /// A split BTF on top of `base`, without any type of its own.
    pub fn on(base: &Btf<'_>) -> BtfBuilder {
        BtfBuilder {
            strings: Vec::new(),
            first_id: base.end_id(),
            first_str: base
                .first_string_offset()
                .saturating_add(base.raw_strings().len() as u32),
            ..BtfBuilder::new()
        }
    }

    /// A copy of `btf` (of its own part, if it is split).
    pub fn copy_of(btf: &Btf<'_>) -> BtfBuilder {
        let mut offsets = Vec::with_capacity((btf.end_id() - btf.first_id()) as usize);
        let mut offset = 0;
        for (_, ty) in btf.types() {
            offsets.push(offset);
            offset += (TYPE_HEADER_SIZE + ty.data.len()) as u32;
        }
        BtfBuilder {
            types: btf.raw_types().to_vec(),
            strings: btf.raw_strings().to_vec(),
            offsets,
            added: Vec::new(),
            first_id: btf.first_id(),
            first_str: btf.first_string_offset(),
            overflow: false,
        }
    }

    /// The finished blob: header, types, strings.
    ///
    /// # Errors
    /// [`BtfProblem::Edit`] if something added does not fit the format: more
    /// than 2^24 elements in a type, or more than 4 GiB.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BtfError> {
        let len = HEADER_SIZE + self.types.len() + self.strings.len();
        if self.overflow || u32::try_from(len).is_err() {
            return Err(BtfError::new(BtfProblem::Edit, len, 0));
        }
        let types_len = self.types.len() as u32;
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&MAGIC.to_ne_bytes());
        bytes.extend_from_slice(&[1, 0]);
        for word in [
            HEADER_SIZE as u32,
            0,
            types_len,
            types_len,
            self.strings.len() as u32,
        ] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        Ok(bytes)
    }

    /// One more than the last id.
    pub fn end_id(&self) -> TypeId {
        self.first_id.saturating_add(self.offsets.len() as u32)
    }

    /// Adds a string, unless it was added before, and returns its offset.
    pub fn add_string(&mut self, text: &[u8]) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let strings = &self.strings;
        let found = self
            .added
            .binary_search_by(|&at| c_str_at(strings, at as usize).unwrap_or_default().cmp(text));
        let at = match found {
            Ok(i) => self.added.get(i).copied().unwrap_or_default(),
            Err(i) => {
                let at = self.strings.len() as u32;
                self.overflow |= text.contains(&0)
                    || u32::try_from(self.strings.len() + text.len() + 1).is_err();
                self.strings.extend_from_slice(text);
                self.strings.push(0);
                self.added.insert(i, at);
                at
            }
        };
        let offset = self.first_str.checked_add(at);
        self.overflow |= offset.is_none();
        offset.unwrap_or_default()
    }

    /// Adds a type from its parts: third header word and the words behind the
    /// header.
    pub(crate) fn add(
        &mut self,
        name: &str,
        kind: Kind,
        flag: bool,
        vlen: usize,
        payload: u32,
        data: &[u32],
    ) -> TypeId {
        let id = self.end_id();
        let name = self.add_string(name.as_bytes());
        self.overflow |= vlen > 0x00ff_ffff || u32::try_from(self.types.len()).is_err();
        let info = (flag as u32) << 31 | (kind.0 as u32) << 24 | vlen as u32 & 0x00ff_ffff;
        self.offsets.push(self.types.len() as u32);
        for word in [name, info, payload].iter().chain(data) {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
        id
    }

    /// Adds an `INT` of `size` bytes.
    pub fn add_int(&mut self, name: &str, size: u8, signed: bool) -> TypeId {
        let encoding = ((signed as u32) << 24) | (size as u32 * 8);
        self.add(name, Kind::INT, false, 0, size as u32, &[encoding])
    }

    /// Adds a `FLOAT` of `size` bytes.
    pub fn add_float(&mut self, name: &str, size: u8) -> TypeId {
        self.add(name, Kind::FLOAT, false, 0, size as u32, &[])
    }

    /// Adds a `PTR`.
    pub fn add_ptr(&mut self, to: TypeId) -> TypeId {
        self.add("", Kind::PTR, false, 0, to, &[])
    }

    /// Adds a `CONST`, `VOLATILE` or `RESTRICT`.
    pub fn add_modifier(&mut self, kind: Kind, of: TypeId) -> TypeId {
        self.add("", kind, false, 0, of, &[])
    }

    /// Adds a `TYPEDEF`.
    pub fn add_typedef(&mut self, name: &str, of: TypeId) -> TypeId {
        self.add(name, Kind::TYPEDEF, false, 0, of, &[])
    }

    /// Adds a `TYPE_TAG`.
    pub fn add_type_tag(&mut self, tag: &str, of: TypeId) -> TypeId {
        self.add(tag, Kind::TYPE_TAG, false, 0, of, &[])
    }

    /// Adds a `DECL_TAG` on a type, or on its member or parameter `component`
    /// if that is not -1.
    pub fn add_decl_tag(&mut self, tag: &str, on: TypeId, component: i32) -> TypeId {
        self.add(tag, Kind::DECL_TAG, false, 0, on, &[component as u32])
    }

    /// Adds a `FWD`.
    pub fn add_fwd(&mut self, name: &str, union: bool) -> TypeId {
        self.add(name, Kind::FWD, union, 0, 0, &[])
    }

    /// Adds an `ARRAY`.
    pub fn add_array(&mut self, element: TypeId, index: TypeId, len: u32) -> TypeId {
        self.add("", Kind::ARRAY, false, 0, 0, &[element, index, len])
    }

    /// Adds a `STRUCT` of `size` bytes.
    pub fn add_struct(&mut self, name: &str, size: u32, members: &[NewMember<'_>]) -> TypeId {
        self.add_composite(Kind::STRUCT, name, size, members)
    }

    /// Adds a `UNION` of `size` bytes.
    pub fn add_union(&mut self, name: &str, size: u32, members: &[NewMember<'_>]) -> TypeId {
        self.add_composite(Kind::UNION, name, size, members)
    }

    fn add_composite(
        &mut self,
        kind: Kind,
        name: &str,
        size: u32,
        members: &[NewMember<'_>],
    ) -> TypeId {
        let flag = members.iter().any(|member| member.bit_size != 0);
        let mut data = Vec::with_capacity(members.len() * 3);
        for member in members {
            let offset = if flag {
                self.overflow |= member.bit_offset > 0x00ff_ffff;
                (member.bit_size as u32) << 24 | member.bit_offset & 0x00ff_ffff
            } else {
                member.bit_offset
            };
            let name = self.add_string(member.name.as_bytes());
            data.extend_from_slice(&[name, member.type_id, offset]);
        }
        self.add(name, kind, flag, members.len(), size, &data)
    }

    /// Adds an `ENUM` of `size` bytes.
    pub fn add_enum(
        &mut self,
        name: &str,
        size: u32,
        signed: bool,
        values: &[(&str, i32)],
    ) -> TypeId {
        let mut data = Vec::with_capacity(values.len() * 2);
        for &(name, value) in values {
            data.extend_from_slice(&[self.add_string(name.as_bytes()), value as u32]);
        }
        self.add(name, Kind::ENUM, signed, values.len(), size, &data)
    }

    /// Adds an `ENUM64` of 8 bytes.
    pub fn add_enum64(&mut self, name: &str, signed: bool, values: &[(&str, u64)]) -> TypeId {
        let mut data = Vec::with_capacity(values.len() * 3);
        for &(name, value) in values {
            let name = self.add_string(name.as_bytes());
            data.extend_from_slice(&[name, value as u32, (value >> 32) as u32]);
        }
        self.add(name, Kind::ENUM64, signed, values.len(), 8, &data)
    }

    /// Adds a `FUNC_PROTO`.
    pub fn add_func_proto(&mut self, returns: TypeId, params: &[(&str, TypeId)]) -> TypeId {
        let mut data = Vec::with_capacity(params.len() * 2);
        for &(name, type_id) in params {
            data.extend_from_slice(&[self.add_string(name.as_bytes()), type_id]);
        }
        self.add("", Kind::FUNC_PROTO, false, params.len(), returns, &data)
    }

    /// Adds a `FUNC`.
    pub fn add_func(&mut self, name: &str, proto: TypeId, linkage: Linkage) -> TypeId {
        self.add(name, Kind::FUNC, false, linkage.0 as usize, proto, &[])
    }

    /// Adds a `VAR`.
    pub fn add_var(&mut self, name: &str, type_id: TypeId, linkage: Linkage) -> TypeId {
        self.add(name, Kind::VAR, false, 0, type_id, &[linkage.0])
    }

    /// Adds a `DATASEC` of `size` bytes.
    pub fn add_datasec(&mut self, name: &str, size: u32, vars: &[SecVar]) -> TypeId {
        let mut data = Vec::with_capacity(vars.len() * 3);
        for var in vars {
            data.extend_from_slice(&[var.type_id, var.offset, var.size]);
        }
        self.add(name, Kind::DATASEC, false, vars.len(), size, &data)
    }

    /// Adds a copy of a type of another BTF; `string` and `id` translate its
    /// references. The caller keeps ids in step.
    pub fn add_copy(
        &mut self,
        from: &Btf<'_>,
        ty: &Type<'_>,
        id: &mut dyn FnMut(TypeId) -> TypeId,
    ) -> TypeId {
        let new_id = self.end_id();
        let kind = ty.kind();
        let at = self.types.len();
        self.overflow |= u32::try_from(at).is_err();
        self.offsets.push(at as u32);
        let name = self.add_string(from.name_bytes(ty.name_off()));
        let payload = if kind.refers() {
            id(ty.payload)
        } else {
            ty.payload
        };
        for word in [name, ty.info, payload] {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
        let (words, rest) = ty.data.as_chunks::<4>();
        for (nth, word) in words.iter().enumerate() {
            let word = u32::from_ne_bytes(*word);
            let word = match meaning(kind, nth) {
                Meaning::Name => self.add_string(from.name_bytes(word)),
                Meaning::Type => id(word),
                Meaning::Number => word,
            };
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
        self.types.extend_from_slice(rest);
        new_id
    }

    // Editing. Positions are of words: 0 name, 1 info, 2 payload, 3.. data.

    fn offset(&self, id: TypeId) -> Option<usize> {
        let nth = id.checked_sub(self.first_id)?;
        Some(*self.offsets.get(nth as usize)? as usize)
    }

    fn word(&self, id: TypeId, position: usize) -> Option<u32> {
        u32_at(&self.types, self.offset(id)? + position * 4)
    }

    fn set_word(&mut self, id: TypeId, position: usize, value: u32) {
        let bytes = self
            .offset(id)
            .and_then(|at| self.types.get_mut(at + position * 4..))
            .and_then(<[u8]>::first_chunk_mut);
        match bytes {
            Some(bytes) => *bytes = value.to_ne_bytes(),
            None => self.overflow = true,
        }
    }

    fn set_info(&mut self, id: TypeId, kind: Kind, vlen: u32) {
        self.set_word(id, 1, (kind.0 as u32) << 24 | vlen);
    }

    fn kind(&self, id: TypeId) -> Kind {
        self.word(id, 1).map_or(Kind::VOID, info_kind)
    }

    fn vlen(&self, id: TypeId) -> u32 {
        self.word(id, 1).map_or(0, info_vlen)
    }

    fn name_bytes(&self, id: TypeId) -> &[u8] {
        self.word(id, 0)
            .and_then(|at| at.checked_sub(self.first_str))
            .and_then(|at| name_at(&self.strings, at as usize))
            .unwrap_or_default()
    }

    /// Name of a type of this BTF; empty if it has none.
    pub fn name(&self, id: TypeId) -> &str {
        utf8_prefix(self.name_bytes(id))
    }

    /// The types of one kind.
    fn ids_of(&self, kind: Kind) -> Vec<TypeId> {
        (self.first_id..self.end_id())
            .filter(|&id| self.kind(id) == kind)
            .collect()
    }

    /// Changes the linkage of a `VAR` or `FUNC`; other kinds stay as they are.
    ///
    /// A global function is verified by itself, for any arguments; made static
    /// it is verified for its callers only.
    pub fn set_linkage(&mut self, id: TypeId, linkage: Linkage) {
        match self.kind(id) {
            Kind::FUNC => self.set_info(id, Kind::FUNC, linkage.0),
            Kind::VAR => self.set_word(id, 3, linkage.0),
            _ => {}
        }
    }
}

impl Default for BtfBuilder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
