//! Tests of externs, on objects that declare some of each kind.

use super::*;
use crate::btf::encode::{BtfBuilder, BtfFeatures};
use crate::btf::{Btf, Kind, Linkage, NameQuery};

fn object(bytes: &'static [u8]) -> Object {
    Object::parse(bytes).unwrap()
}

fn kconfig() -> Object {
    object(include_bytes!("../../../tests/programs/kconfig.bpf.o"))
}

fn ksyms() -> Object {
    object(include_bytes!("../../../tests/programs/ksyms.bpf.o"))
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
