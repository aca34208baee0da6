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
use std::process::{Command, Output};

use common::{LeakCheck, PINS, RING_BUFFER, TempDir, require, testdata};

fn run(manifest: &str, options: &[&str]) -> Output {
    let dir = TempDir::new();
    let path = dir.path().join("manifest");
    fs::copy(testdata("attach.bpf.o"), dir.path().join("attach.bpf.o")).unwrap();
    fs::write(&path, manifest).unwrap();
    Command::new(env!("CARGO_BIN_EXE_ebpf-manager"))
        .arg("run")
        .args(options)
        .arg(&path)
        .output()
        .unwrap()
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
