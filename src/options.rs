//! The declaration: what a manager runs, and how.
//!
//! What only some managers use is put in as a step (a closure made by the
//! method that asks for it), so that it is not part of a program that does not
//! call that method.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ebpf_manager_bpf::elf::edit::{PatchError, Patcher, ProgramEditor};
use ebpf_manager_bpf::elf::{MapSpec, Object, ProgramSpec};
use ebpf_manager_bpf::{
    AttachTo, Errno, KernelBtf, LoadOptions, Map, MapError, MapType, PerfBufferOptions, Pod,
    Program, ProgramCopy,
};

use crate::bypass::{self, Marked};
use crate::cleanup::{MapEntry, Origin};
use crate::constant::Constant;
use crate::defaults::{Defaults, Settle};
use crate::error::ManagerError;
use crate::live::{Live, ProgramRef};
use crate::manager::Manager;
use crate::probe::{Probe, Retry};
use crate::selector::Selector;
use crate::stream::{Sink, Stream};
use crate::wiring::{Draft, Fresh, MapOptions, MapRoute, Route, TailCall};

type Before = dyn Fn(&mut Draft) -> Result<(), ManagerError> + Send + Sync;
type After = dyn Fn(&mut Fresh<'_>) -> Result<(), ManagerError> + Send + Sync;
type Resolve = dyn Fn(&Live) -> Result<Route, ManagerError> + Send + Sync;
type Attach = dyn Fn() -> Result<AttachTo, ManagerError> + Send + Sync;
type MakePatcher = dyn Fn() -> Patcher + Send + Sync;
type EditOptions = dyn Fn(&mut LoadOptions) + Send + Sync;
pub(crate) type Dump = dyn Fn(&Map, &mut dyn io::Write) -> io::Result<()> + Send + Sync;

/// When a step before the load is done: in this order, and within each in the
/// order of the declaration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Types,
    Exclude,
    Copies,
    Constants,
    Defaults,
    Maps,
    InnerMaps,
    Replacements,
    Pins,
}

/// Declares what a manager runs. Made by [`Manager::builder`].
#[derive(Default)]
pub struct Builder {
    pub(crate) probes: Vec<Probe>,
    pub(crate) selectors: Vec<Selector>,
    pub(crate) streams: Vec<Arc<Stream>>,
    maps: Vec<String>,
    pub(crate) before: Vec<(Phase, Box<Before>)>,
    pub(crate) after: Vec<Box<After>>,
    pub(crate) routes: Vec<Box<Resolve>>,
    /// Functions that routes lead to.
    pub(crate) routed: Vec<String>,
    patches: Vec<Box<MakePatcher>>,
    pub(crate) attach_to: Vec<Box<Attach>>,
    pub(crate) dumps: Vec<(String, Arc<Dump>)>,
    pub(crate) dump_all: Option<Arc<Dump>>,
    pub(crate) bypass: Option<fn(&mut Draft) -> Option<Marked>>,
    pub(crate) pin_dir: Option<PathBuf>,
    pub(crate) kernel_btf: Option<Arc<KernelBtf>>,
    pub(crate) keep_kernel_btf: bool,
    pub(crate) keep_specs: bool,
    pub(crate) exclude: Vec<String>,
    pub(crate) threads: usize,
    pub(crate) log_limit_bytes: Option<usize>,
    pub(crate) defaults: Defaults,
    pub(crate) perf_buffers: Option<(PerfBufferOptions, Settle)>,
    pub(crate) load_options: Vec<Box<EditOptions>>,
    pub(crate) statistics: bool,
}

impl Builder {
    /// Adds a program to attach.
    #[must_use]
    pub fn probe(mut self, probe: Probe) -> Builder {
        if probe.copied {
            let (function, name) = (probe.id.function.clone(), probe.program_name());
            self.push(Phase::Copies, move |draft| {
                draft
                    .options
                    .copies
                    .push(ProgramCopy::new(&function, &name));
                Ok(())
            });
        }
        if let Some(path) = &probe.pin {
            self.pin_program(&probe, path.clone());
        }
        self.probes.push(probe);
        self
    }

    /// Says which probes are activated and what has to be attached. May be
    /// said several times; every selector has to hold. If it is never said, all
    /// probes are activated ([`Manager::update_activated`] without selectors
    /// activates none).
    #[must_use]
    pub fn select(mut self, selector: Selector) -> Builder {
        self.selectors.push(selector);
        self
    }

    /// Sets a global variable before loading, usually a `const volatile` one.
    /// The size of `value` must be the variable's; an object without the
    /// variable fails [`Manager::init`]. [`Builder::edit`] takes the other
    /// kinds of constants.
    #[must_use]
    pub fn constant(self, name: impl Into<String>, value: impl Pod) -> Builder {
        self.edit(Constant::global(name, value))
    }

    /// Puts a constant into programs before they are loaded.
    #[must_use]
    pub fn edit(mut self, constant: Constant) -> Builder {
        self.push(Phase::Constants, move |draft| constant.apply(draft));
        self
    }

    /// Pins a map, fills it, cleans it up: see [`MapOptions`].
    #[must_use]
    pub fn map(mut self, name: impl Into<String>, options: MapOptions) -> Builder {
        let name = name.into();
        self.maps.push(name.clone());
        let (of_pin, path) = (name.clone(), options.pin.clone());
        self.push(Phase::Pins, move |draft| {
            reuse_pin(draft, &of_pin, path.clone())
        });
        self.after.push(Box::new(move |fresh| {
            let mut maps = fresh.maps.iter_mut();
            let Some(entry) = maps.find(|entry| entry.map.name() == name) else {
                return Ok(());
            };
            entry.always_cleanup = options.always_cleanup;
            if entry.origin == Origin::Created {
                options.finish(entry, fresh.undo)?;
            }
            Ok(())
        }));
        self
    }

    /// Changes the specification of a map before it is created: its size, say.
    /// An object without the map fails [`Manager::init`].
    ///
    /// ```
    /// # use ebpf_manager::Manager;
    /// let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    /// let builder = Manager::builder()
    ///     .edit_map("events", move |spec| spec.max_entries = cpus as u32 * 4096);
    /// # let _ = builder;
    /// ```
    #[must_use]
    pub fn edit_map(
        mut self,
        name: impl Into<String>,
        edit: impl Fn(&mut MapSpec) + Send + Sync + 'static,
    ) -> Builder {
        let name = name.into();
        self.push(Phase::Maps, move |draft| {
            edit(find_spec(&mut draft.object, &name)?);
            Ok(())
        });
        self
    }

    /// Makes the specification of the map `inner` the model of the maps in
    /// `outer`, a map of maps. The map `inner` is created as well.
    #[must_use]
    pub fn inner_map(mut self, outer: impl Into<String>, inner: impl Into<String>) -> Builder {
        let (outer, inner) = (outer.into(), inner.into());
        self.push(Phase::InnerMaps, move |draft| {
            let model = find_spec(&mut draft.object, &inner)?.clone();
            find_spec(&mut draft.object, &outer)?.inner = Some(Box::new(model));
            Ok(())
        });
        self
    }

    /// Uses a live map, of another manager say, instead of creating the one of
    /// this name. It must be what the object declares. An object without the
    /// map fails [`Manager::init`].
    #[must_use]
    pub fn replace_map(self, name: impl Into<String>, map: &Map) -> Builder {
        self.replacement(name.into(), map.clone(), true)
    }

    /// As [`Builder::replace_map`], for a map that the object may not have.
    #[must_use]
    pub fn replace_map_if_present(self, name: impl Into<String>, map: &Map) -> Builder {
        self.replacement(name.into(), map.clone(), false)
    }

    fn replacement(mut self, name: String, map: Map, required: bool) -> Builder {
        self.push(Phase::Replacements, move |draft| {
            if draft.object.map(&name).is_none() {
                let (kind, name) = ("map", name.clone());
                return if required {
                    Err(ManagerError::NoSuch { kind, name })
                } else {
                    Ok(())
                };
            }
            draft.reuse(MapEntry::new(map.named(&name)?, Origin::Replacement));
            Ok(())
        });
        self
    }

    /// Looks at the instructions of every program before it is loaded, clones
    /// included, and changes them. Patchers run in the order of the
    /// declaration.
    #[must_use]
    pub fn patch(
        mut self,
        patch: impl Fn(&ProgramSpec, &mut ProgramEditor<'_>) -> Result<(), PatchError>
        + Send
        + Sync
        + 'static,
    ) -> Builder {
        let patch = Arc::new(patch);
        self.patches.push(Box::new(move || {
            let patch = Arc::clone(&patch);
            Patcher::new(move |spec, editor| patch(spec, editor))
        }));
        self
    }

    /// Looks at the object before anything else, and may change everything
    /// about it: types of programs, sizes of maps.
    #[must_use]
    pub fn edit_object(
        mut self,
        edit: impl Fn(&mut Object) -> Result<(), ManagerError> + Send + Sync + 'static,
    ) -> Builder {
        self.push(Phase::Exclude, move |draft| edit(&mut draft.object));
        self
    }

    /// Puts a program into a program array before the first program is
    /// attached.
    #[must_use]
    pub fn tail_call(mut self, route: TailCall) -> Builder {
        self.routed.extend(route.function().map(str::to_owned));
        self.routes.push(Box::new(move |live| route.resolve(live)));
        self
    }

    /// Puts a map into a map of maps before the first program is attached.
    #[must_use]
    pub fn map_route(mut self, route: MapRoute) -> Builder {
        self.routes.push(Box::new(move |live| route.resolve(live)));
        self
    }

    /// Loads a program for another hook than its section says: see
    /// [`AttachTo`], which `to` makes at each load.
    #[must_use]
    pub fn attach_to(
        mut self,
        to: impl Fn() -> Result<AttachTo, ManagerError> + Send + Sync + 'static,
    ) -> Builder {
        self.attach_to.push(Box::new(to));
        self
    }

    /// Reads a ring buffer map: `handler` is called with each record, in
    /// place and in order, on the manager's reader thread (named
    /// `ebpf-reader`) while the manager runs. No record is read before
    /// [`Manager::start`]; those left at [`Manager::stop`] are read before it
    /// returns. See [`Stream`] for all that can be chosen.
    ///
    /// Requires at least Linux 5.8.
    #[must_use]
    pub fn ring_buffer(
        self,
        map: impl Into<String>,
        mut handler: impl FnMut(&[u8]) + Send + 'static,
    ) -> Builder {
        let sink = Sink::handler(move |record| handler(record.data));
        self.stream(Stream::ring_buffer(map, sink))
    }

    /// Reads a buffer as `stream` says, while the manager runs.
    #[must_use]
    pub fn stream(mut self, stream: Stream) -> Builder {
        self.streams.push(Arc::new(stream));
        self
    }

    /// Says how a map is written out by [`Manager::dump`].
    #[must_use]
    pub fn dump(
        mut self,
        map: impl Into<String>,
        dump: impl Fn(&Map, &mut dyn io::Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> Builder {
        self.dumps.push((map.into(), Arc::new(dump)));
        self
    }

    /// Says how maps are written out that have no way of their own.
    #[must_use]
    pub fn dump_all(
        mut self,
        dump: impl Fn(&Map, &mut dyn io::Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> Builder {
        self.dump_all = Some(Arc::new(dump));
        self
    }

    /// Directory for maps that the object pins by name; `/sys/fs/bpf` unless
    /// set.
    #[must_use]
    pub fn pin_dir(mut self, path: impl Into<PathBuf>) -> Builder {
        self.pin_dir = Some(path.into());
        self
    }

    /// Kernel types to use instead of the running kernel's, or a reference to
    /// those, which keeps them for the next load.
    #[must_use]
    pub fn kernel_btf(mut self, btf: Arc<KernelBtf>) -> Builder {
        self.kernel_btf = Some(btf);
        self
    }

    /// Keeps the kernel's types while the manager is initialised, for programs
    /// that are cloned later: nothing is read again then. Costs no memory of
    /// its own where the kernel maps them (Linux 6.16), else several MiB.
    #[must_use]
    pub fn keep_kernel_btf(mut self) -> Builder {
        self.keep_kernel_btf = true;
        self
    }

    /// Keeps the object after the load, instructions included:
    /// [`Manager::clone_program`] needs it, and so does activating a probe
    /// later whose program nothing asked for at first.
    #[must_use]
    pub fn keep_specs(mut self) -> Builder {
        self.keep_specs = true;
        self
    }

    /// Keeps a program of the object from being loaded at all, whatever
    /// selectors say: they go on as if its probes were not there.
    #[must_use]
    pub fn exclude(mut self, function: impl Into<String>) -> Builder {
        self.exclude.push(function.into());
        self
    }

    /// Keeps every program from being loaded that `exclude` says yes to. It is
    /// asked about all of them, before anything else is done with the object.
    #[must_use]
    pub fn exclude_with(
        mut self,
        exclude: impl Fn(&ProgramSpec) -> bool + Send + Sync + 'static,
    ) -> Builder {
        self.push(Phase::Exclude, move |draft| {
            let programs = draft.object.programs().iter();
            let excluded = programs.filter(|p| exclude(p)).map(|p| p.name.clone());
            draft.excluded.extend(excluded);
            Ok(())
        });
        self
    }

    /// Keeps a map from being created. A program that uses it cannot be
    /// loaded, unless the verifier finds that use unreachable. An object
    /// without the map fails [`Manager::init`].
    #[must_use]
    pub fn exclude_map(self, map: impl Into<String>) -> Builder {
        self.edit_map(map, |spec| spec.skip = true)
    }

    /// Most threads that load programs; 1 for one after the other. As many as
    /// there are CPUs unless set.
    ///
    /// Probes are attached one after the other in any case, in the order of
    /// the declaration: that is the order in which programs of one hook run,
    /// and the kernel attaches most kinds one by one anyway.
    ///
    /// 0 is the same as not to set it.
    #[must_use]
    pub fn load_threads(mut self, threads: usize) -> Builder {
        self.threads = threads;
        self
    }

    /// Largest buffer for the verifier's log of a program, in bytes; 64 MiB
    /// unless set.
    #[must_use]
    pub fn log_limit(mut self, bytes: usize) -> Builder {
        self.log_limit_bytes = Some(bytes);
        self
    }

    /// How often, and after which pause, probes that do not say so themselves
    /// are tried again when they cannot be attached. Never unless set.
    #[must_use]
    pub fn retry(mut self, times: u32, delay: Duration) -> Builder {
        self.defaults.retry = Retry { times, delay };
        self
    }

    /// Lets programs that look for it be paused without being detached: those
    /// that use the symbol `bypass_program` in one of their first two
    /// instructions, in an object with a map `program_bypassed`. They get a
    /// look at that map as a prologue, and while they are paused they return
    /// at once what lets packets and calls pass. So do clones, up to 64 at a
    /// time; what is beyond that is detached as others are. Requires at least
    /// Linux 5.2.
    #[must_use]
    pub fn bypass(mut self) -> Builder {
        self.bypass = Some(bypass::prepare);
        self
    }

    /// Measures how often, and for how long, programs run while the manager
    /// does: see [`ProbeRef::run_stats`](crate::ProbeRef::run_stats).
    /// Measuring costs some nanoseconds for each run of any program on the
    /// machine. Requires at least Linux 5.8.
    #[must_use]
    pub fn statistics(mut self) -> Builder {
        self.statistics = true;
        self
    }

    /// Checks the declaration.
    ///
    /// # Errors
    /// [`ManagerError::Duplicate`] if two probes share function and uid or
    /// two handlers a map; [`ManagerError::NotThere`] if a selector names a
    /// probe that is not declared.
    pub fn build(mut self) -> Result<Manager, ManagerError> {
        let duplicate = |what, name| Err(ManagerError::Duplicate { what, name });
        for (i, probe) in self.probes.iter().enumerate() {
            if self.probes.iter().take(i).any(|p| p.id == probe.id) {
                return duplicate("probe", probe.id.to_string());
            }
        }
        for (i, stream) in self.streams.iter().enumerate() {
            let mut earlier = self.streams.iter().take(i);
            if earlier.any(|other| other.map() == stream.map()) {
                return duplicate(kind_of(stream), stream.map().to_owned());
            }
        }
        for (i, map) in self.maps.iter().enumerate() {
            if self.maps.iter().take(i).any(|m| m == map) {
                return duplicate("map", map.clone());
            }
        }
        for stream in self.streams.iter_mut().filter_map(Arc::get_mut) {
            if let Some((options, settle)) = &self.perf_buffers {
                settle(stream, options);
            }
        }
        let mut unknown = None;
        for selector in &self.selectors {
            selector.for_each(&mut |id| {
                if !self.probes.iter().any(|probe| probe.id == *id) {
                    unknown.get_or_insert(id.to_string());
                }
            });
        }
        if let Some(name) = unknown {
            return Err(ManagerError::not_there("probe", name));
        }
        Ok(Manager::new(self))
    }

    /// What changes instructions, for one load.
    pub(crate) fn patchers(&self) -> Vec<Patcher> {
        self.patches.iter().map(|make| make()).collect()
    }

    /// The selectors that hold when none are given.
    pub(crate) fn effective_selectors(&self) -> Vec<Selector> {
        if !self.selectors.is_empty() {
            return self.selectors.clone();
        }
        let ids = self.probes.iter().map(|probe| probe.id.clone());
        ids.map(Selector::Probe).collect()
    }

    pub(crate) fn push(
        &mut self,
        phase: Phase,
        step: impl Fn(&mut Draft) -> Result<(), ManagerError> + Send + Sync + 'static,
    ) {
        self.before.push((phase, Box::new(step)));
    }

    fn pin_program(&mut self, probe: &Probe, path: PathBuf) {
        let (function, name) = (probe.id.function.clone(), probe.program_name());
        let (pin, pinned) = (path.clone(), name.clone());
        self.push(Phase::Pins, move |draft| {
            let Some(spec) = draft.object.program(&function) else {
                return Ok(());
            };
            let program = match Program::from_pin(&pinned, &pin) {
                Ok(program) => program.described_by(spec),
                Err(err) if err.is(Errno::ENOENT) => return Ok(()),
                Err(err) => return Err(err.into()),
            };
            let program = ProgramRef::own(program);
            draft.programs.push((pinned.clone(), program));
            Ok(())
        });
        self.after.push(Box::new(move |fresh| {
            let mut programs = fresh.programs.iter();
            let Some((_, program)) = programs.find(|(found, _)| *found == name) else {
                return Ok(());
            };
            program.pin(&path)?;
            fresh.program_pins.push(path.clone());
            let path = path.clone();
            // What is gone already needs no undoing.
            fresh.undo.push(move || drop(std::fs::remove_file(path)));
            Ok(())
        }));
    }
}

/// What a stream reads.
pub(crate) fn kind_of(stream: &Stream) -> &'static str {
    match stream.map_type() {
        MapType::RINGBUF => "ring buffer",
        _ => "perf buffer",
    }
}

/// Uses a pinned map instead of creating one.
fn reuse_pin(draft: &mut Draft, name: &str, path: Option<PathBuf>) -> Result<(), ManagerError> {
    if draft.object.map(name).is_none() {
        let (kind, name) = ("map", name.to_owned());
        return Err(ManagerError::NoSuch { kind, name });
    }
    let Some(path) = path else { return Ok(()) };
    let mut existing = draft.existing.iter_mut();
    if let Some(entry) = existing.find(|entry| entry.map.name() == name) {
        // A replacement that is declared with a pin.
        entry.pin = Some(path);
        return Ok(());
    }
    match Map::from_pin(name, &path) {
        Ok(map) => {
            let mut entry = MapEntry::new(map, Origin::Pin);
            entry.pin = Some(path);
            draft.reuse(entry);
            Ok(())
        }
        Err(MapError::Pin { source, .. }) if source.is(Errno::ENOENT) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

fn find_spec<'o>(object: &'o mut Object, name: &str) -> Result<&'o mut MapSpec, ManagerError> {
    let mut maps = object.maps_mut().iter_mut();
    maps.find(|map| map.name == name)
        .ok_or_else(|| ManagerError::NoSuch {
            kind: "map",
            name: name.to_owned(),
        })
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("probes", &self.probes)
            .field("selectors", &self.selectors)
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}
