//! The manager's states and what each action means in each of them.

use std::fmt;

/// Where a manager is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Only a declaration: nothing exists in the kernel.
    Declared,
    /// The object is parsed and can be looked at; nothing exists in the
    /// kernel.
    Loaded,
    /// Maps and programs are loaded, nothing is attached.
    Initialised,
    /// Programs are attached and events are read.
    Running,
    /// Events are read, but no program runs.
    Paused,
}

/// What a manager can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Parse the object.
    Load,
    /// Load maps and programs.
    Init,
    /// Attach programs and read events.
    Start,
    /// Keep programs from running, for a while.
    Pause,
    /// Let them run again.
    Resume,
    /// Change something while it lives: hooks, programs, maps, routes,
    /// readers.
    Change,
    /// Detach, drain and close everything.
    Stop,
}

impl State {
    /// What a manager in this state has to do before an action that it refuses.
    pub(crate) fn before(self, action: Action) -> Action {
        match (action, self) {
            (Action::Load | Action::Init, _) | (_, State::Running) => Action::Stop,
            (_, State::Declared | State::Loaded) => Action::Init,
            (_, State::Initialised) => Action::Start,
            (_, State::Paused) => Action::Resume,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Declared => "declared",
            State::Loaded => "loaded",
            State::Initialised => "initialised",
            State::Running => "running",
            State::Paused => "paused",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Load => "load",
            Action::Init => "init",
            Action::Start => "start",
            Action::Pause => "pause",
            Action::Resume => "resume",
            Action::Change => "change",
            Action::Stop => "stop",
        })
    }
}

/// What an action does in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is carried out and, if it succeeds, leads to this state. If it
    /// fails, the state it began in remains, `Stop` excepted: that always
    /// ends in `Declared`.
    Go(State),
    /// Nothing is left to do.
    Done,
    /// It makes no sense here.
    Refuse,
}

/// The transition table.
#[expect(clippy::match_same_arms, reason = "a table has a row for each pair")]
pub(crate) const fn step(state: State, action: Action) -> Step {
    use Step::{Done, Go, Refuse};
    match (state, action) {
        (State::Declared, Action::Load) => Go(State::Loaded),
        (State::Declared, Action::Init) => Go(State::Initialised),
        (State::Declared, Action::Start) => Refuse,
        (State::Declared, Action::Pause) => Refuse,
        (State::Declared, Action::Resume) => Refuse,
        (State::Declared, Action::Change) => Refuse,
        (State::Declared, Action::Stop) => Done,

        (State::Loaded, Action::Load) => Refuse,
        (State::Loaded, Action::Init) => Go(State::Initialised),
        (State::Loaded, Action::Start) => Refuse,
        (State::Loaded, Action::Pause) => Refuse,
        (State::Loaded, Action::Resume) => Refuse,
        (State::Loaded, Action::Change) => Refuse,
        (State::Loaded, Action::Stop) => Go(State::Declared),

        (State::Initialised, Action::Load) => Refuse,
        (State::Initialised, Action::Init) => Refuse,
        (State::Initialised, Action::Start) => Go(State::Running),
        (State::Initialised, Action::Pause) => Refuse,
        (State::Initialised, Action::Resume) => Refuse,
        (State::Initialised, Action::Change) => Go(State::Initialised),
        (State::Initialised, Action::Stop) => Go(State::Declared),

        (State::Running, Action::Load) => Refuse,
        (State::Running, Action::Init) => Refuse,
        (State::Running, Action::Start) => Done,
        (State::Running, Action::Pause) => Go(State::Paused),
        (State::Running, Action::Resume) => Done,
        (State::Running, Action::Change) => Go(State::Running),
        (State::Running, Action::Stop) => Go(State::Declared),

        (State::Paused, Action::Load) => Refuse,
        (State::Paused, Action::Init) => Refuse,
        // Not `Done`: nothing would run, and the caller would not know.
        (State::Paused, Action::Start) => Refuse,
        (State::Paused, Action::Pause) => Done,
        (State::Paused, Action::Resume) => Go(State::Running),
        (State::Paused, Action::Change) => Go(State::Paused),
        (State::Paused, Action::Stop) => Go(State::Declared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_can_be_done_after_what_the_error_names() {
        for state in [
            State::Declared,
            State::Loaded,
            State::Initialised,
            State::Running,
            State::Paused,
        ] {
            for action in [
                Action::Load,
                Action::Init,
                Action::Start,
                Action::Pause,
                Action::Resume,
                Action::Change,
            ] {
                if step(state, action) == Step::Refuse {
                    let first = state.before(action);
                    assert!(matches!(step(state, first), Step::Go(_)), "{state} {first}");
                }
            }
        }
    }

    #[test]
    fn life_goes_round() {
        let mut state = State::Declared;
        for action in [
            Action::Load,
            Action::Init,
            Action::Change,
            Action::Start,
            Action::Change,
            Action::Pause,
            Action::Change,
            Action::Resume,
            Action::Stop,
            Action::Init,
            Action::Start,
            Action::Pause,
            Action::Stop,
        ] {
            match step(state, action) {
                Step::Go(next) => state = next,
                other => panic!("{action} in {state}: {other:?}"),
            }
        }
        assert_eq!(state, State::Declared);
        assert_eq!(step(State::Declared, Action::Start), Step::Refuse);
        assert_eq!(step(State::Running, Action::Start), Step::Done);
        assert_eq!(step(State::Declared, Action::Stop), Step::Done);
    }

    #[test]
    fn trap_start_of_a_paused_manager_is_refused() {
        assert_eq!(step(State::Paused, Action::Start), Step::Refuse);
        assert_eq!(
            step(State::Paused, Action::Resume),
            Step::Go(State::Running)
        );
    }
}
