//! Probe events: their names, the lines that make them and those that list them.

use std::fmt::Write as _;

use crate::Result;
use crate::errno::{Errno, SysError};
use crate::proc::decimal;

/// Longest name of a probe event or its group, in bytes. The kernel's buffer
/// is 64 bytes with the terminating zero.
pub const MAX_EVENT_NAME_LEN: usize = 63;

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

pub(super) fn is_event_name(name: &str) -> bool {
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
