//! Loads an object with libbpf-rs; attaches the named program.

use std::process::ExitCode;

use ebpf_manager_peers::{Result, child};
use libbpf_rs::ObjectBuilder;

fn load(arguments: &[String]) -> Result<Vec<u64>> {
    let path = arguments.first().ok_or("no object")?;
    let object = ObjectBuilder::default().open_file(path)?.load()?;
    if let Some(name) = arguments.get(1) {
        let mut programs = object.progs_mut();
        let program = programs.find(|p| p.name() == name.as_str());
        drop(program.ok_or("no such program")?.attach()?);
    }
    Ok(Vec::new())
}

fn main() -> ExitCode {
    child::run(load)
}
