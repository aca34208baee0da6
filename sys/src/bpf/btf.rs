//! Loading BTF.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::{Log, bpf_fd, len32, num_or_none};
use crate::Result;
use crate::abi::attr::{self, Ptr};
use crate::abi::bpf::Command;

/// `BPF_F_TOKEN_FD`.
const F_TOKEN_FD: u32 = 1 << 16;

/// BTF to load.
#[derive(Clone, Copy, Debug, Default)]
pub struct BtfLoad<'a> {
    /// The whole blob, header included.
    pub btf: &'a [u8],
    /// Token that grants the right to load. Linux 6.9.
    pub token: Option<BorrowedFd<'a>>,
}

/// `BPF_BTF_LOAD`. Linux 4.18.
///
/// # Errors
/// `ENOSPC` if the log did not fit, even where the BTF is good.
pub fn btf_load(load: &BtfLoad<'_>, mut log: Option<&mut Log<'_>>) -> Result<OwnedFd> {
    let mut attr = attr::BtfLoad {
        btf: Ptr::of(load.btf),
        btf_size: len32(Command::BTF_LOAD, load.btf.len())?,
        btf_flags: if load.token.is_some() { F_TOKEN_FD } else { 0 },
        btf_token_fd: num_or_none(load.token) as i32,
        ..Default::default()
    };
    if let Some(log) = log.as_deref_mut() {
        (attr.btf_log_level, attr.btf_log_size, attr.btf_log_buf) = log.start();
    }
    // SAFETY: the kernel reads `btf_size` bytes of the blob and writes at most
    // `btf_log_size` bytes of the log, which are the lengths of the two.
    let result = unsafe { bpf_fd(Command::BTF_LOAD, &mut attr) };
    let true_size = attr.btf_log_true_size;
    if let Some(log) = log {
        log.finish(true_size);
    }
    result
}
