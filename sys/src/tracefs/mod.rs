//! tracefs: mount discovery, probe events, event ids and formats.
//!
//! Probe events are how kernels before 4.17 attach to functions, and the
//! names live in one table shared by the whole system: an event stays until
//! somebody removes it, also when its creator dies.

mod event;
mod format;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::Result;
use crate::errno::{Errno, SysError, retry_eintr};
use crate::proc::{
    c_path, for_each_line, malformed, mounts_of, read_line, read_small, split_module, whole_decimal,
};

pub use event::{
    MAX_EVENT_NAME_LEN, ProbeEvent, ProbeFile, ProbeKind, ProbePlace, ProbeSpec, event_name,
    parse_probe,
};
use format::FormatParser;
pub use format::{DataLocation, EventField, EventFormat};

const TRACEFS_MAGIC: i64 = 0x7472_6163;
const DEBUGFS_MAGIC: i64 = 0x6462_6720;

/// A mounted tracefs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tracefs {
    root: PathBuf,
}

impl Tracefs {
    /// Finds the mounted tracefs: `/sys/kernel/tracing`, then
    /// `/sys/kernel/debug/tracing` (which also is where kernels before 4.1
    /// have it, inside debugfs), then whatever the mount table lists.
    ///
    /// The answer is kept for the life of the process. A failure is not: a
    /// tracefs that is mounted later is found by the next call.
    ///
    /// # Errors
    /// `ENOENT` when none is mounted.
    pub fn find() -> Result<&'static Tracefs> {
        static FOUND: OnceLock<Tracefs> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found);
        }
        let found = Tracefs::discover()?;
        Ok(FOUND.get_or_init(|| found))
    }

    fn discover() -> Result<Tracefs> {
        let usual = Path::new("/sys/kernel/tracing");
        let inside_debugfs = Path::new("/sys/kernel/debug/tracing");
        if fs_magic(usual) == Ok(TRACEFS_MAGIC) {
            return Ok(Tracefs::at(usual));
        }
        if let Ok(TRACEFS_MAGIC | DEBUGFS_MAGIC) = fs_magic(inside_debugfs) {
            return Ok(Tracefs::at(inside_debugfs));
        }
        // A mount point can be hidden below another mount: ask each.
        for path in mounts_of("tracefs")? {
            if fs_magic(&path) == Ok(TRACEFS_MAGIC) {
                return Ok(Tracefs::at(path));
            }
        }
        Err(SysError::new("statfs", Errno::ENOENT)
            .with_path(usual)
            .with_detail("no tracefs is mounted"))
    }

    /// A tracefs at a known place. Nothing is checked.
    pub fn at(root: impl Into<PathBuf>) -> Tracefs {
        Tracefs { root: root.into() }
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// True if this kernel offers the given kind of probe events.
    pub fn has(&self, file: ProbeFile) -> bool {
        self.root.join(file.name()).exists()
    }

    /// Id of a tracepoint or probe event: the `config` of a perf event of type
    /// `PERF_TYPE_TRACEPOINT`.
    ///
    /// # Errors
    /// `ENOENT` if there is no such event, `EACCES` or `EPERM` if this process
    /// may not look.
    pub fn event_id(&self, category: &str, name: &str) -> Result<u64> {
        let path = self.event_file(category, name, "id")?;
        whole_decimal(read_line(&path, &mut [0; 32])?).ok_or_else(|| malformed(&path))
    }

    /// Layout of an event's record.
    ///
    /// # Errors
    /// As [`Tracefs::event_id`]; `EBADMSG` if the text has another form.
    pub fn event_format(&self, category: &str, name: &str) -> Result<EventFormat> {
        let path = self.event_file(category, name, "format")?;
        let mut format = FormatParser::default();
        for_each_line(&path, &mut |line| format.line(line))?;
        format.finish().ok_or_else(|| malformed(&path))
    }

    /// True if ftrace records the event (somebody wrote to its `enable` file).
    /// Perf events and BPF programs on it do not show here.
    ///
    /// # Errors
    /// As [`Tracefs::event_id`].
    pub fn event_enabled(&self, category: &str, name: &str) -> Result<bool> {
        let path = self.event_file(category, name, "enable")?;
        Ok(read_small(&path, &mut [0; 32])?.starts_with(b"1"))
    }

    fn event_file(&self, category: &str, name: &str, file: &str) -> Result<PathBuf> {
        let mut path = self.root.join("events");
        for part in [category, name] {
            if matches!(part, "" | "." | "..") || part.contains('/') {
                return Err(SysError::new("open", Errno::EINVAL)
                    .with_path(path)
                    .with_detail(format!("not the name of an event: {part:?}")));
            }
            path.push(part);
        }
        path.push(file);
        Ok(path)
    }

    /// Creates a probe event. Its id is then [`Tracefs::event_id`] of its
    /// group and name; removing it is the caller's duty.
    ///
    /// The name must be unused: where an event of that group and name exists,
    /// kernels before 5.4 replace it, and later ones add the place to it.
    ///
    /// # Errors
    /// `ENOENT` if the file or, for a kernel function, the symbol does not
    /// exist; `EEXIST` if the event exists with this place or as the other
    /// kind (Linux 5.4); `EINVAL` for what the kernel or [`ProbeSpec::line`]
    /// cannot take.
    pub fn add_probe(&self, spec: &ProbeSpec<'_>) -> Result<()> {
        self.append(spec.file(), &spec.line()?)
    }

    /// Removes a probe event.
    ///
    /// # Errors
    /// `ENOENT` if there is none of that name, `EBUSY` while it is in use.
    pub fn remove_probe(&self, file: ProbeFile, group: &str, name: &str) -> Result<()> {
        let mut line = String::with_capacity(3 + group.len() + name.len());
        line.push_str("-:");
        line.push_str(group);
        line.push('/');
        line.push_str(name);
        self.append(file, &line)
    }

    /// Appends one command line, without its newline, in one write(2).
    ///
    /// The file is opened for appending: opening it with truncation would
    /// remove the events of every other process too.
    ///
    /// # Errors
    /// Those of open(2) and of the kernel's parser; `EINVAL` if the line
    /// contains a newline, which would make two commands of it.
    pub fn append(&self, file: ProbeFile, line: &str) -> Result<()> {
        let path = self.root.join(file.name());
        if line.contains('\n') {
            return Err(SysError::new("write", Errno::EINVAL)
                .with_path(path)
                .with_detail("newline in a probe event"));
        }
        let write = |mut file: File| loop {
            match file.write(line.as_bytes()) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(n) if n < line.len() => return Err(Errno::EIO.into()),
                other => return other,
            }
        };
        let file = match OpenOptions::new().append(true).open(&path) {
            Ok(file) => file,
            Err(e) => return Err(SysError::from_io("open", &e).with_path(path)),
        };
        match write(file) {
            Ok(_) => Ok(()),
            Err(e) => Err(SysError::from_io("write", &e)
                .with_path(path)
                .with_detail(line)),
        }
    }

    /// Visits the probe events of every process, until `visit` breaks. Lines
    /// of an unknown form are passed over.
    ///
    /// # Errors
    /// Those of [`for_each_line`]; `ENOENT` if this kernel does not have them.
    pub fn for_each_probe(
        &self,
        file: ProbeFile,
        visit: &mut dyn FnMut(ProbeEvent<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        for_each_line(
            &self.root.join(file.name()),
            &mut |line| match parse_probe(line) {
                Some(event) => visit(event),
                None => ControlFlow::Continue(()),
            },
        )
    }

    /// Visits the functions that ftrace can trace, in the order of
    /// `available_filter_functions`, until `visit` breaks. Names the
    /// kernel invents for discarded functions are left out.
    ///
    /// # Errors
    /// Those of [`for_each_line`]; `ENOENT` without dynamic ftrace, `EPERM`
    /// under lockdown.
    pub fn for_each_function(
        &self,
        visit: &mut dyn FnMut(FilterFunction<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        for_each_line(&self.root.join("available_filter_functions"), &mut |line| {
            match parse_function(line) {
                Some(function) => visit(function),
                None => ControlFlow::Continue(()),
            }
        })
    }
}

/// Type of the file system `path` is on.
fn fs_magic(path: &Path) -> Result<i64> {
    let c = c_path("statfs", path)?;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    let (path_ptr, stat_ptr) = (c.as_ptr(), stat.as_mut_ptr());
    retry_eintr("statfs", || {
        // SAFETY: `path_ptr` is a NUL-terminated string and `stat_ptr` points
        // at room for one statfs; both outlive the call.
        i64::from(unsafe { libc::statfs(path_ptr, stat_ptr) })
    })
    .map_err(|e| e.with_path(path))?;
    // SAFETY: the call succeeded, so the kernel filled in the whole struct.
    let stat = unsafe { stat.assume_init() };
    // The type differs between architectures; no magic needs more than 32 bits.
    Ok(i64::from(stat.f_type as u32))
}

/// A function that ftrace can trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilterFunction<'a> {
    /// Name, as in kallsyms.
    pub name: &'a [u8],
    /// Module it lives in; `None` for the kernel image.
    pub module: Option<&'a [u8]>,
}

/// Parses a line of `available_filter_functions`: `name` or `name [module]`.
///
/// `None` for an empty line and for `__ftrace_invalid_address___`, which
/// stands for a weak function that was overridden (Linux 6.0).
pub fn parse_function(line: &[u8]) -> Option<FilterFunction<'_>> {
    let (name, module) = split_module(line)?;
    if name.starts_with(b"__ftrace_invalid_address__") {
        return None;
    }
    Some(FilterFunction { name, module })
}

#[cfg(test)]
mod tests;
