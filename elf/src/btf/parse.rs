//! Header, sections and the one walk that checks, indexes and searches.

use std::borrow::Cow;

use super::types::{Kind, Type, TypeId};
use super::{Btf, NameHit, NameQuery, TYPE_HEADER_SIZE, info_kind, info_vlen};
use crate::cursor::{slice_at, u16_at, u32_at, words_at};

/// `BTF_MAGIC`.
pub(crate) const MAGIC: u16 = 0xeb9f;
/// Bytes of the header up to Linux 7.0; later ones may be longer.
pub(crate) const HEADER_SIZE: usize = 24;
/// The index holds the offset of every `1 << INDEX_SHIFT`th type.
pub(crate) const INDEX_SHIFT: u32 = 4;

/// A blob that is not BTF, or not BTF this crate can read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("BTF byte {offset}{}: {what}", InType(*type_id))]
pub struct BtfError {
    /// What is wrong.
    pub what: BtfProblem,
    /// Where: bytes from the start of the blob.
    pub offset: u32,
    /// The type it is in; 0 if in none.
    pub type_id: TypeId,
}

struct InType(TypeId);

impl std::fmt::Display for InType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 {
            return Ok(());
        }
        write!(f, ", type {}", self.0)
    }
}

/// What is wrong with a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BtfProblem {
    /// The blob ends before what its header announces.
    #[error("truncated")]
    Truncated,
    /// Larger than 4 GiB, or more types than ids.
    #[error("too large")]
    TooLarge,
    /// Written for machines of the other byte order.
    #[error("written in the other byte order")]
    ByteOrder,
    /// No BTF magic number.
    #[error("not BTF")]
    Magic,
    /// A version other than 1.
    #[error("unknown version")]
    Version,
    /// Header length or section bounds make no sense.
    #[error("bad header")]
    Header,
    /// The string section does not begin and end with a NUL.
    #[error("bad string section")]
    Strings,
    /// A name outside the string section.
    #[error("name outside the strings")]
    Name,
    /// A reference to a type that does not exist.
    #[error("reference to a missing type")]
    TypeId,
    /// A kind whose size is not known.
    #[error("unknown kind of type")]
    Kind,
    /// An index kept from another blob.
    #[error("index of another blob")]
    Index,
    /// A section of `.BTF.ext` has no records, or records that are too small.
    #[error("bad record size")]
    RecordSize,
    /// The object has no such section.
    #[error("data section that the object does not have")]
    MissingSection,
    /// The object has no such variable.
    #[error("variable that the object does not define")]
    MissingVariable,
    /// An edit would not fit the format.
    #[error("edit does not fit")]
    Edit,
}

impl BtfError {
    #[cold]
    pub(crate) fn new(what: BtfProblem, offset: usize, type_id: TypeId) -> BtfError {
        BtfError {
            what,
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
            type_id,
        }
    }
}

/// Where types begin in a blob: a quarter byte per type. Lets a caller that
/// keeps the bytes itself reopen them without another walk.
#[derive(Clone, Debug)]
pub struct BtfIndex {
    offsets: Vec<u32>,
    count: u32,
    bytes: usize,
}

impl BtfIndex {
    pub(crate) fn new(offsets: Vec<u32>, count: u32, bytes: usize) -> BtfIndex {
        BtfIndex {
            offsets,
            count,
            bytes,
        }
    }
}

/// Bytes behind a type's header: a fixed part and a part per element. 255 for
/// kinds whose layout is not known here, and for void, which is no record.
const SIZES: [(u8, u8); 128] = {
    const UNKNOWN: (u8, u8) = (u8::MAX, 0);
    let mut sizes = [UNKNOWN; 128];
    let mut kind = Kind::INT.0 as usize;
    while kind <= Kind::MAX.0 as usize {
        sizes[kind] = match Kind(kind as u8) {
            Kind::INT | Kind::VAR | Kind::DECL_TAG => (4, 0),
            Kind::ARRAY => (12, 0),
            Kind::STRUCT | Kind::UNION | Kind::DATASEC | Kind::ENUM64 => (0, 12),
            Kind::ENUM | Kind::FUNC_PROTO => (0, 8),
            _ => (0, 0),
        };
        kind += 1;
    }
    sizes
};

/// Bytes behind the header of a type with this `info` word; `None` if its kind
/// is unknown to this crate and to `layout`.
#[inline]
pub(crate) fn data_len(info: u32, layout: &[u8]) -> Option<usize> {
    let kind = info_kind(info).0 & 127;
    let (mut fixed, mut each) = SIZES[kind as usize];
    if fixed == u8::MAX {
        (fixed, each) = announced(kind, layout)?;
    }
    // 255 + 2^24 * 255 fits 32 bits.
    Some((fixed as u32 + info_vlen(info) * each as u32) as usize)
}

/// What the blob says about a kind that is unknown here.
#[cold]
fn announced(kind: u8, layout: &[u8]) -> Option<(u8, u8)> {
    let entry = slice_at(layout, kind as usize * 4, 2).filter(|_| kind > Kind::MAX.0)?;
    Some((*entry.first()?, *entry.get(1)?))
}

/// Checks the header and finds the sections; the index is left empty and
/// `end_id` unset.
fn open<'a>(bytes: &'a [u8], base: Option<&'a Btf<'a>>) -> Result<Btf<'a>, BtfError> {
    use BtfProblem as P;
    let fail = |what, offset| Err(BtfError::new(what, offset, 0));
    if u32::try_from(bytes.len()).is_err() {
        return fail(P::TooLarge, 0);
    }
    match u16_at(bytes, 0) {
        Some(MAGIC) => {}
        Some(m) if m.swap_bytes() == MAGIC => return fail(P::ByteOrder, 0),
        Some(_) => return fail(P::Magic, 0),
        None => return fail(P::Truncated, bytes.len()),
    }
    let Some([hdr_len, type_off, type_len, str_off, str_len]) = words_at(bytes, 4) else {
        return fail(P::Truncated, bytes.len());
    };
    if bytes.get(2) != Some(&1) {
        return fail(P::Version, 2);
    }
    if (hdr_len as usize) < HEADER_SIZE {
        return fail(P::Header, 4);
    }
    let Some(body) = bytes.get(hdr_len as usize..) else {
        return fail(P::Truncated, 4);
    };
    if type_off % 4 != 0 {
        return fail(P::Header, 8);
    }
    let Some(types) = slice_at(body, type_off as usize, type_len as usize) else {
        return fail(P::Truncated, 8);
    };
    let Some(strings) = slice_at(body, str_off as usize, str_len as usize) else {
        return fail(P::Truncated, 16);
    };
    // The layout section follows only in headers long enough to name it.
    let layout = if hdr_len as usize >= HEADER_SIZE + 8 {
        let (offset, len) = (u32_at(bytes, 24), u32_at(bytes, 28));
        match slice_at(
            body,
            offset.unwrap_or_default() as usize,
            len.unwrap_or_default() as usize,
        ) {
            Some(layout) => layout,
            None => return fail(P::Truncated, 24),
        }
    } else {
        &[]
    };
    let strings_ok = match (strings.first(), strings.last()) {
        (Some(&first), Some(0)) => first == 0 || base.is_some(),
        (None, _) => base.is_some(),
        _ => false,
    };
    if !strings_ok {
        return fail(P::Strings, hdr_len as usize + str_off as usize);
    }
    let (first_id, first_str, pointer_size) = match base {
        None => (1, 0, 8),
        Some(base) => {
            let Some(first_str) = base.first_str.checked_add(base.strings.len() as u32) else {
                return fail(P::TooLarge, 20);
            };
            (base.end_id, first_str, base.pointer_size)
        }
    };
    if first_str.checked_add(str_len).is_none() {
        return fail(P::TooLarge, 20);
    }
    let most_types = (types.len() / TYPE_HEADER_SIZE) as u32;
    if first_id.checked_add(most_types).is_none() {
        return fail(P::TooLarge, 12);
    }
    Ok(Btf {
        raw: bytes,
        types,
        strings,
        layout,
        base,
        first_id,
        end_id: first_id,
        first_str,
        pointer_size,
        index: Cow::Borrowed(&[]),
    })
}

/// What a walk looks for, and where it puts it.
pub(crate) type Search<'q, 'n> = (&'q NameQuery<'n>, &'q mut Vec<NameHit>);

pub(crate) fn parse<'a>(
    bytes: &'a [u8],
    base: Option<&'a Btf<'a>>,
    check: bool,
    search: Option<Search<'_, '_>>,
) -> Result<Btf<'a>, BtfError> {
    let mut btf = open(bytes, base)?;
    // Kernels average 25 bytes per type; a short guess only costs a copy.
    let mut index = Vec::with_capacity(btf.types.len() / (24 << INDEX_SHIFT) + 1);
    btf.end_id = walk(&btf, Some(&mut index), search)?;
    index.shrink_to_fit();
    btf.index = Cow::Owned(index);
    if check {
        validate(&btf)?;
    }
    Ok(btf)
}

pub(crate) fn with_index<'a>(
    bytes: &'a [u8],
    base: Option<&'a Btf<'a>>,
    index: &'a BtfIndex,
) -> Result<Btf<'a>, BtfError> {
    let mut btf = open(bytes, base)?;
    let fail = || BtfError::new(BtfProblem::Index, 0, 0);
    if index.bytes != bytes.len() {
        return Err(fail());
    }
    btf.end_id = btf.first_id.checked_add(index.count).ok_or_else(fail)?;
    btf.index = Cow::Borrowed(&index.offsets);
    Ok(btf)
}

/// Steps over every type of the section, noting the offset of every sixteenth
/// and the ids of those whose names are searched. Returns the id behind the
/// last. Reads only record headers and the names of kinds asked for.
pub(crate) fn walk(
    btf: &Btf<'_>,
    mut index: Option<&mut Vec<u32>>,
    mut search: Option<Search<'_, '_>>,
) -> Result<TypeId, BtfError> {
    let mut rest = btf.types;
    let mut id = btf.first_id;
    while !rest.is_empty() {
        let offset = btf.types.len() - rest.len();
        let fail = |what| Err(type_error(btf, what, offset, id));
        let Some((header, data)) = rest.split_at_checked(TYPE_HEADER_SIZE) else {
            return fail(BtfProblem::Truncated);
        };
        let Some([name_off, info, _]) = words_at::<3>(header, 0) else {
            return fail(BtfProblem::Truncated);
        };
        if let Some(index) = &mut index
            && (id - btf.first_id) & ((1 << INDEX_SHIFT) - 1) == 0
        {
            index.push(offset as u32);
        }
        if let Some((query, hits)) = &mut search
            && query.kinds().contains(info_kind(info))
        {
            query.check(btf, id, name_off, info_kind(info), hits);
        }
        let Some(len) = data_len(info, btf.layout) else {
            return fail(BtfProblem::Kind);
        };
        let Some(next) = data.get(len..) else {
            return fail(BtfProblem::Truncated);
        };
        rest = next;
        // `open` made sure that there are as many ids.
        id = id.wrapping_add(1);
    }
    Ok(id)
}

/// Checks names and type ids of every record.
fn validate(btf: &Btf<'_>) -> Result<(), BtfError> {
    let mut offset = 0;
    for (id, ty) in btf.types() {
        check_type(btf, &ty, offset, id)?;
        offset += TYPE_HEADER_SIZE + ty.data.len();
    }
    Ok(())
}

fn check_type(btf: &Btf<'_>, ty: &Type<'_>, offset: usize, id: TypeId) -> Result<(), BtfError> {
    let kind = ty.kind();
    if !btf.has_string(ty.name_off) {
        return Err(type_error(btf, BtfProblem::Name, offset, id));
    }
    if kind.refers() && ty.payload >= btf.end_id {
        return Err(type_error(btf, BtfProblem::TypeId, offset + 8, id));
    }
    // Bytes per element, and where in it a name and a type id stand.
    let (each, name_at, type_at): (usize, Option<usize>, Option<usize>) = match kind {
        Kind::STRUCT | Kind::UNION => (12, Some(0), Some(4)),
        Kind::FUNC_PROTO => (8, Some(0), Some(4)),
        Kind::ENUM => (8, Some(0), None),
        Kind::ENUM64 => (12, Some(0), None),
        Kind::DATASEC => (12, None, Some(0)),
        // Element type and index type, as two elements.
        Kind::ARRAY => (4, None, Some(0)),
        _ => return Ok(()),
    };
    let data = if kind == Kind::ARRAY {
        ty.data.get(..8).unwrap_or_default()
    } else {
        ty.data
    };
    for (nth, element) in data.chunks_exact(each).enumerate() {
        let at = offset + TYPE_HEADER_SIZE + nth * each;
        if let Some(name_at) = name_at
            && !u32_at(element, name_at).is_some_and(|name| btf.has_string(name))
        {
            return Err(type_error(btf, BtfProblem::Name, at + name_at, id));
        }
        if let Some(type_at) = type_at
            && u32_at(element, type_at).is_none_or(|ty| ty >= btf.end_id)
        {
            return Err(type_error(btf, BtfProblem::TypeId, at + type_at, id));
        }
    }
    Ok(())
}

/// An error at an offset of the type section.
#[cold]
fn type_error(btf: &Btf<'_>, what: BtfProblem, offset: usize, id: TypeId) -> BtfError {
    let section = btf.types.as_ptr() as usize - btf.raw.as_ptr() as usize;
    BtfError::new(what, section + offset, id)
}
