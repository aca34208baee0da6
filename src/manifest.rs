//! Declaring a manager by a small text, a line for each thing:
//!
//! ```text
//! # Relative to the manifest's directory.
//! object trace.bpf.o
//!
//! probe on_exec
//!     hook tracepoint sched/sched_process_exec
//! probe on_open:agent            # a uid, after the colon
//!     hook ksyscall openat
//!     optional
//! select all_of(on_exec, best_effort(on_open:agent))
//!
//! constant min_uid u32 1000
//! symbol sampling_rate 100 only_for on_open
//! map events
//!     max_entries 65536
//! ring_buffer events
//! tail_call jump_table 0 parse_http
//! ```
//!
//! What belongs to a probe or map stands below it, indented. A text with
//! blanks in it stands in double quotes; `#` begins a comment.
//!
//! | line | what it does |
//! | --- | --- |
//! | `object FILE` | the object; required |
//! | `probe FUNCTION[:UID]` | [`Builder::probe`]; below it `hook KIND TARGET`, `optional`, `copied`, `pin PATH`, `retry TIMES DELAY` |
//! | `select SELECTOR` | [`Builder::select`]: `FUNCTION[:UID]`, `all_of(…)`, `one_of(…)`, `best_effort(…)` |
//! | `constant NAME TYPE VALUE` | [`Constant::global`]; types `u8` to `u64`, `i8` to `i64`; then `only_for COPY`, `if_present` |
//! | `symbol NAME NUMBER` | [`Constant::symbol`]; then `only_for PROGRAM`, `if_present` |
//! | `map NAME` | [`Builder::map`]; below it `max_entries N`, `pin PATH`, `always_cleanup`, `freeze` |
//! | `inner_map OUTER INNER` | [`Builder::inner_map`] |
//! | `tail_call ARRAY INDEX PROGRAM` | [`Builder::tail_call`] |
//! | `map_route OUTER KEY INNER` | [`Builder::map_route`]; the key is a `u32` |
//! | `ring_buffer MAP`, `perf_buffer MAP` | a buffer to read: [`Manifest::buffers`] |
//! | `exclude FUNCTION`, `exclude_map MAP` | [`Builder::exclude`], [`Builder::exclude_map`] |
//! | `pin_dir PATH`, `retry TIMES DELAY`, `bypass`, `statistics`, `keep_specs` | the builder's methods of these names |
//!
//! Hooks: `section`, `tracepoint CATEGORY/NAME`, `raw_tracepoint NAME`,
//! `kprobe FUNCTION`, `kretprobe FUNCTION`, `ksyscall NAME`,
//! `kretsyscall NAME`, `uprobe FILE:SYMBOL`, `uretprobe FILE:SYMBOL`,
//! `xdp INTERFACE`, `tc INTERFACE ingress|egress`, `cgroup PATH`.
//!
//! Delays are as [`duration`] has them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebpf_manager_bpf::elf::{MapSpec, Pinning};
use ebpf_manager_bpf::{Direction, Kprobe, LoadOptions, Uprobe};

use crate::{
    Builder, Constant, Hook, Manager, MapOptions, MapRoute, ObjectSource, Probe, ProbeId, Selector,
    TailCall,
};

/// A manager that a text declares; the module's page has the format.
#[derive(Debug)]
pub struct Manifest {
    object: PathBuf,
    builder: Builder,
    buffers: Vec<Buffer>,
    pins: Pins,
}

/// A buffer to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The map.
    pub map: String,
    /// A perf buffer; else a ring buffer.
    pub is_perf: bool,
}

/// Where a manifest pins maps and programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// Of maps and programs that the manifest says it of.
    paths: Vec<PathBuf>,
    /// For maps that the object pins by name.
    dir: Option<PathBuf>,
}

impl Pins {
    /// All paths, given the object's maps ([`Manager::map_specs`]): those that
    /// the manifest names, and those of maps that are declared to be pinned by
    /// their name.
    pub fn of(&self, maps: &[MapSpec]) -> Vec<PathBuf> {
        let dir = self.dir.clone();
        let dir = dir.unwrap_or_else(|| LoadOptions::default().pin_dir);
        let by_name = maps.iter().filter(|map| map.pinning == Pinning::ByName);
        let by_name = by_name.map(|map| dir.join(&map.name));
        self.paths.iter().cloned().chain(by_name).collect()
    }
}

/// A text that is no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}", if *line == 0 { String::new() } else { format!("line {line}: ") })]
pub struct ManifestError {
    /// The line, from 1; 0 for the text as a whole.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl Manifest {
    /// Understands a manifest. Nothing is opened.
    ///
    /// # Errors
    /// [`ManifestError`], naming the line.
    pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
        let mut parser = Parser::default();
        for (number, line) in (1..).zip(text.lines()) {
            parser
                .line(line)
                .map_err(|what| ManifestError { line: number, what })?;
        }
        parser.flush();
        let object = parser.object.ok_or_else(|| ManifestError {
            line: 0,
            what: "no line says which object".to_owned(),
        })?;
        Ok(Manifest {
            object,
            builder: parser.builder,
            buffers: parser.buffers,
            pins: parser.pins,
        })
    }

    /// Reads and understands a manifest.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn read(path: &Path) -> Result<Manifest, ManifestError> {
        let text = std::fs::read_to_string(path).map_err(|err| ManifestError {
            line: 0,
            what: err.to_string(),
        })?;
        let mut manifest = Manifest::parse(&text)?;
        if let Some(dir) = path.parent() {
            manifest.object = dir.join(&manifest.object);
        }
        Ok(manifest)
    }

    /// The object, for [`Manager::init`].
    pub fn object(&self) -> ObjectSource {
        ObjectSource::path(&self.object)
    }

    /// The buffers to read, for which the caller adds streams to the builder.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// The pins that a manager declared like this makes or uses.
    pub fn pins(&self) -> Pins {
        self.pins.clone()
    }

    /// The declaration, without streams.
    pub fn into_builder(self) -> Builder {
        self.builder
    }
}

/// What indented lines belong to.
enum Block {
    Probe(Box<Probe>),
    Map(String, MapOptions),
}

struct Parser {
    object: Option<PathBuf>,
    builder: Builder,
    buffers: Vec<Buffer>,
    pins: Pins,
    block: Option<Block>,
}

impl Default for Parser {
    fn default() -> Parser {
        Parser {
            object: None,
            builder: Manager::builder(),
            buffers: Vec::new(),
            pins: Pins::default(),
            block: None,
        }
    }
}

impl Parser {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let words = words(line)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Some((keyword, rest)) = words.split_first() else {
            return Ok(());
        };
        if line.starts_with(char::is_whitespace) {
            return match self.block.take() {
                Some(block) => {
                    self.block = Some(self.detail(block, keyword, rest)?);
                    Ok(())
                }
                None => Err(format!("{keyword} is indented below no probe or map")),
            };
        }
        self.flush();
        // The selector's commas and brackets are its own.
        if *keyword == "select" {
            let text = line.split('#').next().unwrap_or_default();
            let text = text.trim().strip_prefix("select").unwrap_or_default();
            let selector = SelectorText(text.trim()).whole()?;
            return self.build(|builder| builder.select(selector));
        }
        match (*keyword, rest) {
            ("object", [path]) => self.object = Some(PathBuf::from(path)),
            ("probe", [id]) => {
                let id = probe_id(id);
                let probe = Probe::new(id.function).uid(id.uid);
                self.block = Some(Block::Probe(Box::new(probe)));
            }
            ("map", [name]) => {
                self.block = Some(Block::Map((*name).to_owned(), MapOptions::new()));
            }
            ("ring_buffer" | "perf_buffer", [map]) => self.buffers.push(Buffer {
                map: (*map).to_owned(),
                is_perf: *keyword == "perf_buffer",
            }),
            ("constant", [name, kind, value, options @ ..]) => {
                let constant = Constant::global_bytes(*name, typed(kind, value)?);
                let constant = constant_options(constant, options)?;
                return self.build(|builder| builder.edit(constant));
            }
            ("symbol", [name, value, options @ ..]) => {
                let constant = Constant::symbol(*name, number(value)?);
                let constant = constant_options(constant, options)?;
                return self.build(|builder| builder.edit(constant));
            }
            ("inner_map", [outer, inner]) => {
                return self.build(|builder| builder.inner_map(*outer, *inner));
            }
            ("tail_call", [array, index, program]) => {
                let route = TailCall::new(*array, number(index)?, *program);
                return self.build(|builder| builder.tail_call(route));
            }
            ("map_route", [outer, key, inner]) => {
                let key: u32 = number(key)?;
                let route = MapRoute::new(*outer, &key, *inner);
                return self.build(|builder| builder.map_route(route));
            }
            ("exclude", [function]) => return self.build(|builder| builder.exclude(*function)),
            ("exclude_map", [map]) => return self.build(|builder| builder.exclude_map(*map)),
            ("pin_dir", [path]) => {
                self.pins.dir = Some(PathBuf::from(path));
                return self.build(|builder| builder.pin_dir(path));
            }
            ("retry", [times, pause]) => {
                let (times, pause) = (number(times)?, delay(pause)?);
                return self.build(|builder| builder.retry(times, pause));
            }
            ("bypass", []) => return self.build(Builder::bypass),
            ("statistics", []) => return self.build(Builder::statistics),
            ("keep_specs", []) => return self.build(Builder::keep_specs),
            _ => return Err(format!("{} is not understood", words.join(" "))),
        }
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "the end of every line")]
    fn build(&mut self, step: impl FnOnce(Builder) -> Builder) -> Result<(), String> {
        let builder = std::mem::replace(&mut self.builder, Manager::builder());
        self.builder = step(builder);
        Ok(())
    }

    fn detail(&mut self, block: Block, keyword: &str, rest: &[&str]) -> Result<Block, String> {
        Ok(match (block, keyword, rest) {
            (Block::Probe(probe), "hook", words) => {
                Block::Probe(Box::new(probe.hook(hook(words)?)))
            }
            (Block::Probe(probe), "optional", []) => Block::Probe(Box::new(probe.optional())),
            (Block::Probe(probe), "copied", []) => Block::Probe(Box::new(probe.copied())),
            (Block::Probe(probe), "pin", [path]) => {
                self.pins.paths.push(PathBuf::from(path));
                Block::Probe(Box::new(probe.pin(path)))
            }
            (Block::Probe(probe), "retry", [times, pause]) => {
                Block::Probe(Box::new(probe.retry(number(times)?, delay(pause)?)))
            }
            (Block::Map(name, options), "pin", [path]) => {
                self.pins.paths.push(PathBuf::from(path));
                Block::Map(name, options.pin(path))
            }
            (Block::Map(name, options), "always_cleanup", []) => {
                Block::Map(name, options.always_cleanup())
            }
            (Block::Map(name, options), "freeze", []) => Block::Map(name, options.freeze()),
            (Block::Map(name, options), "max_entries", [count]) => {
                let count = number(count)?;
                let map = name.clone();
                self.build(|builder| builder.edit_map(map, move |spec| spec.max_entries = count))?;
                Block::Map(name, options)
            }
            (_, keyword, rest) => {
                return Err(format!(
                    "{} is not understood here",
                    [&[keyword], rest].concat().join(" ")
                ));
            }
        })
    }

    /// A probe or map is complete.
    fn flush(&mut self) {
        // Cannot fail.
        let _ = match self.block.take() {
            Some(Block::Probe(probe)) => self.build(|builder| builder.probe(*probe)),
            Some(Block::Map(name, options)) => self.build(|builder| builder.map(name, options)),
            None => Ok(()),
        };
    }
}

/// The words of a line, without comment and quotes.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

fn probe_id(text: &str) -> ProbeId {
    match text.split_once(':') {
        Some((function, uid)) => ProbeId::new(function, uid),
        None => ProbeId::from(text),
    }
}

fn hook(words: &[&str]) -> Result<Hook, String> {
    Ok(match words {
        ["section"] => Hook::section(),
        ["tracepoint", place] => match place.split_once('/') {
            Some((category, name)) => Hook::tracepoint(category, name),
            None => return Err(format!("{place} is no CATEGORY/NAME")),
        },
        ["raw_tracepoint", name] => Hook::raw_tracepoint(*name),
        ["kprobe", function] => Hook::kprobe(Kprobe::new(*function)),
        ["kretprobe", function] => Hook::kprobe(Kprobe::new(*function).on_return()),
        ["ksyscall", name] => Hook::kprobe(Kprobe::syscall(*name)),
        ["kretsyscall", name] => Hook::kprobe(Kprobe::syscall(*name).on_return()),
        [kind @ ("uprobe" | "uretprobe"), place] => match place.rsplit_once(':') {
            Some((path, symbol)) => {
                let probe = Uprobe::symbol(path, symbol);
                let returns = *kind == "uretprobe";
                Hook::uprobe(if returns { probe.on_return() } else { probe })
            }
            None => return Err(format!("{place} is no FILE:SYMBOL")),
        },
        ["xdp", interface] => Hook::xdp(*interface),
        ["tc", interface, "ingress"] => Hook::tc(*interface, Direction::Ingress),
        ["tc", interface, "egress"] => Hook::tc(*interface, Direction::Egress),
        ["cgroup", path] => Hook::cgroup(path),
        _ => return Err(format!("{} is no hook", words.join(" "))),
    })
}

fn constant_options(mut constant: Constant, words: &[&str]) -> Result<Constant, String> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        constant = match (*word, words.as_slice()) {
            ("if_present", _) => constant.if_present(),
            ("only_for", [program, ..]) => {
                words.next();
                constant.only_for(*program)
            }
            _ => return Err(format!("{word} is not understood here")),
        };
    }
    Ok(constant)
}

/// A whole number, decimal or after `0x`.
fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    parsed
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("{text} is no number that fits"))
}

/// A number as the bytes of a C type.
fn typed(kind: &str, text: &str) -> Result<Vec<u8>, String> {
    let bits: usize = match kind {
        "u8" | "i8" => 8,
        "u16" | "i16" => 16,
        "u32" | "i32" => 32,
        "u64" | "i64" => 64,
        _ => return Err(format!("{kind} is no type: u8 to u64, i8 to i64")),
    };
    let unfit = || format!("{text} does not fit {kind}");
    let value: i128 = match text.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .map_err(|_| format!("{text} is no number"))?;
    let range = if kind.starts_with('u') {
        0..1_i128 << bits
    } else {
        -(1_i128 << (bits - 1))..1_i128 << (bits - 1)
    };
    if !range.contains(&value) {
        return Err(unfit());
    }
    let all = (value as u64).to_ne_bytes();
    let bytes = bits / 8;
    Ok(if cfg!(target_endian = "little") {
        all[..bytes].to_vec()
    } else {
        all[8 - bytes..].to_vec()
    })
}

fn delay(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| format!("{text} is no time like 100ms"))
}

/// A whole number and its unit: `us`, `ms`, `s`, `m`, `h`. At most what fits
/// nanoseconds in 64 bits, 584 years; `None` for any other text.
pub fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(unit_at)?;
    let unit_ns = match unit {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(unit_ns).map(Duration::from_nanos)
}

/// What is left of a selector's text.
struct SelectorText<'t>(&'t str);

/// How deep selectors may be nested.
const DEPTH: usize = 32;

impl SelectorText<'_> {
    fn whole(mut self) -> Result<Selector, String> {
        let selector = self.next(DEPTH)?;
        if self.0.is_empty() {
            Ok(selector)
        } else {
            Err(format!("what does {:?} belong to?", self.0))
        }
    }

    fn next(&mut self, depth: usize) -> Result<Selector, String> {
        let end = self.0.find(['(', ')', ',']).unwrap_or(self.0.len());
        let (name, rest) = self.0.split_at(end);
        let name = name.trim();
        if name.is_empty() || depth == 0 {
            return Err("a selector is not complete".to_owned());
        }
        let Some(rest) = rest.strip_prefix('(') else {
            self.0 = rest;
            return Ok(Selector::Probe(probe_id(name)));
        };
        self.0 = rest.trim_start();
        let mut parts = Vec::new();
        loop {
            if let Some(rest) = self.0.strip_prefix(')') {
                self.0 = rest.trim_start();
                break;
            }
            parts.push(self.next(depth - 1)?);
            if let Some(rest) = self.0.strip_prefix(',') {
                self.0 = rest.trim_start();
            } else if !self.0.starts_with(')') {
                return Err("a bracket is not closed".to_owned());
            }
        }
        match name {
            "all_of" => Ok(Selector::AllOf(parts)),
            "one_of" => Ok(Selector::OneOf(parts)),
            "best_effort" => Ok(Selector::BestEffort(parts)),
            _ => Err(format!("{name} is no selector")),
        }
    }
}

impl fmt::Display for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_perf {
            "perf buffer"
        } else {
            "ring buffer"
        };
        write!(f, "{kind} {}", self.map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let text = "
            # A comment.
object \"a file.bpf.o\"   # another
probe on_exec
    hook tracepoint sched/sched_process_exec
    optional
probe on_open:agent
    hook kretsyscall openat
    copied
    pin /sys/fs/bpf/on_open
    retry 3 100ms
probe p3
\thook uprobe /bin/bash:readline
probe p4
    hook tc eth0 egress
probe p5
    hook cgroup /
select all_of(on_exec, one_of(on_open:agent, p3), best_effort(p4,p5))
constant limit u16 0x10
constant offset i64 -5 only_for p3_x if_present
symbol rate 100 only_for on_open
map events
    max_entries 4096
    pin /sys/fs/bpf/events
    always_cleanup
    freeze
inner_map outer events
tail_call jumps 2 p3
map_route outer 7 events
ring_buffer events
perf_buffer others
exclude p9
exclude_map unused
pin_dir /sys/fs/bpf/dir
retry 1 2s
bypass
statistics
keep_specs
";
        let manifest = Manifest::parse(text).unwrap();
        assert_eq!(manifest.object, PathBuf::from("a file.bpf.o"));
        let buffers: Vec<String> = manifest.buffers().iter().map(ToString::to_string).collect();
        assert_eq!(buffers, ["ring buffer events", "perf buffer others"]);
        let by_name = MapSpec {
            name: "shared".to_owned(),
            pinning: Pinning::ByName,
            ..MapSpec::default()
        };
        let pins = manifest.pins().of(&[MapSpec::default(), by_name]);
        let pins: Vec<_> = pins.iter().map(|path| path.to_str().unwrap()).collect();
        let in_bpffs = ["on_open", "events", "dir/shared"].map(|p| format!("/sys/fs/bpf/{p}"));
        assert_eq!(pins, in_bpffs);
        let builder = manifest.into_builder();
        let ids: Vec<String> = builder.probes.iter().map(|p| p.id().to_string()).collect();
        assert_eq!(ids, ["on_exec", "on_open (agent)", "p3", "p4", "p5"]);
        let selector = builder.selectors[0].to_string();
        assert_eq!(
            selector,
            "all of (on_exec, one of (on_open (agent), p3), best effort (p4, p5))"
        );
        assert_eq!(builder.defaults.retry.times, 1);
        builder.build().unwrap();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("250us"), Some(Duration::from_micros(250)));
        assert_eq!(duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Some(Duration::from_secs(3600)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "+5s",
            "5x",
            "1.5s",
            "5S",
            "5s5",
            "1m30s",
            "é",
            "5124096h",
            "99999999999999999999s",
        ] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, line, says) in [
            ("", 0, "object"),
            ("object", 1, "object"),
            ("object a\nfrobnicate", 2, "frobnicate"),
            ("object a\n  optional", 2, "below no probe"),
            ("object a\nprobe p\n  frob", 3, "frob"),
            ("object a\nprobe p\n  hook kprobe", 3, "no hook"),
            ("object a\nprobe p\n  hook tracepoint x", 3, "CATEGORY/NAME"),
            ("object a\nprobe p\n  retry 1 2", 3, "100ms"),
            ("object a\nmap m\n  optional", 3, "optional"),
            ("object a\nconstant c u8 256", 2, "fit"),
            ("object a\nconstant c u8 -1", 2, "fit"),
            ("object a\nconstant c f32 1", 2, "no type"),
            ("object a\nconstant c u8 1 frob", 2, "frob"),
            ("object a\nconstant c u8 1 only_for", 2, "only_for"),
            ("object a\ntail_call a x p", 2, "number"),
            ("object a\nselect all_of(p", 2, "bracket"),
            ("object a\nselect some_of(p)", 2, "some_of"),
            ("object a\nselect all_of(p) q", 2, "q"),
            ("object a\nselect", 2, "not complete"),
            ("object \"a", 1, "quote"),
        ] {
            let err = Manifest::parse(text).unwrap_err();
            assert_eq!(err.line, line, "{text:?}: {err}");
            assert!(err.to_string().contains(says), "{text:?}: {err}");
        }
        let deep = format!("object a\nselect {}", "all_of(".repeat(100));
        assert!(Manifest::parse(&deep).is_err());
    }

    #[test]
    fn numbers_have_their_types_bytes() {
        assert_eq!(typed("u16", "258"), Ok(258_u16.to_ne_bytes().to_vec()));
        assert_eq!(typed("i32", "-2"), Ok((-2_i32).to_ne_bytes().to_vec()));
        assert_eq!(typed("u64", "0xffffffffffffffff"), Ok(vec![0xff; 8]));
        assert_eq!(typed("i8", "-128"), Ok(vec![0x80]));
        assert!(typed("i8", "128").is_err());
    }
}
