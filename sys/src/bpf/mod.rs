//! bpf(2): one safe function per command.
//!
//! Nothing is probed, retried with less or defaulted here. Every descriptor
//! returned is owned and above 2, every buffer is checked against what the
//! kernel will read or write, and no address outlives the call it is passed
//! to.
//!
//! Creating and loading need `CAP_BPF` (5.8), with `CAP_PERFMON` or
//! `CAP_NET_ADMIN` for most kinds of program, or else `CAP_SYS_ADMIN`. Without
//! the privilege they fail with `EPERM`.

mod btf;
mod info;
mod link;
mod map;
mod object;
mod prog;

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

pub use btf::{BtfLoad, btf_load};
pub use info::{
    KprobeDetail, LinkDetail, LinkInfo, PerfEvent, btf_data, btf_info, btf_name, link_info,
    link_name, map_info, prog_from_fd, prog_func_info, prog_info, prog_insns, prog_line_info,
    prog_map_ids,
};
pub use link::{
    IterTarget, KprobeSymbols, LinkCreate, LinkOptions, iter_create, link_create, link_detach,
    link_update, raw_tracepoint_open,
};
pub use map::{BatchCursor, BatchError, MapCreate, MapFd, map_create};
pub use object::{
    ObjectKind, TaskFd, enable_stats, fd_by_id, next_id, obj_get, obj_pin, task_fd_query,
    token_create,
};
pub use prog::{
    Log, ProgAttach, ProgLoad, ProgQuery, QueryBuffers, Records, Relative, Target, TestRun,
    TestRunResult, prog_attach, prog_bind_map, prog_detach, prog_load, prog_query, prog_test_run,
};

use crate::Result;
use crate::abi::attr::{Attr, used_len};
use crate::abi::bpf::{Command, OBJ_NAME_LEN};
use crate::errno::{Errno, SysError, retry_eintr};
use crate::fd;
pub use crate::proc::possible_cpus;

/// Attempts at a command that a signal keeps interrupting. libbpf's number.
const ATTEMPTS: u32 = 5;

/// Name of `command` in errors.
fn op(command: Command) -> &'static str {
    command.name().unwrap_or("bpf")
}

/// The system call, once.
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_once(command: Command, attr: &mut [u8], min_len: usize) -> i64 {
    let len = used_len(attr, min_len);
    // SAFETY: `attr` is writable for its whole length, of which `len` is at
    // most all; the caller vouches for the addresses inside.
    unsafe { libc::syscall(libc::SYS_bpf, command.0, attr.as_mut_ptr(), len) }
}

/// bpf(2), again while interrupted. The only way into the kernel from here.
///
/// # Safety
/// `attr` must be the member that `command` reads. Every address in it must be
/// valid for what `command` reads or writes there, given the lengths in `attr`
/// and the sizes the kernel knows for the descriptors in it.
unsafe fn bpf<A: Attr>(command: Command, attr: &mut A) -> Result<i64> {
    // SAFETY: passed on from the caller.
    unsafe { bpf_bytes(command, attr.bytes_mut(), A::MIN_LEN) }
}

/// [`bpf`] without the type, so that it exists once.
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_bytes(command: Command, attr: &mut [u8], min_len: usize) -> Result<i64> {
    retry_eintr(op(command), || {
        // SAFETY: passed on from the caller.
        unsafe { bpf_once(command, attr, min_len) }
    })
}

/// Makes up to `attempts` calls for a command that gives up when a signal is
/// pending: a program load with `EAGAIN`, a test run with `EINTR`.
fn again(command: Command, attempts: u32, call: &mut dyn FnMut() -> i64) -> Result<i64> {
    let mut left = attempts;
    loop {
        left -= 1;
        let answer = call();
        if answer >= 0 {
            return Ok(answer);
        }
        let errno = Errno::last();
        if left == 0 || !matches!(errno, Errno::EAGAIN | Errno::EINTR) {
            return Err(SysError::new(op(command), errno));
        }
    }
}

/// [`bpf`] for commands that return a descriptor.
///
/// # Safety
/// As for [`bpf`]; and `command` must return a new descriptor.
unsafe fn bpf_fd<A: Attr>(command: Command, attr: &mut A) -> Result<OwnedFd> {
    // SAFETY: passed on from the caller.
    let raw = unsafe { bpf(command, attr) }?;
    fd::own(op(command), raw)
}

/// The number of `fd`, which every attribute field takes unsigned.
fn num(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// The number of `fd`, 0 standing for none. Descriptors of this crate are
/// above 2; one from elsewhere that is 0 means what the kernel makes of it.
fn num_or_none(fd: Option<BorrowedFd<'_>>) -> u32 {
    fd.map_or(0, num)
}

/// A length as the kernel counts it.
fn len32(command: Command, len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| SysError::new(op(command), Errno::E2BIG))
}

#[cold]
fn invalid(command: Command, detail: &'static str) -> SysError {
    SysError::new(op(command), Errno::EINVAL).with_detail(detail)
}

/// `name` as the kernel stores names: cut to 15 bytes, and `_` in place of
/// whatever kernels refuse (anything but ASCII letters, digits, `_` and `.`).
///
/// Kernels before 5.2 refuse `.` too.
pub fn obj_name(name: &str) -> [u8; OBJ_NAME_LEN] {
    let mut out = [0; OBJ_NAME_LEN];
    for (to, &byte) in out[..OBJ_NAME_LEN - 1].iter_mut().zip(name.as_bytes()) {
        let fits = byte.is_ascii_alphanumeric() || byte == b'.';
        *to = if fits { byte } else { b'_' };
    }
    out
}

#[cfg(test)]
mod tests;
