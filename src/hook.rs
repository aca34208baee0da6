//! Hooks: where programs are attached.
//!
//! A hook carries its own way of attaching, so that a program that names no
//! XDP hook does not contain rtnetlink. What `attach_by_section` reaches is in
//! every manager; add there only what section names alone can say.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use ebpf_manager_bpf::elf::section;
use ebpf_manager_bpf::{
    AttachType, CgroupOptions, Collection, Direction, Errno, Interface, IterOver, Kprobe,
    KprobeMulti, Link, LinkError, LwtRoute, Method, NetNamespace, NetfilterOptions, NetkitEnd,
    Order, PerfHook, Program, ProgramType, SysError, TcAttach, Tracing, Uprobe, UprobeMulti, Usdt,
    XdpOptions, remove_stale_probe_events,
};

use crate::defaults::Defaults;
use crate::probe::ProbeId;

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
            attach: Arc::new(|site| attach_by_section(site).transpose()),
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
    fn kprobe(&self, mut probe: Kprobe) -> Result<Link, LinkError> {
        self.label(&mut probe.label);
        self.defaults.complete(&mut probe)?;
        Link::kprobe(self.program, &probe)
    }

    fn uprobe(&self, mut probe: Uprobe) -> Result<Link, LinkError> {
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

/// Attaches where the section name says; `None` if it names no target or a
/// kind of hook that needs more than a name.
fn attach_by_section(site: &Site<'_>) -> Option<Result<Link, LinkError>> {
    let Site {
        program,
        collection,
        ..
    } = *site;
    if let Some(hook) = site.defaults.hook_of(program.section()) {
        // One that leaves it to the section is not asked again.
        let defaults = &site.defaults.without_hooks();
        return hook.attach(&Site { defaults, ..*site }).transpose();
    }
    match (program.program_type(), program.attach_type()) {
        (ProgramType::SK_LOOKUP, _) => return Some(Link::sk_lookup(program, None)),
        (ProgramType::FLOW_DISSECTOR, _) => {
            return Some(Link::flow_dissector(program, None, Method::Auto));
        }
        (ProgramType::TRACING, Some(AttachType::TRACE_ITER)) => {
            return Some(Link::iter(program, IterOver::All));
        }
        (ProgramType::TRACING | ProgramType::EXT, _)
        | (ProgramType::LSM, Some(AttachType::LSM_MAC)) => {
            return Some(Link::tracing(program, &Tracing::new()));
        }
        _ => {}
    }
    let target = program.target()?;
    match program.program_type() {
        ProgramType::TRACEPOINT => target
            .split_once('/')
            .map(|(category, name)| Link::tracepoint(program, category, name)),
        ProgramType::RAW_TRACEPOINT | ProgramType::RAW_TRACEPOINT_WRITABLE => {
            Some(Link::raw_tracepoint(program, target))
        }
        ProgramType::KPROBE => {
            SectionProbe::parse(program.section(), target).map(|probe| match probe {
                SectionProbe::Kprobe(probe) => site.kprobe(probe),
                SectionProbe::KprobeMulti(probe) => Link::kprobe_multi(program, &probe),
                SectionProbe::Uprobe(probe) => site.uprobe(probe),
                SectionProbe::UprobeMulti(probe) => Link::uprobe_multi(program, &probe),
                SectionProbe::Usdt(probe) => collection
                    .usdt_specs()
                    .and_then(|specs| Link::usdt(program, specs.as_ref(), &probe)),
            })
        }
        _ => None,
    }
}

/// What the section name of a program of type kprobe stands for.
#[cfg_attr(test, derive(Debug, PartialEq))]
enum SectionProbe {
    Kprobe(Kprobe),
    KprobeMulti(KprobeMulti),
    Uprobe(Uprobe),
    UprobeMulti(UprobeMulti),
    Usdt(Usdt),
}

impl SectionProbe {
    /// `kprobe/vfs_read+8`, `ksyscall/openat`, `kprobe.multi/tcp_*`,
    /// `uprobe/libc.so.6:getpid`, `uprobe.multi//bin/bash:*`,
    /// `usdt/libc.so.6:libc:setjmp`.
    fn parse(section: &str, target: &str) -> Option<SectionProbe> {
        let prefix = section::parse(section).prefix;
        let prefix = prefix.strip_suffix(".s").unwrap_or(prefix);
        let returns = prefix.starts_with("kret") || prefix.starts_with("uret");
        Some(match prefix {
            "kprobe" | "kretprobe" => {
                let (symbol, offset) = split_offset(target);
                let probe = Kprobe::new(symbol).offset(offset);
                SectionProbe::Kprobe(if returns { probe.on_return() } else { probe })
            }
            "ksyscall" | "kretsyscall" => {
                let probe = Kprobe::syscall(target);
                SectionProbe::Kprobe(if returns { probe.on_return() } else { probe })
            }
            "kprobe.multi" | "kretprobe.multi" | "kprobe.session" => {
                let probe = KprobeMulti::pattern(target);
                SectionProbe::KprobeMulti(if returns { probe.on_return() } else { probe })
            }
            "uprobe" | "uretprobe" => {
                let (path, place) = target.rsplit_once(':')?;
                let (symbol, offset) = split_offset(place);
                let probe = match number(symbol) {
                    Some(offset) => Uprobe::offset(path, offset),
                    None => Uprobe::symbol(path, symbol).into_symbol(offset),
                };
                SectionProbe::Uprobe(if returns { probe.on_return() } else { probe })
            }
            "uprobe.multi" | "uretprobe.multi" | "uprobe.session" => {
                let (path, pattern) = target.rsplit_once(':')?;
                let probe = UprobeMulti::pattern(path, pattern);
                SectionProbe::UprobeMulti(if returns { probe.on_return() } else { probe })
            }
            "usdt" => {
                let (path, name) = target.rsplit_once(':')?;
                let (path, provider) = path.rsplit_once(':')?;
                SectionProbe::Usdt(Usdt::new(path, provider, name))
            }
            _ => return None,
        })
    }
}

/// `symbol+8` in its parts; without a number behind the sign it is all symbol.
fn split_offset(place: &str) -> (&str, u64) {
    place
        .rsplit_once('+')
        .and_then(|(symbol, offset)| Some((symbol, number(offset)?)))
        .unwrap_or((place, 0))
}

/// Decimal, or hexadecimal after `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_name_probes() {
        let hook = |section: &str, target: &str| SectionProbe::parse(section, target);
        assert_eq!(
            hook("kprobe/vfs_read+0x8", "vfs_read+0x8"),
            Some(SectionProbe::Kprobe(Kprobe::new("vfs_read").offset(8)))
        );
        assert_eq!(
            hook("kretprobe/vfs_read", "vfs_read"),
            Some(SectionProbe::Kprobe(Kprobe::new("vfs_read").on_return()))
        );
        assert_eq!(
            hook("kretsyscall/openat", "openat"),
            Some(SectionProbe::Kprobe(Kprobe::syscall("openat").on_return()))
        );
        assert_eq!(
            hook("?kprobe.multi/tcp_*", "tcp_*"),
            Some(SectionProbe::KprobeMulti(KprobeMulti::pattern("tcp_*")))
        );
        assert_eq!(
            hook("usdt.s//bin/a:b:c:d", "/bin/a:b:c:d"),
            Some(SectionProbe::Usdt(Usdt::new("/bin/a:b", "c", "d")))
        );
        assert_eq!(hook("usdt/libc.so.6:setjmp", "libc.so.6:setjmp"), None);
        assert_eq!(
            hook("uprobe.s//bin/bash:readline", "/bin/bash:readline"),
            Some(SectionProbe::Uprobe(Uprobe::symbol(
                "/bin/bash",
                "readline"
            )))
        );
        assert_eq!(
            hook("uretprobe//bin/bash:0x1234", "/bin/bash:0x1234"),
            Some(SectionProbe::Uprobe(
                Uprobe::offset("/bin/bash", 0x1234).on_return()
            ))
        );
        assert_eq!(
            hook("uprobe/libc.so.6:getpid+4", "libc.so.6:getpid+4"),
            Some(SectionProbe::Uprobe(
                Uprobe::symbol("libc.so.6", "getpid").into_symbol(4)
            ))
        );
        assert_eq!(
            hook("uprobe.multi/libc.so.6:get*", "libc.so.6:get*"),
            Some(SectionProbe::UprobeMulti(UprobeMulti::pattern(
                "libc.so.6",
                "get*"
            )))
        );
        // No file to look in.
        assert_eq!(hook("uprobe/readline", "readline"), None);
        assert_eq!(
            hook("kprobe.session/x", "x"),
            Some(SectionProbe::KprobeMulti(KprobeMulti::pattern("x")))
        );
    }
}
