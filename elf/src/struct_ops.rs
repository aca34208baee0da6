//! Kernel structures that programs fill, laid out as the running kernel has
//! them: an object may be older or newer than the kernel, so members are found
//! by name.

use crate::btf::{Btf, Kind, Member, Type, TypeId};
use crate::error::ObjectError;
use crate::object::Object;
use crate::sort::sort;
use crate::spec::{MapSpec, StructOps};

/// What the kernel calls the value of a map for a structure `NAME`.
const VALUE_PREFIX: &str = "bpf_struct_ops_";

/// Members that either structure may have. The kernel takes 64 functions.
const MAX_MEMBERS: u32 = 512;

/// Largest value, in bytes; the kernel's own fit in a page.
const MAX_VALUE: u32 = 1 << 20;

/// A structure as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationsLayout {
    /// The structure in the kernel's BTF: what its programs attach to.
    pub type_id: TypeId,
    /// The map's value, which contains the structure, in the kernel's BTF.
    pub value_type_id: TypeId,
    /// The map's value, complete but for the programs.
    pub value: Vec<u8>,
    /// Where programs go, by name of the program.
    pub programs: Vec<PlacedOperation>,
    /// Programs that the object has and the structure of this kernel has no
    /// place for.
    pub absent: Vec<String>,
}

/// A program of a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedOperation {
    /// C function name.
    pub program: String,
    /// Index of the member in the kernel's structure: the expected attach type
    /// of the program.
    pub member: u32,
    /// Where the program's descriptor goes in the value: 8 bytes.
    pub offset: u32,
}

impl StructOps {
    /// Name of the map's value in the kernel's BTF, a struct.
    pub fn value_name(&self) -> String {
        [VALUE_PREFIX, &self.type_name].concat()
    }
}

impl Object {
    /// Lays out a map of type `STRUCT_OPS` like the structure `value_type_id`
    /// ([`StructOps::value_name`]) in the kernel's BTF.
    ///
    /// Members that this kernel does not have are left out if the object
    /// leaves them zero; what would be their program is reported as absent.
    ///
    /// # Errors
    /// [`ObjectError::Map`] if the map is none of that type, or if a member
    /// that is set has another type in the kernel or is not there.
    pub fn lay_out_operations(
        &self,
        map: &MapSpec,
        kernel: &Btf<'_>,
        value_type_id: TypeId,
    ) -> Result<OperationsLayout, ObjectError> {
        let fault = |what: String| ObjectError::Map {
            map: map.name.clone(),
            what,
        };
        let local = self.btf();
        let Some((local, operations)) = local.as_ref().zip(map.operations.as_deref()) else {
            return Err(fault("has no operations".to_owned()));
        };
        let of_kernel = |what: &str| {
            let name = &operations.type_name;
            fault(format!("this kernel's struct {name} {what}"))
        };
        let value_type = structure(kernel, value_type_id)
            .ok_or_else(|| of_kernel("cannot be filled by programs"))?;
        let size = value_type.size().unwrap_or_default();
        let found = value_type.members().find_map(|member| {
            let (id, ty) = kernel.skip_modifiers_and_typedefs(member.type_id)?;
            let same = kernel.name(ty.name_off()) == operations.type_name;
            (same && ty.kind() == Kind::STRUCT).then_some((member.bit_offset / 8, id, ty))
        });
        let (start, type_id, kernel_type) =
            found.ok_or_else(|| of_kernel("cannot be filled by programs"))?;
        if size > MAX_VALUE {
            return Err(of_kernel("is too large"));
        }
        let local_type = structure(local, operations.type_id)
            .ok_or_else(|| fault("its type is no structure".to_owned()))?;
        let mut layout = OperationsLayout {
            type_id,
            value_type_id,
            value: vec![0; size as usize],
            programs: Vec::new(),
            absent: Vec::new(),
        };

        let mut known: Vec<(&str, u32)> = kernel_type
            .members()
            .zip(0..)
            .map(|(member, index)| (kernel.name(member.name_off), index))
            .collect();
        sort(&mut known, |a, b| a < b);
        let contents = map.contents.as_slice().unwrap_or_default();
        let mut set = operations.programs.iter().collect::<Vec<_>>();
        for member in local_type.members() {
            let name = local.name(member.name_off);
            let of_member = |what: &str| fault(format!("member {name} {what}"));
            let program = set
                .iter()
                .rposition(|operation| operation.member == name)
                .map(|at| set.swap_remove(at));
            let bytes = local.size_of(member.type_id).and_then(|size| {
                let start = (member.bit_offset / 8) as usize;
                contents.get(start..start.checked_add(size as usize)?)
            });
            let zero = bytes.is_none_or(|bytes| bytes.iter().all(|b| *b == 0));
            let at = known.partition_point(|(known, _)| *known < name);
            let there = known.get(at).filter(|(known, _)| *known == name);
            let there = there.and_then(|(_, index)| Some((*index, kernel_type.member(*index)?)));
            let Some((index, there)) = there.filter(|_| !name.is_empty()) else {
                match program {
                    Some(program) => layout.absent.push(program.program.clone()),
                    None if zero => {}
                    None => return Err(of_member("is set, and this kernel has none")),
                }
                continue;
            };
            let kinds = (
                local.skip_modifiers_and_typedefs(member.type_id),
                kernel.skip_modifiers_and_typedefs(there.type_id),
            );
            let (Some((_, ours)), Some((_, theirs))) = kinds else {
                return Err(of_member("has no type"));
            };
            let bit_field = |m: &Member| m.bit_size != 0 || !m.bit_offset.is_multiple_of(8);
            let place = start.checked_add(there.bit_offset / 8);
            if bit_field(&member) || bit_field(&there) || place.is_none() {
                if program.is_none() && zero {
                    continue;
                }
                return Err(of_member("is a bit field, which cannot be set"));
            }
            let place = place.unwrap_or_default();
            if let Some(program) = program {
                let function = theirs.target().filter(|_| theirs.kind() == Kind::PTR);
                let function = function.and_then(|id| kernel.skip_modifiers_and_typedefs(id));
                if function.is_none_or(|(_, ty)| ty.kind() != Kind::FUNC_PROTO) {
                    return Err(of_member("is no function in this kernel"));
                }
                if place.checked_add(8).is_none_or(|end| end > size) {
                    return Err(of_member("lies outside of the kernel's structure"));
                }
                layout.programs.push(PlacedOperation {
                    program: program.program.clone(),
                    member: index,
                    offset: place,
                });
                continue;
            }
            if zero {
                continue;
            }
            if ours.kind() != theirs.kind() || ours.kind() == Kind::PTR {
                return Err(of_member(
                    "has another type in this kernel, or is a pointer",
                ));
            }
            let to = kernel.size_of(there.type_id).and_then(|size| {
                let start = place as usize;
                layout
                    .value
                    .get_mut(start..start.checked_add(size as usize)?)
            });
            match (to, bytes) {
                (Some(to), Some(bytes)) if to.len() == bytes.len() => to.copy_from_slice(bytes),
                _ => return Err(of_member("has another size in this kernel")),
            }
        }
        match set.first() {
            Some(left) => Err(fault(format!("has no member {}", left.member))),
            None => Ok(layout),
        }
    }
}

fn structure<'a>(btf: &Btf<'a>, id: TypeId) -> Option<Type<'a>> {
    btf.get(id)
        .filter(|ty| ty.kind() == Kind::STRUCT && ty.vlen() <= MAX_MEMBERS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::encode::{BtfBuilder, NewMember};

    fn member(name: &str, type_id: TypeId, byte: u32) -> NewMember<'_> {
        NewMember {
            name,
            type_id,
            bit_offset: byte * 8,
            bit_size: 0,
        }
    }

    /// A kernel whose structure has members in another order than the object,
    /// and the name in `name_bytes`.
    fn kernel(name_bytes: u32) -> (Vec<u8>, TypeId, TypeId) {
        let mut b = BtfBuilder::new();
        let char = b.add_int("char", 1, true);
        let text = b.add_array(char, char, name_bytes);
        let nothing = b.add_func_proto(0, &[]);
        let function = b.add_ptr(nothing);
        let members = [
            member("ssthresh", function, 0),
            member("cong_avoid", function, 8),
            member("newer", function, 16),
            member("undo_cwnd", function, 24),
            member("name", text, 32),
        ];
        let ops = b.add_struct("tcp_congestion_ops", 64, &members);
        let state = b.add_int("int", 4, true);
        let value = [member("state", state, 0), member("data", ops, 64)];
        let value = b.add_struct("bpf_struct_ops_tcp_congestion_ops", 128, &value);
        (b.to_bytes().unwrap(), ops, value)
    }

    fn object() -> Object {
        Object::parse(include_bytes!("../../tests/programs/struct_ops.bpf.o")).unwrap()
    }

    #[test]
    fn structures_are_read() {
        let object = object();
        let maps: Vec<_> = object.maps().iter().map(|m| m.name.as_str()).collect();
        assert_eq!(maps, ["so_plain", "so_link", "so_optional"]);
        let link = object.map("so_link").unwrap();
        let operations = link.operations.as_deref().unwrap();
        assert_eq!(operations.type_name, "tcp_congestion_ops");
        let programs = operations.programs.iter();
        let programs: Vec<_> = programs
            .map(|o| (o.member.as_str(), o.program.as_str()))
            .collect();
        let expected = [
            ("cong_avoid", "so_cong_avoid"),
            ("undo_cwnd", "so_undo_cwnd"),
            ("ssthresh", "so_static"),
            ("no_such_member", "so_nowhere"),
        ];
        assert_eq!(programs, expected);
        let skipped: Vec<_> = object.maps().iter().map(|m| m.skip).collect();
        assert_eq!(skipped, [false, false, true]);
        let off = object.programs().iter().filter(|p| !p.autoload);
        let off: Vec<_> = off.map(|p| p.name.as_str()).collect();
        assert_eq!(off, ["so_asked_for", "so_unused"]);
    }

    #[test]
    fn members_are_found_by_name() {
        let object = object();
        let (bytes, ops, value) = kernel(16);
        let kernel = Btf::parse(&bytes).unwrap();
        let lay_out = |map: &MapSpec| object.lay_out_operations(map, &kernel, value);
        let layout = lay_out(object.map("so_link").unwrap()).unwrap();
        assert_eq!((layout.type_id, layout.value_type_id), (ops, value));
        assert_eq!(layout.value.len(), 128);
        assert_eq!(layout.value.get(96..104).unwrap(), b"em_link\0");
        assert_eq!(layout.value.iter().filter(|b| **b != 0).count(), 7);
        let mut places: Vec<_> = layout.programs.iter().collect();
        places.sort_by_key(|p| p.member);
        let places: Vec<_> = places
            .iter()
            .map(|p| (p.program.as_str(), p.member, p.offset))
            .collect();
        let expected = [
            ("so_static", 0, 64),
            ("so_cong_avoid", 1, 72),
            ("so_undo_cwnd", 3, 88),
        ];
        assert_eq!(places, expected);
        assert_eq!(layout.absent, ["so_nowhere"]);

        let mut plain = object.map("so_plain").unwrap().clone();
        let err = |map: &MapSpec| lay_out(map).unwrap_err().to_string();
        let operations = plain.operations.as_mut().unwrap();
        operations.programs[0].member = "nam".to_owned();
        assert_eq!(err(&plain), "map so_plain: has no member nam");
        plain.operations.as_mut().unwrap().programs[0].member = "name".to_owned();
        let wrong = err(&plain);
        assert!(wrong.contains("member name is no function"), "{wrong}");
        plain.operations.as_mut().unwrap().programs.remove(0);
        *plain.contents_mut().last_mut().unwrap() = 1;
        let wrong = err(&plain);
        assert!(wrong.contains("no_such_number is set"), "{wrong}");
        plain.operations = None;
        assert_eq!(err(&plain), "map so_plain: has no operations");
    }

    #[test]
    fn other_types_are_refused() {
        let object = object();
        let (bytes, ops, value) = kernel(12);
        let kernel = Btf::parse(&bytes).unwrap();
        let map = object.map("so_plain").unwrap();
        let err = |id| object.lay_out_operations(map, &kernel, id).unwrap_err();
        let wrong = err(value).to_string();
        assert!(wrong.contains("name has another size"), "{wrong}");
        let wrong = err(ops).to_string();
        assert!(wrong.contains("cannot be filled by programs"), "{wrong}");
        assert!(err(9999).to_string().contains("cannot be filled"));
    }
}
