//! Written, read back; filled; sanitised.

use super::*;
use crate::btf::tests::vmlinux;

fn member(name: &str, type_id: TypeId, bit_offset: u32, bit_size: u8) -> NewMember<'_> {
    NewMember {
        name,
        type_id,
        bit_offset,
        bit_size,
    }
}

/// One type of every kind.
pub(super) fn every_kind() -> BtfBuilder {
    let mut b = BtfBuilder::new();
    let int = b.add_int("int", 4, true);
    let ptr = b.add_ptr(int);
    let array = b.add_array(ptr, int, 3);
    let inner = b.add_union("", 8, &[member("p", ptr, 0, 0), member("i", int, 0, 0)]);
    b.add_struct(
        "s",
        40,
        &[
            member("a", array, 0, 0),
            member("", inner, 192, 0),
            member("f", int, 256, 7),
        ],
    );
    b.add_enum("e", 4, true, &[("E_NEG", -1), ("E_ONE", 1)]);
    b.add_fwd("f", true);
    let typedef = b.add_typedef("t", int);
    let volatile = b.add_modifier(Kind::VOLATILE, typedef);
    let constant = b.add_modifier(Kind::CONST, volatile);
    b.add_modifier(Kind::RESTRICT, constant);
    let proto = b.add_func_proto(int, &[("x", int), ("", ptr)]);
    let func = b.add_func("fn", proto, Linkage::GLOBAL);
    let var = b.add_var("v", int, Linkage::GLOBAL);
    b.add_datasec(
        ".data",
        4,
        &[SecVar {
            type_id: var,
            offset: 0,
            size: 4,
        }],
    );
    b.add_float("double", 8);
    b.add_decl_tag("tag", func, 1);
    b.add_type_tag("user", int);
    b.add_enum64("e64", false, &[("BIG", 0x1_0000_0002)]);
    b
}

fn kinds(btf: &Btf<'_>) -> Vec<Kind> {
    btf.types().map(|(_, ty)| ty.kind()).collect()
}

#[test]
fn every_kind_reads_back() {
    let bytes = every_kind().to_bytes().unwrap();
    let btf = Btf::parse(&bytes).unwrap();
    assert_eq!(
        kinds(&btf),
        [
            1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11, 13, 12, 14, 15, 16, 17, 18, 19
        ]
        .map(Kind)
    );
    let by_name = |name, kind| btf.get(btf.find_by_name_kind(name, kind).unwrap()).unwrap();
    let s = by_name("s", Kind::STRUCT);
    let fields: Vec<_> = s
        .members()
        .map(|m| (btf.name(m.name_off), m.type_id, m.bit_offset, m.bit_size))
        .collect();
    assert_eq!(fields, [("a", 3, 0, 0), ("", 4, 192, 0), ("f", 1, 256, 7)]);
    assert_eq!(btf.get(3).unwrap().array().unwrap().len, 3);
    assert_eq!(btf.size_of(3), Some(24));
    assert_eq!(
        (btf.align_of(3), btf.align_of(5), btf.align_of(1)),
        (Some(8), Some(8), Some(4))
    );
    let e = by_name("e", Kind::ENUM);
    assert_eq!(
        e.enumerators().map(|v| v.value as i64).collect::<Vec<_>>(),
        [-1, 1]
    );
    let e64 = by_name("e64", Kind::ENUM64);
    assert_eq!(e64.enumerator(0).unwrap().value, 0x1_0000_0002);
    let proto = btf.get(12).unwrap();
    assert_eq!(
        proto
            .params()
            .map(|p| btf.name(p.name_off))
            .collect::<Vec<_>>(),
        ["x", ""]
    );
    assert_eq!(by_name("fn", Kind::FUNC).linkage(), Some(Linkage::GLOBAL));
    assert_eq!(by_name("v", Kind::VAR).linkage(), Some(Linkage::GLOBAL));
    assert_eq!(by_name("tag", Kind::DECL_TAG).component_index(), Some(1));
    assert!(btf.get(1).unwrap().int().unwrap().signed);
    assert_eq!(btf.skip_modifiers_and_typedefs(11).unwrap().0, 1);
    assert_eq!(btf.skip_modifiers(11).unwrap().0, 8);
    assert_eq!(by_name(".data", Kind::DATASEC).sec_vars().count(), 1);
    assert_eq!(btf.size_of(13), None);
}

#[test]
fn split_continues_its_base() {
    let base_bytes = every_kind().to_bytes().unwrap();
    let base = Btf::parse(&base_bytes).unwrap();
    let mut b = BtfBuilder::on(&base);
    let typedef = b.add_typedef("module_int", 1);
    assert_eq!(typedef, base.end_id());
    let bytes = b.to_bytes().unwrap();
    let split = Btf::parse_split(&bytes, &base).unwrap();
    assert_eq!(split.type_name(typedef), "module_int");
    assert_eq!(split.type_name(1), "int");
    assert_eq!(split.size_of(typedef), Some(4));
    assert_eq!(split.find_by_name_kind("s", Kind::STRUCT), Some(5));
    assert_eq!(
        split.find_by_name_kind("module_int", Kind::TYPEDEF),
        Some(typedef)
    );
    assert_eq!(split.get(0).unwrap().kind(), Kind::VOID);
    assert!(split.get(typedef + 1).is_none());
    // Alone, its references lead nowhere.
    assert!(Btf::parse(&bytes).is_err());
}

/// A kernel decoded and encoded again is the same, byte for byte in its type
/// section but for name offsets, which are compared as names.
#[test]
fn kernel_survives_encoding() {
    let Some(bytes) = vmlinux("kernel_survives_encoding") else {
        return;
    };
    let btf = Btf::parse(&bytes).unwrap();
    assert_eq!(BtfBuilder::copy_of(&btf).to_bytes().unwrap(), bytes);

    let mut b = BtfBuilder::new();
    for (_, ty) in btf.types().take(20_000) {
        b.add_copy(&btf, &ty, &mut |id| id);
    }
    let copy = b.to_bytes().unwrap();
    let copy = Btf::parse_trusted(&copy, None).unwrap();
    assert_eq!(copy.end_id(), 20_001);
    for ((_, a), (_, b)) in btf.types().zip(copy.types()) {
        assert_eq!(
            (a.info, a.payload, a.data.len()),
            (b.info, b.payload, b.data.len())
        );
        assert_eq!(btf.name(a.name_off()), copy.name(b.name_off()));
        for (a, b) in a.members().zip(b.members()) {
            assert_eq!((a.type_id, a.bit_offset), (b.type_id, b.bit_offset));
            assert_eq!(btf.name(a.name_off), copy.name(b.name_off));
        }
    }
}

#[test]
fn what_does_not_fit_is_reported() {
    let mut b = BtfBuilder::new();
    b.add_int("a\0b", 4, false);
    assert_eq!(b.to_bytes().unwrap_err().what, BtfProblem::Edit);
}

struct Facts;

impl ObjectFacts for Facts {
    fn section_size(&self, section: &str) -> Option<u32> {
        match section {
            ".data" => Some(24),
            ".kconfig" => Some(8),
            _ => None,
        }
    }

    fn variable(&self, _: &str, name: &str) -> Option<VarFact> {
        let (offset, hidden) = match name {
            "first" => (0, false),
            "hidden" => (8, true),
            "last" => (16, false),
            "CONFIG_HZ" => (4, false),
            _ => return None,
        };
        Some(VarFact { offset, hidden })
    }
}

#[test]
fn gaps_are_filled_from_the_object() {
    let mut b = BtfBuilder::new();
    let long = b.add_int("long", 8, true);
    let mut vars = Vec::new();
    for name in ["last", "hidden", "first"] {
        let type_id = b.add_var(name, long, Linkage::GLOBAL);
        vars.push(SecVar {
            type_id,
            offset: 0,
            size: 8,
        });
    }
    let data = b.add_datasec(".data", 0, &vars);
    let hz = b.add_var("CONFIG_HZ", long, Linkage::EXTERN);
    let entry = SecVar {
        type_id: hz,
        offset: 0,
        size: 8,
    };
    let kconfig = b.add_datasec(".kconfig", 0, &[entry]);
    b.fill_datasecs(&Facts).unwrap();
    let bytes = b.to_bytes().unwrap();
    let btf = Btf::parse(&bytes).unwrap();
    let section = btf.get(data).unwrap();
    assert_eq!(section.size(), Some(24));
    let names: Vec<_> = section
        .sec_vars()
        .map(|var| (btf.type_name(var.type_id), var.offset))
        .collect();
    assert_eq!(names, [("first", 0), ("hidden", 8), ("last", 16)]);
    let linkage = |id| btf.get(id).unwrap().linkage();
    assert_eq!(
        linkage(section.sec_var(1).unwrap().type_id),
        Some(Linkage::STATIC)
    );
    assert_eq!(
        linkage(section.sec_var(0).unwrap().type_id),
        Some(Linkage::GLOBAL)
    );
    assert_eq!(btf.get(kconfig).unwrap().size(), Some(8));
    assert_eq!(btf.get(kconfig).unwrap().sec_var(0).unwrap().offset, 4);
    assert_eq!(linkage(hz), Some(Linkage::GLOBAL));

    // Defined elsewhere: behind the section's own, or all there is.
    for (section, size) in [(".data", 32), (".maps", 8)] {
        let mut b = BtfBuilder::new();
        let long = b.add_int("long", 8, true);
        let type_id = b.add_var("elsewhere", long, Linkage::EXTERN);
        let entry = SecVar {
            type_id,
            offset: 0,
            size: 8,
        };
        let id = b.add_datasec(section, 0, &[entry]);
        b.fill_datasecs(&Facts).unwrap();
        let bytes = b.to_bytes().unwrap();
        let btf = Btf::parse(&bytes).unwrap();
        let section = btf.get(id).unwrap();
        assert_eq!(section.size(), Some(size));
        assert_eq!(section.sec_var(0).unwrap().offset, size - 8);
        let linkage = btf.get(type_id).unwrap().linkage();
        assert_eq!(linkage, Some(Linkage::GLOBAL));
    }

    let mut b = BtfBuilder::new();
    let bss = b.add_datasec(".bss", 0, &[]);
    let e = b.fill_datasecs(&Facts).unwrap_err();
    assert_eq!((e.what, e.type_id), (BtfProblem::MissingSection, bss));
    let mut b = BtfBuilder::new();
    let int = b.add_int("int", 4, true);
    let type_id = b.add_var("nosuch", int, Linkage::GLOBAL);
    b.add_datasec(
        ".data",
        0,
        &[SecVar {
            type_id,
            offset: 0,
            size: 4,
        }],
    );
    assert_eq!(
        b.fill_datasecs(&Facts).unwrap_err().what,
        BtfProblem::MissingVariable
    );
}

#[test]
fn external_symbols_become_placeholders() {
    let mut b = BtfBuilder::new();
    let int = b.add_int("int", 4, true);
    let proto = b.add_func_proto(int, &[("", int), ("named", int)]);
    let func = b.add_func("bpf_kfunc", proto, Linkage::EXTERN);
    let var = b.add_var("bpf_prog_active", 0, Linkage::EXTERN);
    let entry = |type_id| SecVar {
        type_id,
        offset: 0,
        size: 0,
    };
    let ksyms = b.add_datasec(".ksyms", 0, &[entry(func), entry(var)]);
    b.fill_ksyms();
    let bytes = b.to_bytes().unwrap();
    let btf = Btf::parse(&bytes).unwrap();
    let section = btf.get(ksyms).unwrap();
    assert_eq!(section.size(), Some(8));
    let [first, second] = [0, 1].map(|n| section.sec_var(n).unwrap());
    assert_eq!(btf.get(first.type_id).unwrap().kind(), Kind::VAR);
    assert_eq!(
        (first.offset, first.size, second.offset, second.type_id),
        (0, 4, 4, var)
    );
    assert_eq!(btf.get(var).unwrap().target(), Some(int));
    assert_eq!(btf.get(func).unwrap().linkage(), Some(Linkage::GLOBAL));
    let params: Vec<_> = btf
        .get(proto)
        .unwrap()
        .params()
        .map(|p| btf.name(p.name_off))
        .collect();
    assert_eq!(params, ["ksym_placeholder", "named"]);
}

#[test]
fn old_kernels_get_what_they_know() {
    let original = every_kind();
    let sanitized = |features| {
        let mut b = original.clone();
        b.sanitize(features);
        b.to_bytes().unwrap()
    };
    let before = original.to_bytes().unwrap();
    assert_eq!(sanitized(BtfFeatures::all()), before);

    let bytes = sanitized(BtfFeatures::empty());
    let btf = Btf::parse(&bytes).unwrap();
    // Only kinds of the first kernels with BTF; ids stay.
    assert!(btf.types().all(|(_, ty)| ty.kind() <= Kind::RESTRICT));
    assert_eq!(btf.end_id(), 21, "one placeholder more");
    let section = btf.get(15).unwrap();
    assert_eq!((section.kind(), btf.type_name(15)), (Kind::STRUCT, "_data"));
    assert_eq!(btf.name(section.member(0).unwrap().name_off), "v");
    assert_eq!(btf.size_of(16), Some(8), "a float keeps its size");
    let big = btf.get(19).unwrap();
    assert_eq!((big.kind(), big.size()), (Kind::UNION, Some(8)));
    assert_eq!(big.member(0).unwrap().type_id, 20);
    assert!(!btf.get(6).unwrap().kind_flag());
    // Enumerators need names.
    assert!(btf.get(12).unwrap().enumerators().all(|v| v.name_off != 0));

    let one = |feature, id: TypeId| {
        let bytes = sanitized(BtfFeatures::all() - feature);
        let btf = Btf::parse(&bytes).unwrap();
        let changed: Vec<_> = btf
            .types()
            .zip(Btf::parse(&before).unwrap().types())
            .filter(|((_, a), (_, b))| (a.info, a.payload, a.data) != (b.info, b.payload, b.data))
            .map(|((id, _), _)| id)
            .collect();
        assert!(changed.contains(&id), "{feature:?} {changed:?}");
        changed.len()
    };
    assert_eq!(one(BtfFeatures::FUNC_GLOBAL, 13), 1);
    assert_eq!(one(BtfFeatures::FLOAT, 16), 1);
    assert_eq!(one(BtfFeatures::DECL_TAG, 17), 1);
    assert_eq!(one(BtfFeatures::TYPE_TAG, 18), 1);
    assert_eq!(one(BtfFeatures::FUNC, 13), 2);
    assert_eq!(one(BtfFeatures::DATASEC, 15), 3);
    assert_eq!(one(BtfFeatures::ENUM64, 19), 2);

    let mut b = BtfBuilder::new();
    let names = ["?.struct_ops", "maps/events", "2/0", ".data.one_2"];
    let ids = names.map(|name| b.add_datasec(name, 0, &[]));
    b.sanitize(BtfFeatures::all() - BtfFeatures::QMARK_DATASEC);
    assert_eq!(
        ids.map(|id| b.name(id)),
        ["_.struct_ops", "maps_events", "__0", ".data.one_2"]
    );
}
