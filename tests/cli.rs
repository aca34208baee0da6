//! The command, as its users run it.
#![cfg(feature = "cli")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use common::{Feature, LeakCheck, ROOT, TempDir, require};

/// Time for the command to end, on an emulated machine too.
const PATIENCE: Duration = Duration::from_secs(10);

/// What `trace` needs.
const TRACE: Feature = Feature::new("ebpf-manager trace", 5, 8).config(&["CONFIG_DEBUG_INFO_BTF"]);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebpf-manager"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Fails with what the command said if it did not succeed.
fn assert_success(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
}

/// The command in the background, its output in pipes; killed when dropped.
struct Running {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        let mut child = command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        Running { child, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(status.success());
    }

    /// How it ended, if it did so within `time`.
    fn ended_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + time;
        loop {
            match self.child.try_wait().unwrap() {
                None if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
                status => return status,
            }
        }
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        let stderr = self.child.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// --- what it says --------------------------------------------------------------

/// A value of JSON, for which the command needs no library, nor do its tests.
#[derive(Clone, Debug, PartialEq)]
enum Json {
    Null,
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads one value that fills the line.
    fn parse(line: &str) -> Json {
        let mut rest = line;
        let value = Json::value(&mut rest);
        assert_eq!(rest, "", "after the value in {line}");
        value
    }

    fn value(rest: &mut &str) -> Json {
        for (word, value) in [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
        ] {
            if take(rest, word) {
                return value;
            }
        }
        if take(rest, "\"") {
            return Json::Text(Json::text(rest));
        }
        if take(rest, "[") {
            let mut list = Vec::new();
            while !take(rest, "]") {
                assert!(list.is_empty() || take(rest, ","), "at {rest}");
                list.push(Json::value(rest));
            }
            return Json::List(list);
        }
        if take(rest, "{") {
            let mut fields = Vec::new();
            while !take(rest, "}") {
                assert!(fields.is_empty() || take(rest, ","), "at {rest}");
                assert!(take(rest, "\""), "at {rest}");
                let name = Json::text(rest);
                assert!(take(rest, ":"), "at {rest}");
                fields.push((name, Json::value(rest)));
            }
            return Json::Object(fields);
        }
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let number = rest[..end].parse();
        *rest = &rest[end..];
        Json::Number(number.unwrap_or_else(|_| panic!("no value at {rest}")))
    }

    /// The rest of a string, its quote included.
    fn text(rest: &mut &str) -> String {
        let mut text = String::new();
        loop {
            let c = rest.chars().next().expect("the string ends");
            *rest = &rest[c.len_utf8()..];
            match c {
                '"' => return text,
                '\\' => {
                    let escape = rest.chars().next().unwrap();
                    *rest = &rest[1..];
                    text.push(match escape {
                        '"' | '\\' => escape,
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        'u' => {
                            let code = u32::from_str_radix(&rest[..4], 16).unwrap();
                            *rest = &rest[4..];
                            char::from_u32(code).unwrap()
                        }
                        other => panic!("escape {other}"),
                    });
                }
                c => {
                    assert!(c >= ' ', "raw control character {c:?}");
                    text.push(c);
                }
            }
        }
    }

    /// A field that must be there.
    fn get(&self, name: &str) -> &Json {
        let Json::Object(fields) = self else {
            panic!("{self:?} has no fields");
        };
        let found = fields.iter().find(|(n, _)| n == name);
        &found.unwrap_or_else(|| panic!("no {name} in {self:?}")).1
    }

    fn number(&self, name: &str) -> u64 {
        match self.get(name) {
            Json::Number(n) => *n,
            other => panic!("{name} is {other:?}"),
        }
    }

    fn string(&self, name: &str) -> &str {
        match self.get(name) {
            Json::Text(text) => text,
            other => panic!("{name} is {other:?}"),
        }
    }
}

fn take(rest: &mut &str, word: &str) -> bool {
    match rest.strip_prefix(word) {
        Some(after) => {
            *rest = after;
            true
        }
        None => false,
    }
}

/// Events and the summary, each line of its own.
fn events(stdout: &[u8]) -> (Vec<Json>, Json) {
    let mut lines: Vec<_> = text(stdout).lines().map(Json::parse).collect();
    let summary = lines.pop().expect("at least the summary");
    assert_eq!(summary.string("event"), "summary");
    (lines, summary)
}

fn of<'e>(events: &'e [Json], kind: &str) -> Vec<&'e Json> {
    let wanted = events.iter().filter(|e| e.string("event") == kind);
    wanted.collect()
}

/// Last part of a path.
fn base(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

/// A copy of a program that others may run.
///
/// Made by another process: a descriptor for writing that a concurrent test's
/// fork inherits would keep the copy from being executed.
fn copy(original: &Path, copy: &Path) {
    let status = Command::new("cp").arg(original).arg(copy).status().unwrap();
    assert!(status.success());
    fs::set_permissions(copy, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A program of this name that ends at once. (A busybox under a name that it
/// does not know says so and fails.)
fn program_named(dir: &TempDir, name: &OsStr) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let original = std::env::split_paths(&path)
        .map(|dir| dir.join("true"))
        .find(|path| path.exists())
        .expect("there is a `true`");
    let program = dir.path().join(name);
    copy(&original, &program);
    program
}

fn run_quietly(program: &Path) {
    let mut command = Command::new(program);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap();
}

// --- tests ---------------------------------------------------------------------

#[test]
fn cli_demo_shows_its_processes() {
    if !require(&TRACE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let child = command(&["trace", "--demo", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = u64::from(child.id());
    let output = child.wait_with_output().unwrap();
    assert_success(&output);
    assert_eq!(text(&output.stderr), "");
    let (events, summary) = events(&output.stdout);

    // Other processes of the machine may come and go; these are the demo's.
    let own: Vec<Json> = events
        .iter()
        .filter(|e| e.number("ppid") == pid)
        .cloned()
        .collect();
    let files: Vec<&str> = of(&own, "exec").iter().map(|e| e.string("file")).collect();
    let names: Vec<&str> = files.iter().map(|f| base(f)).collect();
    assert_eq!(names, ["true", "sleep", "sh", "sh", "false", "sh"]);

    // How each of them ended, found by its pid.
    let ended: BTreeSet<(String, String, String)> = of(&own, "exit")
        .iter()
        .map(|exit| {
            let exec = own.iter().find(|e| e.number("pid") == exit.number("pid"));
            let exec = exec.expect("an exit has an exec before it");
            assert_eq!(exec.string("event"), "exec");
            assert_eq!(exec.get("file"), exit.get("file"));
            assert_eq!(exit.get("core_dumped"), &Json::Bool(false));
            assert_eq!(exit.number("uid"), 0);
            assert!(exit.string("time") >= exec.string("time"));
            (
                base(exit.string("file")).to_owned(),
                format!("{:?}", exit.get("exit_code")),
                format!("{:?}", exit.get("signal")),
            )
        })
        .collect();
    let (number, text) = (
        |n| format!("{:?}", Json::Number(n)),
        |s: &str| format!("{:?}", Json::Text(s.to_owned())),
    );
    let null = format!("{:?}", Json::Null);
    let expected = [
        ("true", number(0), null.clone()),
        ("sleep", number(0), null.clone()),
        ("sh", number(3), null.clone()),
        ("sh", null.clone(), text("SIGKILL")),
        ("false", number(1), null.clone()),
        ("sh", number(0), null.clone()),
    ];
    let expected: BTreeSet<_> = expected
        .map(|(file, code, signal)| (file.to_owned(), code, signal))
        .into();
    assert_eq!(ended, expected);
    let exits = of(&own, "exit");
    let sleep = exits.iter().find(|e| base(e.string("file")) == "sleep");
    let lived = sleep.unwrap().number("duration_ns");
    assert!((400_000_000..PATIENCE.as_nanos() as u64).contains(&lived));

    assert_eq!(summary.number("lost"), 0);
    assert_eq!(summary.number("malformed"), 0);
    assert_eq!(summary.number("events"), events.len() as u64);
    assert_eq!(summary.number("exec"), of(&events, "exec").len() as u64);
    assert_eq!(summary.number("exit"), of(&events, "exit").len() as u64);
    let load = summary.get("load_ns");
    let phases = ["parse", "relocate", "maps", "verify", "attach"].map(|p| load.number(p));
    assert!(phases.iter().all(|&ns| ns > 0), "{phases:?}");
    assert!(phases.iter().sum::<u64>() <= load.number("total"));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(summary.string("kernel"), release.trim());
    let Json::List(probes) = summary.get("probes") else {
        panic!("{summary:?}");
    };
    assert_eq!(probes.len(), 2);
    for probe in probes {
        assert!(
            probe.string("outcome").starts_with("attached by "),
            "{probe:?}"
        );
    }
}

#[test]
fn cli_text_lines_up() {
    if !require(&TRACE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let output = run(&["trace", "--demo"]);
    assert_success(&output);
    let mut lines = text(&output.stdout).lines();
    let header = lines.next().unwrap();
    assert!(header.trim_start().starts_with("TIME"), "{header}");
    let column = header.find("FILE").unwrap();
    let mut seen = 0;
    for line in lines {
        // Characters before each column's last are the column's own.
        let (before, file) = line.split_at(column);
        assert!(before.ends_with(' '), "{line}");
        assert!(!file.starts_with(' '), "{line}");
        let words: Vec<&str> = before.split_whitespace().collect();
        match (words[1], base(file), words[words.len() - 1]) {
            ("exec", "true", "-") | ("exit", "true", "0") | ("exit", "sh", "3" | "SIGKILL") => {
                seen += 1;
            }
            _ => {}
        }
    }
    assert!(seen >= 4, "{}", text(&output.stdout));
    let summary = text(&output.stderr);
    assert!(summary.contains(" 0 lost\n"), "{summary}");
    for word in ["relocate", "verify", "total", "on_exec: attached by"] {
        assert!(summary.contains(word), "{word}: {summary}");
    }
}

#[test]
fn cli_ends_after_the_duration() {
    if !require(&TRACE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let begun = Instant::now();
    let output = run(&["trace", "--duration", "300ms"]);
    let took = begun.elapsed();
    assert_success(&output);
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert!(took < PATIENCE, "{took:?}");
    // It goes on when the demo is over.
    let begun = Instant::now();
    assert_success(&run(&["trace", "--json", "--demo", "--duration", "1500ms"]));
    assert!(begun.elapsed() >= Duration::from_millis(1500));
}

#[test]
fn cli_min_duration_leaves_short_lives_out() {
    if !require(&TRACE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let output = run(&["trace", "--demo", "--json", "--min-duration", "300ms"]);
    assert_success(&output);
    let (events, _) = events(&output.stdout);
    assert!(of(&events, "exec").len() >= 6);
    let exits = of(&events, "exit");
    assert!(!exits.is_empty());
    for exit in exits {
        assert!(exit.number("duration_ns") >= 300_000_000, "{exit:?}");
    }
}

#[test]
fn cli_signals_end_it() {
    if !require(&TRACE) {
        return;
    }
    for signal in ["INT", "TERM"] {
        let _leaks = LeakCheck::begin();
        let mut running = Running::start(&["trace"]);
        // The header comes when everything is attached.
        assert!(running.line().contains("PID"));
        running.signal(signal);
        let begun = Instant::now();
        let status = running.ended_within(PATIENCE);
        let said = running.stderr();
        assert_eq!(status.and_then(|s| s.code()), Some(0), "{signal}: {said}");
        assert!(said.contains("events "), "{signal}: {said}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{signal}");
    }
}

#[test]
fn cli_ends_with_its_reader() {
    if !require(&TRACE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let mut running = Running::start(&["trace"]);
    running.line();
    // Nothing need happen for it to notice.
    drop(running.stdout.take());
    let status = running.ended_within(PATIENCE);
    let said = running.stderr();
    assert_eq!(status.and_then(|s| s.code()), Some(0), "{said}");
    assert!(!said.contains("ipe"), "{said}");
}

/// Lines of about 900 bytes, more of them than a pipe holds.
const MANY: usize = 60;

/// A program whose name takes four times its bytes when shown.
fn program_with_long_name(dir: &TempDir) -> PathBuf {
    program_named(dir, OsStr::from_bytes(&[1; 200]))
}

#[test]
fn cli_slow_reader_gets_everything() {
    if !require(&TRACE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::new();
    let program = program_with_long_name(&dir);
    let mut running = Running::start(&["trace"]);
    running.line();
    for _ in 0..MANY {
        run_quietly(&program);
    }
    running.signal("INT");
    assert_eq!(running.ended_within(Duration::from_millis(300)), None);
    let mut rest = String::new();
    let stdout = running.stdout.as_mut().unwrap();
    stdout.read_to_string(&mut rest).unwrap();
    let status = running.ended_within(PATIENCE);
    assert_eq!(status.and_then(|s| s.code()), Some(0));
    let shown = r"\x01".repeat(200);
    let ours = rest.lines().filter(|line| line.ends_with(&shown));
    assert_eq!(ours.count(), 2 * MANY);
    let said = running.stderr();
    assert!(said.contains(" 0 lost\n"), "{said}");
}

#[test]
fn cli_second_signal_kills() {
    if !require(&TRACE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::new();
    let program = program_with_long_name(&dir);
    let mut running = Running::start(&["trace"]);
    running.line();
    // Nobody reads on, so it cannot write what it has.
    for _ in 0..MANY {
        run_quietly(&program);
    }
    let deadline = Instant::now() + PATIENCE;
    while running.ended_within(Duration::from_millis(200)).is_none() {
        assert!(Instant::now() < deadline, "still running");
        running.signal("INT");
    }
    let status = running.ended_within(Duration::ZERO).unwrap();
    assert_eq!(status.signal(), Some(2), "{status}");
}

#[test]
fn cli_names_cannot_break_lines() {
    if !require(&TRACE) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let dir = TempDir::new();
    let program = program_named(&dir, OsStr::from_bytes(b"a\"\\b\n\x1b[31m\xff"));
    let shown = dir.path().join("a\"\\b\n\u{1b}[31m\u{fffd}");
    for arguments in [&["trace", "--json"][..], &["trace"]] {
        let json = arguments.len() == 2;
        let begun = Instant::now();
        let mut running = Running::start(arguments);
        let stdout = running.stdout.take().unwrap();
        // JSON has no line that says when it is attached, so until it shows up:
        let found = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !found.load(Ordering::Relaxed) && begun.elapsed() < PATIENCE {
                    run_quietly(&program);
                    thread::sleep(Duration::from_millis(10));
                }
                running.signal("INT");
            });
            for line in stdout.lines() {
                let line = line.unwrap();
                assert!(!line.contains('\u{1b}'), "{line:?}");
                let ours = if json {
                    let event = Json::parse(&line);
                    event.string("event") != "summary"
                        && event.get("file") == &Json::Text(shown.to_str().unwrap().to_owned())
                } else {
                    line.ends_with(r#"/a"\\b\x0a\x1b[31m\xff"#)
                };
                found.fetch_or(ours, Ordering::Relaxed);
            }
        });
        assert!(found.into_inner(), "{arguments:?}");
        let status = running.ended_within(PATIENCE);
        assert_eq!(status.and_then(|s| s.code()), Some(0));
    }
}

#[test]
fn cli_without_privilege_says_what_it_needs() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // The build directory may be closed to others.
    let dir = TempDir::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("ebpf-manager");
    copy(Path::new(env!("CARGO_BIN_EXE_ebpf-manager")), &program);
    for arguments in [&["trace", "--demo"][..], &["trace", "--json"]] {
        let output = Command::new(&program)
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .gid(65534)
            .uid(65534)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(text(&output.stdout), "");
        let said = text(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in ["ebpf-manager: ", "root", "CAP_BPF", "CAP_PERFMON"] {
            assert!(said.contains(word), "{said}");
        }
    }
}

#[test]
fn cli_wrong_command_lines() {
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["--frobnicate"],
        &["trace", "--frobnicate"],
        &["trace", "extra"],
        &["trace", "--duration", "5"],
        &["trace", "--duration"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        let said = text(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("--help"), "{said}");
    }
}

#[test]
fn cli_help_and_version() {
    let output = run(&["--help"]);
    assert_success(&output);
    assert!(text(&output.stdout).contains("trace"));
    let output = run(&["trace", "--help"]);
    assert_success(&output);
    for option in ["--duration", "--min-duration", "--json", "--demo"] {
        assert!(text(&output.stdout).contains(option), "{option}");
    }
    let output = run(&["--version"]);
    assert_success(&output);
    let version = concat!("ebpf-manager ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(text(&output.stdout), version);
}
