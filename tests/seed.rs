//! Offline: reads the repository, not the kernel.
//!
//! `src/SEED.md` is whole: it names every exported symbol of the original
//! (`tests/seed/symbols`, one a line, members as `Type.Member`) once, with
//! something of ours that exists (rustdoc checks the links), and every trap
//! with tests that exist.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const TABLES: &str = include_str!("../src/SEED.md");
const SYMBOLS: &str = include_str!("seed/symbols");

/// The cells of the rows of the table below a heading.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, section) = TABLES.split_once(heading).expect("the heading is there");
    let section = section.split("\n# ").next().unwrap_or_default();
    let lines = section.lines().filter(|line| line.starts_with('|'));
    // The first two are the head.
    lines
        .skip(2)
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// What stands between backticks.
fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_symbol_has_something_of_ours() {
    let mut known: BTreeMap<&str, usize> = SYMBOLS.lines().map(|line| (line, 0)).collect();
    assert_eq!(
        known.len(),
        SYMBOLS.lines().count(),
        "a symbol is listed twice"
    );
    for row in rows("# Symbols") {
        let [symbols, ours, ..] = row.as_slice() else {
            panic!("a row of one cell: {row:?}")
        };
        assert!(ours.contains("[`"), "{symbols}: nothing of ours is linked");
        let symbols = code(symbols);
        assert!(!symbols.is_empty(), "no symbol: {row:?}");
        for symbol in symbols {
            let count = known.get_mut(symbol);
            *count.unwrap_or_else(|| panic!("the original has no {symbol}")) += 1;
        }
    }
    let wrong: Vec<_> = known.iter().filter(|(_, count)| **count != 1).collect();
    assert!(wrong.is_empty(), "missing, or in several rows: {wrong:?}");
}

#[test]
fn every_trap_has_tests() {
    let mut sources = String::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for dir in ["tests", "src", "bpf/src", "elf/src", "sys/src"] {
        read_all(&root.join(dir), &mut sources);
    }
    let rows = rows("# Traps");
    assert!(rows.len() > 50, "{} traps", rows.len());
    for row in &rows {
        let tests = code(row.last().copied().unwrap_or_default());
        assert!(!tests.is_empty(), "no test: {row:?}");
        for test in tests {
            let found = sources.contains(&format!("#[test]\nfn {test}("))
                || sources.contains(&format!("#[test]\n    fn {test}("));
            assert!(found, "{}: there is no test {test}", row[0]);
        }
    }
}

fn read_all(dir: &Path, text: &mut String) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.expect("a directory is read").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read_all(&path, text);
        } else if path.extension().is_some_and(|e| e == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("a source is text"));
        }
    }
}
