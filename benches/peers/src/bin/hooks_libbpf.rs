//! Attaches uprobes or kprobes with libbpf-rs, one by one.

use std::process::ExitCode;

use ebpf_manager_peers::hooks::{self, Places};
use ebpf_manager_peers::{Result, child};
use libbpf_rs::{Link, ObjectBuilder};

fn attach(arguments: &[String]) -> Result<Vec<u64>> {
    let in_the_kernel = hooks::in_the_kernel(arguments);
    let name = if in_the_kernel {
        hooks::KERNEL_PROGRAM
    } else {
        hooks::PROGRAM
    };
    let mut object = ObjectBuilder::default().open_file(hooks::object())?;
    for mut program in object.progs_mut() {
        let wanted = program.name() == name;
        program.set_autoload(wanted);
    }
    let object = object.load()?;
    let mut programs = object.progs_mut();
    let program = programs.find(|p| p.name() == name);
    let program = program.ok_or("no such program")?;
    let detach = |link: Link| {
        drop(link);
        Ok(())
    };
    if in_the_kernel {
        let functions = hooks::functions(arguments)?;
        return hooks::each(
            &functions,
            |name| Ok(program.attach_kprobe(false, name)?),
            detach,
        );
    }
    Places::new(arguments)?.one_by_one(
        |file, offset| Ok(program.attach_uprobe(false, -1, file, offset as usize)?),
        detach,
    )
}

fn main() -> ExitCode {
    child::run(attach)
}
