//! Every interleaving of two programs and a reader on a small ring.
//!
//! The memory model is that of x86: stores of the reader wait in a buffer and
//! reach memory at any later time, a fence waits for them. (Programs reserve
//! under a lock and commit with a full barrier, so theirs do not matter.) What
//! a header means is decided by the code under test.

use std::collections::HashSet;

use super::*;

/// Bytes of the model's ring and of each record: four fit.
const RING: usize = 64;
const LEN: usize = 8;
const TAKEN: usize = footprint(LEN);
const SLOTS: usize = RING / TAKEN;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Program {
    /// Reserves, with so many records left to write.
    Reserve(u8),
    /// Has reserved at this position, fills in.
    Write(u8, u8),
    Commit(u8, u8),
    /// Looks whether the reader waits for this record.
    Wake(u8, u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Reader {
    /// Loads the producer position.
    Look,
    /// Loads the header of the next record, up to this position.
    Header(u8),
    Payload(u8),
    /// Stores the consumer position.
    Publish,
    Fence,
    /// Waits for an edge.
    Wait,
}

/// Positions count records; they are few enough not to wrap.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    producer: u8,
    /// In memory, and behind it in the reader's store buffer.
    consumer: u8,
    buffered: Option<u8>,
    headers: [u32; SLOTS],
    /// Position whose payload lies there.
    payloads: [u8; SLOTS],
    programs: [Program; 2],
    reader: Reader,
    /// Records that the reader has read, and released.
    read: u8,
    released: u8,
    edge: bool,
}

const NONE: u8 = u8::MAX;

struct Model {
    /// Records read before the position is published, at most.
    batch: u8,
    fence: bool,
    records: u8,
}

impl Model {
    fn start(&self) -> State {
        State {
            producer: 0,
            consumer: 0,
            buffered: None,
            headers: [0; SLOTS],
            payloads: [NONE; SLOTS],
            programs: [Program::Reserve(self.records); 2],
            reader: Reader::Look,
            read: 0,
            released: 0,
            edge: false,
        }
    }

    /// One step of a program; `None` if it cannot go on.
    fn program(state: &State, who: usize) -> Option<State> {
        let mut next = state.clone();
        next.programs[who] = match state.programs[who] {
            Program::Reserve(0) => return None,
            Program::Reserve(left) => {
                let used = (state.producer + 1 - state.consumer) as usize * TAKEN;
                // `__bpf_ringbuf_reserve`; it would be refused and try again.
                if used > RING - 1 {
                    return None;
                }
                let at = state.producer;
                next.headers[at as usize % SLOTS] = LEN as u32 | BUSY_BIT;
                next.producer += 1;
                Program::Write(left, at)
            }
            Program::Write(left, at) => {
                next.payloads[at as usize % SLOTS] = at;
                Program::Commit(left, at)
            }
            Program::Commit(left, at) => {
                next.headers[at as usize % SLOTS] = LEN as u32;
                Program::Wake(left, at)
            }
            Program::Wake(left, at) => {
                next.edge |= state.consumer == at;
                Program::Reserve(left - 1)
            }
        };
        Some(next)
    }

    fn reader(&self, state: &State) -> Option<State> {
        let mut next = state.clone();
        let at = state.read as usize % SLOTS;
        next.reader = match state.reader {
            Reader::Look => match state.producer {
                head if head == state.read => Self::nothing_more(state),
                head => Reader::Header(head),
            },
            Reader::Header(head) => {
                let available = (head - state.read) as usize * TAKEN;
                match decode(state.headers[at], available) {
                    Step::Busy => Self::nothing_more(state),
                    Step::Take { len, footprint } => {
                        assert_eq!((len, footprint), (LEN, TAKEN));
                        Reader::Payload(head)
                    }
                    other => panic!("{other:?}"),
                }
            }
            Reader::Payload(head) => {
                assert_eq!(state.payloads[at], state.read, "torn or overwritten");
                next.read += 1;
                match next.read {
                    read if read == head || read - state.released == self.batch => Reader::Publish,
                    _ => Reader::Header(head),
                }
            }
            Reader::Publish => {
                if state.buffered.is_some() {
                    return None;
                }
                next.buffered = Some(state.read);
                next.released = state.read;
                Reader::Fence
            }
            Reader::Fence if self.fence && state.buffered.is_some() => return None,
            Reader::Fence => Reader::Look,
            Reader::Wait if state.edge => {
                next.edge = false;
                Reader::Look
            }
            Reader::Wait => return None,
        };
        Some(next)
    }

    /// Reading ends only after a look that found nothing since the last
    /// publication.
    fn nothing_more(state: &State) -> Reader {
        if state.read == state.released {
            Reader::Wait
        } else {
            Reader::Publish
        }
    }

    /// Visits every state; how many there are, and whether records are left
    /// behind in one where nobody goes on.
    fn explore(&self) -> (usize, bool) {
        let (mut seen, mut todo) = (HashSet::new(), vec![self.start()]);
        let mut stuck = false;
        while let Some(state) = todo.pop() {
            if !seen.insert(state.clone()) {
                continue;
            }
            let drained = state.buffered.map(|consumer| {
                let mut next = state.clone();
                (next.consumer, next.buffered) = (consumer, None);
                next
            });
            let steps = [
                Self::program(&state, 0),
                Self::program(&state, 1),
                self.reader(&state),
                drained,
            ];
            let before = todo.len();
            todo.extend(steps.into_iter().flatten());
            if todo.len() == before {
                stuck |= state.read != 2 * self.records || state.consumer != state.read;
            }
        }
        (seen.len(), stuck)
    }
}

#[test]
fn no_interleaving_tears_loses_or_forgets_a_record() {
    // Six records in a ring for three: full, and around.
    for batch in 1..=2 {
        for records in 1..=3 {
            let model = Model {
                batch,
                fence: true,
                records,
            };
            let (states, stuck) = model.explore();
            assert!(!stuck, "{records} records each, batches of {batch}");
            assert!(states > 30);
        }
    }
}

/// The model sees what the fence is for.
#[test]
fn without_the_fence_a_wakeup_is_missed() {
    let model = Model {
        batch: 1,
        fence: false,
        records: 3,
    };
    assert!(model.explore().1);
}
