//! Reading and searching, on the running kernel's BTF where there is one.

use std::io::Write;
use std::ops::ControlFlow;

use super::*;

/// This kernel's BTF, or a visible skip.
pub(crate) fn vmlinux(test: &str) -> Option<Vec<u8>> {
    match std::fs::read("/sys/kernel/btf/vmlinux") {
        Ok(bytes) => Some(bytes),
        Err(e) => {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: {test}: /sys/kernel/btf/vmlinux: {e}"
            );
            None
        }
    }
}

#[test]
fn whole_kernel() {
    let Some(bytes) = vmlinux("whole_kernel") else {
        return;
    };
    let btf = Btf::parse(&bytes).unwrap();
    assert!(btf.end_id() > 10_000);
    let task = btf.find_by_name_kind("task_struct", Kind::STRUCT).unwrap();
    let ty = btf.get(task).unwrap();
    assert!(ty.members().any(|m| btf.name(m.name_off) == "pid"));
    assert_eq!(ty.members().count(), ty.vlen() as usize);
    assert_eq!(btf.size_of(task), ty.size());
    assert_eq!(btf.find_by_name_kind("task_struct", Kind::UNION), None);

    // By id and by walk agree.
    let mut wrong = 0;
    btf.for_each_type(|id, ty| {
        let by_id = btf.get(id).unwrap();
        wrong += usize::from(by_id.data.as_ptr() != ty.data.as_ptr());
        ControlFlow::<()>::Continue(())
    });
    assert_eq!(wrong, 0);
    assert!(btf.get(btf.end_id()).is_none());

    // The search in the opening walk finds what a later one does, and a plain
    // comparison of all names too.
    let mut query = NameQuery::new();
    let structs = KindSet::of(&[Kind::STRUCT]);
    for name in ["sock", "file", "task_struct", "nosuch", "sk_buff", "u"] {
        query.add_essential(name.as_bytes(), structs);
    }
    query.add(b"vfs_read", KindSet::of(&[Kind::FUNC]));
    query.finish();
    let mut hits = Vec::new();
    let scanned = Btf::scan(&bytes, None, &query, &mut hits).unwrap();
    assert_eq!(scanned.end_id(), btf.end_id());
    let mut again = Vec::new();
    btf.find_all(&query, &mut again);
    assert_eq!(hits, again);
    let mut plain = Vec::new();
    for (id, ty) in btf.types() {
        let name = essential_name(btf.name_bytes(ty.name_off()));
        if let Some(name) = query.position(name)
            && (ty.kind() == Kind::STRUCT || ty.kind() == Kind::FUNC)
        {
            plain.push(NameHit { name, id });
        }
    }
    assert_eq!(hits, plain);

    let index = scanned.into_index();
    let reopened = Btf::with_index(&bytes, None, &index).unwrap();
    assert_eq!(reopened.type_name(task), "task_struct");
    assert!(Btf::with_index(&bytes[..bytes.len() - 1], None, &index).is_err());
}

/// Time of the walk that opens a kernel's BTF; run with `--release
/// -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn time_of_walk() {
    let Some(bytes) = vmlinux("time_of_walk") else {
        return;
    };
    let mut query = NameQuery::new();
    let kinds = KindSet::of(&[
        Kind::STRUCT,
        Kind::UNION,
        Kind::TYPEDEF,
        Kind::ENUM,
        Kind::INT,
    ]);
    for name in [
        "task_struct",
        "sock",
        "file",
        "inode",
        "sk_buff",
        "cred",
        "mm_struct",
        "int",
    ] {
        query.add_essential(name.as_bytes(), kinds);
    }
    query.finish();
    let time = |what: &str, f: &dyn Fn() -> usize| {
        let mut best = std::time::Duration::MAX;
        for _ in 0..20 {
            let start = std::time::Instant::now();
            std::hint::black_box(f());
            best = best.min(start.elapsed());
        }
        println!("{what}: {best:?}");
    };
    time("scan for 8 names", &|| {
        let mut hits = Vec::new();
        Btf::scan(&bytes, None, &query, &mut hits).unwrap();
        hits.len()
    });
    time("parse_trusted", &|| {
        Btf::parse_trusted(&bytes, None).unwrap().end_id() as usize
    });
    time("parse", &|| Btf::parse(&bytes).unwrap().end_id() as usize);
}

/// Cuts and flips in every header and record byte: never a panic, and what is
/// accepted can be used.
#[test]
fn damaged_blobs() {
    let Some(bytes) = vmlinux("damaged_blobs") else {
        return;
    };
    let whole = Btf::parse(&bytes).unwrap();
    let mut b = encode::BtfBuilder::new();
    for (_, ty) in whole.types().take(150) {
        // References beyond the part taken become void.
        b.add_copy(&whole, &ty, &mut |id| if id <= 150 { id } else { 0 });
    }
    let good = b.to_bytes().unwrap();
    assert!(Btf::parse(&good).is_ok());
    let exercise = |bytes: &[u8]| {
        for btf in [Btf::parse(bytes), Btf::parse_trusted(bytes, None)]
            .into_iter()
            .flatten()
        {
            for (id, ty) in btf.types() {
                std::hint::black_box((
                    btf.name(ty.name_off()),
                    btf.size_of(id),
                    btf.align_of(id),
                    btf.skip_modifiers_and_typedefs(id),
                    ty.members().count() + ty.enumerators().count() + ty.params().count(),
                    ty.sec_vars().count(),
                ));
                assert!(btf.get(id).is_some());
            }
        }
    };
    for len in (0..200).chain((200..good.len()).step_by(97)) {
        assert!(Btf::parse(&good[..len]).is_err(), "{len}");
    }
    let mut seed = 0x1234_5678_u32;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed
    };
    for round in 0..400 {
        let mut bad = good.clone();
        let flips = 1 + round % 4;
        for _ in 0..flips {
            let at = random() as usize % bad.len();
            bad[if round % 2 == 0 { at } else { at % 2000 }] = random() as u8;
        }
        exercise(&bad);
    }
}

fn problem(bytes: &[u8]) -> BtfProblem {
    Btf::parse(bytes).unwrap_err().what
}

#[test]
fn headers() {
    let mut b = encode::BtfBuilder::new();
    b.add_int("int", 4, true);
    let good = b.to_bytes().unwrap();
    let with = |at: usize, value: u32| {
        let mut bad = good.clone();
        bad[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        bad
    };
    assert_eq!(problem(&[]), BtfProblem::Truncated);
    assert_eq!(problem(&good[..20]), BtfProblem::Truncated);
    assert_eq!(problem(b"\x7fELF"), BtfProblem::Magic);
    let mut swapped = good.clone();
    swapped.swap(0, 1);
    assert_eq!(problem(&swapped), BtfProblem::ByteOrder);
    let mut version = good.clone();
    version[2] = 2;
    assert_eq!(problem(&version), BtfProblem::Version);
    assert_eq!(problem(&with(4, 16)), BtfProblem::Header);
    assert_eq!(problem(&with(4, 1 << 20)), BtfProblem::Truncated);
    assert_eq!(problem(&with(8, 2)), BtfProblem::Header);
    assert_eq!(problem(&with(12, u32::MAX)), BtfProblem::Truncated);
    assert_eq!(problem(&with(16, 17)), BtfProblem::Truncated);
    assert_eq!(problem(&with(20, 2)), BtfProblem::Strings);
    assert_eq!(problem(&with(20, 0)), BtfProblem::Strings);
    // Kind, name and reference of the type.
    assert_eq!(problem(&with(28, 63 << 24)), BtfProblem::Kind);
    assert_eq!(problem(&with(28, 0)), BtfProblem::Kind);
    let e = Btf::parse(&with(24, 5)).unwrap_err();
    assert_eq!((e.what, e.offset, e.type_id), (BtfProblem::Name, 24, 1));
    assert_eq!(
        e.to_string(),
        "BTF byte 24, type 1: name outside the strings"
    );
    assert_eq!(
        Btf::parse(&with(12, 8)).unwrap_err().what,
        BtfProblem::Truncated
    );
}

#[test]
fn references_are_checked_everywhere() {
    let bad: [fn(&mut encode::BtfBuilder) -> TypeId; 5] = [
        |b| b.add_ptr(9),
        |b| b.add_array(1, 9, 1),
        |b| b.add_func_proto(0, &[("x", 9)]),
        |b| {
            let entry = SecVar {
                type_id: 9,
                offset: 0,
                size: 0,
            };
            b.add_datasec(".data", 0, &[entry])
        },
        |b| {
            let member = encode::NewMember {
                name: "m",
                type_id: 9,
                bit_offset: 0,
                bit_size: 0,
            };
            b.add_struct("s", 0, &[member])
        },
    ];
    for add in bad {
        let mut b = encode::BtfBuilder::new();
        b.add_int("int", 4, true);
        add(&mut b);
        let bytes = b.to_bytes().unwrap();
        let e = Btf::parse(&bytes).unwrap_err();
        assert_eq!((e.what, e.type_id), (BtfProblem::TypeId, 2));
    }
}

/// Linux 7.1 announces the sizes of kinds, so that older readers can step
/// over new ones.
#[test]
fn kinds_from_the_future() {
    let mut b = encode::BtfBuilder::new();
    b.add_int("int", 4, true);
    b.add_int("unsigned", 4, false);
    let old = b.to_bytes().unwrap();
    let layout_len = 22 * 4;
    let mut bytes = old[..24].to_vec();
    bytes[4] = 32;
    // Strings come after the types, the layout after the strings.
    let types = 32;
    let new_type = [0_u32, 21 << 24 | 2, 0, 7, 7, 7]
        .map(u32::to_ne_bytes)
        .concat();
    bytes[12..16].copy_from_slice(&(types + new_type.len() as u32).to_ne_bytes());
    bytes[16..20].copy_from_slice(&(types + new_type.len() as u32).to_ne_bytes());
    let strings = &old[24 + 32..];
    let layout_off = types + new_type.len() as u32 + strings.len() as u32;
    bytes.extend_from_slice(&layout_off.to_ne_bytes());
    bytes.extend_from_slice(&(layout_len as u32).to_ne_bytes());
    bytes.extend_from_slice(&old[24..40]);
    bytes.extend_from_slice(&new_type);
    bytes.extend_from_slice(&old[40..56]);
    bytes.extend_from_slice(strings);
    let mut layout = vec![0; layout_len];
    layout[21 * 4] = 4;
    layout[21 * 4 + 1] = 4;
    bytes.extend_from_slice(&layout);
    let btf = Btf::parse(&bytes).unwrap();
    assert_eq!(btf.end_id(), 4);
    assert_eq!(btf.get(2).unwrap().kind(), Kind(21));
    assert_eq!(btf.type_name(3), "unsigned");
    let len = bytes.len();
    assert_eq!(problem(&bytes[..len - 4]), BtfProblem::Truncated);
}

#[test]
fn cycles_and_overflows_end() {
    let mut b = encode::BtfBuilder::new();
    let typedef = b.add_typedef("a", 2);
    b.add_typedef("b", 1);
    let int = b.add_int("int", 4, true);
    let big = b.add_array(int, int, u32::MAX);
    let own = b.add_array(5, int, 1);
    let member = |type_id| encode::NewMember {
        name: "m",
        type_id,
        bit_offset: 0,
        bit_size: 0,
    };
    let nested = b.add_struct("s", 8, &[member(6)]);
    // Thirty levels of two members each: 2^30 paths.
    let mut last = int;
    for _ in 0..30 {
        last = b.add_struct("wide", 4, &[member(last), member(last)]);
    }
    let bytes = b.to_bytes().unwrap();
    let btf = Btf::parse(&bytes).unwrap();
    assert!(btf.skip_modifiers_and_typedefs(typedef).is_none());
    assert_eq!(
        (btf.size_of(typedef), btf.size_of(big), btf.size_of(own)),
        (None, None, None)
    );
    assert_eq!((btf.align_of(nested), btf.align_of(last)), (None, None));
    assert_eq!(btf.align_of(int), Some(4));
}

#[test]
fn flavours() {
    let essential =
        |name: &'static str| std::str::from_utf8(essential_name(name.as_bytes())).unwrap();
    assert_eq!(essential("task_struct"), "task_struct");
    assert_eq!(essential("task_struct___old"), "task_struct");
    assert_eq!(essential("a___b___c"), "a___b");
    assert_eq!(essential("a____b"), "a____b");
    assert_eq!(essential("a___"), "a___");
    assert_eq!(essential("___a"), "___a");
    assert_eq!(essential("__a___x"), "__a");
    assert_eq!(essential(""), "");
}

#[test]
fn queries_find_flavours_and_short_names() {
    let mut b = encode::BtfBuilder::new();
    for name in [
        "s",
        "s___x",
        "abc",
        "abc___v2",
        "abcd",
        "ab",
        "abcdefgh___1",
        "",
    ] {
        b.add_struct(name, 4, &[]);
    }
    b.add_func("s", 1, Linkage::STATIC);
    let bytes = b.to_bytes().unwrap();
    let structs = KindSet::of(&[Kind::STRUCT]);
    let mut query = NameQuery::new();
    for name in ["abcdefgh", "s", "abc", "zz", ""] {
        query.add_essential(name.as_bytes(), structs);
    }
    query.add(b"ab", structs);
    query.add(b"abc", structs);
    query.finish();
    assert_eq!(query.len(), 5);
    let mut hits = Vec::new();
    let btf = Btf::scan(&bytes, None, &query, &mut hits).unwrap();
    let ids = |name: &str| {
        let name = query.position(name.as_bytes()).unwrap();
        let hits = hits.iter().filter(|hit| hit.name == name);
        hits.map(|hit| hit.id).collect::<Vec<_>>()
    };
    assert_eq!(ids("s"), [1, 2]);
    assert_eq!(ids("abc"), [3, 4]);
    assert_eq!(ids("ab"), [6]);
    assert_eq!(ids("abcdefgh"), [7]);
    assert!(ids("zz").is_empty());
    assert_eq!(query.position(b""), None);
    assert_eq!(btf.find_by_name_kind("s", Kind::FUNC), Some(9));
}
