//! One reader of a perf buffer for each CPU.

use std::os::fd::AsFd;

use ebpf_manager_sys::bpf::map_info;
use ebpf_manager_sys::lock::Mutex;
use ebpf_manager_sys::{Errno, SysError};

use crate::map::Map;

/// Ids of maps, and CPUs whose places there have a reader in this process.
static CLAIMED: Mutex<Vec<(u32, u32)>> = Mutex::new(Vec::new());

/// The right to a CPU's place in a perf event array, given back on drop.
///
/// The event of a second reader would take the place of the first one's, which
/// would hear nothing any more; and the end of either would empty it.
#[derive(Debug)]
pub(super) struct Claim {
    /// 0 before Linux 4.13, which does not tell: nothing is claimed.
    map: u32,
    pub(super) cpu: u32,
}

impl Claim {
    /// `map` is [`map_id`]'s.
    ///
    /// # Errors
    /// `EBUSY` if there is a reader already.
    pub(super) fn new(map: u32, cpu: u32) -> Result<Claim, SysError> {
        let mut claimed = CLAIMED.lock();
        if map != 0 {
            if claimed.contains(&(map, cpu)) {
                let err = SysError::new("read a perf buffer", Errno::EBUSY);
                let what = format!("this process has a reader of the map for CPU {cpu}");
                return Err(err.with_detail(what));
            }
            claimed.push((map, cpu));
        }
        Ok(Claim { map, cpu })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = CLAIMED.lock();
        claimed.retain(|at| *at != (self.map, self.cpu));
    }
}

/// What names the map, whichever descriptor it was opened by. It is not given
/// to another while the reader holds the map.
pub(super) fn map_id(map: &Map) -> Result<u32, SysError> {
    match map_info(map.as_fd()) {
        // Linux before 4.13.
        Err(err) if err.is(Errno::EINVAL) => Ok(0),
        info => Ok(info?.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_claimed_once() {
        let map = u32::MAX;
        let first = Claim::new(map, 1).unwrap();
        assert!(Claim::new(map, 1).unwrap_err().is(Errno::EBUSY));
        let other = Claim::new(map, 2).unwrap();
        drop(first);
        drop(Claim::new(map, 1).unwrap());
        assert!(Claim::new(map, 2).unwrap_err().is(Errno::EBUSY));
        drop(other);
        let unknown = [Claim::new(0, 1), Claim::new(0, 1)];
        assert!(unknown.iter().all(Result::is_ok));
    }
}
