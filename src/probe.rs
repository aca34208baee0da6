//! Probes: which program is attached to which hook.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use ebpf_manager_bpf::elf::section;
use ebpf_manager_bpf::{
    AttachType, CgroupOptions, Collection, Direction, Errno, Interface, IterOver, Kprobe,
    KprobeMulti, Link, LinkError, Mechanism, Method, NetNamespace, NetfilterOptions, NetkitEnd,
    Order, PerfHook, Program, ProgramType, SysError, TcAttach, Tracing, Uprobe, UprobeMulti,
    XdpOptions,
};

/// Identifies a probe: the C function, and a name of the caller's choice for
/// when one function is attached several times.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProbeId {
    /// Distinguishes probes of the same function; empty if there is only one.
    pub uid: String,
    /// C function name of the program.
    pub function: String,
}

impl fmt::Display for ProbeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.function)?;
        if !self.uid.is_empty() {
            write!(f, " ({})", self.uid)?;
        }
        Ok(())
    }
}

/// A program to attach, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub(crate) id: ProbeId,
    pub(crate) hook: Hook,
    pub(crate) optional: bool,
}

impl Probe {
    /// The program of this C function, attached where its section name says.
    pub fn new(function: impl Into<String>) -> Probe {
        Probe {
            id: ProbeId {
                uid: String::new(),
                function: function.into(),
            },
            hook: Hook::Section,
            optional: false,
        }
    }

    /// Gives the probe a name of its own, needed when one function is attached
    /// several times.
    #[must_use]
    pub fn uid(mut self, uid: impl Into<String>) -> Probe {
        self.id.uid = uid.into();
        self
    }

    /// Attaches to `hook` instead of what the section name says.
    #[must_use]
    pub fn hook(mut self, hook: Hook) -> Probe {
        self.hook = hook;
        self
    }

    /// Lets the manager start without this probe; its [`Outcome`] says why.
    #[must_use]
    pub fn optional(mut self) -> Probe {
        self.optional = true;
        self
    }

    /// The probe's identity.
    pub fn id(&self) -> &ProbeId {
        &self.id
    }
}

/// A place in the kernel that programs are attached to, with the options that
/// belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Hook {
    /// What the program's section name says:
    /// `SEC("tracepoint/sched/sched_process_exec")`.
    #[default]
    Section,
    /// A tracepoint, as listed below `events` of tracefs. Linux 4.7.
    Tracepoint {
        /// Directory below `events`: `"sched"`.
        category: String,
        /// `"sched_process_exec"`.
        name: String,
    },
    /// A raw tracepoint. Linux 4.17.
    RawTracepoint {
        /// `"sched_process_exit"`.
        name: String,
    },
    /// Packets that arrive at an interface, before the network stack.
    /// Linux 4.8.
    Xdp {
        /// Where.
        interface: Interface,
        /// Mode and kernel interface.
        options: XdpOptions,
    },
    /// Packets of an interface, at traffic control. Linux 4.5.
    Tc {
        /// Where.
        interface: Interface,
        /// Which packets.
        direction: Direction,
        /// tcx or clsact.
        attach: TcAttach,
    },
    /// Packets of a netkit pair. Linux 6.7.
    Netkit {
        /// The primary.
        interface: Interface,
        /// Whose packets.
        end: NetkitEnd,
        /// Place among other programs.
        order: Order,
    },
    /// What the processes of a cgroup do. Linux 4.10.
    Cgroup {
        /// Absolute, or below the mount point of cgroups (version 2).
        path: PathBuf,
        /// Hook and kernel interface.
        options: CgroupOptions,
    },
    /// Choice of the socket for what arrives. Linux 5.9.
    SkLookup {
        /// Where; the calling thread's namespace if `None`.
        namespace: Option<NetNamespace>,
    },
    /// Taking packets apart for hashing. Linux 4.20.
    FlowDissector {
        /// Where; the calling thread's namespace if `None`.
        namespace: Option<NetNamespace>,
        /// Kernel interface.
        method: Method,
    },
    /// Packets at netfilter. Linux 6.4.
    Netfilter {
        /// Where; the calling thread's namespace if `None`.
        namespace: Option<NetNamespace>,
        /// Protocol, point and priority.
        options: NetfilterOptions,
    },
    /// What a socket receives. Linux 3.19.
    SocketFilter {
        /// The socket, kept open.
        socket: Socket,
    },
    /// Choice among the sockets of a reuseport group. Linux 4.5.
    ReusePort {
        /// One of them, kept open.
        socket: Socket,
    },
    /// Data of the sockets in a map. Linux 4.14.
    Sockmap {
        /// The map, of the same object.
        map: String,
        /// Kernel interface.
        method: Method,
    },
    /// An infrared receiver. Linux 4.18.
    Lirc {
        /// `"/dev/lirc0"`.
        device: PathBuf,
    },
    /// A kernel function's entry or return. Linux 4.1.
    Kprobe(Kprobe),
    /// Many kernel functions. One link from Linux 5.18.
    KprobeMulti(KprobeMulti),
    /// A place in an executable or library. Linux 4.3.
    Uprobe(Uprobe),
    /// Many places in an executable or library. One link from Linux 6.6.
    UprobeMulti(UprobeMulti),
    /// A counter. Linux 4.9.
    PerfEvent(PerfHook),
    /// What the program was loaded for: fentry, fexit, fmod_ret, freplace, LSM
    /// and tp_btf. Linux 5.5.
    Tracing(Tracing),
    /// An iterator over everything of its kind. Linux 5.8.
    Iter,
}

impl From<Kprobe> for Hook {
    fn from(probe: Kprobe) -> Hook {
        Hook::Kprobe(probe)
    }
}

impl From<Uprobe> for Hook {
    fn from(probe: Uprobe) -> Hook {
        Hook::Uprobe(probe)
    }
}

/// A socket that a program is attached to. Clones are the same socket.
#[derive(Clone, Debug)]
pub struct Socket(Arc<OwnedFd>);

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Socket {
        Socket(Arc::new(fd))
    }
}

impl PartialEq for Socket {
    fn eq(&self, other: &Socket) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Socket {}

impl Hook {
    /// The tracepoint `category/name`.
    pub fn tracepoint(category: impl Into<String>, name: impl Into<String>) -> Hook {
        Hook::Tracepoint {
            category: category.into(),
            name: name.into(),
        }
    }

    /// The raw tracepoint `name`.
    pub fn raw_tracepoint(name: impl Into<String>) -> Hook {
        Hook::RawTracepoint { name: name.into() }
    }

    /// XDP of an interface, by link if the kernel can and in the driver if
    /// that can.
    pub fn xdp(interface: impl Into<Interface>) -> Hook {
        Hook::Xdp {
            interface: interface.into(),
            options: XdpOptions::default(),
        }
    }

    /// Traffic control of an interface, by tcx if the kernel can.
    pub fn tc(interface: impl Into<Interface>, direction: Direction) -> Hook {
        Hook::Tc {
            interface: interface.into(),
            direction,
            attach: TcAttach::default(),
        }
    }

    /// A cgroup, by link if the kernel can; the program's section says which
    /// of its hooks.
    pub fn cgroup(path: impl Into<PathBuf>) -> Hook {
        Hook::Cgroup {
            path: path.into(),
            options: CgroupOptions::default(),
        }
    }

    /// The hook that a section name stands for; `None` if it names no target
    /// or a kind of hook that this version does not attach.
    fn of_section(program: &Program) -> Option<Hook> {
        match (program.program_type(), program.attach_type()) {
            (ProgramType::SK_LOOKUP, _) => return Some(Hook::SkLookup { namespace: None }),
            (ProgramType::FLOW_DISSECTOR, _) => {
                return Some(Hook::FlowDissector {
                    namespace: None,
                    method: Method::Auto,
                });
            }
            (ProgramType::TRACING, Some(AttachType::TRACE_ITER)) => return Some(Hook::Iter),
            (ProgramType::TRACING | ProgramType::EXT, _)
            | (ProgramType::LSM, Some(AttachType::LSM_MAC)) => {
                return Some(Hook::Tracing(Tracing::new()));
            }
            _ => {}
        }
        let target = program.target()?;
        match program.program_type() {
            ProgramType::TRACEPOINT => target
                .split_once('/')
                .map(|(category, name)| Hook::tracepoint(category, name)),
            ProgramType::RAW_TRACEPOINT | ProgramType::RAW_TRACEPOINT_WRITABLE => {
                Some(Hook::raw_tracepoint(target))
            }
            ProgramType::KPROBE => Hook::of_probe_section(program.section(), target),
            _ => None,
        }
    }

    /// `kprobe/vfs_read+8`, `ksyscall/openat`, `kprobe.multi/tcp_*`,
    /// `uprobe/libc.so.6:getpid`, `uprobe.multi//bin/bash:*`.
    fn of_probe_section(section: &str, target: &str) -> Option<Hook> {
        let prefix = section::parse(section).prefix;
        let prefix = prefix.strip_suffix(".s").unwrap_or(prefix);
        let returns = prefix.starts_with("kret") || prefix.starts_with("uret");
        Some(match prefix {
            "kprobe" | "kretprobe" => {
                let (symbol, offset) = split_offset(target);
                let probe = Kprobe::new(symbol).offset(offset);
                Hook::Kprobe(if returns { probe.on_return() } else { probe })
            }
            "ksyscall" | "kretsyscall" => {
                let probe = Kprobe::syscall(target);
                Hook::Kprobe(if returns { probe.on_return() } else { probe })
            }
            "kprobe.multi" | "kretprobe.multi" => {
                let probe = KprobeMulti::pattern(target);
                Hook::KprobeMulti(if returns { probe.on_return() } else { probe })
            }
            "uprobe" | "uretprobe" => {
                let (path, place) = target.rsplit_once(':')?;
                let (symbol, offset) = split_offset(place);
                let probe = match number(symbol) {
                    Some(offset) => Uprobe::offset(path, offset),
                    None => Uprobe::symbol(path, symbol).into_symbol(offset),
                };
                Hook::Uprobe(if returns { probe.on_return() } else { probe })
            }
            "uprobe.multi" | "uretprobe.multi" => {
                let (path, pattern) = target.rsplit_once(':')?;
                let probe = UprobeMulti::pattern(path, pattern);
                Hook::UprobeMulti(if returns { probe.on_return() } else { probe })
            }
            _ => return None,
        })
    }

    /// Attaches `program` of `collection`; `Ok(None)` if the section name does
    /// not say where.
    pub(crate) fn attach(
        &self,
        program: &Program,
        collection: &Collection,
    ) -> Result<Option<Link>, LinkError> {
        let of_section;
        let hook = match self {
            Hook::Section => match Hook::of_section(program) {
                Some(hook) => {
                    of_section = hook;
                    &of_section
                }
                None => return Ok(None),
            },
            hook => hook,
        };
        let link = match hook {
            Hook::Section => return Ok(None),
            Hook::Tracepoint { category, name } => Link::tracepoint(program, category, name),
            Hook::RawTracepoint { name } => Link::raw_tracepoint(program, name),
            Hook::Xdp { interface, options } => Link::xdp(program, interface, *options),
            Hook::Tc {
                interface,
                direction,
                attach,
            } => Link::tc(program, interface, *direction, attach),
            Hook::Netkit {
                interface,
                end,
                order,
            } => Link::netkit(program, interface, *end, *order),
            Hook::Cgroup { path, options } => Link::cgroup(program, path, *options),
            Hook::SkLookup { namespace } => Link::sk_lookup(program, namespace.as_ref()),
            Hook::FlowDissector { namespace, method } => {
                Link::flow_dissector(program, namespace.as_ref(), *method)
            }
            Hook::Netfilter { namespace, options } => {
                Link::netfilter(program, namespace.as_ref(), *options)
            }
            Hook::SocketFilter { socket } => Link::socket_filter(program, socket.0.as_fd()),
            Hook::ReusePort { socket } => Link::reuseport(program, socket.0.as_fd()),
            Hook::Sockmap { map, method } => match collection.map(map) {
                Some(map) => Link::sockmap(program, map, *method),
                None => Err(LinkError::NoTarget {
                    kind: "map of sockets",
                    name: map.clone(),
                    source: SysError::new("lookup in the object", Errno::ENOENT),
                    cure: None,
                }),
            },
            Hook::Lirc { device } => Link::lirc(program, device),
            Hook::Kprobe(probe) => Link::kprobe(program, probe),
            Hook::KprobeMulti(probe) => Link::kprobe_multi(program, probe),
            Hook::Uprobe(probe) => Link::uprobe(program, probe),
            Hook::UprobeMulti(probe) => Link::uprobe_multi(program, probe),
            Hook::PerfEvent(hook) => Link::perf_event(program, hook),
            Hook::Tracing(hook) => Link::tracing(program, hook),
            Hook::Iter => Link::iter(program, IterOver::All),
        };
        link.map(Some)
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

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Not attached at the moment.
    Detached,
    /// Attached, by this kernel interface.
    Attached(Mechanism),
    /// It could not be attached, and was optional.
    Unavailable(Arc<LinkError>),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Detached => f.write_str("detached"),
            Outcome::Attached(mechanism) => write!(f, "attached by {mechanism}"),
            Outcome::Unavailable(err) => write!(f, "unavailable: {err}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_name_probes() {
        let hook = |section: &str, target: &str| Hook::of_probe_section(section, target);
        assert_eq!(
            hook("kprobe/vfs_read+0x8", "vfs_read+0x8"),
            Some(Hook::Kprobe(Kprobe::new("vfs_read").offset(8)))
        );
        assert_eq!(
            hook("kretprobe/vfs_read", "vfs_read"),
            Some(Hook::Kprobe(Kprobe::new("vfs_read").on_return()))
        );
        assert_eq!(
            hook("kretsyscall/openat", "openat"),
            Some(Hook::Kprobe(Kprobe::syscall("openat").on_return()))
        );
        assert_eq!(
            hook("?kprobe.multi/tcp_*", "tcp_*"),
            Some(Hook::KprobeMulti(KprobeMulti::pattern("tcp_*")))
        );
        assert_eq!(
            hook("uprobe.s//bin/bash:readline", "/bin/bash:readline"),
            Some(Hook::Uprobe(Uprobe::symbol("/bin/bash", "readline")))
        );
        assert_eq!(
            hook("uretprobe//bin/bash:0x1234", "/bin/bash:0x1234"),
            Some(Hook::Uprobe(
                Uprobe::offset("/bin/bash", 0x1234).on_return()
            ))
        );
        assert_eq!(
            hook("uprobe/libc.so.6:getpid+4", "libc.so.6:getpid+4"),
            Some(Hook::Uprobe(
                Uprobe::symbol("libc.so.6", "getpid").into_symbol(4)
            ))
        );
        assert_eq!(
            hook("uprobe.multi/libc.so.6:get*", "libc.so.6:get*"),
            Some(Hook::UprobeMulti(UprobeMulti::pattern("libc.so.6", "get*")))
        );
        // No file to look in.
        assert_eq!(hook("uprobe/readline", "readline"), None);
        assert_eq!(hook("kprobe.session/x", "x"), None);
    }
}
