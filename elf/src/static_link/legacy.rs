//! Maps defined by words: what they say of each other is true of one file, and
//! has to become true of all together.

use std::collections::BTreeMap;

use object::elf;

use super::StaticLinkError;
use super::input::{Input, Place};
use super::output::Output;
use crate::error::{Fault, bad_map};
use crate::maps::legacy::{self, INDEX_WORD, Tie};
use crate::object::{is_legacy_maps, is_of_type};
use crate::sort::sort;

/// A definition of an input.
struct Definition<'d> {
    name: &'d str,
    /// Where its bytes went.
    place: Place,
    /// Number of the output's symbol of its name, which another file's
    /// definition may have won.
    symbol: u32,
    tie: Tie,
    can_be_inner: bool,
}

/// Rewrites the numbers by which definitions name inner maps, and checks that
/// ids are unique.
pub(super) fn renumber(output: &mut Output, inputs: &[Input<'_>]) -> Result<(), StaticLinkError> {
    let mut all = Vec::with_capacity(inputs.len());
    for input in inputs {
        let definitions = definitions(output, input).map_err(|fault| StaticLinkError::Input {
            name: input.name.to_owned(),
            source: fault.into(),
        })?;
        all.push(definitions);
    }
    if all.iter().all(Vec::is_empty) {
        return Ok(());
    }
    unique_ids(output, inputs, &all)?;
    // Definitions are numbered by the places of their symbols.
    let symbols = output.locals.iter().chain(&output.globals);
    let mut places: Vec<(usize, u64)> = symbols
        .filter(|symbol| is_of_type(symbol.kind, symbol.bind, elf::STT_OBJECT))
        .filter_map(|symbol| Some((symbol.section?, symbol.value)))
        .filter(|(section, _)| {
            let section = output.sections.get(*section);
            section.is_some_and(|section| is_legacy_maps(&section.name))
        })
        .collect();
    sort(&mut places, |a, b| a < b);
    places.dedup();
    for (input, definitions) in inputs.iter().zip(&all) {
        for outer in definitions {
            let Tie::Index(index) = outer.tie else {
                continue;
            };
            // None at all, which is how 0 is read as well, is itself.
            let named = definitions.get(index as usize);
            let named = named.filter(|named| named.can_be_inner);
            let symbol = output.symbol_mut(named.unwrap_or(outer).symbol);
            let place = symbol.and_then(|symbol| Some((symbol.section?, symbol.value)));
            let number = place.and_then(|place| places.binary_search(&place).ok());
            let Some(number) = number else {
                let fault = bad_map(
                    outer.name,
                    format_args!("its inner map is one of another file, defined in another way"),
                );
                return Err(StaticLinkError::Input {
                    name: input.name.to_owned(),
                    source: fault.into(),
                });
            };
            let at = usize::try_from(outer.place.offset).map(|at| at + INDEX_WORD * 4);
            let section = output.sections.get_mut(outer.place.section);
            let bytes = section.and_then(|section| section.data.get_mut(at.ok()?..));
            if let Some(word) = bytes.and_then(|bytes| bytes.first_chunk_mut::<4>()) {
                *word = (number as u32).to_ne_bytes();
            }
        }
    }
    Ok(())
}

/// Symbols of definitions with the numbers that they have in the output.
type Symbols<'d> = Vec<(legacy::Symbol<'d>, u32)>;

/// The definitions of an input, in its order.
fn definitions<'d>(output: &mut Output, input: &Input<'d>) -> Result<Vec<Definition<'d>>, Fault> {
    let mut by_section: BTreeMap<usize, Symbols<'d>> = BTreeMap::new();
    for (symbol, number) in input.symbols.iter().zip(&input.symbol_map) {
        let source = symbol
            .section
            .and_then(|at| input.sections.get(at)?.as_ref());
        if let (Some(section), Some(number), Some(source)) = (symbol.section, number, source)
            && is_legacy_maps(source.name)
            && is_of_type(symbol.kind, symbol.bind, elf::STT_OBJECT)
        {
            let symbol = legacy::Symbol {
                offset: symbol.value,
                size: symbol.size,
                name: symbol.name,
            };
            by_section
                .entry(section)
                .or_default()
                .push((symbol, *number));
        }
    }
    let mut definitions = Vec::new();
    let mut joined = Vec::new();
    for (section, mut symbols) in by_section {
        let place = input.places.get(section).copied().flatten();
        let source = input.sections.get(section).and_then(Option::as_ref);
        let (Some(place), Some(source)) = (place, source) else {
            continue;
        };
        sort(&mut symbols, |(a, _), (b, _)| {
            (a.offset, a.name) < (b.offset, b.name)
        });
        symbols.dedup_by_key(|(symbol, _)| symbol.offset);
        let (symbols, numbers): (Vec<_>, Vec<_>) = symbols.into_iter().unzip();
        let mut named = symbols.iter().zip(numbers);
        legacy::read(
            source.name,
            source.data,
            &symbols,
            &mut |_, size, definition| {
                let Some((symbol, number)) = named.next() else {
                    return;
                };
                let place = Place {
                    section: place.section,
                    offset: place.offset.saturating_add(symbol.offset),
                };
                // What follows in the output is not what follows here.
                if let Some(own) = output.symbol_mut(number)
                    && (own.section, own.value) == (Some(place.section), place.offset)
                {
                    own.size = size;
                }
                definitions.push(Definition {
                    name: symbol.name,
                    place,
                    symbol: number,
                    tie: definition.tie(),
                    can_be_inner: definition.can_be_inner(),
                });
                joined.push(definition);
            },
        )?;
    }
    // What is wrong alone is not made right by other files.
    legacy::join(joined)?;
    Ok(definitions)
}

/// Ids are one file's; among several, one may stand for one definition only.
fn unique_ids(
    output: &mut Output,
    inputs: &[Input<'_>],
    all: &[Vec<Definition<'_>>],
) -> Result<(), StaticLinkError> {
    let mut known = BTreeMap::new();
    for (index, (input, definitions)) in inputs.iter().zip(all).enumerate() {
        for definition in definitions {
            let Tie::Id { id, .. } = definition.tie else {
                continue;
            };
            let place = output.symbol_mut(definition.symbol);
            let place = place.and_then(|symbol| Some((symbol.section?, symbol.value)));
            let (first, other) = *known.entry(id).or_insert((index, place));
            if id != 0 && first != index && other != place {
                let first = inputs.get(first).map_or("", |input| input.name);
                let fault = bad_map(
                    definition.name,
                    format_args!("its id {id} is that of a map of {first}, too"),
                );
                return Err(StaticLinkError::Input {
                    name: input.name.to_owned(),
                    source: fault.into(),
                });
            }
        }
    }
    Ok(())
}
