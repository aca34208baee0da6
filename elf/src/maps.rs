//! Map definitions in BTF: the `.maps` section as libbpf defined it.
//!
//! A definition is a variable whose struct type encodes numbers as array
//! lengths (`int (*type)[BPF_MAP_TYPE_HASH]`) and types as pointers
//! (`struct event *value`).

use ebpf_manager_sys::abi::bpf::{MapFlags, MapType};

use crate::btf::{Btf, Kind, Type, TypeId};
use crate::error::ObjectError;
use crate::spec::{MapSpec, Pinning};

/// A definition, with what the symbol table must complete.
pub(crate) struct Definition {
    pub(crate) spec: MapSpec,
    /// Byte offset of the `values` member.
    pub(crate) values: Option<u32>,
}

/// Members of a definition at most; those that have a meaning are fewer.
const MAX_MEMBERS: u32 = 32;

/// Reads every definition of the `.maps` section, in the object's order.
pub(crate) fn btf_maps(
    btf: &Btf<'_>,
    each: &mut dyn FnMut(Definition) -> Result<(), ObjectError>,
) -> Result<(), ObjectError> {
    let Some(section) = btf.find_by_name_kind(".maps", Kind::DATASEC) else {
        return Ok(());
    };
    let section = btf_type(btf, ".maps", section)?;
    for var in section.sec_vars() {
        let var = btf_type(btf, ".maps", var.type_id)?;
        let name = btf.name(var.name_off());
        let Some(target) = var.target().filter(|_| var.kind() == Kind::VAR) else {
            return Err(fault(name, "its entry in .maps is not a variable"));
        };
        let definition = resolve(btf, name, target)?.1;
        each(read_definition(btf, name, &definition, false)?)?;
    }
    Ok(())
}

fn fault(map: &str, what: impl Into<String>) -> ObjectError {
    ObjectError::Map {
        map: map.to_owned(),
        what: what.into(),
    }
}

fn btf_type<'a>(btf: &Btf<'a>, map: &str, id: TypeId) -> Result<Type<'a>, ObjectError> {
    btf.get(id)
        .ok_or_else(|| fault(map, format!("BTF type {id} does not exist")))
}

/// Skips modifiers and typedefs.
fn resolve<'a>(btf: &Btf<'a>, map: &str, id: TypeId) -> Result<(TypeId, Type<'a>), ObjectError> {
    btf.skip_modifiers_and_typedefs(id)
        .ok_or_else(|| fault(map, format!("BTF type {id} leads nowhere")))
}

/// The number that a member encodes: `int (*name)[N]`, or an enumerator.
fn number(btf: &Btf<'_>, map: &str, member: &str, id: TypeId) -> Result<u64, ObjectError> {
    let wrong = || {
        fault(
            map,
            format!("member {member} is not of the form __uint or __ulong"),
        )
    };
    let (_, ty) = resolve(btf, map, id)?;
    if ty.kind().is_any_enum() {
        return ty.enumerators().next().map(|e| e.value).ok_or_else(wrong);
    }
    let target = ty
        .target()
        .filter(|_| ty.kind() == Kind::PTR)
        .ok_or_else(wrong)?;
    let (_, array) = resolve(btf, map, target)?;
    array.array().map(|a| u64::from(a.len)).ok_or_else(wrong)
}

/// The id and size of the type that a pointer member points to.
fn pointee(
    btf: &Btf<'_>,
    map: &str,
    member: &str,
    id: TypeId,
) -> Result<(TypeId, u32), ObjectError> {
    let (_, ty) = resolve(btf, map, id)?;
    let Some(target) = ty.target().filter(|_| ty.kind() == Kind::PTR) else {
        return Err(fault(
            map,
            format!("member {member} is not a pointer to a type"),
        ));
    };
    btf.size_of(target)
        .map(|size| (target, size))
        .ok_or_else(|| fault(map, format!("the type of {member} has no size")))
}

fn read_definition(
    btf: &Btf<'_>,
    name: &str,
    definition: &Type<'_>,
    inner: bool,
) -> Result<Definition, ObjectError> {
    if definition.kind() != Kind::STRUCT {
        return Err(fault(name, "its definition is not a struct"));
    }
    if definition.vlen() > MAX_MEMBERS {
        return Err(fault(name, "its definition has too many members"));
    }
    let mut spec = MapSpec {
        name: name.to_owned(),
        ..MapSpec::default()
    };
    let mut values = None;
    let small = |member: &str, value: u64| {
        u32::try_from(value).map_err(|_| fault(name, format!("{member} is larger than 32 bits")))
    };
    for member in definition.members() {
        let label = btf.name(member.name_off);
        let id = member.type_id;
        match label {
            "type" => spec.map_type = MapType(small(label, number(btf, name, label, id)?)?),
            "max_entries" => spec.max_entries = small(label, number(btf, name, label, id)?)?,
            "map_flags" => {
                let bits = small(label, number(btf, name, label, id)?)?;
                spec.flags = MapFlags::from_bits_retain(bits);
            }
            "numa_node" => {
                spec.numa_node = Some(small(label, number(btf, name, label, id)?)?);
                spec.flags |= MapFlags::NUMA_NODE;
            }
            "map_extra" => spec.map_extra = number(btf, name, label, id)?,
            "key_size" => {
                let size = small(label, number(btf, name, label, id)?)?;
                set_size(name, label, &mut spec.key_size, size)?;
            }
            "value_size" => {
                let size = small(label, number(btf, name, label, id)?)?;
                set_size(name, label, &mut spec.value_size, size)?;
            }
            "key" => {
                let (id, size) = pointee(btf, name, label, id)?;
                set_size(name, label, &mut spec.key_size, size)?;
                spec.key_type_id = id;
            }
            "value" => {
                let (id, size) = pointee(btf, name, label, id)?;
                set_size(name, label, &mut spec.value_size, size)?;
                spec.value_type_id = id;
            }
            "pinning" => {
                spec.pinning = match small(label, number(btf, name, label, id)?)? {
                    0 => Pinning::None,
                    1 => Pinning::ByName,
                    other => Pinning::Custom(other),
                };
                if inner && spec.pinning != Pinning::None {
                    return Err(fault(
                        name,
                        "an inner map cannot be pinned by its definition",
                    ));
                }
            }
            "values" => {
                if inner {
                    return Err(fault(name, "maps can be nested only once"));
                }
                values = Some(member.bit_offset / 8);
                read_values(btf, &mut spec, id)?;
            }
            other => return Err(fault(name, format!("unknown member {other}"))),
        }
    }
    Ok(Definition { spec, values })
}

/// `value_size` and `value` (and the same for keys) may both be given if they
/// agree.
fn set_size(map: &str, member: &str, size: &mut u32, new: u32) -> Result<(), ObjectError> {
    if *size != 0 && *size != new {
        return Err(fault(
            map,
            format!("{member} gives {new} bytes, another member {size}"),
        ));
    }
    *size = new;
    Ok(())
}

/// `__array(values, struct inner)` or `__array(values, int (void *))`: an
/// array of pointers to an inner definition or to functions.
fn read_values(btf: &Btf<'_>, spec: &mut MapSpec, id: TypeId) -> Result<(), ObjectError> {
    let name = spec.name.clone();
    let wrong = || fault(&name, "member values is not an array of pointers");
    let array = resolve(btf, &name, id)?.1.array().ok_or_else(wrong)?;
    let (_, pointer) = resolve(btf, &name, array.element)?;
    let target = pointer
        .target()
        .filter(|_| pointer.kind() == Kind::PTR)
        .ok_or_else(wrong)?;
    let (_, target) = resolve(btf, &name, target)?;
    match target.kind() {
        Kind::STRUCT => {
            let inner = read_definition(btf, &format!("{name}.inner"), &target, true)?;
            spec.inner = Some(Box::new(inner.spec));
        }
        Kind::FUNC_PROTO => {}
        other => {
            return Err(fault(
                &name,
                format!("values point to {}, not to maps or functions", other.name()),
            ));
        }
    }
    set_size(&name, "values", &mut spec.value_size, 4)
}
