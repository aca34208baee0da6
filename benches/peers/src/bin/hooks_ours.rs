//! Attaches uprobes with this project's links, one by one or by one link.
//!
//! ```text
//! hooks_ours [PLACES [multi]]
//! ```

use std::process::ExitCode;

use ebpf_manager::bpf::{
    Collection, Link, LoadOptions, Mechanism, Uprobe, UprobeMulti, UserPlace, open_object,
};
use ebpf_manager_peers::hooks::{self, Places};
use ebpf_manager_peers::{Result, child};

fn attach(arguments: &[String]) -> Result<Vec<u64>> {
    let places = Places::new(arguments)?;
    let collection = Collection::load(&open_object(hooks::object())?, LoadOptions::default())?;
    let program = |name| collection.program(name).ok_or("no such program");
    let detach = |link: Link| Ok(link.detach()?);
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
