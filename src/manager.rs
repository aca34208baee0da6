//! The manager: a declaration brought to life and taken down again.
//!
//! Locks, in the order in which they may be taken: `slot`, then `ended`, then
//! `live`. None is held while the kernel attaches or detaches, while a thread is joined or
//! while user code runs; an action in progress is marked in `slot` instead.

use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_manager_bpf::elf::{Bytes, Object};
use ebpf_manager_bpf::{
    Collection, KernelBtf, Link, LinkError, LoadError, LoadOptions, Loss, Map, MapError, MapType,
    Pod, Program, Variable, open_object, pod,
};
use parking_lot::{Mutex, RwLock};

use crate::error::ManagerError;
use crate::probe::{Outcome, Probe, ProbeId};
use crate::state::{Action, State, Step, step};
use crate::stream::{Readers, Sink, Stream, StreamHandle, StreamStats};

/// Where an object comes from.
#[derive(Clone, Debug)]
pub enum ObjectSource {
    /// A file.
    Path(PathBuf),
    /// Bytes: an `include_bytes!`, or a file that was read already.
    Bytes(Bytes),
}

impl ObjectSource {
    /// An object file.
    pub fn path(path: impl Into<PathBuf>) -> ObjectSource {
        ObjectSource::Path(path.into())
    }

    /// An object in memory.
    pub fn bytes(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> ObjectSource {
        ObjectSource::Bytes(Bytes::new(bytes))
    }

    fn parse(&self) -> Result<Object, LoadError> {
        match self {
            ObjectSource::Path(path) => open_object(path),
            ObjectSource::Bytes(bytes) => {
                Object::from_bytes(bytes).map_err(|source| LoadError::Object { path: None, source })
            }
        }
    }
}

/// Time spent in each phase between [`Manager::init`] and the end of
/// [`Manager::start`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Reading the object.
    pub parse: Duration,
    /// Laying out programs and adapting them to this kernel.
    pub relocate: Duration,
    /// Creating and filling maps.
    pub maps: Duration,
    /// The kernel's verifier and compiler.
    pub verify: Duration,
    /// Attaching all probes.
    pub attach: Duration,
}

/// Declares what a manager runs. Made by [`Manager::builder`].
#[derive(Default)]
pub struct Builder {
    probes: Vec<Probe>,
    constants: Vec<(String, Vec<u8>)>,
    streams: Vec<Arc<Stream>>,
    pin_dir: Option<PathBuf>,
    kernel_btf: Option<Arc<KernelBtf>>,
    exclude: Vec<String>,
}

impl Builder {
    /// Adds a program to attach.
    #[must_use]
    pub fn probe(mut self, probe: Probe) -> Builder {
        self.probes.push(probe);
        self
    }

    /// Sets a global variable before loading, usually a `const volatile` one.
    /// The size of `value` must be the variable's; an object without the
    /// variable fails [`Manager::init`].
    #[must_use]
    pub fn constant(mut self, name: impl Into<String>, value: impl Pod) -> Builder {
        self.constants
            .push((name.into(), pod::bytes_of(&value).to_vec()));
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

    /// Keeps a program of the object from being loaded at all.
    #[must_use]
    pub fn exclude(mut self, function: impl Into<String>) -> Builder {
        self.exclude.push(function.into());
        self
    }

    /// Checks the declaration.
    ///
    /// # Errors
    /// [`ManagerError::Duplicate`] if two probes share function and uid, or
    /// two handlers a map.
    pub fn build(self) -> Result<Manager, ManagerError> {
        for (i, probe) in self.probes.iter().enumerate() {
            if self.probes.iter().take(i).any(|p| p.id == probe.id) {
                return Err(ManagerError::Duplicate {
                    what: "probe",
                    name: probe.id.to_string(),
                });
            }
        }
        for (i, stream) in self.streams.iter().enumerate() {
            let earlier = self.streams.iter().take(i);
            if earlier.map(|s| s.map()).any(|map| map == stream.map()) {
                return Err(ManagerError::Duplicate {
                    what: match stream.map_type() {
                        MapType::RINGBUF => "ring buffer",
                        _ => "perf buffer",
                    },
                    name: stream.map().to_owned(),
                });
            }
        }
        Ok(Manager {
            inner: Arc::new(Inner {
                declaration: self,
                slot: Mutex::new(Slot::Declared),
                live: RwLock::new(None),
                ended: Mutex::new(None),
            }),
        })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("probes", &self.probes)
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}

/// Runs the programs of one object.
///
/// Handles are cheap to clone and refer to the same manager. When the last
/// one is dropped the manager stops. A handler must not keep a handle of its
/// own manager, or that never happens; give it what it needs instead.
#[derive(Clone, Debug)]
pub struct Manager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    declaration: Builder,
    slot: Mutex<Slot>,
    /// What lookups see. Replaced, never waited for.
    live: RwLock<Option<Arc<Live>>>,
    /// A reader that a handler of its own stopped: nobody could join it then.
    ended: Mutex<Option<Readers>>,
}

/// The state with what it owns.
#[derive(Debug)]
enum Slot {
    Declared,
    Initialised,
    Running(Running),
    /// An action is under way; what the state owned is with it.
    Busy(State, Action),
}

#[derive(Debug, Default)]
struct Running {
    links: Vec<Link>,
    readers: Option<Readers>,
}

/// Loaded maps and programs, and how far they have come.
#[derive(Debug)]
struct Live {
    collection: Collection,
    parse: Duration,
    progress: Mutex<Progress>,
}

/// A map of a manager, kept open while this is held.
#[derive(Clone, Debug)]
pub struct MapRef {
    live: Arc<Live>,
    index: usize,
}

impl Deref for MapRef {
    type Target = Map;

    fn deref(&self) -> &Map {
        // The collection never changes once it is live, and the index was
        // found in it.
        &self.live.collection.maps()[self.index]
    }
}

/// A program of a manager, kept open while this is held.
#[derive(Clone, Debug)]
pub struct ProgramRef {
    live: Arc<Live>,
    index: usize,
}

impl Deref for ProgramRef {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.live.collection.programs()[self.index]
    }
}

/// A global variable of a manager, kept open while this is held.
#[derive(Clone, Debug)]
pub struct VariableRef {
    live: Arc<Live>,
    name: String,
}

impl VariableRef {
    /// The value as a plain-data type of the variable's size.
    ///
    /// # Errors
    /// [`MapError::Access`], with `EINVAL` if the size differs.
    pub fn get<T: Pod>(&self) -> Result<T, MapError> {
        self.with(|variable| variable.get())
    }

    /// Sets the value from a plain-data type of the variable's size.
    ///
    /// # Errors
    /// [`MapError::Access`], with `EINVAL` if the size differs and `EPERM` for
    /// a constant, which is frozen.
    pub fn set<T: Pod>(&self, value: &T) -> Result<(), MapError> {
        self.with(|variable| variable.set(value))
    }

    fn with<T>(&self, f: impl FnOnce(Variable<'_>) -> Result<T, MapError>) -> Result<T, MapError> {
        match self.live.collection.variable(&self.name) {
            Some(variable) => f(variable),
            // The collection never changes once it is live.
            None => Err(MapError::Spec {
                map: self.name.clone(),
                what: "the variable is gone".to_owned(),
            }),
        }
    }
}

#[derive(Debug, Default)]
struct Progress {
    attach: Duration,
    outcomes: Vec<Outcome>,
}

impl Manager {
    /// Starts a declaration.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where the manager is in its life. While an action is under way, the
    /// state it began in.
    pub fn state(&self) -> State {
        match *self.inner.slot.lock() {
            Slot::Declared => State::Declared,
            Slot::Initialised => State::Initialised,
            Slot::Running(_) => State::Running,
            Slot::Busy(state, _) => state,
        }
    }

    /// Loads the object's maps and programs. On failure nothing is left in
    /// the kernel.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::Busy`], [`ManagerError::Load`],
    /// and [`ManagerError::NoSuch`] if the object lacks something that the
    /// declaration names; [`ManagerError::HandlerPanicked`] if the handler that
    /// stopped the manager panicked afterwards, which is reported once.
    pub fn init(&self, source: &ObjectSource) -> Result<(), ManagerError> {
        let Some((_, next)) = self.inner.begin(Action::Init, &mut Vec::new())? else {
            return Ok(());
        };
        let result = self.inner.load(source);
        let mut slot = self.inner.slot.lock();
        match result {
            Ok(live) => {
                *self.inner.live.write() = Some(Arc::new(live));
                *slot = next;
                Ok(())
            }
            Err(err) => {
                *slot = Slot::Declared;
                Err(err)
            }
        }
    }

    /// Attaches every probe and starts reading. Readers run before the first
    /// program is attached, so no event is missed. On failure everything that
    /// was attached is detached again and the manager stays initialised.
    ///
    /// A handler that stopped its manager occupies the only reader until it
    /// returns, and cannot start it again.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::Busy`],
    /// [`ManagerError::Attach`] for a probe that is not optional,
    /// [`ManagerError::Reader`], [`ManagerError::Thread`].
    pub fn start(&self) -> Result<(), ManagerError> {
        let Some((_, _)) = self.inner.begin(Action::Start, &mut Vec::new())? else {
            return Ok(());
        };
        let mut running = Running::default();
        let result = self.inner.attach(&mut running);
        let result = match result {
            Ok(()) => Ok(running),
            Err(err) => {
                // The first error is the one to report.
                self.inner.take_down(running, &mut Vec::new());
                Err(err)
            }
        };
        let mut slot = self.inner.slot.lock();
        match result {
            Ok(running) => {
                *slot = Slot::Running(running);
                Ok(())
            }
            Err(err) => {
                *slot = Slot::Initialised;
                Err(err)
            }
        }
    }

    /// Detaches every probe, reads what is left in the buffers, ends the
    /// reader and closes maps and programs. The manager can be initialised
    /// again afterwards, also when this returns an error.
    ///
    /// A handler may call this. The reader then ends after the handler
    /// returns, and is joined by the next action of another thread.
    ///
    /// # Errors
    /// [`ManagerError::Busy`]; [`ManagerError::Stop`] with everything that
    /// went wrong.
    pub fn stop(&self) -> Result<(), ManagerError> {
        let mut errors = Vec::new();
        if let Some((before, next)) = self.inner.begin(Action::Stop, &mut errors)? {
            if let Slot::Running(running) = before {
                self.inner.take_down(running, &mut errors);
            }
            // Closing maps and programs may take the kernel a while.
            let live = self.inner.live.write().take();
            drop(live);
            *self.inner.slot.lock() = next;
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(ManagerError::Stop(errors))
        }
    }

    /// The live map of this name; `None` if there is none now. Never waits
    /// for an action in progress.
    ///
    /// The map stays open for as long as the answer is kept, also beyond
    /// [`Manager::stop`].
    pub fn map(&self, name: &str) -> Option<MapRef> {
        let live = self.inner.live()?;
        let index = live
            .collection
            .maps()
            .iter()
            .position(|m| m.name() == name)?;
        Some(MapRef { live, index })
    }

    /// The live program of this C function; `None` if there is none now. Never
    /// waits for an action in progress.
    ///
    /// The program stays open for as long as the answer is kept, also beyond
    /// [`Manager::stop`].
    pub fn program(&self, function: &str) -> Option<ProgramRef> {
        let live = self.inner.live()?;
        let index = live
            .collection
            .programs()
            .iter()
            .position(|p| p.name() == function)?;
        Some(ProgramRef { live, index })
    }

    /// The global variable of this name: a counter in `.bss`, a constant.
    /// `None` if there is none now. Never waits for an action in progress.
    ///
    /// Its map stays open for as long as the answer is kept, also beyond
    /// [`Manager::stop`].
    pub fn variable(&self, name: &str) -> Option<VariableRef> {
        let live = self.inner.live()?;
        live.collection.variable(name)?;
        Some(VariableRef {
            live,
            name: name.to_owned(),
        })
    }

    /// Every declared probe and what became of it.
    pub fn probes(&self) -> Vec<(ProbeId, Outcome)> {
        let live = self.inner.live();
        let progress = live.as_ref().map(|live| live.progress.lock());
        let outcome = |i| progress.as_ref().and_then(|p| p.outcomes.get(i).cloned());
        let probes = self.inner.declaration.probes.iter().enumerate();
        probes
            .map(|(i, p)| (p.id.clone(), outcome(i).unwrap_or(Outcome::Detached)))
            .collect()
    }

    /// Time spent in each phase; zero before [`Manager::init`] and after
    /// [`Manager::stop`].
    pub fn times(&self) -> Times {
        let Some(live) = self.inner.live() else {
            return Times::default();
        };
        let load = live.collection.times();
        Times {
            parse: live.parse,
            relocate: load.relocate,
            maps: load.maps,
            verify: load.verify,
            attach: live.progress.lock().attach,
        }
    }

    /// What this kernel is too old to give: for the object as a whole, its
    /// maps and its programs, each with the name of what lost it.
    pub fn losses(&self) -> Vec<(String, Loss)> {
        let Some(live) = self.inner.live() else {
            return Vec::new();
        };
        let all = &live.collection;
        let object = all.losses().iter().map(|l| (String::from("object"), *l));
        let maps = all
            .maps()
            .iter()
            .flat_map(|m| m.losses().iter().map(|l| (m.name().to_owned(), *l)));
        let programs = all
            .programs()
            .iter()
            .flat_map(|p| p.losses().iter().map(|l| (p.name().to_owned(), *l)));
        object.chain(maps).chain(programs).collect()
    }

    /// The declared stream of this map: to pause, resume, stop, start and
    /// flush it, and for its counters. Never waits for an action in progress.
    pub fn stream(&self, map: &str) -> Option<StreamHandle> {
        let mut streams = self.inner.declaration.streams.iter();
        streams.find(|s| s.map() == map).map(StreamHandle::new)
    }

    /// What has been read from a declared buffer since the manager was built.
    pub fn stream_stats(&self, map: &str) -> Option<StreamStats> {
        Some(self.stream(map)?.stats())
    }

    /// Stops all streams, handing over what is in their buffers. Programs stay
    /// attached; [`StreamHandle::start`] reads on.
    ///
    /// # Errors
    /// [`ManagerError::Thread`].
    pub fn stop_readers(&self) -> Result<(), ManagerError> {
        let streams = &self.inner.declaration.streams;
        let stopped = streams.iter().map(|s| StreamHandle::new(s).stop());
        stopped.fold(Ok(()), Result::and)
    }
}

impl Inner {
    /// Claims the manager for an action. Returns what the state owned and the
    /// state to enter, or `None` if there is nothing to do.
    ///
    /// Before that, it joins a reader that one of its own handlers stopped, so
    /// that there is never a second one. How that one ended goes to `errors`
    /// when stopping, and ends any other action.
    fn begin(
        &self,
        action: Action,
        errors: &mut Vec<ManagerError>,
    ) -> Result<Option<(Slot, Slot)>, ManagerError> {
        let mut slot = self.slot.lock();
        let state = match *slot {
            Slot::Declared => State::Declared,
            Slot::Initialised => State::Initialised,
            Slot::Running(_) => State::Running,
            Slot::Busy(_, running) => return Err(ManagerError::Busy { action, running }),
        };
        let ended = self.ended.lock().take_if(|stream| !stream.is_current());
        if let Some(stream) = ended {
            let before = std::mem::replace(&mut *slot, Slot::Busy(state, action));
            drop(slot);
            let mut failed = stream.join();
            slot = self.slot.lock();
            *slot = before;
            if action == Action::Stop {
                errors.append(&mut failed);
            } else if let Some(first) = failed.into_iter().next() {
                return Err(first);
            }
        }
        match step(state, action) {
            Step::Done => Ok(None),
            Step::Refuse => Err(ManagerError::State { action, state }),
            // The handler that stopped the manager asks, on its reader.
            Step::Go(State::Running) if self.ended.lock().is_some() => Err(ManagerError::Busy {
                action,
                running: Action::Stop,
            }),
            Step::Go(next) => {
                let before = std::mem::replace(&mut *slot, Slot::Busy(state, action));
                let next = match next {
                    State::Declared => Slot::Declared,
                    State::Initialised => Slot::Initialised,
                    State::Running => Slot::Running(Running::default()),
                };
                Ok(Some((before, next)))
            }
        }
    }

    fn live(&self) -> Option<Arc<Live>> {
        self.live.read().clone()
    }

    fn load(&self, source: &ObjectSource) -> Result<Live, ManagerError> {
        let declaration = &self.declaration;
        let start = Instant::now();
        let mut object = source.parse()?;
        let parse = start.elapsed();
        for (name, value) in &declaration.constants {
            if object.variable(name).is_none() {
                return Err(ManagerError::NoSuch {
                    kind: "variable",
                    name: name.clone(),
                });
            }
            object
                .set_variable(name, value)
                .map_err(ManagerError::Constant)?;
        }
        for probe in &declaration.probes {
            if object.program(&probe.id.function).is_none() {
                let name = probe.id.function.clone();
                return Err(ManagerError::NoSuch {
                    kind: "program",
                    name,
                });
            }
        }
        for stream in &declaration.streams {
            let map = object.map(stream.map());
            if map.is_none_or(|map| map.map_type != stream.map_type()) {
                return Err(ManagerError::NoSuch {
                    kind: match stream.map_type() {
                        MapType::RINGBUF => "ring buffer",
                        _ => "perf buffer",
                    },
                    name: stream.map().to_owned(),
                });
            }
        }
        let mut options = LoadOptions::default();
        if let Some(dir) = &declaration.pin_dir {
            options.pin_dir.clone_from(dir);
        }
        options.kernel_btf.clone_from(&declaration.kernel_btf);
        options.exclude.clone_from(&declaration.exclude);
        // A program that is declared is wanted, whatever its section says.
        let probes = declaration.probes.iter().map(|p| p.id.function.clone());
        options.include = probes
            .filter(|f| !declaration.exclude.contains(f))
            .collect();
        let collection = Collection::load(&object, options)?;
        Ok(Live {
            collection,
            parse,
            progress: Mutex::default(),
        })
    }

    /// Starts the reader, then attaches. What succeeds goes into `running`
    /// at once, so that the caller can undo it.
    fn attach(&self, running: &mut Running) -> Result<(), ManagerError> {
        let Some(live) = self.live() else {
            return Ok(());
        };
        if !self.declaration.streams.is_empty() {
            let map = |name: &str| live.collection.map(name).cloned();
            running.readers = Some(Readers::start(&self.declaration.streams, &map)?);
        }
        let start = Instant::now();
        let mut outcomes = Vec::with_capacity(self.declaration.probes.len());
        for probe in &self.declaration.probes {
            outcomes.push(match attach_one(&live, probe)? {
                Ok(link) => {
                    let outcome = Outcome::Attached(link.mechanism());
                    running.links.push(link);
                    outcome
                }
                Err(err) if probe.optional => Outcome::Unavailable(Arc::new(err)),
                Err(err) => {
                    let source = Arc::new(err);
                    return Err(ManagerError::Attach {
                        probe: probe.id.clone(),
                        source,
                    });
                }
            });
        }
        *live.progress.lock() = Progress {
            attach: start.elapsed(),
            outcomes,
        };
        Ok(())
    }

    /// Detaches, then lets the reader finish. What goes wrong is added to
    /// `errors`; all of it is gone nevertheless.
    fn take_down(&self, running: Running, errors: &mut Vec<ManagerError>) {
        if let Some(live) = self.live() {
            live.progress.lock().outcomes.clear();
        }
        for link in running.links.into_iter().rev() {
            if let Err(err) = link.detach() {
                errors.push(ManagerError::Detach(err));
            }
        }
        if let Some(readers) = running.readers {
            errors.extend(readers.signal().err());
            if readers.is_current() {
                *self.ended.lock() = Some(readers);
            } else {
                errors.append(&mut readers.join());
            }
        }
    }
}

/// Attaches one probe: the outer error is the declaration's fault, the inner
/// one the kernel's.
fn attach_one(live: &Live, probe: &Probe) -> Result<Result<Link, LinkError>, ManagerError> {
    let Some(program) = live.collection.program(&probe.id.function) else {
        let name = probe.id.function.clone();
        return Err(ManagerError::NoSuch {
            kind: "program",
            name,
        });
    };
    match probe.hook.attach(program, &live.collection) {
        Ok(Some(link)) => Ok(Ok(link)),
        Ok(None) => Err(ManagerError::NoHook {
            probe: probe.id.clone(),
            section: program.section().to_owned(),
        }),
        Err(err) => Ok(Err(err)),
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody is left to be told of errors.
        if let Slot::Running(running) = std::mem::replace(self.slot.get_mut(), Slot::Declared) {
            self.take_down(running, &mut Vec::new());
        }
        // A handler that drops the last handle is not waited for: its reader
        // has been told to end.
        let ended = self.ended.get_mut().take_if(|stream| !stream.is_current());
        let _ = ended.map(Readers::join);
    }
}
