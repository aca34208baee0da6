//! CO-RE against hand-made kernels, and against the running one.

mod fields;
mod kernels;
mod patch;
mod types;

use super::*;
use crate::btf::encode::{BtfBuilder, NewMember};

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
