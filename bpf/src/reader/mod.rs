//! Reading what programs send, in ring buffers and perf buffers, and sending
//! to them in user ring buffers.
//!
//! Readers are driven by their caller: [`consume`](RingBufferReader::consume)
//! never waits, [`poll`](RingBufferReader::poll) waits for one reader,
//! [`Waiter`] for one of several or for another thread, and the descriptor of
//! a reader suits any event loop.

mod claim;
mod overwritable;
mod perf;
mod record;
mod ring;
mod user;

use std::os::fd::AsFd;
use std::time::Duration;

use ebpf_manager_sys::poll::{Epoll, Event, Interest, Waker, set_timer_slack};
use ebpf_manager_sys::{Errno, SysError};

pub use overwritable::OverwritableBuffer;
pub use perf::{Cpus, PerfBufferOptions, PerfBufferReader, PerfCpuStats, Wakeup};
pub use record::{OwnedRecord, Record};
pub use ring::RingBufferReader;
pub use user::{UserRingBuffer, UserRingBufferError};

use crate::error::ReaderError;
use crate::map::Map;
use ebpf_manager_sys::abi::bpf::MapType;
use ebpf_manager_sys::ringbuf::CorruptRing;

/// Token of the waker, which no reader can have.
const WAKER: u64 = u64::MAX;

/// A reader that [`Waiter`] can wait for.
pub trait Buffer: AsFd {
    /// Name of its map.
    fn name(&self) -> &str;
}

fn check_type(map: &Map, expected: MapType) -> Result<(), ReaderError> {
    if map.map_type() == expected {
        return Ok(());
    }
    Err(ReaderError::WrongMap {
        map: map.name().to_owned(),
        expected,
        found: map.map_type(),
    })
}

#[cold]
fn kernel(map: &str, source: SysError) -> ReaderError {
    ReaderError::Kernel {
        map: map.to_owned(),
        source,
    }
}

#[cold]
fn corrupt(map: &str, err: &CorruptRing) -> ReaderError {
    let source = SysError::new("read the ring", Errno::EBADMSG).with_detail(err.to_string());
    kernel(map, source)
}

/// Waits for any of several readers.
#[derive(Debug)]
pub struct Waiter {
    epoll: Epoll,
    waker: Waker,
    events: [Event; 16],
}

impl Waiter {
    /// A waiter without readers.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when there are no descriptors left.
    pub fn new() -> Result<Waiter, SysError> {
        let epoll = Epoll::new()?;
        let waker = Waker::new()?;
        epoll.add(waker.as_fd(), WAKER, Interest::READABLE)?;
        Ok(Waiter {
            epoll,
            waker,
            events: [Event::EMPTY; 16],
        })
    }

    /// A handle for other threads to end a wait.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Adds a reader under a token of the caller's choice.
    ///
    /// The reader must be drained once after this and after every wait that
    /// reports it: what came earlier is not reported again.
    ///
    /// # Errors
    /// [`ReaderError::Kernel`].
    pub fn add(&self, reader: &dyn Buffer, token: u32) -> Result<(), ReaderError> {
        // Edge-triggered: a level-triggered wait would spin while a program
        // has reserved a record and not yet committed it.
        self.epoll
            .add(
                reader.as_fd(),
                token.into(),
                Interest::READABLE | Interest::EDGE,
            )
            .map_err(|source| kernel(reader.name(), source))
    }

    /// Waits until a reader has something, the waker is called or `timeout`
    /// (`None`: for ever) is over. Calls `each` with the token of every reader
    /// that has something; returns true if the waker was called.
    ///
    /// # Errors
    /// Those of epoll_wait(2), of which none is expected.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        each: &mut dyn FnMut(u32),
    ) -> Result<bool, SysError> {
        let mut woken = false;
        for event in self.epoll.wait(&mut self.events, timeout)? {
            if event.token() == WAKER {
                woken = self.waker.drain()?;
            } else {
                each(event.token() as u32);
            }
        }
        Ok(woken)
    }

    /// Sleeps for `time` whatever readers have, or until the waker is called;
    /// true if it was. More precise than [`wait`](Self::wait), which counts
    /// milliseconds; see [`precise_naps`](Self::precise_naps).
    ///
    /// # Errors
    /// Those of ppoll(2), of which none is expected.
    pub fn nap(&self, time: Duration) -> Result<bool, SysError> {
        Ok(self.waker.sleep(time)? && self.waker.drain()?)
    }

    /// Lets the naps of the calling thread end within a microsecond of their
    /// time instead of 50, the kernel's default.
    ///
    /// # Errors
    /// None is expected.
    pub fn precise_naps() -> Result<(), SysError> {
        set_timer_slack(1000)
    }
}
