//! One user of a ring per process.

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use crate::Result;
use crate::abi::bpf::{MapFlags, MapType};
use crate::bpf::map_info;
use crate::errno::{Errno, SysError};

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
        // A program or link answers with another structure. Should that look
        // like a ring buffer's, then mmap refuses: of these objects only maps
        // have it.
        let info = map_info(fd)?;
        if info.map_type != kind {
            return Err(refusal(Errno::EINVAL, "not a ring buffer of this kind"));
        }
        // Where the pages come from changes nothing. Any other flag might let
        // the kernel write where this crate lends memory.
        let flags = MapFlags::from_bits_retain(info.map_flags) - MapFlags::NUMA_NODE;
        if flags.contains(MapFlags::RB_OVERWRITE) {
            return Err(refusal(Errno::EOPNOTSUPP, "programs overwrite old records"));
        }
        if !flags.is_empty() {
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
