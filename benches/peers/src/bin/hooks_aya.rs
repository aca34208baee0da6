//! Attaches uprobes or kprobes with aya, one by one.

use std::cell::RefCell;
use std::process::ExitCode;

use aya::programs::uprobe::{UProbe, UProbeScope};
use aya::programs::{KProbe, ProbeKind, loaded_programs};
use ebpf_manager::bpf::{Collection, LoadOptions, open_object};
use ebpf_manager_peers::hooks::{self, Places};
use ebpf_manager_peers::{Result, child};

fn attach(arguments: &[String]) -> Result<Vec<u64>> {
    let in_the_kernel = hooks::in_the_kernel(arguments);
    let name = if in_the_kernel {
        hooks::KERNEL_PROGRAM
    } else {
        hooks::PROGRAM
    };
    // Aya refuses an object with a section `kprobe.multi`, so it takes over a
    // program that is loaded already.
    let collection = Collection::load(&open_object(hooks::object())?, LoadOptions::default())?;
    let loaded = collection.program(name);
    let id = loaded.ok_or("no such program")?.id()?;
    let info = loaded_programs().flatten().find(|info| info.id() == id);
    let info = info.ok_or("the program is gone")?;
    // What the kernel can do is asked once, at the first use: that is part of
    // loading, not of attaching.
    aya::features();
    if in_the_kernel {
        let functions = hooks::functions(arguments)?;
        // SAFETY: the program is one for kprobes.
        let program = unsafe { KProbe::from_program_info(info, name.into(), ProbeKind::Entry)? };
        let program = RefCell::new(program);
        return hooks::each(
            &functions,
            |function| Ok(program.borrow_mut().attach(function, 0)?),
            |link| Ok(program.borrow_mut().detach(link)?),
        );
    }
    // SAFETY: the program is one for uprobes.
    let program = unsafe { UProbe::from_program_info(info, name.into(), ProbeKind::Entry)? };
    let program = RefCell::new(program);
    Places::new(arguments)?.one_by_one(
        |file, offset| {
            let scope = UProbeScope::AllProcesses;
            Ok(program.borrow_mut().attach(offset, file, scope)?)
        },
        |link| Ok(program.borrow_mut().detach(link)?),
    )
}

fn main() -> ExitCode {
    child::run(attach)
}
