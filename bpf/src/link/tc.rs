//! Traffic control: where a program goes, by which kernel interface; tcx and
//! netkit links.

use std::os::fd::AsFd;

use ebpf_manager_sys::abi::bpf::{AttachType, ProgramType};
use ebpf_manager_sys::bpf::{LinkCreate, Target};
use ebpf_manager_sys::rtnl::{self, TcParent};
use ebpf_manager_sys::{Errno, SysError};

use super::clsact::Filter;
use super::interface::Interface;
use super::net::{self, HookPrograms, Order};
use super::standing::Standing;
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
    /// [`remove_stale_filters`](crate::remove_stale_filters). A filter with a name of its own is left
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
