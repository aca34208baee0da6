//! Attaches uprobes with libbpf-rs, one by one.

use std::process::ExitCode;

use ebpf_manager_peers::hooks::{self, Places};
use ebpf_manager_peers::{Result, child};
use libbpf_rs::{Link, ObjectBuilder};

fn attach(arguments: &[String]) -> Result<Vec<u64>> {
    let places = Places::new(arguments)?;
    let mut object = ObjectBuilder::default().open_file(hooks::object())?;
    for mut program in object.progs_mut() {
        let wanted = program.name() == hooks::PROGRAM;
        program.set_autoload(wanted);
    }
    let object = object.load()?;
    let mut programs = object.progs_mut();
    let program = programs.find(|p| p.name() == hooks::PROGRAM);
    let program = program.ok_or("no such program")?;
    places.one_by_one(
        |file, offset| Ok(program.attach_uprobe(false, -1, file, offset as usize)?),
        |link: Link| {
            drop(link);
            Ok(())
        },
    )
}

fn main() -> ExitCode {
    child::run(attach)
}
