//! `ebpf-manager link`: several objects linked into one.

use std::fs;
use std::path::PathBuf;

use ebpf_manager::bpf::link_objects;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) output: PathBuf,
    pub(crate) objects: Vec<PathBuf>,
}

/// Writes the linked object.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let linked = link_objects(&options.objects).map_err(|err| err.to_string())?;
    let path = &options.output;
    fs::write(path, linked).map_err(|err| format!("{}: {err}", path.display()))
}
