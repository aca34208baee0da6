//! Readers against the kernel: every record, in order, whole, or counted.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's helpers fail the test"
)]

mod common;

#[path = "readers/allocations.rs"]
mod allocations;
#[path = "readers/generator.rs"]
mod generator;
#[path = "readers/hotplug.rs"]
mod hotplug;
#[path = "readers/perf.rs"]
mod perf;
#[path = "readers/streams.rs"]
mod streams;
#[path = "readers/traps.rs"]
mod traps;
#[path = "readers/user.rs"]
mod user;

use common::{LeakCheck, ROOT, load, map, require};
use ebpf_manager_sys::sched::stay_on;
use generator::{Checker, Request};
