//! Offline: damaged objects and types. Whatever the bytes, reading them ends
//! soon, in bounded memory, with an answer or an error.
//!
//! Mutations come from fixed seeds, so a failure repeats; it names the file,
//! the seed and what was done. `EBPF_MANAGER_MUTATIONS` multiplies their
//! number.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

#[path = "mutate/allocated.rs"]
mod allocated;
#[path = "mutate/hostile.rs"]
mod hostile;
#[path = "mutate/measure.rs"]
mod measure;
#[path = "mutate/mutation.rs"]
mod mutation;

use common::testdata;
use ebpf_manager::elf::btf::encode::BtfFeatures;
use ebpf_manager::elf::btf::ext::BtfExt;
use ebpf_manager::elf::btf::{Btf, NameQuery};
use ebpf_manager::elf::core_relo::{Resolver, add_roots, describe};
use ebpf_manager::elf::{LinkedProgram, Object, ObjectError, static_link};
use ebpf_manager_sys::abi::insn::Insn;
use measure::bounded;
use mutation::{Elf, Mutator};

/// Mutated inputs per object and kind of damage.
const ROUNDS: u64 = 100;

fn rounds() -> u64 {
    let factor = std::env::var("EBPF_MANAGER_MUTATIONS").ok();
    ROUNDS * factor.map_or(1, |f| f.parse().expect("a number"))
}

/// Every committed object: file name and bytes.
fn objects() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = ["", "compilers"]
        .into_iter()
        .flat_map(|directory| std::fs::read_dir(testdata(directory)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "o"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect();
    all.sort();
    assert!(all.len() > 10);
    all
}

/// Everything that can be done with an object without a kernel. `target`
/// stands for the kernel's types; without it the object's own do.
fn exercise(bytes: &[u8], target: Option<&[u8]>) -> Result<(), ObjectError> {
    let mut object = Object::parse(bytes.to_vec()).inspect_err(|e| drop(e.to_string()))?;
    let names = object.programs().iter().map(|p| p.name.len());
    let names = names.chain(object.maps().iter().map(|m| m.name.len()));
    let _ = names.sum::<usize>();
    let _ = (object.license(), object.kernel_version(), object.externs());
    for features in [BtfFeatures::all(), BtfFeatures::empty()] {
        if let Err(err) = object.btf_for_kernel(features) {
            drop(err.to_string());
        }
    }
    let linker = object.linker().inspect_err(|e| drop(e.to_string()))?;

    let mut query = NameQuery::new();
    if let Some(local) = linker.btf() {
        add_roots(&mut query, local, linker.core_relos());
        for relo in linker.core_relos() {
            let _ = describe(local, &relo);
        }
    }
    query.finish();
    let mut hits = Vec::new();
    let target = target.or(linker.btf().map(Btf::raw));
    let target = target.and_then(|bytes| Btf::scan(bytes, None, &query, &mut hits).ok());
    let mut resolver = linker.btf().map(|local| Resolver::new(local, &query));
    if let (Some(resolver), Some(target)) = (&mut resolver, &target) {
        resolver.add_target(target, hits);
        let _ = resolver.needs_modules(linker.core_relos());
    }

    let mut linked = LinkedProgram::default();
    for program in object.programs() {
        if let Err(err) = linker.link(program, &mut linked) {
            drop(err.to_string());
            continue;
        }
        for fixup in &linked.fixups {
            assert!((fixup.insn as usize) < linked.insns.len());
        }
        for insn in [0, linked.insns.len() as u32 / 2, u32::MAX] {
            if let Some((function, _)) = linked.locate(insn) {
                let _ = linker.function_name(&linked, function);
            }
        }
        for (index, relo) in (0..).zip(&linked.core_relos) {
            let Some(resolver) = &mut resolver else { break };
            let (at, insns) = (relo.insn as usize, &mut linked.insns);
            match resolver.apply(insns, at, &relo.record, index) {
                Ok(poison) => drop(poison.map(|p| p.to_string())),
                Err(err) => drop(err.to_string()),
            }
        }
    }

    let small = |map: u32| object.maps().get(map as usize).map(|m| m.value_size);
    let variables: Vec<_> = object.variables().to_vec();
    let settable = variables.iter().filter(|v| {
        // A section of zeroes may be larger than its file, and is not made
        // unless a variable of it is set.
        small(v.map).is_some_and(|size| size as usize <= bytes.len())
    });
    let settable: Vec<_> = settable.collect();
    for variable in settable {
        let _ = object.set_variable(&variable.name, &vec![1; variable.size as usize]);
    }
    Ok(())
}

/// Everything that can be asked of types.
fn exercise_btf(bytes: &[u8]) {
    let Ok(btf) = Btf::parse(bytes) else {
        let _ = Btf::parse_trusted(bytes, None).map(|btf| walk(&btf));
        return;
    };
    walk(&btf);
    let _ = Btf::parse_split(bytes, &btf).map(|split| walk(&split));
}

fn walk(btf: &Btf<'_>) {
    // Ids may be many more than one can go through: sizes follow chains.
    for id in 0..btf.end_id().min(2000) {
        let Some(ty) = btf.get(id) else { continue };
        let _ = (btf.type_name(id), btf.size_of(id), btf.align_of(id));
        let _ = (btf.skip_modifiers(id), btf.skip_modifiers_and_typedefs(id));
        let _ = (ty.int(), ty.array(), ty.linkage(), ty.component_index());
        let parts = ty.members().count() + ty.enumerators().count() + ty.params().count();
        assert!(parts + ty.sec_vars().count() <= bytes_of(btf));
    }
    assert!(btf.types().count() <= bytes_of(btf));
}

fn bytes_of(btf: &Btf<'_>) -> usize {
    btf.raw().len()
}

/// Mutations that all fail the first check would prove nothing: counts those
/// that get to the end, and those that do not.
#[derive(Default)]
struct Tally([u32; 2]);

impl Tally {
    fn exercise(&mut self, name: &str, seed: u64, done: &str, bytes: &[u8]) {
        let mut result = Ok(());
        bounded(name, seed, done, bytes.len(), || {
            result = exercise(bytes, None);
        });
        self.0[usize::from(result.is_err())] += 1;
    }

    fn check(&self) {
        let [read, refused] = self.0;
        assert!(read > refused / 8 && refused > read / 8, "{:?}", self.0);
    }
}

#[test]
fn objects_survive_random_damage() {
    let mut tally = Tally::default();
    for (name, bytes) in objects() {
        for seed in 0..rounds() {
            let mut mutator = Mutator::new(seed);
            let mut damaged = bytes.clone();
            let done = mutator.damage(&mut damaged, 0..bytes.len());
            tally.exercise(&name, seed, &done, &damaged);
        }
    }
    tally.check();
}

/// Damage where it is understood: in headers, symbols, relocations and types,
/// one kind of section at a time.
#[test]
fn objects_survive_damage_in_each_section() {
    let mut tally = Tally::default();
    for (name, bytes) in objects() {
        let elf = Elf::read(&bytes);
        let mut places: Vec<_> = elf.sections.iter().map(|s| s.bytes.clone()).collect();
        places.push(0..64);
        places.push(elf.headers());
        places.retain(|place| !place.is_empty());
        let each = rounds().div_ceil(places.len() as u64) * 2;
        for (nth, place) in places.into_iter().enumerate() {
            for seed in 0..each {
                let mut mutator = Mutator::new(seed << 8 | nth as u64);
                let mut damaged = bytes.clone();
                let done = mutator.damage(&mut damaged, place.clone());
                tally.exercise(&name, seed, &done, &damaged);
            }
        }
    }
    tally.check();
}

/// Cuts at every boundary and beside it. Section headers stand at the end of
/// a file and would be the first to go, so they are moved to the front.
#[test]
fn objects_survive_truncation() {
    for (name, bytes) in objects() {
        let front = Elf::read(&bytes).headers_first(&bytes);
        assert_eq!(exercise(&front, None).err(), exercise(&bytes, None).err());
        for bytes in [&bytes, &front] {
            let elf = Elf::read(bytes);
            let mut cuts = vec![0, 1, 4, 16, 64, bytes.len()];
            cuts.extend([elf.headers().start, elf.headers().end]);
            for section in &elf.sections {
                cuts.extend([section.bytes.start, section.bytes.end]);
            }
            for cut in cuts {
                for cut in [cut.wrapping_sub(1), cut, cut + 1] {
                    let Some(cut_off) = bytes.get(..cut) else {
                        continue;
                    };
                    let done = format!("cut after {cut} bytes");
                    bounded(&name, 0, &done, bytes.len(), || {
                        let _ = exercise(cut_off, None);
                    });
                }
            }
        }
    }
}

/// One of several objects that are linked into one is damaged.
#[test]
fn linking_survives_damage() {
    let read = |name: &str| std::fs::read(testdata(&format!("{name}.bpf.o"))).unwrap();
    for (first, second) in [
        ("linked_a", "linked_b"),
        ("legacy_maps", "legacy"),
        ("globals", "relocs"),
    ] {
        let (good, bytes) = (read(first), read(second));
        let mut linked = 0;
        for seed in 0..rounds() * 2 {
            let mut mutator = Mutator::new(seed);
            let mut damaged = bytes.clone();
            let done = mutator.damage(&mut damaged, 0..bytes.len());
            let given = good.len() + damaged.len();
            for files in [[&good, &damaged], [&damaged, &good]] {
                bounded(second, seed, &done, given, || {
                    let named = files.map(|bytes| ("", bytes.as_slice()));
                    if let Ok(bytes) = static_link(&named) {
                        assert!(bytes.len() < 8 * given);
                        linked += 1;
                        let _ = Object::parse(bytes);
                    }
                });
            }
        }
        assert!(linked > rounds() / 2, "{second}: {linked}");
    }
}

/// Each section shortened or lengthened by its header alone.
#[test]
fn objects_survive_other_section_sizes() {
    for (name, bytes) in objects() {
        let elf = Elf::read(&bytes);
        for (index, section) in elf.sections.iter().enumerate() {
            let size = section.bytes.len() as u64;
            let sizes = [0, 1, size / 2, size.wrapping_sub(1), size + 1, size + 8];
            for size in sizes.into_iter().chain([u64::MAX, 1 << 31, 1 << 32]) {
                let mut damaged = bytes.clone();
                let at = elf.headers().start + index * 64 + 32;
                damaged[at..at + 8].copy_from_slice(&size.to_le_bytes());
                let done = format!("section {index} made {size} bytes long");
                bounded(&name, 0, &done, damaged.len(), || {
                    let _ = exercise(&damaged, None);
                });
            }
        }
    }
}

#[test]
fn types_survive_damage_and_truncation() {
    for (name, bytes) in objects() {
        let elf = Elf::read(&bytes);
        let (Some(btf), Some(ext)) = (elf.named(&bytes, ".BTF"), elf.named(&bytes, ".BTF.ext"))
        else {
            continue;
        };
        let good = Btf::parse(btf).unwrap();
        for seed in 0..rounds() {
            let mut mutator = Mutator::new(seed);
            let (mut types, mut records) = (btf.to_vec(), ext.to_vec());
            let done = mutator.damage(&mut types, 0..btf.len());
            bounded(&name, seed, &done, types.len(), || exercise_btf(&types));
            let done = mutator.damage(&mut records, 0..ext.len());
            bounded(&name, seed, &done, records.len(), || {
                let _ = BtfExt::parse(&records, &good);
            });
        }
        for cut in (0..btf.len()).step_by(61) {
            let done = format!("cut after {cut} bytes");
            bounded(&name, 0, &done, btf.len(), || exercise_btf(&btf[..cut]));
        }
        for cut in 0..ext.len() {
            assert!(BtfExt::parse(&ext[..cut], &good).is_err(), "{name}: {cut}");
        }
    }
}

/// Types that lead back to themselves, alone and by way of their neighbour.
#[test]
fn circular_types_end() {
    for (name, bytes) in objects() {
        let elf = Elf::read(&bytes);
        let Some(section) = elf.range(&bytes, ".BTF") else {
            continue;
        };
        let references = mutation::references(&bytes[section.clone()]);
        for (id, at) in (1_u32..).zip(&references) {
            let Some(at) = at.map(|at| section.start + at) else {
                continue;
            };
            let mut circular = bytes.clone();
            circular[at..at + 4].copy_from_slice(&id.to_le_bytes());
            let mut both = bytes.clone();
            if let Some(Some(next)) = references.get(id as usize) {
                let next = section.start + next;
                both[at..at + 4].copy_from_slice(&(id + 1).to_le_bytes());
                both[next..next + 4].copy_from_slice(&id.to_le_bytes());
            }
            for (bytes, what) in [(circular, "itself"), (both, "its neighbour")] {
                let done = format!("type {id} leads to {what}");
                bounded(&name, 0, &done, bytes.len(), || {
                    exercise_btf(&bytes[section.clone()]);
                });
                // Every type of an object is like one of these few.
                if id % 4 == 0 {
                    bounded(&name, 0, &done, bytes.len(), || {
                        let _ = exercise(&bytes, None);
                    });
                }
            }
        }
    }
}

/// The kernel's types may be damaged, too: a file given instead of them.
#[test]
fn core_relocations_survive_damaged_targets() {
    for name in ["core.bpf.o", "core_missing.bpf.o", "trace.bpf.o"] {
        let bytes = std::fs::read(testdata(name)).unwrap();
        let elf = Elf::read(&bytes);
        let btf = elf.named(&bytes, ".BTF").unwrap();
        for seed in 0..rounds() * 2 {
            let mut mutator = Mutator::new(seed);
            let mut target = btf.to_vec();
            let done = mutator.damage(&mut target, 0..btf.len());
            bounded(name, seed, &done, bytes.len() + target.len(), || {
                let _ = exercise(&bytes, Some(&target));
            });
        }
    }
}

/// Decoding an instruction and encoding it again changes no bit.
#[test]
fn instructions_round_trip() {
    let mut count = 0;
    for (name, bytes) in objects() {
        let elf = Elf::read(&bytes);
        for section in elf.sections.iter().filter(|s| s.is_code) {
            let code = &bytes[section.bytes.clone()];
            let (words, rest) = code.as_chunks::<8>();
            assert!(rest.is_empty(), "{name}");
            for word in words {
                let insn = Insn::from_ne_bytes(*word);
                assert_eq!(insn.to_ne_bytes(), *word, "{name}: {insn:?}");
                let fields = Insn::new(insn.code, insn.dst(), insn.src(), insn.off, insn.imm);
                assert_eq!(fields, insn, "{name}");
                let mut edited = Insn::default();
                edited.code = insn.code;
                edited.set_src(insn.src());
                edited.set_dst(insn.dst());
                (edited.off, edited.imm) = (insn.off, insn.imm);
                assert_eq!(edited, insn, "{name}");
                count += 1;
            }
        }
    }
    assert!(count > 1000, "{count}");
}
