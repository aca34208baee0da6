//! CO-RE against hand-made kernels, and against the running one.

use ebpf_manager_sys::abi::insn::{LD_IMM64, alu, class, mode, size};

use super::*;
use crate::btf::Linkage;
use crate::btf::encode::{BtfBuilder, NewMember};
use crate::btf::tests::vmlinux;

fn at(name: &str, type_id: TypeId, bytes: u32) -> NewMember<'_> {
    NewMember {
        name,
        type_id,
        bit_offset: bytes * 8,
        bit_size: 0,
    }
}

fn bits(name: &str, type_id: TypeId, bit_offset: u32, bit_size: u8) -> NewMember<'_> {
    NewMember {
        name,
        type_id,
        bit_offset,
        bit_size,
    }
}

/// The types every side starts with.
struct Ids {
    int: TypeId,
    uint: TypeId,
    u64: TypeId,
    ptr: TypeId,
    char: TypeId,
}

fn blob(build: impl FnOnce(&mut BtfBuilder, &Ids)) -> Vec<u8> {
    let mut b = BtfBuilder::new();
    let ids = Ids {
        int: b.add_int("int", 4, true),
        uint: b.add_int("unsigned int", 4, false),
        u64: b.add_int("unsigned long", 8, false),
        ptr: b.add_ptr(0),
        char: b.add_int("char", 1, true),
    };
    build(&mut b, &ids);
    b.to_bytes().unwrap()
}

/// A program side whose root is its first struct-like type, with an access
/// string.
struct Local {
    bytes: Vec<u8>,
    relo: CoreRelo,
}

fn local(
    kind: ReloKind,
    access: &str,
    build: impl FnOnce(&mut BtfBuilder, &Ids) -> TypeId,
) -> Local {
    let mut relo = CoreRelo {
        insn_off: 0,
        type_id: 0,
        access_off: 0,
        kind: kind.0,
    };
    let bytes = blob(|b, ids| {
        relo.type_id = build(b, ids);
        relo.access_off = b.add_string(access.as_bytes());
    });
    Local { bytes, relo }
}

impl Local {
    fn with<R>(&self, kernel: &[u8], f: impl FnOnce(&mut Resolver<'_>) -> R) -> R {
        let local = Btf::parse(&self.bytes).unwrap();
        let mut query = NameQuery::new();
        add_roots(&mut query, &local, [self.relo].into_iter());
        query.finish();
        let mut hits = Vec::new();
        let kernel = Btf::scan(kernel, None, &query, &mut hits).unwrap();
        let mut resolver = Resolver::new(&local, &query);
        resolver.add_target(&kernel, hits);
        f(&mut resolver)
    }

    fn resolve(&self, kernel: &[u8]) -> Result<Resolution, CoreProblem> {
        self.with(kernel, |resolver| {
            let answer = resolver.resolve(&self.relo);
            // The second time it comes from memory.
            assert_eq!(answer, resolver.resolve(&self.relo));
            answer
        })
    }

    fn values(&self, kernel: &[u8]) -> (u64, u64) {
        let answer = self.resolve(kernel).unwrap();
        assert_eq!(answer.poison, None);
        (answer.old, answer.new)
    }

    fn poison(&self, kernel: &[u8]) -> Option<PoisonReason> {
        self.resolve(kernel).unwrap().poison
    }

    /// With less patience than usual.
    fn soon(&self, kernel: &[u8]) -> CoreProblem {
        self.with(kernel, |resolver| {
            resolver.budget = 5000;
            resolver.resolve(&self.relo).unwrap_err()
        })
    }

    fn problem(&self, kernel: &[u8]) -> CoreProblem {
        self.resolve(kernel).unwrap_err()
    }

    fn describe(&self) -> Box<str> {
        describe(&Btf::parse(&self.bytes).unwrap(), &self.relo)
    }
}

/// `struct task { int pid; u64 start; }`.
fn task(b: &mut BtfBuilder, ids: &Ids) -> TypeId {
    b.add_struct(
        "task",
        16,
        &[at("pid", ids.int, 0), at("start", ids.u64, 8)],
    )
}

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

// Patching.

fn answer(old: u64, new: u64) -> Resolution {
    let mut answer = value::local_type_id(0);
    (answer.old, answer.new, answer.validate) = (old, new, true);
    answer
}

fn patched(mut insns: Vec<Insn>, answer: &Resolution) -> (Result<Patched, CoreProblem>, Vec<Insn>) {
    let result = patch_insn(&mut insns, 0, answer, 5);
    (result, insns)
}

#[test]
fn immediates() {
    let add = Insn::new(class::ALU64 | alu::ADD, 1, 0, 0, 8);
    let (result, insns) = patched(vec![add], &answer(8, 0xffff_ffff));
    assert_eq!((result, insns[0].imm), (Ok(Patched::Value), -1));
    let (result, insns) = patched(vec![add], &answer(16, 24));
    assert_eq!(
        result,
        Err(CoreProblem::UnexpectedValue {
            expected: 16,
            found: 8
        })
    );
    assert_eq!(insns, [add]);
    let mut unchecked = answer(16, 24);
    unchecked.validate = false;
    assert_eq!(patched(vec![add], &unchecked).1[0].imm, 24);
    assert_eq!(
        patched(vec![add], &answer(8, 1 << 33)).0,
        Err(CoreProblem::Range(1 << 33))
    );
    let mov = Insn::mov64_reg(1, 2);
    assert_eq!(
        patched(vec![mov], &answer(0, 1)).0,
        Err(CoreProblem::Instruction(mov.code))
    );
    assert_eq!(
        patched(vec![Insn::exit()], &answer(0, 1)).0,
        Err(CoreProblem::Instruction(0x95))
    );
    assert_eq!(
        patched(vec![], &answer(0, 1)).0,
        Err(CoreProblem::Instruction(0))
    );
    let minus = Insn::mov64_imm(1, -5);
    assert_eq!(
        patched(vec![minus], &answer(-5_i64 as u64, -6_i64 as u64)).1[0].imm,
        -6
    );
}

#[test]
fn loads_and_stores() {
    for (class, mode) in [
        (class::LDX, mode::MEM),
        (class::STX, mode::MEM),
        (class::ST, mode::MEM),
        (class::LDX, mode::MEMSX),
    ] {
        let insn = Insn::new(class | size::W | mode, 1, 2, 8, 0);
        let (result, insns) = patched(vec![insn], &answer(8, 40));
        assert_eq!(
            (result, insns[0].off, insns[0].code),
            (Ok(Patched::Value), 40, insn.code)
        );
        let (result, _) = patched(vec![insn], &answer(8, 0x8000));
        assert_eq!(result, Err(CoreProblem::Range(0x8000)));
        let mut resized = answer(8, 40);
        (resized.old_size, resized.new_size) = (4, 8);
        let (_, insns) = patched(vec![insn], &resized);
        assert_eq!((insns[0].off, insns[0].code), (40, class | size::DW | mode));
        resized.new_size = 3;
        assert_eq!(
            patched(vec![insn], &resized).0,
            Err(CoreProblem::AccessSize {
                insn: 4,
                field: 4,
                target: 3
            })
        );
        (resized.old_size, resized.new_size) = (8, 4);
        assert!(patched(vec![insn], &resized).0.is_err());
        resized.resize_fails = true;
        let (result, insns) = patched(vec![insn], &resized);
        assert_eq!(result, Ok(Patched::Poisoned(PoisonReason::SizeChanged)));
        assert_eq!(insns, [Insn::call(POISON + 5)]);
    }
    // Arithmetic on the address does not care about sizes.
    let mut resized = answer(8, 40);
    resized.resize_fails = true;
    let add = Insn::new(class::ALU64 | alu::ADD, 1, 0, 0, 8);
    assert_eq!(patched(vec![add], &resized).1[0].imm, 40);
}

#[test]
fn wide_immediates() {
    let load = |value| Insn::ld_imm64(3, 0, value).to_vec();
    let (result, insns) = patched(load(1 << 35), &answer(1 << 35, 0x2_0000_0003));
    assert_eq!((result, insns), (Ok(Patched::Value), load(0x2_0000_0003)));
    assert!(patched(load(7), &answer(8, 9)).0.is_err());
    // A map's address is no place for a number.
    let map = Insn::ld_imm64(3, 1, 8).to_vec();
    assert_eq!(
        patched(map, &answer(8, 9)).0,
        Err(CoreProblem::Instruction(LD_IMM64))
    );
    assert!(patched(load(8)[..1].to_vec(), &answer(8, 9)).0.is_err());

    // 32-bit enumerators above 2^31: both ways to extend them.
    let mut unsigned = answer(0x8000_0001_u32 as i32 as u64, 0x8000_0002_u32 as i32 as u64);
    assert!(patched(load(0x8000_0001), &unsigned).0.is_err());
    (unsigned.old_is_enum32, unsigned.new_is_enum32) = (true, true);
    assert_eq!(patched(load(0x8000_0001), &unsigned).1, load(0x8000_0002));
    assert_eq!(patched(load(unsigned.old), &unsigned).1, load(unsigned.new));
}

#[test]
fn poison_names_its_relocation() {
    let mut none = answer(8, 0);
    none.poison = Some(PoisonReason::NoMatch);
    let (result, insns) = patched(Insn::ld_imm64(1, 0, 8).to_vec(), &none);
    assert_eq!(result, Ok(Patched::Poisoned(PoisonReason::NoMatch)));
    assert_eq!(insns, [Insn::call(195_896_085), Insn::call(195_896_085)]);
    assert_eq!(poisoned_relo(insns[0].imm as u32), Some(5));
    assert_eq!(
        (poisoned_relo(195_896_080), poisoned_relo(12)),
        (Some(0), None)
    );
    let mut insns = vec![Insn::exit()];
    patch_insn(&mut insns, 0, &none, u32::MAX).unwrap();
    assert_eq!(insns[0].imm, 195_896_080);

    let kernel = blob(|_, _| {});
    let relo = local(ReloKind::FIELD_BYTE_OFFSET, "0:1", task);
    relo.with(&kernel, |resolver| {
        let mut insns = [Insn::exit(), Insn::mov64_imm(1, 8)];
        let poison = resolver
            .apply(&mut insns, 1, &relo.relo, 3)
            .unwrap()
            .unwrap();
        assert_eq!(
            (poison.insn, poison.index, poison.reason),
            (1, 3, PoisonReason::NoType)
        );
        assert_eq!(
            poison.to_string(),
            "byte_off of struct task.start: this kernel has no such type"
        );
        assert_eq!(insns, [Insn::exit(), Insn::call(POISON + 3)]);
    });
    let wrong = local(ReloKind::FIELD_EXISTS, "0:1", task);
    wrong.with(&kernel, |resolver| {
        let mut insns = [Insn::mov64_imm(1, 8)];
        let e = resolver.apply(&mut insns, 0, &wrong.relo, 3).unwrap_err();
        assert_eq!(
            e.to_string(),
            "CO-RE relocation #3 at instruction 0, field_exists of struct task.start: \
             the instruction holds 8, not 1"
        );
    });
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
