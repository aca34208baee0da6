//! What exists in the kernel for a manager. Lookups see a snapshot, which the
//! action under way replaces as a whole; only what becomes of a probe changes
//! in place.

use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ebpf_manager_bpf::elf::{MapSpec, Object, ProgramSpec};
use ebpf_manager_bpf::lock::Mutex;
use ebpf_manager_bpf::{
    Collection, KernelBtf, Link, LinkError, Map, MapError, Pod, Program, Variable,
};

use crate::bypass::{Bypass, Ticket};
use crate::cleanup::MapEntry;
use crate::defaults::Defaults;
use crate::hook::Site;
use crate::outcome::{Attached, Outcome, ProbeError};
use crate::probe::{Probe, ProbeId};
use crate::selector::{Failures, Selector, Verdict};
use crate::stream::Stream;

/// What was loaded, the same for as long as the manager is initialised.
pub(crate) struct Base {
    pub(crate) collection: Arc<Collection>,
    /// Kept if asked for: to load programs later.
    pub(crate) object: Option<Object>,
    /// Kept if asked for: the next load finds it.
    pub(crate) _kernel_btf: Option<Arc<KernelBtf>>,
    /// Without contents.
    pub(crate) maps: Vec<MapSpec>,
    pub(crate) programs: Vec<ProgramSpec>,
    /// Functions that the user excluded.
    pub(crate) excluded: Vec<String>,
    /// Pins of programs that this manager made.
    pub(crate) program_pins: Vec<PathBuf>,
    pub(crate) bypass: Option<Arc<Bypass>>,
    /// Programs are measured while this is open.
    pub(crate) statistics: Mutex<Option<OwnedFd>>,
    pub(crate) parse: Duration,
    pub(crate) attach_ns: AtomicU64,
    pub(crate) defaults: Defaults,
}

/// A snapshot of everything.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) base: Arc<Base>,
    pub(crate) maps: Vec<MapEntry>,
    pub(crate) probes: Vec<Cell>,
    /// Those added since the load.
    pub(crate) streams: Vec<Arc<Stream>>,
    pub(crate) selectors: Vec<Selector>,
    /// Probes that were renamed since the load: what they were declared as, and
    /// what they are called now.
    pub(crate) renamed: Vec<(ProbeId, ProbeId)>,
}

/// A probe and what became of it. Clones share that.
#[derive(Clone)]
pub(crate) struct Cell {
    pub(crate) probe: Arc<Probe>,
    pub(crate) status: Arc<Mutex<Status>>,
}

/// What became of a probe. Locked for a moment only: whoever attaches or
/// detaches takes the link out first.
pub(crate) struct Status {
    pub(crate) program: Option<ProgramRef>,
    pub(crate) outcome: Outcome,
    pub(crate) last_error: Option<ProbeError>,
    pub(crate) link: Option<Link>,
}

impl Cell {
    pub(crate) fn new(probe: Probe, program: Option<ProgramRef>, outcome: Outcome) -> Cell {
        Cell {
            probe: Arc::new(probe),
            status: Arc::new(Mutex::new(Status {
                program,
                last_error: outcome.error().cloned(),
                outcome,
                link: None,
            })),
        }
    }

    pub(crate) fn id(&self) -> &ProbeId {
        &self.probe.id
    }

    pub(crate) fn outcome(&self) -> Outcome {
        self.status.lock().outcome.clone()
    }

    pub(crate) fn program(&self) -> Option<ProgramRef> {
        self.status.lock().program.clone()
    }

    /// The name of its program, also of one that is not loaded.
    pub(crate) fn program_name(&self) -> String {
        match &self.status.lock().program {
            Some(program) => program.name().to_owned(),
            None => self.probe.program_name(),
        }
    }

    /// Notes a failure.
    pub(crate) fn fail(&self, error: ProbeError) {
        let mut status = self.status.lock();
        status.last_error = Some(error.clone());
        status.outcome = Outcome::of_error(error);
    }

    pub(crate) fn set(&self, outcome: Outcome) {
        self.status.lock().outcome = outcome;
    }

    /// Takes what keeps it attached, for the caller to end.
    pub(crate) fn take_link(&self) -> Option<Link> {
        let mut status = self.status.lock();
        let link = status.link.take();
        if status.outcome.is_running() {
            status.outcome = Outcome::Detached;
        }
        link
    }

    /// Attaches it, with the tries that it is given. What goes wrong is noted
    /// and returned.
    pub(crate) fn attach(&self, live: &Live) -> Result<(), ProbeError> {
        live.end_bypass(self);
        let result = self.try_attach(live);
        match result {
            Ok(link) => {
                let mut status = self.status.lock();
                status.outcome = Outcome::Attached(Attached::of(&link));
                status.link = Some(link);
                Ok(())
            }
            Err(error) => {
                self.fail(error.clone());
                Err(error)
            }
        }
    }

    fn try_attach(&self, live: &Live) -> Result<Link, ProbeError> {
        let Some(program) = self.program() else {
            return Err(ProbeError::NotLoaded);
        };
        let retry = self.probe.retry.unwrap_or(live.base.defaults.retry);
        let mut left = retry.times;
        loop {
            let site = Site {
                id: &self.probe.id,
                program: &program,
                collection: &live.base.collection,
                defaults: &live.base.defaults,
            };
            match self.probe.hook.attach(&site) {
                Ok(Some(link)) => return Ok(link),
                Ok(None) => {
                    let section = program.section().to_owned();
                    return Err(ProbeError::NoHook { section });
                }
                Err(error) if left == 0 => return Err(error.into()),
                Err(_) => left -= 1,
            }
            std::thread::sleep(retry.delay);
        }
    }

    /// Detaches it.
    pub(crate) fn detach(&self) -> Result<(), LinkError> {
        match self.take_link() {
            Some(link) => link.detach(),
            None => Ok(()),
        }
    }
}

impl Live {
    pub(crate) fn map(&self, name: &str) -> Option<&Map> {
        let entry = self.maps.iter().find(|entry| entry.map.name() == name)?;
        Some(&entry.map)
    }

    pub(crate) fn probe(&self, id: &ProbeId) -> Option<&Cell> {
        self.probes.iter().find(|cell| cell.id() == id)
    }

    /// What a declared probe is called now.
    pub(crate) fn current_id<'i>(&'i self, declared: &'i ProbeId) -> &'i ProbeId {
        let mut renamed = self.renamed.iter();
        renamed
            .find(|(old, _)| old == declared)
            .map_or(declared, |(_, new)| new)
    }

    /// The program of this name: of the object, or of a probe that has one of
    /// its own.
    pub(crate) fn program(&self, name: &str) -> Option<ProgramRef> {
        ProgramRef::find(&self.base.collection, name).or_else(|| {
            self.probes
                .iter()
                .filter_map(Cell::program)
                .find(|program| program.name() == name)
        })
    }

    /// How a probe's program is bypassed, if it can be.
    pub(crate) fn bypass_of(&self, cell: &Cell) -> Option<(&Bypass, usize)> {
        let bypass = self.base.bypass.as_ref()?;
        Some((bypass, bypass.number(&cell.program()?)?))
    }

    /// Other probes of the same program.
    pub(crate) fn sharing<'l>(&'l self, cell: &'l Cell) -> impl Iterator<Item = &'l Cell> {
        let program = cell.program();
        self.probes
            .iter()
            .filter(|other| !Arc::ptr_eq(&other.status, &cell.status))
            .filter(move |other| match (&program, other.program()) {
                (Some(program), Some(other)) => program.is(&other),
                _ => false,
            })
    }

    /// Before a probe is attached: a program that is bypassed would not run
    /// there. Probes that are paused in that way are detached instead.
    fn end_bypass(&self, cell: &Cell) {
        let Some((bypass, number)) = self.bypass_of(cell) else {
            return;
        };
        if !bypass.is_set(number) {
            return;
        }
        for other in self.sharing(cell) {
            if other.outcome() == Outcome::Paused {
                // Closed, it is detached in any case.
                let _ = other.detach();
                other.set(Outcome::Paused);
            }
        }
        // The map is an array of ours: this cannot fail but for a closed map.
        let _ = bypass.set(number, false);
    }

    /// When a probe is given up: nothing is left that its program is bypassed
    /// for, unless another probe of it is paused.
    pub(crate) fn release(&self, cell: &Cell) {
        let mut others = self.sharing(cell);
        if let Some((bypass, number)) = self.bypass_of(cell)
            && bypass.is_set(number)
            && !others.any(|other| other.outcome() == Outcome::Paused)
        {
            let _ = bypass.set(number, false);
        }
    }

    /// After a probe was removed: no selector misses it, nor takes another for
    /// it that gets its name.
    pub(crate) fn forget(&mut self, id: &ProbeId) {
        let selectors = std::mem::take(&mut self.selectors).into_iter();
        self.selectors = selectors.filter_map(|s| s.without(id)).collect();
    }

    /// What a probe means for its selectors, as things stand.
    pub(crate) fn verdict(&self, id: &ProbeId) -> Verdict {
        if self.base.excluded.contains(&id.function) {
            return Verdict::Ignored;
        }
        let Some(cell) = self.probe(id) else {
            return Verdict::Fails(ProbeError::Unknown);
        };
        match cell.outcome() {
            Outcome::Attached(_) | Outcome::Paused | Outcome::Detached => Verdict::Holds,
            Outcome::Disabled => Verdict::Fails(ProbeError::Disabled),
            Outcome::Unavailable(_) | Outcome::Failed(_) if cell.probe.optional => Verdict::Ignored,
            Outcome::Unavailable(error) | Outcome::Failed(error) => Verdict::Fails(error),
        }
    }

    /// The first selector that does not hold, with the probes to blame.
    pub(crate) fn first_failure(&self, selectors: &[Selector]) -> Option<(Selector, Failures)> {
        selectors.iter().find_map(|selector| {
            let failures = selector.check(&mut |id| self.verdict(id)).err()?;
            Some((selector.clone(), failures))
        })
    }
}

pub(crate) fn is_selected(selectors: &[Selector], id: &ProbeId) -> bool {
    let mut found = false;
    for selector in selectors {
        selector.for_each(&mut |named| found |= named == id);
    }
    found
}

/// A program of a manager, kept open while this is held.
#[derive(Clone)]
pub struct ProgramRef(Handle);

#[derive(Clone)]
enum Handle {
    Loaded(Arc<Collection>, usize),
    Own(Arc<Program>),
    /// A clone, with its number for being bypassed.
    Clone(Arc<Program>, Arc<Ticket>),
}

impl ProgramRef {
    pub(crate) fn find(collection: &Arc<Collection>, name: &str) -> Option<ProgramRef> {
        let index = collection
            .programs()
            .iter()
            .position(|p| p.name() == name)?;
        Some(ProgramRef(Handle::Loaded(Arc::clone(collection), index)))
    }

    pub(crate) fn own(program: Program) -> ProgramRef {
        ProgramRef(Handle::Own(Arc::new(program)))
    }

    pub(crate) fn cloned(program: Program, ticket: Option<Arc<Ticket>>) -> ProgramRef {
        match ticket {
            Some(ticket) => ProgramRef(Handle::Clone(Arc::new(program), ticket)),
            None => ProgramRef::own(program),
        }
    }

    /// Whether this is the same program.
    pub(crate) fn is(&self, other: &ProgramRef) -> bool {
        let (one, other): (&Program, &Program) = (self, other);
        std::ptr::eq(one, other)
    }

    /// Whether it was loaded with the object.
    pub(crate) fn is_loaded(&self) -> bool {
        matches!(self.0, Handle::Loaded(..))
    }

    pub(crate) fn ticket(&self) -> Option<&Ticket> {
        match &self.0 {
            Handle::Clone(_, ticket) => Some(ticket),
            Handle::Loaded(..) | Handle::Own(_) => None,
        }
    }
}

impl Deref for ProgramRef {
    type Target = Program;

    fn deref(&self) -> &Program {
        match &self.0 {
            // The collection never changes, and the index was found in it.
            Handle::Loaded(collection, index) => &collection.programs()[*index],
            Handle::Own(program) | Handle::Clone(program, _) => program,
        }
    }
}

impl fmt::Debug for ProgramRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProgramRef").field(&self.name()).finish()
    }
}

/// A global variable of a manager, kept open while this is held.
#[derive(Clone)]
pub struct VariableRef {
    collection: Arc<Collection>,
    name: String,
}

impl VariableRef {
    pub(crate) fn find(collection: &Arc<Collection>, name: &str) -> Option<VariableRef> {
        collection.variable(name)?;
        Some(VariableRef {
            collection: Arc::clone(collection),
            name: name.to_owned(),
        })
    }

    /// Name in the object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        let variable = self.collection.variable(&self.name);
        variable.map_or(0, |variable| variable.size())
    }

    /// Copies the value to `to`, which must have the variable's size.
    ///
    /// # Errors
    /// As for [`VariableRef::get`].
    pub fn read(&self, to: &mut [u8]) -> Result<(), MapError> {
        self.with(|variable| variable.read(to))
    }

    /// Sets the value; `from` must have the variable's size.
    ///
    /// # Errors
    /// As for [`VariableRef::set`].
    pub fn write(&self, from: &[u8]) -> Result<(), MapError> {
        self.with(|variable| variable.write(from))
    }

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
        match self.collection.variable(&self.name) {
            Some(variable) => f(variable),
            // The collection never changes once it is live.
            None => Err(MapError::Spec {
                map: self.name.clone(),
                what: "the variable is gone".to_owned(),
            }),
        }
    }
}

impl fmt::Debug for VariableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VariableRef").field(&self.name).finish()
    }
}

impl From<Program> for ProgramRef {
    fn from(program: Program) -> ProgramRef {
        ProgramRef::own(program)
    }
}

impl From<Arc<Program>> for ProgramRef {
    fn from(program: Arc<Program>) -> ProgramRef {
        ProgramRef(Handle::Own(program))
    }
}

impl From<&ProgramRef> for ProgramRef {
    fn from(program: &ProgramRef) -> ProgramRef {
        program.clone()
    }
}
