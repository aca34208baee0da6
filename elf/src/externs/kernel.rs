//! Functions and variables of the kernel, found in its BTF.

use super::ExternKind;
use crate::btf::{Btf, Kind, KindSet, NameHit, NameQuery, TypeId, essential_name};
use crate::core_relo;
use crate::error::{ObjectError, bad_symbol};
use crate::object::Object;
use crate::spec::ExternSpec;

impl Object {
    /// Adds the names of kernel functions and variables that the object
    /// declares, as far as they are `used`, to `query`, for one walk over the
    /// kernel's BTF.
    pub fn add_extern_names<'o>(&'o self, used: &[bool], query: &mut NameQuery<'o>) {
        for (symbol, used) in self.externs().iter().zip(used) {
            if *used && let Some((_, kind)) = symbol.typed() {
                query.add(symbol.kernel_name(), KindSet::of(&[kind]));
            }
        }
    }

    /// The kernel's function or variable for an extern: its id in the
    /// kernel's BTF. `None` if there is none of this name. `query` is the one
    /// that [`Object::add_extern_names`] added to, `hits` what it found.
    ///
    /// # Errors
    /// [`ObjectError::Symbol`] if the kernel has one of another type.
    pub fn find_extern(
        &self,
        symbol: &ExternSpec,
        query: &NameQuery<'_>,
        kernel: &Btf<'_>,
        hits: &[NameHit],
    ) -> Result<Option<TypeId>, ObjectError> {
        let wanted = symbol.typed().zip(query.position(symbol.kernel_name()));
        let (Some(((local_id, kind), position)), Some(local)) = (wanted, self.btf()) else {
            return Ok(None);
        };
        let mut found = false;
        for hit in hits.iter().filter(|hit| hit.name == position) {
            let target = kernel.get(hit.id).filter(|ty| ty.kind() == kind);
            let Some(target) = target.and_then(|ty| ty.target()) else {
                continue;
            };
            found = true;
            let target = kernel.skip_modifiers_and_typedefs(target);
            if target.is_some_and(|(target, _)| {
                core_relo::types_compatible(&local, local_id, kernel, target)
            }) {
                return Ok(Some(hit.id));
            }
        }
        if found {
            return Err(bad_symbol(
                &symbol.name,
                format_args!("the kernel's {kind} of this name has another type"),
            )
            .into());
        }
        Ok(None)
    }
}

impl ExternSpec {
    /// For a function or variable of the kernel: its type in the object's BTF
    /// and the kind it has in the kernel's.
    fn typed(&self) -> Option<(TypeId, Kind)> {
        match self.kind {
            ExternKind::Variable { type_id } => Some((type_id, Kind::VAR)),
            ExternKind::Function { type_id } => Some((type_id, Kind::FUNC)),
            _ => None,
        }
    }

    /// The name the kernel knows it by. A function may be declared several
    /// times under different flavours (`bpf_task_acquire___old`).
    fn kernel_name(&self) -> &[u8] {
        match self.kind {
            ExternKind::Function { .. } => essential_name(self.name.as_bytes()),
            _ => self.name.as_bytes(),
        }
    }
}
