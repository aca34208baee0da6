//! What `trace` and `run` share: from the command line's end to the run's.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_manager::ManagerError;
use ebpf_manager::bpf::{KernelBtf, SysError, VerifierLog};
use ebpf_manager_sys::signal::{Signal, SignalFd};
use ebpf_manager_sys::tracefs::Tracefs;
use ebpf_manager_sys::{mntns, poll};

use super::output::Output;

/// A run that has begun: signals wait to be read.
pub(crate) struct Session {
    signals: SignalFd,
    pub(crate) output: Arc<Output>,
}

impl Session {
    /// To be called before any thread starts.
    pub(crate) fn begin() -> Result<Session, String> {
        // Tracepoints are attached by numbers that stand in tracefs. A machine
        // that has not mounted it need not be changed for that: this process,
        // and what it starts, get a view of their own. Where that is refused,
        // attaching says what is missing.
        if Tracefs::find().is_err() {
            let _ = mntns::mount_privately("tracefs", Path::new("/sys/kernel/tracing"));
        }
        // Threads inherit the mask.
        let signals = SignalFd::block(&[Signal::INT, Signal::TERM]).map_err(text)?;
        let output = Arc::new(Output::new().map_err(text)?);
        Ok(Session { signals, output })
    }

    /// Waits for the end: a signal, the time that was asked for, nobody to
    /// write for, or the end of what `next` does, which is asked for the time
    /// until it wants to be asked again.
    ///
    /// Afterwards nothing holds up the reader, and a signal takes its ordinary
    /// effect.
    pub(crate) fn wait(
        self,
        duration: Option<Duration>,
        next: &mut dyn FnMut() -> ControlFlow<(), Option<Duration>>,
    ) -> Result<(), String> {
        let waited = self.wait_inner(duration, next);
        self.output.lift_limit();
        waited
    }

    fn wait_inner(
        &self,
        duration: Option<Duration>,
        next: &mut dyn FnMut() -> ControlFlow<(), Option<Duration>>,
    ) -> Result<(), String> {
        let epoll = poll::Epoll::new().map_err(text)?;
        let readable = poll::Interest::READABLE;
        epoll.add(self.signals.as_fd(), 0, readable).map_err(text)?;
        let failed = self.output.failed();
        epoll.add(failed.as_fd(), 1, readable).map_err(text)?;
        // Reports a pipe whose reader has gone before there is anything to
        // write. A file cannot be waited for and never reports anything.
        let stdout = io::stdout();
        let _ = epoll.add(stdout.as_fd(), 2, poll::Interest::empty());

        // A time beyond what the clock can express is for ever.
        let deadline = duration.and_then(|d| Instant::now().checked_add(d));
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(());
            }
            let ControlFlow::Continue(pause) = next() else {
                return Ok(());
            };
            let pause = left.into_iter().chain(pause).min();
            let mut events = [poll::Event::EMPTY];
            if !epoll.wait(&mut events, pause).map_err(text)?.is_empty() {
                // A signal left pending would end the process when unblocked.
                while self.signals.read().map_err(text)?.is_some() {}
                return Ok(());
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` passes")]
fn text(err: SysError) -> String {
    err.to_string()
}

/// The kernel's types from a file, which is looked at as a whole: later nothing
/// says which file an error is about.
pub(crate) fn kernel_btf(path: &Path) -> Result<Arc<KernelBtf>, String> {
    let btf = KernelBtf::from_file(path).map_err(|err| err.to_string())?;
    let parsed = btf.btf().map(drop);
    parsed.map_err(|err| format!("{}: {err}", path.display()))?;
    Ok(btf)
}

/// Writes the verifier's whole log to standard error, if the error has one.
pub(crate) fn show_log(err: &ManagerError) {
    err.verifier_log().into_iter().for_each(write_log);
}

/// Writes a whole log to standard error.
pub(crate) fn write_log(log: &VerifierLog) {
    let mut stderr = io::stderr().lock();
    // There is nobody left to tell if this fails.
    let _ = stderr.write_all(log.as_str().as_bytes());
    if log.is_truncated() {
        let _ = stderr.write_all(b"(the kernel had more to say)\n");
    }
}
