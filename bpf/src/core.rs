//! CO-RE during a load: one resolver for all programs, and the poison that
//! explains a refusal.

use ebpf_manager_elf::btf::ext::CoreRelo;
use ebpf_manager_elf::core_relo::{Poison, ReloKind, Resolver, describe, poisoned_relo};
use ebpf_manager_elf::{LinkedProgram, Linker, ProgramSpec};
use ebpf_manager_sys::abi::insn::Insn;

use crate::error::{KernelBtfError, ProgramError};
use crate::verify::Prepared;

/// Resolves the CO-RE relocations of one program after the other.
pub(crate) struct CoreRelocator<'a> {
    /// `None` if the object has no such relocations.
    resolver: Option<Resolver<'a>>,
    /// Why the kernel's types cannot be had; programs that need them fail.
    missing: Option<KernelBtfError>,
    /// The kernel resolves them.
    by_kernel: bool,
}

impl<'a> CoreRelocator<'a> {
    pub(crate) fn new(
        resolver: Option<Resolver<'a>>,
        missing: Option<KernelBtfError>,
        by_kernel: bool,
    ) -> CoreRelocator<'a> {
        CoreRelocator {
            resolver,
            missing,
            by_kernel,
        }
    }

    /// If the kernel is to resolve them, the relocations of a program in its
    /// words, once the program's instructions stay where they are.
    pub(crate) fn hand_over(&self, linked: &LinkedProgram, records: &mut Vec<u8>) {
        records.clear();
        for relo in linked.core_relos.iter().filter(|_| self.by_kernel) {
            let CoreRelo {
                type_id,
                access_off,
                kind,
                ..
            } = relo.record;
            let offset = relo.insn * size_of::<Insn>() as u32;
            for word in [offset, type_id, access_off, kind] {
                records.extend_from_slice(&word.to_ne_bytes());
            }
        }
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
        if !cfg!(feature = "co-re") {
            if self.by_kernel || linked.core_relos.is_empty() {
                return Ok(());
            }
            return Err(ProgramError::LeftOut {
                program: spec.name.clone(),
                what: "CO-RE relocations, which this kernel does not resolve",
                feature: "co-re",
            });
        }
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
/// this number at instruction `insn`.
pub(crate) fn explain(
    program: &Prepared,
    linker: &Linker<'_>,
    function: u32,
    insn: Option<u32>,
) -> Option<String> {
    let index = poisoned_relo(function)?;
    if program.core_relos.is_empty() {
        let poison = program.poisons.iter().find(|p| p.index == index)?;
        return Some(format!("CO-RE relocation cannot be satisfied: {poison}"));
    }
    // The kernel gives all of them one number.
    let mut relos = program.linked.core_relos.iter();
    let relo = relos.find(|relo| Some(relo.insn) == insn)?.record;
    Some(format!(
        "CO-RE relocation cannot be satisfied: {} of {}: so says the kernel",
        ReloKind(relo.kind),
        describe(linker.btf()?, &relo)
    ))
}
