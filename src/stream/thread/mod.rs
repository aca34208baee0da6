//! Reader threads.
//!
//! A thread drains its streams in turns until none has anything, then waits.
//! Others talk to it by wishes that it fulfils between turns: they note the
//! wish, raise `request` and wake it; it says how far it has come.

mod control;
mod open;
mod readers;
mod run;
mod task;

use std::cell::Cell;

pub(super) use control::{Control, Interrupts};
pub(crate) use readers::Readers;

thread_local! {
    static IS_READER: Cell<bool> = const { Cell::new(false) };
}

/// True on a reader thread of whatever manager: a handler is asking, and must
/// not wait for one.
pub(crate) fn is_reader() -> bool {
    IS_READER.get()
}
