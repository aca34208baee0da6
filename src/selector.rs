//! Selectors: which probes are activated, and which of them have to be there.

use std::fmt;

use crate::outcome::ProbeError;
use crate::probe::ProbeId;

/// Which probes are activated, and what has to be attached for the manager to
/// run.
///
/// Without a selector all probes are activated, and all have to be attached
/// but the optional ones. With selectors, only the probes that they name are
/// activated, and every selector has to hold. An optional probe
/// ([`Probe::optional`](crate::Probe::optional)) that cannot be had counts
/// neither way in them.
///
/// ```
/// use ebpf_manager::Selector;
///
/// let selector = Selector::all_of([
///     Selector::probe("on_exec"),
///     Selector::one_of([Selector::probe("on_exit_fentry"), Selector::probe("on_exit_kprobe")]),
///     Selector::best_effort([Selector::probe("on_fork")]),
/// ]);
/// assert_eq!(
///     selector.to_string(),
///     "all of (on_exec, one of (on_exit_fentry, on_exit_kprobe), best effort (on_fork))"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// This probe.
    Probe(ProbeId),
    /// Every one of these. Holds if there are none.
    AllOf(Vec<Selector>),
    /// At least one of these. Fails if there are none.
    OneOf(Vec<Selector>),
    /// Whichever of these can be had. Always holds.
    BestEffort(Vec<Selector>),
}

impl From<&str> for Selector {
    /// The probe of this function without a uid.
    fn from(function: &str) -> Selector {
        Selector::Probe(function.into())
    }
}

impl From<ProbeId> for Selector {
    fn from(id: ProbeId) -> Selector {
        Selector::Probe(id)
    }
}

/// What a probe means for a selector.
pub(crate) enum Verdict {
    /// It is there, or may be.
    Holds,
    /// Its function is excluded, or it is optional and not there: it counts
    /// neither way.
    Ignored,
    /// It is not.
    Fails(ProbeError),
}

/// What a selector comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sum {
    Holds,
    Ignored,
    Fails,
}

/// Probes that fail a selector, each with its reason.
pub(crate) type Failures = Vec<(ProbeId, ProbeError)>;

impl Selector {
    /// The probe of this identity, or of this function without a uid.
    pub fn probe(id: impl Into<ProbeId>) -> Selector {
        Selector::Probe(id.into())
    }

    /// Every one of these.
    pub fn all_of(selectors: impl IntoIterator<Item = Selector>) -> Selector {
        Selector::AllOf(selectors.into_iter().collect())
    }

    /// At least one of these.
    pub fn one_of(selectors: impl IntoIterator<Item = Selector>) -> Selector {
        Selector::OneOf(selectors.into_iter().collect())
    }

    /// Whichever of these can be had.
    pub fn best_effort(selectors: impl IntoIterator<Item = Selector>) -> Selector {
        Selector::BestEffort(selectors.into_iter().collect())
    }

    fn parts(&self) -> &[Selector] {
        match self {
            Selector::Probe(_) => &[],
            Selector::AllOf(parts) | Selector::OneOf(parts) | Selector::BestEffort(parts) => parts,
        }
    }

    /// Calls `visit` with each probe that it activates, in order.
    pub fn for_each(&self, visit: &mut dyn FnMut(&ProbeId)) {
        if let Selector::Probe(id) = self {
            visit(id);
        }
        for part in self.parts() {
            part.for_each(visit);
        }
    }

    /// The probes that it activates, in order.
    pub fn probes(&self) -> Vec<ProbeId> {
        let mut probes = Vec::new();
        self.for_each(&mut |id| probes.push(id.clone()));
        probes
    }

    /// Names `new` where it named `old`.
    pub fn rename(&mut self, old: &ProbeId, new: &ProbeId) {
        match self {
            Selector::Probe(id) => {
                if id == old {
                    id.clone_from(new);
                }
            }
            Selector::AllOf(parts) | Selector::OneOf(parts) | Selector::BestEffort(parts) => {
                for part in parts {
                    part.rename(old, new);
                }
            }
        }
    }

    /// The same without a probe that is not there any more, which counts
    /// neither way; `None` if it named nothing else.
    pub(crate) fn without(self, id: &ProbeId) -> Option<Selector> {
        let kept = |parts: Vec<Selector>| {
            let some = !parts.is_empty();
            let parts: Vec<_> = parts.into_iter().filter_map(|p| p.without(id)).collect();
            (!some || !parts.is_empty()).then_some(parts)
        };
        Some(match self {
            Selector::Probe(named) if named == *id => return None,
            Selector::Probe(named) => Selector::Probe(named),
            Selector::AllOf(parts) => Selector::AllOf(kept(parts)?),
            Selector::OneOf(parts) => Selector::OneOf(kept(parts)?),
            Selector::BestEffort(parts) => Selector::BestEffort(kept(parts)?),
        })
    }

    /// Calls `visit` with each probe without which it certainly fails.
    pub(crate) fn for_each_required(&self, visit: &mut dyn FnMut(&ProbeId)) {
        match self {
            Selector::Probe(id) => visit(id),
            Selector::AllOf(parts) => parts.iter().for_each(|p| p.for_each_required(visit)),
            Selector::OneOf(parts) => {
                if let [only] = parts.as_slice() {
                    only.for_each_required(visit);
                }
            }
            Selector::BestEffort(_) => {}
        }
    }

    /// Whether it holds, given what became of each probe.
    ///
    /// # Errors
    /// The probes that make it fail.
    pub(crate) fn check(&self, of: &mut dyn FnMut(&ProbeId) -> Verdict) -> Result<(), Failures> {
        let mut failures = Vec::new();
        match self.sum(of, &mut failures) {
            Sum::Holds | Sum::Ignored => Ok(()),
            Sum::Fails => Err(failures),
        }
    }

    /// Probes that fail are added to `failures` if that makes this fail.
    fn sum(&self, of: &mut dyn FnMut(&ProbeId) -> Verdict, failures: &mut Failures) -> Sum {
        let before = failures.len();
        let (mut holds, mut fails) = (0, 0);
        for part in self.parts() {
            match part.sum(of, failures) {
                Sum::Holds => holds += 1,
                Sum::Fails => fails += 1,
                Sum::Ignored => {}
            }
        }
        let ignored = holds == 0 && fails == 0 && !self.parts().is_empty();
        let sum = match self {
            Selector::Probe(id) => match of(id) {
                Verdict::Holds => Sum::Holds,
                Verdict::Ignored => Sum::Ignored,
                Verdict::Fails(error) => {
                    failures.push((id.clone(), error));
                    Sum::Fails
                }
            },
            Selector::AllOf(_) | Selector::OneOf(_) if ignored => Sum::Ignored,
            Selector::AllOf(_) if fails == 0 => Sum::Holds,
            Selector::OneOf(_) if holds > 0 => Sum::Holds,
            Selector::AllOf(_) | Selector::OneOf(_) => Sum::Fails,
            Selector::BestEffort(_) => Sum::Holds,
        };
        if sum != Sum::Fails {
            failures.truncate(before);
        }
        sum
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, parts) = match self {
            Selector::Probe(id) => return id.fmt(f),
            Selector::AllOf(parts) => ("all of (", parts),
            Selector::OneOf(parts) => ("one of (", parts),
            Selector::BestEffort(parts) => ("best effort (", parts),
        };
        f.write_str(name)?;
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            part.fmt(f)?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probes that start with `y` are there, with `x` excluded, others not.
    fn check(selector: &Selector) -> Result<(), Vec<String>> {
        let result = selector.check(&mut |id| match id.function.as_bytes().first() {
            Some(b'y') => Verdict::Holds,
            Some(b'x') => Verdict::Ignored,
            _ => Verdict::Fails(ProbeError::Unknown),
        });
        result.map_err(|all| all.into_iter().map(|(id, _)| id.function).collect())
    }

    fn probes(names: &str) -> Vec<Selector> {
        names.split_whitespace().map(Selector::probe).collect()
    }

    #[test]
    fn each_kind_holds_when_it_should() {
        let failed = |names: &[&str]| Err(names.iter().map(ToString::to_string).collect());
        assert_eq!(check(&Selector::probe("y")), Ok(()));
        assert_eq!(check(&Selector::probe("n")), failed(&["n"]));
        assert_eq!(check(&Selector::all_of(probes("y y2"))), Ok(()));
        assert_eq!(
            check(&Selector::all_of(probes("y n m"))),
            failed(&["n", "m"])
        );
        assert_eq!(check(&Selector::all_of([])), Ok(()));
        assert_eq!(check(&Selector::one_of(probes("n y"))), Ok(()));
        assert_eq!(check(&Selector::one_of(probes("n m"))), failed(&["n", "m"]));
        assert_eq!(check(&Selector::one_of([])), failed(&[]));
        assert_eq!(check(&Selector::best_effort(probes("n m"))), Ok(()));
        let nested = Selector::all_of([
            Selector::one_of(probes("n y")),
            Selector::best_effort(probes("n2")),
            Selector::one_of(probes("m m2")),
        ]);
        // Only what made it fail.
        assert_eq!(check(&nested), failed(&["m", "m2"]));
    }

    #[test]
    fn trap_selector_of_an_excluded_function_does_not_fail() {
        assert_eq!(check(&Selector::probe("x")), Ok(()));
        assert_eq!(check(&Selector::all_of(probes("x y"))), Ok(()));
        assert_eq!(check(&Selector::one_of(probes("x"))), Ok(()));
        assert_eq!(
            check(&Selector::one_of(probes("x n"))),
            Err(vec!["n".to_owned()])
        );
    }

    #[test]
    fn renaming_reaches_every_leaf() {
        let mut selector = Selector::all_of([
            "a".into(),
            Selector::one_of(probes("a b")),
            Selector::best_effort(probes("a")),
        ]);
        selector.rename(&String::from("a").into(), &("a", "two").into());
        assert_eq!(
            selector.to_string(),
            "all of (a (two), one of (a (two), b), best effort (a (two)))"
        );
        assert_eq!(selector.probes().len(), 4);
    }

    #[test]
    fn what_is_gone_counts_neither_way() {
        let one = |names| Selector::one_of(probes(names));
        let without = |selector: Selector| selector.without(&"y".into());
        assert_eq!(without("y".into()), None);
        assert_eq!(without(one("y")), None);
        assert_eq!(without(one("a y")), Some(one("a")));
        assert_eq!(
            without(Selector::all_of([one("y"), "b".into()])),
            Some(Selector::all_of(["b".into()]))
        );
        assert_eq!(without(one("")), Some(one("")));
        assert_eq!(without(one("a b")), Some(one("a b")));
    }

    #[test]
    fn what_is_required_is_known_beforehand() {
        let selector = Selector::all_of([
            Selector::probe("a"),
            Selector::one_of(probes("b c")),
            Selector::one_of(probes("d")),
            Selector::best_effort(probes("e")),
        ]);
        let mut required = Vec::new();
        selector.for_each_required(&mut |id| required.push(id.function.clone()));
        assert_eq!(required, ["a", "d"]);
    }
}
