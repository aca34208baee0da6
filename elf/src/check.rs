//! What a kernel's BTF says about an object before anything is loaded: which
//! CO-RE relocations have an answer, which are poisoned and can be reached,
//! which kernel symbols and attach targets are missing.
//!
//! ```
//! use ebpf_manager_elf::Object;
//! use ebpf_manager_elf::check::{CheckError, check};
//!
//! /// Whether nothing speaks against loading the object on that kernel.
//! fn fits(object: &Object, kernel: &[u8]) -> Result<bool, CheckError> {
//!     let report = check(&object.linker()?, kernel, &[])?;
//!     Ok(!report.findings.iter().any(|finding| finding.required))
//! }
//! ```

use std::fmt;

use ebpf_manager_sys::abi::bpf::AttachType;
use ebpf_manager_sys::abi::insn::{Insn, pseudo};

use crate::btf::{Btf, BtfError, Kind, KindSet, NameHit, NameQuery};
use crate::core_relo::{CoreError, CoreProblem, Poison, ReloKind, Resolver, add_roots};
use crate::error::ObjectError;
use crate::externs::ExternKind;
use crate::link::{FixupTarget, LinkedProgram, Linker};
use crate::reach::reachable;
use crate::spec::{ExternSpec, ProgramSpec};

/// A check that could not be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The object is damaged.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The BTF of the kernel or a module is.
    #[error(transparent)]
    Btf(#[from] BtfError),
}

/// How the relocations of one object fare on one kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Relocations that have a value.
    pub matched: u32,
    /// Questions answered with no: what they ask for does not exist. Harmless
    /// by themselves.
    pub absent: u32,
    /// Relocations without an answer: their instructions are poisoned.
    pub missing: u32,
    /// Relocations that types of the kernel answer differently.
    pub ambiguous: u32,
    /// What else is wrong with a relocation.
    pub failed: u32,
    /// All that has no good answer, by program.
    pub findings: Vec<Finding>,
}

/// Something a kernel does not have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The program's index in [`Object::programs`](crate::Object::programs).
    pub program: usize,
    /// The instruction in the linked program; `None` if it is about the
    /// program as a whole.
    pub insn: Option<u32>,
    /// What is missing or wrong.
    pub fault: Fault,
    /// The program cannot be loaded without it. False for poison and calls of
    /// weak functions that are never reached (see
    /// [`reachable`]), for other uses of weak symbols, and for
    /// programs the object does not load by itself (`SEC("?…")`).
    ///
    /// The kernel's verifier has the last word: it may know that more is
    /// unreachable, from read-only data for example.
    pub required: bool,
}

/// What is missing or wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// A CO-RE relocation has no answer.
    Missing(Poison),
    /// A CO-RE relocation has several answers, or makes no sense.
    Failed(CoreError),
    /// The BTF has no function or variable of this name, or only one of
    /// another type.
    Symbol {
        /// Its name in the object.
        name: Box<str>,
        /// There is one of another type.
        other_type: bool,
    },
    /// Another object would have to define this symbol.
    Undefined(Box<str>),
    /// The BTF has no such function, tracepoint, hook or iterator for the
    /// program to attach to; the name of the type that would tell.
    Target(Box<str>),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing(poison) => poison.fmt(f),
            Fault::Failed(error) => {
                write!(f, "{} of {}: {}", error.kind, error.spec, error.what)
            }
            Fault::Symbol {
                name,
                other_type: true,
            } => write!(f, "symbol {name}: this kernel's is of another type"),
            Fault::Symbol { name, .. } => {
                write!(f, "symbol {name}: this kernel's BTF does not have it")
            }
            Fault::Undefined(name) => write!(f, "symbol {name}: no object defines it"),
            Fault::Target(name) => {
                write!(
                    f,
                    "attach target {name}: this kernel's BTF does not have it"
                )
            }
        }
    }
}

/// Checks all programs of an object against the BTF of a kernel, and the
/// split BTF of `modules` for what the kernel itself does not have.
///
/// Programs are linked and relocated as a load would do it; nothing is asked
/// of the running kernel.
///
/// # Errors
/// [`CheckError`] if the object or a BTF is damaged. What is missing is no
/// error but part of the report.
pub fn check(linker: &Linker<'_>, kernel: &[u8], modules: &[&[u8]]) -> Result<Report, CheckError> {
    let object = linker.object();
    let targets: Vec<Option<(String, Kind)>> = object.programs().iter().map(target).collect();
    let mut query = NameQuery::new();
    if let Some(local) = linker.btf() {
        add_roots(&mut query, local, linker.core_relos());
    }
    object.add_extern_names(&object.used_externs(object.programs()), &mut query);
    for (name, kind) in targets.iter().flatten() {
        query.add(name.as_bytes(), KindSet::of(&[*kind]));
    }
    query.finish();

    let mut found = Vec::with_capacity(1 + modules.len());
    let mut hits = Vec::new();
    let kernel = Btf::scan(kernel, None, &query, &mut hits)?;
    found.push(hits);
    let mut split = Vec::with_capacity(modules.len());
    for module in modules {
        let mut hits = Vec::new();
        split.push(Btf::scan(module, Some(&kernel), &query, &mut hits)?);
        found.push(hits);
    }
    let has = |name: &str, kind: Kind| {
        let position = query.position(name.as_bytes());
        let bears = |btf: &Btf<'_>, hit: &NameHit| {
            Some(hit.name) == position
                && btf.get(hit.id).is_some_and(|ty| {
                    // A longer name up to a flavour is another's.
                    ty.kind() == kind && btf.name_is(ty.name_off(), name.as_bytes())
                })
        };
        let mut all = std::iter::once(&kernel).chain(&split).zip(&found);
        all.any(|(btf, hits)| hits.iter().any(|hit| bears(btf, hit)))
    };

    let mut resolver = linker.btf().map(|local| {
        let mut resolver = Resolver::new(local, &query);
        for (btf, hits) in std::iter::once(&kernel).chain(&split).zip(&found) {
            resolver.add_target(btf, hits.clone());
        }
        resolver
    });
    let mut report = Report::default();
    let mut linked = LinkedProgram::default();
    for (program, spec) in object.programs().iter().enumerate() {
        linker.link(spec, &mut linked)?;
        // Findings that do no harm where they cannot be reached.
        let mut guarded = Vec::new();
        let mut find = |insn, fault, required: bool| Finding {
            program,
            insn,
            fault,
            required: required && spec.autoload,
        };
        if let Some(Some((name, kind))) = targets.get(program)
            && !has(name, *kind)
        {
            let fault = Fault::Target(name.as_str().into());
            report.findings.push(find(None, fault, true));
        }
        for fixup in &linked.fixups {
            let FixupTarget::Extern(index) = fixup.target else {
                continue;
            };
            let Some(symbol) = object.externs().get(index as usize) else {
                continue;
            };
            let Some((insn, rest)) = linked
                .insns
                .get_mut(fixup.insn as usize..)
                .and_then(<[Insn]>::split_first_mut)
            else {
                continue;
            };
            if !is_typed(symbol) {
                // Known only where it is a number.
                if symbol.kind == ExternKind::Undefined && !symbol.weak {
                    let fault = Fault::Undefined(symbol.name.as_str().into());
                    report.findings.push(find(Some(fixup.insn), fault, true));
                } else if symbol.kind != ExternKind::Constant && insn.is_ld_imm64() {
                    insn.set_src(pseudo::BTF_ID);
                }
                continue;
            }
            let mut answers = std::iter::once(&kernel)
                .chain(&split)
                .zip(&found)
                .map(|(btf, hits)| object.find_extern(symbol, &query, btf, hits));
            let other_type = match answers.find(|answer| *answer != Ok(None)) {
                Some(Ok(_)) => {
                    insn.set_src(pseudo::BTF_ID);
                    continue;
                }
                answer => answer.is_some(),
            };
            let mut required = true;
            if symbol.weak && insn.is_ld_imm64() {
                // It has the address 0, which is what guards ask for.
                insn.set_src(0);
                insn.imm = 0;
                if let Some(second) = rest.first_mut() {
                    second.imm = 0;
                }
                required = false;
            } else if symbol.weak {
                guarded.push(report.findings.len());
            }
            let fault = Fault::Symbol {
                name: symbol.name.as_str().into(),
                other_type,
            };
            let finding = find(Some(fixup.insn), fault, required);
            report.findings.push(finding);
        }
        if let Some(resolver) = &mut resolver {
            let first = report.findings.len();
            report.relocate(resolver, &mut linked, &mut find);
            let poison = |&at: &usize| {
                let finding = report.findings.get(at);
                finding.is_some_and(|finding| matches!(finding.fault, Fault::Missing(_)))
            };
            guarded.extend((first..report.findings.len()).filter(poison));
        }
        // Only now is all code final.
        if !guarded.is_empty() {
            let reached = reachable(&linked.insns);
            for at in guarded {
                if let Some(finding) = report.findings.get_mut(at)
                    && let Some(insn) = finding.insn
                {
                    finding.required &= reached.get(insn as usize) != Some(&false);
                }
            }
        }
    }
    Ok(report)
}

impl Report {
    /// Applies and counts the relocations of one program.
    fn relocate(
        &mut self,
        resolver: &mut Resolver<'_>,
        linked: &mut LinkedProgram,
        find: &mut dyn FnMut(Option<u32>, Fault, bool) -> Finding,
    ) {
        for (index, relo) in (0..).zip(&linked.core_relos) {
            // The answer is remembered and given to `apply` again.
            let no = resolver.resolve(&relo.record).is_ok_and(|answer| {
                answer.target.is_none() && relo.record.kind != ReloKind::TYPE_ID_LOCAL.0
            });
            let at = relo.insn as usize;
            let fault = match resolver.apply(&mut linked.insns, at, &relo.record, index) {
                Ok(None) => {
                    self.absent += u32::from(no);
                    self.matched += u32::from(!no);
                    continue;
                }
                Ok(Some(poison)) => {
                    self.missing += 1;
                    Fault::Missing(poison)
                }
                Err(error) => {
                    match error.what {
                        CoreProblem::AmbiguousOffset(..) | CoreProblem::AmbiguousValue(..) => {
                            self.ambiguous += 1;
                        }
                        _ => self.failed += 1,
                    }
                    Fault::Failed(error)
                }
            };
            self.findings.push(find(Some(relo.insn), fault, true));
        }
    }
}

/// Whether the kernel's BTF tells about a symbol.
fn is_typed(symbol: &ExternSpec) -> bool {
    matches!(
        symbol.kind,
        ExternKind::Variable { .. } | ExternKind::Function { .. }
    )
}

/// The type by which a kernel tells that it has what a program attaches to.
fn target(spec: &ProgramSpec) -> Option<(String, Kind)> {
    let name = spec.target.as_deref().filter(|name| !name.is_empty())?;
    let (prefix, kind) = match spec.attach_type? {
        AttachType::TRACE_FENTRY
        | AttachType::TRACE_FEXIT
        | AttachType::MODIFY_RETURN
        | AttachType::TRACE_FSESSION => ("", Kind::FUNC),
        AttachType::TRACE_RAW_TP => ("btf_trace_", Kind::TYPEDEF),
        AttachType::LSM_MAC | AttachType::LSM_CGROUP => ("bpf_lsm_", Kind::FUNC),
        AttachType::TRACE_ITER => ("bpf_iter_", Kind::FUNC),
        _ => return None,
    };
    Some((format!("{prefix}{name}"), kind))
}

#[cfg(test)]
mod tests;
