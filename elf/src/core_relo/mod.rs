//! CO-RE: fitting a program to the types of the kernel it meets.
//!
//! A relocation says what the compiler took for granted about a type: where a
//! field lies, how wide it is, whether a type or enumerator exists. Each is
//! looked up by name in the kernel's BTF and the instruction patched. Answers
//! are those of libbpf 1.7.
//!
//! The order of work, with one walk over the kernel's types:
//!
//! 1. [`add_roots`] collects the names of all types the relocations start
//!    from into a [`NameQuery`];
//! 2. [`Btf::scan`] opens the kernel's BTF and finds the types of these names;
//! 3. [`Resolver::add_target`] takes the hits, and those in modules if
//!    [`Resolver::needs_modules`];
//! 4. [`Resolver::apply`] resolves and patches, one relocation at a time.
//!
//! ```
//! use ebpf_manager_elf::btf::{Btf, NameQuery, ext::Block};
//! use ebpf_manager_elf::core_relo::{self, Poison, Resolver};
//! use ebpf_manager_sys::abi::insn::Insn;
//!
//! fn relocate(
//!     object: &Btf<'_>,
//!     relos: &Block<'_>,
//!     insns: &mut [Insn],
//!     kernel: &[u8],
//! ) -> Result<Vec<Poison>, Box<dyn std::error::Error>> {
//!     let mut query = NameQuery::new();
//!     core_relo::add_roots(&mut query, object, relos.core_relos());
//!     query.finish();
//!     let mut hits = Vec::new();
//!     let kernel = Btf::scan(kernel, None, &query, &mut hits)?;
//!     let mut resolver = Resolver::new(object, &query);
//!     resolver.add_target(&kernel, hits);
//!     let mut poisoned = Vec::new();
//!     for (index, relo) in (0..).zip(relos.core_relos()) {
//!         let insn = relo.insn_off as usize / 8;
//!         poisoned.extend(resolver.apply(insns, insn, &relo, index)?);
//!     }
//!     Ok(poisoned)
//! }
//! ```
//!
//! A relocation without an answer does not fail: its instruction is poisoned
//! (see [`POISON`]), because it may be dead code behind an existence check.
//! The [`Poison`] that describes it lets a caller explain the verifier's
//! complaint if it is not.

mod matching;
mod minimise;
mod outcome;
mod patch;
mod spec;
mod value;

use ebpf_manager_sys::abi::insn::Insn;

use crate::btf::ext::CoreRelo;
use crate::btf::{Btf, Kind, KindSet, NameHit, NameQuery, TypeId, essential_name};
use crate::sort::sort;
use matching::Budget;
pub use minimise::{MinimiseError, minimise};
pub use outcome::{CoreError, CoreProblem, Poison, PoisonReason, ReloKind, Resolution};
pub use patch::{POISON, Patched, patch_insn, poisoned_relo};
use spec::Spec;

/// Adds the names that relocations start from to `query`, each with the kinds
/// that may stand for it.
pub fn add_roots<'n>(
    query: &mut NameQuery<'n>,
    local: &Btf<'n>,
    relos: impl Iterator<Item = CoreRelo>,
) {
    let mut ids: Vec<TypeId> = relos
        .filter(|relo| relo.kind != ReloKind::TYPE_ID_LOCAL.0)
        .map(|relo| relo.type_id)
        .collect();
    sort(&mut ids, |a, b| a < b);
    ids.dedup();
    for id in ids {
        if let Some(ty) = local.get(id) {
            let name = essential_name(local.name_bytes(ty.name_off()));
            query.add_essential(name, compatible_kinds(ty.kind()));
        }
    }
}

/// Kinds of types that may stand for a root of this kind.
fn compatible_kinds(kind: Kind) -> KindSet {
    if kind.is_any_enum() {
        KindSet::of(&[Kind::ENUM, Kind::ENUM64])
    } else {
        KindSet::of(&[kind])
    }
}

/// Resolves the relocations of one object.
#[derive(Debug)]
pub struct Resolver<'a> {
    local: &'a Btf<'a>,
    query: &'a NameQuery<'a>,
    targets: Vec<Target<'a>>,
    roots: Vec<Root>,
    /// By type of the object: position in `roots` plus one, 0 for none.
    root_of: Vec<u32>,
    /// Steps of work allowed per relocation.
    budget: u32,
    /// Steps of work left for all of them.
    left: u32,
    // Room kept between relocations.
    local_spec: Spec,
    target_spec: Spec,
}

#[derive(Debug)]
struct Target<'a> {
    btf: &'a Btf<'a>,
    /// Sorted.
    hits: Vec<NameHit>,
}

/// What is known about a type that relocations start from.
#[derive(Debug)]
struct Root {
    /// Number of the target, and type in it. Those that failed where others
    /// matched are dropped for the relocations that follow, as in libbpf.
    candidates: Vec<(usize, TypeId)>,
    /// Answers given, by access string and kind.
    answers: Vec<(u32, u32, Resolution)>,
}

/// Answers looked through before one is worked out again: most programs ask
/// for the same few fields.
const ANSWERS: usize = 64;

/// Types of one name looked at: kernels have a few dozen.
const MAX_CANDIDATES: usize = 1024;

/// Steps that it counts for to keep a candidate, and to work out what it
/// answers, besides those of comparing it.
const KEPT: u32 = 32;
const CANDIDATE: u32 = 512;

impl<'a> Resolver<'a> {
    /// For the object whose BTF is `local`. `query` must hold its roots and be
    /// finished.
    pub fn new(local: &'a Btf<'a>, query: &'a NameQuery<'a>) -> Resolver<'a> {
        Resolver {
            local,
            query,
            targets: Vec::new(),
            roots: Vec::new(),
            root_of: Vec::new(),
            budget: matching::BUDGET,
            left: matching::TOTAL,
            local_spec: Spec::default(),
            target_spec: Spec::default(),
        }
    }

    /// Adds a BTF to look in, with what the query found there. The first is
    /// the kernel; those after it (modules, as split BTF) are looked at only
    /// for names the first does not have. Add all before resolving.
    pub fn add_target(&mut self, btf: &'a Btf<'a>, mut hits: Vec<NameHit>) {
        sort(&mut hits, |a, b| a < b);
        self.targets.push(Target { btf, hits });
    }

    /// Whether the first target lacks a type that one of these relocations
    /// starts from, so that modules are worth looking at.
    pub fn needs_modules(&self, mut relos: impl Iterator<Item = CoreRelo>) -> bool {
        relos.any(|relo| {
            let first = self.targets.first().zip(self.local.get(relo.type_id));
            let found = first.is_some_and(|(first, ty)| {
                let name = essential_name(self.local.name_bytes(ty.name_off()));
                self.candidates(first, name, ty.kind()).next().is_some()
            });
            relo.kind != ReloKind::TYPE_ID_LOCAL.0 && !found
        })
    }

    /// Types of a target that may stand for one of this name and kind.
    fn candidates<'t>(
        &self,
        target: &'t Target<'a>,
        name: &[u8],
        kind: Kind,
    ) -> impl Iterator<Item = TypeId> + use<'t, 'a> {
        let hits = match self.query.position(name) {
            Some(name) => {
                let first = target.hits.partition_point(|hit| hit.name < name);
                let end = target.hits.partition_point(|hit| hit.name <= name);
                target.hits.get(first..end).unwrap_or_default()
            }
            None => &[],
        };
        let kinds = compatible_kinds(kind);
        hits.iter()
            .take(MAX_CANDIDATES)
            .map(|hit| hit.id)
            .filter(move |&id| {
                target
                    .btf
                    .get(id)
                    .is_some_and(|ty| kinds.contains(ty.kind()))
            })
    }

    /// Position in `roots` of the root with this id, made if it is new.
    fn root(
        &mut self,
        local_id: TypeId,
        name: &[u8],
        kind: Kind,
        budget: &mut Budget,
    ) -> Result<usize, CoreProblem> {
        let slot = local_id as usize;
        if let Some(at) = self.root_of.get(slot).and_then(|at| at.checked_sub(1)) {
            return Ok(at as usize);
        }
        let mut candidates = Vec::new();
        for (nth, target) in self.targets.iter().enumerate() {
            // What the kernel has, modules are not asked for.
            if nth == 1 && !candidates.is_empty() {
                break;
            }
            for id in self.candidates(target, name, kind) {
                budget.spend(KEPT)?;
                candidates.push((nth, id));
            }
        }
        if self.root_of.is_empty() {
            self.root_of.resize(self.local.end_id() as usize, 0);
        }
        self.roots.push(Root {
            candidates,
            answers: Vec::new(),
        });
        if let Some(entry) = self.root_of.get_mut(slot) {
            *entry = self.roots.len() as u32;
        }
        Ok(self.roots.len() - 1)
    }

    /// Finds the answer to `relo`. The order of calls matters only where the
    /// kernel has several types of one name.
    pub fn resolve(&mut self, relo: &CoreRelo) -> Result<Resolution, CoreProblem> {
        let local = self.local;
        let kind = ReloKind(relo.kind);
        let ty = local.get(relo.type_id).ok_or(CoreProblem::BadType)?;
        if kind == ReloKind::TYPE_ID_LOCAL {
            self.local_spec.parse(local, relo, &mut Budget(0))?;
            // Linking may have renumbered types behind the instruction's back.
            return Ok(value::local_type_id(relo.type_id));
        }
        let name = essential_name(local.name_bytes(ty.name_off()));
        if name.is_empty() {
            return Err(CoreProblem::Anonymous);
        }
        let allowed = self.budget.min(self.left);
        let mut budget = Budget(allowed);
        let answer = self.find(relo, name, ty.kind(), &mut budget);
        self.left -= allowed - budget.0;
        answer
    }

    /// [`Resolver::resolve`] for a root type of that name and kind.
    fn find(
        &mut self,
        relo: &CoreRelo,
        name: &[u8],
        kind: Kind,
        budget: &mut Budget,
    ) -> Result<Resolution, CoreProblem> {
        let local = self.local;
        let at = self.root(relo.type_id, name, kind, budget)?;
        let key = (relo.access_off, relo.kind);
        if let Some(root) = self.roots.get(at)
            && let Some(answer) = root
                .answers
                .iter()
                .rev()
                .take(ANSWERS)
                .find(|answer| (answer.0, answer.1) == key)
        {
            return Ok(answer.2);
        }

        self.local_spec.parse(local, relo, budget)?;
        let Some(root) = self.roots.get_mut(at) else {
            return Err(CoreProblem::BadType);
        };
        let mut found: Option<(Resolution, u64)> = None;
        let mut matched = Vec::new();
        for &(nth, id) in &root.candidates {
            let Some(target) = self.targets.get(nth) else {
                continue;
            };
            budget.spend(CANDIDATE)?;
            let spec = &mut self.target_spec;
            if !matching::matches(local, &self.local_spec, target.btf, id, spec, budget)? {
                continue;
            }
            let mut answer = value::resolution(local, &self.local_spec, Some((target.btf, spec)))?;
            answer.target = Some((nth, id));
            match &found {
                None => found = Some((answer, spec.bit_offset)),
                Some((_, offset)) if *offset != spec.bit_offset => {
                    return Err(CoreProblem::AmbiguousOffset(*offset, spec.bit_offset));
                }
                Some((first, _)) if first.new != answer.new => {
                    return Err(CoreProblem::AmbiguousValue(first.new, answer.new));
                }
                Some(_) => {}
            }
            matched.push((nth, id));
        }
        let answer = if let Some((answer, _)) = found {
            root.candidates = matched;
            answer
        } else {
            let mut answer = value::resolution(local, &self.local_spec, None)?;
            if answer.poison.is_some() && root.candidates.is_empty() {
                answer.poison = Some(PoisonReason::NoType);
            }
            answer
        };
        root.answers.push((key.0, key.1, answer));
        Ok(answer)
    }

    /// Resolves `relo` and patches the instruction at `position` of `insns`.
    /// `index` numbers the relocation in messages and in poison.
    ///
    /// A poisoned instruction is described in the answer.
    pub fn apply(
        &mut self,
        insns: &mut [Insn],
        position: usize,
        relo: &CoreRelo,
        index: u32,
    ) -> Result<Option<Poison>, CoreError> {
        let patched = self
            .resolve(relo)
            .and_then(|answer| patch_insn(insns, position, &answer, index));
        match patched {
            Ok(Patched::Value) => Ok(None),
            Ok(Patched::Poisoned(reason)) => Ok(Some(Poison {
                index,
                insn: position,
                kind: ReloKind(relo.kind),
                spec: describe(self.local, relo),
                reason,
            })),
            Err(what) => Err(CoreError {
                index,
                insn: relo.insn_off / 8,
                kind: ReloKind(relo.kind),
                spec: describe(self.local, relo),
                what,
            }),
        }
    }
}

/// Whether a type of the object and one of the kernel are compatible: of one
/// kind, through pointers, arrays and prototypes. Damaged types are not.
pub(crate) fn types_compatible(
    local: &Btf<'_>,
    local_id: TypeId,
    target: &Btf<'_>,
    target_id: TypeId,
) -> bool {
    matching::types_compatible(local, local_id, target, target_id).unwrap_or(false)
}
/// Characters of [`describe`]: a program may have any number of poisoned
/// instructions, each with its description.
const MAX_TEXT: usize = 256;

/// Steps that [`describe`] follows a path, before it gives its numbers.
const MAX_WORK: u32 = 1 << 12;

/// What a relocation is about, for people: `struct task_struct.signal.live`,
/// `enum bpf_func_id::BPF_FUNC_loop`, `typedef u64`.
pub fn describe(local: &Btf<'_>, relo: &CoreRelo) -> Box<str> {
    let Some(ty) = local.get(relo.type_id) else {
        return format!("missing type {}", relo.type_id).into();
    };
    let name = match local.name(ty.name_off()) {
        "" => "<anonymous>",
        name => name,
    };
    let mut text = format!("{} {name}", ty.kind());
    let mut spec = Spec::default();
    if spec.parse(local, relo, &mut Budget(MAX_WORK)).is_ok() {
        spec.describe(local, &mut text);
    } else {
        text.push_str(" + ");
        text.push_str(local.name(relo.access_off));
    }
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(end);
        text.push_str("...");
    }
    text.into()
}

#[cfg(test)]
mod tests;
