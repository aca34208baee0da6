//! The /proc and /sys files a loader reads, and the few process-wide facts
//! (capabilities, limits, `uname`) that belong with them.
//!
//! Small files are read into a caller's buffer, large ones (kallsyms, mount
//! tables) are visited line by line. Nothing is kept but the number of possible
//! CPUs, which never changes. Every text format has a parser that takes bytes
//! and touches no file.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bitflags::bitflags;

use crate::Result;
use crate::errno::{Errno, SysError, retry_eintr};

// ---------------------------------------------------------------- reading

/// A line longer than this is not text of the kernel's.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Reads a whole file into `buf` and returns the part that was filled.
///
/// Meant for sysfs and procfs files, whose size is not known before reading:
/// no `stat`, no growth, no allocation.
///
/// # Errors
/// Those of open(2) and read(2); `EFBIG` if the file does not end before
/// `buf` does (at least one byte must stay free).
pub fn read_small<'b>(path: &Path, buf: &'b mut [u8]) -> Result<&'b [u8]> {
    read_until(path, buf, &|_| false)
}

/// [`read_small`] for a file of one line: a newline is its end, so no further
/// read(2) has to find that out.
pub(crate) fn read_line<'b>(path: &Path, buf: &'b mut [u8]) -> Result<&'b [u8]> {
    read_until(path, buf, &|text| text.ends_with(b"\n"))
}

fn read_until<'b>(
    path: &Path,
    buf: &'b mut [u8],
    complete: &dyn Fn(&[u8]) -> bool,
) -> Result<&'b [u8]> {
    let mut file = File::open(path).map_err(|e| file_error("open", &e, path))?;
    let mut len = 0;
    loop {
        let rest = buf.get_mut(len..).unwrap_or_default();
        if rest.is_empty() {
            return Err(SysError::new("read", Errno::EFBIG).with_path(path));
        }
        match file.read(rest) {
            Ok(0) => return Ok(buf.get(..len).unwrap_or_default()),
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(file_error("read", &e, path)),
        }
        if complete(buf.get(..len).unwrap_or_default()) {
            return Ok(buf.get(..len).unwrap_or_default());
        }
    }
}

/// Calls `visit` for each line of a file, without its newline, until it
/// breaks. One buffer serves all lines.
///
/// # Errors
/// Those of open(2) and read(2); `EFBIG` for a line above 1 MiB.
pub fn for_each_line(path: &Path, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Result<()> {
    let mut file = File::open(path).map_err(|e| file_error("open", &e, path))?;
    for_each_line_of(&mut file, visit).map_err(|e| file_error("read", &e, path))
}

/// [`for_each_line`] of anything that can be read.
///
/// # Errors
/// Those of the reader; an error with the number `EFBIG` for a line above
/// 1 MiB.
pub fn for_each_line_of(
    reader: &mut dyn Read,
    visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<()> {
    // Two pages: a seq_file gives at most one page per read(2), whatever is
    // asked for, and the rest of the last line is carried over.
    let mut buf = vec![0; 8192];
    let mut filled = 0;
    loop {
        if filled == buf.len() {
            if filled >= MAX_LINE_BYTES {
                return Err(Errno::EFBIG.into());
            }
            buf.resize(filled * 2, 0);
        }
        let free = buf.get_mut(filled..).unwrap_or_default();
        let n = match reader.read(free) {
            Ok(n) => n.min(free.len()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let end = filled + n;
        let (mut start, mut from) = (0, filled);
        while let Some(at) = find_byte(buf.get(from..end).unwrap_or_default(), b'\n') {
            from += at;
            if visit(buf.get(start..from).unwrap_or_default()).is_break() {
                return Ok(());
            }
            from += 1;
            start = from;
        }
        if n == 0 {
            // The last line need not end in a newline.
            if end > start {
                let _ = visit(buf.get(start..end).unwrap_or_default());
            }
            return Ok(());
        }
        buf.copy_within(start..end, 0);
        filled = end - start;
    }
}

/// Position of the first `byte` in `bytes`; the C library's vectorised search,
/// since kallsyms has megabytes to go through.
fn find_byte(bytes: &[u8], byte: u8) -> Option<usize> {
    // SAFETY: the pointer and length describe one live slice, which memchr
    // only reads.
    let found = unsafe { libc::memchr(bytes.as_ptr().cast(), i32::from(byte), bytes.len()) };
    if found.is_null() {
        return None;
    }
    Some(found.addr() - bytes.as_ptr().addr())
}

fn file_error(op: &'static str, err: &io::Error, path: &Path) -> SysError {
    SysError::from_io(op, err).with_path(path)
}

/// The file did not have the form the kernel gives it.
pub(crate) fn malformed(path: &Path) -> SysError {
    SysError::new("parse", Errno::EBADMSG).with_path(path)
}

/// A NUL-terminated copy of a path.
pub(crate) fn c_path(op: &'static str, path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| {
        SysError::new(op, Errno::EINVAL)
            .with_path(path)
            .with_detail("path contains a NUL byte")
    })
}

/// Decimal number at the start of `text` and what follows it. `None` without
/// a digit or above `u64::MAX`.
pub(crate) fn decimal(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (number, rest) = text.split_at_checked(digits)?;
    if number.is_empty() {
        return None;
    }
    let value = number.iter().try_fold(0_u64, |sum, b| {
        sum.checked_mul(10)?.checked_add(u64::from(b - b'0'))
    })?;
    Some((value, rest))
}

/// Text that is one decimal number, spaces and newline around it allowed.
pub(crate) fn whole_decimal(text: &[u8]) -> Option<u64> {
    match decimal(text.trim_ascii())? {
        (value, []) => Some(value),
        _ => None,
    }
}

// ------------------------------------------------------------------- CPUs

/// Highest CPU id accepted in a list; the kernel's own limit is 8192 CPUs.
const MAX_CPU_ID: u64 = 0xffff;

/// Number of CPUs that may ever come online, which is how many values an
/// element of a per-CPU map has. Read once.
///
/// # Errors
/// Those of [`read_small`]; `EBADMSG` if the text is not a CPU list.
pub fn possible_cpus() -> Result<usize> {
    static COUNT: OnceLock<usize> = OnceLock::new();
    if let Some(&count) = COUNT.get() {
        return Ok(count);
    }
    let path = Path::new("/sys/devices/system/cpu/possible");
    let count = count_cpus(read_small(path, &mut [0; 4096])?);
    let count = count.ok_or_else(|| malformed(path))?;
    Ok(*COUNT.get_or_init(|| count))
}

/// How many CPUs a list names; `None` if it names none or is none.
fn count_cpus(text: &[u8]) -> Option<usize> {
    let mut count = 0;
    for_each_cpu_range(text, &mut |first, last| {
        count += (last - first) as usize + 1;
    })?;
    (count != 0).then_some(count)
}

/// Ids of the CPUs that are online now, ascending. CPUs come and go: opening
/// a perf event on one of these can still fail with `ENODEV`.
///
/// # Errors
/// Those of [`read_small`]; `EBADMSG` if the text is not a CPU list.
pub fn online_cpus() -> Result<Vec<u32>> {
    let path = Path::new("/sys/devices/system/cpu/online");
    parse_cpu_list(read_small(path, &mut [0; 4096])?).ok_or_else(|| malformed(path))
}

/// Parses a list such as `0-3,8,10-11` as the kernel prints it: ascending,
/// without overlaps, perhaps empty, perhaps with a final newline.
///
/// `None` for anything else and for ids above 65535.
pub fn parse_cpu_list(text: &[u8]) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for_each_cpu_range(text, &mut |first, last| cpus.extend(first..=last))?;
    Some(cpus)
}

/// Calls `visit` with the first and last id of each range of a CPU list.
/// `None` if the text is none; the ranges in front were visited then.
fn for_each_cpu_range(text: &[u8], visit: &mut dyn FnMut(u32, u32)) -> Option<()> {
    let text = text.trim_ascii_end();
    if text.is_empty() {
        return Some(());
    }
    let mut next = 0;
    for range in text.split(|&b| b == b',') {
        let (first, rest) = decimal(range)?;
        let last = match rest {
            [] => first,
            [b'-', rest @ ..] => match decimal(rest)? {
                (last, []) => last,
                _ => return None,
            },
            _ => return None,
        };
        if first < next || last < first || last > MAX_CPU_ID {
            return None;
        }
        visit(first as u32, last as u32);
        next = last + 1;
    }
    Some(())
}

// -------------------------------------------------------- kernel identity

/// Answer of uname(2).
#[derive(Clone)]
pub struct Uname([[u8; 65]; 6]);

const _: () = assert!(size_of::<Uname>() == size_of::<libc::utsname>());

impl Uname {
    /// Asks the kernel.
    ///
    /// # Errors
    /// None that a working system gives; whatever uname(2) returns otherwise.
    pub fn get() -> Result<Uname> {
        let mut name = Uname([[0; 65]; 6]);
        let to = name.0.as_mut_ptr().cast::<libc::utsname>();
        retry_eintr("uname", || {
            // SAFETY: `to` points at `name`, which has the size of `utsname`
            // (asserted above) and lives through the call; both are bytes.
            i64::from(unsafe { libc::uname(to) })
        })?;
        Ok(name)
    }

    /// Release, such as `6.1.0-18-amd64`.
    pub fn release(&self) -> &str {
        self.field(2)
    }

    /// Build line, such as `#1 SMP Debian 6.1.76-1`.
    pub fn version(&self) -> &str {
        self.field(3)
    }

    /// Machine, such as `x86_64` or `aarch64`. A 32-bit personality changes
    /// it: it names what the process sees, not what the kernel is.
    pub fn machine(&self) -> &str {
        self.field(4)
    }

    fn field(&self, index: usize) -> &str {
        let bytes = self.0.get(index).map_or(&[][..], |field| &field[..]);
        let text = bytes.split(|&b| b == 0).next().unwrap_or_default();
        str::from_utf8(text).unwrap_or_default()
    }
}

impl fmt::Debug for Uname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Uname({} {} {})",
            self.release(),
            self.version(),
            self.machine()
        )
    }
}

/// Version of a Linux kernel, as `LINUX_VERSION_CODE` counts it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KernelVersion {
    /// The 6 of 6.1.76.
    pub major: u32,
    /// The 1 of 6.1.76.
    pub minor: u32,
    /// The 76 of 6.1.76.
    pub patch: u32,
}

impl KernelVersion {
    /// A version from its three numbers.
    pub const fn new(major: u32, minor: u32, patch: u32) -> KernelVersion {
        KernelVersion {
            major,
            minor,
            patch,
        }
    }

    /// The running kernel's.
    ///
    /// Kernels before 5.0 compare it with `kern_version` when a kprobe program
    /// is loaded, so it must be the number the kernel was built with. Debian
    /// and Ubuntu print another one in their release string and the true one
    /// elsewhere; see [`KernelVersion::from_text`].
    ///
    /// # Errors
    /// `EBADMSG` if no version can be read from uname(2).
    pub fn current() -> Result<KernelVersion> {
        let uname = Uname::get()?;
        let mut buf = [0; 256];
        let signature = read_small(Path::new("/proc/version_signature"), &mut buf).ok();
        KernelVersion::from_text(
            uname.release(),
            uname.version(),
            signature.unwrap_or_default(),
        )
        .ok_or_else(|| SysError::new("uname", Errno::EBADMSG).with_detail(uname.release()))
    }

    /// The version, from the texts a kernel gives about itself.
    ///
    /// In order: the third word of Ubuntu's `/proc/version_signature` (empty
    /// elsewhere), the number after `Debian ` in `uname -v`, the release.
    pub fn from_text(release: &str, version: &str, signature: &[u8]) -> Option<KernelVersion> {
        let ubuntu = signature
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
            .nth(2);
        ubuntu
            .and_then(|word| KernelVersion::parse(word, true))
            .or_else(|| {
                let (_, debian) = version.split_once("Debian ")?;
                KernelVersion::parse(debian.as_bytes(), true)
            })
            .or_else(|| KernelVersion::parse(release.as_bytes(), false))
    }

    /// Reads `a.b.c` and ignores what follows; `a.b` too unless all three
    /// numbers are asked for.
    fn parse(text: &[u8], three: bool) -> Option<KernelVersion> {
        let (major, rest) = decimal(text)?;
        let (minor, rest) = decimal(rest.strip_prefix(b".")?)?;
        let patch = match rest.strip_prefix(b".").and_then(decimal) {
            Some((patch, _)) => patch,
            None if three => return None,
            None => 0,
        };
        Some(KernelVersion {
            major: u32::try_from(major).ok()?,
            minor: u32::try_from(minor).ok()?,
            patch: u32::try_from(patch).ok()?,
        })
    }

    /// `LINUX_VERSION_CODE`: one byte each for minor and patch. A patch above
    /// 255 counts as 255, as every kernel released since 2021 counts it.
    pub const fn code(self) -> u32 {
        let patch = if self.patch > 255 { 255 } else { self.patch };
        (self.major << 16) | ((self.minor & 0xff) << 8) | patch
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

// --------------------------------------------------------------- kallsyms

/// One line of kallsyms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Symbol<'a> {
    /// Address; 0 for every symbol when the kernel hides them.
    pub address: u64,
    /// Type letter of nm(1): `t` and `T` are functions.
    pub kind: u8,
    /// Name, with any suffix the compiler added (`.isra.0`, `.cold`).
    pub name: &'a [u8],
    /// Module it lives in; `None` for the kernel image. BPF programs and
    /// ftrace trampolines appear under the names `bpf` and `__builtin__ftrace`.
    pub module: Option<&'a [u8]>,
}

impl Symbol<'_> {
    /// True for a function: type `t`, `T`, `w` or `W`.
    pub fn is_function(&self) -> bool {
        matches!(self.kind, b't' | b'T' | b'w' | b'W')
    }
}

/// What [`for_each_symbol`] saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SymbolScan {
    /// Symbols visited.
    pub symbols: usize,
    /// There were symbols, and every address among them was zero: the reader
    /// lacks CAP_SYSLOG or `kernel.kptr_restrict` is 2. A zero address alone
    /// says nothing, since per-CPU symbols may start at 0.
    pub addresses_hidden: bool,
}

/// Visits the symbols of a kallsyms file, until `visit` breaks. `path` is
/// `/proc/kallsyms`, or a copy. Lines that are not symbols are passed over.
///
/// # Errors
/// Those of [`for_each_line`]. Hidden addresses are not an error.
pub fn for_each_symbol(
    path: &Path,
    visit: &mut dyn FnMut(Symbol<'_>) -> ControlFlow<()>,
) -> Result<SymbolScan> {
    let mut symbols = 0;
    let mut bits = 0;
    for_each_line(path, &mut |line| match parse_symbol(line) {
        Some(symbol) => {
            symbols += 1;
            bits |= symbol.address;
            visit(symbol)
        }
        None => ControlFlow::Continue(()),
    })?;
    Ok(SymbolScan {
        symbols,
        addresses_hidden: symbols > 0 && bits == 0,
    })
}

/// Parses one line of kallsyms: `ffffffff81000000 T _text` with
/// `<tab>[module]` after the name of a module's symbol.
pub fn parse_symbol(line: &[u8]) -> Option<Symbol<'_>> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if !(1..=16).contains(&digits) {
        return None;
    }
    let (number, rest) = line.split_at_checked(digits)?;
    let address = number.iter().fold(0, |sum, &b| {
        // Letters are 9 below the value of their low nibble.
        let digit = (b & 15) + if b > b'9' { 9 } else { 0 };
        (sum << 4) | u64::from(digit)
    });
    let [b' ', kind, b' ', rest @ ..] = rest else {
        return None;
    };
    let (name, module) = split_module(rest)?;
    Some(Symbol {
        address,
        kind: *kind,
        name,
        module,
    })
}

/// Splits `name[<blank>[module]]`, the form kallsyms and ftrace share.
pub(crate) fn split_module(text: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let blank = text.iter().position(|&b| b == b'\t' || b == b' ');
    let (name, rest) = text.split_at_checked(blank.unwrap_or(text.len()))?;
    if name.is_empty() {
        return None;
    }
    let module = rest
        .trim_ascii()
        .strip_prefix(b"[")
        .and_then(|rest| rest.split(|&b| b == b']').next());
    Some((name, module))
}

// ----------------------------------------------------------------- mounts

/// One line of a mount table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mount<'a> {
    /// Where it is mounted, with the kernel's octal escapes; see
    /// [`Mount::target`].
    pub escaped_target: &'a [u8],
    /// Type, such as `tracefs` or `cgroup2`.
    pub fstype: &'a [u8],
    /// Options, separated by commas.
    pub options: &'a [u8],
}

impl Mount<'_> {
    /// Where it is mounted.
    pub fn target(&self) -> PathBuf {
        std::ffi::OsString::from_vec(unescape(self.escaped_target)).into()
    }
}

/// Parses one line of `/proc/self/mounts`.
pub fn parse_mount(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|&b| b == b' ').skip(1);
    Some(Mount {
        escaped_target: fields.next()?,
        fstype: fields.next()?,
        options: fields.next()?,
    })
}

/// Undoes `\ooo`, which stands for blanks and backslashes in a mount table.
fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    while let [byte, rest @ ..] = text {
        text = rest;
        match text {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..] if *byte == b'\\' => {
                out.push(((a & 3) << 6) | ((b & 7) << 3) | (c & 7));
                text = rest;
            }
            _ => out.push(*byte),
        }
    }
    out
}

/// Where file systems of type `fstype` are mounted, in the order of
/// `/proc/self/mounts`; empty if nowhere.
///
/// # Errors
/// Those of [`for_each_line`].
pub fn mounts_of(fstype: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for_each_line(Path::new("/proc/self/mounts"), &mut |line| {
        if let Some(mount) = parse_mount(line)
            && mount.fstype == fstype.as_bytes()
        {
            found.push(mount.target());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Mounts a file system that has no device (`bpf`, `tracefs`, `securityfs`)
/// on the existing directory `path`, without set-user-id, devices and
/// execution. It stays until unmounted.
///
/// # Errors
/// Those of mount(2): `EPERM` without CAP_SYS_ADMIN, `ENODEV` for a type this
/// kernel does not have, `EBUSY` if it is already mounted there.
pub fn mount_fs(fstype: &str, path: &Path) -> Result<()> {
    let target = c_path("mount", path)?;
    let name = c_path("mount", Path::new(fstype))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let (name, to) = (name.as_ptr(), target.as_ptr());
    retry_eintr("mount", || {
        // SAFETY: `name` and `to` are NUL-terminated strings that outlive the
        // call; the data argument may be null.
        i64::from(unsafe { libc::mount(name, to, name, flags, std::ptr::null()) })
    })
    .map_err(|e| e.with_path(path).with_detail(fstype))?;
    Ok(())
}

// -------------------------------------------------------------- processes

/// The proc file system to look processes up in: `$HOST_PROC` if it is set
/// and not empty, `/proc` otherwise.
pub fn host_proc() -> PathBuf {
    match std::env::var_os("HOST_PROC") {
        Some(path) if !path.is_empty() => path.into(),
        _ => "/proc".into(),
    }
}

/// This process's id as the proc file system mounted at `proc` counts it: in
/// a container with the host's proc at hand, the id on the host.
///
/// # Errors
/// Those of readlink(2); `ENOENT` also when this process is not visible in
/// that proc file system; `EBADMSG` if the link is not a number.
pub fn self_pid(proc: &Path) -> Result<u32> {
    let path = proc.join("self");
    let link = std::fs::read_link(&path).map_err(|e| file_error("readlink", &e, &path))?;
    whole_decimal(link.as_os_str().as_bytes())
        .and_then(|pid| u32::try_from(pid).ok())
        .ok_or_else(|| malformed(&path))
}

/// When process `pid` started, in clock ticks (usually 10 ms) after boot.
/// With the pid it identifies a process across reuse of the number.
///
/// # Errors
/// Those of [`read_small`]: `ENOENT` when there is no such process; `EBADMSG`
/// if the text has another form.
pub fn start_time(proc: &Path, pid: u32) -> Result<u64> {
    let path = proc.join(pid.to_string()).join("stat");
    parse_start_time(read_small(&path, &mut [0; 2048])?).ok_or_else(|| malformed(&path))
}

/// Field 22 of `/proc/PID/stat`. The second field is the command in
/// parentheses and may itself hold blanks and parentheses, so counting starts
/// behind the last one.
pub fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let close = stat.iter().rposition(|&b| b == b')')?;
    let field = stat
        .get(close + 1..)?
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty())
        .nth(22 - 3)?;
    whole_decimal(field)
}

/// Inode number of the pid namespace of process `pid`: two processes with the
/// same number count pids alike.
///
/// # Errors
/// Those of stat(2): `ENOENT` when there is no such process, `EACCES` when
/// this process may not trace it.
pub fn pid_namespace(proc: &Path, pid: u32) -> Result<u64> {
    let path = proc.join(pid.to_string()).join("ns/pid");
    let meta = std::fs::metadata(&path).map_err(|e| file_error("stat", &e, &path))?;
    Ok(meta.ino())
}

bitflags! {
    /// Capabilities of a thread; bits not named here are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Capabilities: u64 {
        /// CAP_NET_ADMIN: attach to interfaces, change queueing disciplines.
        const NET_ADMIN = 1 << 12;
        /// CAP_SYS_ADMIN: everything BPF before Linux 5.8; still needed for
        /// iterating over ids of foreign objects.
        const SYS_ADMIN = 1 << 21;
        /// CAP_SYS_RESOURCE: raise limits such as RLIMIT_MEMLOCK.
        const SYS_RESOURCE = 1 << 24;
        /// CAP_SYSLOG: see kernel addresses with `kptr_restrict` 1.
        const SYSLOG = 1 << 34;
        /// CAP_PERFMON: tracing programs and perf events. Linux 5.8.
        const PERFMON = 1 << 38;
        /// CAP_BPF: maps and programs. Linux 5.8.
        const BPF = 1 << 39;
        // Others exist.
        const _ = !0;
    }
}

/// The calling thread's effective capabilities.
///
/// # Errors
/// None that a working system gives; whatever capget(2) returns otherwise.
pub fn effective_capabilities() -> Result<Capabilities> {
    // _LINUX_CAPABILITY_VERSION_3 and pid 0, the calling thread.
    let header = [0x2008_0522_u32, 0];
    // Two times effective, permitted, inheritable: low and high halves.
    let mut data = [0_u32; 6];
    let (header, data_ptr) = (header.as_ptr(), data.as_mut_ptr());
    retry_eintr("capget", || {
        // SAFETY: version 3 reads an 8-byte header and writes two structs of
        // three u32 each, which is the size of `data`; both outlive the call.
        unsafe { libc::syscall(libc::SYS_capget, header, data_ptr) }
    })?;
    let bits = u64::from(data[0]) | u64::from(data[3]) << 32;
    Ok(Capabilities::from_bits_retain(bits))
}

/// Soft and hard value of a resource limit, in bytes; `u64::MAX` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rlimit {
    /// What the kernel enforces.
    pub soft: u64,
    /// What the process may raise `soft` to.
    pub hard: u64,
}

impl Rlimit {
    /// No limit.
    pub const UNLIMITED: Rlimit = Rlimit {
        soft: u64::MAX,
        hard: u64::MAX,
    };
}

/// RLIMIT_MEMLOCK of this process. Kernels before 5.11 charge maps and
/// programs to it; later ones charge the memory cgroup instead.
///
/// # Errors
/// None that a working system gives; whatever prlimit(2) returns otherwise.
pub fn memlock_limit() -> Result<Rlimit> {
    prlimit("prlimit(RLIMIT_MEMLOCK)", libc::RLIMIT_MEMLOCK as i32, None)
}

/// Sets RLIMIT_MEMLOCK of this process.
///
/// # Errors
/// `EPERM` when the hard value is raised without CAP_SYS_RESOURCE, `EINVAL`
/// when the soft value is above the hard one.
pub fn set_memlock_limit(limit: Rlimit) -> Result<()> {
    prlimit(
        "prlimit(RLIMIT_MEMLOCK)",
        libc::RLIMIT_MEMLOCK as i32,
        Some(limit),
    )
    .map(drop)
}

/// RLIMIT_NOFILE of this process: descriptors have numbers below the soft
/// value.
///
/// # Errors
/// As [`memlock_limit`].
pub fn descriptor_limit() -> Result<Rlimit> {
    prlimit("prlimit(RLIMIT_NOFILE)", libc::RLIMIT_NOFILE as i32, None)
}

/// Sets RLIMIT_NOFILE of this process. Descriptors above it stay open.
///
/// # Errors
/// As [`set_memlock_limit`].
pub fn set_descriptor_limit(limit: Rlimit) -> Result<()> {
    prlimit(
        "prlimit(RLIMIT_NOFILE)",
        libc::RLIMIT_NOFILE as i32,
        Some(limit),
    )
    .map(drop)
}

/// Sets the limit if there is a new one and returns the old one.
fn prlimit(op: &'static str, resource: i32, new: Option<Rlimit>) -> Result<Rlimit> {
    let new = new.map(|limit| libc::rlimit64 {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    });
    let new_ptr = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let old_ptr = std::ptr::from_mut(&mut old);
    retry_eintr(op, || {
        // SAFETY: the kernel reads `new` unless it is null and writes `old`;
        // both are rlimit64 and live until the call returns.
        i64::from(unsafe { libc::prlimit64(0, resource as _, new_ptr, old_ptr) })
    })?;
    Ok(Rlimit {
        soft: old.rlim_cur,
        hard: old.rlim_max,
    })
}

/// CPUs that the calling thread may run on; 1 if the kernel does not say.
pub fn usable_cpus() -> usize {
    // Room for the CPUs of any kernel there is (`CONFIG_NR_CPUS` ends at 8192).
    let mut mask = [0_u64; 128];
    let size = size_of_val(&mask);
    // SAFETY: the kernel writes at most `size` bytes, those of `mask`.
    let bytes = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size, &raw mut mask) };
    if bytes <= 0 {
        return 1;
    }
    mask.iter()
        .map(|word| word.count_ones() as usize)
        .sum::<usize>()
        .max(1)
}

/// Size of a memory page in bytes.
pub fn page_size() -> usize {
    // SAFETY: sysconf takes an integer and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

// --------------------------------------------------------------- settings

/// Value of `kernel.unprivileged_bpf_disabled`: 0 allows, 1 forbids for good,
/// 2 forbids until changed (Linux 5.13). Linux 4.4.
///
/// # Errors
/// `ENOENT` on a kernel without the setting.
pub fn unprivileged_bpf_disabled() -> Result<i64> {
    read_setting(Path::new("/proc/sys/kernel/unprivileged_bpf_disabled"))
}

/// Value of `kernel.perf_event_paranoid`: -1 allows everything; above 1,
/// tracing needs CAP_PERFMON.
///
/// # Errors
/// `ENOENT` on a kernel without perf events.
pub fn perf_event_paranoid() -> Result<i64> {
    read_setting(Path::new("/proc/sys/kernel/perf_event_paranoid"))
}

/// Value of `kernel.kptr_restrict`: 0 shows addresses to everyone while
/// `perf_event_paranoid` is at most 1 and else to readers with CAP_SYSLOG,
/// 1 only to the latter, 2 to nobody.
///
/// # Errors
/// Those of [`read_small`].
pub fn kptr_restrict() -> Result<i64> {
    read_setting(Path::new("/proc/sys/kernel/kptr_restrict"))
}

/// Reads a file that holds one signed decimal number, such as a file below
/// `/proc/sys`.
///
/// # Errors
/// Those of [`read_small`]; `EBADMSG` if it holds something else.
pub fn read_setting(path: &Path) -> Result<i64> {
    let mut buf = [0; 64];
    let text = read_small(path, &mut buf)?.trim_ascii();
    let (digits, negative) = match text.strip_prefix(b"-") {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    whole_decimal(digits)
        .and_then(|value| i64::try_from(value).ok())
        .map(|value| if negative { -value } else { value })
        .ok_or_else(|| malformed(path))
}

/// What the lockdown LSM forbids, even to root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lockdown {
    /// Nothing.
    None,
    /// Changing the running kernel: `bpf_probe_write_user` among others.
    Integrity,
    /// Reading its memory too: kprobes, `bpf_probe_read_kernel`, tracefs.
    Confidentiality,
}

/// The lockdown mode. Linux 5.4.
///
/// # Errors
/// `ENOENT` on older kernels, without the LSM, and when securityfs is not
/// mounted on `/sys/kernel/security`: then the mode is not known.
pub fn lockdown() -> Result<Lockdown> {
    let path = Path::new("/sys/kernel/security/lockdown");
    parse_lockdown(read_small(path, &mut [0; 128])?).ok_or_else(|| malformed(path))
}

/// Parses `none [integrity] confidentiality`; the mode in brackets is the
/// one in force.
pub fn parse_lockdown(text: &[u8]) -> Option<Lockdown> {
    let open = text.iter().position(|&b| b == b'[')?;
    let word = text.get(open + 1..)?.split(|&b| b == b']').next()?;
    match word {
        b"none" => Some(Lockdown::None),
        b"integrity" => Some(Lockdown::Integrity),
        b"confidentiality" => Some(Lockdown::Confidentiality),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TempDir, raise_memlock_limit};

    fn lines(text: &[u8], chunk: usize) -> Vec<Vec<u8>> {
        struct Chunks<'a>(&'a [u8], usize);
        impl Read for Chunks<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let n = self.1.min(buf.len());
                (&mut self.0).take(n as u64).read(buf)
            }
        }
        let mut out = Vec::new();
        for_each_line_of(&mut Chunks(text, chunk), &mut |line| {
            out.push(line.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
        out
    }

    #[test]
    fn lines_whatever_the_chunks() {
        let mut text = b"one\n\nthree with words\n".to_vec();
        text.extend(vec![b'x'; 20_000]);
        text.extend(b"\nlast without newline");
        let expected: Vec<_> = text.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
        for chunk in [1, 2, 7, 4096, 1 << 20] {
            assert_eq!(lines(&text, chunk), expected, "chunks of {chunk}");
        }
        assert_eq!(lines(b"", 1), Vec::<Vec<u8>>::new());
        assert_eq!(lines(b"\n", 1), vec![b"".to_vec()]);
    }

    #[test]
    fn endless_line_is_refused() {
        let err = for_each_line_of(&mut io::repeat(b'x'), &mut |_| ControlFlow::Continue(()))
            .unwrap_err();
        assert_eq!(err.raw_os_error(), Some(Errno::EFBIG.raw()));
    }

    #[test]
    fn visitor_can_stop() {
        let mut seen = 0;
        for_each_line_of(&mut &b"a\nb\nc\n"[..], &mut |_| {
            seen += 1;
            if seen == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
        assert_eq!(seen, 2);
    }

    #[test]
    fn small_file_must_fit() {
        let path = Path::new("/proc/sys/kernel/ostype");
        assert_eq!(read_small(path, &mut [0; 7]).unwrap(), b"Linux\n");
        let err = read_small(path, &mut [0; 6]).unwrap_err();
        assert!(err.is(Errno::EFBIG), "{err}");
        assert_eq!(err.path(), Some(path));
        let err = read_small(Path::new("/nowhere"), &mut [0; 6]).unwrap_err();
        assert!(err.is(Errno::ENOENT) && err.op() == "open", "{err}");
    }

    #[test]
    fn cpu_lists() {
        let ok = |text: &[u8], cpus: &[u32]| {
            assert_eq!(parse_cpu_list(text).as_deref(), Some(cpus), "{text:?}");
            let count = Some(cpus.len()).filter(|&n| n != 0);
            assert_eq!(count_cpus(text), count, "{text:?}");
        };
        ok(b"0\n", &[0]);
        ok(b"0-3,8,10-11\n", &[0, 1, 2, 3, 8, 10, 11]);
        ok(b"2,65535", &[2, 65535]);
        ok(b"\n", &[]);
        ok(b"", &[]);
        for bad in [
            "a",
            "0-",
            "-1",
            "0,",
            ",0",
            "3-1",
            "0-1-2",
            "0 1",
            "1,0",
            "0-3,3",
            "0-65536",
            "0-4294967295",
            "99999999999999999999999",
            "0x3",
            "1\n2",
        ] {
            assert_eq!(parse_cpu_list(bad.as_bytes()), None, "{bad:?}");
            assert_eq!(count_cpus(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn cpus_of_this_machine() {
        let online = online_cpus().unwrap();
        assert!(!online.is_empty());
        let possible = possible_cpus().unwrap();
        assert!(online.len() <= possible);
        assert_eq!(possible_cpus(), Ok(possible));
    }

    #[test]
    fn kernel_versions_by_distribution() {
        let v = |release, version, signature: &str| {
            KernelVersion::from_text(release, version, signature.as_bytes()).map(|v| v.to_string())
        };
        assert_eq!(v("6.18.44-fc", "#1 SMP", "").as_deref(), Some("6.18.44"));
        assert_eq!(v("6.18-rc1", "", "").as_deref(), Some("6.18.0"));
        assert_eq!(v("6.18", "", "").as_deref(), Some("6.18.0"));
        assert_eq!(
            v(
                "5.10.0-28-amd64",
                "#1 SMP Debian 5.10.209-2 (2024-01-31)",
                ""
            )
            .as_deref(),
            Some("5.10.209")
        );
        // A Debian kernel whose build line has no third number.
        assert_eq!(
            v("6.5.0-1-amd64", "#1 SMP Debian 6.5-1", "").as_deref(),
            Some("6.5.0")
        );
        assert_eq!(
            v(
                "5.15.0-91-generic",
                "#101-Ubuntu SMP",
                "Ubuntu 5.15.0-91.101-generic 5.15.131\n"
            )
            .as_deref(),
            Some("5.15.131")
        );
        assert_eq!(v("4.4.0", "", "Ubuntu x y\n").as_deref(), Some("4.4.0"));
        for bad in ["", "6", "six.one", "6.", "99999999999.1.1"] {
            assert_eq!(v(bad, "", ""), None, "{bad:?}");
        }
    }

    #[test]
    fn version_codes() {
        assert_eq!(KernelVersion::new(4, 14, 336).code(), 0x04_0e_ff);
        assert_eq!(KernelVersion::new(6, 1, 76).code(), 0x06_01_4c);
        assert!(KernelVersion::new(5, 9, 300) < KernelVersion::new(5, 10, 0));
        let current = KernelVersion::current().unwrap();
        assert!(current > KernelVersion::new(4, 0, 0), "{current}");
        assert!(!Uname::get().unwrap().machine().is_empty());
    }

    #[test]
    fn symbols() {
        let s = parse_symbol(b"ffffffff81000000 T _text").unwrap();
        assert_eq!((s.address, s.kind), (0xffff_ffff_8100_0000, b'T'));
        assert_eq!((s.name, s.module), (&b"_text"[..], None));
        assert!(s.is_function());
        let s = parse_symbol(b"ffffffffc0a1B2c3 d x.isra.0\t[veth]").unwrap();
        assert_eq!(s.address, 0xffff_ffff_c0a1_b2c3);
        assert_eq!(s.name, b"x.isra.0");
        assert_eq!(s.module, Some(&b"veth"[..]));
        assert!(!s.is_function());
        assert_eq!(parse_symbol(b"c0100000 t x").unwrap().address, 0xc010_0000);
        for bad in [
            &b""[..],
            b"g T x",
            b"0 T ",
            b"0 T",
            b"0  x",
            b"00000000000000000 T x",
            b" T x",
        ] {
            assert_eq!(parse_symbol(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn hidden_addresses_are_told() {
        let dir = TempDir::new();
        let path = dir.path().join("kallsyms");
        let hidden = b"0000000000000000 T a\n0000000000000000 t b\t[m]\n";
        std::fs::write(&path, hidden).unwrap();
        let mut names = Vec::new();
        let scan = for_each_symbol(&path, &mut |s| {
            names.push(s.name.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((scan.symbols, scan.addresses_hidden), (2, true));
        assert_eq!(names, [b"a", b"b"]);
        std::fs::write(&path, b"0000000000000000 A percpu\n1000 T b\n").unwrap();
        let scan = for_each_symbol(&path, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(!scan.addresses_hidden);
        std::fs::write(&path, b"").unwrap();
        let scan = for_each_symbol(&path, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(scan, SymbolScan::default());
    }

    #[test]
    fn symbols_of_this_kernel() {
        let mut found = false;
        let scan = for_each_symbol(Path::new("/proc/kallsyms"), &mut |s| {
            found |= s.name == b"schedule" && s.is_function();
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(found && scan.symbols > 1000, "{scan:?}");
    }

    #[test]
    fn mount_lines() {
        let line = br"tracefs /sys/kernel/a\040b\134c tracefs rw,relatime 0 0";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.fstype, b"tracefs");
        assert_eq!(mount.options, b"rw,relatime");
        assert_eq!(mount.target(), Path::new(r"/sys/kernel/a b\c"));
        assert_eq!(parse_mount(b"one two"), None);
        assert_eq!(unescape(br"\04"), br"\04");
        assert_eq!(unescape(br"\477\\"), br"\477\\");
        assert_eq!(unescape(br"\377"), [0xff]);
        assert!(!mounts_of("proc").unwrap().is_empty());
        assert!(mounts_of("no such type").unwrap().is_empty());
    }

    #[test]
    fn mounting_reports_its_cause() {
        let err = mount_fs("nosuchfs", Path::new("/")).unwrap_err();
        assert!(err.is(Errno::ENODEV) || err.is(Errno::EPERM), "{err}");
        assert_eq!(err.detail(), Some("nosuchfs"));
    }

    #[test]
    fn start_time_survives_odd_commands() {
        let tail = " S 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 1 0 4242 99 100";
        for comm in ["(cat)", "(a) R 1 (b)", "(x y) z)", "()"] {
            let stat = format!("7 {comm}{tail}\n");
            assert_eq!(parse_start_time(stat.as_bytes()), Some(4242), "{comm}");
        }
        assert_eq!(parse_start_time(b"7 (cat) S 1"), None);
        assert_eq!(parse_start_time(b""), None);
        assert_eq!(parse_start_time(b")"), None);
    }

    #[test]
    fn identity_of_this_process() {
        let proc = Path::new("/proc");
        let pid = self_pid(proc).unwrap();
        assert_eq!(pid, std::process::id());
        let started = start_time(proc, pid).unwrap();
        assert_eq!(start_time(proc, pid).unwrap(), started);
        assert_ne!(pid_namespace(proc, pid).unwrap(), 0);
        let err = start_time(proc, u32::MAX).unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
        assert!(self_pid(Path::new("/")).is_err());
    }

    #[test]
    fn capabilities_match_proc() {
        let mut from_proc = None;
        for_each_line(Path::new("/proc/thread-self/status"), &mut |line| {
            if let Some(hex) = line.strip_prefix(b"CapEff:") {
                let text = str::from_utf8(hex.trim_ascii()).unwrap();
                from_proc = Some(u64::from_str_radix(text, 16).unwrap());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        let caps = effective_capabilities().unwrap();
        assert_eq!(Some(caps.bits()), from_proc);
    }

    #[test]
    fn memlock_round_trip() {
        raise_memlock_limit();
        let limit = memlock_limit().unwrap();
        set_memlock_limit(limit).unwrap();
        assert_eq!(memlock_limit().unwrap(), limit);
        let err = set_memlock_limit(Rlimit { soft: 1, hard: 0 }).unwrap_err();
        assert!(err.is(Errno::EINVAL), "{err}");
    }

    #[test]
    fn settings_and_sizes() {
        assert!((-1..=4).contains(&perf_event_paranoid().unwrap()));
        assert!((0..=2).contains(&kptr_restrict().unwrap()));
        assert!((0..=2).contains(&unprivileged_bpf_disabled().unwrap()));
        assert!(page_size().is_power_of_two());
        let dir = TempDir::new();
        let path = dir.path().join("setting");
        std::fs::write(&path, b"-1\n").unwrap();
        assert_eq!(read_setting(&path), Ok(-1));
        for bad in [&b""[..], b"-", b"x", b"1 2", b"9223372036854775808"] {
            std::fs::write(&path, bad).unwrap();
            assert!(read_setting(&path).is_err_and(|e| e.is(Errno::EBADMSG)));
        }
    }

    #[test]
    fn lockdown_modes() {
        let parse = |text: &str| parse_lockdown(text.as_bytes());
        assert_eq!(
            parse("none [integrity] confidentiality\n"),
            Some(Lockdown::Integrity)
        );
        assert_eq!(
            parse("[none] integrity confidentiality"),
            Some(Lockdown::None)
        );
        assert_eq!(
            parse("none integrity [confidentiality]"),
            Some(Lockdown::Confidentiality)
        );
        for bad in ["", "none", "[", "[what] none"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
