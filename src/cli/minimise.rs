//! `ebpf-manager minimise`: the part of a kernel's BTF that objects need.

use std::fs;
use std::path::PathBuf;

use ebpf_manager::bpf::{KernelBtf, open_object};
use ebpf_manager::elf::core_relo;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The whole BTF; the running kernel's if `None`.
    pub(crate) btf: Option<PathBuf>,
    pub(crate) output: PathBuf,
    pub(crate) objects: Vec<PathBuf>,
}

/// Writes the small BTF.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let kernel = match &options.btf {
        Some(path) => KernelBtf::from_file(path),
        None => KernelBtf::vmlinux(),
    }
    .map_err(|err| err.to_string())?;
    let source = match &options.btf {
        Some(path) => path.display().to_string(),
        None => String::from("the kernel's BTF"),
    };
    let objects: Vec<_> = options.objects.iter().map(open_object).collect();
    let mut linkers = Vec::with_capacity(objects.len());
    for (path, object) in options.objects.iter().zip(&objects) {
        let object = object.as_ref().map_err(ToString::to_string)?;
        let linker = object.linker();
        linkers.push(linker.map_err(|err| format!("{}: {err}", path.display()))?);
    }
    let linkers: Vec<_> = linkers.iter().collect();
    let small = core_relo::minimise(kernel.as_bytes(), &linkers)
        .map_err(|err| format!("{source}: {err}"))?;
    let path = &options.output;
    fs::write(path, small).map_err(|err| format!("{}: {err}", path.display()))
}
