//! What a link goes through, whatever its kind.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{
    AttachTo, Collection, Errno, Link, LinkError, LoadOptions, Mechanism, Program, open_object,
};
use ebpf_manager_sys::proc::{self, Rlimit};

use crate::common::{Feature, LeakCheck, PINS, TempDir, Verdict, require, testdata};

/// How long a hook may take to fire.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes the test's turn, then looks whether it can run. In this order,
/// because the test before may have left the process no descriptor.
pub(crate) fn begin(features: &[&Feature]) -> Option<LeakCheck> {
    let mut leaks = LeakCheck::begin();
    if !features.iter().all(|feature| require(feature)) {
        return None;
    }
    // File systems may have been mounted for the test.
    leaks.rebase();
    Some(leaks)
}

/// Loads programs of a fixture and no others, to be attached where `attach_to`
/// says if their sections do not.
pub(crate) fn load(object: &str, programs: &[&str], attach_to: Vec<AttachTo>) -> Collection {
    let mut object = open_object(testdata(object)).unwrap();
    // Where a fixture looks at the process, it has this variable.
    let own = std::process::id().to_ne_bytes();
    let _ = object.set_variable("target_tgid", &own);
    let mut options = LoadOptions::default();
    options.include = programs.iter().map(|&name| name.to_owned()).collect();
    options.attach_to = attach_to;
    Collection::load(&object, options).unwrap_or_else(|e| panic!("{programs:?}: {e}"))
}

pub(crate) fn count(collection: &Collection, program: &str) -> u64 {
    let name = format!("{program}_count");
    collection.variable(&name).unwrap().get().unwrap()
}

/// What differs between kinds of link.
pub(crate) struct Kind<'a> {
    /// Fixture.
    pub(crate) object: &'static str,
    /// Two of its programs for the same hook.
    pub(crate) programs: [&'a str; 2],
    /// Where they go, if their sections do not say.
    pub(crate) attach_to: &'a dyn Fn() -> Vec<AttachTo>,
    pub(crate) mechanism: Mechanism,
    pub(crate) attach: &'a dyn Fn(&Program) -> Result<Link, LinkError>,
    /// Makes the hook run its program.
    pub(crate) poke: &'a dyn Fn(),
    /// What attaching the same program again does.
    pub(crate) again: Second,
    /// What attaching the second program beside the first does.
    pub(crate) second: Second,
    /// Whether the program can be exchanged.
    pub(crate) update: Can,
    /// Whether the kernel tells if it is attached.
    pub(crate) tells: Can,
    pub(crate) pin: Pin,
    /// Whether a program can be attached again after a detach, without being
    /// loaded again.
    pub(crate) anew: Can,
}

/// A kind without surprises, to be completed.
pub(crate) const PLAIN: Kind<'static> = Kind {
    object: "hooks.bpf.o",
    programs: ["", ""],
    attach_to: &Vec::new,
    mechanism: Mechanism::OtherLink,
    attach: &|_| unreachable!("given by each kind"),
    poke: &|| {},
    again: Second::Shares,
    second: Second::Shares,
    update: Can::Yes,
    tells: Can::Yes,
    pin: Pin::Detachable,
    anew: Can::Yes,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Can {
    Yes,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    /// It is refused, and the error names who is there.
    RefusedByName,
    /// It is refused.
    Refused,
    /// It runs as well.
    Shares,
    /// It takes the place of the first.
    Replaces,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pin {
    /// There is nothing to pin.
    Impossible,
    /// A pin holds it, and only the pin's removal ends it.
    Holds,
    /// A pin holds it, and `detach` ends it all the same.
    Detachable,
}

impl Kind<'_> {
    pub(crate) fn live(&self) {
        let [first, second] = self.programs;
        let stages: [&dyn Fn(&Life<'_>); 7] = [
            &|life| life.detached(),
            &|life| life.dropped(),
            &|life| life.updated(),
            &|life| life.attached_twice(first, self.again),
            &|life| life.attached_twice(second, self.second),
            &|life| life.failed(),
            &|life| life.pinned(),
        ];
        let load = || load(self.object, &self.programs, (self.attach_to)());
        let mut collection = load();
        for stage in stages {
            if self.anew == Can::No {
                collection = load();
            }
            let life = Life {
                kind: self,
                collection: &collection,
            };
            life.silent(first);
            stage(&life);
            life.silent(first);
            life.silent(second);
        }
    }
}

struct Life<'a> {
    kind: &'a Kind<'a>,
    collection: &'a Collection,
}

impl Life<'_> {
    fn program(&self, name: &str) -> &Program {
        self.collection.program(name).unwrap()
    }

    fn attach(&self, name: &str) -> Link {
        (self.kind.attach)(self.program(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn fires(&self, name: &str) {
        let before = count(self.collection, name);
        let deadline = Instant::now() + PATIENCE;
        while count(self.collection, name) == before {
            assert!(Instant::now() < deadline, "{name} does not fire");
            (self.kind.poke)();
            std::thread::yield_now();
        }
    }

    fn silent(&self, name: &str) {
        let before = count(self.collection, name);
        for _ in 0..3 {
            (self.kind.poke)();
        }
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(count(self.collection, name), before, "{name} still fires");
    }

    /// The kernel detaches what a pin held some time after its removal.
    fn becomes_silent(&self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = count(self.collection, name);
            (self.kind.poke)();
            std::thread::sleep(Duration::from_millis(10));
            if count(self.collection, name) == before {
                return;
            }
            assert!(Instant::now() < deadline, "{name} fires on");
        }
    }

    fn detached(&self) {
        let [first, _] = self.kind.programs;
        let link = self.attach(first);
        assert_eq!(link.mechanism(), self.kind.mechanism);
        self.fires(first);
        match self.kind.tells {
            Can::Yes => assert!(link.is_attached().unwrap()),
            Can::No => impossible(link.is_attached()),
        }
        let info = link.info().unwrap();
        assert_eq!(info.as_ref().map(|info| info.id), link.id().unwrap());
        // Several links behind one have no id of their own.
        if let Some(info) = info {
            assert!(info.id != 0);
            assert_eq!(info.prog_id, self.program(first).id().unwrap());
        }
        link.detach().unwrap();
    }

    fn dropped(&self) {
        let [first, _] = self.kind.programs;
        let link = self.attach(first);
        self.fires(first);
        drop(link);
    }

    fn updated(&self) {
        let [first, second] = self.kind.programs;
        let mut link = self.attach(first);
        match self.kind.update {
            Can::Yes => {
                link.update(self.program(second)).unwrap();
                self.fires(second);
                self.silent(first);
                if self.kind.tells == Can::Yes {
                    assert!(link.is_attached().unwrap());
                }
                // Back again, if it is what is there.
                let [first, second] = [first, second].map(|name| self.program(name));
                if self.kind.pin == Pin::Impossible {
                    impossible(link.update_from(first, second));
                } else {
                    let err = link.update_from(first, first).unwrap_err();
                    assert!(err.is(Errno::EPERM), "{err}");
                    link.update_from(first, second).unwrap();
                    self.fires(self.kind.programs[0]);
                }
            }
            Can::No => {
                impossible(link.update(self.program(second)));
                self.fires(first);
            }
        }
        link.detach().unwrap();
    }

    fn attached_twice(&self, other: &str, does: Second) {
        let [first, _] = self.kind.programs;
        let link = self.attach(first);
        match (does, (self.kind.attach)(self.program(other))) {
            (Second::RefusedByName, Err(LinkError::AlreadyAttached { by, .. })) => {
                assert_eq!(by.id, self.program(first).id().unwrap());
                let name = !by.name.is_empty() && first.starts_with(&by.name);
                assert!(name, "{by}");
                self.fires(first);
            }
            (Second::Refused, Err(err)) => {
                let refused = matches!(
                    err,
                    LinkError::Attach { .. } | LinkError::AlreadyAttached { .. }
                );
                assert!(refused, "{err}");
                self.fires(first);
            }
            (Second::Shares, Ok(link)) => {
                self.fires(first);
                self.fires(other);
                link.detach().unwrap();
                self.fires(first);
            }
            (Second::Replaces, Ok(link)) => {
                self.fires(other);
                if other != first {
                    self.silent(first);
                }
                link.detach().unwrap();
            }
            (_, Err(err)) => panic!("{other} beside {first}: {err}"),
            (_, Ok(_)) => panic!("{other} beside {first} is attached"),
        }
        link.detach().unwrap();
    }

    fn failed(&self) {
        let [first, _] = self.kind.programs;
        let program = self.program(first);
        let link = failures(&|| (self.kind.attach)(program), &|| self.silent(first));
        self.fires(first);
        link.detach().unwrap();
    }

    fn pinned(&self) {
        let [first, _] = self.kind.programs;
        if PINS.verdict() != Verdict::Run {
            return;
        }
        let dir = TempDir::on_bpffs();
        let pin = dir.path().join("link");
        let link = self.attach(first);
        if self.kind.pin == Pin::Impossible {
            impossible(link.pin(&pin));
            assert!(!pin.exists());
            return;
        }
        let err = link.pin(Path::new("/tmp/not_on_bpffs")).unwrap_err();
        assert!(err.to_string().contains("mount -t bpf"), "{err}");
        link.pin(&pin).unwrap();
        let err = link.pin(&pin).unwrap_err();
        assert!(err.is(Errno::EEXIST), "{err}");
        let id = link.id().unwrap();
        drop(link);
        self.fires(first);
        let link = Link::from_pin(&pin).unwrap();
        assert_eq!(link.id().unwrap(), id);
        // The kernel does not tell these two apart.
        let alike = [Mechanism::TracingLink, Mechanism::RawTracepointOpen];
        let (was, is) = (self.kind.mechanism, link.mechanism());
        assert!(
            was == is || alike.contains(&was) && alike.contains(&is),
            "{was} is {is}"
        );
        drop(link);
        self.fires(first);
        Link::from_pin(&pin).unwrap().detach().unwrap();
        if self.kind.pin == Pin::Detachable {
            self.silent(first);
        } else {
            self.fires(first);
        }
        std::fs::remove_file(&pin).unwrap();
        self.becomes_silent(first);
        let err = Link::from_pin(&pin).unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
        // Another kind of object is not taken for a link.
        self.program(first).pin(&pin).unwrap();
        assert!(Link::from_pin(&pin).is_err());
        std::fs::remove_file(&pin).unwrap();
    }
}

/// The first descriptor it needs cannot be had, then the second, and so on:
/// each failure leaves nothing.
pub(crate) fn failures(attach: &dyn Fn() -> Result<Link, LinkError>, silent: &dyn Fn()) -> Link {
    let before = proc::descriptor_limit().unwrap();
    // The lowest free number: what is to come gets this and the next.
    let free = File::open("/dev/null").unwrap().as_raw_fd();
    for limit in (u64::try_from(free).unwrap()..).take(64) {
        let few = Rlimit {
            soft: limit,
            ..before
        };
        proc::set_descriptor_limit(few).unwrap();
        let result = attach();
        proc::set_descriptor_limit(before).unwrap();
        match result {
            Ok(attached) => return attached,
            Err(err) => {
                assert!(err.to_string().contains("EMFILE"), "{err}");
                silent();
            }
        }
    }
    panic!("it needs less than so many descriptors");
}

/// It says that no kernel can, and how it is attached.
#[track_caller]
pub(crate) fn impossible<T>(result: Result<T, LinkError>) {
    let err = result.map(drop).unwrap_err();
    assert!(matches!(err, LinkError::Impossible { .. }), "{err}");
}
