//! Streams: what is done with the records of ring buffers and perf buffers.
//!
//! A [`Stream`] is a declaration, shared by the manager, its reader threads
//! and the [`StreamHandle`]s given out. `source` opens and drains buffers,
//! `thread` runs them, `pace` decides how a thread waits, `channel` is the
//! other kind of [`Sink`].
//!
//! Locks: those of a stream and of a thread's control are leaves, held for a
//! few instructions and never while user code runs, with one exception: the
//! maker of sinks of [`Stream::perf_buffer_per_cpu`] has a lock of its own.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::Sender;
use ebpf_manager_bpf::lock::Mutex;
use ebpf_manager_bpf::{
    Cpus, Map, MapType, PerfBufferOptions, PerfBufferReader, ReaderError, Record, RingBufferReader,
    Wakeup,
};

use crate::error::ManagerError;

mod channel;
mod handle;
mod pace;
mod source;
mod thread;

pub use channel::{PooledRecord, WhenFull};
pub use handle::StreamHandle;
pub(crate) use thread::{Readers, is_reader};

use source::Source;
use thread::{Control, Interrupts};

/// Where records go.
pub struct Sink {
    out: Box<dyn Out>,
}

/// The inside of a [`Sink`].
pub(crate) trait Out: Send {
    /// Takes a record. A break means that it took it and can take no more
    /// before [`ready`](Self::ready) says so.
    fn record(&mut self, record: &Record<'_>) -> ControlFlow<()>;

    /// Whether it takes records; it may wait for that, until interrupted.
    fn ready(&mut self) -> bool {
        true
    }

    /// Told before the first record of a run: where to count, and where to
    /// put what interrupts it.
    fn begin(&mut self, _counters: &Arc<Counters>, _interrupts: &Interrupts) {}

    /// From now on it must not wait.
    fn hurry(&mut self) {}
}

struct Call<F>(F);

impl<F: FnMut(&Record<'_>) + Send> Out for Call<F> {
    fn record(&mut self, record: &Record<'_>) -> ControlFlow<()> {
        (self.0)(record);
        ControlFlow::Continue(())
    }
}

impl Sink {
    /// A handler, called with each record, in place, on the reader's thread.
    /// The record is released when the handler returns or panics; a panic
    /// ends its stream and is reported.
    pub fn handler(handler: impl FnMut(&Record<'_>) + Send + 'static) -> Sink {
        Sink {
            out: Box::new(Call(handler)),
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

/// What has been read from one buffer since the manager was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamStats {
    /// Records handed to the handler or channel.
    pub records: u64,
    /// Bytes of those records.
    pub bytes: u64,
    /// Records that found a perf buffer full, as far as is known: the kernel
    /// tells with the next record that fits, and at the end of reading (Linux
    /// 6.0). Always zero for a ring buffer, where programs learn it from
    /// `bpf_ringbuf_reserve()` and have to count for themselves.
    pub lost: u64,
    /// Records that found a channel full or without a receiver.
    pub dropped: u64,
    /// Errors of the reader, those included that an error channel had no room
    /// for.
    pub errors: u64,
    /// Most bytes that were waiting in the buffer (of a perf buffer: in one
    /// CPU's) when the reader came.
    pub peak_bytes: usize,
    /// Bytes of the buffer (of a perf buffer: of one CPU's); zero before it
    /// was first read.
    pub size_bytes: usize,
}

/// Counters that the reader adds to once per batch.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    records: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
    errors: AtomicU64,
    peak: AtomicUsize,
    size: AtomicUsize,
    /// Per CPU; only written when there is a loss.
    lost: Mutex<Vec<(u32, u64)>>,
}

impl Counters {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    fn lose(&self, cpu: u32, count: u64) {
        let mut lost = self.lost.lock();
        match lost.iter_mut().find(|(id, _)| *id == cpu) {
            Some((_, sum)) => *sum += count,
            None => lost.push((cpu, count)),
        }
    }
}

type LostHandler = Box<dyn Fn(u32, u64) + Send + Sync>;
/// Copies the error itself, so that a program without one has no code for that.
type ErrorSink = Box<dyn Fn(&ManagerError) + Send + Sync>;
type Open = Box<dyn Fn(&Map, Cpus) -> Result<Box<dyn Source>, ReaderError> + Send + Sync>;
type MakeSink = Box<dyn FnMut(u32) -> Sink + Send>;

/// A buffer to read and what to do with its records.
///
/// ```
/// use ebpf_manager::{Manager, Sink, Stream};
/// use ebpf_manager::bpf::PerfBufferOptions;
///
/// let options = PerfBufferOptions { bytes_per_cpu: 256 * 1024, ..Default::default() };
/// let handler = Sink::handler(|record| println!("{} bytes", record.len()));
/// let stream = Stream::perf_buffer("events", options, handler)
///     .lost(|cpu, count| println!("{count} lost on CPU {cpu}"));
/// let manager = Manager::builder().stream(stream).build()?;
/// # Ok::<(), ebpf_manager::ManagerError>(())
/// ```
pub struct Stream {
    map: String,
    map_type: MapType,
    open: Open,
    latency: Duration,
    /// As the user said.
    flush_every: Option<Duration>,
    /// As it is unless that says.
    usual_flush: Duration,
    /// The manager says with which options it is read.
    leaves_open: bool,
    own_thread: bool,
    skipped: bool,
    lost: Option<LostHandler>,
    error_sink: Option<ErrorSink>,
    per_cpu: Option<Mutex<MakeSink>>,
    counters: Arc<Counters>,
    wish: Wish,
    run: Mutex<Run>,
}

/// What changes while the manager lives.
#[derive(Default)]
struct Run {
    /// At home between runs.
    out: Option<Box<dyn Out>>,
    /// The map, from the manager's start to its stop.
    map: Option<Map>,
    /// The group that this stream may be started in later.
    readers: Option<Readers>,
    /// Threads that read it.
    controls: Vec<Arc<Control>>,
    /// Buffers being read or opened; zero if it may be started.
    tasks: usize,
}

/// What a stream's threads are to do.
#[derive(Debug, Default)]
struct Wish {
    paused: AtomicBool,
    stopped: AtomicBool,
}

impl Stream {
    fn new(map: String, map_type: MapType, open: Open) -> Stream {
        Stream {
            map,
            map_type,
            open,
            latency: Duration::from_micros(200),
            flush_every: None,
            usual_flush: Duration::from_millis(100),
            leaves_open: false,
            own_thread: false,
            skipped: false,
            lost: None,
            error_sink: None,
            per_cpu: None,
            counters: Arc::default(),
            wish: Wish::default(),
            run: Mutex::default(),
        }
    }

    /// Reads a ring buffer map (Linux 5.8).
    pub fn ring_buffer(map: impl Into<String>, sink: Sink) -> Stream {
        let open: Open = Box::new(|map, _| Ok(Box::new(RingBufferReader::new(map)?)));
        let mut stream = Stream::new(map.into(), MapType::RINGBUF, open);
        stream.run.get_mut().out = Some(sink.out);
        stream
    }

    /// Reads a perf buffer: a perf event array that programs write to. Records
    /// are in order on each CPU, not among CPUs.
    ///
    /// `None` leaves the options to the manager: those of
    /// [`Builder::perf_buffers`](crate::Builder::perf_buffers).
    pub fn perf_buffer(
        map: impl Into<String>,
        options: impl Into<Option<PerfBufferOptions>>,
        sink: Sink,
    ) -> Stream {
        let mut stream = Stream::perf(map.into(), options.into());
        stream.run.get_mut().out = Some(sink.out);
        stream
    }

    /// Reads a perf buffer on a thread per CPU, each with a sink of its own
    /// that `make` is asked for. A CPU that comes online later is read by one
    /// of the threads there are. For `options` see [`Stream::perf_buffer`].
    pub fn perf_buffer_per_cpu(
        map: impl Into<String>,
        options: impl Into<Option<PerfBufferOptions>>,
        make: impl FnMut(u32) -> Sink + Send + 'static,
    ) -> Stream {
        let mut stream = Stream::perf(map.into(), options.into());
        stream.per_cpu = Some(Mutex::new(Box::new(make)));
        stream
    }

    fn perf(map: String, options: Option<PerfBufferOptions>) -> Stream {
        let is_open = options.is_none();
        let options = options.unwrap_or_default();
        // Every record wakes the reader.
        let needs_no_flush = options.wakeup == Wakeup::Adaptive;
        let open: Open = Box::new(move |map, cpus| {
            let mut options = options.clone();
            if cpus != Cpus::All {
                options.cpus = cpus;
            }
            Ok(Box::new(PerfBufferReader::new(map, options)?))
        });
        let mut stream = Stream::new(map, MapType::PERF_EVENT_ARRAY, open);
        stream.leaves_open = is_open;
        if needs_no_flush {
            stream.usual_flush = Duration::MAX;
        }
        stream
    }

    /// Takes these options if it was given none.
    pub(crate) fn settle(&mut self, options: &PerfBufferOptions) {
        if self.leaves_open {
            let settled = Stream::perf(String::new(), Some(options.clone()));
            (self.open, self.usual_flush) = (settled.open, settled.usual_flush);
        }
    }

    /// How much later a record may be handed over for the sake of speed, 200
    /// microseconds unless set; zero for never. Above 5 milliseconds is read
    /// as that.
    ///
    /// A reader that finds many records at once sleeps for up to this time
    /// instead of being woken by the next one: waking it costs the program
    /// several times what writing a record does. When few come, each is handed
    /// over at once. To this comes what the scheduler takes.
    #[must_use]
    pub fn latency(mut self, bound: Duration) -> Stream {
        self.latency = bound.min(Duration::from_millis(5));
        self
    }

    /// With [`Wakeup::Records`] or [`Wakeup::Bytes`], how often the reader
    /// looks for records that woke nobody; 100 milliseconds unless set.
    #[must_use]
    pub fn flush_every(mut self, interval: Duration) -> Stream {
        self.flush_every = Some(interval.max(Duration::from_millis(1)));
        self
    }

    /// Reads it on a thread of its own instead of the one that it shares with
    /// the manager's other streams.
    #[must_use]
    pub fn own_thread(mut self) -> Stream {
        self.own_thread = true;
        self
    }

    /// Does not read it when the manager starts, but when
    /// [`StreamHandle::start`] is called.
    #[must_use]
    pub fn start_skipped(mut self) -> Stream {
        self.skipped = true;
        self
    }

    /// Calls `handler` with CPU and count when a perf buffer lost records,
    /// before the record that came after them; on the reader's thread.
    #[must_use]
    pub fn lost(mut self, handler: impl Fn(u32, u64) + Send + Sync + 'static) -> Stream {
        self.lost = Some(Box::new(handler));
        self
    }

    /// Sends errors of the reader to a channel at once, instead of only
    /// reporting them when the manager stops. Never waits: what the channel
    /// has no room for is only counted. An error ends the stream.
    #[must_use]
    pub fn errors(mut self, channel: Sender<ManagerError>) -> Stream {
        self.error_sink = Some(Box::new(move |err| {
            let _ = channel.try_send(ManagerError::clone(err));
        }));
        self
    }

    /// How often to look for records that woke nobody.
    fn flush_interval(&self) -> Duration {
        self.flush_every.unwrap_or(self.usual_flush)
    }

    /// The map.
    pub fn map(&self) -> &str {
        &self.map
    }

    pub(crate) fn map_type(&self) -> MapType {
        self.map_type
    }

    pub(crate) fn stats(&self) -> StreamStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        StreamStats {
            records: of(&c.records),
            bytes: of(&c.bytes),
            lost: c.lost.lock().iter().map(|(_, n)| n).sum(),
            dropped: of(&c.dropped),
            errors: of(&c.errors),
            peak_bytes: c.peak.load(Ordering::Relaxed),
            size_bytes: c.size.load(Ordering::Relaxed),
        }
    }

    /// Counts an error and tells whoever wants to know.
    fn report(&self, err: &ManagerError) {
        Counters::add(&self.counters.errors, 1);
        if let Some(sink) = &self.error_sink {
            sink(err);
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("map", &self.map)
            .finish_non_exhaustive()
    }
}
