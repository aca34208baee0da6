//! One reader of a perf buffer for each CPU.

use std::os::fd::AsFd;

use ebpf_manager_sys::bpf::map_info;
use ebpf_manager_sys::{Errno, SysError, claim};

use crate::map::Map;

/// The right to a CPU's place in a perf event array, given back on drop.
///
/// The event of a second reader would take the place of the first one's, which
/// would hear nothing any more; and the end of either would empty it.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) cpu: u32,
    /// `None` before Linux 4.13, which does not tell maps apart.
    _place: Option<claim::Claim>,
}

impl Claim {
    /// `map` is [`map_id`]'s.
    ///
    /// # Errors
    /// `EBUSY` if there is a reader already.
    pub(super) fn new(map: Option<u32>, cpu: u32) -> Result<Claim, SysError> {
        let busy = || {
            let err = SysError::new("read a perf buffer", Errno::EBUSY);
            err.with_detail(format!(
                "this process has a reader of the map for CPU {cpu}"
            ))
        };
        let place = map.map(|map| claim::Claim::new(map, cpu).ok_or_else(busy));
        Ok(Claim {
            cpu,
            _place: place.transpose()?,
        })
    }
}

/// What names the map, whichever descriptor it was opened by. It is not given
/// to another while the reader holds the map.
pub(super) fn map_id(map: &Map) -> Result<Option<u32>, SysError> {
    match map_info(map.as_fd()) {
        // Linux before 4.13.
        Err(err) if err.is(Errno::EINVAL) => Ok(None),
        info => Ok(Some(info?.id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_claimed_once() {
        let map = Some(u32::MAX);
        let first = Claim::new(map, 1).unwrap();
        assert!(Claim::new(map, 1).unwrap_err().is(Errno::EBUSY));
        drop(first);
        drop(Claim::new(map, 1).unwrap());
        let unknown = [Claim::new(None, 1), Claim::new(None, 1)];
        assert!(unknown.iter().all(Result::is_ok));
    }
}
