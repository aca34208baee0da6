//! What a relocation points at: a path of fields and array elements.

use crate::btf::ext::CoreRelo;
use crate::btf::{Btf, Kind, TypeId};

use super::matching::Budget;
use super::{CoreProblem, ReloKind};

/// Steps of an access string at most: `BPF_CORE_SPEC_MAX_LEN`.
pub(super) const MAX_LEN: usize = 64;

/// A step that means something to the source: a named member, an element of
/// an array, an enumerator. Anonymous structs on the way are left out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Accessor {
    /// The struct, the array's element type, or the enumeration.
    pub(super) type_id: TypeId,
    /// Number of the member, element or enumerator.
    pub(super) index: u32,
    /// Name of the member or enumerator; 0 for an element.
    pub(super) name_off: u32,
}

/// A path from a root type, in one BTF.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) kind: ReloKind,
    pub(super) root: TypeId,
    pub(super) accessors: Vec<Accessor>,
    /// Steps taken, counting those through anonymous members.
    pub(super) steps: usize,
    pub(super) bit_offset: u64,
    /// Members gone through in a target, anonymous ones included: the struct
    /// and the number in it.
    pub(super) members: Vec<(TypeId, u32)>,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            kind: ReloKind::TYPE_EXISTS,
            root: 0,
            accessors: Vec::new(),
            steps: 0,
            bit_offset: 0,
            members: Vec::new(),
        }
    }
}

impl Spec {
    /// Begins anew, keeping the memory.
    pub(super) fn reset(&mut self, kind: ReloKind, root: TypeId) {
        self.kind = kind;
        self.root = root;
        self.accessors.clear();
        self.members.clear();
        self.steps = 0;
        self.bit_offset = 0;
    }

    /// One more step, unless there are too many.
    pub(super) fn step(&mut self) -> Result<(), CoreProblem> {
        if self.steps >= MAX_LEN {
            return Err(CoreProblem::TooDeep);
        }
        self.steps += 1;
        Ok(())
    }

    /// Adds the offset of element `index` of an array of `type_id`.
    pub(super) fn add_element(
        &mut self,
        btf: &Btf<'_>,
        type_id: TypeId,
        index: u32,
        budget: &mut Budget,
    ) -> Result<(), CoreProblem> {
        let size = budget.size_of(btf, type_id)?;
        // 32 by 32 by 3 bits do not fit 64 bits in the worst case.
        let bits = (size as u64 * index as u64).checked_mul(8);
        self.bit_offset = bits
            .and_then(|bits| self.bit_offset.checked_add(bits))
            .ok_or(CoreProblem::BadAccess)?;
        Ok(())
    }

    /// Reads the access string of a relocation against the object's types.
    pub(super) fn parse(
        &mut self,
        btf: &Btf<'_>,
        relo: &CoreRelo,
        budget: &mut Budget,
    ) -> Result<(), CoreProblem> {
        let kind = ReloKind(relo.kind);
        self.reset(kind, relo.type_id);
        if kind.is_type() {
            return if btf.name_is(relo.access_off, b"0") {
                Ok(())
            } else {
                Err(CoreProblem::BadAccess)
            };
        }
        if !kind.is_field() && !kind.is_enumval() {
            return Err(CoreProblem::UnknownKind(relo.kind));
        }
        let mut steps = btf.name_bytes(relo.access_off).split(|&byte| byte == b':');
        let first = number(steps.next())?;
        let (mut id, mut ty) = budget.skip(btf, relo.type_id)?;
        self.step()?;
        if kind.is_enumval() {
            let value = ty.enumerator(first).ok_or(CoreProblem::BadAccess)?;
            if steps.next().is_some() {
                return Err(CoreProblem::BadAccess);
            }
            self.accessors.push(Accessor {
                type_id: id,
                index: first,
                name_off: value.name_off,
            });
            return Ok(());
        }
        self.accessors.push(Accessor {
            type_id: id,
            index: first,
            name_off: 0,
        });
        self.add_element(btf, id, first, budget)?;
        for step in steps {
            let index = number(Some(step))?;
            self.step()?;
            id = match ty.kind() {
                Kind::STRUCT | Kind::UNION => {
                    let member = ty.member(index).ok_or(CoreProblem::BadAccess)?;
                    self.bit_offset = self
                        .bit_offset
                        .checked_add(member.bit_offset as u64)
                        .ok_or(CoreProblem::BadAccess)?;
                    if member.name_off != 0 {
                        if btf.name_bytes(member.name_off).is_empty() {
                            return Err(CoreProblem::BadAccess);
                        }
                        self.accessors.push(Accessor {
                            type_id: id,
                            index,
                            name_off: member.name_off,
                        });
                    }
                    member.type_id
                }
                Kind::ARRAY => {
                    let array = ty.array().ok_or(CoreProblem::BadType)?;
                    if index >= array.len && !self.ends_in_flexible(btf, array.len) {
                        return Err(CoreProblem::BadAccess);
                    }
                    let (element, _) = budget.skip(btf, array.element)?;
                    self.accessors.push(Accessor {
                        type_id: element,
                        index,
                        name_off: 0,
                    });
                    self.add_element(btf, element, index, budget)?;
                    element
                }
                _ => return Err(CoreProblem::BadAccess),
            };
            (id, ty) = budget.skip(btf, id)?;
        }
        Ok(())
    }

    /// Whether an array of `len` elements that the path has come to is a
    /// flexible one: without length, and the last member of its struct.
    pub(super) fn ends_in_flexible(&self, btf: &Btf<'_>, len: u32) -> bool {
        let Some(last) = self.accessors.last() else {
            return false;
        };
        if last.name_off == 0 || len > 0 {
            return false;
        }
        btf.get(last.type_id)
            .is_some_and(|ty| ty.vlen() == last.index + 1)
    }

    /// Appends the path as source code spells it.
    pub(super) fn describe(&self, btf: &Btf<'_>, text: &mut String) {
        for (nth, accessor) in self.accessors.iter().enumerate() {
            if accessor.name_off != 0 {
                text.push_str(if self.kind.is_enumval() { "::" } else { "." });
                text.push_str(btf.name(accessor.name_off));
            } else if nth > 0 || accessor.index > 0 {
                text.push('[');
                text.push_str(&accessor.index.to_string());
                text.push(']');
            }
        }
    }
}

/// A step of an access string.
fn number(step: Option<&[u8]>) -> Result<u32, CoreProblem> {
    step.filter(|digits| digits.iter().all(u8::is_ascii_digit))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok())
        .ok_or(CoreProblem::BadAccess)
}
