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

mod text;

use std::fmt;
use std::path::{Path, PathBuf};

use ebpf_manager_bpf::LoadOptions;
use ebpf_manager_bpf::elf::{MapSpec, Pinning};

use text::{SelectorText, constant_options, delay, hook, number, probe_id, typed, words};

pub use text::duration;

use crate::{Builder, Constant, Manager, MapOptions, MapRoute, ObjectSource, Probe, TailCall};

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
}
