//! The conformance suite: every kind of link goes through the same life on a
//! real hook with events of the test's own.
//!
//! Each test is one row of the table in `bpf/HOOKS.md`, which
//! `tests/matrix/hooks` makes of what the tests say on every kernel: its
//! module is the hook's family, its name the hook and perhaps, after `by`, the
//! kernel interface. A test says why it cannot run, and fails where it must.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

#[path = "links/mod.rs"]
mod hooks;
