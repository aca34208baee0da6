//! A manager is driven in any order, and a model of a hundred lines says what
//! every step has to do: which state it leads to, what it refuses, which
//! programs run then, where routes lead, which maps and pins there are.
//!
//! `EBPF_MANAGER_TEST_SEED` repeats a walk, `EBPF_MANAGER_TEST_STEPS` says how
//! long it is (2000, or as many as there is time for,
//! `EBPF_MANAGER_TEST_SECONDS`).
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, fs};

use common::cycle::{check_runs, cycle_builder, cycle_object, says};
use common::{Feature, LeakCheck, RING_BUFFER, Random, TempDir, require, say};
use ebpf_manager::{
    Cleanup, Hook, Manager, ManagerError, MapOptions, MapRoute, Outcome, Probe, ProbeId,
    ProgramClone, Selector, Sink, State, Stream, TailCall,
};

/// Attaching to tracepoints, pins and a ring buffer.
const MODEL: Feature = RING_BUFFER.mounted("tracefs");

// --------------------------------------------------------------------- model

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Disabled,
    Detached,
    Attached,
    Paused,
}

/// What a manager is to the model.
#[derive(Clone)]
struct Model {
    state: State,
    probes: Vec<(ProbeId, Status)>,
    /// Where those of `on_exec` are put: the kernel takes a program once at
    /// each place.
    places: Vec<(ProbeId, usize)>,
    /// Beside the object's.
    maps: BTreeSet<String>,
    /// What outlived a stop, the object's maps as "".
    kept: BTreeSet<String>,
    /// The settings are pinned, and by this run.
    pinned: Option<bool>,
    /// What `jump` and `look` say.
    jump: Jump,
    look: u32,
}

/// Where slot 1 of `jumps` leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jump {
    Nowhere,
    Landing,
    Look,
}

/// A step is refused, for this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum No {
    State,
    NotThere,
    InUse,
    Selection,
}

type Answer = Result<(), No>;

impl Model {
    fn new() -> Model {
        let mut model = Model {
            state: State::Declared,
            probes: Vec::new(),
            places: Vec::new(),
            maps: BTreeSet::new(),
            kept: BTreeSet::new(),
            pinned: None,
            jump: Jump::Nowhere,
            look: 0,
        };
        model.declare();
        model
    }

    fn declare(&mut self) {
        let declared = [("on_enter", ""), ("on_exit", ""), ("on_exec", "")];
        let probe = |(function, uid)| (ProbeId::new(function, uid), Status::Detached);
        self.probes = declared.map(probe).into();
        self.places = vec![(ProbeId::new("on_exec", ""), 0)];
    }

    fn is_alive(&self) -> bool {
        !matches!(self.state, State::Declared | State::Loaded)
    }

    fn alive(&self) -> Answer {
        if self.is_alive() {
            Ok(())
        } else {
            Err(No::State)
        }
    }

    fn find(&mut self, id: &ProbeId) -> Result<&mut Status, No> {
        let mut probes = self.probes.iter_mut();
        let found = probes.find(|(known, _)| known == id);
        found.map(|(_, status)| status).ok_or(No::NotThere)
    }

    /// What becomes of a probe that is switched on now.
    fn switched_on(&self) -> Status {
        match self.state {
            State::Running => Status::Attached,
            State::Paused => Status::Paused,
            _ => Status::Detached,
        }
    }

    fn turn(&mut self, from: Status, to: Status) {
        for (_, status) in &mut self.probes {
            if *status == from {
                *status = to;
            }
        }
    }

    fn add(&mut self, id: &ProbeId) -> Answer {
        self.alive()?;
        if self.find(id).is_ok() {
            return Err(No::InUse);
        }
        let status = self.switched_on();
        self.probes.push((id.clone(), status));
        Ok(())
    }

    /// One step; on a refusal nothing changes.
    fn step(&mut self, step: &Do) -> Answer {
        match step {
            Do::Load => match self.state {
                State::Declared => self.state = State::Loaded,
                _ => return Err(No::State),
            },
            Do::Init => {
                if self.is_alive() {
                    return Err(No::State);
                }
                self.state = State::Initialised;
                self.declare();
                if !self.kept.remove("") {
                    (self.jump, self.look) = (Jump::Nowhere, 0);
                }
                self.pinned = Some(self.pinned.is_none());
            }
            Do::Start => match self.state {
                State::Initialised => {
                    self.state = State::Running;
                    self.turn(Status::Detached, Status::Attached);
                    self.jump = Jump::Landing;
                }
                State::Running => {}
                _ => return Err(No::State),
            },
            Do::Pause => match self.state {
                State::Running => {
                    self.state = State::Paused;
                    self.turn(Status::Attached, Status::Paused);
                }
                State::Paused => {}
                _ => return Err(No::State),
            },
            Do::Resume => match self.state {
                State::Paused => {
                    self.state = State::Running;
                    self.turn(Status::Paused, Status::Attached);
                }
                State::Running => {}
                _ => return Err(No::State),
            },
            Do::Stop(cleanup, _) => self.stop(*cleanup),
            Do::OfProbe(what, id) => {
                if self.state != State::Running {
                    return Err(No::State);
                }
                let status = self.find(id)?;
                match (what, *status) {
                    (OfProbe::Pause, Status::Attached) => *status = Status::Paused,
                    (OfProbe::Resume, Status::Paused) | (OfProbe::Attach, Status::Detached) => {
                        *status = Status::Attached;
                    }
                    (OfProbe::Attach, Status::Disabled) => return Err(No::Selection),
                    (OfProbe::Detach, Status::Attached | Status::Paused) => {
                        *status = Status::Detached;
                    }
                    _ => {}
                }
            }
            Do::AddHook(id, place) => {
                self.add(id)?;
                self.places.push((id.clone(), *place));
            }
            Do::CloneProgram(id) => self.add(id)?,
            Do::DetachHook(id) => {
                self.alive()?;
                self.find(id)?;
                self.probes.retain(|(known, _)| known != id);
                self.places.retain(|(known, _)| known != id);
            }
            Do::Rename(id, uid) => {
                self.alive()?;
                self.find(id)?;
                let new = ProbeId::new(id.function.clone(), *uid);
                if self.find(&new).is_ok() {
                    return Err(No::InUse);
                }
                let names = self.probes.iter_mut().map(|(known, _)| known);
                let names = names.chain(self.places.iter_mut().map(|(known, _)| known));
                names
                    .filter(|known| *known == id)
                    .for_each(|known| known.clone_from(&new));
            }
            Do::Activate(ids) => {
                self.alive()?;
                for id in ids {
                    self.find(id)?;
                }
                let on = self.switched_on();
                for (id, status) in &mut self.probes {
                    let running = matches!(status, Status::Attached | Status::Paused);
                    match ids.contains(id) {
                        true if !running => *status = on,
                        true => {}
                        false => *status = Status::Disabled,
                    }
                }
            }
            Do::CloneMap(name) | Do::CloneBuffer(name) => {
                // The map to be cloned is looked for first.
                if !self.is_alive() && self.state != State::Loaded {
                    return Err(No::NotThere);
                }
                self.alive()?;
                if !self.maps.insert(name.clone()) {
                    return Err(No::InUse);
                }
            }
            Do::RouteTo(name, number) => {
                self.alive()?;
                if !self.maps.contains(name) {
                    return Err(No::NotThere);
                }
                self.look = number + 1;
            }
            Do::Route(jump) => {
                self.alive()?;
                self.jump = *jump;
            }
        }
        Ok(())
    }

    fn stop(&mut self, cleanup: Cleanup) {
        let keeps = !cleanup.contains(Cleanup::INTERNAL_NOT_PINNED);
        if self.state == State::Declared {
            if !keeps {
                self.kept.clear();
            }
            return;
        }
        let alive = self.is_alive();
        self.state = State::Declared;
        if alive {
            self.kept.remove("");
            self.kept.retain(|name| !self.maps.contains(name));
            self.kept.append(&mut self.maps);
            self.kept.insert(String::new());
            if self.pinned == Some(true) && cleanup.contains(Cleanup::INTERNAL_PINNED) {
                self.pinned = None;
            }
        }
        if !keeps {
            self.kept.clear();
        }
        // A pin that stays is somebody else's from now on.
        self.pinned = self.pinned.map(|_| false);
        self.declare();
    }
}

// --------------------------------------------------------------------- steps

#[derive(Clone, Copy, Debug)]
enum OfProbe {
    Pause,
    Resume,
    Attach,
    Detach,
}

#[derive(Clone, Debug)]
enum Do {
    Load,
    Init,
    Start,
    Pause,
    Resume,
    Stop(Cleanup, Option<Duration>),
    OfProbe(OfProbe, ProbeId),
    /// On this of the places for `on_exec`.
    AddHook(ProbeId, usize),
    CloneProgram(ProbeId),
    DetachHook(ProbeId),
    Rename(ProbeId, &'static str),
    Activate(Vec<ProbeId>),
    CloneMap(String),
    CloneBuffer(String),
    /// A map, and the number to be found in it.
    RouteTo(String, u32),
    Route(Jump),
}

const UIDS: [&str; 4] = ["", "one", "two", "three"];

/// Any step; those that get on with life more often than others.
fn any_step(random: &mut Random, model: &Model) -> Do {
    let function = random.pick(&["on_enter", "on_exit", "on_exec"]);
    let uid = random.pick(&UIDS);
    let any = ProbeId::new(*function, *uid);
    // Mostly one that there is.
    let id = match random.below(4) {
        0 => any,
        _ if model.probes.is_empty() => any,
        _ => random.pick(&model.probes).0.clone(),
    };
    let map = format!("extra_{}", random.below(3));
    match random.below(26) {
        0 => Do::Load,
        1..=3 => Do::Init,
        4..=6 => Do::Start,
        7 => Do::Pause,
        8 | 9 => Do::Resume,
        10 => {
            let masks = [
                Cleanup::UNPINNED,
                Cleanup::ALL,
                Cleanup::INTERNAL,
                Cleanup::EXTERNAL,
                Cleanup::INTERNAL_PINNED,
                Cleanup::empty(),
            ];
            let limits = [None, Some(Duration::ZERO), Some(Duration::from_secs(60))];
            Do::Stop(*random.pick(&masks), *random.pick(&limits))
        }
        11 => Do::OfProbe(OfProbe::Pause, id),
        12 => Do::OfProbe(OfProbe::Resume, id),
        13 => Do::OfProbe(OfProbe::Attach, id),
        14 => Do::OfProbe(OfProbe::Detach, id),
        15 | 16 => {
            let mut free: Vec<usize> = (0..PLACES.len()).collect();
            free.retain(|place| model.places.iter().all(|(_, taken)| taken != place));
            let place = if free.is_empty() {
                0
            } else {
                *random.pick(&free)
            };
            // With every place taken, one that cannot be added for its name.
            let uid = if free.is_empty() {
                model.places[0].0.uid.clone()
            } else {
                (*uid).to_owned()
            };
            Do::AddHook(ProbeId::new("on_exec", uid), place)
        }
        17 | 18 => Do::CloneProgram(ProbeId::new("on_exit", *uid)),
        19 => Do::DetachHook(id),
        20 => Do::Rename(id, uid),
        21 => {
            let mut ids: Vec<ProbeId> = model.probes.iter().map(|p| p.0.clone()).collect();
            ids.retain(|_| random.below(3) > 0);
            if random.below(8) == 0 {
                ids.push(id);
            }
            Do::Activate(ids)
        }
        22 => Do::CloneMap(map),
        23 => Do::CloneBuffer(format!("buffer_{}", random.below(2))),
        24 => Do::RouteTo(map, random.below(1000) as u32),
        _ => Do::Route(*random.pick(&[Jump::Landing, Jump::Look])),
    }
}

/// Where `on_exec` is put: what happens all the time.
const PLACES: [(&str, &str); 4] = [
    ("raw_syscalls", "sys_enter"),
    ("raw_syscalls", "sys_exit"),
    ("sched", "sched_switch"),
    ("sched", "sched_waking"),
];

fn hook(place: usize) -> Hook {
    let (category, name) = PLACES[place];
    Hook::tracepoint(category, name)
}

/// The manager and its pin.
struct Subject {
    manager: Manager,
    pin: PathBuf,
}

impl Subject {
    fn new(dir: &TempDir) -> Subject {
        let pin = dir.path().join("settings");
        let manager = cycle_builder()
            .probe(Probe::new("on_enter").optional())
            .probe(Probe::new("on_exit").optional())
            .probe(Probe::new("on_exec").hook(hook(0)).optional())
            .map("settings", MapOptions::new().pin(&pin))
            .tail_call(TailCall::new("jumps", 1, "landing"))
            .ring_buffer("events", |_| ())
            .keep_specs()
            .build()
            .unwrap();
        Subject { manager, pin }
    }

    fn step(&self, step: &Do, model: &Model) -> Result<(), ManagerError> {
        let manager = &self.manager;
        let probe = |id: &ProbeId| Probe::new(id.function.clone()).uid(id.uid.clone());
        match step {
            Do::Load => manager.load(&cycle_object()),
            Do::Init if model.state == State::Loaded => manager.init_loaded(),
            Do::Init => manager.init(&cycle_object()),
            Do::Start => manager.start(),
            Do::Pause => manager.pause(),
            Do::Resume => manager.resume(),
            Do::Stop(cleanup, None) => manager.stop_with(*cleanup),
            Do::Stop(cleanup, Some(limit)) => {
                let closing = manager.stop_within(*limit, *cleanup)?;
                if limit.is_zero() {
                    closing.wait()
                } else {
                    Ok(())
                }
            }
            Do::OfProbe(OfProbe::Pause, id) => manager.pause_probe(id),
            Do::OfProbe(OfProbe::Resume, id) => manager.resume_probe(id),
            Do::OfProbe(OfProbe::Attach, id) => manager.attach_probe(id),
            Do::OfProbe(OfProbe::Detach, id) => manager.detach_probe(id),
            Do::AddHook(id, place) => manager.add_hook(probe(id).hook(hook(*place))),
            Do::CloneProgram(id) => manager.clone_program(probe(id), ProgramClone::new()),
            Do::DetachHook(id) => manager.detach_hook(id),
            Do::Rename(id, uid) => manager.rename_probe(id, *uid),
            Do::Activate(ids) => {
                let all = ids.iter().map(|id| Selector::from(id.clone())).collect();
                manager.update_activated(&[Selector::AllOf(all)])
            }
            Do::CloneMap(name) => manager
                .clone_map("number", name.clone(), &MapOptions::new())
                .map(drop),
            Do::CloneBuffer(name) => {
                let stream = Stream::ring_buffer(name.clone(), Sink::handler(|_| ()));
                let options = MapOptions::new();
                manager.clone_buffer("events", &options, stream).map(drop)
            }
            Do::RouteTo(name, number) => {
                if let Some(map) = manager.map(name).filter(|_| model.is_alive()) {
                    let number = u64::from(*number).to_ne_bytes();
                    map.update(&0_u32.to_ne_bytes(), &number).unwrap();
                }
                manager.update_map_routes(&[MapRoute::new("numbers", &2_u32, name.clone())])
            }
            Do::Route(jump) => {
                let to = if *jump == Jump::Look {
                    "look"
                } else {
                    "landing"
                };
                manager.update_tail_calls(&[TailCall::new("jumps", 1, to)])
            }
        }
    }

    /// Checks everything that the model knows.
    fn check(&self, model: &Model) {
        let manager = &self.manager;
        assert_eq!(manager.state(), model.state);
        let probes = manager.probes().into_iter().map(|(id, outcome)| {
            let status = match outcome {
                Outcome::Disabled => Status::Disabled,
                Outcome::Detached => Status::Detached,
                Outcome::Attached(_) => Status::Attached,
                Outcome::Paused => Status::Paused,
                other => panic!("{id}: {other}"),
            };
            (id, status)
        });
        assert_eq!(probes.collect::<Vec<_>>(), model.probes);
        assert_eq!(self.pin.exists(), model.pinned.is_some(), "the pin");
        let is_extra = |name: &&str| name.starts_with("extra_") || name.starts_with("buffer_");
        let maps = manager.maps();
        let extra: BTreeSet<String> = maps
            .iter()
            .map(ebpf_manager::bpf::Map::name)
            .filter(is_extra)
            .map(str::to_owned)
            .collect();
        assert_eq!(extra, model.maps);
        if !model.is_alive() {
            assert!(maps.is_empty() && manager.programs().is_empty());
            let kept = manager.map("number").is_some();
            assert_eq!(kept, model.kept.contains(""), "maps that are kept");
            for name in &model.kept {
                assert!(
                    name.is_empty() || manager.map(name).is_some(),
                    "{name} is kept"
                );
            }
            return;
        }
        for function in ["on_enter", "on_exit", "on_exec"] {
            let attached = (model.probes.iter())
                .any(|(id, status)| id.function == function && *status == Status::Attached);
            check_runs(manager, function, attached);
        }
        assert_eq!(says(manager, "look"), model.look);
        let jump = match model.jump {
            Jump::Nowhere => 0,
            Jump::Landing => 7,
            Jump::Look => model.look,
        };
        assert_eq!(says(manager, "jump"), jump);
    }
}

/// Why a manager refuses, as the model has it.
fn reason(error: &ManagerError) -> Option<No> {
    match error {
        ManagerError::State { .. } => Some(No::State),
        ManagerError::NotThere { .. } => Some(No::NotThere),
        ManagerError::InUse { .. } => Some(No::InUse),
        ManagerError::Selection { .. } => Some(No::Selection),
        _ => None,
    }
}

#[test]
fn manager_does_what_the_model_says() {
    if !require(&MODEL) {
        return;
    }
    let steps = env::var("EBPF_MANAGER_TEST_STEPS").ok();
    let steps = steps.and_then(|text| text.parse().ok()).unwrap_or(2000);
    let mut random = Random::from_environment();
    let leaks = LeakCheck::begin();
    let dir = TempDir::on_bpffs();
    let subject = Subject::new(&dir);
    let (mut model, mut path) = (Model::new(), Vec::new());
    let begin = Instant::now();
    let walk = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..steps {
            if begin.elapsed() > common::time_for_a_long_test() {
                break;
            }
            let step = any_step(&mut random, &model);
            path.push(format!("{step:?}"));
            let before = model.clone();
            let wanted = model.step(&step);
            if wanted.is_err() {
                model = before.clone();
            }
            match (subject.step(&step, &before), wanted) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err(no)) if reason(&error) == Some(no) => {}
                (got, wanted) => panic!("{got:?}, the model says {wanted:?}"),
            }
            subject.check(&model);
            // Somebody removes the pin.
            if model.state == State::Declared && random.below(2) == 0 {
                let _ = fs::remove_file(&subject.pin);
                model.pinned = None;
            }
        }
    }));
    if let Err(panic) = walk {
        let last = path.len().saturating_sub(40);
        let (seed, count) = (random.seed(), path.len());
        say(&format!(
            "seed {seed}, step {count}: ... {}",
            path[last..].join(", ")
        ));
        resume_unwind(panic);
    }
    say(&format!("{} steps, seed {}", path.len(), random.seed()));
    subject.manager.stop_with(Cleanup::ALL).unwrap();
    drop(subject);
    drop(dir);
    leaks.finish();
}
