//! Traffic control: tcx links, filters on clsact, netkit devices.

use std::os::fd::AsFd;

use ebpf_manager_sys::abi::bpf::{AttachType, ProgramType};
use ebpf_manager_sys::bpf::{LinkCreate, Target};
use ebpf_manager_sys::rtnl::{self, ClsBpfFlags, FilterId, FilterSpec, Rtnl, TcParent};
use ebpf_manager_sys::{Errno, SysError};

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
    /// Name that tc(8) shows; the program's if empty.
    pub name: String,
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

impl Default for ClsactOptions {
    fn default() -> ClsactOptions {
        ClsactOptions {
            priority: 50,
            protocol: rtnl::ALL_PROTOCOLS,
            handle: 0,
            verdict: Verdict::default(),
            name: String::new(),
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
            TcAttach::Auto => match Link::tcx(program, interface, direction, Order::default()) {
                Err(LinkError::Attach { tried, .. })
                    if tried.iter().all(|t| net::too_old(&t.1)) =>
                {
                    filter(
                        program,
                        interface,
                        direction,
                        &ClsactOptions::default(),
                        tried,
                    )
                }
                result => result,
            },
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
            Err(net::refused_on(interface, index, holder, target, tried))
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
        Ok(filter) => Ok(Link {
            target,
            mechanism: Mechanism::Clsact,
            inner: Inner::Standing(Standing::new(filter)),
        }),
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
            "" => program.name(),
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
        let mut attempts = QDISC_ATTEMPTS;
        let added = loop {
            attempts -= 1;
            let ours = match rtnl.clsact_add(index) {
                Ok(()) => true,
                Err(err) if err.is(Errno::EEXIST) => false,
                Err(err) => return Err(err),
            };
            match rtnl.filter_add(&spec) {
                Ok(added) => break added,
                Err(err) => {
                    // Another process may have removed clsact in between.
                    if attempts > 0 && !ours && !has_clsact(&mut rtnl, index)? {
                        continue;
                    }
                    if ours {
                        let _ = remove_unused_clsact(&mut rtnl, index);
                    }
                    return Err(err);
                }
            }
        };
        drop(rtnl);
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

impl Attachment for Filter {
    fn detach(&self) -> Result<(), SysError> {
        let mut rtnl = self.namespace.rtnl()?;
        if self.is_ours(&mut rtnl)? {
            match rtnl.filter_delete(&self.added.id) {
                Err(err) if !matches!(err.errno(), Errno::ENOENT | Errno::ENODEV) => {
                    return Err(err);
                }
                _ => {}
            }
        }
        match self.qdisc {
            QdiscCleanup::Keep => Ok(()),
            QdiscCleanup::RemoveIfUnused => remove_unused_clsact(&mut rtnl, self.added.id.index),
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

fn has_clsact(rtnl: &mut Rtnl, index: u32) -> Result<bool, SysError> {
    Ok(rtnl
        .qdiscs(index)?
        .iter()
        .any(|qdisc| qdisc.kind == "clsact"))
}

/// Removes clsact if nobody has a filter on it.
fn remove_unused_clsact(rtnl: &mut Rtnl, index: u32) -> Result<(), SysError> {
    if !has_clsact(rtnl, index)? {
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
