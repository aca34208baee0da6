//! Pausing and resuming: by detaching, and by programs that look whether they
//! are bypassed.

use super::changes::{enter, id};
use super::manage::{assert_runs, builder, initialised, run};
use super::*;
use ebpf_manager::{Cleanup, ProbeId, ProgramClone, Selector};

#[test]
fn pause_and_resume_by_detaching() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder().probe(enter("")));
    assert!(matches!(manager.pause(), Err(ManagerError::State { .. })));
    manager.start().unwrap();
    for _ in 0..2 {
        assert_runs(&manager, true);
        manager.pause().unwrap();
        assert_eq!(manager.state(), State::Paused);
        assert_eq!(
            manager.probe("manage_calls").unwrap().outcome(),
            Outcome::Paused
        );
        assert!(manager.probe("manage_calls").unwrap().is_running());
        assert_runs(&manager, false);
        manager.pause().unwrap();
        manager.resume().unwrap();
        assert_eq!(manager.state(), State::Running);
    }
    manager.pause().unwrap();
    manager.stop().unwrap();
}

#[test]
fn trap_paused_manager_is_not_started() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(builder().probe(enter("")));
    manager.start().unwrap();
    manager.pause().unwrap();
    let err = manager.start().unwrap_err();
    let says = "cannot start a manager that is paused; resume it first";
    assert_eq!(err.to_string(), says);
    assert_eq!(manager.state(), State::Paused);
    manager.resume().unwrap();
    assert_runs(&manager, true);
    manager.stop().unwrap();
}

#[test]
fn trap_every_kind_of_hook_is_paused_or_none() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .probe(enter(""))
            .probe(Probe::new("manage_packets").hook(socket_filter())),
    );
    manager.start().unwrap();
    manager.pause().unwrap();
    assert!(
        manager
            .probes()
            .iter()
            .all(|(_, outcome)| *outcome == Outcome::Paused)
    );
    manager.resume().unwrap();
    assert!(
        manager
            .probes()
            .iter()
            .all(|(_, outcome)| matches!(outcome, Outcome::Attached(_)))
    );
    manager.stop().unwrap();
}

pub(super) fn socket_filter() -> Hook {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    Hook::socket_filter(socket.into())
}

#[test]
fn failed_resume_leaves_all_paused() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let gone = Arc::new(AtomicBool::new(false));
    let is_gone = Arc::clone(&gone);
    let hook = Hook::new("comes and goes", move |program, _| {
        let name = if is_gone.load(Ordering::Relaxed) {
            "no_such_event"
        } else {
            "sys_exit"
        };
        ebpf_manager::bpf::Link::raw_tracepoint(program, name)
    });
    let manager = initialised(builder().probe(enter("")).probe(enter("2").hook(hook)));
    manager.start().unwrap();
    manager.pause().unwrap();
    gone.store(true, Ordering::Relaxed);
    let err = manager.resume().unwrap_err();
    assert!(matches!(err, ManagerError::Attach { .. }), "{err}");
    assert_eq!(manager.state(), State::Paused);
    assert!(
        manager
            .probes()
            .iter()
            .all(|(_, outcome)| *outcome == Outcome::Paused)
    );
    assert_runs(&manager, false);
    gone.store(false, Ordering::Relaxed);
    manager.resume().unwrap();
    assert_runs(&manager, true);
    manager.stop().unwrap();
}

#[test]
fn one_probe_is_paused_alone() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = initialised(
        builder()
            .bypass()
            .probe(enter(""))
            .probe(Probe::new("manage_packets").hook(socket_filter())),
    );
    manager.start().unwrap();
    manager.pause_probe("manage_calls").unwrap();
    assert_runs(&manager, false);
    assert!(matches!(
        manager.probe("manage_packets").unwrap().outcome(),
        Outcome::Attached(_)
    ));
    manager.resume_probe("manage_calls").unwrap();
    assert_runs(&manager, true);
    manager.detach_probe("manage_calls").unwrap();
    assert_eq!(
        manager.probe("manage_calls").unwrap().outcome(),
        Outcome::Detached
    );
    assert_runs(&manager, false);
    manager.attach_probe("manage_calls").unwrap();
    manager.attach_probe("manage_calls").unwrap();
    assert_runs(&manager, true);
    manager.stop().unwrap();
}

/// Bypassed programs stay attached and let everything pass.
#[test]
fn trap_bypass_lets_packets_pass_and_is_of_one_manager() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let declare = || {
        builder()
            .bypass()
            .probe(enter(""))
            .probe(Probe::new("manage_packets").hook(socket_filter()))
            .probe(
                Probe::new("manage_frames")
                    .optional()
                    .hook(Hook::xdp("no_such_if")),
            )
    };
    let (manager, other) = (initialised(declare()), initialised(declare()));
    manager.start().unwrap();
    other.start().unwrap();
    let attachments = || manager.probe("manage_calls").unwrap().outcome();
    assert!(matches!(attachments(), Outcome::Attached(_)));
    assert_eq!(run(&manager, "manage_packets"), 5);
    manager.pause().unwrap();
    // A socket filter that returns 0 drops the packet.
    assert_eq!(run(&manager, "manage_packets"), u32::MAX);
    assert_runs(&manager, false);
    // The other one's programs go on.
    assert_eq!(run(&other, "manage_packets"), 5);
    assert_runs(&other, true);
    manager.resume().unwrap();
    assert_eq!(run(&manager, "manage_packets"), 5);
    assert_runs(&manager, true);
    other.stop().unwrap();
    manager.stop().unwrap();
}

/// Whether a probe is paused and attached all the same: bypassed.
fn is_bypassed(manager: &Manager, probe: impl Into<ProbeId>, program: &str) -> bool {
    let probe = manager.probe(probe).unwrap();
    assert_eq!(probe.program_name(), program);
    // A program that is bypassed says at once that the packet may pass.
    probe.outcome() == Outcome::Paused && run(manager, program) == u32::MAX
}

#[test]
fn clones_are_bypassed_like_their_originals() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let packets = |uid: &str| {
        let probe = Probe::new("manage_packets").uid(uid);
        probe.hook(socket_filter())
    };
    let named = |uid: &str| ProbeId::new("manage_packets", uid);
    let manager = initialised(builder().bypass().keep_specs().probe(packets("")));
    manager.start().unwrap();
    let clone = |uid: &str| {
        let clone = ProgramClone::new().constant("answer", 3_u32);
        manager.clone_program(packets(uid), clone).unwrap();
    };
    clone("a");
    clone("b");
    assert_eq!(run(&manager, "manage_packets_a"), 5);
    // One alone.
    manager.pause_probe(named("a")).unwrap();
    assert!(is_bypassed(&manager, named("a"), "manage_packets_a"));
    assert_eq!(run(&manager, "manage_packets_b"), 5);
    assert_eq!(run(&manager, "manage_packets"), 5);
    manager.resume_probe(named("a")).unwrap();
    assert_eq!(run(&manager, "manage_packets_a"), 5);
    // All of them.
    manager.pause().unwrap();
    assert!(is_bypassed(&manager, named("a"), "manage_packets_a"));
    assert!(is_bypassed(&manager, named("b"), "manage_packets_b"));
    assert!(is_bypassed(&manager, "manage_packets", "manage_packets"));
    // By its program, whatever it is called.
    manager.rename_probe(named("b"), "c").unwrap();
    manager.resume().unwrap();
    assert_eq!(run(&manager, "manage_packets_b"), 5);
    manager.pause_probe(named("c")).unwrap();
    assert!(is_bypassed(&manager, named("c"), "manage_packets_b"));
    // The next one of that number is not paused by what this one left.
    manager.detach_hook(named("c")).unwrap();
    for _ in 0..3 {
        clone("d");
        assert_eq!(run(&manager, "manage_packets_d"), 5);
        manager.pause_probe(named("d")).unwrap();
        assert!(is_bypassed(&manager, named("d"), "manage_packets_d"));
        manager.detach_hook(named("d")).unwrap();
    }
    // More than there are numbers for: the last ones are detached instead.
    let uids: Vec<String> = (0..66).map(|n| format!("n{n}")).collect();
    for uid in &uids {
        clone(uid);
    }
    manager.pause().unwrap();
    let programs = uids.iter().map(|uid| format!("manage_packets_{uid}"));
    let passing = programs.filter(|name| run(&manager, name) == u32::MAX);
    assert_eq!(passing.count(), 63, "one is the clone a");
    manager.resume().unwrap();
    for (id, outcome) in manager.probes() {
        assert!(matches!(outcome, Outcome::Attached(_)), "{id}: {outcome}");
    }
    assert_eq!(run(&manager, "manage_packets_n65"), 5);
    manager.stop().unwrap();
}

/// A program that is bypassed for one probe runs for those that come later.
#[test]
fn bypass_ends_when_the_program_is_attached_elsewhere() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let other = || enter("2").hook(Hook::raw_tracepoint("sys_exit"));
    let manager = initialised(
        builder()
            .bypass()
            .probe(enter(""))
            .probe(Probe::new("manage_packets").hook(socket_filter())),
    );
    manager.start().unwrap();
    manager.pause_probe(id("")).unwrap();
    assert_runs(&manager, false);
    assert!(manager.is_attached(id("")).unwrap_or(true), "bypassed");
    manager.add_hook(other()).unwrap();
    assert_runs(&manager, true);
    let first = manager.probe(id("")).unwrap();
    assert_eq!(first.outcome(), Outcome::Paused, "detached, that is");
    manager.detach_hook(id("2")).unwrap();
    assert_runs(&manager, false);
    manager.resume_probe(id("")).unwrap();
    assert_runs(&manager, true);

    // Given up while it was bypassed, and wanted again.
    let packets = Selector::probe("manage_packets");
    let both = [Selector::probe(id("")), packets.clone()];
    manager.pause_probe(id("")).unwrap();
    manager.update_activated(&[packets]).unwrap();
    assert_eq!(first.outcome(), Outcome::Disabled);
    manager.update_activated(&both).unwrap();
    assert_runs(&manager, true);
    manager.pause().unwrap();
    manager.detach_hook(id("")).unwrap();
    manager.resume().unwrap();
    manager.add_hook(other()).unwrap();
    assert_runs(&manager, true);

    // The map outlives a stop, and what it says does not.
    manager.pause().unwrap();
    assert_eq!(run(&manager, "manage_packets"), u32::MAX);
    manager.stop_with(Cleanup::empty()).unwrap();
    manager.init(&super::manage::object()).unwrap();
    manager.start().unwrap();
    assert_eq!(run(&manager, "manage_packets"), 5);
    assert_runs(&manager, true);
    manager.stop_with(Cleanup::ALL).unwrap();
}
