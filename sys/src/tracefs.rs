//! tracefs: mount discovery, probe events, event ids and formats.
//!
//! Probe events are how kernels before 4.17 attach to functions, and the
//! names live in one table shared by the whole system: an event stays until
//! somebody removes it, also when its creator dies.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::Result;
use crate::errno::{Errno, SysError, retry_eintr};
use crate::proc::{
    c_path, decimal, for_each_line, malformed, mounts_of, read_line, read_small, split_module,
    whole_decimal,
};

const TRACEFS_MAGIC: i64 = 0x7472_6163;
const DEBUGFS_MAGIC: i64 = 0x6462_6720;

/// Longest name of a probe event or its group, in bytes. The kernel's buffer
/// is 64 bytes with the terminating zero.
pub const MAX_EVENT_NAME_LEN: usize = 63;

/// A mounted tracefs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tracefs {
    root: PathBuf,
}

/// One of the two files that make dynamic probe events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeFile {
    /// `kprobe_events`: kernel functions. Needs `CONFIG_KPROBE_EVENTS`.
    Kprobe,
    /// `uprobe_events`: places in files. Needs `CONFIG_UPROBE_EVENTS`.
    Uprobe,
}

impl ProbeFile {
    /// Name of the file below the tracefs root.
    pub const fn name(self) -> &'static str {
        match self {
            ProbeFile::Kprobe => "kprobe_events",
            ProbeFile::Uprobe => "uprobe_events",
        }
    }
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

// ----------------------------------------------------------- probe events

/// Entry or return of the probed function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeKind {
    /// `p`: when the place is reached.
    Entry,
    /// `r`: when the function that starts there returns.
    Return {
        /// Calls that can be in flight at once, for kernel functions; 0 lets
        /// the kernel choose. Linux 4.12; older kernels refuse the line.
        maxactive: u32,
    },
}

/// What a probe event is put on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbePlace<'a> {
    /// `offset` bytes into the kernel function `symbol` (or `module:symbol`).
    Kernel {
        /// Name as in kallsyms.
        symbol: &'a str,
        /// Bytes from its start.
        offset: u64,
    },
    /// `offset` bytes into the file `path`.
    User {
        /// An executable or library.
        path: &'a str,
        /// File offset, not address.
        offset: u64,
        /// File offset of a 16-bit counter that is above zero while the probe
        /// exists (USDT semaphore). Linux 4.20.
        ref_counter: Option<u64>,
    },
}

/// A probe event to be created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeSpec<'a> {
    /// Entry or return.
    pub kind: ProbeKind,
    /// Group, the directory below `events`; see [`event_name`].
    pub group: &'a str,
    /// Name within the group; see [`event_name`].
    pub name: &'a str,
    /// Where.
    pub place: ProbePlace<'a>,
}

impl ProbeSpec<'_> {
    /// The file that makes this kind of event.
    pub fn file(&self) -> ProbeFile {
        match self.place {
            ProbePlace::Kernel { .. } => ProbeFile::Kprobe,
            ProbePlace::User { .. } => ProbeFile::Uprobe,
        }
    }

    /// The command line: `p:group/name symbol+8`,
    /// `r:group/name /bin/x:0x1234(0x5678)`.
    ///
    /// # Errors
    /// `EINVAL` for what the kernel's format cannot carry: a group or name
    /// that [`event_name`] would change, white space in a symbol or path, and
    /// `maxactive` on a user function.
    pub fn line(&self) -> Result<String> {
        let refuse =
            |what: &str| Err(SysError::new("probe event", Errno::EINVAL).with_detail(what));
        let subject = match self.place {
            ProbePlace::Kernel { symbol, .. } => symbol,
            ProbePlace::User { path, .. } => path,
        };
        if !is_event_name(self.group) || !is_event_name(self.name) {
            return refuse("group and name must be 1 to 63 letters, digits and '_'");
        }
        // The kernel splits the line at white space and knows no quoting.
        if subject.is_empty()
            || subject
                .bytes()
                .any(|b| b.is_ascii_whitespace() || b == 0x0b)
        {
            return refuse("symbol or path is empty or contains white space");
        }
        let mut line = String::with_capacity(64 + subject.len());
        match (self.kind, self.place) {
            (ProbeKind::Entry, _) => line.push('p'),
            (ProbeKind::Return { maxactive: 0 }, _) => line.push('r'),
            (ProbeKind::Return { maxactive }, ProbePlace::Kernel { .. }) => {
                let _ = write!(line, "r{maxactive}");
            }
            (ProbeKind::Return { .. }, ProbePlace::User { .. }) => {
                return refuse("maxactive is for kernel functions only");
            }
        }
        for part in [":", self.group, "/", self.name, " ", subject] {
            line.push_str(part);
        }
        // Writing to a string cannot fail.
        let _ = match self.place {
            ProbePlace::Kernel { offset: 0, .. } => Ok(()),
            ProbePlace::Kernel { offset, .. } => write!(line, "+{offset}"),
            ProbePlace::User {
                offset,
                ref_counter: None,
                ..
            } => write!(line, ":{offset:#x}"),
            ProbePlace::User {
                offset,
                ref_counter: Some(counter),
                ..
            } => write!(line, ":{offset:#x}({counter:#x})"),
        };
        Ok(line)
    }
}

/// A name the kernel takes for a probe event or group, from any text: every
/// byte that is no letter, digit or `_` becomes `_`, and `stem` is cut so that
/// it and the whole of `suffix` fit in [`MAX_EVENT_NAME_LEN`] bytes. Put what
/// tells two events apart into `suffix`.
pub fn event_name(stem: &str, suffix: &str) -> String {
    let clean = |b: u8| {
        if b.is_ascii_alphanumeric() {
            char::from(b)
        } else {
            '_'
        }
    };
    let mut name = String::with_capacity(MAX_EVENT_NAME_LEN);
    if stem
        .bytes()
        .chain(suffix.bytes())
        .next()
        .is_none_or(|b| b.is_ascii_digit())
    {
        name.push('_');
    }
    let room = MAX_EVENT_NAME_LEN - name.len();
    let tail = suffix.len().min(room);
    name.extend(stem.bytes().take(room - tail).map(clean));
    name.extend(suffix.bytes().take(tail).map(clean));
    name
}

fn is_event_name(name: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=MAX_EVENT_NAME_LEN).contains(&name.len())
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(ok)
}

/// A probe event as the kernel lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeEvent<'a> {
    /// Entry or return.
    pub kind: ProbeKind,
    /// Group, the directory below `events`.
    pub group: &'a str,
    /// Name within the group.
    pub name: &'a str,
    /// Place and arguments, as listed: `vfs_read+0 arg1=%ax`,
    /// `/bin/x:0x0000000000001234`.
    pub rest: &'a [u8],
}

/// Parses a line of `kprobe_events` or `uprobe_events`:
/// `r16:group/name vfs_read+0 arg1=%ax`.
pub fn parse_probe(line: &[u8]) -> Option<ProbeEvent<'_>> {
    let blank = line.iter().position(|&b| b == b' ').unwrap_or(line.len());
    let (head, rest) = line.split_at_checked(blank)?;
    let (kind, names) = match head {
        [b'p', b':', names @ ..] => (ProbeKind::Entry, names),
        [b'r', b':', names @ ..] => (ProbeKind::Return { maxactive: 0 }, names),
        [b'r', number @ ..] => {
            let (maxactive, names) = decimal(number)?;
            let maxactive = u32::try_from(maxactive).ok()?;
            (ProbeKind::Return { maxactive }, names.strip_prefix(b":")?)
        }
        _ => return None,
    };
    let (group, name) = str::from_utf8(names).ok()?.split_once('/')?;
    if group.is_empty() || name.is_empty() {
        return None;
    }
    Some(ProbeEvent {
        kind,
        group,
        name,
        rest: rest.trim_ascii(),
    })
}

// ---------------------------------------------------------------- formats

/// Layout of an event's record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventFormat {
    /// Name of the event.
    pub name: String,
    /// Id, as [`Tracefs::event_id`].
    pub id: u64,
    /// Fields in the order of the record, the four or so `common_` ones first.
    pub fields: Vec<EventField>,
}

/// One field of an event's record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventField {
    /// Name.
    pub name: String,
    /// C type as the kernel prints it, an array's length at its end:
    /// `unsigned long`, `char[16]`.
    pub type_name: String,
    /// Bytes from the start of the record.
    pub offset: u32,
    /// Size in bytes; of the descriptor, not the data, unless inline.
    pub size: u32,
    /// Signed integer.
    pub signed: bool,
    /// Where the data are.
    pub data: DataLocation,
}

/// Where a field keeps its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataLocation {
    /// In the field itself.
    Inline,
    /// `__data_loc`: the field is a `u32`, the length in its upper half and the
    /// offset from the start of the record in the lower one.
    Record,
    /// `__rel_loc`: the same, but counted from the end of the field. Linux 5.17.
    Field,
}

impl EventFormat {
    /// Parses the text of a `format` file. `None` unless it has a name, an id
    /// and only fields of the known form.
    pub fn parse(text: &[u8]) -> Option<EventFormat> {
        let mut parser = FormatParser::default();
        for line in text.split(|&b| b == b'\n') {
            if parser.line(line).is_break() {
                break;
            }
        }
        parser.finish()
    }

    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&EventField> {
        self.fields.iter().find(|field| field.name == name)
    }
}

#[derive(Default)]
struct FormatParser {
    format: EventFormat,
    has_id: bool,
    bad: bool,
}

impl FormatParser {
    fn line(&mut self, line: &[u8]) -> ControlFlow<()> {
        let line = line.trim_ascii();
        if let Some(name) = line.strip_prefix(b"name:") {
            self.format.name = String::from_utf8_lossy(name.trim_ascii()).into_owned();
        } else if let Some(id) = line.strip_prefix(b"ID:") {
            match whole_decimal(id) {
                Some(id) => (self.format.id, self.has_id) = (id, true),
                None => self.bad = true,
            }
        } else if let Some(field) = line.strip_prefix(b"field:") {
            match parse_field(field) {
                Some(field) => self.format.fields.push(field),
                None => self.bad = true,
            }
        } else if line.starts_with(b"print fmt:") {
            // The rest says how to print it and can be long.
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn finish(self) -> Option<EventFormat> {
        let complete = self.has_id && !self.bad && !self.format.name.is_empty();
        complete.then_some(self.format)
    }
}

/// Parses `__data_loc char[] comm;<tab>offset:8;<tab>size:4;<tab>signed:1;`.
fn parse_field(text: &[u8]) -> Option<EventField> {
    let mut parts = text.split(|&b| b == b';').map(<[u8]>::trim_ascii);
    let declaration = str::from_utf8(parts.next()?).ok()?;
    let (mut offset, mut size, mut signed) = (None, None, false);
    for part in parts {
        if let Some(value) = part.strip_prefix(b"offset:") {
            offset = u32::try_from(whole_decimal(value)?).ok();
        } else if let Some(value) = part.strip_prefix(b"size:") {
            size = u32::try_from(whole_decimal(value)?).ok();
        } else if let Some(value) = part.strip_prefix(b"signed:") {
            signed = whole_decimal(value)? != 0;
        }
    }
    let (data, declaration) = if let Some(rest) = declaration.strip_prefix("__data_loc ") {
        (DataLocation::Record, rest)
    } else if let Some(rest) = declaration.strip_prefix("__rel_loc ") {
        (DataLocation::Field, rest)
    } else {
        (DataLocation::Inline, declaration)
    };
    // `char comm[16]`: the length belongs to the type.
    let bracket = match declaration.strip_suffix(']') {
        Some(_) => declaration.rfind('['),
        None => None,
    };
    let (front, array) = declaration.split_at_checked(bracket.unwrap_or(declaration.len()))?;
    let front = front.trim_ascii_end();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let type_name = front.trim_end_matches(is_name);
    let name = front.get(type_name.len()..)?;
    let type_name = type_name.trim_ascii();
    if name.is_empty() || type_name.is_empty() {
        return None;
    }
    Some(EventField {
        name: name.to_owned(),
        type_name: [type_name, array].concat(),
        offset: offset?,
        size: size?,
        signed,
        data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NO_LOCKDOWN, Random, TempDir, require, with_mounted};

    /// Runs `test` with a tracefs that nobody else sees mounted.
    fn with_tracefs(test: impl FnOnce(&Tracefs) + Send) {
        with_mounted("tracefs", |root| test(&Tracefs::at(root)));
    }

    #[test]
    fn the_mounted_tracefs_is_found() {
        let mounted = mounts_of("tracefs").unwrap();
        match Tracefs::find() {
            Ok(found) => assert_eq!(fs_magic(found.root()), Ok(TRACEFS_MAGIC)),
            Err(err) => assert!(mounted.is_empty() && err.is(Errno::ENOENT), "{err}"),
        }
    }

    #[test]
    fn names_are_made_acceptable() {
        assert_eq!(event_name("vfs_read", "_p_12"), "vfs_read_p_12");
        assert_eq!(event_name("std::io::Read<T>", ""), "std__io__Read_T_");
        assert_eq!(event_name("7zip", "x"), "_7zipx");
        assert_eq!(event_name("", ""), "_");
        assert_eq!(event_name("", "1"), "_1");
        assert_eq!(event_name("é", ""), "__");
        let long = event_name(&"x".repeat(100), "_end");
        assert_eq!(long.len(), MAX_EVENT_NAME_LEN);
        assert!(long.ends_with("xx_end"));
        assert_eq!(event_name("9", &"y".repeat(100)).len(), MAX_EVENT_NAME_LEN);
        for (stem, suffix) in [("", ""), ("9", "9"), ("\u{1f980}", "-"), ("a/b", "\n")] {
            assert!(
                is_event_name(&event_name(stem, suffix)),
                "{stem:?} {suffix:?}"
            );
        }
        for bad in ["", "9a", "a-b", "a b", "a\n", &"x".repeat(64)] {
            assert!(!is_event_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn lines_of_probe_events() {
        let kernel = |kind, symbol, offset| {
            ProbeSpec {
                kind,
                group: "g",
                name: "n",
                place: ProbePlace::Kernel { symbol, offset },
            }
            .line()
        };
        let user = |kind, path, ref_counter| {
            ProbeSpec {
                kind,
                group: "g",
                name: "n",
                place: ProbePlace::User {
                    path,
                    offset: 0x1a0,
                    ref_counter,
                },
            }
            .line()
        };
        let ret = |maxactive| ProbeKind::Return { maxactive };
        let ok = |line: Result<String>, text: &str| assert_eq!(line.as_deref(), Ok(text));
        ok(kernel(ProbeKind::Entry, "vfs_read", 0), "p:g/n vfs_read");
        ok(kernel(ProbeKind::Entry, "veth:x", 8), "p:g/n veth:x+8");
        ok(kernel(ret(0), "vfs_read", 0), "r:g/n vfs_read");
        ok(kernel(ret(16), "vfs_read", 0), "r16:g/n vfs_read");
        ok(user(ProbeKind::Entry, "/bin/x", None), "p:g/n /bin/x:0x1a0");
        ok(user(ret(0), "/b", Some(0x20)), "r:g/n /b:0x1a0(0x20)");
        for bad in [
            kernel(ProbeKind::Entry, "a b", 0),
            kernel(ProbeKind::Entry, "", 0),
            user(ProbeKind::Entry, "/a\nb", None),
            user(ret(1), "/b", None),
        ] {
            assert!(bad.is_err_and(|e| e.is(Errno::EINVAL)));
        }
        let spec = ProbeSpec {
            kind: ProbeKind::Entry,
            group: "g/x",
            name: "n",
            place: ProbePlace::Kernel {
                symbol: "s",
                offset: 0,
            },
        };
        assert!(spec.line().is_err_and(|e| e.is(Errno::EINVAL)));
    }

    #[test]
    fn listed_probe_events() {
        let event = parse_probe(b"r16:kprobes/myretprobe do_sys_open arg=$retval").unwrap();
        assert_eq!(event.kind, ProbeKind::Return { maxactive: 16 });
        assert_eq!((event.group, event.name), ("kprobes", "myretprobe"));
        assert_eq!(event.rest, b"do_sys_open arg=$retval");
        let event = parse_probe(b"p:uprobes/t /bin/true:0x0000000000001234").unwrap();
        assert_eq!(event.kind, ProbeKind::Entry);
        assert_eq!(event.rest, b"/bin/true:0x0000000000001234");
        assert_eq!(parse_probe(b"p:g/n").unwrap().rest, b"");
        for bad in [
            &b""[..],
            b"p",
            b"x:g/n y",
            b"p:g y",
            b"p:/n y",
            b"p:g/ y",
            b"r99999999999:g/n y",
            b"r1g/n y",
            b"p:\xff/n y",
        ] {
            assert_eq!(parse_probe(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn filter_functions() {
        let parse = |line| parse_function(line).map(|f| (f.name, f.module));
        assert_eq!(parse(b"vfs_read"), Some((&b"vfs_read"[..], None)));
        let module = Some(&b"veth"[..]);
        assert_eq!(
            parse(b"veth_xmit [veth]"),
            Some((&b"veth_xmit"[..], module))
        );
        assert_eq!(
            parse(b"veth_xmit\t[veth]"),
            Some((&b"veth_xmit"[..], module))
        );
        assert_eq!(parse_function(b""), None);
        assert_eq!(parse_function(b"__ftrace_invalid_address___64"), None);
    }

    const FORMAT: &[u8] = b"name: sched_process_exec
ID: 312
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:__data_loc char[] filename;\toffset:8;\tsize:4;\tsigned:0;
\tfield:__rel_loc u8[] blob;\toffset:12;\tsize:4;\tsigned:0;
\tfield:char comm[16];\toffset:16;\tsize:16;\tsigned:0;
\tfield:const char * name;\toffset:32;\tsize:8;\tsigned:0;
\tfield:unsigned long args[6];\toffset:40;\tsize:48;

print fmt: \"field:x\"
\tfield:this is not one
";

    #[test]
    fn formats() {
        let format = EventFormat::parse(FORMAT).unwrap();
        assert_eq!(
            (format.name.as_str(), format.id),
            ("sched_process_exec", 312)
        );
        let shape: Vec<_> = format
            .fields
            .iter()
            .map(|f| {
                (
                    f.name.as_str(),
                    f.type_name.as_str(),
                    f.offset,
                    f.size,
                    f.signed,
                )
            })
            .collect();
        assert_eq!(
            shape,
            [
                ("common_type", "unsigned short", 0, 2, false),
                ("common_pid", "int", 4, 4, true),
                ("filename", "char[]", 8, 4, false),
                ("blob", "u8[]", 12, 4, false),
                ("comm", "char[16]", 16, 16, false),
                ("name", "const char *", 32, 8, false),
                ("args", "unsigned long[6]", 40, 48, false),
            ]
        );
        let data = |name| format.field(name).unwrap().data;
        assert_eq!(data("filename"), DataLocation::Record);
        assert_eq!(data("blob"), DataLocation::Field);
        assert_eq!(data("comm"), DataLocation::Inline);
        assert!(format.field("nothing").is_none());
    }

    #[test]
    fn damaged_formats_do_not_panic() {
        for bad in [
            &b""[..],
            b"name: x\n",
            b"ID: 1\n",
            b"name: x\nID: y\n",
            b"name: x\nID: 1\n field:int;\toffset:0;\tsize:4;\n",
            b"name: x\nID: 1\n field:int x;\toffset:z;\tsize:4;\n",
            b"name: x\nID: 1\n field:int x;\tsize:4;\n",
            b"name: x\nID: 1\n field:[];\toffset:0;\tsize:4;\n",
            b"name: x\nID: 1\n field:int x;\toffset:4294967296;\tsize:4;\n",
        ] {
            assert_eq!(EventFormat::parse(bad), None, "{bad:?}");
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..5_000 {
            let text = random.damaged(FORMAT);
            let _ = EventFormat::parse(&text);
            for line in text.split(|&b| b == b'\n') {
                let _ = parse_probe(line);
                let _ = parse_function(line);
                let _ = crate::proc::parse_symbol(line);
                let _ = crate::proc::parse_mount(line).map(|m| m.target());
                let _ = crate::proc::parse_cpu_list(line);
                let _ = crate::proc::parse_start_time(line);
                let _ = crate::proc::parse_lockdown(line);
            }
        }
    }

    #[test]
    fn event_names_cannot_leave_the_tree() {
        let tracefs = Tracefs::at("/nowhere");
        for (category, name) in [("..", "x"), ("sched", "../x"), ("", "x"), ("sched", ".")] {
            let err = tracefs.event_id(category, name).unwrap_err();
            assert!(err.is(Errno::EINVAL), "{err}");
        }
        let err = tracefs
            .append(ProbeFile::Uprobe, "p:a/b c\n-:*")
            .unwrap_err();
        assert!(err.is(Errno::EINVAL), "{err}");
        assert!(!tracefs.has(ProbeFile::Kprobe));
    }

    #[test]
    fn commands_are_appended() {
        // On tracefs, truncating would remove everybody's events.
        let dir = TempDir::new();
        let tracefs = Tracefs::at(dir.path());
        let file = dir.path().join(ProbeFile::Uprobe.name());
        std::fs::write(&file, "p:theirs/x /bin/true:0x10\n").unwrap();
        tracefs
            .remove_probe(ProbeFile::Uprobe, "ours", "y")
            .unwrap();
        let content = std::fs::read_to_string(&file).unwrap();
        let mut seen = Vec::new();
        tracefs
            .for_each_probe(ProbeFile::Uprobe, &mut |event| {
                seen.push((event.group.to_owned(), event.name.to_owned()));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(content, "p:theirs/x /bin/true:0x10\n-:ours/y");
        assert_eq!(seen, [("theirs".to_owned(), "x".to_owned())]);
    }

    #[test]
    fn tracepoint_of_this_kernel() {
        with_tracefs(|tracefs| {
            let (category, name) = ("sched", "sched_process_exec");
            let id = tracefs.event_id(category, name).unwrap();
            let format = tracefs.event_format(category, name).unwrap();
            assert_eq!((format.id, format.name.as_str()), (id, name));
            let filename = format.field("filename").unwrap();
            assert_eq!(filename.data, DataLocation::Record);
            assert_eq!((filename.offset, filename.size), (8, 4));
            assert!(format.field("pid").unwrap().signed);
            tracefs.event_enabled(category, name).unwrap();
            let err = tracefs.event_id(category, "nothing").unwrap_err();
            assert!(err.is(Errno::ENOENT), "{err}");
        });
    }

    #[test]
    fn functions_of_this_kernel() {
        with_tracefs(|tracefs| {
            let mut found = false;
            let result = tracefs.for_each_function(&mut |function| {
                found = function.name == b"vfs_read";
                if found {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            require!((4, 1), ["CONFIG_DYNAMIC_FTRACE", NO_LOCKDOWN], result);
            assert!(found);
        });
    }

    fn listed(tracefs: &Tracefs, name: &str) -> Option<(ProbeKind, String, Vec<u8>)> {
        let mut found = None;
        tracefs
            .for_each_probe(ProbeFile::Uprobe, &mut |event| {
                if event.name == name {
                    found = Some((event.kind, event.group.to_owned(), event.rest.to_vec()));
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        found
    }

    #[test]
    fn uprobe_event_life() {
        with_tracefs(life_of_a_uprobe_event);
    }

    fn life_of_a_uprobe_event(tracefs: &Tracefs) {
        let exe = std::env::current_exe().unwrap();
        let name = event_name("sys_test", &format!("_{}", std::process::id()));
        let group = "ebpf_manager_test";
        let spec = ProbeSpec {
            kind: ProbeKind::Return { maxactive: 0 },
            group,
            name: &name,
            place: ProbePlace::User {
                path: exe.to_str().unwrap(),
                offset: 0x1000,
                ref_counter: None,
            },
        };
        let added = tracefs.add_probe(&spec);
        require!((4, 1), ["CONFIG_UPROBE_EVENTS"], added);
        assert!(tracefs.has(ProbeFile::Uprobe));
        let seen = listed(tracefs, &name);
        let id = tracefs.event_id(group, &name);
        tracefs
            .remove_probe(ProbeFile::Uprobe, group, &name)
            .unwrap();
        let (kind, seen_group, rest) = seen.unwrap();
        assert_eq!(kind, spec.kind);
        assert_eq!(seen_group, group);
        assert!(rest.starts_with(exe.to_str().unwrap().as_bytes()));
        assert_ne!(id.unwrap(), 0);
        assert_eq!(listed(tracefs, &name), None);
        let err = tracefs
            .remove_probe(ProbeFile::Uprobe, group, &name)
            .unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
        assert_eq!(err.detail(), Some(format!("-:{group}/{name}").as_str()));
        let place = ProbePlace::User {
            path: "/nonexistent",
            offset: 0,
            ref_counter: None,
        };
        let err = tracefs.add_probe(&ProbeSpec { place, ..spec }).unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
    }
}
