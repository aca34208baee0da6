//! What a fuzz target does with its input: everything a loader would do with
//! an object short of the kernel.
//!
//! `tests/hostile.rs` runs the same code over the inputs that once broke
//! something, on the stable toolchain.

use ebpf_manager_elf::btf::encode::{BtfBuilder, BtfFeatures};
use ebpf_manager_elf::btf::ext::BtfExt;
use ebpf_manager_elf::btf::{Btf, NameQuery};
use ebpf_manager_elf::core_relo::{self, Resolver};
use ebpf_manager_elf::{Contents, LinkedProgram, Linker, Object, static_link};
use ebpf_manager_sys::abi::insn::Insn;
use peak_alloc::PeakAlloc;

/// Instructions linked for one input. Programs may share subprograms without
/// end, and a loader is free to stop after any of them.
const INSNS: usize = 1 << 20;

/// Bytes of memory per byte of input: the shortest descriptions of things
/// (a symbol, a variable in BTF) have some hundred bytes when decoded.
const MULTIPLE: usize = 48;

/// Types whose alignment is asked for: one answer may take 2^16 steps.
const ALIGNED: usize = 64;

/// Bytes of a section that has none in the file, above which its variables
/// are left alone: to set one is to ask for all of them.
const ZEROES: u32 = 1 << 20;

/// Runs `work` and fails if it took more memory at a time than a small multiple
/// of the input.
pub fn bounded<R>(memory: &PeakAlloc, data: &[u8], work: impl FnOnce() -> R) -> R {
    memory.reset_peak_usage();
    let before = memory.current_usage();
    let result = work();
    let peak = memory.peak_usage().saturating_sub(before);
    let most = data.len() * MULTIPLE + (64 << 10);
    assert!(
        peak <= most,
        "{peak} bytes of memory for {} of input",
        data.len()
    );
    result
}

/// Reads an object; a refusal must have a message.
pub fn parse(data: &[u8]) -> Option<Object> {
    match Object::parse(data.to_vec()) {
        Ok(object) => Some(object),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// Links an object with itself, which only those can be that define nothing
/// strongly, and alone.
pub fn join(data: &[u8]) {
    let inputs = [("one", data), ("two", data)];
    for inputs in [&inputs[..1], &inputs] {
        match static_link(inputs) {
            Ok(linked) => drop(Object::parse(linked)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Loads an object as far as that goes without a kernel; its own types stand
/// for the kernel's.
pub fn object(object: &mut Object) {
    names(object);
    for features in [BtfFeatures::all(), BtfFeatures::empty()]
        .into_iter()
        .chain(
            BtfFeatures::all()
                .iter()
                .map(|one| BtfFeatures::all() - one),
        )
    {
        if let Ok(Some(bytes)) = object.btf_for_kernel(features) {
            // What is written can be read.
            Btf::parse(&bytes).expect("completed BTF is BTF");
        }
    }
    if let Ok(linker) = object.linker() {
        let local = linker.btf().cloned();
        link(&linker, local.as_ref());
    }
    variables(object);
}

/// Looks everything up by its own name.
fn names(object: &Object) {
    for program in object.programs().iter().take(64) {
        assert!(object.program(&program.name).is_some());
    }
    for map in object.maps().iter().take(64) {
        assert!(object.map(&map.name).is_some());
    }
    for variable in object.variables() {
        let map = &object.maps()[variable.map as usize];
        // Those of an arena are in the part of it that has contents.
        let contents = map.contents.as_slice().map_or(0, <[u8]>::len) as u64;
        let room = contents.max(map.value_size.into());
        assert!(u64::from(variable.offset) + u64::from(variable.size) <= room);
    }
    let names: usize = object.externs().iter().map(|e| e.name.len()).sum();
    assert!(names <= object.bytes().len() * 64);
    let _ = (object.license(), object.kernel_version());
}

/// Links every program and relocates it to `target`.
fn link(linker: &Linker<'_>, target: Option<&Btf<'_>>) {
    let object = linker.object();
    let mut query = NameQuery::new();
    if let Some(local) = linker.btf() {
        core_relo::add_roots(&mut query, local, linker.core_relos());
    }
    query.finish();
    let mut resolver = linker.btf().zip(target).map(|(local, target)| {
        let mut hits = Vec::new();
        target.find_all(&query, &mut hits);
        let mut resolver = Resolver::new(local, &query);
        resolver.add_target(target, hits);
        let _ = resolver.needs_modules(linker.core_relos());
        resolver
    });
    let mut linked = LinkedProgram::default();
    let mut total = 0;
    for program in object.programs() {
        if let Err(error) = linker.link(program, &mut linked) {
            assert!(!error.to_string().is_empty());
            continue;
        }
        check(linker, &linked);
        total += linked.insns.len();
        if let Some(resolver) = &mut resolver {
            relocate(resolver, &mut linked);
        }
        if total > INSNS {
            break;
        }
    }
}

/// Every reference of a linked program stays inside it and the object.
fn check(linker: &Linker<'_>, linked: &LinkedProgram) {
    let object = linker.object();
    for fixup in &linked.fixups {
        use ebpf_manager_elf::FixupTarget as Target;
        assert!((fixup.insn as usize) < linked.insns.len());
        match fixup.target {
            Target::Map(map) | Target::MapValue(map) => {
                assert!((map as usize) < object.maps().len());
            }
            Target::Extern(index) => assert!((index as usize) < object.externs().len()),
            Target::JumpTable { first, count } => {
                let table = &linked.jump_targets[first as usize..][..count as usize];
                let (function, _) = linked.locate(fixup.insn).expect("an instruction");
                for &target in table {
                    let found = linked.locate(target).map(|(function, _)| function);
                    assert_eq!(found, Some(function));
                    assert!((target as usize) < linked.insns.len());
                }
            }
        }
        let (function, _) = linked
            .locate(fixup.insn)
            .expect("every instruction is of a function");
        assert!(linker.function_name(linked, function).is_some());
    }
    for (records, size) in [
        (&linked.func_info, linked.func_info_rec_size),
        (&linked.line_info, linked.line_info_rec_size),
    ] {
        assert!(records.is_empty() || records.len().is_multiple_of(size as usize));
        for record in records.chunks_exact((size as usize).max(4)) {
            let insn = u32::from_ne_bytes(record[..4].try_into().expect("four bytes"));
            assert!((insn as usize) < linked.insns.len());
        }
    }
}

fn relocate(resolver: &mut Resolver<'_>, linked: &mut LinkedProgram) {
    for (index, relo) in (0..).zip(&linked.core_relos) {
        match resolver.apply(&mut linked.insns, relo.insn as usize, &relo.record, index) {
            Ok(None) => {}
            Ok(Some(poison)) => assert!(!poison.to_string().is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Sets every variable.
fn variables(object: &mut Object) {
    let maps = object.maps();
    let variables: Vec<_> = object
        .variables()
        .iter()
        .filter(|v| {
            let map = &maps[v.map as usize];
            !matches!(map.contents, Contents::None) || map.value_size <= ZEROES
        })
        .take(256)
        .cloned()
        .collect();
    for variable in variables {
        let value = vec![0xa5; variable.size as usize];
        // Only another variable of that name has another size.
        if object.variable(&variable.name) == Some(&variable) {
            object
                .set_variable(&variable.name, &value)
                .expect("a variable lies in its section");
        }
        let _ = object.set_variable(&variable.name, &value[..value.len() / 2]);
    }
}

/// Reads types, asks everything of each, and copies them.
pub fn btf(data: &[u8]) {
    let btf = match Btf::parse(data) {
        Ok(btf) => btf,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            // A kernel's blob is checked less, and no more may go wrong.
            if let Ok(btf) = Btf::parse_trusted(data, None) {
                types(&btf);
            }
            return;
        }
    };
    types(&btf);
    let index = btf.clone().into_index();
    let again = Btf::with_index(data, None, &index).expect("an index of the same bytes");
    assert_eq!(again.end_id(), btf.end_id());

    let copy = BtfBuilder::copy_of(&btf).to_bytes().expect("a copy fits");
    let copy = Btf::parse(&copy).expect("a copy is BTF").end_id();
    assert!(copy <= btf.end_id());
    // The same bytes once more as a module's types.
    if let Ok(split) = Btf::parse_split(data, &btf) {
        types(&split);
    }
    if let Ok(ext) = BtfExt::parse(data, &btf) {
        records(&ext);
    }
    for features in [BtfFeatures::all(), BtfFeatures::empty()] {
        let mut builder = BtfBuilder::copy_of(&btf);
        builder.fill_ksyms();
        builder.sanitize(features);
        let _ = builder.to_bytes();
    }
}

fn types(btf: &Btf<'_>) {
    let mut names = 0;
    for (id, ty) in btf.types() {
        let parts = ty.members().count()
            + ty.enumerators().count()
            + ty.params().count()
            + ty.sec_vars().count();
        assert!(parts <= btf.raw().len());
        names += btf.name(ty.name_off()).len();
        let _ = (
            ty.int(),
            ty.array(),
            ty.linkage(),
            ty.component_index(),
            btf.size_of(id),
            btf.skip_modifiers_and_typedefs(id),
            btf.skip_modifiers(id),
        );
        if ((id - btf.first_id()) as usize) < ALIGNED {
            let _ = btf.align_of(id);
        }
        assert!(btf.get(id).is_some());
    }
    let _ = names;
}

fn records(ext: &BtfExt<'_>) {
    for table in [ext.func_info(), ext.line_info(), ext.core_relos()] {
        for block in table.blocks() {
            assert_eq!(block.records().count(), block.len());
            assert!(block.records_in(0..u32::MAX).len() <= block.raw().len());
            let _ = block.records_in(1..3);
            let _ = block.func_infos().count() + block.line_infos().count();
        }
    }
}

/// Relocates an object to other types.
///
/// The input is an object, a kernel's types, and the length of the object in
/// the last four bytes.
pub fn core_relo(data: &[u8]) {
    let Some((rest, length)) = data.split_last_chunk::<4>() else {
        return;
    };
    let length = u32::from_le_bytes(*length) as usize;
    let Some((file, kernel)) = rest.split_at_checked(length) else {
        return;
    };
    let (Some(object), Ok(kernel)) = (parse(file), Btf::parse_trusted(kernel, None)) else {
        return;
    };
    let Ok(linker) = object.linker() else {
        return;
    };
    link(&linker, Some(&kernel));
    // Relocations to instructions that nothing links, too.
    let Some(local) = linker.btf() else {
        return;
    };
    let mut query = NameQuery::new();
    core_relo::add_roots(&mut query, local, linker.core_relos());
    query.finish();
    let mut hits = Vec::new();
    kernel.find_all(&query, &mut hits);
    let mut resolver = Resolver::new(local, &query);
    resolver.add_target(&kernel, hits);
    let mut insns = [Insn::default(); 2];
    for (index, relo) in (0..).zip(linker.core_relos()) {
        let _ = core_relo::describe(local, &relo);
        let _ = resolver.apply(&mut insns, index as usize % 2, &relo, index);
    }
}
