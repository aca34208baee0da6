//! From the reader thread to standard output.
//!
//! The ring buffer's handler formats lines into one buffer and goes on; a
//! thread of its own writes the buffer out. So lines appear at once while
//! little happens, one write serves all lines that came during the last, and
//! a slow or stopped terminal never holds up the main thread, which has
//! signals to answer. When the buffer is full the handler waits, then the ring
//! fills, and the programs in the kernel count what they have to leave out.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use ebpf_manager::bpf::{SysError, Waker};
use ebpf_manager_sys::lock::{Condvar, Mutex};

/// Bytes of lines that may wait before the handler does.
const LIMIT: usize = 1 << 20;

/// Lines on their way out.
#[derive(Debug)]
pub(crate) struct Output {
    state: Mutex<State>,
    /// There is something to write, or nothing more will come.
    work: Condvar,
    /// There is room again, or the limit is lifted.
    room: Condvar,
    /// Writing failed.
    failed: Waker,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// The limit holds: somebody writes, and nobody joins the reader thread.
    limited: bool,
    finished: bool,
    /// Writing failed; lines are dropped.
    failed: bool,
}

impl Output {
    pub(crate) fn new() -> Result<Output, SysError> {
        Ok(Output {
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            failed: Waker::new()?,
        })
    }

    /// Woken when writing fails.
    pub(crate) fn failed(&self) -> &Waker {
        &self.failed
    }

    /// Lets `write` add whole lines. Waits while there is no room.
    pub(crate) fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        while state.limited && state.pending.len() >= LIMIT && !state.failed {
            state = self.room.wait(state);
        }
        if state.failed {
            return;
        }
        let idle = state.pending.is_empty();
        write(&mut state.pending);
        drop(state);
        if idle {
            self.work.notify_one();
        }
    }

    /// Lifts the limit, so that a handler that waits for room goes on and its
    /// thread can be joined. What is left in the ring is not much.
    pub(crate) fn lift_limit(&self) {
        self.state.lock().limited = false;
        self.room.notify_all();
    }

    /// Writes until [`Writer::finish`]. A reader that went away is no error.
    fn write_out(&self) -> io::Result<()> {
        let mut batch = Vec::new();
        loop {
            let mut state = self.state.lock();
            while state.pending.is_empty() && !state.finished {
                state = self.work.wait(state);
            }
            if state.pending.is_empty() {
                return Ok(());
            }
            std::mem::swap(&mut state.pending, &mut batch);
            drop(state);
            self.room.notify_all();

            let mut stdout = io::stdout().lock();
            let result = stdout.write_all(&batch).and_then(|()| stdout.flush());
            batch.clear();
            let Err(err) = result else { continue };
            self.state.lock().failed = true;
            self.room.notify_all();
            // The main thread has other ways to end if this fails.
            let _ = self.failed.wake();
            return match err.kind() {
                io::ErrorKind::BrokenPipe => Ok(()),
                _ => Err(err),
            };
        }
    }
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    output: Arc<Output>,
    thread: JoinHandle<io::Result<()>>,
}

impl Writer {
    pub(crate) fn start(output: &Arc<Output>) -> io::Result<Writer> {
        output.state.lock().limited = true;
        let output = Arc::clone(output);
        let shared = Arc::clone(&output);
        let thread = thread::Builder::new()
            .name("ebpf-output".to_owned())
            .spawn(move || shared.write_out())?;
        Ok(Writer { output, thread })
    }

    /// Writes what is left and ends.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.output.state.lock().finished = true;
        self.output.work.notify_one();
        self.thread.join().unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_full_buffer_makes_the_handler_wait() {
        let output = Output::new().unwrap();
        output.append(|text| text.resize(LIMIT, b'x'));
        // Without a limit there is nothing to wait for.
        output.append(|text| text.push(b'y'));
        output.state.lock().limited = true;
        thread::scope(|scope| {
            let handler = scope.spawn(|| output.append(|text| text.push(b'z')));
            thread::sleep(Duration::from_millis(50));
            assert!(!handler.is_finished());
            assert_eq!(output.state.lock().pending.len(), LIMIT + 1);
            output.lift_limit();
        });
        assert_eq!(output.state.lock().pending.last(), Some(&b'z'));
    }

    #[test]
    fn lines_for_nobody_are_dropped() {
        let output = Output::new().unwrap();
        output.append(|text| text.resize(LIMIT, b'x'));
        let mut state = output.state.lock();
        (state.limited, state.failed) = (true, true);
        drop(state);
        output.append(|text| text.push(b'z'));
        assert_eq!(output.state.lock().pending.len(), LIMIT);
    }
}
