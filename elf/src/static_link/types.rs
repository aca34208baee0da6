//! Types of several objects in one BTF, each once.
//!
//! Two types are the same if they look the same and what they refer to is the
//! same. That is found by refinement: types that look the same start in one
//! class, and classes are split as long as some of their members refer to
//! different ones. Names that files share (variables, functions) are one class
//! from the start: whether they agree is checked at the end.

mod records;
mod same;

use std::collections::{BTreeMap, BTreeSet};

use super::input::Input;
use super::output::Output;
use super::{Globals, StaticLinkError, btf_of};
use crate::btf::encode::BtfBuilder;
use crate::btf::{Btf, Kind, Linkage, SecVar, Type, TypeId};
use crate::object::SHARING;
use crate::sort::sort;

/// Times that classes are split before types are taken as they are.
const MAX_ROUNDS: usize = 64;

/// Sections `.BTF` and `.BTF.ext` of the output.
pub(super) struct Merged {
    btf: Option<Vec<u8>>,
    ext: Option<Vec<u8>>,
}

impl Merged {
    /// Names and bytes of the sections there are.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let btf = self.btf.iter().map(|bytes| (".BTF", bytes.as_slice()));
        btf.chain(self.ext.iter().map(|bytes| (".BTF.ext", bytes.as_slice())))
    }
}

const TOO_LARGE: StaticLinkError = StaticLinkError::TooLarge {
    what: "the types of all objects together",
};

/// The types of all inputs, numbered through.
struct Types<'i, 'd> {
    inputs: &'i [Input<'d>],
    /// By input: number of its first type.
    first: Vec<usize>,
    nodes: Vec<Node<'d>>,
    /// By node.
    class: Vec<u32>,
    /// By class: id in the output; 0 for data sections.
    ids: Vec<TypeId>,
}

/// A type of an input.
struct Node<'d> {
    input: usize,
    ty: Type<'d>,
    /// What it looks like: names, numbers and sizes.
    key: Vec<u8>,
    /// The types it refers to; [`VOID`] for none.
    refs: Vec<usize>,
}

const VOID: usize = usize::MAX;

pub(super) fn merge(
    inputs: &[Input<'_>],
    output: &Output,
    globals: &Globals<'_>,
) -> Result<Merged, StaticLinkError> {
    if inputs.iter().all(|input| input.btf.is_none()) {
        return Ok(Merged {
            btf: None,
            ext: None,
        });
    }
    let mut names = Names {
        known: BTreeMap::new(),
        places: BTreeMap::new(),
        left: inputs.iter().map(|input| input.len).sum::<usize>() * SHARING,
    };
    let mut types = Types::collect(inputs, &mut names)?;
    types.classify();
    let mut builder = BtfBuilder::new();
    let shown = types.emit(&mut builder, globals);
    types.data_sections(&mut builder, output, globals);
    let ext = types.records(&mut builder, output, &mut names)?;
    let btf = builder.to_bytes().map_err(|_| TOO_LARGE)?;
    types.check(&btf, &shown, globals)?;
    Ok(Merged {
        btf: Some(btf),
        ext: Some(ext),
    })
}

/// Names, each with a number. They may share their text in a file, and do not
/// in the output: what they take is limited.
struct Names<'d> {
    known: BTreeMap<&'d [u8], u32>,
    /// By input and offset in its strings: text is looked at once.
    places: BTreeMap<(usize, u32), u32>,
    left: usize,
}

impl<'d> Names<'d> {
    fn number(&mut self, input: usize, btf: &Btf<'d>, at: u32) -> Result<u32, StaticLinkError> {
        if let Some(known) = self.places.get(&(input, at)) {
            return Ok(*known);
        }
        let text = btf.name_bytes(at);
        self.charge(text)?;
        let next = self.known.len() as u32;
        let number = *self.known.entry(text).or_insert(next);
        self.places.insert((input, at), number);
        Ok(number)
    }

    /// Accounts for a text that is copied or compared.
    fn charge(&mut self, text: &[u8]) -> Result<(), StaticLinkError> {
        self.left = self.left.checked_sub(text.len()).ok_or(TOO_LARGE)?;
        Ok(())
    }
}

/// True for what other files may know by its name.
fn is_shared(ty: &Type<'_>) -> bool {
    matches!(ty.kind(), Kind::VAR | Kind::FUNC) && ty.linkage() != Some(Linkage::STATIC)
}

impl<'i, 'd> Types<'i, 'd> {
    fn collect(
        inputs: &'i [Input<'d>],
        names: &mut Names<'d>,
    ) -> Result<Types<'i, 'd>, StaticLinkError> {
        let mut types = Types {
            inputs,
            first: Vec::with_capacity(inputs.len()),
            nodes: Vec::new(),
            class: Vec::new(),
            ids: Vec::new(),
        };
        for (index, input) in inputs.iter().enumerate() {
            let first = types.nodes.len();
            types.first.push(first);
            let Some(btf) = btf_of(input) else { continue };
            for (_, ty) in btf.types() {
                types.nodes.push(node(btf, ty, index, first, names)?);
            }
        }
        Ok(types)
    }

    /// The node of a type of an input.
    fn node(&self, input: usize, id: TypeId) -> Option<usize> {
        let index = self.first.get(input)? + (id as usize).checked_sub(1)?;
        self.nodes.get(index).filter(|n| n.input == input)?;
        Some(index)
    }

    /// The id in the output of a type of an input.
    fn id(&self, input: usize, id: TypeId) -> TypeId {
        let class = self.node(input, id).and_then(|n| self.class.get(n));
        class
            .and_then(|class| self.ids.get(*class as usize).copied())
            .unwrap_or_default()
    }

    fn classify(&mut self) {
        let nodes = &self.nodes;
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        sort(&mut order, |a, b| nodes[*a].key < nodes[*b].key);
        let mut class = vec![0; nodes.len()];
        let mut count = number(&order, &mut class, |a, b| nodes[a].key == nodes[b].key);
        let start = class.clone();
        for _ in 0..MAX_ROUNDS {
            let of = |node: usize| class.get(node).copied();
            let refs = |node: usize| nodes[node].refs.iter().map(|r| of(*r));
            sort(&mut order, |a, b| {
                let by_class = class[*a].cmp(&class[*b]);
                by_class.then_with(|| refs(*a).cmp(refs(*b))).is_lt()
            });
            let mut next = vec![0; nodes.len()];
            let same = |a: usize, b: usize| class[a] == class[b] && refs(a).eq(refs(b));
            let new = number(&order, &mut next, same);
            class = next;
            if new == count {
                self.class = class;
                return;
            }
            count = new;
        }
        // Nested too deeply to be worth it: each type is one of its own.
        let shared = |node: usize| is_shared(&nodes[node].ty);
        sort(&mut order, |a, b| (start[*a], *a) < (start[*b], *b));
        number(&order, &mut class, |a, b| start[a] == start[b] && shared(a));
        self.class = class;
    }

    /// Adds a type for each class, in the order of the files. Returns which
    /// node stands for each class.
    fn emit(&mut self, builder: &mut BtfBuilder, globals: &Globals<'_>) -> Vec<usize> {
        let classes = self.class.iter().max().map_or(0, |max| *max as usize + 1);
        let mut shown = vec![VOID; classes];
        let mut order = Vec::with_capacity(classes);
        for (index, (node, class)) in self.nodes.iter().zip(&self.class).enumerate() {
            let Some(slot) = shown.get_mut(*class as usize) else {
                continue;
            };
            if *slot == VOID {
                *slot = index;
                order.push(*class as usize);
            } else if is_shared(&node.ty) && self.defines(node, globals) {
                *slot = index;
            }
        }
        self.ids = vec![0; classes];
        let mut next = 1;
        for class in &order {
            let ty = shown.get(*class).and_then(|n| self.nodes.get(*n));
            if ty.is_some_and(|n| n.ty.kind() != Kind::DATASEC)
                && let Some(id) = self.ids.get_mut(*class)
            {
                *id = next;
                next += 1;
            }
        }
        for class in order {
            let node = shown.get(class).and_then(|n| self.nodes.get(*n));
            let Some(node) = node.filter(|n| n.ty.kind() != Kind::DATASEC) else {
                continue;
            };
            if let Some(btf) = self.inputs.get(node.input).and_then(btf_of) {
                builder.add_copy(btf, &node.ty, &mut |id| self.id(node.input, id));
            }
        }
        shown
    }

    fn name(&self, node: &Node<'d>) -> &'d str {
        let input = self.inputs.get(node.input);
        let btf = input.and_then(btf_of);
        btf.map_or("", |btf| btf.name(node.ty.name_off()))
    }

    /// Whether a shared name is defined by this type's file.
    fn defines(&self, node: &Node<'d>, globals: &Globals<'_>) -> bool {
        let global = globals.get(self.name(node));
        node.ty.linkage() == Some(Linkage::GLOBAL)
            && global.is_some_and(|global| global.defined && global.input == node.input)
    }

    /// Adds the data sections, with variables where the output has them.
    fn data_sections(&self, builder: &mut BtfBuilder, output: &Output, globals: &Globals<'_>) {
        let mut sections: Vec<(&str, Vec<SecVar>)> = Vec::new();
        let mut known = BTreeMap::new();
        let mut placed = BTreeSet::new();
        for node in &self.nodes {
            if node.ty.kind() != Kind::DATASEC {
                continue;
            }
            let Some(input) = self.inputs.get(node.input) else {
                continue;
            };
            let name = self.name(node);
            let place = input.place_of(name);
            if place.is_none() && output.section_size(name).is_some() {
                // The licence of this file, which another one has, too; or
                // only declarations of what other files define.
                if input.has_section(name) {
                    continue;
                }
            }
            let at = *known.entry(name).or_insert_with(|| {
                sections.push((name, Vec::new()));
                sections.len() - 1
            });
            for mut entry in node.ty.sec_vars() {
                let Some(var) = self.node(node.input, entry.type_id) else {
                    continue;
                };
                let var = &self.nodes[var];
                let symbol = globals.get(self.name(var));
                entry.type_id = self.id(node.input, entry.type_id);
                entry.offset = match (var.ty.linkage(), symbol) {
                    (Some(Linkage::STATIC), _) => {
                        let moved = place.map_or(0, |place| place.offset as u32);
                        entry.offset.saturating_add(moved)
                    }
                    (Some(Linkage::GLOBAL), Some(global)) if self.defines(var, globals) => {
                        let symbol = output.globals.get(global.symbol);
                        symbol.map_or(0, |symbol| symbol.value as u32)
                    }
                    (Some(Linkage::EXTERN), global) if !global.is_some_and(|g| g.defined) => 0,
                    _ => continue,
                };
                let one_of_many = is_shared(&var.ty) && !placed.insert(entry.type_id);
                if let Some((_, entries)) = sections.get_mut(at).filter(|_| !one_of_many) {
                    entries.push(entry);
                }
            }
        }
        for (name, mut entries) in sections {
            if entries.is_empty() {
                continue;
            }
            sort(&mut entries, |a, b| a.offset < b.offset);
            builder.add_datasec(name, output.section_size(name).unwrap_or(0), &entries);
        }
    }
}

/// Numbers classes in a sorted order; returns how many there are.
fn number(order: &[usize], class: &mut [u32], same: impl Fn(usize, usize) -> bool) -> u32 {
    let mut count = 0;
    let mut last = None;
    for &node in order {
        if last.is_some_and(|last| !same(last, node)) {
            count += 1;
        }
        last = Some(node);
        if let Some(class) = class.get_mut(node) {
            *class = count;
        }
    }
    count + 1
}

fn node<'d>(
    btf: &Btf<'d>,
    ty: Type<'d>,
    input: usize,
    first: usize,
    names: &mut Names<'d>,
) -> Result<Node<'d>, StaticLinkError> {
    let mut key = Vec::new();
    let mut refs = Vec::new();
    let kind = ty.kind();
    if is_shared(&ty) || kind == Kind::DATASEC {
        // Looked up again for each of them.
        names.charge(btf.name_bytes(ty.name_off()))?;
    }
    let mut number = |offset| Ok(names.number(input, btf, offset)?.to_ne_bytes());
    let name = number(ty.name_off())?;
    let mut refer = |id: TypeId| {
        refs.push((id as usize).checked_sub(1).map_or(VOID, |id| first + id));
    };
    if is_shared(&ty) {
        key.extend_from_slice(&[0, kind.0]);
        key.extend_from_slice(&name);
        return Ok(Node {
            input,
            ty,
            key,
            refs,
        });
    }
    key.extend_from_slice(&[1]);
    key.extend_from_slice(&ty.info.to_ne_bytes());
    // What belongs to one file is equal to nothing of another one.
    if matches!(kind, Kind::VAR | Kind::FUNC | Kind::DATASEC) {
        key.extend_from_slice(&(input as u64).to_ne_bytes());
    }
    key.extend_from_slice(&name);
    if kind.refers() {
        refer(ty.payload);
    } else {
        key.extend_from_slice(&ty.payload.to_ne_bytes());
    }
    if kind != Kind::DATASEC {
        let (each, name_at, type_at) = words_of(kind);
        let (words, _) = ty.data.as_chunks::<4>();
        for (nth, word) in words.iter().enumerate() {
            let word = u32::from_ne_bytes(*word);
            let place = Some(nth % each);
            if place == name_at {
                key.extend_from_slice(&number(word)?);
            } else if place == type_at || kind == Kind::ARRAY && nth < 2 {
                refer(word);
            } else {
                key.extend_from_slice(&word.to_ne_bytes());
            }
        }
    }
    Ok(Node {
        input,
        ty,
        key,
        refs,
    })
}

/// Words of each element behind a type's header, and which of them are a name
/// and a type.
fn words_of(kind: Kind) -> (usize, Option<usize>, Option<usize>) {
    match kind {
        Kind::STRUCT | Kind::UNION => (3, Some(0), Some(1)),
        Kind::FUNC_PROTO => (2, Some(0), Some(1)),
        Kind::ENUM => (2, Some(0), None),
        Kind::ENUM64 => (3, Some(0), None),
        _ => (1, None, None),
    }
}
