//! Size of a terminal.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Columns of the terminal behind `fd`; `None` if it is no terminal, or one
/// that does not know its size (a serial line).
pub fn columns(fd: BorrowedFd<'_>) -> Option<u16> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open, and the request writes one winsize.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (ret == 0 && size.ws_col != 0).then_some(size.ws_col)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn files_have_no_columns() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(columns(null.as_fd()), None);
    }
}
