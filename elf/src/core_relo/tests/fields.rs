//! Where fields lie and how wide they are.

use super::*;

#[test]
fn field_moves() {
    let kernel = blob(|b, ids| {
        b.add_struct(
            "task",
            32,
            &[
                at("x", ids.u64, 0),
                at("start", ids.u64, 16),
                at("pid", ids.int, 24),
            ],
        );
    });
    let offset = local(ReloKind::FIELD_BYTE_OFFSET, "0:1", task);
    assert_eq!(offset.values(&kernel), (8, 16));
    let answer = offset.resolve(&kernel).unwrap();
    assert_eq!(
        (answer.old_size, answer.new_size, answer.target),
        (8, 8, Some((0, 6)))
    );
    // The second element of an array of tasks.
    assert_eq!(
        local(ReloKind::FIELD_BYTE_OFFSET, "1:1", task).values(&kernel),
        (24, 48)
    );
    assert_eq!(
        &*local(ReloKind::FIELD_BYTE_OFFSET, "1:1", task).describe(),
        "struct task[1].start"
    );
    assert_eq!(
        local(ReloKind::FIELD_BYTE_SIZE, "0:0", task).values(&kernel),
        (4, 4)
    );
    assert_eq!(
        local(ReloKind::FIELD_EXISTS, "0:0", task).values(&kernel),
        (1, 1)
    );
    assert_eq!(
        local(ReloKind::FIELD_SIGNED, "0:0", task).values(&kernel),
        (1, 1)
    );
    assert_eq!(
        local(ReloKind::FIELD_SIGNED, "0:1", task).values(&kernel),
        (0, 0)
    );
    assert_eq!(
        local(ReloKind::FIELD_LSHIFT_U64, "0:0", task)
            .values(&kernel)
            .1,
        32
    );
    assert_eq!(
        local(ReloKind::FIELD_RSHIFT_U64, "0:0", task).values(&kernel),
        (32, 32)
    );
    assert_eq!(&*offset.describe(), "struct task.start");
}

#[test]
fn field_vanishes() {
    let kernel = blob(|b, ids| {
        b.add_struct("task", 4, &[at("pid", ids.int, 0)]);
    });
    let gone = local(ReloKind::FIELD_BYTE_OFFSET, "0:1", task);
    assert_eq!(gone.poison(&kernel), Some(PoisonReason::NoMatch));
    assert_eq!(
        local(ReloKind::FIELD_EXISTS, "0:1", task).values(&kernel),
        (1, 0)
    );
    let empty = blob(|_, _| {});
    assert_eq!(gone.poison(&empty), Some(PoisonReason::NoType));
    assert_eq!(
        local(ReloKind::FIELD_EXISTS, "0:1", task).values(&empty),
        (1, 0)
    );
    // A union of that name is another type, for roots as for no other.
    let union = blob(|b, ids| {
        b.add_union("task", 8, &[at("start", ids.u64, 0)]);
    });
    assert_eq!(gone.poison(&union), Some(PoisonReason::NoType));
    // A field of the name but of another nature does not count.
    let other = blob(|b, ids| {
        b.add_struct("task", 8, &[at("start", ids.ptr, 0)]);
    });
    assert_eq!(gone.poison(&other), Some(PoisonReason::NoMatch));
}

#[test]
fn field_changes_size() {
    let sized = |ty: fn(&Ids) -> TypeId, bytes| {
        blob(move |b, ids| {
            b.add_struct(
                "task",
                16,
                &[at("pid", ty(ids), 0), at("start", ty(ids), bytes)],
            );
        })
    };
    // Unsigned: the access shrinks along.
    let unsigned = local(ReloKind::FIELD_BYTE_OFFSET, "0:1", task);
    let answer = unsigned.resolve(&sized(|ids| ids.uint, 4)).unwrap();
    assert_eq!(
        (answer.old, answer.new, answer.old_size, answer.new_size),
        (8, 4, 8, 4)
    );
    assert!(!answer.resize_fails);
    // Signed: the loaded value would be wrong.
    let signed = local(ReloKind::FIELD_BYTE_OFFSET, "0:0", task);
    let answer = signed.resolve(&sized(|ids| ids.u64, 8)).unwrap();
    assert!(answer.resize_fails);
    assert_eq!((answer.old_size, answer.new_size), (4, 8));
    // Which sign it has now does not matter while the size is the same.
    let answer = signed.resolve(&sized(|ids| ids.uint, 8)).unwrap();
    assert!(!answer.resize_fails);
    assert_eq!(
        local(ReloKind::FIELD_SIGNED, "0:0", task).values(&sized(|ids| ids.uint, 4)),
        (1, 0)
    );
    assert_eq!(
        local(ReloKind::FIELD_BYTE_SIZE, "0:0", task).values(&sized(|ids| ids.u64, 8)),
        (4, 8)
    );
}

#[test]
fn pointers_shrink_on_32_bit_kernels() {
    let root = |b: &mut BtfBuilder, ids: &Ids| b.add_struct("n", 8, &[at("next", ids.ptr, 0)]);
    let kernel = blob(|b, ids| {
        root(b, ids);
    });
    let relo = local(ReloKind::FIELD_BYTE_OFFSET, "0:0", root);
    let local_btf = Btf::parse(&relo.bytes).unwrap();
    let mut query = NameQuery::new();
    add_roots(&mut query, &local_btf, [relo.relo].into_iter());
    query.finish();
    let mut hits = Vec::new();
    let kernel = Btf::scan(&kernel, None, &query, &mut hits)
        .unwrap()
        .with_pointer_size(4);
    let mut resolver = Resolver::new(&local_btf, &query);
    resolver.add_target(&kernel, hits);
    let answer = resolver.resolve(&relo.relo).unwrap();
    assert_eq!(
        (answer.old_size, answer.new_size, answer.resize_fails),
        (8, 4, false)
    );
}

/// `struct flags { u32 a:3; int b:9; u64 c:40; }`, as the compiler packs it.
fn flags(b: &mut BtfBuilder, ids: &Ids) -> TypeId {
    b.add_struct(
        "flags",
        8,
        &[
            bits("a", ids.uint, 0, 3),
            bits("b", ids.int, 3, 9),
            bits("c", ids.u64, 12, 40),
        ],
    )
}

#[test]
fn bitfields() {
    let kernel = blob(|b, ids| {
        b.add_struct(
            "flags",
            16,
            &[
                at("pad", ids.uint, 0),
                bits("b", ids.int, 60, 9),
                bits("c", ids.u64, 69, 40),
                at("a", ids.char, 15),
                bits("dummy", ids.int, 127, 1),
            ],
        );
    });
    let values = |kind, access| local(kind, access, flags).values(&kernel);
    // `b` crosses a 32-bit word, so 64 bits are loaded; but bits 60 to 68
    // cross a 64-bit word too.
    let b = local(ReloKind::FIELD_BYTE_OFFSET, "0:1", flags);
    assert_eq!(b.problem(&kernel), CoreProblem::Bitfield);
    assert_eq!(values(ReloKind::FIELD_BYTE_OFFSET, "0:2"), (0, 8));
    assert_eq!(values(ReloKind::FIELD_BYTE_SIZE, "0:2"), (8, 8));
    assert_eq!(values(ReloKind::FIELD_RSHIFT_U64, "0:2"), (24, 24));
    if cfg!(target_endian = "little") {
        assert_eq!(values(ReloKind::FIELD_LSHIFT_U64, "0:2"), (12, 19));
        assert_eq!(values(ReloKind::FIELD_LSHIFT_U64, "0:0"), (61, 56));
    }
    // A bitfield became an ordinary field; 8 bits are left.
    assert_eq!(values(ReloKind::FIELD_BYTE_OFFSET, "0:0"), (0, 15));
    assert_eq!(values(ReloKind::FIELD_RSHIFT_U64, "0:0"), (61, 56));
    // Compilers load bitfields as they like; only shifts right and signs are
    // certain.
    let validate = |kind| local(kind, "0:2", flags).resolve(&kernel).unwrap().validate;
    assert!(!validate(ReloKind::FIELD_BYTE_OFFSET) && !validate(ReloKind::FIELD_LSHIFT_U64));
    assert!(validate(ReloKind::FIELD_RSHIFT_U64) && validate(ReloKind::FIELD_SIGNED));
    // Wider loads where the declared type does not cover the bits.
    let wide = blob(|b, ids| {
        b.add_struct("flags", 8, &[bits("b", ids.int, 28, 9)]);
    });
    assert_eq!(
        local(ReloKind::FIELD_BYTE_SIZE, "0:1", flags).values(&wide),
        (4, 8)
    );
    assert_eq!(
        local(ReloKind::FIELD_SIGNED, "0:1", flags).values(&wide),
        (1, 1)
    );
    assert_eq!(
        local(ReloKind::FIELD_BYTE_OFFSET, "0:1", flags).values(&wide),
        (0, 0)
    );
}

#[test]
fn flavours_stand_for_the_type() {
    let root =
        |b: &mut BtfBuilder, ids: &Ids| b.add_struct("task___old", 8, &[at("state", ids.u64, 0)]);
    let kernel = blob(|b, ids| {
        b.add_struct("task", 16, &[at("state", ids.u64, 8)]);
    });
    let relo = local(ReloKind::FIELD_BYTE_OFFSET, "0:0", root);
    assert_eq!(relo.values(&kernel), (0, 8));
    assert_eq!(&*relo.describe(), "struct task___old.state");
    // Members are compared by full name.
    let kernel = blob(|b, ids| {
        b.add_struct("task", 16, &[at("state___x", ids.u64, 8)]);
    });
    assert_eq!(relo.poison(&kernel), Some(PoisonReason::NoMatch));
    assert_eq!(
        local(ReloKind::TYPE_EXISTS, "0", root).values(&kernel),
        (1, 1)
    );
}

#[test]
fn several_types_of_one_name() {
    let kernel = |second: u32| {
        blob(move |b, ids| {
            b.add_struct("task", 4, &[at("pid", ids.int, 0)]);
            b.add_struct("task", 32, &[at("start", ids.u64, 16)]);
            b.add_struct("task___2", 32, &[at("start", ids.u64, second)]);
        })
    };
    let relo = local(ReloKind::FIELD_BYTE_OFFSET, "0:1", task);
    assert_eq!(relo.values(&kernel(16)), (8, 16));
    assert_eq!(
        relo.problem(&kernel(24)),
        CoreProblem::AmbiguousOffset(128, 192)
    );
    // Sizes differ between all three.
    let size = local(ReloKind::TYPE_SIZE, "0", task);
    assert_eq!(
        size.problem(&kernel(16)),
        CoreProblem::AmbiguousValue(4, 32)
    );
    // Who fell out for one field is not asked for the next.
    relo.with(&kernel(16), |resolver| {
        resolver.resolve(&relo.relo).unwrap();
        let size = CoreRelo {
            kind: ReloKind::FIELD_EXISTS.0,
            ..relo.relo
        };
        assert_eq!(resolver.resolve(&size).unwrap().new, 1);
        assert_eq!(resolver.roots[0].candidates, [(0, 7), (0, 8)]);
    });
}

#[test]
fn members_in_anonymous_structs() {
    let root = |b: &mut BtfBuilder, ids: &Ids| {
        let inner = b.add_struct("", 8, &[at("x", ids.int, 0), at("deep", ids.int, 4)]);
        let union = b.add_union("", 8, &[at("", inner, 0), at("raw", ids.u64, 0)]);
        b.add_struct("outer", 16, &[at("first", ids.u64, 0), at("", union, 8)])
    };
    let kernel = blob(|b, ids| {
        let inner = b.add_struct("", 16, &[at("other", ids.u64, 0), at("deep", ids.int, 8)]);
        let typedef = b.add_typedef("hidden", inner);
        let constant = b.add_modifier(Kind::CONST, typedef);
        b.add_struct(
            "outer",
            40,
            &[bits("", ids.int, 0, 5), at("", constant, 24)],
        );
    });
    // The kernel's struct has bitfields, so the offset of anonymous members
    // lies in 24 bits.
    let deep = local(ReloKind::FIELD_BYTE_OFFSET, "0:1:0:1", root);
    assert_eq!(deep.values(&kernel), (12, 32));
    assert_eq!(&*deep.describe(), "struct outer.deep");
    let same = blob(|b, ids| {
        root(b, ids);
    });
    assert_eq!(deep.values(&same), (12, 12));
    let gone = local(ReloKind::FIELD_EXISTS, "0:1:1", root);
    assert_eq!((gone.values(&kernel), gone.values(&same)), ((1, 0), (1, 1)));
}

#[test]
fn arrays() {
    let root = |b: &mut BtfBuilder, ids: &Ids| {
        let element = b.add_struct("", 8, &[at("a", ids.int, 0), at("b", ids.int, 4)]);
        let array = b.add_array(element, ids.int, 4);
        let flexible = b.add_array(ids.uint, ids.int, 0);
        b.add_struct(
            "vec",
            32,
            &[at("items", array, 0), at("tail", flexible, 32)],
        )
    };
    let kernel = |len| {
        blob(move |b, ids| {
            let element = b.add_struct("", 16, &[at("b", ids.int, 8), at("a", ids.int, 12)]);
            let array = b.add_array(element, ids.int, len);
            let flexible = b.add_array(ids.u64, ids.int, 0);
            b.add_struct(
                "vec",
                80,
                &[at("items", array, 8), at("tail", flexible, 72)],
            );
        })
    };
    let b = local(ReloKind::FIELD_BYTE_OFFSET, "0:0:2:1", root);
    assert_eq!(b.values(&kernel(4)), (20, 48));
    assert_eq!(&*b.describe(), "struct vec.items[2].b");
    assert_eq!(b.poison(&kernel(2)), Some(PoisonReason::NoMatch));
    // A whole element, whose size changed, though not as an integer's.
    let element = local(ReloKind::FIELD_BYTE_OFFSET, "0:0:3", root)
        .resolve(&kernel(4))
        .unwrap();
    assert_eq!(
        (element.new, element.new_size, element.resize_fails),
        (56, 16, true)
    );
    assert_eq!(
        local(ReloKind::FIELD_BYTE_SIZE, "0:0:3", root).values(&kernel(4)),
        (8, 16)
    );
    let signed = local(ReloKind::FIELD_SIGNED, "0:0:3", root);
    assert_eq!(signed.problem(&kernel(4)), CoreProblem::ArrayElement);
    // Beyond a flexible array's zero elements.
    let tail = local(ReloKind::FIELD_BYTE_OFFSET, "0:1:5", root);
    assert_eq!(tail.values(&kernel(4)), (52, 112));
    // An array without elements that others follow is no flexible one.
    let middle = |b: &mut BtfBuilder, ids: &Ids| {
        let empty = b.add_array(ids.uint, ids.int, 0);
        b.add_struct("vec", 8, &[at("tail", empty, 0), at("end", ids.u64, 0)])
    };
    assert_eq!(
        local(ReloKind::FIELD_BYTE_OFFSET, "0:0:5", middle).problem(&kernel(4)),
        CoreProblem::BadAccess
    );
    let shifted = blob(|b, ids| {
        middle(b, ids);
    });
    assert_eq!(tail.poison(&shifted), Some(PoisonReason::NoMatch));
    // Beyond the end of another.
    assert_eq!(
        local(ReloKind::FIELD_BYTE_OFFSET, "0:0:4", root).problem(&kernel(4)),
        CoreProblem::BadAccess
    );
    // The field itself: accesses are as wide as an element, whatever the
    // length.
    let whole = local(ReloKind::FIELD_BYTE_OFFSET, "0:0", root)
        .resolve(&kernel(9))
        .unwrap();
    assert_eq!((whole.old_size, whole.new_size), (8, 16));
}
