//! Links: attachments that a descriptor holds.

use std::ffi::{CStr, c_char};
use std::os::fd::{BorrowedFd, OwnedFd};

use super::{Relative, Target, bpf, bpf_fd, invalid, len32, num, num_or_none};
use crate::Result;
use crate::abi::attr::{self, Ptr};
use crate::abi::bpf::{AttachFlags, AttachType, CgroupIterOrder, Command};
use crate::abi::pod::bytes_of;

/// A link to create.
#[derive(Clone, Copy, Debug)]
pub struct LinkCreate<'a> {
    /// The program, or the map of a struct_ops link (6.4).
    pub object: BorrowedFd<'a>,
    /// What to attach to.
    pub target: Target<'a>,
    /// Hook.
    pub attach_type: AttachType,
    /// Flags of the hook: `XDP_FLAGS_*`, [`AttachFlags`]. Those that announce
    /// one of the options are added.
    pub flags: u32,
    /// What the kind of link takes besides.
    pub options: LinkOptions<'a>,
}

/// What a kind of link takes besides program, target and hook.
#[derive(Clone, Copy, Debug)]
pub enum LinkOptions<'a> {
    /// Nothing.
    None,
    /// Function of the target program, for freplace (5.10).
    TargetBtfId(u32),
    /// Iterator. Linux 5.8.
    Iter(IterTarget<'a>),
    /// Perf event, which is the target. Linux 5.15.
    PerfEvent {
        /// What `bpf_get_attach_cookie` returns.
        cookie: u64,
    },
    /// fentry, fexit, fmod_ret, LSM, tp_btf and freplace with a cookie.
    /// Linux 5.19.
    Tracing {
        /// Function of the target program, 0 for what the program was loaded
        /// for.
        target_btf_id: u32,
        /// What `bpf_get_attach_cookie` returns.
        cookie: u64,
    },
    /// Kernel functions. Linux 5.18.
    KprobeMulti {
        /// The functions.
        symbols: KprobeSymbols<'a>,
        /// A cookie for each function, or none at all.
        cookies: &'a [u64],
        /// [`F_KPROBE_MULTI_RETURN`](crate::abi::bpf::F_KPROBE_MULTI_RETURN).
        flags: u32,
    },
    /// Places of a user binary. Linux 6.6.
    UprobeMulti {
        /// The binary.
        path: &'a CStr,
        /// Offsets into the file.
        offsets: &'a [u64],
        /// File offset of a semaphore for each place, or none at all.
        ref_ctr_offsets: &'a [u64],
        /// A cookie for each place, or none at all.
        cookies: &'a [u64],
        /// [`F_UPROBE_MULTI_RETURN`](crate::abi::bpf::F_UPROBE_MULTI_RETURN).
        flags: u32,
        /// Only this process, 0 for every one.
        pid: u32,
    },
    /// Netfilter. Linux 6.4.
    Netfilter {
        /// `NFPROTO_*`.
        family: u32,
        /// `NF_INET_*`.
        hook: u32,
        /// Lower runs earlier; each priority is taken once.
        priority: i32,
        /// [`F_NETFILTER_IP_DEFRAG`](crate::abi::bpf::F_NETFILTER_IP_DEFRAG).
        flags: u32,
    },
    /// Position among the programs of a hook: tcx (6.6), netkit (6.7) and
    /// cgroup (6.17).
    Order {
        /// Neighbour, with [`AttachFlags::BEFORE`] or [`AttachFlags::AFTER`].
        relative: Option<Relative<'a>>,
        /// Fail with `ESTALE` if the hook has changed since this revision; 0
        /// for any.
        expected_revision: u64,
    },
}

/// Kernel functions to probe.
#[derive(Clone, Copy, Debug)]
pub enum KprobeSymbols<'a> {
    /// By name.
    Names(&'a [&'a CStr]),
    /// By address.
    Addresses(&'a [u64]),
}

/// What an iterator walks.
#[derive(Clone, Copy, Debug)]
pub enum IterTarget<'a> {
    /// Everything of its kind.
    All,
    /// Elements of a map.
    Map(BorrowedFd<'a>),
    /// cgroups. Linux 6.1.
    Cgroup {
        /// Way to walk.
        order: CgroupIterOrder,
        /// Where to start: a descriptor, or
        cgroup: Option<BorrowedFd<'a>>,
        /// an id; the root if neither is given.
        cgroup_id: u64,
    },
    /// One thread or the threads of one process; 0 for no limit. Linux 6.1.
    Task {
        /// Thread.
        tid: u32,
        /// Process.
        pid: u32,
    },
}

/// `BPF_LINK_CREATE`. Linux 5.7. Closing the last descriptor detaches, unless
/// the link is pinned.
///
/// # Errors
/// `EINVAL` where the hook has no links on this kernel; `E2BIG` if an option
/// is set that it does not know.
pub fn link_create(create: &LinkCreate<'_>) -> Result<OwnedFd> {
    const COMMAND: Command = Command::LINK_CREATE;
    let names: Vec<*const c_char>;
    let iter_map: attr::IterMap;
    let iter_cgroup: attr::IterCgroup;
    let iter_task: attr::IterTask;
    let mut attr = attr::LinkCreate {
        prog_or_map_fd: num(create.object),
        target_fd_or_ifindex: create.target.value(),
        attach_type: create.attach_type,
        flags: create.flags,
        ..Default::default()
    };
    match create.options {
        LinkOptions::None => {}
        LinkOptions::TargetBtfId(id) => attr.extra.target_btf_id = id,
        LinkOptions::Iter(target) => {
            let info = match target {
                IterTarget::All => &[],
                IterTarget::Map(map) => {
                    iter_map = attr::IterMap { map_fd: num(map) };
                    bytes_of(&iter_map)
                }
                IterTarget::Cgroup {
                    order,
                    cgroup,
                    cgroup_id,
                } => {
                    iter_cgroup = attr::IterCgroup {
                        order,
                        cgroup_fd: num_or_none(cgroup),
                        cgroup_id,
                    };
                    bytes_of(&iter_cgroup)
                }
                IterTarget::Task { tid, pid } => {
                    iter_task = attr::IterTask {
                        tid,
                        pid,
                        pid_fd: 0,
                    };
                    bytes_of(&iter_task)
                }
            };
            attr.extra.iter = attr::LinkIter {
                iter_info: Ptr::of(info),
                iter_info_len: info.len() as u32,
                ..Default::default()
            };
        }
        LinkOptions::PerfEvent { cookie } => attr.extra.perf_event_cookie = cookie,
        LinkOptions::Tracing {
            target_btf_id,
            cookie,
        } => {
            attr.extra.tracing = attr::LinkTracing {
                target_btf_id,
                cookie,
                ..Default::default()
            };
        }
        LinkOptions::KprobeMulti {
            symbols,
            cookies,
            flags,
        } => {
            let (syms, addrs, count) = match symbols {
                KprobeSymbols::Names(list) => {
                    names = list.iter().map(|name| name.as_ptr()).collect();
                    (Ptr::of_str_array(&names), Ptr::NULL, list.len())
                }
                KprobeSymbols::Addresses(list) => (Ptr::NULL, Ptr::of(list), list.len()),
            };
            attr.extra.kprobe_multi = attr::LinkKprobeMulti {
                flags,
                cnt: len32(COMMAND, count)?,
                syms,
                addrs,
                cookies: per_place(cookies, count)?,
            };
        }
        LinkOptions::UprobeMulti {
            path,
            offsets,
            ref_ctr_offsets,
            cookies,
            flags,
            pid,
        } => {
            attr.extra.uprobe_multi = attr::LinkUprobeMulti {
                path: Ptr::of_str(path),
                offsets: Ptr::of(offsets),
                ref_ctr_offsets: per_place(ref_ctr_offsets, offsets.len())?,
                cookies: per_place(cookies, offsets.len())?,
                cnt: len32(COMMAND, offsets.len())?,
                flags,
                pid,
                ..Default::default()
            };
        }
        LinkOptions::Netfilter {
            family,
            hook,
            priority,
            flags,
        } => {
            attr.extra.netfilter = attr::LinkNetfilter {
                pf: family,
                hooknum: hook,
                priority,
                flags,
            };
        }
        LinkOptions::Order {
            relative,
            expected_revision,
        } => {
            let (value, flags) = Relative::value(relative);
            attr.flags |= flags.bits();
            attr.extra.order = attr::LinkOrder {
                relative_fd_or_id: value,
                expected_revision,
                ..Default::default()
            };
        }
    }
    // SAFETY: each count was taken from the list it counts, optional lists are
    // null or as long, strings are terminated, and the kernel only reads.
    unsafe { bpf_fd(COMMAND, &mut attr) }
}

/// A list with one value for each of `count` places, or none.
fn per_place(values: &[u64], count: usize) -> Result<Ptr<'_>> {
    if !values.is_empty() && values.len() != count {
        return Err(invalid(
            Command::LINK_CREATE,
            "one value for each place, or none",
        ));
    }
    Ok(Ptr::of(values))
}

/// `BPF_LINK_UPDATE`: puts `new` in the place of the link's program, or of its
/// map (6.4), if it is still `old`. Linux 5.7.
///
/// # Errors
/// `EPERM` if it is not `old` any more; `EINVAL` for kinds of link that are
/// never updated.
pub fn link_update(
    link: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    old: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let flags = match old {
        Some(_) => AttachFlags::REPLACE,
        None => AttachFlags::empty(),
    };
    let mut attr = attr::LinkUpdate {
        link_fd: num(link),
        new_prog_or_map_fd: num(new),
        flags: flags.bits(),
        old_prog_or_map_fd: num_or_none(old),
    };
    // SAFETY: the attribute holds no address.
    unsafe { bpf(Command::LINK_UPDATE, &mut attr) }?;
    Ok(())
}

/// `BPF_LINK_DETACH`: detaches although descriptors or pins remain. Linux 5.9.
///
/// # Errors
/// `EOPNOTSUPP` for kinds of link without it: tracing, perf event, multi.
pub fn link_detach(link: BorrowedFd<'_>) -> Result<()> {
    let mut attr = attr::LinkDetach { link_fd: num(link) };
    // SAFETY: the attribute holds no address.
    unsafe { bpf(Command::LINK_DETACH, &mut attr) }?;
    Ok(())
}

/// `BPF_ITER_CREATE`: a descriptor that reads as what the iterator of `link`
/// prints. Linux 5.8.
pub fn iter_create(link: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut attr = attr::IterCreate {
        link_fd: num(link),
        flags: 0,
    };
    // SAFETY: the attribute holds no address.
    unsafe { bpf_fd(Command::ITER_CREATE, &mut attr) }
}

/// `BPF_RAW_TRACEPOINT_OPEN`: attaches to the tracepoint `name`; without a
/// name to what the program was loaded for, which is how fentry and LSM
/// programs attach before 5.19. Linux 4.17; a link since 5.8. `cookie` is what
/// `bpf_get_attach_cookie` returns, 0 for none; Linux 6.10.
///
/// # Errors
/// `ENOENT` if there is no such tracepoint.
pub fn raw_tracepoint_open(
    name: Option<&CStr>,
    prog: BorrowedFd<'_>,
    cookie: u64,
) -> Result<OwnedFd> {
    let mut attr = attr::RawTracepointOpen {
        name: name.map_or(Ptr::NULL, Ptr::of_str),
        prog_fd: num(prog),
        cookie,
        ..Default::default()
    };
    // SAFETY: the kernel reads `name` up to its terminator.
    unsafe { bpf_fd(Command::RAW_TRACEPOINT_OPEN, &mut attr) }
}
