//! From a declaration and an object to live maps and programs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ebpf_manager_bpf::elf::{Contents, MapSpec, Object, Pinning, ProgramSpec, Slot};
use ebpf_manager_bpf::lock::Mutex;
use ebpf_manager_bpf::{Collection, KernelBtf, LoadError, LoadOptions, MapError, ReaderError};

use crate::bypass::{self, Bypass};
use crate::cleanup::{MapEntry, Origin, Undo};
use crate::error::ManagerError;
use crate::live::{Base, Cell, Live, ProgramRef, is_selected};
use crate::options::{Builder, kind_of};
use crate::outcome::{Outcome, ProbeError};
use crate::probe::{Probe, ProbeId};
use crate::selector::Selector;
use crate::wiring::{Draft, Fresh};

/// Loads an object as declared. `kept` are maps of an earlier run; those that
/// are used again are taken out.
///
/// On failure nothing is left in the kernel.
pub(crate) fn load(
    declaration: &Builder,
    object: Object,
    parse: Duration,
    kept: &mut Vec<MapEntry>,
) -> Result<Live, ManagerError> {
    let selectors = declaration.effective_selectors();
    let mut draft = Draft {
        object,
        options: options(declaration)?,
        existing: Vec::new(),
        programs: Vec::new(),
        excluded: declaration.exclude.clone(),
        numbers: Vec::new(),
        place_numbers: None,
    };
    check_names(declaration, &draft.object)?;
    run_steps(declaration, &mut draft)?;
    let reused = reuse_kept(&mut draft, kept);
    draft.options.patchers = declaration.patchers();
    if let Some(place) = draft.place_numbers {
        place(&mut draft)?;
    }
    let marked = declaration.bypass.and_then(|prepare| prepare(&mut draft));
    choose_programs(declaration, &selectors, &mut draft);
    let mut maps = entries(&draft);

    let kernel_btf = keep_kernel_btf(declaration)?;
    let copied = !draft.options.copies.is_empty();
    let options = std::mem::take(&mut draft.options);
    let mut undo = Undo::default();
    let collection =
        Collection::load(&draft.object, options).map_err(|err| name_pin(err, &draft.existing))?;
    let collection = Arc::new(collection);
    for entry in &mut maps {
        // One that was to be left out is not there.
        entry.map = collection.map(&entry.name).cloned();
        // A pin that the load made goes if the rest fails.
        let made = entry.origin == Origin::Created && entry.map.is_some();
        if let (true, Some(path)) = (made, entry.pin.clone()) {
            undo.push(move || drop(std::fs::remove_file(path)));
        }
    }
    let mut maps: Vec<MapEntry> = maps.into_iter().filter_map(Planned::finish).collect();

    let mut programs = std::mem::take(&mut draft.programs);
    let loaded = programs.len();
    for probe in &declaration.probes {
        let name = probe.program_name();
        if !programs.iter().any(|(known, _)| *known == name) {
            programs.extend(ProgramRef::find(&collection, &name).map(|found| (name, found)));
        }
    }
    let mut program_pins = Vec::new();
    let mut fresh = Fresh {
        maps: &mut maps,
        programs: programs.get(loaded..).unwrap_or_default(),
        program_pins: &mut program_pins,
        undo: &mut undo,
    };
    for step in &declaration.after {
        step(&mut fresh)?;
    }

    let probe = |probe: &Probe| cell(probe, &selectors, &draft.excluded, &programs, &collection);
    let probes = declaration.probes.iter().map(probe).collect();
    let bypass = marked.and_then(|marked| {
        let map = collection.map(bypass::MAP)?;
        Some(Arc::new(Bypass::new(map, &marked)))
    });
    // One that is somebody else's says whom that bypasses.
    let mut own = maps.iter().filter(|entry| entry.origin == Origin::Created);
    if let Some(bypass) = &bypass
        && own.any(|entry| entry.map.name() == bypass::MAP)
    {
        bypass.clear()?;
    }
    if declaration.keep_specs && copied {
        draft.set_numbers()?;
    }
    let base = Base {
        maps: draft.object.maps().iter().map(without_contents).collect(),
        programs: draft.object.programs().to_vec(),
        object: declaration.keep_specs.then_some(draft.object),
        _kernel_btf: kernel_btf,
        excluded: draft.excluded,
        program_pins,
        bypass,
        statistics: Mutex::new(None),
        parse,
        attach_ns: AtomicU64::new(0),
        defaults: declaration.defaults.clone(),
        collection,
    };
    let live = Live {
        base: Arc::new(base),
        maps,
        probes,
        streams: Vec::new(),
        selectors,
        renamed: Vec::new(),
    };
    // What failed to load may have decided the matter already.
    if let Some((selector, failed)) = live.first_failure(&live.selectors) {
        return Err(selection_error(selector, failed));
    }
    undo.forget();
    let mut index = 0;
    kept.retain(|_| {
        index += 1;
        !reused.contains(&(index - 1))
    });
    Ok(live)
}

/// The error of a selector that does not hold.
pub(crate) fn selection_error(
    selector: Selector,
    mut failed: Vec<(ProbeId, ProbeError)>,
) -> ManagerError {
    match selector {
        Selector::Probe(_) if failed.len() == 1 => {
            let (probe, error) = failed.remove(0);
            ManagerError::of_probe(probe, error)
        }
        selector => ManagerError::Selection {
            selector: selector.to_string(),
            failed,
        },
    }
}

/// The loader's options, as far as they are the declaration's alone.
pub(crate) fn options(declaration: &Builder) -> Result<LoadOptions, ManagerError> {
    let mut options = LoadOptions::default();
    if let Some(dir) = &declaration.pin_dir {
        options.pin_dir.clone_from(dir);
    }
    if let Some(limit) = declaration.log_limit_bytes {
        options.log_limit_bytes = limit;
    }
    options.threads = declaration.threads;
    options.kernel_btf.clone_from(&declaration.kernel_btf);
    for to in &declaration.attach_to {
        options.attach_to.push(to()?);
    }
    for edit in &declaration.load_options {
        edit(&mut options);
    }
    Ok(options)
}

/// The kernel's types, if they are to be kept: the loader finds them by this
/// reference.
fn keep_kernel_btf(declaration: &Builder) -> Result<Option<Arc<KernelBtf>>, ManagerError> {
    if !declaration.keep_kernel_btf || declaration.kernel_btf.is_some() {
        return Ok(None);
    }
    let btf = KernelBtf::vmlinux().map_err(LoadError::from)?;
    Ok(Some(btf))
}

fn no_such(kind: &'static str, name: &str) -> ManagerError {
    let name = name.to_owned();
    ManagerError::NoSuch { kind, name }
}

/// What the declaration names must be in the object.
fn check_names(declaration: &Builder, object: &Object) -> Result<(), ManagerError> {
    for probe in &declaration.probes {
        if object.program(&probe.id.function).is_none() {
            return Err(no_such("program", &probe.id.function));
        }
    }
    for stream in &declaration.streams {
        let Some(map) = object.map(stream.map()) else {
            return Err(no_such(kind_of(stream), stream.map()));
        };
        if map.map_type != stream.map_type() {
            return Err(ManagerError::Reader(ReaderError::WrongMap {
                map: map.name.clone(),
                expected: stream.map_type(),
                found: map.map_type,
            }));
        }
    }
    Ok(())
}

fn run_steps(declaration: &Builder, draft: &mut Draft) -> Result<(), ManagerError> {
    let mut steps: Vec<_> = declaration.before.iter().collect();
    // Stable: within a phase the order of the declaration.
    steps.sort_by_key(|(phase, _)| *phase);
    steps.into_iter().try_for_each(|(_, step)| step(draft))
}

/// Uses maps again that outlived an earlier run, unless something else takes
/// their place; returns which.
fn reuse_kept(draft: &mut Draft, kept: &[MapEntry]) -> Vec<usize> {
    let mut reused = Vec::new();
    for (index, entry) in kept.iter().enumerate() {
        let name = entry.map.name();
        let replaced = draft.existing.iter().any(|e| e.map.name() == name);
        if draft.object.map(name).is_some() && !replaced {
            draft.reuse(entry.clone());
            reused.push(index);
        }
    }
    reused
}

/// Decides which programs are loaded: those the object asks for, unless they
/// belong to probes that no selector names; those of probes that are named;
/// targets of tail calls.
fn choose_programs(declaration: &Builder, selectors: &[Selector], draft: &mut Draft) {
    let (object, options) = (&draft.object, &mut draft.options);
    let routed = |function: &str| {
        let mut slots = object.maps().iter().flat_map(|map| &map.slots);
        declaration.routed.iter().any(|name| name == function)
            || slots.any(|(_, slot)| matches!(slot, Slot::Program(name) if name == function))
    };
    let mut required = Vec::new();
    for selector in selectors {
        selector.for_each_required(&mut |id| required.push(id.clone()));
    }
    let optional = declaration.probes.iter().filter(|probe| probe.optional);
    required.retain(|id| !optional.clone().any(|probe| probe.id == *id));
    let is_pinned = |name: &str| draft.programs.iter().any(|(known, _)| known == name);
    for spec in object.programs() {
        let name = &spec.name;
        let uses = |probe: &&Probe| probe.id.function == *name && !probe.copied;
        let mut activated = declaration.probes.iter().filter(uses).peekable();
        let is_probe = activated.peek().is_some();
        let mut activated = activated.filter(|probe| is_selected(selectors, &probe.id));
        let wanted = activated.next().is_some();
        if draft.excluded.contains(name) || is_pinned(name) {
            options.exclude.push(name.clone());
        } else if wanted || routed(name) {
            options.include.push(name.clone());
            let must = required.iter().any(|id| id.function == *name);
            if wanted && !must && !routed(name) {
                options.optional.push(name.clone());
            }
        } else if is_probe {
            options.exclude.push(name.clone());
        }
    }
    for name in &draft.excluded {
        // A name that the object does not have is the loader's to refuse.
        if object.program(name).is_none() {
            options.exclude.push(name.clone());
        }
    }
    let copy_of = |name: &str| {
        let mut probes = declaration.probes.iter().filter(|probe| probe.copied);
        probes.find(|probe| probe.program_name() == name)
    };
    options.copies.retain(|copy| {
        let selected = copy_of(&copy.name).is_some_and(|p| is_selected(selectors, &p.id));
        selected && !is_pinned(&copy.name) && !draft.excluded.contains(&copy.program)
    });
    for copy in &options.copies {
        if copy_of(&copy.name).is_some_and(|probe| !required.contains(&probe.id)) {
            options.optional.push(copy.name.clone());
        }
    }
}

/// A map before the load.
struct Planned {
    name: String,
    origin: Origin,
    pin: Option<PathBuf>,
    always_cleanup: bool,
    map: Option<ebpf_manager_bpf::Map>,
}

impl Planned {
    fn finish(self) -> Option<MapEntry> {
        let pinned_here = self.origin == Origin::Created && self.pin.is_some();
        Some(MapEntry {
            map: self.map?,
            origin: self.origin,
            pin: self.pin,
            pinned_here,
            always_cleanup: self.always_cleanup,
        })
    }
}

/// Where each of the object's maps is going to come from.
fn entries(draft: &Draft) -> Vec<Planned> {
    let plan = |spec: &MapSpec| {
        let mut existing = draft.existing.iter();
        if let Some(entry) = existing.find(|entry| entry.map.name() == spec.name) {
            return Planned {
                name: spec.name.clone(),
                origin: entry.origin,
                pin: entry.pin.clone(),
                always_cleanup: entry.always_cleanup,
                map: None,
            };
        }
        let by_name = spec.pinning == Pinning::ByName;
        let pin = by_name.then(|| draft.options.pin_dir.join(&spec.name));
        let is_there = pin.as_ref().is_some_and(|path| path.exists());
        Planned {
            name: spec.name.clone(),
            origin: if is_there {
                Origin::Pin
            } else {
                Origin::Created
            },
            pin,
            always_cleanup: false,
            map: None,
        }
    };
    draft.object.maps().iter().map(plan).collect()
}

/// Says where a map that does not fit is pinned.
fn name_pin(mut err: LoadError, existing: &[MapEntry]) -> LoadError {
    if let LoadError::Map(MapError::Mismatch { map, path, .. }) = &mut err {
        let entry = existing.iter().find(|entry| entry.map.name() == map);
        if let Some(entry) = entry.filter(|entry| entry.origin == Origin::Pin) {
            path.clone_from(&entry.pin);
        }
    }
    err
}

fn without_contents(spec: &MapSpec) -> MapSpec {
    MapSpec {
        // Not cloned: it may be large.
        contents: Contents::None,
        slots: Vec::new(),
        inner: spec.inner.as_deref().map(|i| Box::new(without_contents(i))),
        operations: spec.operations.clone(),
        name: spec.name.clone(),
        ..*spec
    }
}

/// A declared probe after the load.
fn cell(
    probe: &Probe,
    selectors: &[Selector],
    excluded: &[String],
    programs: &[(String, ProgramRef)],
    collection: &Collection,
) -> Cell {
    let name = probe.program_name();
    let mut programs = programs.iter();
    let program = programs.find(|(known, _)| *known == name);
    let program = program.map(|(_, program)| program.clone());
    let outcome = if excluded.contains(&probe.id.function) || !is_selected(selectors, &probe.id) {
        Outcome::Disabled
    } else if let Some((_, error)) = collection.failures().iter().find(|(of, _)| *of == name) {
        Outcome::of_error(ProbeError::Load(Arc::clone(error)))
    } else {
        Outcome::Detached
    };
    Cell::new(probe.clone(), program, outcome)
}

/// A program of the object that is loaded later: a clone, or one that nothing
/// asked for at first.
pub(crate) fn spec_of<'b>(base: &'b Base, function: &str) -> Option<&'b ProgramSpec> {
    base.programs.iter().find(|spec| spec.name == function)
}
