//! Objects of every make through the loader: the notations that loaders and their
//! users came up with over the years, and what they ask of the kernel.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

#[path = "objects/arena.rs"]
mod arena;
mod common;
#[path = "objects/compilers.rs"]
mod compilers;
#[path = "objects/damaged.rs"]
mod damaged;
#[path = "objects/linked.rs"]
mod linked;
#[path = "objects/struct_ops.rs"]
mod struct_ops;

use std::os::fd::AsFd;
use std::path::Path;

use common::{
    Feature, LeakCheck, ROOT, built_with, check, kernel_version, load, load_alone, map, object,
    require, run, skip,
};
use ebpf_manager::bpf::{
    Collection, LoadError, LoadOptions, Map, MapFlags, MapType, MissingSymbol, ProgramError,
};
use ebpf_manager::elf::{ExternKind, Object, ObjectError, Pinning, Slot};
use ebpf_manager_sys::proc::{self, KernelVersion};

/// Kernel functions for all program types, among them those used here.
const KERNEL_FUNCTIONS: Feature =
    Feature::new("bpf_rcu_read_lock", 6, 2).config(&["CONFIG_DEBUG_INFO_BTF"]);
/// Kernel variables by their type; the kernel looks for them in its own symbol
/// table, too.
const KERNEL_VARIABLES: Feature = Feature::new("bpf_this_cpu_ptr", 5, 10)
    .config(&["CONFIG_DEBUG_INFO_BTF", "CONFIG_KALLSYMS_ALL"]);
/// Functions of modules for programs, and a module with some.
const MODULE_FUNCTIONS: Feature = Feature::new("bpf_skb_ct_lookup", 6, 0)
    .config(&["CONFIG_DEBUG_INFO_BTF_MODULES", "CONFIG_NF_CONNTRACK"]);
/// Variables of modules; the kernel looks for their addresses, too.
const MODULE_VARIABLES: Feature = Feature::new("variables of modules", 5, 12).config(&[
    "CONFIG_DEBUG_INFO_BTF_MODULES",
    "CONFIG_KALLSYMS_ALL",
    "CONFIG_NETFILTER_XTABLES",
]);
/// Types of the kernel.
const KERNEL_TYPES: Feature = Feature::new("BTF", 5, 4).config(&["CONFIG_DEBUG_INFO_BTF"]);

#[test]
fn objects_legacy_maps_of_every_make() {
    let object = object("legacy_maps.bpf.o");
    let spec = |name: &str| object.map(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(spec("lm_static").max_entries, 7);
    assert_eq!(spec("lm_static_second").value_size, 16);
    assert_eq!(spec("lm_seven_words").flags, MapFlags::NO_PREALLOC);
    let inner = spec("lm_outer_by_number").inner.as_ref().unwrap();
    assert_eq!((inner.max_entries, inner.value_size), (13, 16));
    let outer = spec("lm_outer_by_id");
    assert_eq!(outer.pinning, Pinning::Custom(2));
    assert_eq!(outer.slots, [(1, Slot::Map("lm_inner".to_owned()))]);
    assert_eq!(spec("lm_own_section").key_size, 8);

    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load("legacy_maps.bpf.o");
    check("legacy_maps", &collection, &["legacy_maps_check"]);
    let kinds = ["lm_other_section", "lm_btf"].map(|name| map(&collection, name).map_type());
    assert_eq!(kinds, [MapType::PERCPU_ARRAY, MapType::HASH]);
}

#[test]
fn objects_extern_maps_and_what_is_left_to_the_loader() {
    let mut object = object("extern_map.bpf.o");
    assert!(object.map("em_elsewhere").unwrap().external);
    assert!(object.externs().is_empty());
    let later = object.map("em_sized_later").unwrap();
    assert_eq!(
        (later.max_entries, later.pinning),
        (0, Pinning::Custom(107))
    );

    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let refused = |object: &Object, replacement: Option<Map>| {
        let mut options = LoadOptions::default();
        options.replace_maps = replacement.into_iter().collect();
        Collection::load(object, options).unwrap_err().to_string()
    };
    let mut spec = object.map("em_elsewhere").unwrap().clone();
    let err = refused(&object, None);
    assert!(
        err.starts_with("map em_elsewhere: declared extern"),
        "{err}"
    );
    spec.max_entries = 3;
    let err = refused(&object, Some(Map::create(&spec).unwrap()));
    assert!(
        err.contains("max_entries is 3, the object declares 2"),
        "{err}"
    );
    spec.max_entries = 2;
    let elsewhere = Map::create(&spec).unwrap();
    let err = refused(&object, Some(elsewhere.clone()));
    assert_eq!(
        err,
        "map em_sized_later: max_entries is 0; set it before loading"
    );

    for map in object.maps_mut() {
        if map.name == "em_sized_later" {
            map.max_entries = 1000;
        }
    }
    elsewhere.set(&1_u32, &33_u64).unwrap();
    let mut options = LoadOptions::default();
    options.replace_maps = vec![elsewhere.clone()];
    let collection = Collection::load(&object, options).unwrap();
    check("extern_map", &collection, &["extern_map_check"]);
    assert_eq!(elsewhere.get(&1_u32).unwrap(), Some(34_u64));
    let events = map(&collection, "em_events");
    assert_eq!((events.key_size(), events.value_size()), (4, 4));

    // The flag that the kernel adds to a device map is no difference.
    let devices = map(&collection, "em_devices").as_fd();
    let devices = Map::from_fd("em_devices", devices.try_clone_to_owned().unwrap()).unwrap();
    let mut options = LoadOptions::default();
    options.replace_maps = vec![elsewhere, devices];
    Collection::load(&object, options).unwrap();
}

#[test]
fn objects_without_btf() {
    let object = object("legacy.bpf.o");
    assert!(object.btf().is_none());
    assert_eq!(object.kernel_version(), Some(0x04_0e00));
    assert_eq!(object.map("legacy_array").unwrap().value_size, 16);

    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load("legacy.bpf.o");
    check("legacy", &collection, &["legacy_check", "legacy_socket"]);
}

/// Loads some programs of an object and leaves the others out.
fn load_some(object: &Object, names: &[&str], config: Option<&str>) -> Collection {
    let mut options = LoadOptions::default();
    let others = object.programs().iter().map(|p| p.name.clone());
    options.exclude = others.filter(|n| !names.contains(&n.as_str())).collect();
    options.kernel_config = config.map(|text| text.as_bytes().to_vec());
    Collection::load(object, options).unwrap_or_else(|e| panic!("{names:?}: {e}"))
}

/// The symbol that a program cannot be loaded for, and why.
fn missing(object: &Object, program: &str) -> (String, MissingSymbol) {
    match load_alone(object, program) {
        Err(LoadError::Program(ProgramError::UndefinedSymbol {
            symbol,
            reason,
            program: of,
            ..
        })) if of == program => (symbol, *reason),
        Err(err) => panic!("{program}: {err}"),
        Ok(_) => panic!("{program} loads"),
    }
}

const CONFIG: &str = "\
# CONFIG_T_ABSENT is not set
CONFIG_T_BOOL=y
CONFIG_T_YES=y
CONFIG_T_MODULE=m
CONFIG_T_LETTER=m
CONFIG_T_SMALL=-7
CONFIG_T_NEGATIVE=-12345
CONFIG_T_TYPEDEF=4000000000
CONFIG_T_HEX=0xffff888000000000
CONFIG_T_TEXT=\"a\\=\"
CONFIG_T_CUT=\"long text\"
CONFIG_T_BOOL_LONGER=n
";

#[test]
fn objects_configuration_from_text() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("kconfig.bpf.o");
    let programs = ["kconfig_text", "kconfig_is_constant"];
    let collection = load_some(&object, &programs, Some(CONFIG));
    check("kconfig", &collection, &programs);

    // The map is read-only for user space, too.
    let config = map(&collection, ".kconfig");
    assert!(config.flags().contains(MapFlags::RDONLY_PROG));
    let zeros = vec![0; config.value_size()];
    config.update(&[0; 4], &zeros).unwrap_err();

    let mut options = LoadOptions::default();
    options.kernel_config = Some(CONFIG.into());
    match Collection::load(&object, options) {
        Err(LoadError::Program(ProgramError::UndefinedSymbol {
            program,
            symbol,
            reason,
            ..
        })) => {
            assert_eq!(program, "err_kconfig_missing");
            assert_eq!(symbol, "CONFIG_T_MISSING");
            assert_eq!(*reason, MissingSymbol::NotConfigured);
        }
        other => panic!("{other:?}"),
    }

    let mut options = LoadOptions::default();
    options.kernel_config = Some(b"CONFIG_T_BOOL=m\n".to_vec());
    match Collection::load(&object, options) {
        Err(LoadError::Object {
            source: ObjectError::Symbol { symbol, what },
            ..
        }) => {
            assert_eq!(symbol, "CONFIG_T_BOOL");
            assert!(what.contains("value m does not fit a bool"), "{what}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn objects_configuration_of_this_kernel() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("kconfig.bpf.o");
    // Known without any configuration file.
    let programs = ["kconfig_version", "kconfig_virtual"];
    let collection = load_some(&object, &programs, None);
    let [version, virtual_ones] = programs.map(|name| run(collection.program(name).unwrap()));
    assert_eq!(version, KernelVersion::current().unwrap().code());
    let cookie = kernel_version() >= (5, 15);
    // x86-64 and arm64 have wrapped system calls since 4.17.
    let wrapper = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
    assert_eq!(virtual_ones, u32::from(wrapper) | u32::from(cookie) << 1);
    drop(collection);

    if built_with("CONFIG_BPF_SYSCALL").is_none() {
        let (_, reason) = missing(&object, "kconfig_running");
        assert!(matches!(reason, MissingSymbol::NoConfig(_)), "{reason}");
        return skip("the rest needs the kernel's configuration");
    }
    let collection = load_some(&object, &["kconfig_running"], None);
    let hz = run(collection.program("kconfig_running").unwrap());
    assert!([100, 250, 300, 1000].contains(&hz), "CONFIG_HZ={hz}");
}

#[test]
fn objects_kernel_symbols_by_address() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("ksyms.bpf.o");
    let collection = load_some(&object, &["ksyms_untyped"], None);
    check("ksyms", &collection, &["ksyms_untyped"]);
    let variable = object.variable("address_of_stext").unwrap();
    let bss = &collection.maps()[variable.map as usize];
    let mut value = vec![0; bss.value_size()];
    assert!(bss.lookup(&[0; 4], &mut value).unwrap());
    let at = variable.offset as usize;
    let found = u64::from_ne_bytes(value[at..at + 8].try_into().unwrap());
    let mut listed = 0;
    proc::for_each_symbol(Path::new("/proc/kallsyms"), &mut |symbol| {
        if symbol.name == b"_stext" {
            listed = symbol.address;
        }
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert!(listed != 0);
    assert_eq!(found, listed);

    let (symbol, reason) = missing(&object, "err_ksyms_untyped");
    assert_eq!(symbol, "no_such_strong_symbol");
    assert_eq!(reason, MissingSymbol::NoAddress);
    let (symbol, reason) = missing(&object, "err_ksyms_other_object");
    assert_eq!(symbol, "of_another_object");
    assert_eq!(reason, MissingSymbol::Undefined);
}

#[test]
fn objects_kernel_variables() {
    if !require(&KERNEL_TYPES) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("ksyms.bpf.o");
    let (symbol, reason) = missing(&object, "err_ksyms_variable");
    assert_eq!(symbol, "no_such_strong_variable");
    assert_eq!(reason, MissingSymbol::NoType);
    let (symbol, reason) = missing(&object, "err_ksyms_variable_type");
    assert_eq!(symbol, "runqueues");
    if reason == MissingSymbol::NoType && kernel_version() < (6, 1) {
        // Builds with pahole 1.18 to 1.21 leave variables out.
        return skip("this kernel's BTF has no variables");
    }
    assert_eq!(reason, MissingSymbol::OtherType);

    if !require(&KERNEL_VARIABLES) {
        return;
    }
    let collection = load_some(&object, &["ksyms_variable"], None);
    check("ksyms", &collection, &["ksyms_variable"]);
}

#[test]
fn objects_kernel_functions() {
    if !require(&KERNEL_FUNCTIONS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("ksyms.bpf.o");
    let programs = ["ksyms_function", "ksyms_weak_function"];
    let collection = load_some(&object, &programs, None);
    check("ksyms", &collection, &programs);

    let (symbol, reason) = missing(&object, "err_ksyms_function");
    assert_eq!(symbol, "no_such_strong_function");
    assert_eq!(reason, MissingSymbol::NoType);
    let (symbol, reason) = missing(&object, "err_ksyms_function_type");
    assert_eq!(symbol, "bpf_rcu_read_unlock___counted");
    assert_eq!(reason, MissingSymbol::OtherType);

    // A weak one that is called unasked: the verifier's words are translated.
    match load_alone(&object, "err_ksyms_weak_function") {
        Err(err @ LoadError::Program(ProgramError::Rejected(_))) => {
            let text = err.to_string();
            assert!(text.contains("weak function no_such_function"), "{text}");
            assert!(!text.contains("unknown#"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn objects_symbol_constants() {
    let mut object = object("constants.bpf.o");
    let kinds = object.externs().iter().map(|e| e.kind);
    assert!(kinds.eq([ExternKind::Constant; 2]));
    let refused = |result: Result<(), ObjectError>| result.unwrap_err().to_string();
    assert_eq!(
        refused(object.set_symbol_constant("no_such", 1, &[])),
        "symbol no_such: nothing in the object refers to it"
    );
    assert_eq!(
        refused(object.set_symbol_constant("constant_wide", 1, &["constants_chosen"])),
        "symbol constant_wide: program constants_chosen does not refer to it"
    );
    let unknown = object.set_symbol_constant("constant_wide", 1, &["no_such"]);
    assert!(matches!(unknown, Err(ObjectError::NoSuchProgram { .. })));

    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let collection = load_some(&object, &["constants_unset"], None);
    check("constants", &collection, &["constants_unset"]);

    object
        .set_symbol_constant("constant_wide", 0xfedc_ba98_7654_3210, &[])
        .unwrap();
    object
        .set_symbol_constant("constant_shared", 7, &[])
        .unwrap();
    let chosen = ["constants_chosen"];
    object
        .set_symbol_constant("constant_shared", 9, &chosen)
        .unwrap();
    let programs = ["constants_set", "constants_chosen"];
    let collection = load_some(&object, &programs, None);
    check("constants", &collection, &programs);
}

#[test]
fn objects_functions_of_a_module() {
    if !require(&ROOT) || !require(&MODULE_FUNCTIONS) {
        return;
    }
    if !Path::new("/sys/module/nf_conntrack").exists() {
        return skip("the nf_conntrack module is not loaded");
    }
    let _leaks = LeakCheck::begin();
    let collection = load("kfunc_module.bpf.o");
    check("kfunc_module", &collection, &["kfunc_module"]);
}

#[test]
fn objects_variables_of_a_module() {
    if !require(&ROOT) || !require(&MODULE_VARIABLES) {
        return;
    }
    if !Path::new("/sys/kernel/btf/x_tables").exists() {
        return skip("the x_tables module is not loaded");
    }
    let _leaks = LeakCheck::begin();
    let collection = load("ksyms_module.bpf.o");
    check("ksyms_module", &collection, &["module_variable"]);
}
