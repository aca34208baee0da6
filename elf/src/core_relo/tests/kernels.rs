//! The running kernel, and such as no compiler made.

use ebpf_manager_sys::abi::insn::{class, mode};

use super::*;
use crate::btf::Linkage;
use crate::btf::tests::vmlinux;

#[test]
fn nonsense_is_refused() {
    let kernel = blob(|b, ids| {
        task(b, ids);
    });
    let problem = |kind, access: &str| local(kind, access, task).problem(&kernel);
    for access in [
        "",
        ":",
        "0:",
        "0::1",
        "-1:0",
        "0:2",
        "0:0:0",
        "x",
        "0:99999999999",
        "0:1 ",
    ] {
        assert_eq!(
            problem(ReloKind::FIELD_BYTE_OFFSET, access),
            CoreProblem::BadAccess,
            "{access}"
        );
    }
    assert_eq!(problem(ReloKind::TYPE_EXISTS, "1"), CoreProblem::BadAccess);
    assert_eq!(
        problem(ReloKind::ENUMVAL_VALUE, "0"),
        CoreProblem::BadAccess
    );
    assert_eq!(problem(ReloKind(13), "0"), CoreProblem::UnknownKind(13));
    let long = "0:".repeat(64) + "0";
    assert!(
        local(ReloKind::FIELD_BYTE_OFFSET, &long, task)
            .resolve(&kernel)
            .is_err()
    );
    let anonymous = local(ReloKind::FIELD_BYTE_OFFSET, "0:0", |b, ids| {
        b.add_struct("", 4, &[at("x", ids.int, 0)])
    });
    assert_eq!(anonymous.problem(&kernel), CoreProblem::Anonymous);
    assert_eq!(&*anonymous.describe(), "struct <anonymous>.x");
    let mut missing = local(ReloKind::FIELD_EXISTS, "0", task);
    missing.relo.type_id = 99;
    assert_eq!(missing.problem(&kernel), CoreProblem::BadType);
    let huge = local(ReloKind::FIELD_BYTE_OFFSET, "4294967295:0", task);
    assert_eq!(huge.problem(&kernel), CoreProblem::BadAccess);
}

/// Kernels built to keep a matcher busy for ever.
#[test]
fn hostile_types_end() {
    let nested = blob(|b, ids| {
        let mut last = b.add_struct("", 0, &[]);
        for _ in 0..62 {
            last = b.add_struct("", 0, &[at("", last, 0), at("", last, 0)]);
        }
        b.add_struct("task", 8, &[at("", last, 0), at("start", ids.u64, 0)]);
    });
    let relo = local(ReloKind::FIELD_BYTE_OFFSET, "0:1", task);
    assert_eq!(relo.soon(&nested), CoreProblem::TooComplex);
    let own = blob(|b, _| {
        let id = b.end_id();
        b.add_struct("task", 8, &[at("", id, 0)]);
    });
    assert_eq!(relo.problem(&own), CoreProblem::TooDeep);

    // Prototypes of prototypes, each twice.
    let protos = |b: &mut BtfBuilder, ids: &Ids| {
        let mut last = ids.int;
        for _ in 0..31 {
            last = b.add_func_proto(last, &[("", last), ("", last)]);
        }
        b.add_typedef("deep", last)
    };
    let kernel = blob(|b, ids| {
        protos(b, ids);
    });
    for kind in [ReloKind::TYPE_EXISTS, ReloKind::TYPE_MATCHES] {
        assert_eq!(
            local(kind, "0", protos).soon(&kernel),
            CoreProblem::TooComplex
        );
    }
    let cycle = |b: &mut BtfBuilder, _: &Ids| {
        let id = b.end_id();
        b.add_ptr(id);
        b.add_typedef("cycle", id)
    };
    let kernel = blob(|b, ids| {
        cycle(b, ids);
    });
    assert_eq!(
        local(ReloKind::TYPE_EXISTS, "0", cycle).problem(&kernel),
        CoreProblem::TooDeep
    );
}

/// Every named field of some of the kernel's largest structs, resolved
/// against the kernel itself, keeps its place.
#[test]
fn kernel_against_itself() {
    let Some(bytes) = vmlinux("kernel_against_itself") else {
        return;
    };
    let whole = Btf::parse_trusted(&bytes, None).unwrap();
    // A copy with access strings behind the kernel's.
    let mut b = BtfBuilder::copy_of(&whole);
    let access: Vec<u32> = (0..400)
        .map(|n| b.add_string(format!("0:{n}").as_bytes()))
        .collect();
    b.add_func("end", 0, Linkage::STATIC);
    let copy = b.to_bytes().unwrap();
    let local = Btf::parse_trusted(&copy, None).unwrap();
    let mut relos = Vec::new();
    for name in [
        "task_struct",
        "sk_buff",
        "file",
        "sock",
        "inode",
        "mm_struct",
        "cred",
    ] {
        let type_id = local.find_by_name_kind(name, Kind::STRUCT).unwrap();
        let ty = local.get(type_id).unwrap();
        for (member, &access_off) in ty.members().zip(&access) {
            if member.name_off == 0 {
                continue;
            }
            for kind in [ReloKind::FIELD_BYTE_OFFSET, ReloKind::FIELD_EXISTS] {
                relos.push(CoreRelo {
                    insn_off: 0,
                    type_id,
                    access_off,
                    kind: kind.0,
                });
            }
        }
    }
    assert!(relos.len() > 500);
    let start = std::time::Instant::now();
    let mut query = NameQuery::new();
    add_roots(&mut query, &local, relos.iter().copied());
    query.finish();
    let mut hits = Vec::new();
    let kernel = Btf::scan(&bytes, None, &query, &mut hits).unwrap();
    let mut resolver = Resolver::new(&local, &query);
    resolver.add_target(&kernel, hits);
    let scanned = start.elapsed();
    for relo in &relos {
        let answer = resolver.resolve(relo).unwrap();
        assert_eq!(
            (answer.old, answer.poison),
            (answer.new, None),
            "{}",
            describe(&local, relo)
        );
    }
    let resolved = start.elapsed().saturating_sub(scanned);
    println!(
        "{} relocations: scan {scanned:?}, resolve {resolved:?}",
        relos.len()
    );
}

/// So that hostile objects end, too: what all relocations take is bounded.
#[test]
fn patience_is_shared() {
    let kernel = blob(|b, ids| {
        task(b, ids);
    });
    let local = local(ReloKind::FIELD_BYTE_OFFSET, "0:1", task);
    local.with(&kernel, |resolver| {
        let answer = resolver.resolve(&local.relo).unwrap();
        let taken = matching::TOTAL - resolver.left;
        assert!((1..1000).contains(&taken), "{taken}");
        resolver.left = 0;
        // An answer that is known takes nothing.
        assert_eq!(resolver.resolve(&local.relo), Ok(answer));
        let other = CoreRelo {
            kind: ReloKind::FIELD_BYTE_SIZE.0,
            ..local.relo
        };
        assert_eq!(resolver.resolve(&other), Err(CoreProblem::TooComplex));
    });
    // Typedefs are followed one by one, on both sides.
    let long = |b: &mut BtfBuilder, ids: &Ids| {
        let mut id = ids.int;
        for _ in 0..50 {
            id = b.add_typedef("t", id);
        }
        b.add_struct("task", 4, &[at("pid", id, 0)])
    };
    let local = self::local(ReloKind::FIELD_BYTE_OFFSET, "0:0", long);
    let kernel = blob(|b, ids| {
        long(b, ids);
    });
    local.with(&kernel, |resolver| {
        resolver.resolve(&local.relo).unwrap();
        let taken = matching::TOTAL - resolver.left;
        assert!(taken > 1500, "{taken}");
    });
}

/// Relocations with random parts, against random damage to the kernel's side.
#[test]
fn damaged_kernels() {
    let mut access = Vec::new();
    let good = blob(|b, ids| {
        let inner = b.add_struct("", 8, &[at("x", ids.int, 0), bits("y", ids.int, 33, 5)]);
        let array = b.add_array(inner, ids.int, 3);
        b.add_struct(
            "task",
            40,
            &[at("pid", ids.int, 0), at("", inner, 8), at("v", array, 16)],
        );
        b.add_enum("task", 4, true, &[("A", 1), ("B", -1)]);
        let proto = b.add_func_proto(ids.int, &[("a", ids.ptr), ("b", ids.u64)]);
        b.add_typedef("task", proto);
        for n in [
            "0", "0:0", "0:1", "0:1:0", "0:1:1", "0:2", "0:2:1", "0:2:1:1", "1:2:0:0",
        ] {
            access.push(b.add_string(n.as_bytes()));
        }
    });
    let mut seed = 0x9e37_79b9_u32;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed as usize % below
    };
    let strings = Btf::parse(&good).unwrap().raw_strings().len();
    let mut answers = 0;
    for _ in 0..4000 {
        let (mut ours, mut theirs) = (good.clone(), good.clone());
        for side in [&mut ours, &mut theirs] {
            for _ in 0..random(4) {
                let at = 24 + random(side.len() - 24);
                side[at] = random(256) as u8;
            }
        }
        let (Ok(local), Ok(kernel)) = (Btf::parse(&ours), Btf::parse_trusted(&theirs, None)) else {
            continue;
        };
        let relo = CoreRelo {
            insn_off: random(64) as u32,
            type_id: 5 + random(9) as u32,
            access_off: if random(8) == 0 {
                random(strings) as u32
            } else {
                access[random(access.len())]
            },
            kind: random(14) as u32,
        };
        let mut query = NameQuery::new();
        add_roots(&mut query, &local, [relo].into_iter());
        query.finish();
        let mut hits = Vec::new();
        kernel.find_all(&query, &mut hits);
        let mut resolver = Resolver::new(&local, &query);
        resolver.add_target(&kernel, hits);
        let mut insns = [
            Insn::mov64_imm(0, 8),
            Insn::new(class::LDX | mode::MEM, 1, 1, 8, 0),
        ];
        let position = random(3);
        let _ = resolver.apply(&mut insns, position, &relo, 0);
        answers += usize::from(resolver.resolve(&relo).is_ok());
    }
    assert!(answers > 100, "{answers}");
}
