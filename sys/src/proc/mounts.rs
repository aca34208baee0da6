//! The mount table, and mounting file systems without a device.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::{c_path, for_each_line};
use crate::Result;
use crate::errno::retry_eintr;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::Errno;

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
}
