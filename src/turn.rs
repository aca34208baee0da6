//! Taking turns: one action at a time, without a lock that is held meanwhile.
//!
//! An action waits for the one under way, unless that one may be waiting for
//! it in turn; then it is told so ([`ManagerError::Busy`]) instead of waiting
//! for ever.

use std::thread::{self, ThreadId};
use std::time::Instant;

use ebpf_manager_bpf::lock::{Condvar, Mutex};

use crate::error::ManagerError;
use crate::state::{Action, State, Step, step};
use crate::stream::is_reader;

/// Where a manager is, and who is changing that.
#[derive(Debug)]
pub(crate) struct Turns {
    slot: Mutex<Slot>,
    changed: Condvar,
}

#[derive(Debug)]
struct Slot {
    /// While an action is under way, the state it began in.
    state: State,
    busy: Option<Busy>,
}

#[derive(Clone, Copy, Debug)]
struct Busy {
    action: Action,
    thread: ThreadId,
    /// It ends when a reader's handler has returned.
    joins: bool,
}

impl Busy {
    /// Whether waiting for this action could last for ever.
    fn may_wait_for_caller(&self) -> bool {
        // User code that the action calls on its own thread.
        self.thread == thread::current().id()
            // Callbacks of a load, on whatever thread.
            || matches!(self.action, Action::Load | Action::Init)
            // A handler, of this manager or of another.
            || self.joins && is_reader()
    }
}

/// The right to act. Ends at the drop; the state is then what it was, unless
/// [`Turn::finish`] says otherwise.
#[derive(Debug)]
pub(crate) struct Turn<'t> {
    turns: &'t Turns,
    action: Action,
    /// The state that the action began in.
    pub(crate) before: State,
    /// The state that it leads to.
    next: State,
}

impl Turns {
    pub(crate) fn new() -> Turns {
        Turns {
            slot: Mutex::new(Slot {
                state: State::Declared,
                busy: None,
            }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.slot.lock().state
    }

    /// Claims the manager for an action, once the one under way has ended.
    ///
    /// # Errors
    /// [`ManagerError::Busy`], also if that takes longer than until `deadline`.
    pub(crate) fn claim(
        &self,
        action: Action,
        deadline: Option<Instant>,
    ) -> Result<Turn<'_>, ManagerError> {
        let mut slot = self.slot.lock();
        let mut in_time = true;
        while let Some(busy) = slot.busy {
            if busy.may_wait_for_caller() || !in_time {
                return Err(ManagerError::Busy {
                    action,
                    running: busy.action,
                });
            }
            (slot, in_time) = match deadline {
                Some(deadline) => self.changed.wait_until(slot, deadline),
                None => (self.changed.wait(slot), true),
            };
        }
        slot.busy = Some(Busy {
            action,
            thread: thread::current().id(),
            joins: matches!(action, Action::Start | Action::Stop),
        });
        Ok(Turn {
            turns: self,
            action,
            before: slot.state,
            next: slot.state,
        })
    }
}

impl Turn<'_> {
    /// Looks the action up in the table; false if there is nothing to do.
    ///
    /// # Errors
    /// [`ManagerError::State`].
    pub(crate) fn step(&mut self) -> Result<bool, ManagerError> {
        match step(self.before, self.action) {
            Step::Done => Ok(false),
            Step::Refuse => Err(ManagerError::State {
                action: self.action,
                state: self.before,
            }),
            Step::Go(next) => {
                self.next = next;
                Ok(true)
            }
        }
    }

    /// Ends in the state that the action leads to.
    pub(crate) fn finish(mut self) {
        self.before = self.next;
    }

    /// From here on the action may wait for readers.
    pub(crate) fn joins_readers(&self) {
        if let Some(busy) = &mut self.turns.slot.lock().busy {
            busy.joins = true;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut slot = self.turns.slot.lock();
        slot.state = self.before;
        slot.busy = None;
        drop(slot);
        self.turns.changed.notify_all();
    }
}
