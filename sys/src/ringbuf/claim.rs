//! One user of a ring per process.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use crate::Result;
use crate::abi::bpf::{Command, MapFlags, MapType};
use crate::errno::{Errno, SysError, retry_eintr};

/// Ids of the maps that are in use by a reader or writer of this process. Few,
/// and changed only when a ring is opened or closed.
static CLAIMED: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// The right to move one ring's position, given back on drop.
///
/// What the position has passed may be overwritten, so a second mover in safe
/// code would invalidate memory that the first one lends. The map's id names
/// the ring, whichever descriptor it was opened by; it cannot be given to
/// another map meanwhile, because the mappings keep this one alive.
#[derive(Debug)]
pub(super) struct Claim(u32);

impl Claim {
    /// Claims the map behind `fd`, after checking that it is a `kind` whose
    /// protocol is the ordinary one. Returns its size in bytes too.
    pub(super) fn map(fd: BorrowedFd<'_>, kind: MapType) -> Result<(Claim, usize)> {
        let info = map_info(fd)?;
        if info.kind != kind {
            return Err(refusal(Errno::EINVAL, "not a ring buffer of this kind"));
        }
        // Where the pages come from changes nothing. Any other flag might let
        // the kernel write where this crate lends memory.
        if !(info.flags - MapFlags::NUMA_NODE).is_empty() {
            return Err(refusal(Errno::EOPNOTSUPP, "unknown ring buffer flags"));
        }
        Ok((Claim::id(info.id)?, info.max_entries as usize))
    }

    pub(super) fn id(id: u32) -> Result<Claim> {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.contains(&id) {
            return Err(refusal(Errno::EBUSY, "in use by this process"));
        }
        claimed.push(id);
        Ok(Claim(id))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.retain(|&id| id != self.0);
    }
}

fn refusal(errno: Errno, why: &'static str) -> SysError {
    SysError::new("mmap(ring buffer)", errno).with_detail(why)
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MapInfo {
    kind: MapType,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: MapFlags,
}

/// The attribute of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoByFd {
    fd: u32,
    info_len: u32,
    info: u64,
}

fn map_info(fd: BorrowedFd<'_>) -> Result<MapInfo> {
    let mut info = MapInfo::default();
    let mut attr = InfoByFd {
        fd: fd.as_raw_fd() as u32,
        info_len: size_of::<MapInfo>() as u32,
        info: ptr::from_mut(&mut info) as u64,
    };
    let attr_ptr = ptr::from_mut(&mut attr);
    let command = Command::OBJ_GET_INFO_BY_FD.0;
    let op = "bpf(BPF_OBJ_GET_INFO_BY_FD)";
    retry_eintr(op, || {
        // SAFETY: `attr` has the layout of this command and lives through the
        // call; the kernel writes at most `info_len` bytes to `info`, whose
        // fields accept every value.
        unsafe { libc::syscall(libc::SYS_bpf, command, attr_ptr, size_of::<InfoByFd>()) }
    })?;
    // A program or link answers with another structure. Should that look like
    // a ring buffer's, then mmap refuses: of these objects only maps have it.
    if (attr.info_len as usize) < size_of::<MapInfo>() {
        return Err(refusal(Errno::EINVAL, "not a map"));
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_claim_is_refused_until_the_first_is_gone() {
        let first = Claim::id(u32::MAX).unwrap();
        assert!(Claim::id(u32::MAX).unwrap_err().is(Errno::EBUSY));
        let other = Claim::id(u32::MAX - 1).unwrap();
        drop(first);
        drop(Claim::id(u32::MAX).unwrap());
        assert!(Claim::id(u32::MAX - 1).unwrap_err().is(Errno::EBUSY));
        drop(other);
    }
}
