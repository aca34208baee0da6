//! Many names, one walk: which types of a BTF bear names from a set.

use super::Btf;
use super::types::{Kind, KindSet, TypeId};
use crate::cursor::name_at;
use crate::sort::sort;

/// Bits of the filter.
const FILTER_BITS: u32 = 12;

/// Names to look for, each with the kinds of type that may bear it.
///
/// Add names, then call [`NameQuery::finish`] once before searching.
#[derive(Clone, Debug)]
pub struct NameQuery<'n> {
    /// Sorted by name once finished.
    names: Vec<Wanted<'n>>,
    kinds: KindSet,
    /// Set bits for the hashes of the first four bytes of every name, so that
    /// the walk looks no further at most types.
    filter: [u64; 1 << (FILTER_BITS - 6)],
}

#[derive(Clone, Copy, Debug)]
struct Wanted<'n> {
    name: &'n [u8],
    /// Kinds whose full name must be equal.
    exact: KindSet,
    /// Kinds whose name must be equal up to a flavour.
    flavoured: KindSet,
}

/// A type found by a [`NameQuery`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NameHit {
    /// Which name, as numbered by [`NameQuery::position`].
    pub name: u32,
    /// The type that bears it.
    pub id: TypeId,
}

impl<'n> NameQuery<'n> {
    /// An empty query.
    pub fn new() -> NameQuery<'n> {
        NameQuery {
            names: Vec::new(),
            kinds: KindSet::EMPTY,
            filter: [0; 1 << (FILTER_BITS - 6)],
        }
    }

    /// Looks for types of these kinds with exactly this name. Empty names are
    /// ignored.
    pub fn add(&mut self, name: &'n [u8], kinds: KindSet) {
        self.insert(name, kinds, KindSet::EMPTY);
    }

    /// Looks for types of these kinds whose name is `name` once a flavour
    /// (`___suffix`) is taken off. `name` itself has none.
    pub fn add_essential(&mut self, name: &'n [u8], kinds: KindSet) {
        self.insert(name, KindSet::EMPTY, kinds);
    }

    fn insert(&mut self, name: &'n [u8], exact: KindSet, flavoured: KindSet) {
        let Some(first) = name.first_chunk::<4>().copied().or_else(|| {
            // A shorter name is followed by its terminator...
            padded(name, 0)
        }) else {
            return;
        };
        self.set_filter(first);
        // ... or by a flavour.
        if name.len() < 4
            && !flavoured.is_empty()
            && let Some(first) = padded(name, b'_')
        {
            self.set_filter(first);
        }
        self.kinds = self.kinds.union(exact).union(flavoured);
        self.names.push(Wanted {
            name,
            exact,
            flavoured,
        });
    }

    fn set_filter(&mut self, first: [u8; 4]) {
        let (word, bit) = filter_place(first);
        if let Some(word) = self.filter.get_mut(word) {
            *word |= bit;
        }
    }

    /// Sorts the names and joins equal ones. Numbers from
    /// [`NameQuery::position`] hold until the next name is added.
    pub fn finish(&mut self) {
        sort(&mut self.names, |a, b| a.name < b.name);
        self.names.dedup_by(|next, kept| {
            let same = next.name == kept.name;
            if same {
                kept.exact = kept.exact.union(next.exact);
                kept.flavoured = kept.flavoured.union(next.flavoured);
            }
            same
        });
    }

    /// The number under which hits of `name` are reported.
    pub fn position(&self, name: &[u8]) -> Option<u32> {
        self.names
            .binary_search_by_key(&name, |wanted| wanted.name)
            .ok()
            .map(|i| i as u32)
    }

    /// Number of different names, once finished.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether nothing is looked for.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// All kinds any name asks for.
    #[inline]
    pub(crate) fn kinds(&self) -> KindSet {
        self.kinds
    }

    /// Adds a hit for each name the type answers.
    #[inline]
    pub(crate) fn check(
        &self,
        btf: &Btf<'_>,
        id: TypeId,
        name_off: u32,
        kind: Kind,
        hits: &mut Vec<NameHit>,
    ) {
        let rest = btf.strings_from(name_off);
        let first = match rest.first_chunk::<4>() {
            Some(first) => cut(*first),
            None => match padded(rest, 0) {
                Some(first) => cut(first),
                None => return,
            },
        };
        let (word, bit) = filter_place(first);
        if self.filter.get(word).is_some_and(|w| w & bit != 0) {
            self.compare(rest, id, kind, hits);
        }
    }

    #[cold]
    fn compare(&self, strings: &[u8], id: TypeId, kind: Kind, hits: &mut Vec<NameHit>) {
        let Some(name) = name_at(strings, 0) else {
            return;
        };
        let essential = essential_name(name);
        let exact = self.position(name);
        let flavoured = if essential.len() == name.len() {
            exact
        } else {
            self.position(essential)
        };
        let wants = |position: Option<u32>, flavoured: bool| {
            position.filter(|&i| {
                self.names.get(i as usize).is_some_and(|wanted| {
                    let kinds = if flavoured {
                        wanted.flavoured
                    } else {
                        wanted.exact
                    };
                    kinds.contains(kind)
                })
            })
        };
        let exact = wants(exact, false);
        let flavoured = wants(flavoured, true).filter(|_| exact != flavoured);
        for name in exact.into_iter().chain(flavoured) {
            hits.push(NameHit { name, id });
        }
    }
}

impl Default for NameQuery<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// The first four bytes of a name of up to three bytes with more behind it.
fn padded(name: &[u8], with: u8) -> Option<[u8; 4]> {
    if name.is_empty() {
        return None;
    }
    let mut first = [with; 4];
    for (to, from) in first.iter_mut().zip(name) {
        *to = *from;
    }
    Some(first)
}

/// Zeroes what stands behind a terminator.
#[inline]
fn cut(first: [u8; 4]) -> [u8; 4] {
    match first {
        [0, ..] => [0; 4],
        [a, 0, ..] => [a, 0, 0, 0],
        [a, b, 0, _] => [a, b, 0, 0],
        all => all,
    }
}

/// Word and bit of the filter for a name's first bytes.
#[inline]
fn filter_place(first: [u8; 4]) -> (usize, u64) {
    // Fibonacci hashing: the top bits depend on all four bytes.
    let hash = u32::from_le_bytes(first).wrapping_mul(0x9e37_79b1) >> (32 - FILTER_BITS);
    ((hash >> 6) as usize, 1 << (hash & 63))
}

/// A name without its flavour: `task_struct` for `task_struct___old`.
///
/// A flavour is what follows the last three underscores that stand alone,
/// that is, with another character on both sides.
pub fn essential_name(name: &[u8]) -> &[u8] {
    let flavour = name
        .windows(5)
        .rposition(|w| matches!(w, [a, b'_', b'_', b'_', e] if *a != b'_' && *e != b'_'));
    match flavour {
        Some(at) => name.get(..=at).unwrap_or(name),
        None => name,
    }
}
