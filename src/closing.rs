//! Detaching many probes at a time, and in bounded time.

use std::sync::Arc;
use std::time::Instant;

use ebpf_manager_bpf::{Closing as Links, Link, LinkError};

use crate::error::ManagerError;
use crate::probe::ProbeId;
use crate::start::detach_error;

/// What a stop that ran out of time is still closing. Clones are the same.
///
/// Dropping it changes nothing: closing goes on.
#[derive(Clone, Debug)]
pub struct Closing {
    links: Links,
    /// Whose they are.
    ids: Arc<[ProbeId]>,
}

impl Closing {
    /// Nothing is left to do.
    pub(crate) fn done() -> Closing {
        Closing::start(Vec::new())
    }

    /// Begins to detach, on threads of its own. Without any to be had, here.
    pub(crate) fn start(links: Vec<(ProbeId, Link)>) -> Closing {
        let (ids, all) = apart(links);
        Closing {
            links: Links::start(all),
            ids: ids.into(),
        }
    }

    /// The probes whose detaching has not ended.
    pub fn probes(&self) -> Vec<ProbeId> {
        let left = self.links.left().into_iter();
        left.filter_map(|place| self.ids.get(place).cloned())
            .collect()
    }

    /// Whether all is done.
    pub fn is_done(&self) -> bool {
        self.links.is_done()
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// [`ManagerError::Stop`] with what went wrong since the stop returned.
    pub fn wait(&self) -> Result<(), ManagerError> {
        let mut errors = Vec::new();
        self.put(self.links.wait(), &mut errors);
        if errors.is_empty() {
            Ok(())
        } else {
            Err(ManagerError::Stop(errors))
        }
    }

    /// Waits until all is done or time is up, and hands over the errors.
    pub(crate) fn wait_until(&self, deadline: Instant, errors: &mut Vec<ManagerError>) {
        self.put(self.links.wait_until(deadline), errors);
    }

    fn put(&self, failed: Vec<(usize, LinkError)>, errors: &mut Vec<ManagerError>) {
        put(failed, &self.ids, errors);
    }
}

fn apart(links: Vec<(ProbeId, Link)>) -> (Vec<ProbeId>, Vec<Link>) {
    let mut ids = Vec::with_capacity(links.len());
    let mut all = Vec::with_capacity(links.len());
    for (id, link) in links {
        ids.push(id);
        all.push(link);
    }
    (ids, all)
}

fn put(failed: Vec<(usize, LinkError)>, ids: &[ProbeId], errors: &mut Vec<ManagerError>) {
    for (place, err) in failed {
        errors.extend(ids.get(place).map(|id| detach_error(id, err)));
    }
}

/// Detaches all of these in this order, several at a time if they are many.
pub(crate) fn detach(links: Vec<(ProbeId, Link)>, errors: &mut Vec<ManagerError>) {
    let (ids, links) = apart(links);
    put(Link::detach_all(links), &ids, errors);
}
