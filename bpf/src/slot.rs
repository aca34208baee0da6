//! What is in the slots of program arrays and maps of maps.

use std::os::fd::{AsRawFd, OwnedFd};

use ebpf_manager_sys::bpf::{self as sys, ObjectKind};

use crate::MapType;
use crate::error::MapError;
use crate::map::Map;

/// What a slot of a program array or map of maps held, to put it back.
#[derive(Debug)]
pub struct Occupant(Option<OwnedFd>);

impl Occupant {
    /// What the slot `key` of `map` holds now. Nothing, if the kernel does not
    /// tell (before Linux 4.13, or without `CAP_SYS_ADMIN`).
    pub fn of(map: &Map, key: &[u8]) -> Occupant {
        let kind = match map.map_type() {
            MapType::PROG_ARRAY => ObjectKind::Program,
            _ => ObjectKind::Map,
        };
        let mut id = [0; 4];
        let found = map.lookup(key, &mut id).unwrap_or(false);
        let id = u32::from_ne_bytes(id);
        Occupant(found.then(|| sys::fd_by_id(kind, id, 0).ok()).flatten())
    }

    /// Puts it back; empties the slot if it was empty.
    ///
    /// # Errors
    /// [`MapError::Access`].
    pub fn restore(&self, map: &Map, key: &[u8]) -> Result<(), MapError> {
        match &self.0 {
            Some(fd) => map.update(key, &fd.as_raw_fd().to_ne_bytes()),
            None => map.delete(key).map(|_| ()),
        }
    }
}
