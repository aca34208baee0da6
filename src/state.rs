//! The manager's states and what each action means in each of them.

use std::fmt;

/// Where a manager is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Only a declaration: nothing exists in the kernel.
    Declared,
    /// Maps and programs are loaded, nothing is attached.
    Initialised,
    /// Programs are attached and events are read.
    Running,
}

/// What a manager can be asked to do with its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Load maps and programs.
    Init,
    /// Attach programs and read events.
    Start,
    /// Detach, drain and close everything.
    Stop,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Declared => "declared",
            State::Initialised => "initialised",
            State::Running => "running",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Init => "init",
            Action::Start => "start",
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
    match (state, action) {
        (State::Declared, Action::Init) => Step::Go(State::Initialised),
        (State::Declared, Action::Start) => Step::Refuse,
        (State::Declared, Action::Stop) => Step::Done,
        (State::Initialised, Action::Init) => Step::Refuse,
        (State::Initialised, Action::Start) => Step::Go(State::Running),
        (State::Initialised, Action::Stop) => Step::Go(State::Declared),
        (State::Running, Action::Init) => Step::Refuse,
        (State::Running, Action::Start) => Step::Done,
        (State::Running, Action::Stop) => Step::Go(State::Declared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_goes_round() {
        let mut state = State::Declared;
        for action in [
            Action::Init,
            Action::Start,
            Action::Stop,
            Action::Init,
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
}
