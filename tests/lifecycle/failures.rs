//! What goes wrong on the way up, and that it leaves things as they were.

use std::fs::File;

use ebpf_manager::bpf::{LinkError, LoadError};
use ebpf_manager::{MapOptions, ProbeError, ProbeId, Sink, Stream};

use super::*;

/// Initialises, expecting that declaration and object do not fit.
fn misfit(builder: Builder, text: &str) -> ManagerError {
    let manager = builder.build().unwrap();
    let err = manager.init(&attach_object()).unwrap_err();
    assert_eq!(err.to_string(), text);
    assert_eq!(manager.state(), State::Declared);
    err
}

#[test]
fn declaration_must_fit_the_object() {
    let _leaks = LeakCheck::begin();
    let probe = misfit(
        Manager::builder().probe(Probe::new("nope").optional()),
        "the object has no program nope",
    );
    assert!(matches!(
        probe,
        ManagerError::NoSuch {
            kind: "program",
            ..
        }
    ));
    let map = misfit(
        Manager::builder().ring_buffer("nope", |_| ()),
        "the object has no ring buffer nope",
    );
    assert!(matches!(
        map,
        ManagerError::NoSuch {
            kind: "ring buffer",
            ..
        }
    ));
    misfit(
        Manager::builder().ring_buffer(".bss", |_| ()),
        "map .bss is of type array, not ringbuf",
    );
    let constant = misfit(
        Manager::builder().constant("nope", 1_u32),
        "the object has no variable nope",
    );
    assert!(matches!(
        constant,
        ManagerError::NoSuch {
            kind: "variable",
            ..
        }
    ));
    let size = misfit(
        Manager::builder().constant("target_tgid", 1_u64),
        "variable target_tgid has 4 bytes, the value has 8",
    );
    assert!(matches!(size, ManagerError::Constant(_)));
    let excluded = misfit(
        Manager::builder().exclude("nope"),
        "the object has no program nope",
    );
    assert!(matches!(excluded, ManagerError::Load(_)));
}

#[test]
fn declaring_twice_is_refused() {
    let duplicate = |builder: Builder, text: &str| {
        let err = builder.build().unwrap_err();
        assert!(matches!(err, ManagerError::Duplicate { .. }));
        assert_eq!(err.to_string(), text);
    };
    duplicate(
        Manager::builder()
            .probe(Probe::new("on_exec"))
            .probe(Probe::new("on_exec").optional()),
        "probe on_exec is declared twice",
    );
    duplicate(
        Manager::builder()
            .probe(Probe::new("on_exec").uid("a"))
            .probe(Probe::new("on_exec"))
            .probe(Probe::new("on_exec").uid("a")),
        "probe on_exec (a) is declared twice",
    );
    duplicate(
        getpid_builder(|_| ()).ring_buffer("hits", |_| ()),
        "ring buffer hits is declared twice",
    );
}

/// A required probe that cannot be attached, behind others that can.
#[test]
fn failed_start_detaches_what_it_attached() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    for (missing, kind, name) in [
        ("attach_missing", "tracepoint", "sched/no_such_event"),
        ("attach_missing_raw", "raw tracepoint", "no_such_event"),
    ] {
        let hits = Hits::default();
        let manager = getpid_builder(hits.handler())
            .probe(Probe::new("attach_fork"))
            .probe(Probe::new(missing))
            .probe(Probe::new("attach_exec"))
            .build()
            .unwrap();
        manager.init(&attach_object()).unwrap();
        let counters = Counters::of(&manager);
        for _ in 0..3 {
            let err = manager.start().unwrap_err();
            let ManagerError::Attach { probe, source } = &err else {
                panic!("{err}")
            };
            assert_eq!(probe.function, missing);
            assert!(source.is(Errno::ENOENT));
            let LinkError::NoTarget {
                kind: of, name: at, ..
            } = &**source
            else {
                panic!("{err}")
            };
            assert_eq!((*of, at.as_str()), (kind, name));
            let text = err.to_string();
            let start = format!("probe {missing}: no {kind} {name} in this kernel: ");
            assert!(text.starts_with(&start), "{text}");
            assert!(
                text.ends_with(": ENOENT (No such file or directory)"),
                "{text}"
            );

            assert_eq!(manager.state(), State::Initialised);
            let outcomes = manager.probes();
            assert!(outcomes.iter().all(|(_, o)| *o == Outcome::Detached));
            let names = ["enter_count", "fork_count"];
            let before = names.map(|name| counters.get(name));
            hit(10);
            spawn_true();
            assert_eq!(names.map(|name| counters.get(name)), before);
        }
        manager.stop().unwrap();
    }
}

#[test]
fn optional_probe_says_why_it_is_not_there() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let hits = Hits::default();
    let manager = Manager::builder()
        .probe(Probe::new("attach_missing").optional())
        .probe(Probe::new("attach_missing_raw").optional())
        .probe(
            Probe::new("attach_exec")
                .hook(Hook::raw_tracepoint("sched_process_exec"))
                .optional(),
        )
        .probe(Probe::new("attach_enter").optional())
        .constant("target_tgid", std::process::id())
        .constant("target_syscall", GETPID)
        .ring_buffer("hits", hits.handler())
        .build()
        .unwrap();
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    let outcomes = manager.probes();
    let error = |index: usize| match outcomes[index].1.error() {
        Some(ProbeError::Attach(err)) => err,
        _ => panic!("{}: {}", outcomes[index].0, outcomes[index].1),
    };
    assert!(matches!(&**error(0), LinkError::NoTarget { .. }));
    assert_eq!(
        outcomes[1].1.to_string(),
        "unavailable: no raw tracepoint no_such_event in this kernel: \
         bpf(BPF_RAW_TRACEPOINT_OPEN): ENOENT (No such file or directory)"
    );
    assert!(matches!(&**error(2), LinkError::WrongType { .. }));
    assert_eq!(
        outcomes[2].1.to_string(),
        "failed: a tracepoint program cannot be attached to a raw tracepoint; \
         it takes raw_tracepoint"
    );
    assert!(matches!(outcomes[3].1, Outcome::Attached(_)));
    act_until("a hit", || hit(1), || hits.len() > 0);
    manager.stop().unwrap();
    assert!(manager.probes().iter().all(|p| p.1 == Outcome::Detached));
}

/// The generator's programs are of a type that has no hook of its own.
#[test]
fn probe_without_a_hook_is_refused() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let manager = Manager::builder()
        .probe(Probe::new("ringbuf_output").optional())
        .build()
        .unwrap();
    manager.init(&generator_object()).unwrap();
    let err = manager.start().unwrap_err();
    let expected = ManagerError::NoHook {
        probe: ProbeId {
            uid: String::new(),
            function: "ringbuf_output".to_owned(),
        },
        section: "tc".to_owned(),
    };
    assert_eq!(err, expected);
    assert_eq!(manager.state(), State::Initialised);
}

#[test]
fn failed_init_leaves_nothing_and_may_be_repeated() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // Its maps exist and one of its programs is loaded when another is refused.
    let bad = ObjectSource::path(testdata("bad_verifier.bpf.o"));
    let manager = Manager::builder().build().unwrap();
    for _ in 0..2 {
        let err = manager.init(&bad).unwrap_err();
        let ManagerError::Load(load) = &err else {
            panic!("{err}")
        };
        assert!(matches!(&**load, LoadError::Program(_)), "{err}");
        assert_eq!(manager.state(), State::Declared);
        assert!(manager.map(".bss").is_none());
    }
    manager.init(&attach_object()).unwrap();
    manager.start().unwrap();
    manager.stop().unwrap();
}

/// Runs out of descriptors at every step of init and start in turn: each
/// failure must undo the steps before it. In a process of its own, with a low
/// limit and no other test that would suffer.
#[test]
fn running_out_of_descriptors_undoes_every_step() {
    const ROLE: &str = "EBPF_MANAGER_TEST_RUNS_OUT";
    const NAME: &str = "failures::running_out_of_descriptors_undoes_every_step";
    if std::env::var_os(ROLE).is_some() {
        return run_out_of_descriptors();
    }
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 64; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(ROLE, "")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}");
}

fn run_out_of_descriptors() {
    let fill = |free: usize| {
        let mut files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        files.truncate(files.len() - free);
        files
    };
    let (object, most) = (attach_object(), fill(0).len());
    let mut failed = [0; 2];
    let mut free = 0;
    loop {
        let hits = Hits::default();
        let manager = getpid_builder(hits.handler())
            .probe(Probe::new("attach_exec"))
            .build()
            .unwrap();
        let files = fill(free);
        let init = manager.init(&object);
        drop(files);
        if let Err(err) = init {
            let ManagerError::Load(load) = &err else {
                panic!("{free} free: {err}")
            };
            assert!(load.is(Errno::EMFILE), "{free} free: {err}");
            assert_eq!(manager.state(), State::Declared);
            assert_eq!(fill(0).len(), most, "{free} free: {err}");
            failed[0] += 1;
            free += 1;
            continue;
        }
        // From here on so many are free for start.
        let mut free = 0;
        let idle = fill(0).len();
        loop {
            let files = fill(free);
            let start = manager.start();
            drop(files);
            let Err(err) = start else { break };
            let text = err.to_string();
            assert!(text.contains("EMFILE"), "{free} free: {text}");
            assert_eq!(manager.state(), State::Initialised);
            assert_eq!(fill(0).len(), idle, "{free} free: {text}");
            failed[1] += 1;
            free += 1;
        }
        act_until("a hit", || hit(1), || hits.len() > 0);
        manager.stop().unwrap();
        assert_eq!(fill(0).len(), most);
        break;
    }
    // The object, BTF, a few maps and programs; the reader, two hooks (before
    // 5.15 a perf event has no link above it).
    assert!(failed[0] >= 6 && failed[1] >= 4, "{failed:?}");
}

/// A buffer that was added is read on when the start of the others fails.
#[test]
fn failed_start_leaves_added_buffers_alone() {
    if !require(&HOOKS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let missing = Arc::new(AtomicBool::new(true));
    let is_missing = Arc::clone(&missing);
    let hook = Hook::new("comes later", move |program, _| {
        let name = if is_missing.load(Ordering::Relaxed) {
            "no_such_event"
        } else {
            "sys_enter"
        };
        ebpf_manager::bpf::Link::raw_tracepoint(program, name)
    });
    let manager = Manager::builder()
        .probe(Probe::new("attach_enter").hook(hook))
        .ring_buffer("hits", |_| ())
        .build()
        .unwrap();
    manager.init(&attach_object()).unwrap();
    let stream = Stream::ring_buffer("more", Sink::handler(|_| ()));
    manager
        .clone_buffer("hits", &MapOptions::new(), stream)
        .unwrap();
    let is_read = || {
        let of = |map: &str| manager.stream(map).unwrap().is_running();
        (of("hits"), of("more"))
    };
    assert_eq!(is_read(), (false, true));
    manager.start().unwrap_err();
    assert_eq!(is_read(), (false, true));
    missing.store(false, Ordering::Relaxed);
    manager.start().unwrap();
    assert_eq!(is_read(), (true, true));
    manager.stop().unwrap();
    assert!(manager.stream("more").is_none());
}
