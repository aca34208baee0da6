//! Settings of the kernel that decide what a loader may do.

use std::path::Path;

use super::{malformed, read_small, whole_decimal};
use crate::Result;

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
    use crate::errno::Errno;
    use crate::proc::page_size;
    use crate::testing::TempDir;

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
