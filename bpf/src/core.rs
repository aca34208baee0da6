//! CO-RE during a load: one resolver for all programs, and the poison that
//! explains a refusal.

use ebpf_manager_elf::core_relo::{Poison, ReloKind, Resolver, poisoned_relo};
use ebpf_manager_elf::{LinkedProgram, ProgramSpec};

use crate::error::{KernelBtfError, ProgramError};

/// Resolves the CO-RE relocations of one program after the other.
pub(crate) struct CoreRelocator<'a> {
    /// `None` if the object has no such relocations.
    resolver: Option<Resolver<'a>>,
    /// Why the kernel's types cannot be had; programs that need them fail.
    missing: Option<KernelBtfError>,
}

impl<'a> CoreRelocator<'a> {
    pub(crate) fn new(
        resolver: Option<Resolver<'a>>,
        missing: Option<KernelBtfError>,
    ) -> CoreRelocator<'a> {
        CoreRelocator { resolver, missing }
    }

    /// Patches a linked program. `poisons` are its instructions that cannot
    /// work on this kernel.
    pub(crate) fn apply(
        &mut self,
        spec: &ProgramSpec,
        linked: &mut LinkedProgram,
        poisons: &mut Vec<Poison>,
    ) -> Result<(), ProgramError> {
        poisons.clear();
        let Some(resolver) = &mut self.resolver else {
            return Ok(());
        };
        if let Some(missing) = &self.missing
            && linked
                .core_relos
                .iter()
                .any(|relo| relo.record.kind != ReloKind::TYPE_ID_LOCAL.0)
        {
            return Err(ProgramError::KernelBtf {
                program: spec.name.clone(),
                source: missing.clone(),
            });
        }
        for (index, relo) in (0..).zip(&linked.core_relos) {
            let at = relo.insn as usize;
            match resolver.apply(&mut linked.insns, at, &relo.record, index) {
                Ok(poison) => poisons.extend(poison),
                Err(source) => {
                    return Err(ProgramError::CoRe {
                        program: spec.name.clone(),
                        source,
                    });
                }
            }
        }
        Ok(())
    }
}

/// What the verifier stumbled over when it reports an unknown function of
/// this number.
pub(crate) fn explain(poisons: &[Poison], function: u32) -> Option<String> {
    let index = poisoned_relo(function)?;
    let poison = poisons.iter().find(|p| p.index == index)?;
    Some(format!("CO-RE relocation cannot be satisfied: {poison}"))
}
