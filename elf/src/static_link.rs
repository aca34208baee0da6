//! Several objects linked into one: what a compiler left to other files is
//! found in them, before any kernel is asked.
//!
//! The result is an object file like any other. Sections of one name are put
//! behind each other, types are merged, and symbols are resolved by the rules
//! that libbpf set:
//!
//! - A strong definition stands for all weak ones; two strong ones conflict;
//!   of weak ones the first counts. What loses stays behind without a name.
//! - A symbol that one file declares `extern` is the other file's; it stays
//!   `extern` if none defines it, and weak if all declarations are.
//! - The stricter visibility counts: a function that is hidden anywhere is
//!   verified with its callers.
//! - Definitions and declarations of one name agree in their type; those of
//!   maps in every member.
//! - Maps that are defined by words and name their inner map by its number name
//!   it by the new one. Ids that they give themselves are unique.
//! - `license` and `version` are the same in all files that have them.

mod input;
mod legacy;
mod output;
mod types;

use std::collections::BTreeMap;

use object::elf;

use crate::btf::Btf;
use crate::error::ObjectError;
use input::{Input, Place};
use output::{Output, Section, Symbol};

/// Why objects cannot be linked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StaticLinkError {
    /// An input cannot be used.
    #[error("{name}: {source}")]
    Input {
        /// The input's name.
        name: String,
        /// The fault.
        source: ObjectError,
    },
    /// Two inputs define the same symbol, both strongly.
    #[error("{symbol} is defined in {first} and in {second}; one of the two has to be weak")]
    Conflict {
        /// The symbol.
        symbol: String,
        /// Name of the input that came first.
        first: String,
        /// Name of the other one.
        second: String,
    },
    /// Two inputs mean different things by the same name.
    #[error("{symbol} of {second} is not the same as in {first}: {what}")]
    Mismatch {
        /// The symbol or section.
        symbol: String,
        /// Name of the input that came first.
        first: String,
        /// Name of the other one.
        second: String,
        /// What differs.
        what: &'static str,
    },
    /// The result would not fit the format.
    #[error("the objects do not fit into one: {what}")]
    TooLarge {
        /// What does not fit.
        what: &'static str,
    },
}

/// Links objects, given by the name that errors call them (a path) and their
/// bytes, into one and returns it.
///
/// # Errors
/// [`StaticLinkError`].
///
/// ```no_run
/// use ebpf_manager_elf::{Object, static_link};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let main = std::fs::read("main.bpf.o")?;
/// let library = std::fs::read("library.bpf.o")?;
/// let linked = static_link(&[("main.bpf.o", &main), ("library.bpf.o", &library)])?;
/// let object = Object::parse(linked)?;
/// # Ok(())
/// # }
/// ```
pub fn static_link(inputs: &[(&str, &[u8])]) -> Result<Vec<u8>, StaticLinkError> {
    let bytes = inputs.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut output = Output::new(inputs.len(), bytes);
    let mut read = Vec::with_capacity(inputs.len());
    for (index, (name, bytes)) in inputs.iter().enumerate() {
        let fault = |source| StaticLinkError::Input {
            name: (*name).to_owned(),
            source,
        };
        let mut input = Input::read(name, bytes).map_err(fault)?;
        place_sections(&mut output, &read, &mut input, index)?;
        read.push(input);
    }
    let globals = resolve(&mut output, &mut read)?;
    legacy::renumber(&mut output, &read)?;
    for input in &read {
        input
            .copy_relocations(&mut output)
            .map_err(|source| StaticLinkError::Input {
                name: input.name.to_owned(),
                source,
            })?;
    }
    let merged = types::merge(&read, &output, &globals)?;
    output.write(&merged)
}

/// A symbol that files share.
pub(crate) struct Global {
    /// Index among the output's global symbols.
    pub(crate) symbol: usize,
    /// The input that defines it, or the first that declares it.
    pub(crate) input: usize,
    pub(crate) defined: bool,
}

/// Symbols that files share, by name.
type Globals<'d> = BTreeMap<&'d str, Global>;

/// Appends an input's sections to those of the same name.
fn place_sections(
    output: &mut Output,
    before: &[Input<'_>],
    input: &mut Input<'_>,
    index: usize,
) -> Result<(), StaticLinkError> {
    for at in 0..input.sections.len() {
        let Some(source) = input.sections[at].clone() else {
            continue;
        };
        let known = output.find(source.name).is_some();
        let section = output.section_like(&source, index);
        let target = &output.sections[section];
        let mismatch = |target: &Section, what| StaticLinkError::Mismatch {
            symbol: format!("section {}", source.name),
            first: before
                .get(target.input)
                .map_or_else(String::new, |first| first.name.to_owned()),
            second: input.name.to_owned(),
            what,
        };
        if (target.sh_type, target.flags) != (source.sh_type, source.flags) {
            return Err(mismatch(target, "it is of another kind"));
        }
        if known && matches!(source.name, "license" | "version") {
            if target.data != source.data {
                return Err(mismatch(target, "its contents differ"));
            }
            continue;
        }
        let offset = output.append(section, &source)?;
        input.places[at] = Some(Place { section, offset });
    }
    Ok(())
}

/// Gives every symbol of every input its place among those of the output.
fn resolve<'d>(
    output: &mut Output,
    inputs: &mut [Input<'d>],
) -> Result<Globals<'d>, StaticLinkError> {
    let mut globals: Globals<'d> = BTreeMap::new();
    let names: Vec<&str> = inputs.iter().map(|input| input.name).collect();
    for (index, input) in inputs.iter_mut().enumerate() {
        for at in 0..input.symbols.len() {
            let source = input.symbols[at];
            let place = match source.section {
                None => None,
                Some(section) => match input.places.get(section).copied().flatten() {
                    Some(place) => Some(place),
                    // Debugging information, or the licence of another file.
                    None => continue,
                },
            };
            if source.kind == elf::STT_SECTION {
                input.symbol_map[at] = place.map(|place| output.section_symbol(place.section));
                continue;
            }
            let mut symbol = Symbol {
                name: source.name.to_owned(),
                bind: source.bind,
                kind: source.kind,
                visibility: source.visibility,
                section: place.map(|place| place.section),
                absolute: source.absolute,
                value: source.value,
                size: source.size,
            };
            if let Some(place) = place {
                let value = symbol.value.checked_add(place.offset);
                symbol.value = value.ok_or(StaticLinkError::TooLarge {
                    what: "a symbol lies outside of its section",
                })?;
            }
            if source.bind == elf::STB_LOCAL {
                output.locals.push(symbol);
                input.symbol_map[at] = Some(output::local(output.locals.len() - 1));
                continue;
            }
            let defined = place.is_some() || source.absolute;
            let Some(global) = globals.get_mut(source.name) else {
                output.globals.push(symbol);
                let symbol = output.globals.len() - 1;
                input.symbol_map[at] = Some(output::global(symbol));
                let global = Global {
                    symbol,
                    input: index,
                    defined,
                };
                globals.insert(source.name, global);
                continue;
            };
            input.symbol_map[at] = Some(output::global(global.symbol));
            let Some(known) = output.globals.get_mut(global.symbol) else {
                continue;
            };
            let weak = source.bind == elf::STB_WEAK;
            if defined && global.defined && !weak && known.bind != elf::STB_WEAK {
                return Err(StaticLinkError::Conflict {
                    symbol: source.name.to_owned(),
                    first: names
                        .get(global.input)
                        .copied()
                        .unwrap_or_default()
                        .to_owned(),
                    second: input.name.to_owned(),
                });
            }
            // The stricter one of both counts, declarations included.
            symbol.visibility = symbol.visibility.max(known.visibility);
            let wins = defined && (!global.defined || !weak && known.bind == elf::STB_WEAK);
            if !weak || known.bind == elf::STB_GLOBAL {
                symbol.bind = elf::STB_GLOBAL;
            }
            if wins {
                *known = symbol;
                global.input = index;
                global.defined = true;
            } else {
                known.bind = symbol.bind;
                known.visibility = symbol.visibility;
            }
        }
    }
    Ok(globals)
}

/// The BTF of an input.
fn btf_of<'i, 'd>(input: &'i Input<'d>) -> Option<&'i Btf<'d>> {
    input.btf.as_ref()
}
