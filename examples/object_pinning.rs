//! Shows: a map that outlives its manager and is taken up by the next.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::process::ExitCode;

use std::path::PathBuf;

use ebpf_manager::{Manager, MapOptions};

fn main() -> ExitCode {
    common::run(
        "a map that outlives its manager and is taken up by the next",
        example,
    )
}

fn example() -> common::Result {
    common::needs(
        "no BPF file system is mounted at /sys/fs/bpf",
        common::file_says("/proc/self/mounts", " /sys/fs/bpf bpf "),
    )?;
    let pin = PathBuf::from(format!("/sys/fs/bpf/example-{}", std::process::id()));
    let build = |options: MapOptions| Manager::builder().map("counts", options.pin(&pin)).build();

    let first = build(MapOptions::new())?;
    first.init(&common::object())?;
    first
        .map("counts")
        .ok_or("no counts")?
        .set(&7_u32, &77_u64)?;
    first.stop()?;
    println!(
        "stopped; {} is still there: {}",
        pin.display(),
        pin.exists()
    );

    let second = build(MapOptions::new().always_cleanup())?;
    second.init(&common::object())?;
    let value: Option<u64> = second.map("counts").ok_or("no counts")?.get(&7_u32)?;
    println!("the next manager finds {value:?}");
    common::check(value == Some(77), "the map is another")?;
    // Pins of others stay, unless the map is to be cleaned up always.
    second.stop()?;
    println!("cleaned up; still there: {}", pin.exists());
    common::check(!pin.exists(), "the pin is left")?;
    Ok(())
}
