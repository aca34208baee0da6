//! `ebpf-manager run`: a manifest brought to life.
#![cfg(feature = "cli")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{LeakCheck, PINS, RING_BUFFER, TempDir, require, testdata};

/// `run` of a manifest that lies in `dir`.
fn command(dir: &TempDir, manifest: &str, options: &[&str]) -> Command {
    let path = dir.path().join("manifest");
    for object in ["attach.bpf.o", "manage.bpf.o"] {
        fs::copy(testdata(object), dir.path().join(object)).unwrap();
    }
    fs::write(&path, manifest).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebpf-manager"));
    command.arg("run").args(options).arg(&path);
    command
}

fn run(manifest: &str, options: &[&str]) -> Output {
    let dir = TempDir::new();
    command(&dir, manifest, options).output().unwrap()
}

#[test]
fn clean_removes_pins_of_earlier_runs() {
    if !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::on_bpffs();
    let (map, program) = (dir.path().join("numbers"), dir.path().join("calls"));
    let manifest = format!(
        "object manage.bpf.o\ninner_map modelless table_a\n\
         probe manage_calls\n    optional\n    pin {}\n\
         map numbers\n    pin {}\n",
        program.display(),
        map.display()
    );
    for (options, left) in [
        (&["--duration", "0s"] as &[&str], true),
        (&["--duration", "0s", "--clean"], false),
        (&["--duration", "0s", "--clean"], false),
    ] {
        let output = run(&manifest, options);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert_eq!((map.exists(), program.exists()), (left, left), "{text}");
    }
}

#[test]
fn verbose_shows_the_verifiers_log() {
    if !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let lines = |manifest: &str, options: &[&str]| {
        let output = run(manifest, options);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text.lines().count(), text)
    };
    let needed = "object manage.bpf.o\ninner_map modelless table_a\nprobe err_manage_refused";
    let (code, brief, text) = lines(needed, &[]);
    assert_eq!((code, brief), (Some(1), 1), "{text}");
    assert!(
        text.contains("/manifest: program err_manage_refused"),
        "{text}"
    );
    let (code, whole, text) = lines(needed, &["--verbose"]);
    assert_eq!(code, Some(1));
    assert!(whole > 3 && text.contains("processed "), "{text}");
    let optional = format!("{needed}\n  optional");
    let (code, _, text) = lines(&optional, &["--verbose", "--duration", "0s"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("processed "), "{text}");
}

#[test]
fn run_ends_with_its_reader() {
    if !require(&RING_BUFFER) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::new();
    // Nothing is ever written.
    let manifest = "object attach.bpf.o\nselect all_of()\nring_buffer hits\n";
    let mut child = command(&dir, manifest, &["--duration", "1m"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(40), "{text}");
}

#[test]
fn btf_of_a_file_is_used() {
    let dir = TempDir::new();
    let path = dir.path().join("damaged.btf");
    for bytes in [None, Some(b"no BTF")] {
        if let Some(bytes) = bytes {
            fs::write(&path, bytes).unwrap();
        }
        let options = ["--btf", path.to_str().unwrap()];
        let output = run("object manage.bpf.o", &options);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(text.contains("damaged.btf"), "{text}");
    }
}

#[test]
fn manifest_is_run_and_leaves_nothing() {
    if !require(&RING_BUFFER.mounted("tracefs")) || !require(&PINS) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::on_bpffs();
    let pin = dir.path().join("hits");
    // Every system call number 39 or 172 of any process: there are some.
    let manifest = format!(
        "object attach.bpf.o\n\
         probe attach_enter\n\
         probe attach_missing\n    optional\n\
         probe attach_exec_raw:two\n    hook raw_tracepoint sched_process_exec\n\
         select all_of(attach_enter, best_effort(attach_missing, attach_exec_raw:two))\n\
         map hits\n    max_entries 65536\n    pin {}\n\
         ring_buffer hits\n",
        pin.display()
    );
    let output = run(&manifest, &["--duration", "300ms", "--clean"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    for says in [
        "attach_enter: attached by raw_tracepoint_open",
        "attach_missing: unavailable: no tracepoint sched/no_such_event",
        "attach_exec_raw (two): attached by",
        "ring buffer hits: ",
    ] {
        assert!(text.contains(says), "no {says:?} in {text}");
    }
    assert!(!pin.exists());
}

#[test]
fn mistakes_are_named() {
    let says = |manifest: &str| {
        let output = run(manifest, &[]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = says("object attach.bpf.o\nfrobnicate");
    assert!(
        text.contains("manifest: line 2: frobnicate is not understood"),
        "{text}"
    );
    let text = says("object attach.bpf.o\nselect nope");
    assert!(text.contains("there is no probe nope"), "{text}");
    let text = says("object no_such_file.bpf.o");
    assert!(text.contains("no_such_file.bpf.o"), "{text}");
}
