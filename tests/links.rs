//! The conformance suite: every kind of link goes through the same life on a
//! real hook with events of the test's own.
//!
//! Each test is one row of the table in `bpf/HOOKS.md`, which
//! `tests/matrix/hooks` makes of what the tests say on every kernel: its
//! module is the hook's family, its name the hook and perhaps, after `by`, the
//! kernel interface. A test says why it cannot run, and fails where it must.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

#[path = "links/mod.rs"]
mod hooks;
#[cfg(target_arch = "x86_64")]
#[path = "links_usdt/marks.rs"]
#[expect(dead_code, reason = "places that another test needs")]
mod marks;

/// The table is made of test results; this says when it is older than the
/// tests.
#[test]
fn every_row_is_in_the_documentation() {
    let page = include_str!("../bpf/HOOKS.md");
    let mut documented = Vec::new();
    for line in page.lines() {
        let mut cells = line.split('|').map(str::trim);
        if let (Some(""), Some(hook), Some(by)) = (cells.next(), cells.next(), cells.next())
            && let Some(hook) = hook.strip_prefix('`').and_then(|h| h.strip_suffix('`'))
        {
            let by = by.replace(' ', "_");
            let blank = if by.is_empty() { "" } else { "_by_" };
            documented.push(format!("{hook}{blank}{by}"));
        }
    }
    let listed = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--list", "hooks::"])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut tests: Vec<String> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter_map(|test| test.rsplit("::").next())
        .map(str::to_owned)
        .collect();
    assert!(!tests.is_empty());
    tests.sort();
    documented.sort();
    assert_eq!(
        tests, documented,
        "run tests/matrix/run, then tests/matrix/hooks with its results"
    );
}
