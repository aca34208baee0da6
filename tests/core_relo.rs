//! CO-RE against the types of real kernels: the running one's, and those that
//! the matrix has fetched.
//!
//! What `check` says beforehand is compared with what the kernel then does,
//! the answers of the resolver with those of a walk over what bpftool prints.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Feature, LeakCheck, built_with, load_alone, object, require, run, skip};
use ebpf_manager::bpf::{Collection, KernelBtf, LoadOptions};
use ebpf_manager::elf::btf::encode::{BtfBuilder, NewMember};
use ebpf_manager::elf::btf::{Btf, Kind, NameQuery};
use ebpf_manager::elf::check::{Fault, Report, check};
use ebpf_manager::elf::core_relo::{ReloKind, Resolution, Resolver, add_roots, describe, minimise};
use ebpf_manager::elf::{ExternKind, Object};
use ebpf_manager_sys::bpf::{self, ObjectKind};
use std::os::fd::AsFd;

/// Raw tracepoints, kernel BTF and the helpers the objects use.
const CORE: Feature = Feature::new("CO-RE", 5, 10).config(&["CONFIG_DEBUG_INFO_BTF"]);

/// The objects with relocations or kernel symbols.
const OBJECTS: [&str; 4] = ["core", "core_missing", "ksyms", "trace"];

fn required(report: &Report, program: usize) -> Vec<&Fault> {
    let findings = report.findings.iter();
    let of = findings.filter(|f| f.required && f.program == program);
    of.map(|f| &f.fault).collect()
}

/// True if programs of the object may fail for a reason that no BTF tells:
/// the address of a symbol, or a program type that may not call a function.
fn may_fail_otherwise(object: &Object) -> bool {
    object.externs().iter().any(|symbol| {
        matches!(
            symbol.kind,
            ExternKind::Address | ExternKind::Variable { .. } | ExternKind::Function { .. }
        )
    })
}

#[test]
fn check_agrees_with_the_verifier() {
    if !require(&CORE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let kernel = KernelBtf::vmlinux().unwrap();
    let (mut fit, mut unfit) = (0, 0);
    for name in OBJECTS {
        let object = object(&format!("{name}.bpf.o"));
        let report = check(&object.linker().unwrap(), kernel.as_bytes(), &[]).unwrap();
        for (index, program) in object.programs().iter().enumerate() {
            let program = &program.name;
            let against = required(&report, index);
            match load_alone(&object, program) {
                Ok(_) => {
                    assert!(against.is_empty(), "{program} loads despite {against:?}");
                    fit += 1;
                }
                Err(err) if against.is_empty() => {
                    assert!(may_fail_otherwise(&object), "{program}: {err}");
                }
                Err(_) => unfit += 1,
            }
        }
    }
    assert!(fit >= 8, "{fit}");
    assert!(unfit >= 6, "{unfit}");
}

#[test]
fn types_of_modules_are_found() {
    const MODULES: Feature =
        Feature::new("BTF of modules", 5, 11).config(&["CONFIG_DEBUG_INFO_BTF", "CONFIG_VETH"]);
    if !require(&MODULES) {
        return;
    }
    let kernel = KernelBtf::vmlinux().unwrap();
    let built_in = kernel
        .btf()
        .unwrap()
        .find_by_name_kind("veth_priv", Kind::STRUCT)
        .is_some();
    if !built_in && built_with("CONFIG_DEBUG_INFO_BTF_MODULES") == Some(false) {
        return skip("the veth module has no BTF");
    }
    if !built_in && !Path::new("/sys/module/veth").exists() {
        return skip("the veth module is not loaded");
    }
    let _leaks = LeakCheck::begin();
    let object = object("core_module.bpf.o");
    let collection = Collection::load(&object, LoadOptions::default()).unwrap();
    assert_eq!(run(collection.program("core_module").unwrap()), 0);

    let linker = object.linker().unwrap();
    let modules: Vec<_> = KernelBtf::modules().collect();
    let modules: Vec<_> = modules.iter().map(KernelBtf::as_bytes).collect();
    let absent = |modules| check(&linker, kernel.as_bytes(), modules).unwrap().absent;
    assert_eq!(absent(&modules), 0);
    assert_eq!(absent(&[]) > 0, !built_in);
    if built_in {
        skip("looking into a module: veth is built in here");
    }
}

#[test]
fn types_are_had_by_number() {
    if !require(&Feature::new("names of BTF", 5, 11).config(&["CONFIG_DEBUG_INFO_BTF"])) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let kernel = KernelBtf::vmlinux().unwrap();
    let mut id = 0;
    while let Some(next) = bpf::next_id(ObjectKind::Btf, id).unwrap() {
        id = next;
        // Another process may have closed it by now.
        let Ok(fd) = bpf::fd_by_id(ObjectKind::Btf, id, 0) else {
            continue;
        };
        if bpf::btf_name(fd.as_fd()).is_ok_and(|name| name == "vmlinux") {
            assert!(KernelBtf::from_id(id).unwrap().as_bytes() == kernel.as_bytes());
            assert!(KernelBtf::from_id(u32::MAX).is_err());
            return;
        }
    }
    panic!("the kernel's own BTF has no number");
}

/// What is shipped for kernels without BTF loads what the whole would.
#[test]
fn minimised_types_load_programs() {
    if !require(&CORE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let kernel = KernelBtf::vmlinux().unwrap();
    let dir = common::TempDir::new();
    for name in ["core", "trace"] {
        let object = object(&format!("{name}.bpf.o"));
        let small = minimise(kernel.as_bytes(), &[&object.linker().unwrap()]).unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, small).unwrap();
        let mut options = LoadOptions::default();
        options.kernel_btf = Some(KernelBtf::from_file(&path).unwrap());
        let collection = Collection::load(&object, options).unwrap();
        assert_eq!(collection.programs().len(), object.programs().len());
    }
}

/// The two commands, as a build uses them: the exit code tells.
#[cfg(feature = "cli")]
#[test]
fn commands_check_and_minimise() {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return skip("this kernel has no BTF");
    }
    let run = |arguments: &[&std::ffi::OsStr]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ebpf-manager"));
        command.args(arguments).output().unwrap()
    };
    let [core, missing] = ["core", "core_missing"].map(|name| {
        let path = common::testdata(&format!("{name}.bpf.o"));
        path.into_os_string()
    });
    let dir = common::TempDir::new();
    let small = dir.path().join("small.btf").into_os_string();
    let arguments = [
        "minimise".as_ref(),
        "-o".as_ref(),
        &*small,
        &*core,
        &*missing,
    ];
    let output = run(&arguments);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty());

    let kernel = "/sys/kernel/btf/vmlinux".as_ref();
    let btf = "--btf".as_ref();
    let both = ["check".as_ref(), &*core, btf, kernel, btf, &*small];
    let output = run(&both);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<_> = text.lines().skip(1).take(2).collect();
    assert_eq!(rows.len(), 2, "{text}");
    for row in rows {
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(cells[2..5], ["yes", "69", "16"], "{text}");
    }

    let output = run(&["check".as_ref(), &*core, &*missing]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let named = |line: &str| line.starts_with("!  ") && line.contains("err_core_missing_");
    assert_eq!(text.lines().filter(|l| named(l)).count(), 3, "{text}");
    assert_eq!(
        text.lines().filter(|l| l.starts_with('!')).count(),
        3,
        "{text}"
    );

    let output = run(&["check".as_ref(), "--json".as_ref(), &*missing]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("{\"checks\":[{") && text.ends_with("]}]}\n"),
        "{text}"
    );
    assert_eq!(text.matches("\"required\":true").count(), 3);

    // A file that is no BTF is an error of its own.
    let output = run(&["check".as_ref(), &*core, "--btf".as_ref(), &*core]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not BTF"));

    // A directory like /sys/kernel/btf has the modules' types as well.
    let copy = dir.path().join("btf");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(kernel, copy.join("vmlinux")).unwrap();
    let bytes = std::fs::read(kernel).unwrap();
    let mut module = BtfBuilder::on(&Btf::parse(&bytes).unwrap());
    let int = module.add_int("int", 4, true);
    let member = NewMember {
        name: "field",
        type_id: int,
        bit_offset: 32,
        bit_size: 0,
    };
    module.add_struct("no_such_struct", 8, &[member]);
    std::fs::write(copy.join("no_such_module"), module.to_bytes().unwrap()).unwrap();
    let lacking = |btf: &std::ffi::OsStr| {
        let output = run(&["check".as_ref(), &*missing, "--btf".as_ref(), btf]);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|l| l.starts_with('!')).count()
    };
    assert_eq!((lacking(kernel), lacking(copy.as_os_str())), (3, 2));
}

/// BTF of the running kernel and of those in the matrix's cache.
fn kernels() -> Vec<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let cached = cache.and_then(|c| std::fs::read_dir(c.join("ebpf-manager-matrix/kernels")).ok());
    let mut paths: Vec<_> = cached
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("btf"))
        .collect();
    paths.push("/sys/kernel/btf/vmlinux".into());
    paths.retain(|path| path.exists());
    paths
}

#[test]
fn minimised_types_give_the_answers_of_the_whole() {
    let kernels = kernels();
    if kernels.is_empty() {
        skip("no kernel's BTF is at hand");
    }
    let objects = OBJECTS.map(|name| object(&format!("{name}.bpf.o")));
    let linkers: Vec<_> = objects.iter().map(|o| o.linker().unwrap()).collect();
    let mut sizes = String::new();
    for path in kernels {
        let full = std::fs::read(&path).unwrap();
        let small = minimise(&full, &linkers.iter().collect::<Vec<_>>()).unwrap();
        assert!(small.len() < 8 << 10, "{}: {}", path.display(), small.len());
        assert!(Btf::parse(&small).is_ok());
        let (part, all) = (small.len(), full.len());
        let _ = writeln!(sizes, "{}: {part} of {all} bytes suffice", path.display());
        for linker in &linkers {
            let core = |kernel: &[u8]| {
                let mut report = check(linker, kernel, &[]).unwrap();
                // Symbols and attach targets are not CO-RE's.
                let of_core = |f: &Fault| matches!(f, Fault::Missing(_) | Fault::Failed(_));
                report.findings.retain(|f| of_core(&f.fault));
                report
            };
            let of_full = core(&full);
            let of_small = core(&small);
            assert_eq!(of_small.matched, of_full.matched, "{}", path.display());
            assert_eq!(of_small.absent, of_full.absent);
            let faults = |report: Report| -> Vec<_> {
                report
                    .findings
                    .into_iter()
                    .map(|f| (f.insn, f.fault))
                    .collect()
            };
            assert_eq!(faults(of_small), faults(of_full));
        }
    }
    let _ = std::io::stderr().write_all(sizes.as_bytes());
}

// --- the oracle ------------------------------------------------------------------

/// A type as bpftool prints it.
#[derive(Default)]
struct Printed {
    kind: String,
    name: String,
    fields: HashMap<String, String>,
    /// Name and fields of members, enumerators and parameters.
    parts: Vec<(String, HashMap<String, String>)>,
}

impl Printed {
    fn number(&self, field: &str) -> Option<u64> {
        self.fields.get(field)?.parse().ok()
    }
}

struct Oracle {
    types: Vec<Printed>,
    /// By name without flavour.
    names: HashMap<String, Vec<usize>>,
}

fn essential(name: &str) -> &str {
    name.split("___").next().unwrap()
}

/// The quoted name, and what follows as `key=value`.
fn split(line: &str) -> (String, HashMap<String, String>) {
    let (_, rest) = line.split_once('\'').unwrap();
    let (name, rest) = rest.split_once('\'').unwrap();
    let pairs = rest.split_whitespace().filter_map(|p| p.split_once('='));
    let name = if name == "(anon)" { "" } else { name };
    (
        name.to_owned(),
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
    )
}

impl Oracle {
    fn read(path: &Path) -> Option<Oracle> {
        let output = Command::new("bpftool")
            .args(["btf", "dump", "file"])
            .arg(path)
            .args(["format", "raw"])
            .stderr(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        let text = String::from_utf8(output.stdout).unwrap();
        let mut types = vec![Printed::default()];
        for line in text.lines().filter(|line| line.contains('\'')) {
            if line.starts_with('[') {
                let (name, fields) = split(line);
                let kind = line.split(' ').nth(1).unwrap().to_owned();
                types.push(Printed {
                    kind,
                    name,
                    fields,
                    parts: Vec::new(),
                });
            } else {
                types.last_mut().unwrap().parts.push(split(line));
            }
        }
        let mut names: HashMap<String, Vec<usize>> = HashMap::new();
        for (id, ty) in types.iter().enumerate() {
            names
                .entry(essential(&ty.name).to_owned())
                .or_default()
                .push(id);
        }
        Some(Oracle { types, names })
    }

    /// Behind typedefs and qualifiers.
    fn plain(&self, mut id: usize) -> (usize, &Printed) {
        loop {
            let ty = &self.types[id];
            match ty.kind.as_str() {
                "TYPEDEF" | "CONST" | "VOLATILE" | "RESTRICT" | "TYPE_TAG" => {
                    id = ty.number("type_id").unwrap() as usize;
                }
                _ => return (id, ty),
            }
        }
    }

    fn size(&self, id: usize) -> u64 {
        let (_, ty) = self.plain(id);
        match ty.kind.as_str() {
            "PTR" => 8,
            "ARRAY" => {
                ty.number("nr_elems").unwrap() * self.size(ty.number("type_id").unwrap() as usize)
            }
            _ => ty.number("size").unwrap(),
        }
    }

    fn signed(&self, id: usize) -> bool {
        let encoding = self.plain(id).1.fields.get("encoding");
        encoding.is_some_and(|e| e == "SIGNED")
    }

    /// A member of a struct or of unnamed ones inside: offset and width in
    /// bits, type.
    fn member(&self, id: usize, name: &str) -> Option<(u64, u64, usize)> {
        let (_, ty) = self.plain(id);
        ty.parts.iter().find_map(|(part, fields)| {
            let number = |key: &str| fields.get(key).and_then(|v| v.parse::<u64>().ok());
            let offset = number("bits_offset")?;
            let inner = number("type_id")? as usize;
            if part == name {
                return Some((offset, number("bitfield_size").unwrap_or(0), inner));
            }
            let composite = matches!(self.plain(inner).1.kind.as_str(), "STRUCT" | "UNION");
            let (more, width, found) = (part.is_empty() && composite)
                .then(|| self.member(inner, name))
                .flatten()?;
            Some((offset + more, width, found))
        })
    }

    /// The answer to a question in the words of `describe`; `None` for none,
    /// `Err` if this oracle does not know.
    fn answer(&self, kind: ReloKind, what: &str) -> Result<Option<u64>, ()> {
        let (sort, rest) = what.split_once(' ').unwrap();
        let (root, path) = match rest.find(['.', '[', ':']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let root = essential(root);
        let kinds = match sort {
            "enum" => vec!["ENUM", "ENUM64"],
            "struct" => vec!["STRUCT"],
            "union" => vec!["UNION"],
            "typedef" => vec!["TYPEDEF"],
            _ => return Err(()),
        };
        let named = self.names.get(root).map_or(&[][..], Vec::as_slice).iter();
        let found: Vec<usize> = named
            .copied()
            .filter(|&id| kinds.contains(&self.types[id].kind.as_str()))
            .collect();
        if found.len() > 1 {
            return Err(());
        }
        let found = found.first().copied();
        match kind {
            ReloKind::TYPE_EXISTS => return Ok(Some(found.is_some().into())),
            ReloKind::TYPE_MATCHES => return found.map_or(Ok(Some(0)), |_| Err(())),
            ReloKind::TYPE_SIZE => return Ok(Some(found.map_or(0, |id| self.size(id)))),
            ReloKind::TYPE_ID_TARGET => return Ok(Some(found.unwrap_or(0) as u64)),
            ReloKind::ENUMVAL_EXISTS | ReloKind::ENUMVAL_VALUE => {
                let value = found.and_then(|id| {
                    let mut parts = self.types[id].parts.iter();
                    let (_, fields) = parts.find(|(name, _)| name == &path[2..])?;
                    fields.get("val")?.parse::<i64>().ok()
                });
                return Ok(if kind == ReloKind::ENUMVAL_EXISTS {
                    Some(value.is_some().into())
                } else {
                    value.map(|v| v as u64)
                });
            }
            _ => {}
        }
        let exists = kind == ReloKind::FIELD_EXISTS;
        let Some(mut id) = found else {
            return Ok(exists.then_some(0));
        };
        let (mut bits, mut width) = (0, 0);
        for step in path.split_inclusive(['.', ']']).flat_map(|s| s.split('.')) {
            for (nth, step) in step.split('[').enumerate() {
                let step = step.trim_end_matches(']');
                if step.is_empty() {
                    continue;
                }
                if nth > 0 || path.ends_with(']') && step.bytes().all(|b| b.is_ascii_digit()) {
                    let (_, array) = self.plain(id);
                    id = array.number("type_id").unwrap() as usize;
                    bits += step.parse::<u64>().unwrap() * self.size(id) * 8;
                    continue;
                }
                let Some((offset, bitfield, next)) = self.member(id, step) else {
                    return Ok(exists.then_some(0));
                };
                (bits, width, id) = (bits + offset, bitfield, next);
            }
        }
        match kind {
            ReloKind::FIELD_EXISTS => Ok(Some(1)),
            ReloKind::FIELD_SIGNED => Ok(Some(self.signed(id).into())),
            ReloKind::FIELD_RSHIFT_U64 if width != 0 => Ok(Some(64 - width)),
            ReloKind::FIELD_RSHIFT_U64 => Ok(Some(64 - self.size(id) * 8)),
            ReloKind::FIELD_BYTE_OFFSET if width == 0 => Ok(Some(bits / 8)),
            ReloKind::FIELD_BYTE_SIZE if width == 0 => Ok(Some(self.size(id))),
            _ => Err(()),
        }
    }
}

#[test]
fn answers_are_those_of_an_independent_reading() {
    let kernels = kernels();
    if Command::new("bpftool").arg("version").output().is_err() {
        return skip("bpftool is not installed");
    }
    for path in &kernels {
        let Some(oracle) = Oracle::read(path) else {
            skip(&format!("bpftool cannot read {}", path.display()));
            continue;
        };
        let bytes = std::fs::read(path).unwrap();
        let (mut compared, mut unknown) = (0, 0);
        for name in ["core", "core_missing", "trace", "bench_b"] {
            let object = object(&format!("{name}.bpf.o"));
            let linker = object.linker().unwrap();
            let local = linker.btf().unwrap();
            let mut query = NameQuery::new();
            add_roots(&mut query, local, linker.core_relos());
            query.finish();
            let mut hits = Vec::new();
            let btf = Btf::scan(&bytes, None, &query, &mut hits).unwrap();
            let mut resolver = Resolver::new(local, &query);
            resolver.add_target(&btf, hits);
            for relo in linker.core_relos() {
                let (kind, what) = (ReloKind(relo.kind), describe(local, &relo));
                let Ok(expected) = oracle.answer(kind, &what) else {
                    unknown += 1;
                    continue;
                };
                let found = resolver
                    .resolve(&relo)
                    .map(|answer: Resolution| answer.poison.is_none().then_some(answer.new));
                assert_eq!(found, Ok(expected), "{}: {kind} of {what}", path.display());
                compared += 1;
            }
        }
        assert!(
            compared > 400,
            "{}: {compared}, not {unknown}",
            path.display()
        );
    }
}
