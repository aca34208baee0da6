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
