//! Offline: what a build without the default features says of objects that need
//! one. Empty unless built like that:
//!
//!     cargo test --no-default-features --test left_out
#![cfg(not(feature = "co-re"))]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{LeakCheck, ROOT, kernel_version, object, require};
use ebpf_manager::bpf::{Collection, LoadError, LoadOptions, MissingSymbol, ProgramError};
use ebpf_manager::elf::{Object, ObjectError};

#[test]
fn sections_that_need_a_feature_are_refused_by_its_name() {
    for (bytes, wanted) in [
        (
            &include_bytes!("programs/legacy_maps.bpf.o")[..],
            "legacy-maps",
        ),
        (include_bytes!("programs/struct_ops.bpf.o"), "struct-ops"),
        (
            include_bytes!("programs/compilers/jumps.bpf.o"),
            "jump-tables",
        ),
    ] {
        match Object::parse(bytes).map(drop) {
            Err(err @ ObjectError::LeftOut { feature, .. }) => {
                assert_eq!(feature, wanted);
                assert!(err.to_string().contains(wanted), "{err}");
            }
            other => panic!("{wanted}: {other:?}"),
        }
    }
}

#[test]
fn symbols_of_the_kernel_fail_the_programs_that_use_them() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = object("ksyms.bpf.o");
    let err = Collection::load(&object, LoadOptions::default()).unwrap_err();
    let LoadError::Program(ProgramError::UndefinedSymbol { reason, .. }) = &err else {
        panic!("{err}");
    };
    assert_eq!(**reason, MissingSymbol::LeftOut);
    assert!(err.to_string().contains("kernel-symbols"), "{err}");
}

#[test]
fn the_kernel_relocates_what_the_loader_does_not() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let loaded = Collection::load(&object("bench_b.bpf.o"), LoadOptions::default());
    if kernel_version() >= (5, 17) {
        assert_eq!(loaded.unwrap().programs().len(), 20);
    } else {
        let err = loaded.unwrap_err().to_string();
        assert!(err.contains("co-re"), "{err}");
    }
}
