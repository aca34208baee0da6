//! What is undone when a step fails, and what is cleaned up at the end.

use std::path::{Path, PathBuf};

use bitflags::bitflags;
use ebpf_manager_bpf::{Errno, Map, MapError, SysError};

bitflags! {
    /// Which maps a stop cleans up. A map is in exactly one category:
    ///
    /// | | pinned | not pinned |
    /// | --- | --- | --- |
    /// | created by this manager | `INTERNAL_PINNED` | `INTERNAL_NOT_PINNED` |
    /// | opened from a pin that was there | `EXTERNAL_PINNED` | |
    /// | given as a replacement | `EXTERNAL_PINNED_AND_EDITED` | `EXTERNAL_EDITED` |
    ///
    /// Cleaning up a map removes the pin, if this manager made it or the map is
    /// declared to be cleaned up always, and gives up the manager's reference.
    /// A map that is not cleaned up lives on: by its pin, or else in the
    /// manager, where lookups still find it and the next
    /// [`Manager::init`](crate::Manager::init) uses it again.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Cleanup: u32 {
        /// Maps that this manager created and pinned.
        const INTERNAL_PINNED = 1 << 1;
        /// Maps that this manager created and did not pin.
        const INTERNAL_NOT_PINNED = 1 << 2;
        /// Maps that were opened from a pin.
        const EXTERNAL_PINNED = 1 << 3;
        /// Replacements that are declared with a pin.
        const EXTERNAL_PINNED_AND_EDITED = 1 << 4;
        /// Replacements without a pin.
        const EXTERNAL_EDITED = 1 << 5;
        /// All that this manager created.
        const INTERNAL = Self::INTERNAL_PINNED.bits() | Self::INTERNAL_NOT_PINNED.bits();
        /// All that come from elsewhere.
        const EXTERNAL = Self::EXTERNAL_PINNED.bits()
            | Self::EXTERNAL_PINNED_AND_EDITED.bits()
            | Self::EXTERNAL_EDITED.bits();
        /// All.
        const ALL = Self::INTERNAL.bits() | Self::EXTERNAL.bits();
        /// All but pins: what [`Manager::stop`](crate::Manager::stop) does.
        const UNPINNED = Self::INTERNAL_NOT_PINNED.bits() | Self::EXTERNAL_EDITED.bits();
    }
}

/// Where a map came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Created,
    Pin,
    Replacement,
}

/// A map and what becomes of it.
#[derive(Clone, Debug)]
pub(crate) struct MapEntry {
    pub(crate) map: Map,
    pub(crate) origin: Origin,
    pub(crate) pin: Option<PathBuf>,
    /// This manager made the pin.
    pub(crate) pinned_here: bool,
    pub(crate) always_cleanup: bool,
}

impl MapEntry {
    pub(crate) fn new(map: Map, origin: Origin) -> MapEntry {
        MapEntry {
            map,
            origin,
            pin: None,
            pinned_here: false,
            always_cleanup: false,
        }
    }

    fn category(&self) -> Cleanup {
        match (self.origin, &self.pin) {
            (Origin::Created, Some(_)) => Cleanup::INTERNAL_PINNED,
            (Origin::Created, None) => Cleanup::INTERNAL_NOT_PINNED,
            (Origin::Pin, _) => Cleanup::EXTERNAL_PINNED,
            (Origin::Replacement, Some(_)) => Cleanup::EXTERNAL_PINNED_AND_EDITED,
            (Origin::Replacement, None) => Cleanup::EXTERNAL_EDITED,
        }
    }

    /// Cleans up, or returns the map to be kept.
    pub(crate) fn close(self, cleanup: Cleanup) -> Result<Option<MapEntry>, MapError> {
        if !self.always_cleanup && !cleanup.contains(self.category()) {
            // A pin keeps it.
            return Ok(Some(self).filter(|entry| entry.pin.is_none()));
        }
        match &self.pin {
            Some(path) if self.pinned_here || self.always_cleanup => {
                remove_pin(path).map_err(|source| MapError::Pin {
                    map: self.map.name().to_owned(),
                    source,
                    cure: None,
                })?;
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

/// Removes a pin; one that is gone is removed.
pub(crate) fn remove_pin(path: &Path) -> Result<(), SysError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(err) => {
            let err = SysError::from_io("unlink", &err).with_path(path);
            if err.is(Errno::ENOENT) {
                Ok(())
            } else {
                Err(err)
            }
        }
    }
}

/// Steps to take back, unless all goes well. Dropping it takes them back, the
/// last one first.
#[derive(Default)]
pub(crate) struct Undo(Vec<Box<dyn FnOnce() + Send>>);

impl Undo {
    pub(crate) fn push(&mut self, step: impl FnOnce() + Send + 'static) {
        self.0.push(Box::new(step));
    }

    /// All went well.
    pub(crate) fn forget(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(step) = self.0.pop() {
            step();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn undone_backwards_unless_forgotten() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let with = |forget: bool| {
            let mut undo = Undo::default();
            for step in [1, 2, 3] {
                let done = Arc::clone(&done);
                undo.push(move || done.lock().unwrap().push(step));
            }
            if forget {
                undo.forget();
            }
        };
        with(true);
        assert!(done.lock().unwrap().is_empty());
        with(false);
        assert_eq!(*done.lock().unwrap(), [3, 2, 1]);
    }

    #[test]
    fn trap_cleanup_categories_can_all_be_reached() {
        let numbers = [
            Cleanup::INTERNAL_PINNED,
            Cleanup::INTERNAL_NOT_PINNED,
            Cleanup::EXTERNAL_PINNED,
            Cleanup::EXTERNAL_PINNED_AND_EDITED,
            Cleanup::EXTERNAL_EDITED,
        ];
        assert_eq!(numbers.map(|c| c.bits()), [2, 4, 8, 16, 32]);
        assert_eq!(Cleanup::INTERNAL.bits(), 6);
        assert_eq!(Cleanup::EXTERNAL.bits(), 56);
        assert_eq!(Cleanup::ALL.bits(), 62);
    }
}
