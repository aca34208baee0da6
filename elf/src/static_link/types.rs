//! Types of several objects in one BTF, each once, and the records of
//! functions, lines and CO-RE relocations that refer to them.
//!
//! Two types are the same if they look the same and what they refer to is the
//! same. That is found by refinement: types that look the same start in one
//! class, and classes are split as long as some of their members refer to
//! different ones. Names that files share (variables, functions) are one class
//! from the start: whether they agree is checked at the end.

use std::collections::{BTreeMap, BTreeSet};

use super::input::Input;
use super::output::Output;
use super::{Globals, StaticLinkError, btf_of};
use crate::btf::encode::BtfBuilder;
use crate::btf::ext::{Block, Table};
use crate::btf::{Btf, Kind, Linkage, SecVar, Type, TypeId};
use crate::maps;
use crate::object::SHARING;
use crate::sort::sort;

/// What both sections start with.
const BTF_MAGIC: u16 = 0xeb9f;

/// Times that classes are split before types are taken as they are.
const MAX_ROUNDS: usize = 64;

/// Types nested in each other that are compared.
const MAX_DEPTH: u32 = 16;

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
    left: usize,
}

impl<'d> Names<'d> {
    fn number(&mut self, text: &'d [u8]) -> Result<u32, StaticLinkError> {
        if let Some(known) = self.known.get(text) {
            return Ok(*known);
        }
        self.left = self.left.checked_sub(text.len()).ok_or(TOO_LARGE)?;
        let number = self.known.len() as u32;
        self.known.insert(text, number);
        Ok(number)
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
                let defined = input.sections.iter().flatten().any(|s| s.name == name);
                if defined {
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

    /// The section `.BTF.ext`.
    fn records(
        &self,
        builder: &mut BtfBuilder,
        output: &Output,
        names: &mut Names<'d>,
    ) -> Result<Vec<u8>, StaticLinkError> {
        // Of each record: its words, and which of them are types and names.
        let functions = self.table(builder, output, names, |i| i.ext.func_info(), &[REST, TYPE])?;
        let lines = [REST, NAME, NAME, REST];
        let lines = self.table(builder, output, names, |i| i.ext.line_info(), &lines)?;
        let core = [REST, TYPE, NAME, REST];
        let core = self.table(builder, output, names, |i| i.ext.core_relos(), &core)?;

        let mut bytes = Vec::new();
        bytes.extend_from_slice(&BTF_MAGIC.to_ne_bytes());
        bytes.extend_from_slice(&[1, 0]);
        let mut words = vec![32];
        let mut at = 0;
        for table in [&functions, &lines, &core] {
            let len = u32::try_from(table.len()).map_err(|_| TOO_LARGE)?;
            words.extend([at, len]);
            at = len.checked_add(at).ok_or(TOO_LARGE)?;
        }
        for word in words {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        for table in [functions, lines, core] {
            bytes.extend_from_slice(&table);
        }
        Ok(bytes)
    }

    fn table(
        &self,
        builder: &mut BtfBuilder,
        output: &Output,
        names: &mut Names<'d>,
        of: for<'t> fn(&'t Input<'d>) -> &'t Table<'d>,
        layout: &[Word],
    ) -> Result<Vec<u8>, StaticLinkError> {
        let mut out = Vec::new();
        for section in &output.sections {
            let mut records = Vec::new();
            let mut count = 0_u32;
            for (index, input) in self.inputs.iter().enumerate() {
                let (Some(btf), Some(place)) = (btf_of(input), input.place_of(&section.name))
                else {
                    continue;
                };
                let blocks = of(input).blocks().iter();
                for record in blocks
                    .filter(|block| block.section() == section.name)
                    .flat_map(Block::records)
                {
                    let (words, _) = record.as_chunks::<4>();
                    for (nth, (word, meaning)) in words.iter().zip(layout).enumerate() {
                        let word = u32::from_ne_bytes(*word);
                        let word = match meaning {
                            Word::Type => self.id(index, word),
                            Word::Name => {
                                let name = btf.name_bytes(word);
                                names.number(name)?;
                                builder.add_string(name)
                            }
                            Word::Rest if nth == 0 => word.wrapping_add(place.offset as u32),
                            Word::Rest => word,
                        };
                        records.extend_from_slice(&word.to_ne_bytes());
                    }
                    count += 1;
                }
            }
            if count == 0 {
                continue;
            }
            if out.is_empty() {
                out.extend_from_slice(&(layout.len() as u32 * 4).to_ne_bytes());
            }
            let name = builder.add_string(section.name.as_bytes());
            out.extend_from_slice(&name.to_ne_bytes());
            out.extend_from_slice(&count.to_ne_bytes());
            out.extend_from_slice(&records);
        }
        Ok(out)
    }

    /// Checks that all files mean the same by a name.
    fn check(
        &self,
        btf: &[u8],
        shown: &[usize],
        globals: &Globals<'_>,
    ) -> Result<(), StaticLinkError> {
        let btf = Btf::parse(btf).map_err(|_| TOO_LARGE)?;
        let mut maps = BTreeSet::new();
        for node in &self.nodes {
            if node.ty.kind() == Kind::DATASEC && self.name(node) == ".maps" {
                let vars = node.ty.sec_vars();
                maps.extend(vars.filter_map(|v| self.node(node.input, v.type_id)));
            }
        }
        for (index, (node, class)) in self.nodes.iter().zip(&self.class).enumerate() {
            let first = shown.get(*class as usize).copied().unwrap_or(VOID);
            if !is_shared(&node.ty) || first == index || !globals.contains_key(self.name(node)) {
                continue;
            }
            let Some(other) = self.nodes.get(first) else {
                continue;
            };
            let target = |node: &Node<'_>| self.id(node.input, node.ty.target().unwrap_or(0));
            let (a, b) = (target(other), target(node));
            let what = if node.ty.kind() != other.ty.kind() {
                Some("one is a function, the other a variable")
            } else if maps.contains(&index) && maps.contains(&first) {
                let same = a == b || same_map(&btf, a, b);
                (!same).then_some("the map is defined in another way")
            } else {
                (!same_type(&btf, a, b, 0)).then_some("it has another type")
            };
            if let Some(what) = what {
                let name = |node: &Node<'_>| {
                    let input = self.inputs.get(node.input);
                    input.map_or_else(String::new, |input| input.name.to_owned())
                };
                return Err(StaticLinkError::Mismatch {
                    symbol: self.name(node).to_owned(),
                    first: name(other),
                    second: name(node),
                    what,
                });
            }
        }
        Ok(())
    }
}

/// What a word of a record is.
#[derive(Clone, Copy)]
enum Word {
    Type,
    Name,
    Rest,
}
use Word::{Name as NAME, Rest as REST, Type as TYPE};

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
    let mut number = |offset| Ok(names.number(btf.name_bytes(offset))?.to_ne_bytes());
    let name = number(ty.name_off())?;
    let kind = ty.kind();
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

/// Whether two map definitions agree in every member.
fn same_map(btf: &Btf<'_>, a: TypeId, b: TypeId) -> bool {
    let read = |id| maps::definition(btf, id).ok();
    let (Some(mut a), Some(mut b)) = (read(a), read(b)) else {
        return false;
    };
    for (x, y) in [
        (&mut a.key_type_id, &mut b.key_type_id),
        (&mut a.value_type_id, &mut b.value_type_id),
    ] {
        if (*x == 0) != (*y == 0) || *x != 0 && !same_type(btf, *x, *y, 0) {
            return false;
        }
        (*x, *y) = (0, 0);
    }
    let inner = |map: &mut crate::spec::MapSpec| {
        map.inner.take().map(|mut inner| {
            (inner.key_type_id, inner.value_type_id) = (0, 0);
            inner
        })
    };
    inner(&mut a) == inner(&mut b) && a == b
}

/// Whether two types are the same to a program: names and sizes of structures,
/// shapes of the rest.
fn same_type(btf: &Btf<'_>, a: TypeId, b: TypeId, depth: u32) -> bool {
    if a == b {
        return true;
    }
    let skip = |id| btf.skip_modifiers_and_typedefs(id);
    let (Some((a, x)), Some((b, y))) = (skip(a), skip(b)) else {
        return false;
    };
    if a == b || depth > MAX_DEPTH {
        return true;
    }
    let named = |ty: &Type<'_>| btf.name_bytes(ty.name_off());
    let record = |kind| matches!(kind, Kind::STRUCT | Kind::UNION | Kind::FWD);
    if x.kind() == Kind::FWD || y.kind() == Kind::FWD {
        return record(x.kind()) && record(y.kind()) && named(&x) == named(&y);
    }
    if x.kind() != y.kind() {
        return false;
    }
    let next = |a: Option<TypeId>, b: Option<TypeId>| match (a, b) {
        (Some(a), Some(b)) => same_type(btf, a, b, depth + 1),
        _ => false,
    };
    match x.kind() {
        Kind::VOID => true,
        Kind::INT => x.size() == y.size() && x.int() == y.int(),
        Kind::STRUCT | Kind::UNION => {
            x.size() == y.size() && named(&x) == named(&y) && x.vlen() == y.vlen()
        }
        Kind::PTR => next(x.target(), y.target()),
        Kind::ARRAY => match (x.array(), y.array()) {
            (Some(x), Some(y)) => {
                // A declaration may leave the length open.
                (x.len == y.len || x.len == 0 || y.len == 0)
                    && next(Some(x.element), Some(y.element))
            }
            _ => false,
        },
        Kind::FUNC_PROTO => {
            x.vlen() == y.vlen()
                && same_type(btf, x.payload, y.payload, depth + 1)
                && x.params()
                    .zip(y.params())
                    .all(|(x, y)| same_type(btf, x.type_id, y.type_id, depth + 1))
        }
        _ => x.size() == y.size(),
    }
}
