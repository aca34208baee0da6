//! Which probes are activated, and what becomes of them.

use ebpf_manager::bpf::elf::ProgramSpec;
use ebpf_manager::{ProbeError, ProbeId, Selector};

use super::manage::{MANAGE, builder, object};
use super::*;

fn outcome(manager: &Manager, id: &str) -> Outcome {
    manager
        .probe(id)
        .unwrap_or_else(|| panic!("no {id}"))
        .outcome()
}

/// Probes that can be attached: `attach_enter`, `attach_exec`; that cannot:
/// `attach_missing`.
fn attach_builder() -> Builder {
    Manager::builder()
        .probe(Probe::new("attach_enter"))
        .probe(Probe::new("attach_exec"))
        .probe(Probe::new("attach_missing"))
}

fn started(builder: Builder) -> Result<Manager, ManagerError> {
    let manager = builder.build().unwrap();
    manager.init(&attach_object())?;
    manager.start()?;
    Ok(manager)
}

#[test]
fn selectors_say_what_must_be_there() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (enter, missing) = (
        || Selector::probe("attach_enter"),
        || Selector::probe("attach_missing"),
    );
    for selector in [
        Selector::one_of([missing(), enter()]),
        Selector::best_effort([missing(), enter()]),
        Selector::all_of([enter(), Selector::one_of([missing(), enter()])]),
    ] {
        let text = selector.to_string();
        let manager =
            started(attach_builder().select(selector)).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert!(matches!(
            outcome(&manager, "attach_enter"),
            Outcome::Attached(_)
        ));
        assert_eq!(outcome(&manager, "attach_exec"), Outcome::Disabled);
        let why = outcome(&manager, "attach_missing");
        assert!(
            matches!(why, Outcome::Unavailable(ProbeError::Attach(_))),
            "{why}"
        );
        let probe = manager.probe("attach_missing").unwrap();
        assert_eq!(probe.last_error().as_ref(), why.error());
        assert!(!probe.is_running() && probe.is_initialised());
        manager.stop().unwrap();
    }
    // One probe alone is its own error, several are listed.
    let err = started(attach_builder().select(missing())).unwrap_err();
    assert!(matches!(err, ManagerError::Attach { .. }), "{err}");
    let err = started(attach_builder().select(Selector::one_of([
        missing(),
        Selector::all_of([enter(), missing()]),
    ])));
    let err = err.unwrap_err().to_string();
    let expected = "one of (attach_missing, all of (attach_enter, attach_missing)) does not hold: \
                    attach_missing: no tracepoint sched/no_such_event in this kernel";
    assert!(err.starts_with(expected), "{err}");
}

#[test]
fn optional_probes_count_neither_way_in_selectors() {
    if !require(&HOOKS) || !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let declared = || {
        Manager::builder()
            .keep_specs()
            .probe(Probe::new("attach_enter"))
            .probe(Probe::new("attach_missing").optional())
            .probe(Probe::new("attach_missing").uid("needed"))
    };
    let (enter, missing) = (
        || Selector::probe("attach_enter"),
        || Selector::probe("attach_missing"),
    );
    for selectors in [
        vec![Selector::all_of([missing(), enter()])],
        vec![missing(), enter()],
        vec![Selector::one_of([missing()]), enter()],
    ] {
        let builder = selectors.into_iter().fold(declared(), Builder::select);
        let manager = started(builder).unwrap();
        assert!(outcome(&manager, "attach_enter").is_running());
        assert!(outcome(&manager, "attach_missing").error().is_some());
        // Later as well.
        manager.update_activated(&[enter()]).unwrap();
        let all = Selector::all_of([enter(), missing()]);
        manager.update_activated(&[all]).unwrap();
        manager.stop().unwrap();
    }
    // What is not optional is still needed.
    let needed = Selector::probe(ProbeId::new("attach_missing", "needed"));
    let err = started(declared().select(Selector::one_of([missing(), needed]))).unwrap_err();
    let ManagerError::Selection { failed, .. } = &err else {
        panic!("{err}")
    };
    assert_eq!(failed.len(), 1, "{err}");
    assert!(err.is(Errno::ENOENT) && err.verifier_log().is_none());

    // What the verifier refuses does not fail the load either.
    let manager = builder()
        .probe(Probe::new("err_manage_refused").optional())
        .probe(Probe::new("manage_packets"))
        .select(Selector::all_of([
            Selector::probe("err_manage_refused"),
            Selector::probe("manage_packets"),
        ]))
        .build()
        .unwrap();
    manager.init(&object()).unwrap();
    let refused = outcome(&manager, "err_manage_refused");
    let log = refused.error().and_then(ProbeError::verifier_log);
    assert!(log.is_some_and(|log| !log.is_empty()), "{refused}");
    manager.stop().unwrap();
}

#[test]
fn selectors_of_unknown_probes_are_refused() {
    let err = attach_builder()
        .select(Selector::probe("nope"))
        .build()
        .unwrap_err();
    assert_eq!(err.to_string(), "there is no probe nope");
    let other = Selector::probe(ProbeId::new("attach_enter", "two"));
    let err = attach_builder().select(other).build().unwrap_err();
    assert_eq!(err.to_string(), "there is no probe attach_enter (two)");
}

#[test]
fn trap_program_that_nothing_selects_is_not_verified() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = builder()
        .probe(Probe::new("err_manage_refused"))
        .probe(Probe::new("manage_packets"))
        .select(Selector::best_effort([Selector::probe("manage_packets")]))
        .build()
        .unwrap();
    manager.init(&object()).unwrap();
    assert!(manager.program("err_manage_refused").is_none());
    let probe = manager.probe("err_manage_refused").unwrap();
    assert_eq!(probe.outcome(), Outcome::Disabled);
    assert!(!probe.is_initialised() && !probe.is_activated());
    manager.stop().unwrap();
}

#[test]
fn what_the_verifier_refuses_is_a_failed_probe() {
    if !require(&MANAGE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (bad, good) = (
        || Selector::probe("err_manage_refused"),
        || Selector::probe("manage_packets"),
    );
    let with = |selector: Selector| {
        let manager = builder()
            .probe(Probe::new("err_manage_refused"))
            .probe(Probe::new("manage_packets"))
            .select(selector)
            .build()
            .unwrap();
        manager.init(&object()).map(|()| manager)
    };
    let manager = with(Selector::one_of([bad(), good()])).unwrap();
    let failed = outcome(&manager, "err_manage_refused");
    let Outcome::Failed(ProbeError::Load(err)) = &failed else {
        panic!("{failed}")
    };
    assert!(err.verifier_log().is_some());
    manager.stop().unwrap();

    // Required: the load fails at once, with the verifier's word.
    for selector in [
        bad(),
        Selector::all_of([good(), bad()]),
        Selector::one_of([bad()]),
    ] {
        let err = with(selector).unwrap_err();
        assert!(matches!(err, ManagerError::Load(_)), "{err}");
    }
    let err = with(Selector::one_of([bad(), Selector::all_of([bad(), good()])])).unwrap_err();
    assert!(matches!(err, ManagerError::Selection { .. }), "{err}");
}

#[test]
fn excluded_functions_are_left_out() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let names = Arc::clone(&asked);
    let manager = started(
        attach_builder()
            .select(Selector::all_of([
                Selector::probe("attach_enter"),
                Selector::probe("attach_missing"),
            ]))
            .exclude_with(move |spec: &ProgramSpec| {
                names.lock().unwrap().push(spec.name.clone());
                spec.section.contains("no_such_event")
            }),
    )
    .unwrap();
    assert_eq!(outcome(&manager, "attach_missing"), Outcome::Disabled);
    assert!(manager.program("attach_missing").is_none());
    let all = manager.program_specs();
    assert_eq!(asked.lock().unwrap().len(), all.len());
    assert!(all.iter().any(|spec| spec.name == "attach_missing"));
    manager.stop().unwrap();
}

#[test]
fn activation_changes_while_running() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let (enter, exec, missing) = (
        || Selector::probe("attach_enter"),
        || Selector::probe("attach_exec"),
        || Selector::probe("attach_missing"),
    );
    let manager = started(attach_builder().keep_specs().select(enter())).unwrap();
    assert!(manager.program("attach_exec").is_none());

    manager.update_activated(&[exec()]).unwrap();
    assert!(matches!(
        outcome(&manager, "attach_exec"),
        Outcome::Attached(_)
    ));
    assert_eq!(outcome(&manager, "attach_enter"), Outcome::Disabled);
    // If it does not hold, nothing has changed.
    let err = manager
        .update_activated(&[Selector::all_of([enter(), missing()])])
        .unwrap_err();
    assert!(matches!(err, ManagerError::Selection { .. }), "{err}");
    assert!(matches!(
        outcome(&manager, "attach_exec"),
        Outcome::Attached(_)
    ));
    assert_eq!(outcome(&manager, "attach_enter"), Outcome::Disabled);
    assert_eq!(outcome(&manager, "attach_missing"), Outcome::Disabled);
    let err = manager
        .update_activated(&[Selector::probe("nope")])
        .unwrap_err();
    assert_eq!(err.to_string(), "there is no probe nope");

    manager
        .update_activated(&[enter(), Selector::best_effort([missing()])])
        .unwrap();
    assert!(matches!(
        outcome(&manager, "attach_enter"),
        Outcome::Attached(_)
    ));
    assert!(matches!(
        outcome(&manager, "attach_missing"),
        Outcome::Unavailable(_)
    ));
    manager.stop().unwrap();
}

#[test]
fn activation_of_a_program_that_was_not_kept_says_so() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = started(attach_builder().select(Selector::probe("attach_enter"))).unwrap();
    let err = manager
        .update_activated(&[Selector::probe("attach_exec")])
        .unwrap_err();
    assert!(err.to_string().contains("keep the specifications"), "{err}");
    assert!(matches!(
        outcome(&manager, "attach_enter"),
        Outcome::Attached(_)
    ));
    manager.stop().unwrap();
}

/// A probe that is tried again until its hook exists.
#[test]
fn attaching_is_tried_again() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let tries = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&tries);
    let hook = Hook::new("the third time", move |program, _| {
        let name = match count.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => "no_such_event",
            _ => "sys_enter",
        };
        ebpf_manager::bpf::Link::raw_tracepoint(program, name)
    });
    let probe = Probe::new("attach_enter").hook(hook);
    let manager =
        started(Manager::builder().probe(probe.clone().retry(2, Duration::from_millis(1))))
            .unwrap();
    assert_eq!(tries.load(Ordering::Relaxed), 3);
    manager.stop().unwrap();
    tries.store(0, Ordering::Relaxed);
    // The manager's default; one try too few.
    let builder = Manager::builder().probe(probe).retry(1, Duration::ZERO);
    let err = started(builder).unwrap_err();
    assert!(matches!(err, ManagerError::Attach { .. }), "{err}");
    assert_eq!(tries.load(Ordering::Relaxed), 2);
}
