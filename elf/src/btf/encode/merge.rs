//! Putting the types of one BTF to those of another, equal ones once.

use std::collections::BTreeMap;

use crate::btf::parse::{BtfError, BtfProblem};
use crate::btf::types::TypeId;
use crate::btf::{Btf, Type};

use super::{BtfBuilder, Meaning, meaning};

/// Comparisons of two types allowed in one merge. What is not compared is
/// taken for different, which costs room but is right.
const BUDGET: u32 = 1 << 20;

impl BtfBuilder {
    /// Adds the types of `other`, except those that are here already: of the
    /// same kind, names, sizes and numbers, and so all they refer to, however
    /// they refer to each other. Says for each type of `other`, from 0 on,
    /// which one it is here.
    ///
    /// A forward declaration is not taken for the struct it declares, nor are
    /// sections of one name for one section.
    ///
    /// # Errors
    /// [`BtfProblem::Edit`] if one of both is split, or this one damaged.
    pub fn merge(&mut self, other: &Btf<'_>) -> Result<Vec<TypeId>, BtfError> {
        if self.first_id != 1 || other.first_id() != 1 {
            return Err(BtfError::new(BtfProblem::Edit, 0, 0));
        }
        let bytes = self.to_bytes()?;
        let own = Btf::parse(&bytes)?;
        let mut like: BTreeMap<(u32, &[u8]), Vec<TypeId>> = BTreeMap::new();
        for (id, ty) in own.types() {
            let key = (ty.info, own.name_bytes(ty.name_off()));
            like.entry(key).or_default().push(id);
        }
        let mut merge = Merge {
            own: &own,
            other,
            places: vec![None; other.end_id() as usize],
            budget: BUDGET,
        };
        if let Some(void) = merge.places.first_mut() {
            *void = Some(0);
        }
        for (id, ty) in other.types() {
            let key = (ty.info, other.name_bytes(ty.name_off()));
            for &candidate in like.get(&key).into_iter().flatten() {
                if merge.place(id).is_some() || merge.unite(candidate, id) {
                    break;
                }
            }
        }
        let mut next = self.end_id();
        let places: Vec<TypeId> = merge
            .places
            .iter()
            .map(|place| {
                place.unwrap_or_else(|| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        let first_new = self.end_id();
        let place = |id: TypeId| places.get(id as usize).copied().unwrap_or(0);
        for (id, ty) in other.types() {
            if place(id) >= first_new {
                self.add_copy(other, &ty, &mut |id| place(id));
            }
        }
        Ok(places)
    }
}

struct Merge<'m, 'a> {
    own: &'m Btf<'a>,
    other: &'m Btf<'a>,
    /// By type of `other`: the equal one here.
    places: Vec<Option<TypeId>>,
    budget: u32,
}

impl Merge<'_, '_> {
    fn place(&self, id: TypeId) -> Option<TypeId> {
        self.places.get(id as usize).copied().flatten()
    }

    /// Whether two types are equal; notes it, and all pairs that follow.
    fn unite(&mut self, own: TypeId, other: TypeId) -> bool {
        // Types may refer to each other in circles: two are equal if no
        // difference is found while all pairs on the way are taken for equal.
        let mut assumed: BTreeMap<TypeId, TypeId> = BTreeMap::new();
        let mut pending = vec![(own, other)];
        while let Some((own, other)) = pending.pop() {
            match self.place(other).or_else(|| assumed.get(&other).copied()) {
                Some(place) if place == own => continue,
                Some(_) => return false,
                None => {}
            }
            let types = self.own.get(own).zip(self.other.get(other));
            let (Some(left), Some((a, b))) = (self.budget.checked_sub(1), types) else {
                return false;
            };
            self.budget = left;
            if !self.look_alike(&a, &b, &mut pending) {
                return false;
            }
            assumed.insert(other, own);
        }
        for (other, own) in assumed {
            if let Some(place) = self.places.get_mut(other as usize) {
                *place = Some(own);
            }
        }
        true
    }

    /// Compares two types but for what they refer to, which is `pending`.
    fn look_alike(&self, a: &Type<'_>, b: &Type<'_>, pending: &mut Vec<(TypeId, TypeId)>) -> bool {
        let same_name = |a: u32, b: u32| self.own.name_bytes(a) == self.other.name_bytes(b);
        if a.info != b.info || a.data.len() != b.data.len() || !same_name(a.name_off, b.name_off) {
            return false;
        }
        let kind = a.kind();
        if kind.refers() {
            pending.push((a.payload, b.payload));
        } else if a.payload != b.payload {
            return false;
        }
        let ((words, rest), (others, end)) = (a.data.as_chunks::<4>(), b.data.as_chunks::<4>());
        let words = words.iter().zip(others).enumerate();
        rest == end
            && words.into_iter().all(|(nth, (a, b))| {
                let (a, b) = (u32::from_ne_bytes(*a), u32::from_ne_bytes(*b));
                match meaning(kind, nth) {
                    Meaning::Name => same_name(a, b),
                    Meaning::Type => {
                        pending.push((a, b));
                        true
                    }
                    Meaning::Number => a == b,
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::encode::NewMember;
    use crate::btf::{Kind, Linkage};

    /// A list whose nodes point to each other, and a function that takes one.
    fn list(first: &str, extra: bool) -> Vec<u8> {
        let mut b = BtfBuilder::new();
        if extra {
            b.add_int("char", 1, true);
        }
        let int = b.add_int("int", 4, true);
        let member = |name, type_id, bit_offset| NewMember {
            name,
            type_id,
            bit_offset,
            bit_size: 0,
        };
        let node = int + 1;
        let size = if extra { 24 } else { 16 };
        let members = [
            member("next", node + 1, 0),
            member("value", int, 64),
            member("more", int, 128),
        ];
        let count = 2 + usize::from(extra && first == "other");
        b.add_struct(
            "node",
            if count == 3 { size } else { 16 },
            &members[..count],
        );
        let ptr = b.add_ptr(node);
        let proto = b.add_func_proto(int, &[("head", ptr)]);
        b.add_func(first, proto, Linkage::GLOBAL);
        b.to_bytes().unwrap()
    }

    #[test]
    fn equal_types_are_there_once() {
        let (a, b) = (list("count", false), list("sum", true));
        let (a, b) = (Btf::parse(&a).unwrap(), Btf::parse(&b).unwrap());
        let mut merged = BtfBuilder::copy_of(&a);
        let places = merged.merge(&b).unwrap();
        // char and the function are new; int, node, pointer and prototype not.
        assert_eq!(places, [0, 6, 1, 2, 3, 4, 7]);
        let bytes = merged.to_bytes().unwrap();
        let merged = Btf::parse(&bytes).unwrap();
        assert_eq!(merged.end_id(), 8);
        assert_eq!(merged.type_name(7), "sum");
        assert_eq!(merged.get(7).unwrap().target(), Some(4));
    }

    #[test]
    fn different_types_stay_apart() {
        let (a, b) = (list("count", false), list("other", true));
        let (a, b) = (Btf::parse(&a).unwrap(), Btf::parse(&b).unwrap());
        let mut merged = BtfBuilder::copy_of(&a);
        let places = merged.merge(&b).unwrap();
        // The node has another member, and so all that leads to it is new.
        assert_eq!(places, [0, 6, 1, 7, 8, 9, 10]);
        let bytes = merged.to_bytes().unwrap();
        let merged = Btf::parse(&bytes).unwrap();
        let next = merged.get(7).unwrap().member(0).unwrap();
        assert_eq!(merged.get(next.type_id).unwrap().target(), Some(7));
        let nodes = merged
            .types()
            .filter(|(id, ty)| ty.kind() == Kind::STRUCT && merged.type_name(*id) == "node");
        assert_eq!(nodes.count(), 2);
    }

    #[test]
    fn merging_with_itself_adds_nothing() {
        let bytes = super::super::tests::every_kind().to_bytes().unwrap();
        let btf = Btf::parse(&bytes).unwrap();
        let mut merged = BtfBuilder::copy_of(&btf);
        let places = merged.merge(&btf).unwrap();
        assert_eq!(merged.end_id(), btf.end_id());
        assert!(places.iter().all(|place| *place < btf.end_id()));
        assert_eq!(merged.to_bytes().unwrap(), btf.raw());
        // Split BTF has ids of its own.
        let split = BtfBuilder::on(&btf).to_bytes().unwrap();
        let split = Btf::parse_split(&split, &btf).unwrap();
        assert!(merged.merge(&split).is_err());
    }
}
