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

use crate::btf::{Btf, BtfError, Kind, KindSet, NameHit, NameQuery};
use crate::core_relo::{CoreError, CoreProblem, Poison, ReloKind, Resolver, add_roots};
use crate::error::ObjectError;
use crate::link::{FixupTarget, LinkedProgram, Linker};
use crate::reach::reachable;
use crate::spec::ProgramSpec;

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
    /// The program cannot be loaded without it. False for poison that is never
    /// reached (see [`reachable`](crate::reachable)), for weak symbols, and for
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
    /// The BTF has no function or variable of this name.
    Symbol(Box<str>),
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
            Fault::Symbol(name) => write!(f, "symbol {name}: this kernel's BTF does not have it"),
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
    let symbols = symbols(linker);
    let targets: Vec<Option<(String, Kind)>> = object.programs().iter().map(target).collect();
    let mut query = NameQuery::new();
    if let Some(local) = linker.btf() {
        add_roots(&mut query, local, linker.core_relos());
    }
    for (_, name, kind) in &symbols {
        query.add(name.as_bytes(), KindSet::of(&[*kind]));
    }
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
        let first = report.findings.len();
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
            if let Some((_, name, kind)) = symbols.iter().find(|symbol| symbol.0 == index)
                && !has(name, *kind)
            {
                let weak = object.externs().get(index as usize).is_some_and(|s| s.weak);
                let fault = Fault::Symbol((*name).into());
                report.findings.push(find(Some(fixup.insn), fault, !weak));
            }
        }
        if let Some(resolver) = &mut resolver {
            report.relocate(resolver, &mut linked, &mut find);
        }
        // Poison counts where it can be reached; only now is all code final.
        let findings = report.findings.get_mut(first..).unwrap_or_default();
        let is_poison = |finding: &Finding| matches!(finding.fault, Fault::Missing(_));
        if findings.iter().any(is_poison) {
            let reached = reachable(&linked.insns);
            for finding in findings.iter_mut().filter(|finding| is_poison(finding)) {
                finding.required &= finding
                    .insn
                    .and_then(|insn| reached.get(insn as usize).copied())
                    .unwrap_or(true);
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

/// Symbols that the object expects of the kernel and declares with a type:
/// index among the externs, name, kind. Those declared `void` are looked up
/// elsewhere.
fn symbols<'o>(linker: &Linker<'o>) -> Vec<(u32, &'o str, Kind)> {
    let externs = linker.object().externs();
    let Some(btf) = linker.btf().filter(|_| !externs.is_empty()) else {
        return Vec::new();
    };
    let mut symbols = Vec::new();
    let section = btf
        .types()
        .find(|(_, ty)| ty.kind() == Kind::DATASEC && btf.name(ty.name_off()) == ".ksyms");
    for var in section.iter().flat_map(|(_, ty)| ty.sec_vars()) {
        let Some(ty) = btf.get(var.type_id) else {
            continue;
        };
        let is_void = |id| btf.skip_modifiers(id).is_none_or(|(id, _)| id == 0);
        if ty.kind() == Kind::VAR && ty.target().is_none_or(is_void) {
            continue;
        }
        let name = btf.name(ty.name_off());
        for (index, _) in (0..).zip(externs).filter(|(_, e)| e.name == name) {
            symbols.push((index, name, ty.kind()));
        }
    }
    symbols
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
