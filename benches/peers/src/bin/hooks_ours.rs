//! Attaches uprobes or kprobes with this project's links, one by one or by one
//! link.
//!
//! ```text
//! hooks_ours [PLACES [multi|kernel [multi]]]
//! ```

use std::process::ExitCode;

use ebpf_manager::bpf::{
    Collection, Kprobe, KprobeMulti, Link, LoadOptions, Mechanism, Uprobe, UprobeMulti, UserPlace,
    open_object,
};
use ebpf_manager_peers::hooks::{self, Places};
use ebpf_manager_peers::{Result, child};

fn attach(arguments: &[String]) -> Result<Vec<u64>> {
    let collection = Collection::load(&open_object(hooks::object())?, LoadOptions::default())?;
    let program = |name| collection.program(name).ok_or("no such program");
    let detach = |link: Link| Ok(link.detach()?);
    if hooks::in_the_kernel(arguments) {
        let functions = hooks::functions(arguments)?;
        if arguments.get(2).is_some_and(|how| how == "multi") {
            let program = program("on_kprobe_multi")?;
            let attach = || {
                let probe = KprobeMulti::symbols(&functions).attach_by(Mechanism::KprobeMulti);
                Ok(vec![Link::kprobe_multi(program, &probe)?])
            };
            return hooks::timed(attach, detach);
        }
        let program = program(hooks::KERNEL_PROGRAM)?;
        return hooks::each(
            &functions,
            |name| {
                let probe = Kprobe::new(name).attach_by(Mechanism::PerfEventLink);
                Ok(Link::kprobe(program, &probe)?)
            },
            detach,
        );
    }
    let places = Places::new(arguments)?;
    if arguments.get(1).is_some_and(|how| how == "multi") {
        let program = program("on_uprobe_multi")?;
        return hooks::timed(
            || {
                let mut probe = UprobeMulti::symbols(&places.file, [""; 0]);
                probe.places = places
                    .offsets
                    .iter()
                    .copied()
                    .map(UserPlace::Offset)
                    .collect();
                let probe = probe.attach_by(Mechanism::UprobeMulti);
                Ok(vec![Link::uprobe_multi(program, &probe)?])
            },
            detach,
        );
    }
    let program = program(hooks::PROGRAM)?;
    places.one_by_one(
        |file, offset| {
            let probe = Uprobe::offset(file, offset).attach_by(Mechanism::PerfEventLink);
            Ok(Link::uprobe(program, &probe)?)
        },
        detach,
    )
}

fn main() -> ExitCode {
    child::run(attach)
}
