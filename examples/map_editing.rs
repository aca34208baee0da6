//! Shows: a map with another size than its definition says, filled before the load.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::{Manager, MapOptions};

fn main() -> ExitCode {
    common::run(
        "a map with another size than its definition says, filled before the load",
        example,
    )
}

fn example() -> common::Result {
    let manager = Manager::builder()
        .edit_map("counts", |spec| spec.max_entries = 4096)
        .map("counts", MapOptions::new().entry(&0_u32, &41_u64))
        .build()?;
    manager.init(&common::object())?;
    let map = manager.map("counts").ok_or("no counts")?;
    let value: Option<u64> = map.get(&0_u32)?;
    println!(
        "{} entries at most; the first is {value:?}",
        map.max_entries()
    );
    common::check(
        map.max_entries() == 4096,
        "it has the size of its definition",
    )?;
    common::check(value == Some(41), "it is not filled")?;
    manager.stop()?;
    Ok(())
}
