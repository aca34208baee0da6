//! Symbols that an object uses and does not define: what each one is, and
//! what a loader puts in its place.
//!
//! The declaration in BTF tells: section `.kconfig` holds values of the
//! kernel's configuration, `.ksyms` functions and variables of the kernel. A
//! symbol without a declaration is a number of the loader's choice. What the
//! kernel has comes in as arguments: its BTF, and its configuration line by
//! line ([`KernelConfig`]).

use std::cmp::Reverse;

use ebpf_manager_sys::abi::bpf::{MapFlags, MapType};

use crate::btf::{Btf, Kind, KindSet, Linkage, NameHit, NameQuery, Type, TypeId, essential_name};
use crate::core_relo;
use crate::error::{Fault, ObjectError, bad_symbol};
use crate::object::{Object, SHARING, Target};
use crate::sort::sort;
use crate::spec::{ExternSpec, MapSpec, ProgramSpec};

/// Name of the section, and of the map, that holds configuration values.
pub(crate) const KCONFIG: &str = ".kconfig";
/// Name of the section that declares kernel symbols.
pub(crate) const KSYMS: &str = ".ksyms";

/// What a symbol stands for that an object uses and does not define.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExternKind {
    /// A number to be set before loading
    /// ([`Object::set_symbol_constant`]); 0 unless it is. Nothing declares
    /// it: `asm("%0 = NAME ll" : "=r"(x))`.
    Constant,
    /// Something declared like a part of another object. Only linking both
    /// would define it.
    Undefined,
    /// A value of the kernel's configuration (`__kconfig`).
    Config {
        /// Offset in the value of [`Object::config_map`], in bytes.
        offset: u32,
        /// Size in bytes.
        size: u32,
        /// What it can hold.
        value: ConfigType,
    },
    /// The address of a kernel symbol, of whatever type
    /// (`extern const void x __ksym`), as `/proc/kallsyms` has it.
    Address,
    /// A variable of the kernel, with its type in the object's BTF. Loaded by
    /// the id of the variable in the kernel's BTF; needs Linux 5.10.
    Variable {
        /// Its type, typedefs and qualifiers taken off.
        type_id: TypeId,
    },
    /// A function of the kernel, with its prototype in the object's BTF.
    /// Called by its id in the kernel's BTF; needs Linux 5.13.
    Function {
        /// The prototype.
        type_id: TypeId,
    },
}

/// What a configuration variable can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigType {
    /// `bool`: `y` or absent.
    Bool,
    /// `enum libbpf_tristate`: 0 for absent, 1 for `y`, 2 for `m`.
    Tristate,
    /// `char`: the letter `y`, `m` or `n`, or a small number.
    Char {
        /// Whether numbers may be negative.
        signed: bool,
    },
    /// A number of the variable's size.
    Int {
        /// Whether it may be negative.
        signed: bool,
    },
    /// An array of `char`: text, cut to fit and ended by a zero byte.
    Text,
}

/// Most bytes of configuration values; kernels' own fit in some kilobytes.
const MAX_CONFIG: u32 = 1 << 20;

/// The declarations of symbols that an object does not define.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Declarations {
    /// The data section `.kconfig` in BTF.
    pub(crate) kconfig: Option<TypeId>,
    /// `.ksyms`.
    pub(crate) ksyms: Option<TypeId>,
}

/// Finds out what undefined symbols are. Returns the map of configuration
/// values if any is declared, and adds those that no code uses.
pub(crate) fn classify(
    btf: &Btf<'_>,
    sections: Declarations,
    externs: &mut Vec<ExternSpec>,
) -> Result<Option<MapSpec>, Fault> {
    let mut names: Vec<(String, usize)> = externs
        .iter()
        .enumerate()
        .map(|(index, symbol)| (symbol.name.clone(), index))
        .collect();
    sort(&mut names, |a, b| a < b);
    let known = |name: &str| {
        let at = names.binary_search_by(|(known, _)| known.as_str().cmp(name));
        Some(names.get(at.ok()?)?.1)
    };

    // What is declared outside the two sections belongs to another object.
    let mut query = NameQuery::new();
    for (name, _) in &names {
        query.add(name.as_bytes(), KindSet::of(&[Kind::VAR, Kind::FUNC]));
    }
    query.finish();
    let mut hits = Vec::new();
    if !query.is_empty() {
        btf.find_all(&query, &mut hits);
    }
    for ty in hits.iter().filter_map(|hit| btf.get(hit.id)) {
        if let Some(index) = known(btf.name(ty.name_off())) {
            externs[index].kind = ExternKind::Undefined;
        }
    }

    for (symbol, index) in declared(btf, sections.ksyms, &known) {
        let (Some(index), Some(target)) = (index, symbol.target()) else {
            continue;
        };
        let kind = match (symbol.kind(), btf.skip_modifiers_and_typedefs(target)) {
            (Kind::FUNC, Some((type_id, _))) => ExternKind::Function { type_id },
            (Kind::VAR, Some((_, ty))) if ty.kind() == Kind::VOID => ExternKind::Address,
            (Kind::VAR, Some((type_id, _))) => ExternKind::Variable { type_id },
            _ => continue,
        };
        externs[index].kind = kind;
    }

    let mut values = Vec::new();
    // Names may share their text: see `SHARING`.
    let mut left = btf.raw().len().saturating_mul(SHARING);
    for (symbol, index) in declared(btf, sections.kconfig, &known) {
        let name = btf.name(symbol.name_off());
        let place = symbol.target().and_then(|id| {
            Some((
                config_type(btf, id)?,
                btf.size_of(id)?,
                btf.align_of(id)?.max(1),
            ))
        });
        let Some((value, size, align)) = place else {
            return Err(bad_symbol(
                name,
                format_args!(
                    "a configuration value can be a bool, an integer, an enum \
                     libbpf_tristate or an array of char"
                ),
            ));
        };
        let index = if let Some(index) = index {
            index
        } else {
            left = left.checked_sub(name.len()).ok_or_else(|| {
                bad_symbol(
                    name,
                    format_args!("declared too often, or under too long a name"),
                )
            })?;
            externs.push(ExternSpec {
                name: name.to_owned(),
                weak: true,
                kind: ExternKind::Constant,
            });
            externs.len() - 1
        };
        values.push((Reverse(align), size, value, index));
    }
    let Some(section) = sections.kconfig.filter(|_| !values.is_empty()) else {
        return Ok(None);
    };
    // The largest alignment first, so that there are no gaps.
    sort(&mut values, |a, b| (a.0, a.3) < (b.0, b.3));
    let mut end = 0_u32;
    for (Reverse(align), size, value, index) in values {
        let offset = end.next_multiple_of(align);
        end = offset
            .checked_add(size)
            .filter(|end| *end <= MAX_CONFIG)
            .ok_or_else(|| {
                bad_symbol(
                    &externs[index].name,
                    format_args!("{size} bytes are too many for a configuration value"),
                )
            })?;
        externs[index].kind = ExternKind::Config {
            offset,
            size,
            value,
        };
    }
    Ok(Some(MapSpec {
        name: KCONFIG.to_owned(),
        map_type: MapType::ARRAY,
        key_size: 4,
        value_size: end,
        max_entries: 1,
        flags: MapFlags::RDONLY_PROG,
        value_type_id: section,
        freeze: true,
        ..MapSpec::default()
    }))
}

/// The symbols that a data section declares without defining them, each with
/// its position among those the code uses.
fn declared<'a>(
    btf: &Btf<'a>,
    section: Option<TypeId>,
    known: &dyn Fn(&str) -> Option<usize>,
) -> Vec<(Type<'a>, Option<usize>)> {
    let Some(section) = section.and_then(|id| btf.get(id)) else {
        return Vec::new();
    };
    section
        .sec_vars()
        .filter_map(|entry| btf.get(entry.type_id))
        .filter(|symbol| symbol.linkage() == Some(Linkage::EXTERN))
        .map(|symbol| (symbol, known(btf.name(symbol.name_off()))))
        .collect()
}

/// What a configuration variable of this type can hold.
fn config_type(btf: &Btf<'_>, id: TypeId) -> Option<ConfigType> {
    let (_, ty) = btf.skip_modifiers_and_typedefs(id)?;
    match ty.kind() {
        Kind::INT => {
            let (int, size) = (ty.int()?, ty.size()?);
            match (int.bool, size) {
                (true, 1) => Some(ConfigType::Bool),
                (false, 1) => Some(ConfigType::Char { signed: int.signed }),
                (false, 2 | 4 | 8) => Some(ConfigType::Int { signed: int.signed }),
                _ => None,
            }
        }
        Kind::ENUM | Kind::ENUM64 => {
            let tristate = btf.name(ty.name_off()) == "libbpf_tristate";
            (tristate && matches!(ty.size(), Some(4 | 8))).then_some(ConfigType::Tristate)
        }
        Kind::ARRAY => {
            let array = ty.array().filter(|a| a.len != 0)?;
            let element = config_type(btf, array.element)?;
            matches!(element, ConfigType::Char { .. }).then_some(ConfigType::Text)
        }
        _ => None,
    }
}

impl Object {
    /// Index in [`Object::maps`] of the map that holds configuration values,
    /// if the object uses any. Its contents come from
    /// [`Object::kernel_config`].
    pub fn config_map(&self) -> Option<usize> {
        self.config_map
    }

    /// For each of [`Object::externs`], whether one of these programs uses it.
    pub fn used_externs<'p>(
        &self,
        programs: impl IntoIterator<Item = &'p ProgramSpec>,
    ) -> Vec<bool> {
        let mut used = vec![false; self.externs().len()];
        let roots = programs.into_iter().map(|p| p.function).collect();
        self.for_each_target(roots, &mut |target| {
            if let Target::Extern(index) = target
                && let Some(used) = used.get_mut(index as usize)
            {
                *used = true;
            }
        });
        used
    }

    /// Starts to collect the object's configuration values; `None` if it has
    /// none. `used` tells which externs are worth a value, as
    /// [`Object::used_externs`] does.
    pub fn kernel_config(&self, used: &[bool]) -> Option<KernelConfig<'_>> {
        let map = self.maps().get(self.config_map?)?;
        let mut values: Vec<ConfigValue<'_>> = (0..)
            .zip(self.externs())
            .zip(used)
            .filter_map(|((index, symbol), used)| match symbol.kind {
                ExternKind::Config {
                    offset,
                    size,
                    value,
                } if *used => Some(ConfigValue {
                    name: &symbol.name,
                    index,
                    start: offset as usize,
                    size: size as usize,
                    value,
                    set: false,
                }),
                _ => None,
            })
            .collect();
        sort(&mut values, |a, b| a.name < b.name);
        Some(KernelConfig {
            bytes: vec![0; map.value_size as usize],
            values,
        })
    }

    /// Adds the names of kernel functions and variables that the object
    /// declares, as far as they are `used`, to `query`, for one walk over the
    /// kernel's BTF.
    pub fn add_extern_names<'o>(&'o self, used: &[bool], query: &mut NameQuery<'o>) {
        for (symbol, used) in self.externs().iter().zip(used) {
            if *used && let Some((_, kind)) = symbol.typed() {
                query.add(symbol.kernel_name(), KindSet::of(&[kind]));
            }
        }
    }

    /// The kernel's function or variable for an extern: its id in the
    /// kernel's BTF. `None` if there is none of this name. `query` is the one
    /// that [`Object::add_extern_names`] added to, `hits` what it found.
    ///
    /// # Errors
    /// [`ObjectError::Symbol`] if the kernel has one of another type.
    pub fn find_extern(
        &self,
        symbol: &ExternSpec,
        query: &NameQuery<'_>,
        kernel: &Btf<'_>,
        hits: &[NameHit],
    ) -> Result<Option<TypeId>, ObjectError> {
        let wanted = symbol.typed().zip(query.position(symbol.kernel_name()));
        let (Some(((local_id, kind), position)), Some(local)) = (wanted, self.btf()) else {
            return Ok(None);
        };
        let mut found = false;
        for hit in hits.iter().filter(|hit| hit.name == position) {
            let target = kernel.get(hit.id).filter(|ty| ty.kind() == kind);
            let Some(target) = target.and_then(|ty| ty.target()) else {
                continue;
            };
            found = true;
            let target = kernel.skip_modifiers_and_typedefs(target);
            if target.is_some_and(|(target, _)| {
                core_relo::types_compatible(&local, local_id, kernel, target)
            }) {
                return Ok(Some(hit.id));
            }
        }
        if found {
            return Err(bad_symbol(
                &symbol.name,
                format_args!("the kernel's {kind} of this name has another type"),
            )
            .into());
        }
        Ok(None)
    }

    /// Gives a number to a symbol that the object loads and nothing declares
    /// ([`ExternKind::Constant`]), in the named programs and the subprograms
    /// they use, or in all of them if `programs` is empty. The last number
    /// given counts.
    ///
    /// # Errors
    /// [`ObjectError::NoSuchProgram`]; [`ObjectError::Symbol`] if one of the
    /// programs (or, without any named, the whole object) does not use the
    /// symbol, or if it is no constant. Nothing is changed then.
    pub fn set_symbol_constant(
        &mut self,
        symbol: &str,
        value: u64,
        programs: &[&str],
    ) -> Result<(), ObjectError> {
        let fault = |what: String| ObjectError::Symbol {
            symbol: symbol.to_owned(),
            what,
        };
        let Some(index) = self.externs().iter().position(|e| e.name == symbol) else {
            return Err(fault("nothing in the object refers to it".to_owned()));
        };
        if self.externs()[index].kind != ExternKind::Constant {
            return Err(fault("it is declared, so it is no constant".to_owned()));
        }
        let mut constants = Vec::with_capacity(programs.len().max(1));
        for name in programs {
            let Some(program) = self.program(name) else {
                return Err(ObjectError::NoSuchProgram {
                    name: (*name).to_owned(),
                });
            };
            if !self.uses(program.function, Target::Extern(index as u32)) {
                return Err(fault(format!("program {name} does not refer to it")));
            }
            constants.push(Constant {
                symbol: index as u32,
                program: Some(program.function),
                value,
            });
        }
        if programs.is_empty() {
            constants.push(Constant {
                symbol: index as u32,
                program: None,
                value,
            });
        }
        self.constants.append(&mut constants);
        Ok(())
    }

    /// True if a program, or a subprogram that it uses, refers to a symbol
    /// that the object does not define.
    pub fn refers_to(&self, program: &str, symbol: &str) -> bool {
        let index = self.externs().iter().position(|e| e.name == symbol);
        match (index, self.program(program)) {
            (Some(index), Some(program)) => {
                self.uses(program.function, Target::Extern(index as u32))
            }
            _ => false,
        }
    }

    /// The number for a constant in a program.
    pub(crate) fn constant(&self, symbol: u32, program: u32) -> Option<u64> {
        let fits = |c: &&Constant| c.symbol == symbol && c.program.is_none_or(|p| p == program);
        Some(self.constants.iter().rev().find(fits)?.value)
    }

    /// True if a function or one that it calls refers to `target`.
    fn uses(&self, function: u32, target: Target) -> bool {
        let mut found = false;
        self.for_each_target(vec![function], &mut |t| found |= t == target);
        found
    }

    /// Calls `visit` with everything that these functions, and those they
    /// refer to, refer to.
    fn for_each_target(&self, mut functions: Vec<u32>, visit: &mut dyn FnMut(Target)) {
        let mut seen = vec![false; self.functions.len()];
        while let Some(index) = functions.pop() {
            let function = self.functions.get(index as usize);
            let (Some(function), Some(seen)) = (function, seen.get_mut(index as usize)) else {
                continue;
            };
            if std::mem::replace(seen, true) {
                continue;
            }
            let relocs = function.relocs.start as usize..function.relocs.end as usize;
            for reloc in self.relocs.get(relocs).unwrap_or_default() {
                visit(reloc.target);
                if let Target::Call(next) | Target::Address(next) = reloc.target {
                    functions.push(next);
                }
            }
        }
    }
}

/// A number for a symbol in some programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Constant {
    /// Index into the externs.
    symbol: u32,
    /// The program's function; `None` for all programs.
    program: Option<u32>,
    value: u64,
}

impl ExternSpec {
    /// For a function or variable of the kernel: its type in the object's BTF
    /// and the kind it has in the kernel's.
    fn typed(&self) -> Option<(TypeId, Kind)> {
        match self.kind {
            ExternKind::Variable { type_id } => Some((type_id, Kind::VAR)),
            ExternKind::Function { type_id } => Some((type_id, Kind::FUNC)),
            _ => None,
        }
    }

    /// The name the kernel knows it by. A function may be declared several
    /// times under different flavours (`bpf_task_acquire___old`).
    fn kernel_name(&self) -> &[u8] {
        match self.kind {
            ExternKind::Function { .. } => essential_name(self.name.as_bytes()),
            _ => self.name.as_bytes(),
        }
    }
}

/// The configuration values that programs of an object use, being collected.
///
/// Feed it the lines of a configuration and the numbers that the loader itself
/// finds out (`LINUX_KERNEL_VERSION` and the like), then [`finish`]. What was
/// set first stays.
///
/// [`finish`]: KernelConfig::finish
#[derive(Debug)]
pub struct KernelConfig<'o> {
    bytes: Vec<u8>,
    /// Sorted by name.
    values: Vec<ConfigValue<'o>>,
}

#[derive(Debug)]
struct ConfigValue<'o> {
    name: &'o str,
    /// Index into the externs.
    index: u32,
    start: usize,
    size: usize,
    value: ConfigType,
    set: bool,
}

impl KernelConfig<'_> {
    /// True if a variable of this name has no value yet.
    pub fn needs(&self, name: &str) -> bool {
        self.position(name.as_bytes()).is_some()
    }

    /// True if a `CONFIG_` variable has no value yet, so that it is worth
    /// reading the configuration.
    pub fn needs_options(&self) -> bool {
        self.values
            .iter()
            .any(|v| !v.set && v.name.starts_with("CONFIG_"))
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        let at = self
            .values
            .binary_search_by(|v| v.name.as_bytes().cmp(name));
        at.ok()
            .filter(|at| self.values.get(*at).is_some_and(|v| !v.set))
    }

    /// Takes a line of a kernel configuration (`CONFIG_BPF=y`). Lines that
    /// set nothing the object asks for are passed over.
    ///
    /// # Errors
    /// [`ObjectError::Symbol`] if the value does not fit its variable.
    pub fn line(&mut self, line: &[u8]) -> Result<(), ObjectError> {
        if !line.starts_with(b"CONFIG_") {
            return Ok(());
        }
        let line = line.trim_ascii_end();
        let Some(end) = line.iter().position(|b| *b == b'=') else {
            return Ok(());
        };
        let (name, text) = line.split_at(end);
        let Some(at) = self.position(name) else {
            return Ok(());
        };
        match text.get(1..).unwrap_or_default() {
            [letter @ (b'y' | b'm' | b'n')] => self.set_letter(at, *letter)?,
            [b'"', text @ .., b'"'] => self.set_text(at, text)?,
            digits => match parse_number(digits) {
                Some(number) => self.set_number(at, number)?,
                None => return Err(self.misfit(at, digits).into()),
            },
        }
        Ok(())
    }

    /// Sets a variable to a number.
    ///
    /// # Errors
    /// [`ObjectError::Symbol`] if the number does not fit the variable.
    pub fn number(&mut self, name: &str, number: u64) -> Result<(), ObjectError> {
        match self.position(name.as_bytes()) {
            Some(at) => Ok(self.set_number(at, number)?),
            None => Ok(()),
        }
    }

    /// The contents for the map, and the indices in [`Object::externs`] of
    /// variables without a value, which read as 0. Those that are not weak
    /// must not be read.
    pub fn finish(self) -> (Vec<u8>, Vec<u32>) {
        let missing = self.values.iter().filter(|v| !v.set).map(|v| v.index);
        (self.bytes, missing.collect())
    }

    fn set_letter(&mut self, at: usize, letter: u8) -> Result<(), Fault> {
        let number = match (self.values[at].value, letter) {
            (ConfigType::Bool | ConfigType::Tristate, b'y') => 1,
            (ConfigType::Bool | ConfigType::Tristate, b'n') => 0,
            (ConfigType::Tristate, _) => 2,
            (ConfigType::Char { .. }, letter) => u64::from(letter),
            _ => return Err(self.misfit(at, &[letter])),
        };
        self.store(at, number);
        Ok(())
    }

    fn set_text(&mut self, at: usize, text: &[u8]) -> Result<(), Fault> {
        let value = &self.values[at];
        if value.value != ConfigType::Text {
            return Err(self.misfit(at, text));
        }
        // The last byte stays zero.
        let room = value.size.saturating_sub(1).min(text.len());
        let start = value.start;
        if let (Some(to), Some(from)) = (self.bytes.get_mut(start..start + room), text.get(..room))
        {
            to.copy_from_slice(from);
        }
        self.values[at].set = true;
        Ok(())
    }

    fn set_number(&mut self, at: usize, number: u64) -> Result<(), Fault> {
        let value = &self.values[at];
        let bits = value.size as u32 * 8;
        let fits = match value.value {
            ConfigType::Bool => number <= 1,
            ConfigType::Int { .. } | ConfigType::Char { .. } if bits >= 64 => true,
            ConfigType::Int { signed: true } | ConfigType::Char { signed: true } => {
                number.wrapping_add(1 << (bits - 1)) >> bits == 0
            }
            ConfigType::Int { .. } | ConfigType::Char { .. } => number >> bits == 0,
            ConfigType::Tristate | ConfigType::Text => false,
        };
        if !fits {
            return Err(self.misfit(at, number.to_string().as_bytes()));
        }
        self.store(at, number);
        Ok(())
    }

    /// Stores the low bytes of a number in this machine's byte order.
    fn store(&mut self, at: usize, number: u64) {
        let number = number.to_ne_bytes();
        let value = &mut self.values[at];
        let size = value.size.min(8);
        let from = if cfg!(target_endian = "little") {
            number.get(..size)
        } else {
            number.get(8 - size..)
        };
        if let (Some(to), Some(from)) = (self.bytes.get_mut(value.start..value.start + size), from)
        {
            to.copy_from_slice(from);
        }
        value.set = true;
    }

    #[cold]
    fn misfit(&self, at: usize, text: &[u8]) -> Fault {
        let value = &self.values[at];
        let declared = match value.value {
            ConfigType::Bool => "a bool",
            ConfigType::Tristate => "an enum libbpf_tristate",
            ConfigType::Char { .. } => "a char",
            ConfigType::Int { .. } => "an integer",
            ConfigType::Text => "an array of char",
        };
        bad_symbol(
            value.name,
            format_args!(
                "its value {} does not fit {declared} of {} bytes",
                String::from_utf8_lossy(text),
                value.size
            ),
        )
    }
}

/// A number as C writes it: decimal, `0x` or `0` in front of other bases, a
/// minus sign.
fn parse_number(text: &[u8]) -> Option<u64> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (radix, digits) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (16, rest),
        [b'0', rest @ ..] if !rest.is_empty() => (8, rest),
        _ => (10, text),
    };
    let digits = std::str::from_utf8(digits).ok()?;
    // from_str_radix takes a plus sign.
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let number = u64::from_str_radix(digits, radix).ok()?;
    if negative && number > 1 << 63 {
        return None;
    }
    Some(if negative {
        number.wrapping_neg()
    } else {
        number
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::encode::{BtfBuilder, BtfFeatures};

    fn object(bytes: &'static [u8]) -> Object {
        Object::parse(bytes).unwrap()
    }

    fn kconfig() -> Object {
        object(include_bytes!("../../tests/programs/kconfig.bpf.o"))
    }

    fn ksyms() -> Object {
        object(include_bytes!("../../tests/programs/ksyms.bpf.o"))
    }

    /// As if programs used every extern.
    fn all(object: &Object) -> Vec<bool> {
        vec![true; object.externs().len()]
    }

    fn kind(object: &Object, name: &str) -> ExternKind {
        let mut externs = object.externs().iter();
        externs.find(|e| e.name == name).unwrap().kind
    }

    #[test]
    fn configuration_values_lie_side_by_side() {
        let object = kconfig();
        let map = &object.maps()[object.config_map().unwrap()];
        let mut places = Vec::new();
        for symbol in object.externs() {
            let ExternKind::Config {
                offset,
                size,
                value,
            } = symbol.kind
            else {
                panic!("{}: {:?}", symbol.name, symbol.kind);
            };
            assert!(value == ConfigType::Text || offset % size == 0);
            places.push((offset, size));
        }
        places.sort_unstable();
        let ends = places.iter().map(|(offset, size)| offset + size);
        let next = places.iter().skip(1).map(|(offset, _)| *offset);
        assert!(ends.clone().zip(next).all(|(end, next)| end <= next));
        assert_eq!(ends.max(), Some(map.value_size));
        // The kernel gets the same layout.
        let btf = object.btf_for_kernel(BtfFeatures::all()).unwrap().unwrap();
        let btf = Btf::parse(&btf).unwrap();
        let section = btf.get(map.value_type_id).unwrap();
        assert_eq!(section.size(), Some(map.value_size));
        for var in section.sec_vars() {
            let ty = btf.get(var.type_id).unwrap();
            assert_eq!(ty.linkage(), Some(Linkage::GLOBAL));
            let kind = kind(&object, btf.name(ty.name_off()));
            assert!(matches!(kind, ExternKind::Config { offset, size, .. }
                    if (offset, size) == (var.offset, var.size)));
        }
    }

    #[test]
    fn configuration_values_must_fit() {
        let object = kconfig();
        let takes = |line: &str| {
            let mut config = object.kernel_config(&all(&object)).unwrap();
            let result = config.line(line.as_bytes());
            let name = line.split('=').next().unwrap();
            assert_eq!(config.needs(name), result.is_err(), "{line}");
            result.is_ok()
        };
        for line in [
            "CONFIG_T_BOOL=y",
            "CONFIG_T_BOOL=1",
            "CONFIG_T_LETTER=n",
            "CONFIG_T_SMALL=127",
            "CONFIG_T_NEGATIVE=-32768",
            "CONFIG_T_TYPEDEF=0xffffffff",
            "CONFIG_T_TYPEDEF=017",
            "CONFIG_T_HEX=0xffffffffffffffff",
            "CONFIG_T_HEX=-9223372036854775808",
            "CONFIG_T_TEXT=\"\"",
        ] {
            assert!(takes(line), "{line}");
        }
        for line in [
            "CONFIG_T_BOOL=2",
            "CONFIG_T_BOOL=m",
            "CONFIG_T_BOOL=\"y\"",
            "CONFIG_T_YES=1",
            "CONFIG_T_SMALL=128",
            "CONFIG_T_NEGATIVE=32768",
            "CONFIG_T_NEGATIVE=-32769",
            "CONFIG_T_TYPEDEF=-1",
            "CONFIG_T_TYPEDEF=0x100000000",
            "CONFIG_T_TYPEDEF=y",
            "CONFIG_T_HEX=0x10000000000000000",
            "CONFIG_T_HEX=-9223372036854775809",
            "CONFIG_T_HEX=+1",
            "CONFIG_T_HEX=08",
            "CONFIG_T_HEX=",
            "CONFIG_T_TEXT=7",
            "CONFIG_T_TEXT=y",
            "CONFIG_T_TEXT=\"",
        ] {
            assert!(!takes(line), "{line}");
        }

        let mut config = object.kernel_config(&all(&object)).unwrap();
        assert!(config.needs_options() && config.needs("LINUX_KERNEL_VERSION"));
        assert!(!config.needs("CONFIG_T_OTHER"));
        config.line(b"CONFIG_T_OTHER=\"\xff\"").unwrap();
        config.line(b"# CONFIG_T_BOOL is not set").unwrap();
        config.line(b"CONFIG_T_TYPEDEF=5\r").unwrap();
        config.line(b"CONFIG_T_TYPEDEF=6").unwrap();
        config.number("LINUX_KERNEL_VERSION", 1 << 31).unwrap_err();
        let ExternKind::Config { offset, .. } = kind(&object, "CONFIG_T_TYPEDEF") else {
            panic!("not an option");
        };
        let (contents, missing) = config.finish();
        let at = offset as usize;
        assert_eq!(contents[at..at + 4], 5_u32.to_ne_bytes());
        assert_eq!(missing.len(), object.externs().len() - 1);
    }

    #[test]
    fn only_what_programs_use_is_looked_for() {
        let object = kconfig();
        let used = object.used_externs(object.program("kconfig_version"));
        let names = object.externs().iter().zip(&used);
        let names: Vec<_> = names.filter(|(_, u)| **u).map(|(s, _)| &s.name).collect();
        assert_eq!(names, ["LINUX_KERNEL_VERSION"]);
        let config = object.kernel_config(&used).unwrap();
        assert!(config.needs("LINUX_KERNEL_VERSION") && !config.needs_options());
        let (contents, missing) = config.finish();
        let map = &object.maps()[object.config_map().unwrap()];
        assert_eq!(contents.len(), map.value_size as usize);
        assert_eq!(missing.len(), 1);

        let object = ksyms();
        let used = object.used_externs(object.program("ksyms_untyped"));
        let mut query = NameQuery::new();
        object.add_extern_names(&used, &mut query);
        assert!(query.is_empty());
        let used = object.used_externs(object.programs());
        assert!(used.iter().all(|used| *used));
        assert_eq!(object.used_externs([]), vec![false; used.len()]);
    }

    #[test]
    fn undefined_symbols_are_told_apart() {
        let object = ksyms();
        assert_eq!(kind(&object, "_stext"), ExternKind::Address);
        assert_eq!(kind(&object, "no_such_symbol"), ExternKind::Address);
        assert_eq!(kind(&object, "of_another_object"), ExternKind::Undefined);
        let btf = object.btf().unwrap();
        let ExternKind::Variable { type_id } = kind(&object, "bpf_prog_active") else {
            panic!("not a variable");
        };
        assert_eq!(btf.type_name(type_id), "int");
        let ExternKind::Function { type_id } = kind(&object, "no_such_function") else {
            panic!("not a function");
        };
        assert_eq!(btf.get(type_id).unwrap().vlen(), 2);
        let weak = object.externs().iter().filter(|e| e.weak);
        assert_eq!(weak.count(), 5);
        assert!(object.kernel_config(&all(&object)).is_none() && object.config_map().is_none());
        let mut object = object;
        let declared = object.set_symbol_constant("_stext", 1, &[]).unwrap_err();
        assert!(declared.to_string().contains("no constant"), "{declared}");
    }

    #[test]
    fn kernel_types_are_found_by_name_and_type() {
        let mut kernel = BtfBuilder::new();
        let long = kernel.add_int("long", 8, true);
        let int = kernel.add_int("int", 4, true);
        let nothing = kernel.add_func_proto(0, &[]);
        let counted = kernel.add_func_proto(0, &[("by", int)]);
        kernel.add_struct("bpf_rcu_read_lock", 0, &[]);
        kernel.add_func("bpf_rcu_read_lock", counted, Linkage::STATIC);
        let lock = kernel.add_func("bpf_rcu_read_lock", nothing, Linkage::STATIC);
        kernel.add_func("bpf_rcu_read_unlock", nothing, Linkage::GLOBAL);
        let volatile = kernel.add_modifier(Kind::VOLATILE, long);
        let active = kernel.add_var("bpf_prog_active", volatile, Linkage::GLOBAL);
        let array = kernel.add_array(int, int, 3);
        kernel.add_var("runqueues", array, Linkage::GLOBAL);
        let bytes = kernel.to_bytes().unwrap();

        let object = ksyms();
        let mut query = NameQuery::new();
        object.add_extern_names(&all(&object), &mut query);
        query.finish();
        let mut hits = Vec::new();
        let kernel = Btf::scan(&bytes, None, &query, &mut hits).unwrap();
        let find = |name: &str| {
            let mut externs = object.externs().iter();
            let symbol = externs.find(|e| e.name == name).unwrap();
            object.find_extern(symbol, &query, &kernel, &hits)
        };
        assert_eq!(find("bpf_rcu_read_lock"), Ok(Some(lock)));
        assert_eq!(find("bpf_rcu_read_lock___same"), Ok(Some(lock)));
        // Integers are compatible whatever their size.
        assert_eq!(find("bpf_prog_active"), Ok(Some(active)));
        assert_eq!(find("no_such_function"), Ok(None));
        assert_eq!(find("_stext"), Ok(None));
        for name in ["bpf_rcu_read_unlock___counted", "runqueues"] {
            let err = find(name).unwrap_err().to_string();
            assert!(err.contains(name) && err.contains("another type"), "{err}");
        }
    }
}
