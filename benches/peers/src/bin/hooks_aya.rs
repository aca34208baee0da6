//! Attaches uprobes with aya, one by one.

use std::cell::RefCell;
use std::process::ExitCode;

use aya::programs::uprobe::{UProbe, UProbeScope};
use aya::programs::{ProbeKind, loaded_programs};
use ebpf_manager::bpf::{Collection, LoadOptions, open_object};
use ebpf_manager_peers::hooks::{self, Places};
use ebpf_manager_peers::{Result, child};

fn attach(arguments: &[String]) -> Result<Vec<u64>> {
    let places = Places::new(arguments)?;
    // Aya refuses an object with a section `kprobe.multi`, so it takes over a
    // program that is loaded already.
    let collection = Collection::load(&open_object(hooks::object())?, LoadOptions::default())?;
    let loaded = collection.program(hooks::PROGRAM);
    let id = loaded.ok_or("no such program")?.id()?;
    let info = loaded_programs().flatten().find(|info| info.id() == id);
    let info = info.ok_or("the program is gone")?;
    // SAFETY: the program is one for uprobes.
    let program =
        unsafe { UProbe::from_program_info(info, hooks::PROGRAM.into(), ProbeKind::Entry)? };
    // What the kernel can do is asked once, at the first use: that is part of
    // loading, not of attaching.
    aya::features();
    let program = RefCell::new(program);
    places.one_by_one(
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
