//! Types and enumerators: existence, sizes, likeness.

use super::*;

#[test]
fn types() {
    let kernel = blob(|b, ids| {
        b.add_struct("task", 24, &[at("pid", ids.int, 0)]);
    });
    assert_eq!(
        local(ReloKind::TYPE_EXISTS, "0", task).values(&kernel),
        (1, 1)
    );
    assert_eq!(
        local(ReloKind::TYPE_SIZE, "0", task).values(&kernel),
        (16, 24)
    );
    let id = local(ReloKind::TYPE_ID_TARGET, "0", task)
        .resolve(&kernel)
        .unwrap();
    assert_eq!((id.new, id.validate), (6, false));
    let id = local(ReloKind::TYPE_ID_LOCAL, "0", task)
        .resolve(&kernel)
        .unwrap();
    assert_eq!((id.old, id.new, id.validate), (6, 6, false));
    // Absent: 0, not poison.
    let empty = blob(|_, _| {});
    for kind in [
        ReloKind::TYPE_EXISTS,
        ReloKind::TYPE_SIZE,
        ReloKind::TYPE_ID_TARGET,
        ReloKind::TYPE_MATCHES,
    ] {
        assert_eq!(local(kind, "0", task).values(&empty).1, 0);
    }
    assert_eq!(
        &*local(ReloKind::TYPE_SIZE, "0", task).describe(),
        "struct task"
    );
    // Typedefs by name, and by what is behind them.
    let typedef = |b: &mut BtfBuilder, ids: &Ids| b.add_typedef("handler_t", ids.ptr);
    let same = blob(|b, ids| {
        typedef(b, ids);
    });
    assert_eq!(
        local(ReloKind::TYPE_EXISTS, "0", typedef).values(&same),
        (1, 1)
    );
    let other = blob(|b, ids| {
        b.add_typedef("handler_t", ids.int);
    });
    assert_eq!(
        local(ReloKind::TYPE_EXISTS, "0", typedef).values(&other),
        (1, 0)
    );
    // Functions: as many parameters, of the same kinds.
    let func = |params: &'static [usize]| {
        move |b: &mut BtfBuilder, ids: &Ids| {
            let types = [ids.int, ids.ptr, ids.u64];
            let params: Vec<_> = params.iter().map(|&i| ("", types[i])).collect();
            let proto = b.add_func_proto(ids.int, &params);
            let ptr = b.add_ptr(proto);
            b.add_typedef("fn_t", ptr)
        }
    };
    let against = |params| {
        let kernel = blob(|b, ids| {
            func(params)(b, ids);
        });
        local(ReloKind::TYPE_EXISTS, "0", func(&[0, 1]))
            .values(&kernel)
            .1
    };
    assert_eq!(
        (against(&[2, 1]), against(&[0]), against(&[1, 1])),
        (1, 0, 0)
    );
}

#[test]
fn enumerators() {
    let root = |b: &mut BtfBuilder, _: &Ids| {
        b.add_enum(
            "state",
            4,
            false,
            &[("ON", 1), ("OFF___v2", 2), ("NEVER", 3)],
        )
    };
    let kernel = blob(|b, _| {
        b.add_enum64("state", false, &[("OFF", 1 << 40), ("ON", 7)]);
    });
    let value = |access| local(ReloKind::ENUMVAL_VALUE, access, root);
    assert_eq!(value("0").values(&kernel), (1, 7));
    assert_eq!(value("1").values(&kernel), (2, 1 << 40));
    assert_eq!(value("2").poison(&kernel), Some(PoisonReason::NoMatch));
    assert_eq!(&*value("2").describe(), "enum state::NEVER");
    assert_eq!(value("3").problem(&kernel), CoreProblem::BadAccess);
    assert_eq!(value("0:1").problem(&kernel), CoreProblem::BadAccess);
    assert_eq!(
        local(ReloKind::ENUMVAL_EXISTS, "2", root).values(&kernel),
        (1, 0)
    );
    assert_eq!(
        local(ReloKind::ENUMVAL_EXISTS, "0", root).values(&kernel),
        (1, 1)
    );
    // Old compilers do not say that an enumeration is signed: both readings of
    // a value above 2^31 are taken, and the new value read alike.
    let high = |value: i32| {
        move |b: &mut BtfBuilder, _: &Ids| b.add_enum("state", 4, false, &[("TOP", value)])
    };
    let kernel = blob(|b, ids| {
        high(-7)(b, ids);
    });
    let top = local(ReloKind::ENUMVAL_VALUE, "0", high(-9));
    assert_eq!(top.values(&kernel), (-9_i64 as u64, -7_i64 as u64));
    top.with(&kernel, |resolver| {
        for (old, new) in [(-9_i64 as u64, -7_i64 as u64), (0xffff_fff7, 0xffff_fff9)] {
            let mut insns = Insn::ld_imm64(1, 0, old);
            assert_eq!(resolver.apply(&mut insns, 0, &top.relo, 0), Ok(None));
            assert_eq!(insns, Insn::ld_imm64(1, 0, new));
        }
    });
    // Through a typedef, whose name is what counts.
    let typedef = |b: &mut BtfBuilder, ids: &Ids| {
        let state = root(b, ids);
        b.add_typedef("state_t", state)
    };
    let kernel = blob(|b, _| {
        let anonymous = b.add_enum("", 4, true, &[("ON", -5)]);
        b.add_typedef("state_t", anonymous);
    });
    assert_eq!(
        local(ReloKind::ENUMVAL_VALUE, "0", typedef).values(&kernel),
        (1, -5_i64 as u64)
    );
}

/// Whether a local type matches a kernel type; both are built by name `t`.
fn type_matches(
    ours: impl FnOnce(&mut BtfBuilder, &Ids) -> TypeId,
    theirs: impl FnOnce(&mut BtfBuilder, &Ids) -> TypeId,
) -> bool {
    let kernel = blob(|b, ids| {
        theirs(b, ids);
    });
    let (old, new) = local(ReloKind::TYPE_MATCHES, "0", ours).values(&kernel);
    assert_eq!(old, 1);
    new == 1
}

#[test]
fn type_matching() {
    type Make = fn(&mut BtfBuilder, &Ids) -> TypeId;
    let two: Make = |b, ids| b.add_struct("t", 8, &[at("a", ids.int, 0), at("b", ids.int, 4)]);
    let more: Make = |b, ids| {
        b.add_struct(
            "t",
            16,
            &[
                at("n", ids.u64, 0),
                at("b", ids.int, 8),
                at("a", ids.int, 12),
            ],
        )
    };
    assert!(type_matches(two, more), "order and additions do not matter");
    assert!(!type_matches(more, two), "all that we know must be there");
    let unsigned: Make =
        |b, ids| b.add_struct("t", 8, &[at("a", ids.uint, 0), at("b", ids.int, 4)]);
    assert!(!type_matches(two, unsigned), "signedness");
    let wider: Make = |b, ids| b.add_struct("t", 12, &[at("a", ids.u64, 0), at("b", ids.int, 8)]);
    assert!(!type_matches(unsigned, wider), "size");

    let array: [Make; 2] = [
        |b, ids| {
            let array = b.add_array(ids.int, ids.int, 3);
            b.add_struct("t", 12, &[at("a", array, 0)])
        },
        |b, ids| {
            let array = b.add_array(ids.int, ids.int, 4);
            b.add_struct("t", 16, &[at("a", array, 0)])
        },
    ];
    assert!(type_matches(array[0], array[0]) && !type_matches(array[0], array[1]));

    // Behind a pointer names are enough, and declarations stand for structs.
    let pointer: [Make; 4] = [
        |b, ids| {
            let inner = b.add_struct("in", 4, &[at("x", ids.int, 0)]);
            let ptr = b.add_ptr(inner);
            b.add_struct("t", 8, &[at("p", ptr, 0)])
        },
        |b, _| {
            let inner = b.add_struct("in", 0, &[]);
            let ptr = b.add_ptr(inner);
            b.add_struct("t", 8, &[at("p", ptr, 0)])
        },
        |b, _| {
            let inner = b.add_fwd("in", false);
            let ptr = b.add_ptr(inner);
            b.add_struct("t", 8, &[at("p", ptr, 0)])
        },
        |b, _| {
            let inner = b.add_fwd("in", true);
            let ptr = b.add_ptr(inner);
            b.add_struct("t", 8, &[at("p", ptr, 0)])
        },
    ];
    for other in &pointer[..3] {
        assert!(type_matches(pointer[0], *other) && type_matches(*other, pointer[0]));
    }
    assert!(!type_matches(pointer[0], pointer[3]) && !type_matches(pointer[3], pointer[0]));
    assert!(!type_matches(pointer[2], pointer[3]));

    let declared: [Make; 2] = [
        |b, _| {
            let inner = b.add_fwd("in", false);
            b.add_typedef("t", inner)
        },
        |b, _| {
            let inner = b.add_struct("in", 0, &[]);
            b.add_typedef("t", inner)
        },
    ];
    assert!(type_matches(declared[0], declared[0]) && type_matches(declared[1], declared[1]));
    assert!(!type_matches(declared[0], declared[1]) && !type_matches(declared[1], declared[0]));

    let state: Make = |b, _| b.add_enum("t", 4, false, &[("ON", 1)]);
    let states: Make = |b, _| b.add_enum("t", 4, false, &[("OFF", 1), ("ON", 9)]);
    let long: Make = |b, _| b.add_enum64("t", false, &[("ON", 1)]);
    assert!(type_matches(state, states) && !type_matches(states, state));
    assert!(!type_matches(state, long), "size");

    let func: [Make; 3] = [
        |b, ids| {
            let proto = b.add_func_proto(ids.int, &[("x", ids.int)]);
            let ptr = b.add_ptr(proto);
            b.add_typedef("t", ptr)
        },
        |b, ids| {
            let proto = b.add_func_proto(ids.uint, &[("x", ids.int)]);
            let ptr = b.add_ptr(proto);
            b.add_typedef("t", ptr)
        },
        |b, ids| {
            let proto = b.add_func_proto(ids.int, &[("x", ids.int), ("y", ids.int)]);
            let ptr = b.add_ptr(proto);
            b.add_typedef("t", ptr)
        },
    ];
    assert!(type_matches(func[0], func[0]));
    assert!(!type_matches(func[0], func[1]) && !type_matches(func[0], func[2]));
}

#[test]
fn modules_are_asked_last() {
    let kernel = blob(|b, ids| {
        b.add_struct("elsewhere", 4, &[at("x", ids.int, 0)]);
    });
    let kernel = Btf::parse(&kernel).unwrap();
    let mut b = BtfBuilder::on(&kernel);
    b.add_struct("task", 32, &[at("start", 3, 24)]);
    let first = b.add_struct("elsewhere", 8, &[at("x", 1, 4)]);
    let module = b.to_bytes().unwrap();

    let task = local(ReloKind::FIELD_BYTE_OFFSET, "0:1", task);
    let both = |relo: &Local| {
        let local = Btf::parse(&relo.bytes).unwrap();
        let mut query = NameQuery::new();
        add_roots(&mut query, &local, [relo.relo].into_iter());
        query.finish();
        let mut hits = Vec::new();
        kernel.find_all(&query, &mut hits);
        let mut in_module = Vec::new();
        let module = Btf::scan(&module, Some(&kernel), &query, &mut in_module).unwrap();
        let mut resolver = Resolver::new(&local, &query);
        resolver.add_target(&kernel, hits);
        let needed = resolver.needs_modules([relo.relo].into_iter());
        resolver.add_target(&module, in_module);
        (needed, resolver.resolve(&relo.relo).unwrap())
    };
    let (needed, answer) = both(&task);
    assert!(needed);
    assert_eq!((answer.new, answer.target), (24, Some((1, first - 1))));
    let elsewhere = local(ReloKind::FIELD_BYTE_OFFSET, "0:0", |b, ids| {
        b.add_struct("elsewhere", 4, &[at("x", ids.int, 0)])
    });
    let (needed, answer) = both(&elsewhere);
    assert!(!needed);
    assert_eq!((answer.new, answer.target), (0, Some((0, 6))));
}
