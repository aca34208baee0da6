//! The layers and their boundaries: who may depend on whom, import what, use
//! `unsafe`, and how many packages all of it may bring.
//!
//! Offline: reads the source tree, no kernel.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One crate of the workspace and what its manifest may name.
struct Layer {
    /// Directory below the workspace root.
    dir: &'static str,
    may_use: &'static [&'static str],
}

const SYS: &str = "ebpf-manager-sys";
const ELF: &str = "ebpf-manager-elf";
const BPF: &str = "ebpf-manager-bpf";

/// `sys` ← `elf` ← `bpf` ← manager (what a manifest does not name, the compiler
/// keeps out of the source); and each package from elsewhere has one
/// owner, but for three that fit everywhere or serve two.
const LAYERS: [Layer; 4] = [
    Layer {
        dir: "sys",
        may_use: &["bitflags", "libc", "memmap2", "thiserror"],
    },
    Layer {
        dir: "elf",
        may_use: &[SYS, "bitflags", "object", "thiserror"],
    },
    Layer {
        dir: "bpf",
        may_use: &[SYS, ELF, "bitflags", "thiserror"],
    },
    Layer {
        dir: ".",
        may_use: &[SYS, ELF, BPF, "bitflags", "crossbeam-channel", "thiserror"],
    },
];

/// Allowed anywhere, but only behind a feature.
const BEHIND_FEATURES: [&str; 2] = ["lexopt", "miniz_oxide"];

/// Parts of the standard library that reach outside the process.
const OUTSIDE: [&str; 5] = ["env", "fs", "net", "os", "process"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every `.rs` file below `dir`, build output and the separate workspace of
/// the peer benchmarks apart.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                let name = path.file_name().unwrap().to_string_lossy();
                if !name.starts_with('.') && name != "target" && !path.ends_with("benches/peers") {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

// --- manifests ------------------------------------------------------------------

#[derive(Debug, PartialEq)]
struct Dependency {
    name: String,
    optional: bool,
    /// Of `[build-dependencies]`.
    build: bool,
}

/// The dependencies of a manifest that are not only for its tests. Understands
/// the forms `a = …`, `a.workspace = true` and `[dependencies.a]`, also below
/// `[target.….]`.
fn dependencies(manifest: &str) -> Vec<Dependency> {
    let mut found: Vec<Dependency> = Vec::new();
    let mut table = "";
    for line in manifest.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_end_matches(']').trim();
            // `[dependencies.a]` names a dependency by itself.
            if let Some((kind, name)) = table.rsplit_once('.')
                && let Some(build) = dependency_table(kind)
            {
                found.push(Dependency {
                    name: name.trim_matches('"').to_owned(),
                    optional: false,
                    build,
                });
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        if let Some(build) = dependency_table(table) {
            let name = key.split('.').next().unwrap_or(key).trim();
            let value: String = value.split_whitespace().collect();
            found.push(Dependency {
                name: name.trim_matches('"').to_owned(),
                optional: value.contains("optional=true"),
                build,
            });
        } else if table
            .rsplit_once('.')
            .is_some_and(|(kind, _)| dependency_table(kind).is_some())
            && key.trim() == "optional"
            && let Some(last) = found.last_mut()
        {
            last.optional = value.trim() == "true";
        }
    }
    found
}

/// Whether `table` lists dependencies, and if so whether of the build script.
fn dependency_table(table: &str) -> Option<bool> {
    if table.starts_with("workspace") {
        return None;
    }
    match table.rsplit('.').next()? {
        "dependencies" => Some(false),
        "build-dependencies" => Some(true),
        _ => None,
    }
}

#[test]
fn manifests_follow_the_layers() {
    for layer in &LAYERS {
        let path = root().join(layer.dir).join("Cargo.toml");
        for dep in dependencies(&read(&path)) {
            let name = dep.name.as_str();
            let at = path.display();
            assert!(!dep.build, "{at}: build script needs {name}");
            if BEHIND_FEATURES.contains(&name) {
                assert!(dep.optional, "{at}: {name} must be optional");
            } else {
                assert!(layer.may_use.contains(&name), "{at}: may not use {name}");
            }
        }
    }
}

#[test]
fn manifest_reader_knows_every_form() {
    let manifest = r#"
        [workspace.dependencies]
        one = "1"
        [dependencies]
        a.workspace = true
        b = { version = "1", optional = true } # why
        "c" = "1"
        [target.'cfg(unix)'.dependencies]
        d = "1"
        [dependencies.e]
        version = "1"
        optional = true
        [build-dependencies]
        f = "1"
        [dev-dependencies]
        two = "1"
        [features]
        three = []
    "#;
    let found: Vec<_> = dependencies(manifest)
        .into_iter()
        .map(|d| (d.name, d.optional, d.build))
        .collect();
    let want = [
        ("a", false, false),
        ("b", true, false),
        ("c", false, false),
        ("d", false, false),
        ("e", true, false),
        ("f", false, true),
    ];
    assert_eq!(found, want.map(|(n, o, b)| (n.to_owned(), o, b)));
}

/// The packages that reach a user's binary on Linux, and those that only help
/// to build it, the workspace's own not counted.
#[test]
fn packages_stay_few() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = |edges: &str, features: &str| -> BTreeSet<String> {
        let out = Command::new(&cargo)
            .current_dir(root())
            .args(["tree", "--offline", "--locked", "--package", "ebpf-manager"])
            .args(["--target", "x86_64-unknown-linux-gnu", "--prefix", "none"])
            .args(["--format", "{p}", "--edges", edges])
            .args(["--features", features])
            .output()
            .expect("cargo runs");
        let message = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "cargo tree: {message}");
        let text = String::from_utf8(out.stdout).unwrap();
        text.lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| !name.starts_with("ebpf-manager"))
            .map(str::to_owned)
            .collect()
    };
    let listed = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let mut expected: BTreeSet<String> = listed(&RUN_TIME);
    assert_eq!(tree("normal,no-proc-macro", ""), expected);
    expected.extend(listed(&BUILD_TIME));
    assert_eq!(tree("normal,build", ""), expected);
    expected.extend(listed(&OPTIONAL));
    assert_eq!(tree("normal,build", "cli,kconfig-gz"), expected);
    let readme = read(&root().join("README.md"));
    for name in RUN_TIME.iter().chain(&OPTIONAL) {
        assert!(
            readme.contains(&format!("`{name}`")),
            "{name} is not in README.md"
        );
    }
}

/// Packages of others in a program that uses the library.
const RUN_TIME: [&str; 8] = [
    "bitflags",
    "crossbeam-channel",
    "crossbeam-utils",
    "libc",
    "memchr",
    "memmap2",
    "object",
    "thiserror",
];

/// Those that only compile.
const BUILD_TIME: [&str; 5] = [
    "proc-macro2",
    "quote",
    "syn",
    "thiserror-impl",
    "unicode-ident",
];

/// Those that features bring.
const OPTIONAL: [&str; 3] = ["adler2", "lexopt", "miniz_oxide"];

// --- source ---------------------------------------------------------------------

/// Source text as words and single punctuation characters; comments, strings
/// and character literals are gone, so nothing in them can hide or fake a use.
fn tokens(source: &str) -> Vec<String> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = Vec::new();
    let mut i = 0;
    while i < text.len() {
        let c = at(i);
        if c == '/' && at(i + 1) == '/' {
            while i < text.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                if at(i) == '/' && at(i + 1) == '*' {
                    depth += 1;
                    i += 2;
                } else if at(i) == '*' && at(i + 1) == '/' {
                    depth -= 1;
                    i += 2;
                } else {
                    i += 1;
                }
                if depth == 0 || i >= text.len() {
                    break;
                }
            }
        } else if c == '"' {
            i += 1;
            while i < text.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' {
            // A character literal; otherwise a lifetime, read as a word.
            if at(i + 1) == '\\' {
                i += 3;
                while i < text.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            } else if at(i + 2) == '\'' {
                i += 3;
            } else {
                i += 1;
            }
        } else if is_word(c) {
            let start = i;
            while is_word(at(i)) {
                i += 1;
            }
            let word: String = text[start..i].iter().collect();
            let mut hashes = 0;
            while at(i + hashes) == '#' {
                hashes += 1;
            }
            if matches!(word.as_str(), "r" | "br" | "cr") && at(i + hashes) == '"' {
                i += hashes + 1;
                while i < text.len() && !(at(i) == '"' && (1..=hashes).all(|h| at(i + h) == '#')) {
                    i += 1;
                }
                i += hashes + 1;
            } else {
                out.push(word);
            }
        } else {
            if !c.is_whitespace() {
                out.push(c.to_string());
            }
            i += 1;
        }
    }
    out
}

/// Leaves out items under `#[cfg(test)]`: up to their closing brace or, for an
/// item without a body, its semicolon.
fn without_tests(tokens: &[String]) -> Vec<String> {
    const CFG_TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut out = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if tokens[i..].len() >= 7 && tokens[i..i + 7].iter().eq(CFG_TEST) {
            i += 7;
            let mut depth = 0;
            while i < tokens.len() {
                match tokens[i].as_str() {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    _ => {}
                }
                let end = depth == 0 && matches!(tokens[i].as_str(), "}" | ";");
                i += 1;
                if end {
                    break;
                }
            }
        } else {
            out.push(tokens[i].clone());
            i += 1;
        }
    }
    out
}

/// The names that follow `first::` anywhere: `std::fs` gives `fs`, `use
/// std::{fs, io::{self, Read}}` gives `fs` and `io`; a bare `first` gives "".
fn children<'a>(tokens: &'a [String], first: &str) -> BTreeSet<&'a str> {
    let word = |i: usize| tokens.get(i).map_or("", String::as_str);
    let mut found = BTreeSet::new();
    for i in 0..tokens.len() {
        if word(i) != first {
            continue;
        }
        if (word(i + 1), word(i + 2)) != (":", ":") {
            found.insert("");
        } else if word(i + 3) != "{" {
            found.insert(word(i + 3));
        } else {
            let mut depth = 1;
            let mut expect = true;
            let mut j = i + 4;
            while depth > 0 && j < tokens.len() {
                match word(j) {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    "," if depth == 1 => expect = true,
                    name if expect => {
                        found.insert(name);
                        expect = false;
                    }
                    _ => {}
                }
                j += 1;
            }
        }
    }
    found
}

/// Shipped code of a crate, file by file.
fn shipped(dir: &str) -> Vec<(PathBuf, Vec<String>)> {
    let files: Vec<_> = sources(&root().join(dir).join("src"))
        .into_iter()
        .filter(|path| !path.ends_with("tests.rs"))
        .map(|path| {
            let code = without_tests(&tokens(&read(&path)));
            (path, code)
        })
        .collect();
    assert!(!files.is_empty(), "no source in {dir}");
    files
}

#[test]
fn parser_reaches_nothing_outside_its_arguments() {
    for (path, code) in shipped("elf") {
        let path = path.display();
        for child in children(&code, "ebpf_manager_sys") {
            assert_eq!(child, "abi", "{path}: uses ebpf_manager_sys::{child}");
        }
        for child in children(&code, "std") {
            assert!(!OUTSIDE.contains(&child), "{path}: uses std::{child}");
            assert_ne!(child, "*", "{path}: imports all of std");
        }
    }
}

#[test]
fn abi_makes_no_calls() {
    for (path, code) in shipped("sys") {
        if !path.starts_with(root().join("sys/src/abi")) {
            continue;
        }
        let path = path.display();
        for child in children(&code, "crate") {
            assert!(matches!(child, "" | "abi"), "{path}: uses crate::{child}");
        }
        for child in children(&code, "std") {
            // `std::os` has the descriptor types that attributes carry.
            let call = child != "os" && OUTSIDE.contains(&child);
            assert!(!call, "{path}: uses std::{child}");
        }
        assert!(
            !code.windows(4).any(|w| w.concat() == "super::super"),
            "{path}: leaves the module"
        );
    }
}

/// The audit boundary: the word `unsafe` occurs in `sys` only, tests, benches
/// and examples included, and every crate above forbids it to the compiler.
/// Two tests count what is allocated, and one marks places for USDT, which no
/// safe code can; and one source is of an eBPF program, for another target.
#[test]
fn unsafe_code_stays_in_sys() {
    let exceptions = [
        "tests/mutate/allocated.rs",
        "tests/links_usdt/marks.rs",
        "tests/programs/compilers/aya.rs",
        "tests/readers/allocations.rs",
    ];
    let exceptions = exceptions.map(|path| root().join(path));
    for path in sources(root()) {
        if path.starts_with(root().join("sys")) || exceptions.contains(&path) {
            continue;
        }
        let code = tokens(&read(&path));
        let path = path.display();
        assert!(!code.iter().any(|t| t == "unsafe"), "{path}: unsafe");
    }
    let mut crate_roots = vec![
        root().join("elf/src/lib.rs"),
        root().join("bpf/src/lib.rs"),
        root().join("src/lib.rs"),
    ];
    crate_roots.extend(
        [root().join("src/main.rs")]
            .into_iter()
            .filter(|p| p.exists()),
    );
    crate_roots.extend(
        sources(&root().join("src/bin"))
            .into_iter()
            .filter(|p| p.ends_with("main.rs") || p.parent() == Some(&root().join("src/bin"))),
    );
    for path in crate_roots {
        let code = tokens(&read(&path)).concat();
        let path = path.display();
        assert!(
            code.contains("#![forbid(unsafe_code)]"),
            "{path}: not forbidden"
        );
    }
}

#[test]
fn scanner_sees_what_the_compiler_sees() {
    let source = r##"
        // std::fs in a comment, unsafe too /* "
        /* nested /* unsafe */ std::env */
        const A: &str = "unsafe \" std::net";
        const B: &str = r#"unsafe " std::os"#;
        const C: char = '"'; const D: char = '\''; fn e<'a>(x: &'a str) {}
        use std::{fmt, io::{self, Read}};
        fn f() { std::mem::swap(); ::std::process::abort() }
        #[cfg(test)] use std::env;
        #[cfg(test)] mod tests { fn g() { std::fs::read("}") } }
        use core::fmt::Debug;
    "##;
    let all = tokens(source);
    assert!(!all.iter().any(|t| t == "unsafe"));
    let code = without_tests(&all);
    assert_eq!(
        children(&code, "std").into_iter().collect::<Vec<_>>(),
        ["fmt", "io", "mem", "process"]
    );
    assert!(children(&all, "std").contains("fs"));
    assert!(children(&all, "std").contains("env"));
    assert_eq!(
        children(&code, "core").into_iter().collect::<Vec<_>>(),
        ["fmt"]
    );
}
