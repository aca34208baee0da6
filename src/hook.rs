//! Hooks: where programs are attached.
//!
//! A hook carries its own way of attaching, so that a program that names no
//! XDP hook does not contain rtnetlink. What `attach_by_section` reaches is in
//! every manager; add there only what section names alone can say.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use ebpf_manager_bpf::{
    CgroupOptions, Collection, Direction, Errno, Interface, IterOver, Kprobe, KprobeMulti, Link,
    LinkError, LwtRoute, Method, NetNamespace, NetfilterOptions, NetkitEnd, Order, PerfHook,
    Program, ProgramType, SysError, TcAttach, Tracing, Uprobe, UprobeMulti, Usdt, XdpOptions,
    remove_stale_probe_events,
};

use crate::defaults::Defaults;
use crate::probe::ProbeId;
use crate::section;

/// What is attached, and on whose behalf.
#[derive(Clone, Copy)]
pub(crate) struct Site<'s> {
    pub(crate) id: &'s ProbeId,
    pub(crate) program: &'s Program,
    pub(crate) collection: &'s Collection,
    pub(crate) defaults: &'s Defaults,
}

/// `Ok(None)`: the section name does not say where.
type Attach = dyn Fn(&Site<'_>) -> Result<Option<Link>, LinkError> + Send + Sync;

/// A place in the kernel that programs are attached to, with the options that
/// belong to it. Clones share what it holds: a socket, a namespace.
#[derive(Clone)]
pub struct Hook {
    kind: &'static str,
    attach: Arc<Attach>,
    /// Removes what dead processes left of its kind.
    sweep: Option<Sweep>,
    /// The network namespace that it was given.
    namespace: Option<NetNamespace>,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hook").field(&self.kind).finish()
    }
}

impl Default for Hook {
    /// [`Hook::section`].
    fn default() -> Hook {
        Hook::section()
    }
}

impl From<Kprobe> for Hook {
    fn from(probe: Kprobe) -> Hook {
        Hook::kprobe(probe)
    }
}

impl From<KprobeMulti> for Hook {
    fn from(probe: KprobeMulti) -> Hook {
        Hook::kprobe_multi(probe)
    }
}

impl From<Uprobe> for Hook {
    fn from(probe: Uprobe) -> Hook {
        Hook::uprobe(probe)
    }
}

impl From<UprobeMulti> for Hook {
    fn from(probe: UprobeMulti) -> Hook {
        Hook::uprobe_multi(probe)
    }
}

impl From<Usdt> for Hook {
    fn from(probe: Usdt) -> Hook {
        Hook::usdt(probe)
    }
}

impl From<PerfHook> for Hook {
    fn from(hook: PerfHook) -> Hook {
        Hook::perf_event(hook)
    }
}

impl From<Tracing> for Hook {
    fn from(hook: Tracing) -> Hook {
        Hook::tracing(hook)
    }
}

impl Hook {
    /// What the program's section name says:
    /// `SEC("tracepoint/sched/sched_process_exec")`.
    pub fn section() -> Hook {
        Hook {
            kind: "section",
            attach: Arc::new(|site| section::attach(site).transpose()),
            sweep: Some(sweep_by_section),
            namespace: None,
        }
    }

    /// A hook that `attach` knows how to attach to, by any means: `kind` is
    /// for `Debug`. Called at each start, with the program and the collection
    /// that it is of.
    pub fn new(
        kind: &'static str,
        attach: impl Fn(&Program, &Collection) -> Result<Link, LinkError> + Send + Sync + 'static,
    ) -> Hook {
        Hook {
            kind,
            attach: Arc::new(move |site| attach(site.program, site.collection).map(Some)),
            sweep: None,
            namespace: None,
        }
    }

    fn sweeping(mut self, sweep: Sweep) -> Hook {
        self.sweep = Some(sweep);
        self
    }

    fn in_namespace(mut self, namespace: Option<NetNamespace>) -> Hook {
        self.namespace = namespace;
        self
    }

    /// What removes the leavings of dead processes where this is going to be
    /// attached.
    pub(crate) fn sweep(&self) -> Option<Sweep> {
        self.sweep
    }

    /// Whether it is in this network namespace, by its own declaration.
    pub(crate) fn is_in(&self, namespace: &NetNamespace) -> bool {
        self.namespace.as_ref() == Some(namespace)
    }

    /// The tracepoint `category/name`, as listed below `events` of tracefs.
    /// Linux 4.7.
    pub fn tracepoint(category: impl Into<String>, name: impl Into<String>) -> Hook {
        let (category, name) = (category.into(), name.into());
        Hook::new("tracepoint", move |program, _| {
            Link::tracepoint(program, &category, &name)
        })
    }

    /// The raw tracepoint `name`. Linux 4.17.
    pub fn raw_tracepoint(name: impl Into<String>) -> Hook {
        let name = name.into();
        Hook::new("raw tracepoint", move |program, _| {
            Link::raw_tracepoint(program, &name)
        })
    }

    /// A kernel function's entry or return. Linux 4.1. A tracefs event for it
    /// is labelled with the probe's [uid](crate::ProbeId::uid).
    pub fn kprobe(probe: Kprobe) -> Hook {
        Hook {
            attach: Arc::new(move |site| site.kprobe(probe.clone()).map(Some)),
            kind: "kprobe",
            sweep: None,
            namespace: None,
        }
        .sweeping(sweep_probe_events)
    }

    /// Many kernel functions. One link from Linux 5.18.
    pub fn kprobe_multi(probe: KprobeMulti) -> Hook {
        Hook::new("kprobe.multi", move |program, _| {
            Link::kprobe_multi(program, &probe)
        })
        .sweeping(sweep_probe_events)
    }

    /// A place in an executable or library. Linux 4.3.
    pub fn uprobe(probe: Uprobe) -> Hook {
        Hook {
            attach: Arc::new(move |site| site.uprobe(probe.clone()).map(Some)),
            kind: "uprobe",
            sweep: None,
            namespace: None,
        }
        .sweeping(sweep_probe_events)
    }

    /// Many places in an executable or library. One link from Linux 6.6.
    pub fn uprobe_multi(probe: UprobeMulti) -> Hook {
        Hook::new("uprobe.multi", move |program, _| {
            Link::uprobe_multi(program, &probe)
        })
        .sweeping(sweep_probe_events)
    }

    /// Places that the author of a user program marked. Linux 4.3, and 4.20
    /// for those with a counter.
    pub fn usdt(probe: Usdt) -> Hook {
        Hook::new("usdt", move |program, collection| {
            let specs = collection.usdt_specs()?;
            Link::usdt(program, specs.as_ref(), &probe)
        })
        .sweeping(sweep_probe_events)
    }

    /// A counter. Linux 4.9.
    pub fn perf_event(hook: PerfHook) -> Hook {
        Hook::new("perf event", move |program, _| {
            Link::perf_event(program, &hook)
        })
    }

    /// What the program was loaded for: fentry, fexit, fmod_ret, freplace, LSM
    /// and tp_btf. Linux 5.5.
    pub fn tracing(hook: Tracing) -> Hook {
        Hook::new("tracing", move |program, _| Link::tracing(program, &hook))
    }

    /// A structure of the kernel that programs fill, given by its map: the
    /// probe names any of its programs. Linux 5.6.
    pub fn struct_ops(map: impl Into<String>) -> Hook {
        let name = map.into();
        Hook::new("struct_ops", move |_, collection| {
            match collection.map(&name) {
                Some(map) => Link::struct_ops(map),
                None => Err(LinkError::NoTarget {
                    kind: "map of a structure",
                    name: name.clone(),
                    source: SysError::new("lookup in the object", Errno::ENOENT),
                    cure: None,
                }),
            }
        })
    }

    /// An iterator over everything of its kind. Linux 5.8.
    pub fn iter() -> Hook {
        Hook::new("iterator", |program, _| Link::iter(program, IterOver::All))
    }

    /// Packets that arrive at an interface, before the network stack: by link
    /// if the kernel can, and in the driver if that can. Linux 4.8.
    pub fn xdp(interface: impl Into<Interface>) -> Hook {
        Hook::xdp_with(interface, XdpOptions::default())
    }

    /// As [`Hook::xdp`], with mode and kernel interface.
    pub fn xdp_with(interface: impl Into<Interface>, options: XdpOptions) -> Hook {
        let interface = interface.into();
        let namespace = interface.declared_namespace().cloned();
        Hook::new("XDP", move |program, _| {
            Link::xdp(program, &interface, options)
        })
        .in_namespace(namespace)
    }

    /// Packets of an interface, at traffic control: by tcx if the kernel can.
    /// Linux 4.5.
    pub fn tc(interface: impl Into<Interface>, direction: Direction) -> Hook {
        Hook::tc_with(interface, direction, TcAttach::default())
    }

    /// As [`Hook::tc`], with the kernel interface and its options.
    pub fn tc_with(
        interface: impl Into<Interface>,
        direction: Direction,
        attach: TcAttach,
    ) -> Hook {
        let interface = interface.into();
        let namespace = interface.declared_namespace().cloned();
        Hook {
            kind: "traffic control",
            attach: Arc::new(move |site| {
                let attach = attach.with_uid(&site.id.uid);
                Link::tc(site.program, &interface, direction, &attach).map(Some)
            }),
            sweep: None,
            namespace,
        }
    }

    /// Packets of a netkit pair, given by its primary: whose packets, and the
    /// place among other programs. Linux 6.7.
    pub fn netkit(interface: impl Into<Interface>, end: NetkitEnd, order: Order) -> Hook {
        let interface = interface.into();
        let namespace = interface.declared_namespace().cloned();
        Hook::new("netkit", move |program, _| {
            Link::netkit(program, &interface, end, order)
        })
        .in_namespace(namespace)
    }

    /// What the processes of a cgroup do; the program's section says which of
    /// its hooks. The path is absolute or below the mount point of cgroups
    /// (version 2). By link if the kernel can. Linux 4.10.
    pub fn cgroup(path: impl Into<PathBuf>) -> Hook {
        Hook::cgroup_with(path, CgroupOptions::default())
    }

    /// As [`Hook::cgroup`], with hook and kernel interface.
    pub fn cgroup_with(path: impl Into<PathBuf>, options: CgroupOptions) -> Hook {
        let path = path.into();
        Hook::new("cgroup", move |program, _| {
            Link::cgroup(program, &path, options)
        })
    }

    /// Choice of the socket for what arrives in a network namespace, the
    /// calling thread's if `None`. Linux 5.9.
    pub fn sk_lookup(namespace: Option<NetNamespace>) -> Hook {
        let declared = namespace.clone();
        Hook::new("sk_lookup", move |program, _| {
            Link::sk_lookup(program, namespace.as_ref())
        })
        .in_namespace(declared)
    }

    /// Taking packets of a network namespace, the calling thread's if `None`,
    /// apart for hashing. Linux 4.20.
    pub fn flow_dissector(namespace: Option<NetNamespace>, method: Method) -> Hook {
        let declared = namespace.clone();
        Hook::new("flow dissector", move |program, _| {
            Link::flow_dissector(program, namespace.as_ref(), method)
        })
        .in_namespace(declared)
    }

    /// Packets at netfilter, in a network namespace, the calling thread's if
    /// `None`. Linux 6.4.
    pub fn netfilter(namespace: Option<NetNamespace>, options: NetfilterOptions) -> Hook {
        let declared = namespace.clone();
        Hook::new("netfilter", move |program, _| {
            Link::netfilter(program, namespace.as_ref(), options)
        })
        .in_namespace(declared)
    }

    /// What a socket receives. Keeps it open. Linux 3.19.
    pub fn socket_filter(socket: OwnedFd) -> Hook {
        Hook::new("socket filter", move |program, _| {
            Link::socket_filter(program, socket.as_fd())
        })
    }

    /// Choice among the sockets of a reuseport group, given by one of them.
    /// Keeps it open. Linux 4.5.
    pub fn reuseport(socket: OwnedFd) -> Hook {
        Hook::new("reuseport group", move |program, _| {
            Link::reuseport(program, socket.as_fd())
        })
    }

    /// Data of the sockets in a map of the same object. Linux 4.14.
    pub fn sockmap(map: impl Into<String>, method: Method) -> Hook {
        let name = map.into();
        Hook::new("sockmap", move |program, collection| {
            match collection.map(&name) {
                Some(map) => Link::sockmap(program, map, method),
                None => Err(LinkError::NoTarget {
                    kind: "map of sockets",
                    name: name.clone(),
                    source: SysError::new("lookup in the object", Errno::ENOENT),
                    cure: None,
                }),
            }
        })
    }

    /// Packets of a route, which is made for it. Linux 4.10.
    pub fn lwt(route: LwtRoute) -> Hook {
        let namespace = route.interface.declared_namespace().cloned();
        Hook::new("route", move |program, _| Link::lwt(program, &route)).in_namespace(namespace)
    }

    /// An infrared receiver: `/dev/lirc0`. Linux 4.18.
    pub fn lirc(device: impl Into<PathBuf>) -> Hook {
        let device = device.into();
        Hook::new("infrared receiver", move |program, _| {
            Link::lirc(program, &device)
        })
    }

    /// Attaches; `Ok(None)` if the section name does not say where.
    pub(crate) fn attach(&self, site: &Site<'_>) -> Result<Option<Link>, LinkError> {
        (self.attach)(site)
    }
}

impl Site<'_> {
    pub(crate) fn kprobe(&self, mut probe: Kprobe) -> Result<Link, LinkError> {
        self.label(&mut probe.label);
        self.defaults.complete(&mut probe)?;
        Link::kprobe(self.program, &probe)
    }

    pub(crate) fn uprobe(&self, mut probe: Uprobe) -> Result<Link, LinkError> {
        self.label(&mut probe.label);
        self.defaults.complete_user(&mut probe);
        Link::uprobe(self.program, &probe)
    }

    fn label(&self, label: &mut String) {
        if label.is_empty() {
            label.clone_from(&self.id.uid);
        }
    }
}

/// Sweeps for a program; false if there is nothing to sweep for it.
pub(crate) type Sweep = fn(&Program) -> bool;

/// Removes probe events of dead processes. Whatever goes wrong, they were
/// there before and do no harm.
fn sweep_probe_events(_: &Program) -> bool {
    let _ = remove_stale_probe_events();
    true
}

fn sweep_by_section(program: &Program) -> bool {
    program.program_type() == ProgramType::KPROBE && sweep_probe_events(program)
}
