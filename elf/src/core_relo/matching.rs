//! When a type of the kernel stands for a type of the object.
//!
//! Three relations, each looser than C's: a *field* path exists in the target
//! by names, whatever the layout; types are *compatible* if of one kind; types
//! *match* if the target has every member the object knows.

use crate::btf::{Btf, Kind, Type, TypeId, essential_name};

use super::spec::{Accessor, Spec};
use super::{CoreProblem, ReloKind};

/// References followed in one comparison, and function prototypes nested in
/// each other, as in libbpf.
const MAX_DEPTH: u32 = 32;

/// Steps of work allowed for one relocation. Nesting alone does not bound the
/// work, since types can share members; real kernels need some ten thousand.
pub(super) const BUDGET: u32 = 1 << 20;

/// Steps allowed for all relocations of an object: about a second. Large
/// objects need some million.
pub(super) const TOTAL: u32 = 1 << 26;

/// Steps that looking at a type counts for.
const TYPE: u32 = 8;

/// What is left of it.
#[derive(Debug)]
pub(super) struct Budget(pub(super) u32);

impl Budget {
    pub(super) fn spend(&mut self, steps: u32) -> Result<(), CoreProblem> {
        let left = self.0.checked_sub(steps);
        self.0 = left.unwrap_or_default();
        left.map(|_| ()).ok_or(CoreProblem::TooComplex)
    }

    /// The type behind typedefs and modifiers.
    pub(super) fn skip<'a>(
        &mut self,
        btf: &Btf<'a>,
        id: TypeId,
    ) -> Result<(TypeId, Type<'a>), CoreProblem> {
        let mut looked_at = 0;
        let found = btf.skip_counting(id, &mut looked_at);
        self.spend(looked_at * TYPE)?;
        found.ok_or(CoreProblem::BadType)
    }

    /// The size of a type.
    pub(super) fn size_of(&mut self, btf: &Btf<'_>, id: TypeId) -> Result<u32, CoreProblem> {
        let mut looked_at = 0;
        let size = btf.size_counting(id, &mut looked_at);
        self.spend(looked_at * TYPE)?;
        size.ok_or(CoreProblem::Unsized)
    }

    /// For a comparison with a name.
    fn spend_name(&mut self, name: &[u8]) -> Result<(), CoreProblem> {
        self.spend(1 + name.len() as u32 / 64)
    }
}

/// Follows the path `local` in type `id` of `target`; `to` becomes the path
/// there.
pub(super) fn matches(
    local_btf: &Btf<'_>,
    local: &Spec,
    target: &Btf<'_>,
    id: TypeId,
    to: &mut Spec,
    budget: &mut Budget,
) -> Result<bool, CoreProblem> {
    to.reset(local.kind, id);
    let pair = Pair {
        local: local_btf,
        target,
    };
    if local.kind == ReloKind::TYPE_MATCHES {
        return pair.types_match(local.root, id, false, MAX_DEPTH, budget);
    }
    if local.kind.is_type() {
        return pair.types_compatible(local.root, id, MAX_DEPTH, budget);
    }
    if local.kind.is_enumval() {
        return pair.enumerator(local, id, to, budget);
    }
    let mut id = id;
    for (nth, accessor) in local.accessors.iter().enumerate() {
        let (target_id, ty) = budget.skip(target, id)?;
        if accessor.name_off != 0 {
            match pair.member(accessor, target_id, &ty, to, budget)? {
                Some(next) => id = next,
                None => return Ok(false),
            }
            continue;
        }
        id = target_id;
        // The first step counts whole roots; later ones enter an array.
        if nth > 0 {
            let Some(array) = ty.array() else {
                return Ok(false);
            };
            if accessor.index >= array.len && !to.ends_in_flexible(target, array.len) {
                return Ok(false);
            }
            id = budget.skip(target, array.element)?.0;
        }
        to.step()?;
        to.accessors.push(Accessor {
            type_id: id,
            index: accessor.index,
            name_off: 0,
        });
        to.add_element(target, id, accessor.index, budget)?;
    }
    Ok(true)
}

/// Whether the types are compatible, roots included.
pub(super) fn types_compatible(
    local_btf: &Btf<'_>,
    local: TypeId,
    target_btf: &Btf<'_>,
    target: TypeId,
) -> Result<bool, CoreProblem> {
    let pair = Pair {
        local: local_btf,
        target: target_btf,
    };
    pair.types_compatible(local, target, MAX_DEPTH, &mut Budget(BUDGET))
}

/// The two sides of a comparison.
#[derive(Clone, Copy)]
struct Pair<'b, 'a> {
    local: &'b Btf<'a>,
    target: &'b Btf<'a>,
}

impl<'a> Pair<'_, 'a> {
    /// Both types behind typedefs and modifiers.
    #[allow(clippy::type_complexity, reason = "two ids with their types")]
    fn skip(
        &self,
        local: TypeId,
        target: TypeId,
        budget: &mut Budget,
    ) -> Result<((TypeId, Type<'a>), (TypeId, Type<'a>)), CoreProblem> {
        let local = budget.skip(self.local, local)?;
        Ok((local, budget.skip(self.target, target)?))
    }

    /// Equal names, flavours aside.
    fn same_name(&self, local: u32, target: u32, budget: &mut Budget) -> Result<bool, CoreProblem> {
        let name = essential_name(self.local.name_bytes(local));
        self.is_named(target, name, budget)
    }

    /// Whether a name of the target is `name` once its flavour is taken off.
    fn is_named(&self, target: u32, name: &[u8], budget: &mut Budget) -> Result<bool, CoreProblem> {
        budget.spend_name(name)?;
        // Most names differ early, long before their ends are found.
        if !self.target.strings_from(target).starts_with(name) {
            return Ok(false);
        }
        let whole = self.target.name_bytes(target);
        budget.spend(whole.len() as u32 / 16)?;
        Ok(essential_name(whole) == name)
    }

    /// Finds the named member that `accessor` stands for in the struct `ty`
    /// (`id`), or in anonymous ones inside it. Answers with its type.
    fn member(
        &self,
        accessor: &Accessor,
        id: TypeId,
        ty: &Type<'_>,
        to: &mut Spec,
        budget: &mut Budget,
    ) -> Result<Option<TypeId>, CoreProblem> {
        let local_member = self
            .local
            .get(accessor.type_id)
            .and_then(|ty| ty.member(accessor.index))
            .ok_or(CoreProblem::BadType)?;
        let name = self.local.name_bytes(accessor.name_off);
        if name.is_empty() {
            return Err(CoreProblem::BadAccess);
        }
        self.member_named(name, local_member.type_id, id, ty, to, budget)
    }

    fn member_named(
        &self,
        name: &[u8],
        local_type: TypeId,
        id: TypeId,
        ty: &Type<'_>,
        to: &mut Spec,
        budget: &mut Budget,
    ) -> Result<Option<TypeId>, CoreProblem> {
        let (steps, accessors, bit_offset) = (to.steps, to.accessors.len(), to.bit_offset);
        let members = to.members.len();
        let mut index = 0;
        while let Some(member) = ty.member(index) {
            budget.spend_name(name)?;
            let name_off = member.name_off;
            let text = self.target.strings_from(name_off);
            let rest = text.strip_prefix(name);
            let named = rest.is_some_and(|rest| rest.first() == Some(&0));
            if named || matches!(text.first(), Some(0) | None) {
                // Each level takes a step, so no nesting is deeper than a path
                // may be long.
                to.step()?;
                to.bit_offset = bit_offset
                    .checked_add(member.bit_offset as u64)
                    .ok_or(CoreProblem::BadAccess)?;
                to.members.push((id, index));
                if named {
                    to.accessors.push(Accessor {
                        type_id: id,
                        index,
                        name_off,
                    });
                    // Names are unique in a struct: a type that does not fit
                    // ends the search in this one.
                    let fits = self.fields_compatible(local_type, member.type_id, budget)?;
                    return Ok(fits.then_some(member.type_id));
                }
                let (inner_id, inner) = budget.skip(self.target, member.type_id)?;
                let found = self.member_named(name, local_type, inner_id, &inner, to, budget)?;
                if found.is_some() {
                    return Ok(found);
                }
                to.steps = steps;
                to.accessors.truncate(accessors);
                to.members.truncate(members);
            }
            index += 1;
        }
        Ok(None)
    }

    /// Whether fields of these types can stand for each other: any structs or
    /// unions, pointers, floats, integers; enumerations and forward
    /// declarations of one name; arrays of such.
    fn fields_compatible(
        &self,
        local: TypeId,
        target: TypeId,
        budget: &mut Budget,
    ) -> Result<bool, CoreProblem> {
        let (mut local_id, mut target_id) = (local, target);
        for _ in 0..MAX_DEPTH {
            let ((_, local), (_, target)) = self.skip(local_id, target_id, budget)?;
            if local.kind().is_composite() && target.kind().is_composite() {
                return Ok(true);
            }
            if !kinds_compatible(&local, &target) {
                return Ok(false);
            }
            return Ok(match local.kind() {
                Kind::PTR | Kind::FLOAT => true,
                Kind::FWD | Kind::ENUM | Kind::ENUM64 => {
                    let local = essential_name(self.local.name_bytes(local.name_off()));
                    let target = essential_name(self.target.name_bytes(target.name_off()));
                    local.is_empty() || target.is_empty() || local == target
                }
                Kind::INT => no_bit_offset(&local) && no_bit_offset(&target),
                Kind::ARRAY => {
                    let (Some(local), Some(target)) = (local.array(), target.array()) else {
                        return Err(CoreProblem::BadType);
                    };
                    (local_id, target_id) = (local.element, target.element);
                    continue;
                }
                _ => false,
            });
        }
        Err(CoreProblem::TooDeep)
    }

    /// Finds the enumerator of the same name, flavours aside.
    fn enumerator(
        &self,
        local: &Spec,
        id: TypeId,
        to: &mut Spec,
        budget: &mut Budget,
    ) -> Result<bool, CoreProblem> {
        let accessor = local.accessors.first().ok_or(CoreProblem::BadAccess)?;
        let (type_id, ty) = budget.skip(self.target, id)?;
        let name = essential_name(self.local.name_bytes(accessor.name_off));
        for (index, value) in (0..).zip(ty.enumerators()) {
            if self.is_named(value.name_off, name, budget)? {
                to.step()?;
                to.accessors.push(Accessor {
                    type_id,
                    index,
                    name_off: value.name_off,
                });
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether types are of one kind, through pointers, arrays, parameters
    /// and results. Names were compared at the root, and do not matter below.
    fn types_compatible(
        &self,
        local: TypeId,
        target: TypeId,
        level: u32,
        budget: &mut Budget,
    ) -> Result<bool, CoreProblem> {
        let (mut local_id, mut target_id) = (local, target);
        let roots = self.local.get(local).zip(self.target.get(target));
        let (local, target) = roots.ok_or(CoreProblem::BadType)?;
        if !kinds_compatible(&local, &target) {
            return Ok(false);
        }
        for _ in 0..MAX_DEPTH {
            let ((_, local), (_, target)) = self.skip(local_id, target_id, budget)?;
            if !kinds_compatible(&local, &target) {
                return Ok(false);
            }
            (local_id, target_id) = match local.kind() {
                Kind::VOID | Kind::STRUCT | Kind::UNION | Kind::ENUM | Kind::FWD | Kind::ENUM64 => {
                    return Ok(true);
                }
                Kind::INT => return Ok(no_bit_offset(&local) && no_bit_offset(&target)),
                Kind::PTR => (local.payload, target.payload),
                Kind::ARRAY => match (local.array(), target.array()) {
                    (Some(local), Some(target)) => (local.element, target.element),
                    _ => return Err(CoreProblem::BadType),
                },
                Kind::FUNC_PROTO => {
                    if local.vlen() != target.vlen() {
                        return Ok(false);
                    }
                    let level = level.checked_sub(1).ok_or(CoreProblem::TooDeep)?;
                    for (local, target) in local.params().zip(target.params()) {
                        let ((local, _), (target, _)) =
                            self.skip(local.type_id, target.type_id, budget)?;
                        if !self.types_compatible(local, target, level, budget)? {
                            return Ok(false);
                        }
                    }
                    (local.payload, target.payload)
                }
                _ => return Ok(false),
            };
        }
        Err(CoreProblem::TooDeep)
    }

    /// Whether the target has all that the object's type has: members of
    /// structs by name and matching type (behind a pointer the name is
    /// enough), enumerators by name, integers of equal size and sign, arrays
    /// of equal length, functions of equal parameters.
    fn types_match(
        &self,
        local: TypeId,
        target: TypeId,
        behind_pointer: bool,
        level: u32,
        budget: &mut Budget,
    ) -> Result<bool, CoreProblem> {
        if level == 0 {
            return Err(CoreProblem::TooDeep);
        }
        let (mut local_id, mut target_id) = (local, target);
        let mut behind_pointer = behind_pointer;
        for _ in 0..MAX_DEPTH {
            let ((_, local), (_, target)) = self.skip(local_id, target_id, budget)?;
            if !self.same_name(local.name_off(), target.name_off(), budget)? {
                return Ok(false);
            }
            let (kind, target_kind) = (local.kind(), target.kind());
            (local_id, target_id) = match kind {
                Kind::VOID => return Ok(target_kind == kind),
                Kind::FWD => {
                    let stands_for = if local.kind_flag() {
                        Kind::UNION
                    } else {
                        Kind::STRUCT
                    };
                    return Ok(match target_kind {
                        Kind::FWD => local.kind_flag() == target.kind_flag(),
                        other => behind_pointer && other == stands_for,
                    });
                }
                Kind::ENUM | Kind::ENUM64 => {
                    return self.enums_match(&local, &target, budget);
                }
                Kind::STRUCT | Kind::UNION if behind_pointer => {
                    return Ok(match target_kind {
                        Kind::FWD => (kind == Kind::UNION) == target.kind_flag(),
                        other => other == kind,
                    });
                }
                _ if kind != target_kind => return Ok(false),
                Kind::STRUCT | Kind::UNION => {
                    return self.members_match(&local, &target, level, budget);
                }
                Kind::INT => {
                    let signed = |ty: &Type<'_>| ty.int().is_some_and(|int| int.signed);
                    return Ok(local.size() == target.size() && signed(&local) == signed(&target));
                }
                Kind::PTR => {
                    behind_pointer = true;
                    (local.payload, target.payload)
                }
                Kind::ARRAY => match (local.array(), target.array()) {
                    (Some(local), Some(target)) if local.len == target.len => {
                        (local.element, target.element)
                    }
                    _ => return Ok(false),
                },
                Kind::FUNC_PROTO => {
                    if local.vlen() != target.vlen() {
                        return Ok(false);
                    }
                    for (local, target) in local.params().zip(target.params()) {
                        let (local, target) = (local.type_id, target.type_id);
                        if !self.types_match(local, target, behind_pointer, level - 1, budget)? {
                            return Ok(false);
                        }
                    }
                    (local.payload, target.payload)
                }
                _ => return Ok(false),
            };
        }
        Err(CoreProblem::TooDeep)
    }

    fn enums_match(
        &self,
        local: &Type<'_>,
        target: &Type<'_>,
        budget: &mut Budget,
    ) -> Result<bool, CoreProblem> {
        if !target.kind().is_any_enum()
            || local.size() != target.size()
            || local.vlen() > target.vlen()
        {
            return Ok(false);
        }
        for value in local.enumerators() {
            let name = essential_name(self.local.name_bytes(value.name_off));
            let mut found = false;
            for other in target.enumerators() {
                found = self.is_named(other.name_off, name, budget)?;
                if found {
                    break;
                }
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn members_match(
        &self,
        local: &Type<'_>,
        target: &Type<'_>,
        level: u32,
        budget: &mut Budget,
    ) -> Result<bool, CoreProblem> {
        if local.vlen() > target.vlen() {
            return Ok(false);
        }
        for member in local.members() {
            let name = essential_name(self.local.name_bytes(member.name_off));
            let mut found = false;
            for other in target.members() {
                found = self.is_named(other.name_off, name, budget)?
                    && self.types_match(member.type_id, other.type_id, false, level - 1, budget)?;
                if found {
                    break;
                }
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// One kind, where the two sorts of enumeration count as one.
fn kinds_compatible(local: &Type<'_>, target: &Type<'_>) -> bool {
    let (local, target) = (local.kind(), target.kind());
    local == target || local.is_any_enum() && target.is_any_enum()
}

/// Not one of the integers by which old compilers described bitfields.
fn no_bit_offset(ty: &Type<'_>) -> bool {
    ty.int().is_some_and(|int| int.bit_offset == 0)
}
