//! Attaching to many places in one binary, or to many functions of the kernel,
//! and detaching: the places, and the time.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ebpf_manager::bpf::traceable_functions;
use ebpf_manager::elf::symbols;

use crate::Result;
use crate::measure::fixture;

/// Places, unless the command line says how many.
pub const PLACES: usize = 500;

/// Places in a file that nobody runs, so that no process has to be changed.
#[derive(Debug)]
pub struct Places {
    /// The file; it is removed when this is dropped.
    pub file: PathBuf,
    /// Offsets of functions in it.
    pub offsets: Vec<u64>,
}

impl Places {
    /// As many functions of a copy of the C library as the first argument says.
    pub fn new(arguments: &[String]) -> Result<Places> {
        let count = arguments.first().map_or(Ok(PLACES), |n| n.parse())?;
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let mut mapped = maps
            .lines()
            .filter_map(|line| line.find('/').map(|at| &line[at..]));
        let library = mapped
            .find(|path| path.contains("/libc.so") || path.contains("/libc-"))
            .ok_or("this program has no C library")?;
        let bytes = std::fs::read(library)?;
        let mut offsets = Vec::new();
        symbols::for_each_function(&bytes, &mut |symbol| {
            if symbol.size >= 16 {
                offsets.push(symbol.offset);
            }
        })?;
        offsets.sort_unstable();
        offsets.dedup();
        offsets.truncate(count);
        if offsets.len() < count {
            return Err(format!("{library} has {} functions only", offsets.len()).into());
        }
        let file = std::env::temp_dir().join(format!("peers-hooks-{}", std::process::id()));
        let places = Places { file, offsets };
        std::fs::write(&places.file, &bytes)?;
        Ok(places)
    }

    /// Attaches to all places, one by one, then detaches, one by one.
    pub fn one_by_one<L>(
        &self,
        mut attach: impl FnMut(&Path, u64) -> Result<L>,
        detach: impl FnMut(L) -> Result<()>,
    ) -> Result<Vec<u64>> {
        let attach_all = || {
            let offsets = self.offsets.iter();
            offsets.map(|at| attach(&self.file, *at)).collect()
        };
        timed(attach_all, detach)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Whether the second argument asks for functions of the kernel.
pub fn in_the_kernel(arguments: &[String]) -> bool {
    arguments.get(1).is_some_and(|what| what == "kernel")
}

/// As many functions of the kernel as the first argument says, which kprobes
/// can be put on and which are seldom called.
pub fn functions(arguments: &[String]) -> Result<Vec<String>> {
    let count = arguments.first().map_or(Ok(PLACES), |n| n.parse())?;
    let mut bearers: HashMap<String, usize> = HashMap::new();
    for line in std::fs::read_to_string("/proc/kallsyms")?.lines() {
        let name = line.split_whitespace().nth(2).unwrap_or_default();
        *bearers.entry(name.to_owned()).or_default() += 1;
    }
    let refused = std::fs::read_to_string("/sys/kernel/debug/kprobes/blacklist")?;
    let refused: HashSet<&str> = refused
        .lines()
        .filter_map(|l| l.split_whitespace().last())
        .collect();
    let mut names = Vec::new();
    for pattern in ["acpi_*", "pci_*", "regulator_*", "drm_*"] {
        names.extend(traceable_functions(pattern).unwrap_or_default());
    }
    names.retain(|name| bearers.get(name) == Some(&1) && !refused.contains(name.as_str()));
    names.truncate(count);
    if names.len() < count {
        return Err(format!("{} such functions only", names.len()).into());
    }
    Ok(names)
}

/// Attaches to all of these, one by one, then detaches, one by one.
pub fn each<L>(
    functions: &[String],
    mut attach: impl FnMut(&str) -> Result<L>,
    detach: impl FnMut(L) -> Result<()>,
) -> Result<Vec<u64>> {
    timed(
        || functions.iter().map(|name| attach(name)).collect(),
        detach,
    )
}

/// The object with the program to attach.
pub fn object() -> String {
    fixture("probes.bpf.o")
}

/// The program in it for places in a binary.
pub const PROGRAM: &str = "on_uprobe";

/// And for functions of the kernel.
pub const KERNEL_PROGRAM: &str = "on_kprobe";

/// Prints in milliseconds, and gives in microseconds, how long `attach` and
/// detaching what it attached take.
pub fn timed<L>(
    attach: impl FnOnce() -> Result<Vec<L>>,
    detach: impl FnMut(L) -> Result<()>,
) -> Result<Vec<u64>> {
    let start = Instant::now();
    let links = attach()?;
    let attached = start.elapsed();
    let start = Instant::now();
    links.into_iter().try_for_each(detach)?;
    let detached = start.elapsed();
    let [attached, detached] = [attached, detached].map(|time| time.as_micros() as u64);
    let ms = |micros: u64| micros as f64 / 1e3;
    println!(
        "attach {:.1} ms, detach {:.1} ms",
        ms(attached),
        ms(detached)
    );
    Ok(vec![attached, detached])
}
