//! Reading what programs send: ring buffers now, perf buffers beside them.
//!
//! Readers are driven by their caller. [`Waiter`] sleeps until one of several
//! readers has something, or another thread wakes it.

mod ring;

use std::os::fd::AsFd;
use std::time::Duration;

use ebpf_manager_sys::SysError;
use ebpf_manager_sys::poll::{Epoll, Event, Interest, Waker};

pub use ring::RingBufferReader;

use crate::error::ReaderError;

/// Token of the waker, which no reader can have.
const WAKER: u64 = u64::MAX;

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
    pub fn add(&self, reader: &RingBufferReader, token: u32) -> Result<(), ReaderError> {
        // Edge-triggered: a level-triggered wait would spin while a program
        // has reserved a record and not yet committed it.
        self.epoll
            .add(
                reader.as_fd(),
                token.into(),
                Interest::READABLE | Interest::EDGE,
            )
            .map_err(|source| ReaderError::Kernel {
                map: reader.name().to_owned(),
                source,
            })
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
}
