//! The committed objects against a hand-made kernel and the running one.

use super::*;
use crate::Object;
use crate::btf::encode::{BtfBuilder, NewMember};
use crate::btf::{Linkage, tests::vmlinux};
use crate::core_relo::{PoisonReason, minimise};

pub(crate) fn object(name: &str) -> Object {
    let path = format!(
        "{}/../tests/programs/{name}.bpf.o",
        env!("CARGO_MANIFEST_DIR")
    );
    Object::parse(std::fs::read(path).unwrap()).unwrap()
}

/// A kernel with tasks that have a number, and little else.
fn kernel(more: impl FnOnce(&mut BtfBuilder)) -> Vec<u8> {
    let mut b = BtfBuilder::new();
    let int = b.add_int("int", 4, true);
    let pid = NewMember {
        name: "pid",
        type_id: int,
        bit_offset: 64,
        bit_size: 0,
    };
    b.add_struct("task_struct", 16, &[pid]);
    b.add_enum("bpf_map_type", 4, false, &[("BPF_MAP_TYPE_HASH", 1)]);
    more(&mut b);
    b.to_bytes().unwrap()
}

#[test]
fn what_is_reached_is_required() {
    let object = object("core_missing");
    let report = check(&object.linker().unwrap(), &kernel(|_| {}), &[]).unwrap();
    assert_eq!((report.matched, report.missing), (1, 3), "{report:?}");
    assert_eq!((report.ambiguous, report.failed), (0, 0));
    let of = |name: &str| {
        let index = object.programs().iter().position(|p| p.name == name);
        let mut all = report.findings.iter();
        all.find(|finding| Some(finding.program) == index)
    };
    for (name, reason, says) in [
        (
            "err_core_missing_field",
            PoisonReason::NoMatch,
            "byte_off of struct task_struct___absent.no_such_member.no_such_field",
        ),
        (
            "err_core_missing_type",
            PoisonReason::NoType,
            "byte_off of struct no_such_struct.field",
        ),
        (
            "err_core_missing_enumerator",
            PoisonReason::NoMatch,
            "enumval_value of enum bpf_map_type::BPF_MAP_TYPE_NO_SUCH",
        ),
    ] {
        let finding = of(name).unwrap();
        assert!(finding.required, "{name}");
        assert!(finding.fault.to_string().starts_with(says), "{finding:?}");
        let Fault::Missing(poison) = &finding.fault else {
            panic!("{finding:?}");
        };
        assert_eq!(
            (poison.reason, Some(poison.insn as u32)),
            (reason, finding.insn)
        );
    }
    assert_eq!(of("core_missing_none"), None);
}

#[test]
fn contradictions_are_counted() {
    let twice = kernel(|b| {
        let pid = NewMember {
            name: "pid",
            type_id: 1,
            bit_offset: 32,
            bit_size: 0,
        };
        b.add_struct("task_struct", 8, &[pid]);
    });
    let object = object("core_missing");
    let report = check(&object.linker().unwrap(), &twice, &[]).unwrap();
    assert_eq!((report.matched, report.ambiguous), (0, 1), "{report:?}");
    let finding = report.findings.last().unwrap();
    assert!(finding.required && finding.fault.to_string().contains("ambiguous"));
}

#[test]
fn guarded_poison_is_not_required() {
    let Some(kernel) = vmlinux("guarded_poison_is_not_required") else {
        return;
    };
    let object = object("core");
    let report = check(&object.linker().unwrap(), &kernel, &[]).unwrap();
    assert!(report.missing >= 5, "{report:?}");
    assert!(report.matched > 30 && report.absent >= 10, "{report:?}");
    assert!(report.findings.iter().all(|f| !f.required), "{report:?}");
    // The kernel's lack of a type the object relies on is.
    let nothing = kernel_without_types();
    let report = check(&object.linker().unwrap(), &nothing, &[]).unwrap();
    assert_eq!(report.matched, 1, "a local type id: {report:?}");
    assert!(report.findings.iter().any(|f| f.required));
}

fn kernel_with_hidden_pid() -> Vec<u8> {
    let mut b = BtfBuilder::new();
    let int = b.add_int("int", 4, true);
    let member = |name, type_id, bit_offset| NewMember {
        name,
        type_id,
        bit_offset,
        bit_size: 0,
    };
    let empty = b.add_union("", 4, &[member("other", int, 0)]);
    let inner = b.add_struct("", 8, &[member("more", int, 0), member("pid", int, 32)]);
    let middle = b.add_union("", 8, &[member("wide", int, 0), member("", inner, 0)]);
    b.add_struct(
        "task_struct",
        12,
        &[member("", empty, 0), member("", middle, 32)],
    );
    b.to_bytes().unwrap()
}

fn kernel_without_types() -> Vec<u8> {
    BtfBuilder::new().to_bytes().unwrap()
}

#[test]
fn attach_targets_are_looked_up() {
    let spec = |attach_type, name: &str| {
        let mut spec = object("core").programs()[0].clone();
        (spec.attach_type, spec.target) = (attach_type, Some(name.to_owned()));
        target(&spec)
    };
    let named = |name: &str, kind| Some((name.to_owned(), kind));
    assert_eq!(
        spec(Some(AttachType::TRACE_FENTRY), "f"),
        named("f", Kind::FUNC)
    );
    assert_eq!(
        spec(Some(AttachType::TRACE_RAW_TP), "sched_switch"),
        named("btf_trace_sched_switch", Kind::TYPEDEF)
    );
    assert_eq!(
        spec(Some(AttachType::LSM_MAC), "file_open"),
        named("bpf_lsm_file_open", Kind::FUNC)
    );
    assert_eq!(
        spec(Some(AttachType::TRACE_ITER), "task"),
        named("bpf_iter_task", Kind::FUNC)
    );
    assert_eq!(spec(None, "f"), None);
    assert_eq!(spec(Some(AttachType::TRACE_FENTRY), ""), None);

    // The only object with such a section, against kernels with and without.
    let object = object("attach");
    let linker = object.linker().unwrap();
    let Some((index, (name, kind))) = (0..)
        .zip(object.programs())
        .find_map(|(at, spec)| Some(at).zip(target(spec)))
    else {
        return;
    };
    let with = kernel(|b| {
        if kind == Kind::FUNC {
            let proto = b.add_func_proto(0, &[]);
            b.add_func(&name, proto, Linkage::STATIC);
        } else {
            b.add_typedef(&name, 1);
        }
    });
    for (kernel, missing) in [(with, false), (kernel_without_types(), true)] {
        let report = check(&linker, &kernel, &[]).unwrap();
        let fault = Fault::Target(name.as_str().into());
        let found = report
            .findings
            .iter()
            .any(|f| f.program == index && f.fault == fault);
        assert_eq!(found, missing);
    }
}

#[test]
fn kernel_symbols_are_looked_up() {
    let object = object("ksyms");
    let linker = object.linker().unwrap();
    let report = check(&linker, &kernel_without_types(), &[]).unwrap();
    let symbols = |required| {
        let found = report.findings.iter().filter(|f| f.required == required);
        found
            .filter(|f| matches!(f.fault, Fault::Symbol { .. }))
            .count()
    };
    assert!(symbols(true) > 0 && symbols(false) > 0, "{report:?}");
    // Weak functions may be missing where nothing calls them unasked.
    for (name, required) in [("ksyms_weak_function", 0), ("err_ksyms_weak_function", 1)] {
        let index = object.programs().iter().position(|p| p.name == name);
        let of = report.findings.iter().filter(|f| Some(f.program) == index);
        assert_eq!(of.filter(|f| f.required).count(), required, "{report:?}");
    }
    // One function, of the wrong type.
    let named = report.findings.iter().find_map(|f| match &f.fault {
        Fault::Symbol { name, .. } if f.required => Some((f.program, name.to_string())),
        _ => None,
    });
    let (program, name) = named.unwrap();
    let wrong = kernel(|b| {
        let proto = b.add_func_proto(1, &[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
        b.add_func(&name, proto, Linkage::GLOBAL);
        b.add_var(&name, proto, Linkage::GLOBAL);
    });
    let report = check(&linker, &wrong, &[]).unwrap();
    assert!(report.findings.iter().any(|f| {
        let fault = Fault::Symbol {
            name: name.as_str().into(),
            other_type: true,
        };
        f.program == program && f.fault == fault && f.required
    }));
}

#[test]
fn modules_are_asked_for_the_rest() {
    let object = object("core_missing");
    let linker = object.linker().unwrap();
    let base = kernel(|_| {});
    let module = {
        let base = Btf::parse(&base).unwrap();
        let mut b = BtfBuilder::on(&base);
        let field = NewMember {
            name: "field",
            type_id: 1,
            bit_offset: 0,
            bit_size: 0,
        };
        b.add_struct("no_such_struct", 4, &[field]);
        b.to_bytes().unwrap()
    };
    let report = check(&linker, &base, &[&module]).unwrap();
    assert_eq!((report.matched, report.missing), (2, 2), "{report:?}");
}

#[test]
fn damaged_types_are_errors() {
    let object = object("core");
    let linker = object.linker().unwrap();
    assert!(matches!(check(&linker, b"", &[]), Err(CheckError::Btf(_))));
    let good = kernel(|_| {});
    let result = check(&linker, &good, &[b"nonsense"]);
    assert!(matches!(result, Err(CheckError::Btf(_))));
}

/// Objects with relocations.
const OBJECTS: [&str; 4] = ["core", "core_missing", "trace", "attach"];

#[test]
fn minimised_types_give_the_same_answers() {
    let Some(full) = vmlinux("minimised_types_give_the_same_answers") else {
        return;
    };
    let objects = OBJECTS.map(object);
    let linkers: Vec<_> = objects.iter().map(|o| o.linker().unwrap()).collect();
    let all: Vec<_> = linkers.iter().collect();
    let small = minimise(&full, &all).unwrap();
    let btf = Btf::parse(&small).unwrap();
    assert!(small.len() < 16 << 10, "{} bytes", small.len());
    let task = btf.find_by_name_kind("task_struct", Kind::STRUCT).unwrap();
    let members = btf.get(task).unwrap().vlen();
    assert!((5..40).contains(&members), "{members}");
    for linker in &linkers {
        let expected = check(linker, &full, &[]).unwrap();
        assert_eq!(check(linker, &small, &[]).unwrap(), expected);
        let alone = minimise(&full, &[linker]).unwrap();
        assert!(alone.len() <= small.len());
        assert_eq!(check(linker, &alone, &[]).unwrap(), expected);
    }
    // Nothing is left to leave out.
    assert_eq!(minimise(&small, &all).unwrap(), small);
    // Nothing is asked for, nothing is kept.
    let none = minimise(&full, &[]).unwrap();
    assert_eq!(Btf::parse(&none).unwrap().types().count(), 0);
}

/// What does not fit must not begin to fit because the reason was left out.
#[test]
fn minimised_types_keep_contradictions() {
    let kernels = [
        kernel(|_| {}),
        // Two answers.
        kernel(|b| {
            let pid = NewMember {
                name: "pid",
                type_id: 1,
                bit_offset: 0,
                bit_size: 0,
            };
            b.add_struct("task_struct", 16, &[pid]);
        }),
        // A member inside an anonymous one.
        kernel_with_hidden_pid(),
        // Another type of the same name, and members that do not fit.
        kernel(|b| {
            let ptr = b.add_ptr(2);
            let inner = NewMember {
                name: "no_such_field",
                type_id: ptr,
                bit_offset: 0,
                bit_size: 0,
            };
            let anonymous = b.add_struct("", 8, &[inner]);
            let outer = NewMember {
                name: "no_such_member",
                type_id: anonymous,
                ..inner
            };
            b.add_struct("task_struct", 16, &[outer]);
            b.add_union("no_such_struct", 4, &[]);
            b.add_fwd("no_such_struct", false);
        }),
        kernel_without_types(),
    ];
    for name in OBJECTS {
        let object = object(name);
        let linker = object.linker().unwrap();
        for kernel in &kernels {
            let small = minimise(kernel, &[&linker]).unwrap();
            let expected = check(&linker, kernel, &[]).unwrap();
            assert_eq!(check(&linker, &small, &[]).unwrap(), expected, "{name}");
        }
    }
}

/// Damaged types give errors or other answers, and never a panic.
#[test]
fn damage_is_survived() {
    let object = object("core");
    let linker = object.linker().unwrap();
    let whole = kernel(|b| {
        let proto = b.add_func_proto(1, &[("a", 2), ("b", 1)]);
        let ptr = b.add_ptr(proto);
        b.add_typedef("pid_t", ptr);
        let member = |name, type_id| NewMember {
            name,
            type_id,
            bit_offset: 0,
            bit_size: 0,
        };
        let id = b.end_id();
        let pointer = b.add_ptr(id + 1);
        b.add_struct(
            "list_head",
            16,
            &[member("next", pointer), member("prev", pointer)],
        );
        b.add_union("bpf_attr", 8, &[member("", id + 1)]);
    });
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..200 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = 24 + random as usize % (bytes.len() - 24);
            bytes[at] = (random >> 32) as u8 & if random >> 60 == 0 { 255 } else { 15 };
        }
        let _ = check(&linker, &bytes, &[]);
        let _ = minimise(&bytes, &[&linker]);
    }
}
