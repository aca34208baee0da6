//! What undefined symbols are, as their declarations in BTF tell.

use std::cmp::Reverse;

use ebpf_manager_sys::abi::bpf::{MapFlags, MapType};

use super::{ConfigType, ExternKind, KCONFIG};
use crate::btf::{Btf, Kind, KindSet, Linkage, NameQuery, Type, TypeId};
use crate::error::{Fault, bad_symbol};
use crate::object::SHARING;
use crate::sort::sort;
use crate::spec::{ExternSpec, MapSpec};

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

    if !cfg!(feature = "kernel-symbols") {
        return Ok(None);
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
