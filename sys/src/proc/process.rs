//! Processes: their ids, start times and pid namespaces.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::read::file_error;
use super::{malformed, read_small, whole_decimal};
use crate::Result;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::Errno;

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
}
