//! From matched types to the numbers that go into instructions.

use crate::btf::{Btf, Kind, TypeId};

use super::spec::Spec;
use super::{CoreProblem, PoisonReason, ReloKind, Resolution};

/// One side's value.
#[derive(Clone, Copy, Default)]
struct Value {
    number: u64,
    /// Width and type of the field a load or store would touch; width 0 if
    /// none would.
    size: u32,
    type_id: TypeId,
    validate: bool,
    enum32: bool,
}

/// The answer for a matched target, or for none.
pub(super) fn resolution(
    local_btf: &Btf<'_>,
    local: &Spec,
    target: Option<(&Btf<'_>, &Spec)>,
) -> Result<Resolution, CoreProblem> {
    let kind = local.kind;
    let old = side(kind, Some((local_btf, local)))?;
    let new = side(kind, target)?;
    let mut answer = Resolution {
        old: 0,
        new: 0,
        validate: true,
        poison: None,
        resize_fails: false,
        old_size: 0,
        new_size: 0,
        old_is_enum32: false,
        new_is_enum32: false,
        target: None,
    };
    if let Some(old) = &old {
        answer.old = old.number;
        answer.validate = old.validate;
        answer.old_size = old.size;
        answer.old_is_enum32 = old.enum32;
    }
    let (Some(old), Some(new)) = (old, new) else {
        answer.poison = Some(PoisonReason::NoMatch);
        return Ok(answer);
    };
    answer.new = new.number;
    answer.new_size = new.size;
    answer.new_is_enum32 = new.enum32;
    if old.size != new.size {
        // Zero extension keeps the value of pointers and unsigned integers.
        // Of anything else a load of another width would read a wrong one.
        let kept = target.is_some_and(|(btf, _)| {
            matches!(
                (class(local_btf, old.type_id), class(btf, new.type_id)),
                (Class::Pointer, Class::Pointer) | (Class::Unsigned, Class::Unsigned)
            )
        });
        answer.resize_fails = !kept;
    }
    Ok(answer)
}

/// The answer to `TYPE_ID_LOCAL`.
pub(super) fn local_type_id(id: TypeId) -> Resolution {
    Resolution {
        old: id as u64,
        new: id as u64,
        validate: false,
        poison: None,
        resize_fails: false,
        old_size: 0,
        new_size: 0,
        old_is_enum32: false,
        new_is_enum32: false,
        target: None,
    }
}

#[derive(PartialEq, Eq)]
enum Class {
    Pointer,
    Unsigned,
    Other,
}

fn class(btf: &Btf<'_>, id: TypeId) -> Class {
    let Some(ty) = btf.get(id) else {
        return Class::Other;
    };
    match ty.kind() {
        Kind::PTR => Class::Pointer,
        Kind::INT
            if ty
                .int()
                .is_some_and(|int| !int.signed || int.char || int.bool) =>
        {
            Class::Unsigned
        }
        _ => Class::Other,
    }
}

/// One side's value; `None` asks for poison.
fn side(kind: ReloKind, side: Option<(&Btf<'_>, &Spec)>) -> Result<Option<Value>, CoreProblem> {
    let plain = |number| {
        Some(Value {
            number,
            validate: true,
            ..Value::default()
        })
    };
    match kind {
        ReloKind::FIELD_EXISTS
        | ReloKind::TYPE_EXISTS
        | ReloKind::TYPE_MATCHES
        | ReloKind::ENUMVAL_EXISTS => return Ok(plain(side.is_some() as u64)),
        // No such type: 0, which no type has for an id or a size.
        ReloKind::TYPE_ID_TARGET | ReloKind::TYPE_SIZE if side.is_none() => return Ok(plain(0)),
        _ => {}
    }
    let Some((btf, spec)) = side else {
        return Ok(None);
    };
    match kind {
        ReloKind::TYPE_ID_TARGET => Ok(Some(Value {
            number: spec.root as u64,
            // Linking renumbers types but not what instructions hold.
            validate: false,
            ..Value::default()
        })),
        ReloKind::TYPE_SIZE => {
            let size = btf.size_of(spec.root).ok_or(CoreProblem::Unsized)?;
            Ok(plain(size as u64))
        }
        ReloKind::ENUMVAL_VALUE => enumerator(btf, spec).map(Some),
        _ => field(btf, spec).map(Some),
    }
}

fn enumerator(btf: &Btf<'_>, spec: &Spec) -> Result<Value, CoreProblem> {
    let accessor = spec.accessors.first().ok_or(CoreProblem::BadAccess)?;
    let ty = btf.get(accessor.type_id).ok_or(CoreProblem::BadType)?;
    let value = ty
        .enumerator(accessor.index)
        .ok_or(CoreProblem::BadAccess)?
        .value;
    let enum32 = ty.kind() == Kind::ENUM;
    Ok(Value {
        // Older compilers do not say which enumerations are signed, so like
        // libbpf take all 32-bit ones to be; patching allows for the others.
        number: if enum32 { value as i32 as u64 } else { value },
        enum32,
        validate: true,
        ..Value::default()
    })
}

/// Size of what a load or store of a field moves: an array's element.
fn access_size(btf: &Btf<'_>, mut id: TypeId) -> Result<u32, CoreProblem> {
    // Arrays of arrays are checked for cycles by `size_of` first.
    btf.size_of(id).ok_or(CoreProblem::Unsized)?;
    loop {
        let (next, ty) = btf
            .skip_modifiers_and_typedefs(id)
            .ok_or(CoreProblem::BadType)?;
        match ty.array() {
            Some(array) => id = array.element,
            None => return btf.size_of(next).ok_or(CoreProblem::Unsized),
        }
    }
}

fn field(btf: &Btf<'_>, spec: &Spec) -> Result<Value, CoreProblem> {
    let last = spec.accessors.last().ok_or(CoreProblem::BadAccess)?;
    let bit_offset = u32::try_from(spec.bit_offset).map_err(|_| CoreProblem::BadAccess)?;
    let kind = spec.kind;
    let mut value = Value {
        validate: true,
        ..Value::default()
    };
    if last.name_off == 0 {
        match kind {
            ReloKind::FIELD_BYTE_OFFSET => {
                value.number = (bit_offset / 8) as u64;
                value.size = access_size(btf, last.type_id)?;
                value.type_id = last.type_id;
            }
            ReloKind::FIELD_BYTE_SIZE => {
                let size = btf.size_of(last.type_id).ok_or(CoreProblem::Unsized)?;
                value.number = size as u64;
            }
            _ => return Err(CoreProblem::ArrayElement),
        }
        return Ok(value);
    }
    let member = btf
        .get(last.type_id)
        .and_then(|ty| ty.member(last.index))
        .ok_or(CoreProblem::BadType)?;
    let (type_id, ty) = btf
        .skip_modifiers_and_typedefs(member.type_id)
        .ok_or(CoreProblem::BadType)?;
    let bitfield = member.bit_size != 0;
    let (byte_offset, byte_size, bit_size) = if bitfield {
        let bit_end = bit_offset as u64 + member.bit_size as u64;
        let mut size = ty
            .size()
            .filter(|&size| size > 0)
            .ok_or(CoreProblem::Unsized)?;
        let mut offset = bit_offset / 8 / size * size;
        // The smallest aligned load that covers all bits.
        while bit_end > (offset as u64 + size as u64) * 8 {
            if size >= 8 {
                return Err(CoreProblem::Bitfield);
            }
            size *= 2;
            offset = bit_offset / 8 / size * size;
        }
        (offset, size, member.bit_size as u32)
    } else {
        let size = btf.size_of(type_id).ok_or(CoreProblem::Unsized)?;
        (bit_offset / 8, size, size.wrapping_mul(8))
    };
    // Compilers choose the load that covers a bitfield as they like.
    value.validate = !bitfield;
    value.number = match kind {
        ReloKind::FIELD_BYTE_OFFSET => {
            if !bitfield {
                value.size = access_size(btf, type_id)?;
                value.type_id = type_id;
            }
            byte_offset
        }
        ReloKind::FIELD_BYTE_SIZE => byte_size,
        ReloKind::FIELD_SIGNED => {
            value.validate = true;
            let signed = match ty.kind() {
                Kind::ENUM | Kind::ENUM64 => ty.kind_flag(),
                _ => ty.int().is_some_and(|int| int.signed),
            };
            signed as u32
        }
        ReloKind::FIELD_LSHIFT_U64 => {
            let bit_in_load = bit_offset.wrapping_sub(byte_offset.wrapping_mul(8));
            if cfg!(target_endian = "little") {
                64_u32.wrapping_sub(bit_in_load.wrapping_add(bit_size))
            } else {
                8_u32
                    .wrapping_sub(byte_size)
                    .wrapping_mul(8)
                    .wrapping_add(bit_in_load)
            }
        }
        ReloKind::FIELD_RSHIFT_U64 => {
            value.validate = true;
            64_u32.wrapping_sub(bit_size)
        }
        other => return Err(CoreProblem::UnknownKind(other.0)),
    } as u64;
    Ok(value)
}
