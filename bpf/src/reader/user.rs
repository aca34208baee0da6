//! Writer of a user ring buffer.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ebpf_manager_sys::SysError;
use ebpf_manager_sys::abi::bpf::MapType;
use ebpf_manager_sys::poll::{Epoll, Event, Interest};
use ebpf_manager_sys::ringbuf::{self, Reservation, ReserveError};

use super::{check_type, kernel};
use crate::error::ReaderError;
use crate::map::Map;

/// Why a sample did not get into a [`UserRingBuffer`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserRingBufferError {
    /// No room now, or not before the timeout was over.
    #[error("user ring buffer {map} is full: programs have to drain it")]
    Full {
        /// The map's name.
        map: String,
    },
    /// The sample never fits.
    #[error("user ring buffer {map} takes samples of at most {max} bytes")]
    TooLong {
        /// The map's name.
        map: String,
        /// Longest sample in bytes.
        max: usize,
    },
    /// The kernel's position contradicts ours, or waiting failed.
    #[error("user ring buffer {map}: {source}")]
    Kernel {
        /// The map's name.
        map: String,
        /// What the kernel said.
        source: SysError,
    },
}

/// The writing side of a `BPF_MAP_TYPE_USER_RINGBUF` map, which programs drain
/// by `bpf_user_ringbuf_drain()`.
///
/// Writing runs no program: what was submitted is seen when a program drains
/// the ring the next time. Dropping the writer leaves it there.
///
/// Requires at least Linux 6.1.
#[derive(Debug)]
pub struct UserRingBuffer {
    ring: ringbuf::UserRingBuffer,
    map: Map,
}

impl UserRingBuffer {
    /// Maps the ring. It has one writer at a time.
    ///
    /// # Errors
    /// [`ReaderError::WrongMap`]; [`ReaderError::Kernel`], with `EBUSY` if the
    /// ring has a writer in this process.
    pub fn new(map: &Map) -> Result<UserRingBuffer, ReaderError> {
        check_type(map, MapType::USER_RINGBUF)?;
        let ring =
            ringbuf::UserRingBuffer::new(map.as_fd()).map_err(|err| kernel(map.name(), err))?;
        let map = map.clone();
        Ok(UserRingBuffer { ring, map })
    }

    /// Name of the map.
    pub fn name(&self) -> &str {
        self.map.name()
    }

    /// Bytes of the ring.
    pub fn size_bytes(&self) -> usize {
        self.ring.size()
    }

    /// Longest sample in bytes.
    pub fn max_len(&self) -> usize {
        self.ring.max_len()
    }

    /// Lends room for `len` bytes, to be filled in place.
    /// [`submit`](Reservation::submit) makes them visible to programs;
    /// dropping the reservation discards them.
    ///
    /// # Errors
    /// See [`UserRingBufferError`]. Never waits.
    pub fn reserve(&mut self, len: usize) -> Result<Reservation<'_>, UserRingBufferError> {
        let map = &self.map;
        self.ring.reserve(len).map_err(|err| failed(map, &err))
    }

    /// Submits a copy of `sample`.
    ///
    /// # Errors
    /// See [`UserRingBufferError`]. Never waits.
    pub fn push(&mut self, sample: &[u8]) -> Result<(), UserRingBufferError> {
        self.ring
            .push(sample)
            .map_err(|err| failed(&self.map, &err))
    }

    /// Submits a copy of `sample`, waiting for room until `timeout` (`None`:
    /// for ever) is over.
    ///
    /// # Errors
    /// See [`UserRingBufferError`].
    pub fn push_within(
        &mut self,
        sample: &[u8],
        timeout: Option<Duration>,
    ) -> Result<(), UserRingBufferError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let fail = |source| UserRingBufferError::Kernel {
            map: self.map.name().to_owned(),
            source,
        };
        let mut epoll = None;
        loop {
            match self.ring.push(sample) {
                Ok(()) => return Ok(()),
                Err(ReserveError::Full) => {}
                Err(err) => return Err(failed(&self.map, &err)),
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(failed(&self.map, &ReserveError::Full));
            }
            let Some(epoll) = &epoll else {
                let made = Epoll::new().map_err(fail)?;
                let interest = Interest::WRITABLE | Interest::EDGE;
                made.add(self.map.as_fd(), 0, interest).map_err(fail)?;
                epoll = Some(made);
                continue;
            };
            // The kernel calls a ring writable that has any room, and wakes
            // writers after each drain: edge-triggered, so as not to spin.
            epoll.wait(&mut [Event::EMPTY], left).map_err(fail)?;
        }
    }
}

#[cold]
fn failed(map: &Map, err: &ReserveError) -> UserRingBufferError {
    let map = map.name().to_owned();
    match err {
        ReserveError::Full => UserRingBufferError::Full { map },
        ReserveError::TooLong { max } => UserRingBufferError::TooLong { map, max: *max },
        ReserveError::Corrupt(err) => UserRingBufferError::Kernel {
            map,
            source: SysError::new("write the ring", ebpf_manager_sys::Errno::EBADMSG)
                .with_detail(err.to_string()),
        },
    }
}

impl AsFd for UserRingBuffer {
    /// The descriptor to wait on for writability.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}
