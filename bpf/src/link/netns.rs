//! Hooks of a whole network namespace: socket lookup, flow dissection,
//! netfilter.

use std::os::fd::AsFd;

use ebpf_manager_sys::abi::bpf::{AttachFlags, AttachType, F_NETFILTER_IP_DEFRAG, ProgramType};
use ebpf_manager_sys::bpf::{LinkCreate, LinkOptions, Target};
use ebpf_manager_sys::{Errno, SysError};

use super::interface::NetNamespace;
use super::net::{self, Method};
use super::standing::{Owner, ProgramAttached, Standing};
use super::trace::expect_type;
use super::{Inner, Link, Mechanism};
use crate::error::LinkError;
use crate::program::Program;

/// Where netfilter runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetfilterOptions {
    /// IPv4 or IPv6.
    pub family: NetfilterFamily,
    /// The point on a packet's way.
    pub hook: NetfilterHook,
    /// Lower runs earlier. The lowest and the highest number are reserved,
    /// and each other is taken once; 0 by default.
    pub priority: i32,
    /// Which packets it sees.
    pub fragments: Fragments,
}

/// Internet protocol that netfilter looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NetfilterFamily {
    /// `NFPROTO_IPV4`.
    #[default]
    Ipv4,
    /// `NFPROTO_IPV6`.
    Ipv6,
}

/// A point on a packet's way: `NF_INET_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetfilterHook {
    /// Arrived, before routing.
    PreRouting,
    /// For this machine.
    LocalIn,
    /// Passing through.
    Forward,
    /// From this machine.
    LocalOut,
    /// Leaving, after routing.
    PostRouting,
}

/// How netfilter shows fragmented packets to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fragments {
    /// As they come.
    #[default]
    AsTheyCome,
    /// Reassembled. Linux 6.6.
    Reassembled,
}

impl NetfilterOptions {
    /// IPv4 packets at `hook`, with priority 0.
    pub fn new(hook: NetfilterHook) -> NetfilterOptions {
        NetfilterOptions {
            family: NetfilterFamily::default(),
            hook,
            priority: 0,
            fragments: Fragments::default(),
        }
    }
}

impl Link {
    /// Attaches a program that chooses the socket of an arriving packet, in
    /// `namespace` or the calling thread's.
    ///
    /// Requires at least Linux 5.9.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::Attach`].
    pub fn sk_lookup(
        program: &Program,
        namespace: Option<&NetNamespace>,
    ) -> Result<Link, LinkError> {
        expect_type(program, "socket lookup", &[ProgramType::SK_LOOKUP])?;
        of_namespace(program, namespace, AttachType::SK_LOOKUP, Method::Link)
    }

    /// Attaches a program that takes packets apart for hashing, in `namespace`
    /// or the calling thread's.
    ///
    /// A link is used from Linux 5.8, `BPF_PROG_ATTACH` below. Requires at
    /// least Linux 4.20.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::AlreadyAttached`], also when the
    /// initial namespace has one; [`LinkError::Attach`].
    pub fn flow_dissector(
        program: &Program,
        namespace: Option<&NetNamespace>,
        method: Method,
    ) -> Result<Link, LinkError> {
        expect_type(program, "flow dissector", &[ProgramType::FLOW_DISSECTOR])?;
        of_namespace(program, namespace, AttachType::FLOW_DISSECTOR, method)
    }

    /// Attaches a program to netfilter, in `namespace` or the calling
    /// thread's.
    ///
    /// Requires at least Linux 6.4.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::Attach`], with `EBUSY` if the
    /// priority is taken.
    pub fn netfilter(
        program: &Program,
        namespace: Option<&NetNamespace>,
        options: NetfilterOptions,
    ) -> Result<Link, LinkError> {
        expect_type(program, "netfilter hook", &[ProgramType::NETFILTER])?;
        let create = LinkCreate {
            object: program.as_fd(),
            target: Target::None,
            attach_type: AttachType::NETFILTER,
            flags: 0,
            options: LinkOptions::Netfilter {
                family: match options.family {
                    NetfilterFamily::Ipv4 => 2,
                    NetfilterFamily::Ipv6 => 10,
                },
                hook: match options.hook {
                    NetfilterHook::PreRouting => 0,
                    NetfilterHook::LocalIn => 1,
                    NetfilterHook::Forward => 2,
                    NetfilterHook::LocalOut => 3,
                    NetfilterHook::PostRouting => 4,
                },
                priority: options.priority,
                flags: match options.fragments {
                    Fragments::AsTheyCome => 0,
                    Fragments::Reassembled => F_NETFILTER_IP_DEFRAG,
                },
            },
        };
        let target = format!(
            "netfilter {:?} {:?}, priority {}{}",
            options.family,
            options.hook,
            options.priority,
            of(namespace)
        );
        match net::link_create_in(namespace, &create) {
            Ok(fd) => Ok(net::link(target, Mechanism::Netfilter, fd)),
            Err(err) => {
                let tried = vec![("link", err)];
                Err(net::refused(Mechanism::Netfilter, target, tried))
            }
        }
    }
}

/// `" in net:[…]"` or nothing.
fn of(namespace: Option<&NetNamespace>) -> String {
    namespace.map(|n| format!(" in {n}")).unwrap_or_default()
}

fn of_namespace(
    program: &Program,
    namespace: Option<&NetNamespace>,
    attach_type: AttachType,
    method: Method,
) -> Result<Link, LinkError> {
    let target = format!("{attach_type}{}", of(namespace));
    let namespace = namespace
        .cloned()
        .map_or_else(NetNamespace::current, Ok)
        .map_err(|source| LinkError::Operation {
            target: target.clone(),
            source,
        })?;
    let mut tried = Vec::new();
    if method != Method::Classic {
        let create = LinkCreate {
            object: program.as_fd(),
            target: Target::Fd(namespace.as_fd()),
            attach_type,
            flags: 0,
            options: LinkOptions::None,
        };
        match net::link_create_in(None, &create) {
            Ok(fd) => return Ok(net::link(target, Mechanism::NetnsLink, fd)),
            Err(err) => {
                let next = method == Method::Auto && net::too_old(&err);
                tried.push(("link", err));
                if !next {
                    let last = Mechanism::NetnsLink;
                    return Err(refused(&namespace, attach_type, last, target, tried));
                }
            }
        }
    }
    // The kernel would replace another program without being asked.
    if let Some(by) = net::programs_on(Target::Fd(namespace.as_fd()), attach_type, 0)
        .ok()
        .and_then(|found| found.programs.into_iter().next())
    {
        let source = SysError::new("bpf(BPF_PROG_ATTACH)", Errno::EEXIST);
        return Err(LinkError::AlreadyAttached { target, by, source });
    }
    let owner = Owner::Namespace(namespace.clone());
    match ProgramAttached::new(owner, attach_type, AttachFlags::empty(), program, None) {
        Ok(attached) => {
            let inner = Inner::Standing(Standing::new(attached));
            Ok(Link::new(target, Mechanism::NetnsAttach, inner).after(tried))
        }
        Err(err) => {
            tried.push(("prog_attach", err));
            let last = Mechanism::NetnsAttach;
            Err(refused(&namespace, attach_type, last, target, tried))
        }
    }
}

#[cold]
fn refused(
    namespace: &NetNamespace,
    attach_type: AttachType,
    last: Mechanism,
    target: String,
    tried: Vec<(&'static str, SysError)>,
) -> LinkError {
    let holder = net::holder(&tried, Target::Fd(namespace.as_fd()), attach_type);
    net::refused_for(last, holder, target, tried)
}
