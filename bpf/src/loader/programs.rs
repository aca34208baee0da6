//! The programs of a load: linked, relocated, patched and verified.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Loader;
use super::entry::Entry;
use super::fixups::{apply_fixups, explain_skipped};
use crate::collection::ProgramCopy;
use crate::core::{self, CoreRelocator};
use crate::error::{LoadError, ProgramError};
use crate::map::Map;
use crate::program::{Program, ProgramContext};
use crate::verify::{self, Prepared, Steps};

/// Programs, and those that failed.
pub(super) type Outcome = (Vec<Program>, Vec<(String, Arc<ProgramError>)>);

impl Loader<'_> {
    /// Links, relocates, patches and loads programs. Those that may fail and
    /// do are returned by name.
    pub(super) fn load_programs(
        &mut self,
        mut entries: Vec<Entry<'_>>,
        copies: &mut [ProgramCopy],
        mut core: CoreRelocator<'_>,
        maps: &[Option<Map>],
    ) -> Result<Outcome, LoadError> {
        let start = Instant::now();
        let mut relocating = Duration::ZERO;
        let license = self.object.license().unwrap_or_default();
        let license = CString::new(license).unwrap_or_default();
        let mut patchers = std::mem::take(&mut self.options.patchers);
        let mut failed: Vec<_> = entries.iter_mut().map(|e| e.failure.take()).collect();
        let (this, entries) = (&*self, entries.as_slice());
        let (object, linker, externs) = (this.object, this.linker, &this.externs);

        let mut prepare = |index: usize, program: &mut Prepared| {
            let Some(entry) = entries.get(index) else {
                return Ok(());
            };
            let spec = entry.spec.as_ref();
            if let Some(error) = failed.get_mut(index).and_then(Option::take) {
                return Err(error);
            }
            let start = Instant::now();
            let linked = &mut program.linked;
            linker
                .link(spec, linked)
                .map_err(|source| ProgramError::Link {
                    program: spec.name.clone(),
                    source,
                })?;
            core.apply(spec, linked, &mut program.poisons)?;
            let copy = entry.copy.and_then(|at| copies.get_mut(at));
            let own = copy.into_iter().flat_map(|copy| &mut copy.patchers);
            for patcher in patchers.iter_mut().chain(own) {
                patcher
                    .run(spec, linker, linked)
                    .map_err(|source| ProgramError::Patch {
                        program: spec.name.clone(),
                        source,
                    })?;
            }
            apply_fixups(
                object,
                externs,
                entry,
                maps,
                &mut program.jump_tables,
                linked,
            )?;
            core.hand_over(linked, &mut program.core_relos);
            relocating += start.elapsed();
            Ok(())
        };
        let btf = this.btf.as_ref().map(AsFd::as_fd);
        let modules = externs.descriptors();
        let kernel_version = object.kernel_version().unwrap_or(0);
        let log_limit = this.options.log_limit_bytes;
        let license = license.as_c_str();
        let verify = |index: usize, program: &Prepared| {
            let entry = &entries[index];
            let context = ProgramContext {
                attach_btf_id: entry.point.btf_id,
                attach_to: entry.point.of(),
                member: entry.point.member,
                modules: &modules,
                license,
                kernel_version,
                btf,
                log_limit,
                core_relos: &program.core_relos,
            };
            Program::load(
                &entry.spec,
                &program.linked,
                linker,
                context,
                &|id, insn| {
                    core::explain(program, linker, id, insn)
                        .or_else(|| externs.explain(id))
                        .or_else(|| explain_skipped(object, id))
                },
            )
        };
        let verdicts = verify::run(
            entries.len(),
            this.options.threads,
            &mut Steps {
                prepare: &mut prepare,
                verify: &verify,
                required: &|index| entries.get(index).is_none_or(|entry| entry.required),
            },
        );

        let mut programs = Vec::with_capacity(entries.len());
        let mut failures = Vec::new();
        for (entry, verdict) in entries.iter().zip(verdicts) {
            match verdict {
                Some(Ok(program)) => programs.push(program),
                Some(Err(err)) if entry.required => return Err(err.into()),
                Some(Err(err)) => {
                    failures.push((entry.spec.name.clone(), Arc::new(err)));
                }
                None => {}
            }
        }
        self.times.relocate += relocating;
        self.times.verify += start.elapsed().saturating_sub(relocating);
        Ok((programs, failures))
    }
}
