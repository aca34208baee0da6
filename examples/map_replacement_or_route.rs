//! Shows: a map shared by replacing it before, or by routing to it after the load.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use ebpf_manager::bpf::TestRun;
use ebpf_manager::{Manager, MapRoute};

fn main() -> ExitCode {
    common::run(
        "a map shared by replacing it before, or by routing to it after the load",
        example,
    )
}

fn example() -> common::Result {
    let first = Manager::builder().build()?;
    first.init(&common::object())?;

    // Before the load: the second manager's programs use the first one's map.
    let counts = first.map("counts").ok_or("no counts")?;
    let second = Manager::builder().replace_map("counts", &counts).build()?;
    second.init(&common::object())?;
    let seen = [returned(&first, "count")?, returned(&second, "count")?];
    println!("counted by two managers in one map: {seen:?}");
    common::check(seen == [1, 2], "they do not share the map")?;

    // After the load, as often as wanted: a map of maps says which one.
    common::check(returned(&second, "route")? == 0, "nothing is routed yet")?;
    for value in [7_u64, 8] {
        let map = second.clone_map(
            "inner_default",
            format!("inner_{value}"),
            &ebpf_manager::MapOptions::new(),
        )?;
        map.set(&0_u32, &value)?;
        second.update_map_routes(&[MapRoute::to("routed", &0_u32, &map)])?;
        let returned = returned(&second, "route")?;
        println!("routed to a map with {returned}");
        common::check(u64::from(returned) == value, "the route leads elsewhere")?;
    }
    second.stop()?;
    first.stop()?;
    Ok(())
}

fn returned(manager: &Manager, function: &str) -> common::Result<u32> {
    let program = manager.program(function).ok_or("no such program")?;
    let mut run = TestRun {
        data_in: &[0; 64],
        ..TestRun::default()
    };
    Ok(program.test_run(&mut run)?.retval)
}
