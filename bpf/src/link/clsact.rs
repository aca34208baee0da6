//! Filters on clsact: made, named after their process, removed with their link,
//! swept up when their process died without doing so.

use std::os::fd::AsFd;

use ebpf_manager_sys::rtnl::{self, ClsBpfFlags, FilterId, FilterSpec, Rtnl, TcParent};
use ebpf_manager_sys::{Errno, SysError};

use super::event::Owner;
use super::interface::{Interface, NetNamespace};
use super::net;
use super::standing::Attachment;
use super::tc::{ClsactOptions, QdiscCleanup, Verdict};
use crate::error::LinkError;
use crate::program::Program;

/// A filter on clsact.
#[derive(Debug)]
pub(super) struct Filter {
    namespace: NetNamespace,
    added: rtnl::Filter,
    qdisc: QdiscCleanup,
}

/// Times to make clsact anew while others keep removing it.
const QDISC_ATTEMPTS: usize = 4;

impl Filter {
    pub(super) fn new(
        program: &Program,
        interface: &Interface,
        index: u32,
        parent: TcParent,
        options: &ClsactOptions,
    ) -> Result<Filter, SysError> {
        let namespace = interface.namespace()?;
        let name = match options.name.as_str() {
            "" => &owned_name(program.section(), &options.uid)?,
            name => name,
        };
        let spec = FilterSpec {
            id: FilterId {
                index,
                parent,
                priority: options.priority,
                protocol: options.protocol,
                handle: options.handle,
            },
            name,
            program: program.as_fd(),
            flags: match options.verdict {
                Verdict::DirectAction => ClsBpfFlags::DIRECT_ACTION,
                Verdict::Class => ClsBpfFlags::empty(),
            },
        };
        let mut rtnl = namespace.rtnl()?;
        // Nobody of ours takes an unused clsact away or sweeps meanwhile.
        let lock = namespace.lock();
        let mut attempts = QDISC_ATTEMPTS;
        let added = loop {
            attempts -= 1;
            let mut before = Some(Vec::new());
            let ours = match again_if_lost(&mut || rtnl.clsact_add(index)) {
                Ok(()) => true,
                Err(err) if err.is(Errno::EEXIST) => {
                    if parent == TcParent::EGRESS {
                        refuse_ingress_qdisc(&mut rtnl, index, err)?;
                    }
                    if lock.is_some() {
                        // What cannot be removed is in nobody's way.
                        let swept = sweep(&mut rtnl, index, parent);
                        before = swept.ok().map(|swept| swept.left);
                    }
                    false
                }
                Err(err) => return Err(err),
            };
            match rtnl.filter_add(&spec) {
                Ok(added) => break added,
                Err(err) => {
                    let added = before.and_then(|b| find_new(&mut rtnl, &spec, &b));
                    if let Some(added) = added {
                        break added;
                    }
                    // Another process may have removed clsact in between.
                    if attempts > 0 && !ours && rtnl.clsact(index)?.is_none() {
                        continue;
                    }
                    if ours {
                        let _ = remove_unused_clsact(&mut rtnl, index);
                    }
                    return Err(err);
                }
            }
        };
        drop(lock);
        drop(rtnl);
        namespace.filter_added(index);
        Ok(Filter {
            namespace,
            added,
            qdisc: options.qdisc,
        })
    }

    /// Whether the numbers still stand for our program. Kernels before 4.14
    /// show its tag only.
    fn is_ours(&self, rtnl: &mut Rtnl) -> Result<bool, SysError> {
        let ours = &self.added;
        let filters = match rtnl.filters(ours.id.index, ours.id.parent) {
            // clsact is gone.
            Err(err) if err.is(Errno::EINVAL) => return Ok(false),
            filters => filters?,
        };
        Ok(filters
            .iter()
            .any(|f| f.id == ours.id && f.program_id == ours.program_id && f.tag == ours.tag))
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        self.namespace.filter_removed(self.added.id.index);
    }
}

impl Attachment for Filter {
    fn detach(&self) -> Result<(), SysError> {
        let mut rtnl = self.namespace.rtnl()?;
        let lock = self.namespace.lock();
        if self.is_ours(&mut rtnl)? {
            match rtnl.filter_delete(&self.added.id) {
                Err(err) if !matches!(err.errno(), Errno::ENOENT | Errno::ENODEV) => {
                    return Err(err);
                }
                _ => {}
            }
        }
        match self.qdisc {
            QdiscCleanup::RemoveIfUnused if lock.is_some() => {
                remove_unused_clsact(&mut rtnl, self.added.id.index)
            }
            _ => Ok(()),
        }
    }

    fn update(&mut self, program: &Program) -> Result<(), SysError> {
        let mut rtnl = self.namespace.rtnl()?;
        if !self.is_ours(&mut rtnl)? {
            return Err(SysError::new("RTM_NEWTFILTER", Errno::ENOENT)
                .with_detail("the filter is gone or somebody else's"));
        }
        let added = rtnl.filter_replace(&FilterSpec {
            id: self.added.id,
            name: &self.added.name,
            program: program.as_fd(),
            flags: self.added.flags,
        })?;
        drop(rtnl);
        self.added = added;
        Ok(())
    }

    fn is_attached(&self) -> Result<Option<bool>, SysError> {
        self.is_ours(&mut *self.namespace.rtnl()?).map(Some)
    }
}

/// Does something once more unless the kernel's answer says that it makes no
/// difference: where the answer was lost, nobody knows what has been done.
fn again_if_lost(act: &mut dyn FnMut() -> Result<(), SysError>) -> Result<(), SysError> {
    act().or_else(|err| match err.errno() {
        Errno::EEXIST | Errno::ENOENT | Errno::ENODEV | Errno::EINVAL | Errno::EPERM => Err(err),
        _ => act(),
    })
}

/// The filter that was added although the answer was lost: one of the program's
/// that was not there before.
fn find_new(rtnl: &mut Rtnl, spec: &FilterSpec<'_>, before: &[FilterId]) -> Option<rtnl::Filter> {
    let program = net::program_id(spec.program).ok()?;
    let filters = rtnl.filters(spec.id.index, spec.id.parent).ok()?;
    let is_new = |f: &rtnl::Filter| {
        f.program_id == program && f.name == spec.name && !before.contains(&f.id)
    };
    filters.into_iter().find(is_new)
}

/// Longest name of a filter, without its terminating zero.
const MAX_NAME_LEN: usize = 255;

/// `OWNER SECTION_UID_PID`. It ends in what the filters of other managers are
/// called, so that people and sweepers who know those read it right.
fn owned_name(section: &str, uid: &str) -> Result<String, SysError> {
    let owner = Owner::this_process()?;
    let (group, pid) = (owner.group(), owner.pid);
    // The mark of programs that are loaded on request says nothing here.
    let section = section.trim_start_matches('?');
    let mut name = format!("{group} {section}");
    let tail = format!("_{uid}_{pid}");
    let mut room = MAX_NAME_LEN.saturating_sub(tail.len()).min(name.len());
    while !name.is_char_boundary(room) {
        room -= 1;
    }
    name.truncate(room);
    name.push_str(&tail);
    Ok(name)
}

/// Whether a filter's name says that it is of a process that is gone.
fn is_stale(name: &str) -> bool {
    name.split_once(' ')
        .and_then(|(owner, _)| Owner::parse(owner))
        .is_some_and(|owner| owner.is_gone_here())
}

/// Removes filters of processes that are gone. The caller holds the lock:
/// otherwise a number read here could be another filter's when it is deleted.
fn sweep(rtnl: &mut Rtnl, index: u32, parent: TcParent) -> Result<Swept, SysError> {
    let mut swept = Swept::default();
    for filter in rtnl.filters(index, parent)? {
        let stale = filter.kind == "bpf" && filter.chain == 0 && is_stale(&filter.name);
        if stale && rtnl.filter_delete(&filter.id).is_ok() {
            swept.removed += 1;
        } else {
            swept.left.push(filter.id);
        }
    }
    Ok(swept)
}

#[derive(Default)]
struct Swept {
    removed: usize,
    left: Vec<FilterId>,
}

/// Removes the filters that processes using this library left on an interface
/// when they were killed, and returns how many.
///
/// A filter is known by its name (see [`ClsactOptions::name`]): those of
/// living processes, of processes in other pid namespaces and of other
/// programs are not touched. Several processes may sweep at the same time.
/// Attaching to clsact does this too, in its direction.
///
/// # Errors
/// [`LinkError::NoInterface`]; [`LinkError::Operation`], with `EBUSY` if
/// another process sweeps and does not end.
pub fn remove_stale_filters(interface: &Interface) -> Result<usize, LinkError> {
    let index = interface.index()?;
    let sweep = || {
        let namespace = interface.namespace()?;
        let mut rtnl = namespace.rtnl()?;
        let Some(_lock) = namespace.lock() else {
            return Err(SysError::new("flock", Errno::EBUSY));
        };
        match rtnl.clsact(index)? {
            None => Ok(0),
            Some(qdisc) if qdisc.kind == CLSACT => Ok(sweep(&mut rtnl, index, TcParent::INGRESS)?
                .removed
                + sweep(&mut rtnl, index, TcParent::EGRESS)?.removed),
            Some(_) => Ok(sweep(&mut rtnl, index, TcParent::INGRESS)?.removed),
        }
    };
    sweep().map_err(|source| match source.errno() {
        Errno::ENODEV => interface.missing(source),
        _ => LinkError::Operation {
            target: format!("filters of {interface}"),
            source,
        },
    })
}

const CLSACT: &str = "clsact";

/// Refuses leaving packets where the older `ingress` is in the place of
/// clsact: the kernel would take the filter and run it on arriving ones.
fn refuse_ingress_qdisc(rtnl: &mut Rtnl, index: u32, err: SysError) -> Result<(), SysError> {
    match rtnl.clsact(index)? {
        Some(qdisc) if qdisc.kind != CLSACT => {
            Err(err.with_detail("the qdisc ingress takes the place of clsact: remove it"))
        }
        _ => Ok(()),
    }
}

/// Removes clsact if nobody has a filter on it.
fn remove_unused_clsact(rtnl: &mut Rtnl, index: u32) -> Result<(), SysError> {
    if rtnl.clsact(index)?.is_none_or(|qdisc| qdisc.kind != CLSACT) {
        return Ok(());
    }
    for parent in [TcParent::INGRESS, TcParent::EGRESS] {
        if !rtnl.filters(index, parent)?.is_empty() {
            return Ok(());
        }
    }
    match rtnl.clsact_delete(index) {
        // Somebody else was faster.
        Err(err) if err.is(Errno::EINVAL) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_filters() {
        let pid = Owner::this_process().unwrap().pid;
        let name = owned_name("?tc/ingress", "agent").unwrap();
        assert!(name.starts_with("ebpf_manager_"), "{name}");
        assert!(
            name.ends_with(&format!(" tc/ingress_agent_{pid}")),
            "{name}"
        );
        assert!(!is_stale(&name), "{name}");
        let long = owned_name(&"é".repeat(200), "agent").unwrap();
        assert!(long.len() <= MAX_NAME_LEN, "{long}");
        assert!(long.ends_with(&format!("_agent_{pid}")), "{long}");
        let gone = name.replacen(&pid.to_string(), &(u32::MAX >> 1).to_string(), 1);
        assert!(is_stale(&gone), "{gone}");
        // Whatever another tool calls its filters.
        for foreign in ["", "tc_0", "section_uid_1", "ebpf_manager_1 tc__1"] {
            assert!(!is_stale(foreign), "{foreign}");
        }
    }
}
