//! One user of a ring per process.

use std::os::fd::BorrowedFd;

use crate::Result;
use crate::abi::bpf::{MapFlags, MapType};
use crate::bpf::map_info;
use crate::claim::Claim;
use crate::errno::{Errno, SysError};

/// Claims the ring of the map behind `fd`, after checking that it is a `kind`
/// whose protocol is the ordinary one. Returns its size in bytes too.
///
/// What a ring's position has passed may be overwritten, so a second mover in
/// safe code would invalidate memory that the first one lends. The mappings
/// keep the map alive.
pub(super) fn claim(fd: BorrowedFd<'_>, kind: MapType) -> Result<(Claim, usize)> {
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
    let claim = Claim::new(info.id, 0);
    let claim = claim.ok_or_else(|| refusal(Errno::EBUSY, "in use by this process"))?;
    Ok((claim, info.max_entries as usize))
}

fn refusal(errno: Errno, why: &'static str) -> SysError {
    SysError::new("mmap(ring buffer)", errno).with_detail(why)
}
