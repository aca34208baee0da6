//! The manager: a declaration brought to life and taken down again.
//!
//! One action at a time has its turn (`turns`). Locks, in the order in which
//! they may be taken: `loaded`, `kept`, `readers`, `ended`, `late`, `closing`,
//! then `live`, then the status of a probe. Each is held for a moment only: none
//! while the kernel loads, attaches or detaches, while a thread is joined or
//! sleeps, or while user code runs. Lookups take `live` alone.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ebpf_manager_bpf::elf::Object;
use ebpf_manager_bpf::lock::{Mutex, RwLock};

use crate::cleanup::{Cleanup, MapEntry};
use crate::closing::Closing;
use crate::error::ManagerError;
use crate::live::Live;
use crate::load;
use crate::options::Builder;
use crate::source::ObjectSource;
use crate::state::{Action, State};
use crate::stream::Readers;
use crate::turn::{Turn, Turns};

/// Time spent in each phase between [`Manager::init`] and the end of
/// [`Manager::start`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Reading and parsing the object.
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

/// Runs the programs of one object.
///
/// Handles are cheap to clone and refer to the same manager. When the last
/// one is dropped the manager stops. A handler must not keep a handle of its
/// own manager, or that never happens; give it what it needs instead.
///
/// One action happens at a time. Another thread that asks for one waits for
/// its turn, or gets [`ManagerError::Busy`] where that might last for ever: a
/// handler, while the manager waits for handlers. Lookups (maps, programs,
/// probes, states) never wait.
#[derive(Clone)]
pub struct Manager {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) declaration: Builder,
    pub(crate) turns: Turns,
    /// Parsed, and not yet initialised.
    loaded: Mutex<Option<(Object, Duration)>>,
    /// What lookups see. Replaced as a whole, never waited for.
    live: RwLock<Option<Arc<Live>>>,
    /// Maps that a stop left alone.
    pub(crate) kept: Mutex<Vec<MapEntry>>,
    pub(crate) readers: Mutex<Vec<Readers>>,
    /// Readers that a handler of their own stopped: it could not join them.
    pub(crate) ended: Mutex<Vec<Readers>>,
    /// Readers that had not ended when a stop ran out of time. Only a start
    /// and a stop wait for them.
    pub(crate) late: Mutex<Vec<Readers>>,
    /// Detaching that goes on behind a stop that ran out of time.
    pub(crate) closing: Mutex<Vec<Closing>>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("state", &self.state())
            .field("declaration", &self.inner.declaration)
            .finish_non_exhaustive()
    }
}

impl Manager {
    /// Starts a declaration.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(declaration: Builder) -> Manager {
        Manager {
            inner: Arc::new(Inner {
                declaration,
                turns: Turns::new(),
                loaded: Mutex::new(None),
                live: RwLock::new(None),
                kept: Mutex::new(Vec::new()),
                readers: Mutex::new(Vec::new()),
                ended: Mutex::new(Vec::new()),
                late: Mutex::new(Vec::new()),
                closing: Mutex::new(Vec::new()),
            }),
        }
    }

    /// Where the manager is in its life. While an action is under way, the
    /// state it began in.
    pub fn state(&self) -> State {
        self.inner.turns.state()
    }

    /// Parses the object, without doing anything in the kernel: its
    /// specifications can be looked at, and [`Manager::init_loaded`] goes on.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::Busy`],
    /// [`ManagerError::Load`].
    pub fn load(&self, source: &ObjectSource) -> Result<(), ManagerError> {
        let mut turn = self.inner.begin(Action::Load)?;
        if turn.step()? {
            let start = Instant::now();
            let object = source.parse()?;
            *self.inner.loaded.lock() = Some((object, start.elapsed()));
            turn.finish();
        }
        Ok(())
    }

    /// Loads the object's maps and programs. On failure nothing is left in
    /// the kernel.
    ///
    /// Linux before 5.11 counts maps and programs as locked memory: if it
    /// refuses one for that (`EPERM`), `RLIMIT_MEMLOCK` is raised as far as
    /// may be, for the whole process and for good. Nothing else changes it.
    ///
    /// # Errors
    /// [`ManagerError::State`], [`ManagerError::Busy`], [`ManagerError::Load`],
    /// [`ManagerError::NoSuch`] if the object lacks something that the
    /// declaration names, [`ManagerError::Map`] and [`ManagerError::Program`]
    /// for pins, [`ManagerError::Selection`] if no selector can hold any more;
    /// [`ManagerError::HandlerPanicked`] if the handler that stopped the
    /// manager panicked afterwards, which is reported once.
    pub fn init(&self, source: &ObjectSource) -> Result<(), ManagerError> {
        let mut turn = self.inner.begin(Action::Init)?;
        if turn.step()? {
            let start = Instant::now();
            let object = source.parse()?;
            self.inner.init(turn, object, start.elapsed())?;
        }
        Ok(())
    }

    /// As [`Manager::init`], with the object that [`Manager::load`] parsed.
    ///
    /// # Errors
    /// Those of [`Manager::init`]; the manager is still loaded then, but for
    /// [`ManagerError::State`] if it never was.
    pub fn init_loaded(&self) -> Result<(), ManagerError> {
        let mut turn = self.inner.begin(Action::Init)?;
        if turn.step()? {
            let loaded = self.inner.loaded.lock().clone();
            let Some((object, parse)) = loaded else {
                return Err(ManagerError::State {
                    action: Action::Init,
                    state: turn.before,
                });
            };
            self.inner.init(turn, object, parse)?;
        }
        Ok(())
    }

    /// Attaches every activated probe and starts reading. Routes are made and
    /// readers run before the first program is attached, so that no event is
    /// missed. On failure everything that was attached is detached again, the
    /// routes hold what they held, and the manager stays initialised.
    ///
    /// A handler that stopped its manager occupies its reader until it
    /// returns, and cannot start it again.
    ///
    /// # Errors
    /// [`ManagerError::State`] (of a paused manager too: resume it),
    /// [`ManagerError::Busy`], [`ManagerError::Attach`] for a probe that has to
    /// be there, [`ManagerError::NoHook`], [`ManagerError::Selection`],
    /// [`ManagerError::NotThere`] and [`ManagerError::Route`] for routes,
    /// [`ManagerError::Statistics`], [`ManagerError::Reader`],
    /// [`ManagerError::Thread`].
    pub fn start(&self) -> Result<(), ManagerError> {
        let mut turn = self.inner.begin(Action::Start)?;
        if !turn.step()? {
            return Ok(());
        }
        // A handler asks that is still on its reader.
        if !self.inner.ended.lock().is_empty() || !self.inner.late.lock().is_empty() {
            return Err(ManagerError::Busy {
                action: Action::Start,
                running: Action::Stop,
            });
        }
        self.inner.start()?;
        turn.finish();
        Ok(())
    }

    /// Detaches every probe, reads what is left in the buffers, ends the
    /// readers and closes maps and programs. Pins stay. The manager can be
    /// initialised again afterwards, also when this returns an error.
    ///
    /// A handler may call this. The reader then ends after the handler
    /// returns, and is joined by the next action of another thread.
    ///
    /// # Errors
    /// [`ManagerError::Busy`]; [`ManagerError::Stop`] with everything that
    /// went wrong.
    pub fn stop(&self) -> Result<(), ManagerError> {
        self.stop_with(Cleanup::UNPINNED)
    }

    /// As [`Manager::stop`], with a choice of the maps that are cleaned up.
    /// Those that are not, and have no pin, are used again by the next
    /// [`Manager::init`], until a stop cleans them up. With
    /// [`Cleanup::INTERNAL_PINNED`] the pins that this manager made for
    /// programs are removed as well.
    ///
    /// # Errors
    /// As for [`Manager::stop`].
    pub fn stop_with(&self, cleanup: Cleanup) -> Result<(), ManagerError> {
        let mut errors = Vec::new();
        let (turn, stops) = self.inner.begin_stop(None, &mut errors)?;
        if stops {
            self.inner.take_down(cleanup, &mut errors);
            turn.finish();
        } else {
            self.inner.close(cleanup, &mut errors);
        }
        stopped(errors)
    }

    /// As [`Manager::stop_with`], but waits no longer than `limit` for its turn,
    /// for the kernel to detach and for handlers to return: uprobes take it a
    /// tenth of a second each. What is not done by then goes on behind the
    /// caller's back, on threads named `ebpf-closer`, and the manager may be
    /// initialised again meanwhile; its next start waits for handlers. The
    /// answer says what is still closing; the last handle of the manager, when
    /// dropped, waits for it.
    ///
    /// # Errors
    /// As for [`Manager::stop`], for what went wrong so far;
    /// [`ManagerError::Busy`] also if another action is still under way when
    /// time is up: nothing has been stopped then.
    pub fn stop_within(&self, limit: Duration, cleanup: Cleanup) -> Result<Closing, ManagerError> {
        let Some(deadline) = Instant::now().checked_add(limit) else {
            // Longer than the clock goes.
            return self.stop_with(cleanup).map(|()| Closing::done());
        };
        let mut errors = Vec::new();
        let (turn, stops) = self.inner.begin_stop(Some(deadline), &mut errors)?;
        let mut closing = Closing::done();
        if stops {
            closing = self.inner.take_down_within(deadline, cleanup, &mut errors);
            turn.finish();
        } else {
            self.inner.close(cleanup, &mut errors);
        }
        stopped(errors).map(|()| closing)
    }

    /// Time spent in each phase; zero before [`Manager::init`] and after
    /// [`Manager::stop`].
    pub fn times(&self) -> Times {
        let Some(live) = self.inner.live() else {
            return Times::default();
        };
        let load = live.base.collection.times();
        Times {
            parse: live.base.parse,
            relocate: load.relocate,
            maps: load.maps,
            verify: load.verify,
            attach: Duration::from_nanos(live.base.attach_ns.load(Ordering::Relaxed)),
        }
    }
}

fn stopped(errors: Vec<ManagerError>) -> Result<(), ManagerError> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ManagerError::Stop(errors))
    }
}

impl Inner {
    /// Claims the manager for an action.
    ///
    /// Readers that one of their own handlers stopped are joined before that,
    /// so that there is never a second one of the same buffer.
    pub(crate) fn begin(&self, action: Action) -> Result<Turn<'_>, ManagerError> {
        let turn = self.turns.claim(action, None)?;
        let mut errors = Vec::new();
        join_all(&self.ended, &turn, None, &mut errors);
        let patience = (action != Action::Start).then(Instant::now);
        join_all(&self.late, &turn, patience, &mut errors);
        self.closing.lock().retain(|closing| !closing.is_done());
        match errors.into_iter().next() {
            Some(first) => Err(first),
            None => Ok(turn),
        }
    }

    /// As [`Inner::begin`], for a stop, which goes on after errors; false if
    /// nothing runs or is loaded.
    fn begin_stop(
        &self,
        deadline: Option<Instant>,
        errors: &mut Vec<ManagerError>,
    ) -> Result<(Turn<'_>, bool), ManagerError> {
        let mut turn = self.turns.claim(Action::Stop, deadline)?;
        join_all(&self.ended, &turn, deadline, errors);
        join_all(&self.late, &turn, deadline, errors);
        let stops = turn.step()?;
        Ok((turn, stops))
    }

    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        self.live.read().clone()
    }

    /// What lookups see from now on.
    pub(crate) fn publish(&self, live: Live) -> Arc<Live> {
        let live = Arc::new(live);
        // What this replaces is dropped behind the lock.
        let _before = self.live.write().replace(Arc::clone(&live));
        live
    }

    pub(crate) fn take_live(&self) -> Option<Arc<Live>> {
        self.live.write().take()
    }

    /// The parsed object of a manager that is loaded.
    pub(crate) fn loaded_object<T>(&self, look: impl FnOnce(&Object) -> T) -> Option<T> {
        self.loaded.lock().as_ref().map(|(object, _)| look(object))
    }

    pub(crate) fn forget_loaded(&self) {
        let loaded = self.loaded.lock().take();
        drop(loaded);
    }

    fn init(&self, turn: Turn<'_>, object: Object, parse: Duration) -> Result<(), ManagerError> {
        let mut kept = self.kept.lock().clone();
        let live = load::load(&self.declaration, object, parse, &mut kept)?;
        *self.kept.lock() = kept;
        self.publish(live);
        self.forget_loaded();
        turn.finish();
        Ok(())
    }
}

/// Joins readers, but for the caller's own and those that have not ended by
/// the deadline.
fn join_all(
    list: &Mutex<Vec<Readers>>,
    turn: &Turn<'_>,
    deadline: Option<Instant>,
    errors: &mut Vec<ManagerError>,
) {
    let is_time = || deadline.is_none_or(|deadline| Instant::now() < deadline);
    loop {
        let mut all = list.lock();
        let may_be_joined = |r: &Readers| !r.is_current() && (is_time() || r.is_finished());
        let Some(at) = all.iter().position(may_be_joined) else {
            return;
        };
        let readers = all.swap_remove(at);
        drop(all);
        turn.joins_readers();
        if readers.end_by(deadline) {
            errors.append(&mut readers.join());
        } else {
            list.lock().push(readers);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody is left to be told of errors.
        self.take_down(Cleanup::ALL - Cleanup::INTERNAL_PINNED, &mut Vec::new());
        // A handler that drops the last handle is not waited for: its reader
        // has been told to end.
        let ended = self.ended.get_mut().drain(..);
        for readers in ended.chain(self.late.get_mut().drain(..)) {
            if !readers.is_current() {
                let _ = readers.join();
            }
        }
        for closing in self.closing.get_mut().drain(..) {
            let _ = closing.wait();
        }
    }
}
