//! The configuration the running kernel was built with.

use std::ops::ControlFlow;
use std::path::PathBuf;

use ebpf_manager_sys::SysError;
use ebpf_manager_sys::proc::{self, Uname};

/// The kernel's own copy. Needs `CONFIG_IKCONFIG_PROC`.
const OWN: &str = "/proc/config.gz";

/// Calls `visit` for each line of the running kernel's configuration until it
/// breaks: of the kernel's own copy, or of the file that distributions install
/// beside the kernel.
///
/// # Errors
/// Those of reading the file in `/boot`, if no other one can be read.
pub(crate) fn for_each_line(
    visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), SysError> {
    #[cfg(feature = "kconfig-gz")]
    if let Ok(packed) = std::fs::read(OWN)
        && let Some(text) = gunzip(&packed)
    {
        let _ = text.split(|b| *b == b'\n').try_for_each(visit);
        return Ok(());
    }
    let uname = Uname::get()?;
    let release = uname.release();
    let boot = PathBuf::from(format!("/boot/config-{release}"));
    let first = match proc::for_each_line(&boot, visit) {
        Ok(()) => return Ok(()),
        Err(err) => err,
    };
    let modules = PathBuf::from(format!("/lib/modules/{release}/config"));
    if proc::for_each_line(&modules, visit).is_ok() {
        return Ok(());
    }
    if cfg!(not(feature = "kconfig-gz")) && std::fs::exists(OWN).unwrap_or(false) {
        let detail = "/proc/config.gz is there, but this build lacks the feature kconfig-gz";
        return Err(first.with_detail(detail));
    }
    Err(first)
}

/// Largest configuration worth unpacking, in bytes; real ones have 300 KB.
#[cfg(feature = "kconfig-gz")]
const MAX_TEXT: usize = 16 << 20;

/// Unpacks a gzip file of one member. The checksum at the end is left alone:
/// the kernel's memory is no lossy medium.
#[cfg(feature = "kconfig-gz")]
fn gunzip(packed: &[u8]) -> Option<Vec<u8>> {
    let (header, mut rest) = packed.split_first_chunk::<10>()?;
    let [0x1f, 0x8b, 8, flags, ..] = *header else {
        return None;
    };
    if flags & 4 != 0 {
        let (len, after) = rest.split_first_chunk::<2>()?;
        rest = after.get(usize::from(u16::from_le_bytes(*len))..)?;
    }
    // File name, comment.
    for flag in [8, 16] {
        if flags & flag != 0 {
            let end = rest.iter().position(|b| *b == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    if flags & 2 != 0 {
        rest = rest.get(2..)?;
    }
    miniz_oxide::inflate::decompress_to_vec_with_limit(rest, MAX_TEXT).ok()
}

#[cfg(all(test, feature = "kconfig-gz"))]
mod tests {
    use super::*;

    #[test]
    fn gzip_headers_of_every_form() {
        // "CONFIG_A=y\n" in one stored block.
        let text = b"CONFIG_A=y\n";
        let mut body = vec![1, 11, 0, !11, 0xff];
        body.extend_from_slice(text);
        let packed = |flags: u8, extra: &[u8]| {
            let mut bytes = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 2, 3];
            bytes.extend_from_slice(extra);
            bytes.extend_from_slice(&body);
            bytes.extend_from_slice(&[0; 8]);
            bytes
        };
        assert_eq!(gunzip(&packed(0, b"")).unwrap(), text);
        assert_eq!(gunzip(&packed(8, b"config\0")).unwrap(), text);
        let all = b"\x03\0abcname\0comment\0cc";
        assert_eq!(gunzip(&packed(4 | 8 | 16 | 2, all)).unwrap(), text);
        assert_eq!(gunzip(&packed(0, b"")[..12]), None);
        assert_eq!(gunzip(b"\x1f\x8b\x07"), None);
        assert_eq!(gunzip(&packed(8, b"")[..12]), None);
    }
}
