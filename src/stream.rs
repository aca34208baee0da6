//! The reader thread: one for all ring buffers of a manager.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use ebpf_manager_bpf::{Map, RingBufferReader, SysError, Waiter, Waker};
use parking_lot::Mutex;

use crate::error::ManagerError;

/// Called with each record, in place, in the order of the ring.
pub(crate) type Handler = Box<dyn FnMut(&[u8]) + Send>;

/// What has been read from one buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    /// Records handed to the handler.
    pub records: u64,
    /// Bytes of those records.
    pub bytes: u64,
}

/// Counters that the reader adds to once per batch.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn get(&self) -> StreamStats {
        StreamStats {
            records: self.records.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// A buffer and what is done with its records.
pub(crate) struct Source {
    pub(crate) reader: RingBufferReader,
    pub(crate) handler: Arc<Mutex<Handler>>,
    pub(crate) counters: Arc<Counters>,
}

impl Source {
    pub(crate) fn open(
        map: &Map,
        handler: Arc<Mutex<Handler>>,
        counters: Arc<Counters>,
    ) -> Result<Source, ManagerError> {
        Ok(Source {
            reader: RingBufferReader::new(map)?,
            handler,
            counters,
        })
    }

    fn drain(&mut self) -> Result<(), ManagerError> {
        // Uncontended: only this thread takes it, for as long as the thread
        // of an earlier run is not still in its last batch.
        let mut handler = self.handler.lock();
        let mut bytes = 0;
        let result = self.reader.consume(usize::MAX, |record| {
            bytes += record.len() as u64;
            handler(record);
            ControlFlow::Continue(())
        });
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.counters
            .records
            .fetch_add(*result.as_ref().unwrap_or(&0) as u64, Ordering::Relaxed);
        result?;
        Ok(())
    }
}

/// A running reader thread.
#[derive(Debug)]
pub(crate) struct Stream {
    thread: JoinHandle<Result<(), ManagerError>>,
    waker: Waker,
}

impl Stream {
    /// Starts the thread.
    pub(crate) fn start(mut sources: Vec<Source>) -> Result<Stream, ManagerError> {
        let failed = |source| ManagerError::Thread { source };
        let mut waiter = Waiter::new().map_err(failed)?;
        for (token, source) in (0..).zip(&sources) {
            waiter.add(&source.reader, token)?;
        }
        let waker = waiter.waker();
        let thread = thread::Builder::new()
            .name("ebpf-reader".to_owned())
            .spawn(move || run(&mut waiter, &mut sources))
            .map_err(|err| failed(SysError::from_io("start a thread", &err)))?;
        Ok(Stream { thread, waker })
    }

    /// True if the calling thread is the reader: a handler is asking.
    pub(crate) fn is_current(&self) -> bool {
        self.thread.thread().id() == thread::current().id()
    }

    /// Asks the thread to read what is there and end.
    pub(crate) fn signal(&self) -> Result<(), ManagerError> {
        self.waker
            .wake()
            .map_err(|source| ManagerError::Thread { source })
    }

    /// Waits for the thread to end.
    pub(crate) fn join(self) -> Result<(), ManagerError> {
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => {
                let message = panic
                    .downcast_ref::<&str>()
                    .map(|s| (*s).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned());
                Err(ManagerError::HandlerPanicked {
                    message: message.unwrap_or_default(),
                })
            }
        }
    }
}

/// Reads until woken, then reads what is left and ends. The first look comes
/// before the first wait, because waiting reports changes only.
fn run(waiter: &mut Waiter, sources: &mut [Source]) -> Result<(), ManagerError> {
    for source in sources.iter_mut() {
        source.drain()?;
    }
    loop {
        let mut result = Ok(());
        let woken = waiter
            .wait(None, &mut |token| {
                if let Some(source) = sources.get_mut(token as usize) {
                    let drained = source.drain();
                    if result.is_ok() {
                        result = drained;
                    }
                }
            })
            .map_err(|source| ManagerError::Thread { source })?;
        result?;
        if woken {
            for source in sources.iter_mut() {
                source.drain()?;
            }
            return Ok(());
        }
    }
}
