//! Map definitions in BTF: the `.maps` section as libbpf defined it.
//!
//! A definition is a variable whose struct type encodes numbers as array
//! lengths (`int (*type)[BPF_MAP_TYPE_HASH]`) and types as pointers
//! (`struct event *value`).

pub(crate) mod legacy;

use ebpf_manager_sys::abi::bpf::{MapFlags, MapType};

use crate::btf::{Btf, Kind, Linkage, Type, TypeId};
use crate::error::{Fault, bad_map};
use crate::spec::{MapSpec, Pinning};

/// Members of a definition in BTF at most; those that have a meaning are
/// fewer.
const MAX_MEMBERS: u32 = 32;

/// A definition, with what the symbol table must complete.
pub(crate) struct Definition {
    pub(crate) spec: MapSpec,
    /// Byte offset of the `values` member.
    pub(crate) values: Option<u32>,
}

/// Reads every definition of the data section `.maps`, in the object's order.
pub(crate) fn btf_maps(
    btf: &Btf<'_>,
    section: TypeId,
    each: &mut dyn FnMut(Definition) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let section = btf_type(btf, ".maps", section)?;
    for var in section.sec_vars() {
        let var = btf_type(btf, ".maps", var.type_id)?;
        let name = btf.name(var.name_off());
        let Some(target) = var.target().filter(|_| var.kind() == Kind::VAR) else {
            return Err(bad_map(
                name,
                format_args!("its entry in .maps is not a variable"),
            ));
        };
        let definition = resolve(btf, name, target)?.1;
        let mut definition = read_definition(btf, name, &definition, false)?;
        definition.spec.external = var.linkage() == Some(Linkage::EXTERN);
        each(definition)?;
    }
    Ok(())
}

fn btf_type<'a>(btf: &Btf<'a>, map: &str, id: TypeId) -> Result<Type<'a>, Fault> {
    btf.get(id)
        .ok_or_else(|| bad_map(map, format_args!("BTF type {id} does not exist")))
}

/// Skips modifiers and typedefs.
fn resolve<'a>(btf: &Btf<'a>, map: &str, id: TypeId) -> Result<(TypeId, Type<'a>), Fault> {
    btf.skip_modifiers_and_typedefs(id)
        .ok_or_else(|| bad_map(map, format_args!("BTF type {id} leads nowhere")))
}

/// The number that a member encodes: `int (*name)[N]`, or an enumerator.
fn number(btf: &Btf<'_>, map: &str, member: &str, id: TypeId) -> Result<u64, Fault> {
    let wrong = || {
        bad_map(
            map,
            format_args!("member {member} is not of the form __uint or __ulong"),
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
fn pointee(btf: &Btf<'_>, map: &str, member: &str, id: TypeId) -> Result<(TypeId, u32), Fault> {
    let (_, ty) = resolve(btf, map, id)?;
    let Some(target) = ty.target().filter(|_| ty.kind() == Kind::PTR) else {
        return Err(bad_map(
            map,
            format_args!("member {member} is not a pointer to a type"),
        ));
    };
    btf.size_of(target)
        .map(|size| (target, size))
        .ok_or_else(|| bad_map(map, format_args!("the type of {member} has no size")))
}

/// Reads the definition of a map whose type in BTF is `id`.
pub(crate) fn definition(btf: &Btf<'_>, id: TypeId) -> Result<MapSpec, Fault> {
    let (_, definition) = resolve(btf, "", id)?;
    Ok(read_definition(btf, "", &definition, false)?.spec)
}

fn read_definition(
    btf: &Btf<'_>,
    name: &str,
    definition: &Type<'_>,
    inner: bool,
) -> Result<Definition, Fault> {
    if definition.kind() != Kind::STRUCT {
        return Err(bad_map(
            name,
            format_args!("its definition is not a struct"),
        ));
    }
    if definition.vlen() > MAX_MEMBERS {
        return Err(bad_map(
            name,
            format_args!("its definition has too many members"),
        ));
    }
    let mut spec = MapSpec {
        name: name.to_owned(),
        ..MapSpec::default()
    };
    let mut values = None;
    let small = |member: &str, value: u64| {
        u32::try_from(value)
            .map_err(|_| bad_map(name, format_args!("{member} is larger than 32 bits")))
    };
    for member in definition.members() {
        let label = btf.name(member.name_off);
        let id = member.type_id;
        match label {
            "type" => spec.map_type = MapType(small(label, number(btf, name, label, id)?)?),
            "max_entries" => spec.max_entries = small(label, number(btf, name, label, id)?)?,
            "map_flags" => {
                let bits = small(label, number(btf, name, label, id)?)?;
                // Members come in any order.
                spec.flags = MapFlags::from_bits_retain(bits) | spec.flags & MapFlags::NUMA_NODE;
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
                    return Err(bad_map(
                        name,
                        format_args!("an inner map cannot be pinned by its definition"),
                    ));
                }
            }
            "values" => {
                if inner {
                    return Err(bad_map(name, format_args!("maps can be nested only once")));
                }
                values = Some(member.bit_offset / 8);
                read_values(btf, &mut spec, id)?;
            }
            other => return Err(bad_map(name, format_args!("unknown member {other}"))),
        }
    }
    Ok(Definition { spec, values })
}

/// `value_size` and `value` (and the same for keys) may both be given if they
/// agree. aya gives ring buffers a type and the size 0.
fn set_size(map: &str, member: &str, size: &mut u32, new: u32) -> Result<(), Fault> {
    if new == 0 {
        return Ok(());
    }
    if *size != 0 && *size != new {
        return Err(bad_map(
            map,
            format_args!("{member} gives {new} bytes, another member {size}"),
        ));
    }
    *size = new;
    Ok(())
}

/// `__array(values, struct inner)` or `__array(values, int (void *))`: an
/// array of pointers to an inner definition or to functions.
fn read_values(btf: &Btf<'_>, spec: &mut MapSpec, id: TypeId) -> Result<(), Fault> {
    let name = spec.name.clone();
    let wrong = || {
        bad_map(
            &name,
            format_args!("member values is not an array of pointers"),
        )
    };
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
            return Err(bad_map(
                &name,
                format_args!("values point to {}, not to maps or functions", other.name()),
            ));
        }
    }
    set_size(&name, "values", &mut spec.value_size, 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::encode::{BtfBuilder, NewMember};

    /// The flags of a map whose definition has the members `map_flags` (1) and
    /// `numa_node` (2), in this order.
    fn flags(names: [&str; 2]) -> MapFlags {
        let mut b = BtfBuilder::new();
        let int = b.add_int("int", 4, true);
        let members = names.map(|name| {
            let len = if name == "map_flags" { 1 } else { 2 };
            let array = b.add_array(int, int, len);
            NewMember {
                name,
                type_id: b.add_ptr(array),
                bit_offset: 0,
                bit_size: 0,
            }
        });
        let id = b.add_struct("", 16, &members);
        let bytes = b.to_bytes().unwrap();
        let spec = definition(&Btf::parse(&bytes).unwrap(), id).unwrap();
        assert_eq!(spec.numa_node, Some(2));
        spec.flags
    }

    #[test]
    fn flags_do_not_depend_on_the_order_of_members() {
        let both = MapFlags::NO_PREALLOC | MapFlags::NUMA_NODE;
        assert_eq!(flags(["map_flags", "numa_node"]), both);
        assert_eq!(flags(["numa_node", "map_flags"]), both);
    }
}
