//! Attaching to many places in one binary, and detaching: the places, and the time.

use std::path::{Path, PathBuf};
use std::time::Instant;

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

/// The object with the program to attach.
pub fn object() -> String {
    fixture("probes.bpf.o")
}

/// The program in it.
pub const PROGRAM: &str = "on_uprobe";

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
