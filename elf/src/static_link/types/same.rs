//! Whether files mean the same by a name.

use std::collections::BTreeSet;

use super::{Node, TOO_LARGE, Types, VOID, is_shared};
use crate::btf::{Btf, Kind, Type, TypeId};
use crate::maps;
use crate::static_link::{Globals, StaticLinkError};

/// Types nested in each other that are compared.
const MAX_DEPTH: u32 = 16;

impl Types<'_, '_> {
    /// Checks that all files mean the same by a name.
    pub(super) fn check(
        &self,
        btf: &[u8],
        shown: &[usize],
        globals: &Globals<'_>,
    ) -> Result<(), StaticLinkError> {
        let btf = Btf::parse(btf).map_err(|_| TOO_LARGE)?;
        let mut same = Same {
            btf: &btf,
            seen: BTreeSet::new(),
        };
        let mut maps = BTreeSet::new();
        for node in &self.nodes {
            if node.ty.kind() == Kind::DATASEC && self.name(node) == ".maps" {
                let vars = node.ty.sec_vars();
                maps.extend(vars.filter_map(|v| self.node(node.input, v.type_id)));
            }
        }
        for (index, (node, class)) in self.nodes.iter().zip(&self.class).enumerate() {
            let first = shown.get(*class as usize).copied().unwrap_or(VOID);
            if !is_shared(&node.ty) || first == index || !globals.contains_key(self.name(node)) {
                continue;
            }
            let Some(other) = self.nodes.get(first) else {
                continue;
            };
            let target = |node: &Node<'_>| self.id(node.input, node.ty.target().unwrap_or(0));
            let (a, b) = (target(other), target(node));
            let what = if node.ty.kind() != other.ty.kind() {
                Some("one is a function, the other a variable")
            } else if maps.contains(&index) && maps.contains(&first) {
                let agree = a == b || same.maps(a, b);
                (!agree).then_some("the map is defined in another way")
            } else {
                (!same.types(a, b, 0)).then_some("it has another type")
            };
            if let Some(what) = what {
                let name = |node: &Node<'_>| {
                    let input = self.inputs.get(node.input);
                    input.map_or_else(String::new, |input| input.name.to_owned())
                };
                return Err(StaticLinkError::Mismatch {
                    symbol: self.name(node).to_owned(),
                    first: name(other),
                    second: name(node),
                    what,
                });
            }
        }
        Ok(())
    }
}

/// A comparison of types of the output. The first that differ end it.
struct Same<'b> {
    btf: &'b Btf<'b>,
    /// Pairs that were found to be the same or are being compared.
    seen: BTreeSet<(TypeId, TypeId)>,
}

impl Same<'_> {
    /// Whether two map definitions agree in every member.
    fn maps(&mut self, a: TypeId, b: TypeId) -> bool {
        let btf = self.btf;
        let read = |id| maps::definition(btf, id).ok();
        let (Some(mut a), Some(mut b)) = (read(a), read(b)) else {
            return false;
        };
        for (x, y) in [
            (&mut a.key_type_id, &mut b.key_type_id),
            (&mut a.value_type_id, &mut b.value_type_id),
        ] {
            if (*x == 0) != (*y == 0) || *x != 0 && !self.types(*x, *y, 0) {
                return false;
            }
            (*x, *y) = (0, 0);
        }
        let inner = |map: &mut crate::spec::MapSpec| {
            map.inner.take().map(|mut inner| {
                (inner.key_type_id, inner.value_type_id) = (0, 0);
                inner
            })
        };
        inner(&mut a) == inner(&mut b) && a == b
    }

    /// Whether two types are the same to a program: names and sizes of
    /// structures, shapes of the rest.
    fn types(&mut self, a: TypeId, b: TypeId, depth: u32) -> bool {
        if a == b {
            return true;
        }
        let btf = self.btf;
        let skip = |id| btf.skip_modifiers_and_typedefs(id);
        let (Some((a, x)), Some((b, y))) = (skip(a), skip(b)) else {
            return false;
        };
        if a == b || depth > MAX_DEPTH || !self.seen.insert((a, b)) {
            return true;
        }
        let named = |ty: &Type<'_>| btf.name_bytes(ty.name_off());
        let record = |kind| matches!(kind, Kind::STRUCT | Kind::UNION | Kind::FWD);
        if x.kind() == Kind::FWD || y.kind() == Kind::FWD {
            return record(x.kind()) && record(y.kind()) && named(&x) == named(&y);
        }
        if x.kind() != y.kind() {
            return false;
        }
        let mut next = |a: Option<TypeId>, b: Option<TypeId>| match (a, b) {
            (Some(a), Some(b)) => self.types(a, b, depth + 1),
            _ => false,
        };
        match x.kind() {
            Kind::VOID => true,
            Kind::INT => x.size() == y.size() && x.int() == y.int(),
            Kind::STRUCT | Kind::UNION => {
                x.size() == y.size() && named(&x) == named(&y) && x.vlen() == y.vlen()
            }
            Kind::PTR => next(x.target(), y.target()),
            Kind::ARRAY => match (x.array(), y.array()) {
                (Some(x), Some(y)) => {
                    // A declaration may leave the length open.
                    (x.len == y.len || x.len == 0 || y.len == 0)
                        && next(Some(x.element), Some(y.element))
                }
                _ => false,
            },
            Kind::FUNC_PROTO => {
                x.vlen() == y.vlen()
                    && self.types(x.payload, y.payload, depth + 1)
                    && x.params()
                        .zip(y.params())
                        .all(|(x, y)| self.types(x.type_id, y.type_id, depth + 1))
            }
            _ => x.size() == y.size(),
        }
    }
}
