//! Traffic control: tcx links, filters on clsact, netkit devices.

use std::os::fd::AsFd;

use ebpf_manager_sys::abi::bpf::{AttachType, ProgramType};
use ebpf_manager_sys::bpf::{LinkCreate, Target};
use ebpf_manager_sys::rtnl::{self, ClsBpfFlags, FilterId, FilterSpec, Rtnl, TcParent};
use ebpf_manager_sys::{Errno, SysError};

use super::event::Owner;
use super::interface::{Interface, NetNamespace};
use super::net::{self, HookPrograms, Order};
use super::standing::{Attachment, Standing};
use super::trace::expect_type;
use super::{Inner, Link, Mechanism};
use crate::error::LinkError;
use crate::program::Program;

/// Which packets of an interface a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Those that arrive.
    Ingress,
    /// Those that leave.
    Egress,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    fn tcx(self) -> AttachType {
        match self {
            Direction::Ingress => AttachType::TCX_INGRESS,
            Direction::Egress => AttachType::TCX_EGRESS,
        }
    }

    fn parent(self) -> TcParent {
        match self {
            Direction::Ingress => TcParent::INGRESS,
            Direction::Egress => TcParent::EGRESS,
        }
    }
}

/// Which end of a netkit pair runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetkitEnd {
    /// The one that configures the pair; it runs programs for what it sends.
    Primary,
    /// The other; its programs are attached through the primary.
    Peer,
}

/// How to attach a classifier.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum TcAttach {
    /// By a tcx link behind all others, else by a filter with the defaults.
    #[default]
    Auto,
    /// By a tcx link where there are such, else by a filter.
    Either(Order, ClsactOptions),
    /// By a tcx link. Linux 6.6.
    Tcx(Order),
    /// By a filter on clsact. Linux 4.5.
    Clsact(ClsactOptions),
}

/// A filter on clsact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClsactOptions {
    /// Lower numbers run first; 50 by default. 0 lets the kernel choose one in
    /// front of all others.
    pub priority: u16,
    /// Only packets of this protocol, as in `ETH_P_*`; all by default.
    pub protocol: u16,
    /// Number within the priority; 0, the default, lets the kernel choose.
    pub handle: u32,
    /// What the program's return value is.
    pub verdict: Verdict,
    /// Name that tc(8) shows.
    ///
    /// If empty, it becomes `OWNER SECTION_UID_PID`, the owner being this
    /// process by number, start time and pid namespace: when it was killed,
    /// the next one to attach there removes the filter, and so does
    /// [`remove_stale_filters`]. A filter with a name of its own is left
    /// alone.
    pub name: String,
    /// The UID in the name.
    pub uid: String,
    /// What to do with clsact when this filter is gone.
    pub qdisc: QdiscCleanup,
}

/// What the return value of a classifier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verdict {
    /// What becomes of the packet (`TC_ACT_*`).
    #[default]
    DirectAction,
    /// The packet's class, as other classifiers give it.
    Class,
}

/// What becomes of clsact after a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum QdiscCleanup {
    /// It stays.
    #[default]
    Keep,
    /// It is removed if no filter of anybody is left on it.
    RemoveIfUnused,
}

impl TcAttach {
    /// The same, with `uid` in the name of a filter that has no name of its
    /// own.
    #[must_use]
    pub fn with_uid(&self, uid: &str) -> TcAttach {
        let named = |options: &ClsactOptions| ClsactOptions {
            uid: uid.to_owned(),
            ..options.clone()
        };
        match self {
            TcAttach::Auto => TcAttach::Either(Order::default(), named(&ClsactOptions::default())),
            TcAttach::Either(order, options) => TcAttach::Either(*order, named(options)),
            TcAttach::Clsact(options) => TcAttach::Clsact(named(options)),
            TcAttach::Tcx(order) => TcAttach::Tcx(*order),
        }
    }
}

impl Default for ClsactOptions {
    fn default() -> ClsactOptions {
        ClsactOptions {
            priority: 50,
            protocol: rtnl::ALL_PROTOCOLS,
            handle: 0,
            verdict: Verdict::default(),
            name: String::new(),
            uid: String::new(),
            qdisc: QdiscCleanup::default(),
        }
    }
}

impl Interface {
    /// The tcx programs of one direction, in the order they run, and the
    /// revision of the list. Requires at least Linux 6.6.
    ///
    /// # Errors
    /// [`LinkError::NoInterface`]; [`LinkError::Operation`], with `EINVAL`
    /// below Linux 6.6.
    pub fn tcx_programs(&self, direction: Direction) -> Result<HookPrograms, LinkError> {
        let index = self.index()?;
        let mut found = None;
        let mut query = || {
            let target = Target::Ifindex(index);
            found = Some(net::programs_on(target, direction.tcx(), 0)?);
            Ok(())
        };
        let result = match self.named_namespace() {
            Some(namespace) => namespace.run(&mut query),
            None => query(),
        };
        let missing = SysError::new("bpf(BPF_PROG_QUERY)", Errno::ECANCELED);
        match result.and_then(|()| found.ok_or(missing)) {
            Ok(found) => Ok(found),
            Err(source) if source.is(Errno::ENODEV) => Err(self.missing(source)),
            Err(source) => Err(LinkError::Operation {
                target: format!("tcx {} of {self}", direction.as_str()),
                source,
            }),
        }
    }
}

impl Link {
    /// Attaches a classifier to packets of an interface.
    ///
    /// [`TcAttach::Auto`] uses a link from Linux 6.6 and a filter on clsact
    /// below. Requires at least Linux 4.5.
    ///
    /// # Errors
    /// As [`Link::tcx`] and [`Link::clsact`].
    pub fn tc(
        program: &Program,
        interface: &Interface,
        direction: Direction,
        attach: &TcAttach,
    ) -> Result<Link, LinkError> {
        match attach {
            TcAttach::Tcx(order) => Link::tcx(program, interface, direction, *order),
            TcAttach::Clsact(options) => Link::clsact(program, interface, direction, options),
            TcAttach::Auto => {
                let (order, options) = (Order::default(), ClsactOptions::default());
                either(program, interface, direction, order, &options)
            }
            TcAttach::Either(order, options) => {
                either(program, interface, direction, *order, options)
            }
        }
    }

    /// Attaches a classifier by a tcx link, which needs no queueing
    /// discipline.
    ///
    /// Requires at least Linux 6.6.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::NoInterface`];
    /// [`LinkError::AlreadyAttached`] if the same program is there already;
    /// [`LinkError::Attach`], with `EINVAL` below Linux 6.6, `ESTALE` if the
    /// revision is another.
    pub fn tcx(
        program: &Program,
        interface: &Interface,
        direction: Direction,
        order: Order,
    ) -> Result<Link, LinkError> {
        let target = format!("tc {} of {interface}", direction.as_str());
        ordered(
            program,
            interface,
            direction.tcx(),
            Mechanism::Tcx,
            order,
            target,
        )
    }

    /// Attaches a classifier to a netkit pair by its primary interface.
    ///
    /// Requires at least Linux 6.7.
    ///
    /// # Errors
    /// As [`Link::tcx`]; `EINVAL` also where the interface is no netkit
    /// primary.
    pub fn netkit(
        program: &Program,
        interface: &Interface,
        end: NetkitEnd,
        order: Order,
    ) -> Result<Link, LinkError> {
        let (attach_type, name) = match end {
            NetkitEnd::Primary => (AttachType::NETKIT_PRIMARY, "primary"),
            NetkitEnd::Peer => (AttachType::NETKIT_PEER, "peer"),
        };
        let target = format!("netkit {name} of {interface}");
        ordered(
            program,
            interface,
            attach_type,
            Mechanism::Netkit,
            order,
            target,
        )
    }

    /// Attaches a classifier by a filter on clsact, which is made if it is
    /// missing and taken back if the filter is refused.
    ///
    /// Requires at least Linux 4.5.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::NoInterface`];
    /// [`LinkError::AlreadyAttached`] if priority and handle are taken;
    /// [`LinkError::Attach`].
    pub fn clsact(
        program: &Program,
        interface: &Interface,
        direction: Direction,
        options: &ClsactOptions,
    ) -> Result<Link, LinkError> {
        filter(program, interface, direction, options, Vec::new())
    }
}

fn either(
    program: &Program,
    interface: &Interface,
    direction: Direction,
    order: Order,
    options: &ClsactOptions,
) -> Result<Link, LinkError> {
    match Link::tcx(program, interface, direction, order) {
        Err(LinkError::Attach { tried, .. }) if tried.iter().all(|t| net::too_old(&t.1)) => {
            filter(program, interface, direction, options, tried)
        }
        result => result,
    }
}

/// Links of hooks that order their programs.
fn ordered(
    program: &Program,
    interface: &Interface,
    attach_type: AttachType,
    mechanism: Mechanism,
    order: Order,
    target: String,
) -> Result<Link, LinkError> {
    expect_type(program, mechanism.as_str(), &[ProgramType::SCHED_CLS])?;
    let index = interface.index()?;
    let (options, flags) = order.options();
    let create = LinkCreate {
        object: program.as_fd(),
        target: Target::Ifindex(index),
        attach_type,
        flags: flags.bits(),
        options,
    };
    match net::link_create_in(interface.named_namespace(), &create) {
        Ok(fd) => Ok(net::link(target, mechanism, fd)),
        Err(err) => {
            // What is taken here is taken by the same program.
            let taken = net::is_taken(&err);
            let holder = taken
                .then(|| net::program_id(program.as_fd()).ok())
                .flatten();
            let tried = vec![(mechanism.as_str(), err)];
            Err(net::refused_on(
                mechanism, interface, index, holder, target, tried,
            ))
        }
    }
}

fn filter(
    program: &Program,
    interface: &Interface,
    direction: Direction,
    options: &ClsactOptions,
    mut tried: Vec<(&'static str, SysError)>,
) -> Result<Link, LinkError> {
    expect_type(program, "clsact filter", &[ProgramType::SCHED_CLS])?;
    let index = interface.index()?;
    let target = format!("tc {} of {interface}", direction.as_str());
    match Filter::new(program, interface, index, direction.parent(), options) {
        Ok(filter) => {
            let inner = Inner::Standing(Standing::new(filter));
            Ok(Link::new(target, Mechanism::Clsact, inner).after(tried))
        }
        Err(err) => {
            let holder = net::is_taken(&err).then(|| {
                let namespace = interface.namespace().ok()?;
                let filters = namespace
                    .rtnl()
                    .ok()?
                    .filters(index, direction.parent())
                    .ok()?;
                let same = filters
                    .iter()
                    .find(|f| f.id.priority == options.priority && f.id.handle == options.handle)?;
                Some(same.program_id)
            });
            tried.push((Mechanism::Clsact.as_str(), err));
            Err(net::refused_on(
                Mechanism::Clsact,
                interface,
                index,
                holder.flatten(),
                target,
                tried,
            ))
        }
    }
}

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
    fn new(
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
