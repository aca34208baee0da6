//! Reading files of unknown size, and the numbers and lines in them.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::Result;
use crate::errno::{Errno, SysError};

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
    let file = File::open(path).map_err(|e| file_error("open", &e, path))?;
    read_opened(file, path, buf, complete)
}

/// [`read_until`] of a file that is open already.
pub(super) fn read_opened<'b>(
    mut file: File,
    path: &Path,
    buf: &'b mut [u8],
    complete: &dyn Fn(&[u8]) -> bool,
) -> Result<&'b [u8]> {
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

/// The magic number of the file system that `file` is on.
pub(crate) fn file_system(file: &File) -> Result<i64> {
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open and `stat` is writable memory of the size
    // fstatfs fills.
    let ret = unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) };
    if ret != 0 {
        return Err(SysError::last("fstatfs"));
    }
    // SAFETY: fstatfs succeeded, so it filled the structure.
    let stat = unsafe { stat.assume_init() };
    #[allow(
        clippy::unnecessary_cast,
        reason = "the type differs between C libraries"
    )]
    Ok(stat.f_type as i64)
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

pub(super) fn file_error(op: &'static str, err: &io::Error, path: &Path) -> SysError {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
