//! BTF: the type information of kernels, modules and object files.
//!
//! [`Btf`] reads a blob in place. It keeps the offset of every sixteenth type
//! and walks from there, so a kernel's 130 thousand types cost 32 KiB; types
//! are decoded when asked for. [`NameQuery`] collects every name a caller will
//! need, so that one walk over the kernel answers all of them. [`ext`] reads
//! what `.BTF.ext` adds, [`encode`] writes and edits.
//!
//! Only this machine's byte order is read.

pub mod encode;
pub mod ext;
mod find;
mod parse;
mod types;

use std::borrow::Cow;
use std::ops::ControlFlow;

pub use find::{NameHit, NameQuery, essential_name};
pub use parse::{BtfError, BtfIndex, BtfProblem};
pub use types::{
    Array, Enumerator, IntEncoding, Kind, KindSet, Linkage, Member, Param, SecVar, Type, TypeId,
};

use crate::cursor::{name_at, words_at};
use parse::INDEX_SHIFT;
pub(crate) use types::{TYPE_HEADER_SIZE, info_kind, info_vlen};

/// References followed before a chain of typedefs and modifiers counts as a
/// cycle.
const MAX_CHAIN: u32 = 64;

/// Nested types entered before alignment is given up, as in libbpf.
const MAX_DEPTH: u32 = 32;

/// A BTF blob, borrowed and checked.
///
/// A *split* BTF (a kernel module's, or an object's on top of a kernel)
/// continues the type ids and string offsets of its base; lookups by id and
/// offset reach into the base, walks cover the split part only.
///
/// ```
/// use ebpf_manager_elf::btf::{Btf, BtfError, Kind};
///
/// fn members(blob: &[u8], name: &str) -> Result<Vec<String>, BtfError> {
///     let btf = Btf::parse(blob)?;
///     let id = btf.find_by_name_kind(name, Kind::STRUCT);
///     let members = id.and_then(|id| btf.get(id)).into_iter().flat_map(|ty| ty.members());
///     Ok(members.map(|m| btf.name(m.name_off).to_owned()).collect())
/// }
///
/// # use ebpf_manager_elf::btf::encode::{BtfBuilder, NewMember};
/// # let mut b = BtfBuilder::new();
/// # let int = b.add_int("int", 4, true);
/// # b.add_struct("task", 4, &[NewMember { name: "pid", type_id: int, bit_offset: 0, bit_size: 0 }]);
/// assert_eq!(members(&b.to_bytes()?, "task")?, ["pid"]);
/// # Ok::<(), BtfError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Btf<'a> {
    raw: &'a [u8],
    types: &'a [u8],
    strings: &'a [u8],
    /// Sizes of kinds this crate does not know, if the blob tells (Linux 7.1).
    layout: &'a [u8],
    base: Option<&'a Btf<'a>>,
    first_id: TypeId,
    end_id: TypeId,
    first_str: u32,
    pointer_size: u8,
    index: Cow<'a, [u32]>,
}

impl<'a> Btf<'a> {
    /// Reads and checks a whole blob: sections inside the blob, every record
    /// inside its section, every name inside the strings and terminated, every
    /// type id in range. One pass, for blobs from anywhere.
    pub fn parse(bytes: &'a [u8]) -> Result<Btf<'a>, BtfError> {
        parse::parse(bytes, None, true, None)
    }

    /// Like [`Btf::parse`] for a split BTF on top of `base`.
    pub fn parse_split(bytes: &'a [u8], base: &'a Btf<'a>) -> Result<Btf<'a>, BtfError> {
        parse::parse(bytes, Some(base), true, None)
    }

    /// Reads a blob that comes from the kernel: record sizes are checked, the
    /// names and ids in them only when used. Wrong contents give wrong or
    /// missing answers, never a panic.
    pub fn parse_trusted(bytes: &'a [u8], base: Option<&'a Btf<'a>>) -> Result<Btf<'a>, BtfError> {
        parse::parse(bytes, base, false, None)
    }

    /// [`Btf::parse_trusted`] and [`Btf::find_all`] in a single walk: the
    /// cheapest way to open the kernel's BTF for a known set of names.
    pub fn scan(
        bytes: &'a [u8],
        base: Option<&'a Btf<'a>>,
        query: &NameQuery<'_>,
        hits: &mut Vec<NameHit>,
    ) -> Result<Btf<'a>, BtfError> {
        parse::parse(bytes, base, false, Some((query, hits)))
    }

    /// Opens a blob whose index was kept from an earlier parse of the same
    /// bytes, without a walk.
    ///
    /// # Errors
    /// If the header is bad or the index was not made from as many bytes.
    pub fn with_index(
        bytes: &'a [u8],
        base: Option<&'a Btf<'a>>,
        index: &'a BtfIndex,
    ) -> Result<Btf<'a>, BtfError> {
        parse::with_index(bytes, base, index)
    }

    /// The index, to keep next to the bytes when the borrow has to end.
    pub fn into_index(self) -> BtfIndex {
        BtfIndex::new(
            self.index.into_owned(),
            self.end_id - self.first_id,
            self.raw.len(),
        )
    }

    /// Sets the size of a pointer in bytes, 8 unless told. Kernels of 32-bit
    /// machines have 4.
    #[must_use]
    pub fn with_pointer_size(mut self, bytes: u8) -> Btf<'a> {
        self.pointer_size = bytes;
        self
    }

    /// Size of a pointer in bytes.
    pub fn pointer_size(&self) -> u8 {
        self.pointer_size
    }

    /// The whole blob.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The type section.
    pub fn raw_types(&self) -> &'a [u8] {
        self.types
    }

    /// The string section.
    pub fn raw_strings(&self) -> &'a [u8] {
        self.strings
    }

    /// What a split BTF stands on.
    pub fn base(&self) -> Option<&'a Btf<'a>> {
        self.base
    }

    /// First id that belongs to this blob: 1, or the base's [`Btf::end_id`].
    pub fn first_id(&self) -> TypeId {
        self.first_id
    }

    /// One more than the last id.
    pub fn end_id(&self) -> TypeId {
        self.end_id
    }

    /// Offset of this blob's first string: 0, or where the base's strings end.
    pub fn first_string_offset(&self) -> u32 {
        self.first_str
    }

    /// Type `id`; `void` for 0, `None` if there is none.
    pub fn get(&self, id: TypeId) -> Option<Type<'a>> {
        let mut btf = self;
        while id < btf.first_id {
            match btf.base {
                Some(base) => btf = base,
                None => return if id == 0 { Some(Type::VOID) } else { None },
            }
        }
        if id >= btf.end_id {
            return None;
        }
        let nth = id - btf.first_id;
        let mut offset = *btf.index.get((nth >> INDEX_SHIFT) as usize)? as usize;
        for _ in 0..nth & ((1 << INDEX_SHIFT) - 1) {
            offset = btf.type_at(offset)?.1;
        }
        Some(btf.type_at(offset)?.0)
    }

    /// The type at a byte offset of the type section, and the offset behind it.
    #[inline]
    fn type_at(&self, offset: usize) -> Option<(Type<'a>, usize)> {
        let [name_off, info, payload] = words_at(self.types, offset)?;
        let len = parse::data_len(info, self.layout)?;
        let start = offset + TYPE_HEADER_SIZE;
        let end = start.checked_add(len)?;
        let data = self.types.get(start..end)?;
        Some((
            Type {
                name_off,
                info,
                payload,
                data,
            },
            end,
        ))
    }

    /// This blob's own types with their ids, in order.
    pub fn types(&self) -> Types<'_, 'a> {
        Types {
            btf: self,
            id: self.first_id,
            offset: 0,
        }
    }

    /// Calls `f` for each of this blob's own types until it breaks.
    pub fn for_each_type<B>(
        &self,
        mut f: impl FnMut(TypeId, Type<'a>) -> ControlFlow<B>,
    ) -> Option<B> {
        for (id, ty) in self.types() {
            if let ControlFlow::Break(value) = f(id, ty) {
                return Some(value);
            }
        }
        None
    }

    /// The strings from `offset` on; empty if it is outside.
    #[inline]
    pub(crate) fn strings_from(&self, offset: u32) -> &'a [u8] {
        let mut btf = self;
        while offset < btf.first_str {
            match btf.base {
                Some(base) => btf = base,
                None => return &[],
            }
        }
        btf.strings
            .get((offset - btf.first_str) as usize..)
            .unwrap_or_default()
    }

    /// The string at `offset` as bytes, of which names have at most 511; empty
    /// if there is none, cut off after 4096.
    pub fn name_bytes(&self, offset: u32) -> &'a [u8] {
        name_at(self.strings_from(offset), 0).unwrap_or_default()
    }

    /// The string at `offset`, up to the first byte that is not UTF-8; empty
    /// if there is none, cut off after 4096 bytes.
    pub fn name(&self, offset: u32) -> &'a str {
        utf8_prefix(self.name_bytes(offset))
    }

    /// Name of type `id`; empty if it has none.
    pub fn type_name(&self, id: TypeId) -> &'a str {
        self.get(id).map_or("", |ty| self.name(ty.name_off))
    }

    /// Whether the string at `offset` is `name`, without looking for its end.
    #[inline]
    pub fn name_is(&self, offset: u32, name: &[u8]) -> bool {
        self.strings_from(offset)
            .strip_prefix(name)
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Whether `offset` lies in the strings of this BTF or its base.
    pub fn has_string(&self, offset: u32) -> bool {
        (offset as usize) < self.first_str as usize + self.strings.len()
    }

    /// The first type of that kind and exact name, in the base first. Walks
    /// all types: for more than one name use [`Btf::find_all`].
    pub fn find_by_name_kind(&self, name: &str, kind: Kind) -> Option<TypeId> {
        if let Some(id) = self
            .base
            .and_then(|base| base.find_by_name_kind(name, kind))
        {
            return Some(id);
        }
        let mut query = NameQuery::new();
        query.add(name.as_bytes(), KindSet::of(&[kind]));
        query.finish();
        let mut hits = Vec::new();
        parse::walk(self, None, Some((&query, &mut hits))).ok()?;
        hits.first().map(|hit| hit.id)
    }

    /// Adds every own type that `query` asks for to `hits`, in order of id.
    /// One walk, whatever the number of names.
    pub fn find_all(&self, query: &NameQuery<'_>, hits: &mut Vec<NameHit>) {
        // A blob that was walked once can be walked again.
        let _ = parse::walk(self, None, Some((query, hits)));
    }

    /// The type behind typedefs, `const`, `volatile`, `restrict` and type
    /// tags. `None` for a missing type or a cycle.
    pub fn skip_modifiers_and_typedefs(&self, id: TypeId) -> Option<(TypeId, Type<'a>)> {
        self.skip(id, true, &mut 0)
    }

    /// The same, counting the types that were looked at.
    pub(crate) fn skip_counting(
        &self,
        id: TypeId,
        looked_at: &mut u32,
    ) -> Option<(TypeId, Type<'a>)> {
        self.skip(id, true, looked_at)
    }

    /// The type behind `const`, `volatile`, `restrict` and type tags.
    pub fn skip_modifiers(&self, id: TypeId) -> Option<(TypeId, Type<'a>)> {
        self.skip(id, false, &mut 0)
    }

    fn skip(
        &self,
        mut id: TypeId,
        typedefs: bool,
        looked_at: &mut u32,
    ) -> Option<(TypeId, Type<'a>)> {
        for _ in 0..MAX_CHAIN {
            *looked_at += 1;
            let ty = self.get(id)?;
            let kind = ty.kind();
            if !(kind.is_modifier() || typedefs && kind == Kind::TYPEDEF) {
                return Some((id, ty));
            }
            id = ty.payload;
        }
        None
    }

    /// Size of type `id` in bytes, through typedefs, modifiers, arrays,
    /// variables and tags. `None` for what has no size (`void`, functions,
    /// forward declarations), cycles, and sizes beyond 32 bits.
    pub fn size_of(&self, id: TypeId) -> Option<u32> {
        self.size_counting(id, &mut 0)
    }

    /// The same, counting the types that were looked at.
    pub(crate) fn size_counting(&self, mut id: TypeId, looked_at: &mut u32) -> Option<u32> {
        let mut count: u32 = 1;
        for _ in 0..MAX_CHAIN {
            *looked_at += 1;
            let ty = self.get(id)?;
            let size = match ty.kind() {
                Kind::PTR => self.pointer_size as u32,
                Kind::ARRAY => {
                    let array = ty.array()?;
                    count = count.checked_mul(array.len)?;
                    id = array.element;
                    continue;
                }
                Kind::TYPEDEF
                | Kind::CONST
                | Kind::VOLATILE
                | Kind::RESTRICT
                | Kind::TYPE_TAG
                | Kind::DECL_TAG
                | Kind::VAR => {
                    id = ty.payload;
                    continue;
                }
                _ => ty.size()?,
            };
            return count.checked_mul(size);
        }
        None
    }

    /// Alignment of type `id` in bytes as a C compiler chooses it; 1 for a
    /// packed struct. `None` for what has no alignment, or nests too deeply.
    pub fn align_of(&self, id: TypeId) -> Option<u32> {
        // One budget for the whole type: nesting alone does not bound the
        // work when a hostile blob shares members.
        let mut budget = 1 << 16;
        self.align_at(id, MAX_DEPTH, &mut budget)
    }

    fn align_at(&self, id: TypeId, depth: u32, budget: &mut u32) -> Option<u32> {
        let depth = depth.checked_sub(1)?;
        *budget = budget.checked_sub(1)?;
        let (_, ty) = self.skip_modifiers_and_typedefs(id)?;
        match ty.kind() {
            Kind::INT | Kind::ENUM | Kind::ENUM64 | Kind::FLOAT => {
                Some(ty.payload.min(self.pointer_size as u32))
            }
            Kind::PTR => Some(self.pointer_size as u32),
            Kind::ARRAY => self.align_at(ty.array()?.element, depth, budget),
            Kind::STRUCT | Kind::UNION => {
                let mut max = 1;
                for member in ty.members() {
                    let align = self.align_at(member.type_id, depth, budget)?;
                    max = max.max(align);
                    if member.bit_size == 0 && member.bit_offset % align.checked_mul(8)?.max(1) != 0
                    {
                        return Some(1);
                    }
                }
                if ty.payload % max != 0 {
                    return Some(1);
                }
                Some(max)
            }
            _ => None,
        }
    }
}

/// Iterator over a blob's own types, made by [`Btf::types`].
#[derive(Clone, Debug)]
pub struct Types<'b, 'a> {
    btf: &'b Btf<'a>,
    id: TypeId,
    offset: usize,
}

impl<'a> Iterator for Types<'_, 'a> {
    type Item = (TypeId, Type<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.id >= self.btf.end_id {
            return None;
        }
        let (ty, end) = self.btf.type_at(self.offset)?;
        let id = self.id;
        self.id += 1;
        self.offset = end;
        Some((id, ty))
    }
}

/// The longest prefix that is UTF-8.
pub(crate) fn utf8_prefix(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => bytes
            .get(..e.valid_up_to())
            .and_then(|valid| std::str::from_utf8(valid).ok())
            .unwrap_or_default(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
