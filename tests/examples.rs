//! Every program under `examples/` does what it says it shows.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{
    BPF_LSM, Feature, KPROBE_PMU, LeakCheck, RING_BUFFER, TRAMPOLINE, UPROBE, require, skip,
};

/// Where cargo puts them: beside the directory of this test.
fn directory() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples")
}

fn example_shows_what_it_says(name: &str, needs: &Feature) {
    // What all of them load has a ring buffer.
    if !require(&RING_BUFFER) || !require(needs) {
        return;
    }
    let program = directory().join(name);
    if !program.exists() {
        skip("it is not built; `cargo build --examples` does, or testing everything");
        return;
    }
    let _leaks = LeakCheck::begin();
    let output = Command::new(program).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    let shows = said.starts_with("shows: ") && said.ends_with("\nok\n");
    assert!(output.status.success() && shows, "{said}{complained}");
    assert_eq!(complained, "");
}

macro_rules! examples {
    ($($name:ident: $needs:expr,)*) => {
        $(
            #[test]
            fn $name() {
                example_shows_what_it_says(stringify!($name), &$needs);
            }
        )*

        #[test]
        fn none_is_forgotten() {
            let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
            let Ok(entries) = std::fs::read_dir(sources) else {
                return skip("the sources are not here");
            };
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names
                .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
                .collect();
            names.sort();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

examples! {
    activated_probes: RING_BUFFER,
    cgroup: RING_BUFFER.mounted("cgroup2"),
    clone_or_add_hook: RING_BUFFER,
    constants: RING_BUFFER,
    fentry: TRAMPOLINE,
    instruction_patching: RING_BUFFER,
    kprobe: KPROBE_PMU,
    lsm: BPF_LSM,
    map_editing: RING_BUFFER,
    map_replacement_or_route: RING_BUFFER,
    object_pinning: RING_BUFFER.mounted("bpf"),
    pause_and_resume: RING_BUFFER,
    perf_buffer: RING_BUFFER,
    perf_event: RING_BUFFER,
    program_router: RING_BUFFER,
    raw_tracepoint: RING_BUFFER,
    ring_buffer: RING_BUFFER,
    socket_filter: RING_BUFFER,
    tc_classifier: RING_BUFFER,
    tests_and_benchmarks: RING_BUFFER,
    tracepoint: RING_BUFFER,
    uprobe: UPROBE,
    xdp: RING_BUFFER,
}
