//! The part of a kernel's BTF that some objects need.
//!
//! A kernel's BTF has megabytes; what the CO-RE relocations of an object look
//! at are some kilobytes, small enough to ship for every kernel that lacks
//! BTF of its own. Kept are the types that relocations start from, of structs
//! the members and of enumerations the values on their paths, and of pointers
//! what they lead to only where types are compared as a whole.

use std::collections::{BTreeMap, BTreeSet};

use super::matching::{self, Budget};
use super::spec::Spec;
use super::{CoreProblem, ReloKind, Resolution, Resolver, add_roots, describe};
use crate::Linker;
use crate::btf::encode::BtfBuilder;
use crate::btf::ext::CoreRelo;
use crate::btf::{Btf, BtfError, Kind, NameQuery, Type, TypeId, essential_name};
use crate::cursor::words_at;

/// No smaller BTF could be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MinimiseError {
    /// The kernel's BTF is damaged, or the result does not fit the format.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A relocation would get another answer from the smaller BTF, which only
    /// damaged input makes possible.
    #[error("the smaller BTF would answer {kind} of {spec} differently")]
    Differs {
        /// What is asked for.
        kind: ReloKind,
        /// Of what.
        spec: Box<str>,
    },
}

/// Makes the small BTF that answers the CO-RE relocations of all `objects` as
/// `kernel`, a whole kernel's BTF, does. Objects without relocations add
/// nothing.
///
/// Every relocation is resolved against both before the result is handed out,
/// and must have the same answer: value, width, poison or error. The one
/// exception is `TYPE_ID_TARGET`, since types are renumbered: its answer is
/// the type's number in the new BTF.
///
/// # Errors
/// [`MinimiseError`].
pub fn minimise(kernel: &[u8], objects: &[&Linker<'_>]) -> Result<Vec<u8>, MinimiseError> {
    let mut query = NameQuery::new();
    for object in objects {
        if let Some(local) = object.btf() {
            add_roots(&mut query, local, object.core_relos());
        }
    }
    query.finish();
    let mut hits = Vec::new();
    let full = Btf::scan(kernel, None, &query, &mut hits)?;
    let mut keep = Keep {
        kernel: &full,
        marks: BTreeMap::new(),
        compared: BTreeSet::new(),
    };
    for object in objects {
        if let Some(local) = object.btf() {
            let mut resolver = Resolver::new(local, &query);
            resolver.add_target(&full, hits.clone());
            for relo in object.core_relos() {
                keep.relocation(&mut resolver, &relo);
            }
        }
    }
    let bytes = keep.encode()?;

    let mut small_hits = Vec::new();
    let small = Btf::scan(&bytes, None, &query, &mut small_hits)?;
    for object in objects {
        if let Some(local) = object.btf() {
            let mut before = Resolver::new(local, &query);
            before.add_target(&full, hits.clone());
            let mut after = Resolver::new(local, &query);
            after.add_target(&small, small_hits.clone());
            for relo in object.core_relos() {
                if !same(&relo, before.resolve(&relo), after.resolve(&relo)) {
                    return Err(MinimiseError::Differs {
                        kind: ReloKind(relo.kind),
                        spec: describe(local, &relo),
                    });
                }
            }
        }
    }
    Ok(bytes)
}

/// Whether two answers are the same but for the numbers of types.
fn same(
    relo: &CoreRelo,
    before: Result<Resolution, CoreProblem>,
    after: Result<Resolution, CoreProblem>,
) -> bool {
    let numbered = relo.kind == ReloKind::TYPE_ID_TARGET.0;
    let plain = |answer: Resolution| Resolution {
        target: None,
        new: if numbered && answer.target.is_some() {
            1
        } else {
            answer.new
        },
        ..answer
    };
    match (before, after) {
        // Several types of one name have different numbers before and after.
        (Err(CoreProblem::AmbiguousValue(..)), Err(CoreProblem::AmbiguousValue(..)))
            if numbered =>
        {
            true
        }
        (before, after) => before.map(plain) == after.map(plain),
    }
}

/// What is kept of a type.
#[derive(Debug, Default)]
struct Mark {
    /// What a pointer leads to, the parameters and the result of a prototype.
    references: bool,
    /// Members or enumerators, by number.
    parts: BTreeSet<u32>,
}

struct Keep<'b, 'a> {
    kernel: &'b Btf<'a>,
    marks: BTreeMap<TypeId, Mark>,
    /// Pairs of types that were compared as a whole.
    compared: BTreeSet<(TypeId, TypeId, bool)>,
}

impl Keep<'_, '_> {
    /// Keeps what decides about one relocation: of every type that has the
    /// name, what fits, and otherwise enough for it not to fit.
    fn relocation(&mut self, resolver: &mut Resolver<'_>, relo: &CoreRelo) {
        let local = resolver.local;
        let kind = ReloKind(relo.kind);
        let Some(ty) = local.get(relo.type_id) else {
            return;
        };
        let name = essential_name(local.name_bytes(ty.name_off()));
        if kind == ReloKind::TYPE_ID_LOCAL || name.is_empty() {
            return;
        }
        let mut budget = Budget(resolver.budget);
        let Ok(at) = resolver.root(relo.type_id, name, ty.kind(), &mut budget) else {
            return;
        };
        let candidates = resolver.roots.get(at).map(|root| root.candidates.clone());
        let mut path = Spec::default();
        let parsed = resolver.local_spec.parse(local, relo, &mut budget).is_ok();
        for (_, id) in candidates.unwrap_or_default() {
            self.keep(id, kind.is_type());
            if kind == ReloKind::TYPE_MATCHES {
                self.compare(local, relo.type_id, id, false, MAX_DEPTH);
            }
            if kind.is_type() || !parsed {
                continue;
            }
            let mut budget = Budget(matching::BUDGET);
            let (spec, kernel) = (&resolver.local_spec, self.kernel);
            let fits = matching::matches(local, spec, kernel, id, &mut path, &mut budget);
            if fits != Ok(true) {
                continue;
            }
            if kind.is_enumval() {
                if let Some(value) = path.accessors.first() {
                    self.keep_part(value.type_id, value.index);
                }
            } else {
                for &(id, index) in &path.members {
                    self.keep_part(id, index);
                }
            }
        }
    }

    /// Keeps a type without its parts, and what it takes to know its size; with
    /// `references` also what is behind pointers.
    fn keep(&mut self, id: TypeId, references: bool) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let Some(ty) = self.kernel.get(id).filter(|_| id != 0) else {
                continue;
            };
            let known = self.marks.contains_key(&id);
            let mark = self.marks.entry(id).or_default();
            if known && (mark.references || !references) {
                continue;
            }
            mark.references |= references;
            match ty.kind() {
                Kind::ARRAY => {
                    if let Some(array) = ty.array() {
                        pending.extend([array.element, array.index]);
                    }
                }
                Kind::PTR if references => pending.push(ty.payload),
                Kind::FUNC_PROTO if references => {
                    pending.push(ty.payload);
                    pending.extend(ty.params().map(|param| param.type_id));
                }
                kind if kind.is_modifier() || kind == Kind::TYPEDEF => pending.push(ty.payload),
                _ => {}
            }
        }
    }

    /// Keeps a member or enumerator.
    fn keep_part(&mut self, id: TypeId, index: u32) {
        self.keep(id, false);
        let Some(ty) = self.kernel.get(id) else {
            return;
        };
        if let Some(mark) = self.marks.get_mut(&id) {
            mark.parts.insert(index);
        }
        let Some(member) = ty.member(index) else {
            return;
        };
        self.keep(member.type_id, false);
        // An array without length counts as flexible only at the end.
        let (_, inner) = self
            .kernel
            .skip_modifiers_and_typedefs(member.type_id)
            .unwrap_or((0, Type::VOID));
        if inner.array().is_some_and(|array| array.len == 0) {
            let last = ty.vlen().saturating_sub(1);
            if last > index {
                self.keep_part(id, last);
            }
        }
    }

    /// Keeps all that is looked at when types are compared member by member.
    fn compare(&mut self, local: &Btf<'_>, from: TypeId, to: TypeId, pointed: bool, depth: u32) {
        self.keep(to, true);
        let first = self.compared.insert((from, to, pointed));
        if !first || depth == 0 || self.compared.len() > MAX_COMPARED {
            return;
        }
        let types = local
            .skip_modifiers_and_typedefs(from)
            .zip(self.kernel.skip_modifiers_and_typedefs(to));
        let Some(((_, from), (to_id, to))) = types else {
            return;
        };
        let depth = depth - 1;
        match to.kind() {
            Kind::ENUM | Kind::ENUM64 => {
                for index in 0..to.vlen() {
                    self.keep_part(to_id, index);
                }
            }
            Kind::STRUCT | Kind::UNION if !pointed => {
                // All members, since their number is compared.
                for (index, member) in (0..).zip(to.members()) {
                    self.keep_part(to_id, index);
                    let name = essential_name(self.kernel.name_bytes(member.name_off));
                    let same = from
                        .members()
                        .filter(|other| essential_name(local.name_bytes(other.name_off)) == name);
                    for other in same {
                        self.compare(local, other.type_id, member.type_id, false, depth);
                    }
                }
            }
            Kind::PTR if from.kind() == Kind::PTR => {
                self.compare(local, from.payload, to.payload, true, depth);
            }
            Kind::ARRAY => {
                if let Some((from, to)) = from.array().zip(to.array()) {
                    self.compare(local, from.element, to.element, pointed, depth);
                }
            }
            Kind::FUNC_PROTO if from.kind() == Kind::FUNC_PROTO => {
                for (from, to) in from.params().zip(to.params()) {
                    self.compare(local, from.type_id, to.type_id, pointed, depth);
                }
                self.compare(local, from.payload, to.payload, pointed, depth);
            }
            _ => {}
        }
    }

    /// Writes what is kept, in the kernel's order.
    fn encode(&self) -> Result<Vec<u8>, BtfError> {
        let ids: Vec<TypeId> = self.marks.keys().copied().collect();
        // What is not kept is not looked at: void stands for it.
        let renumber = |id: TypeId| ids.binary_search(&id).map_or(0, |at| at as u32 + 1);
        let mut builder = BtfBuilder::new();
        let mut data = Vec::new();
        for (&id, mark) in &self.marks {
            let Some(ty) = self.kernel.get(id) else {
                continue;
            };
            data.clear();
            let kind = ty.kind();
            let mut vlen = 0;
            let mut payload = ty.payload;
            match kind {
                Kind::STRUCT | Kind::UNION | Kind::ENUM | Kind::ENUM64 => {
                    for &index in &mark.parts {
                        self.part(&mut builder, &ty, index, &renumber, &mut data);
                    }
                    vlen = mark.parts.len();
                }
                Kind::INT => data.extend(words_at::<1>(ty.data, 0).unwrap_or_default()),
                Kind::ARRAY => {
                    if let Some(array) = ty.array() {
                        data.extend([renumber(array.element), renumber(array.index), array.len]);
                    }
                }
                Kind::PTR | Kind::FUNC_PROTO if !mark.references => payload = 0,
                Kind::FUNC_PROTO => {
                    for param in ty.params() {
                        data.extend([0, renumber(param.type_id)]);
                    }
                    vlen = data.len() / 2;
                    payload = renumber(payload);
                }
                Kind::VAR | Kind::DECL_TAG => {
                    data.extend(words_at::<1>(ty.data, 0).unwrap_or_default());
                    payload = renumber(payload);
                }
                _ if kind.refers() => payload = renumber(payload),
                _ => {}
            }
            let name = self.kernel.name(ty.name_off());
            builder.add(name, kind, ty.kind_flag(), vlen, payload, &data);
        }
        builder.to_bytes()
    }

    /// Appends a member or enumerator as it stands in the kernel's BTF.
    fn part(
        &self,
        builder: &mut BtfBuilder,
        ty: &Type<'_>,
        index: u32,
        renumber: &dyn Fn(TypeId) -> TypeId,
        data: &mut Vec<u32>,
    ) {
        let words = if ty.kind() == Kind::ENUM { 2 } else { 3 };
        let at = index as usize * words * 4;
        let Some([name, value]) = words_at(ty.data, at) else {
            return;
        };
        data.push(builder.add_string(self.kernel.name_bytes(name)));
        data.push(if ty.kind().is_composite() {
            renumber(value)
        } else {
            value
        });
        if words == 3 {
            data.extend(words_at::<1>(ty.data, at + 8).unwrap_or_default());
        }
    }
}

/// Nesting of compared types, as deep as matching goes.
const MAX_DEPTH: u32 = 32;

/// Pairs of types compared; more are in no real kernel.
const MAX_COMPARED: usize = 1 << 16;
