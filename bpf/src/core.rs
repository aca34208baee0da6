//! CO-RE during a load: one resolver for all programs, and the poison that
//! explains a refusal.

use ebpf_manager_elf::core_relo::{Poison, Resolver, poisoned_relo};
use ebpf_manager_elf::{LinkedProgram, ProgramSpec};

use crate::error::ProgramError;

/// Resolves the CO-RE relocations of one program after the other.
pub(crate) struct CoreRelocator<'a> {
    /// `None` if the object has no such relocations.
    resolver: Option<Resolver<'a>>,
    /// Instructions of the current program that cannot work on this kernel.
    poisons: Vec<Poison>,
}

impl<'a> CoreRelocator<'a> {
    pub(crate) fn new(resolver: Option<Resolver<'a>>) -> CoreRelocator<'a> {
        CoreRelocator {
            resolver,
            poisons: Vec::new(),
        }
    }

    /// Patches a linked program.
    pub(crate) fn apply(
        &mut self,
        spec: &ProgramSpec,
        linked: &mut LinkedProgram,
    ) -> Result<(), ProgramError> {
        self.poisons.clear();
        let Some(resolver) = &mut self.resolver else {
            return Ok(());
        };
        for (index, relo) in (0..).zip(&linked.core_relos) {
            let at = relo.insn as usize;
            match resolver.apply(&mut linked.insns, at, &relo.record, index) {
                Ok(poison) => self.poisons.extend(poison),
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

    /// What the verifier stumbled over when it reports an unknown function of
    /// this number.
    pub(crate) fn explain(&self, function: u32) -> Option<String> {
        let index = poisoned_relo(function)?;
        let poison = self.poisons.iter().find(|p| p.index == index)?;
        Some(format!("CO-RE relocation cannot be satisfied: {poison}"))
    }
}
