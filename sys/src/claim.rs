//! One user of a buffer per process.

use crate::lock::Mutex;

/// Ids of maps, and parts of them, that are in use in this process. Few, and
/// changed only when a buffer is opened or closed.
static CLAIMED: Mutex<Vec<(u32, u32)>> = Mutex::new(Vec::new());

/// The right to be the only user of a part of a map in this process, given back
/// on drop.
///
/// The map's id names it, whichever descriptor it was opened by. It is not
/// given to another map while whoever has the claim keeps the map alive.
#[derive(Debug)]
pub struct Claim {
    map: u32,
    part: u32,
}

impl Claim {
    /// Claims a part of the map with this id; `None` if somebody has it.
    pub fn new(map: u32, part: u32) -> Option<Claim> {
        let mut claimed = CLAIMED.lock();
        if claimed.contains(&(map, part)) {
            return None;
        }
        claimed.push((map, part));
        Some(Claim { map, part })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().retain(|at| *at != (self.map, self.part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_claim_is_refused_until_the_first_is_gone() {
        let first = Claim::new(u32::MAX, 0).unwrap();
        assert!(Claim::new(u32::MAX, 0).is_none());
        let other = Claim::new(u32::MAX, 1).unwrap();
        drop(first);
        drop(Claim::new(u32::MAX, 0).unwrap());
        assert!(Claim::new(u32::MAX, 1).is_none());
        drop(other);
    }
}
