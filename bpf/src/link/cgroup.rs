//! Control groups: by link, or by `BPF_PROG_ATTACH` on kernels before 5.7.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use ebpf_manager_sys::abi::bpf::{AttachFlags, AttachType, F_QUERY_EFFECTIVE, ProgramType};
use ebpf_manager_sys::bpf::{LinkCreate, LinkOptions, Target};
use ebpf_manager_sys::proc::{self, KernelVersion};
use ebpf_manager_sys::{Errno, SysError, fd};

use super::net::{self, HookPrograms, Method, Order};
use super::standing::{Owner, ProgramAttached, Standing};
use super::trace::expect_type;
use super::{Inner, Link, Mechanism};
use crate::cure::{self, Need};
use crate::error::LinkError;
use crate::program::Program;

/// How to attach to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CgroupOptions {
    /// The hook, for programs whose section does not fix one (`cgroup/skb`).
    pub attach_type: Option<AttachType>,
    /// Kernel interface.
    pub method: Method,
    /// Who else may attach there; [`Method::Classic`] only, because links
    /// always share.
    pub sharing: Sharing,
    /// Place among the programs of the same cgroup, links only: on kernels
    /// before 6.17 anything but the default is refused, not ignored.
    pub order: Order,
    /// When it runs, among the programs of cgroups above and below.
    pub turn: Turn,
}

/// When a program that shares its hook runs for a member of a cgroup below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Turn {
    /// After the programs of cgroups below.
    #[default]
    AfterThoseBelow,
    /// Before them (`BPF_F_PREORDER`), and after those above that do so too.
    /// Linux 6.15: refused before, not ignored.
    #[doc(alias = "BPF_F_PREORDER")]
    BeforeThoseBelow,
}

/// Who else may attach to the same hook of a cgroup and of those below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Everybody; all programs run, those of the parents last. Linux 4.15;
    /// below that [`Sharing::Override`].
    #[default]
    Multi,
    /// Nobody else here; a program of a cgroup below runs instead of this one.
    Override,
    /// Nobody else here or below.
    Exclusive,
}

/// First version that orders the programs of a cgroup.
const ORDER_SINCE: KernelVersion = KernelVersion::new(6, 17, 0);
/// First version whose programs run before those of cgroups below.
const TURN_SINCE: KernelVersion = KernelVersion::new(6, 15, 0);

/// Types whose programs are attached to cgroups.
const TYPES: [ProgramType; 9] = [
    ProgramType::CGROUP_SKB,
    ProgramType::CGROUP_SOCK,
    ProgramType::CGROUP_SOCK_ADDR,
    ProgramType::CGROUP_DEVICE,
    ProgramType::CGROUP_SYSCTL,
    ProgramType::CGROUP_SOCKOPT,
    ProgramType::SOCK_OPS,
    ProgramType::LSM,
    ProgramType::UNSPEC,
];

impl Link {
    /// Attaches a program to a cgroup: to `path` itself if it is absolute,
    /// else below the place where cgroups (version 2) are mounted.
    ///
    /// A link is used from Linux 5.7; below that `BPF_PROG_ATTACH`, shared
    /// with others if the kernel can (4.15). Requires at least Linux 4.10;
    /// many hooks came later.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::WrongAttachType`];
    /// [`LinkError::NoTarget`] if there is no such cgroup of version 2;
    /// [`LinkError::AlreadyAttached`] by somebody who does not share;
    /// [`LinkError::Attach`] with every way tried, `EINVAL` also if the hook
    /// is not known.
    pub fn cgroup(
        program: &Program,
        path: &Path,
        options: CgroupOptions,
    ) -> Result<Link, LinkError> {
        expect_type(program, "cgroup", &TYPES)?;
        let cgroup = open(path)?;
        let attach_type = attach_type(program, options.attach_type);
        net::expect_attach_type(program, attach_type)?;
        let target = format!("cgroup {} ({attach_type})", path.display());
        let mut tried = Vec::new();
        let turn = match options.turn {
            Turn::AfterThoseBelow => AttachFlags::empty(),
            Turn::BeforeThoseBelow => AttachFlags::PREORDER,
        };
        // Anywhere else would be a place not asked for.
        let too_old = |target, tried| {
            let cure = if options.order == Order::default() {
                net::needs("running before programs of cgroups below", TURN_SINCE)
            } else {
                net::needs("order among the programs of a cgroup", ORDER_SINCE)
            };
            LinkError::Attach {
                target,
                tried,
                cure,
            }
        };
        if options.method != Method::Classic {
            let plain = options.order == Order::default();
            let (order, flags) = if plain {
                (LinkOptions::None, AttachFlags::empty())
            } else {
                options.order.options()
            };
            let create = LinkCreate {
                object: program.as_fd(),
                target: Target::Fd(cgroup.as_fd()),
                attach_type,
                flags: (flags | turn).bits(),
                options: order,
            };
            match net::link_create_in(None, &create) {
                Ok(fd) => return Ok(net::link(target, Mechanism::CgroupLink, fd)),
                Err(err) => {
                    let old = net::too_old(&err);
                    tried.push(("link", err));
                    if old && (!plain || !turn.is_empty()) {
                        return Err(too_old(target, tried));
                    }
                    if !old || options.method == Method::Link {
                        let last = Mechanism::CgroupLink;
                        return Err(refused(&cgroup, attach_type, last, target, tried));
                    }
                }
            }
        }
        let ways: &[(&'static str, AttachFlags)] = match options.sharing {
            Sharing::Multi => &[
                ("prog_attach, multi", AttachFlags::ALLOW_MULTI),
                ("prog_attach, override", AttachFlags::ALLOW_OVERRIDE),
            ],
            Sharing::Override => &[("prog_attach, override", AttachFlags::ALLOW_OVERRIDE)],
            Sharing::Exclusive => &[("prog_attach", AttachFlags::empty())],
        };
        for &(name, flags) in ways {
            // Without ALLOW_MULTI the kernel replaces what is there.
            if !flags.contains(AttachFlags::ALLOW_MULTI)
                && let Ok(found) = net::programs_on(Target::Fd(cgroup.as_fd()), attach_type, 0)
                && let Some(by) = found.programs.into_iter().next()
            {
                let source = SysError::new("bpf(BPF_PROG_ATTACH)", Errno::EEXIST);
                return Err(LinkError::AlreadyAttached { target, by, source });
            }
            match attach(&cgroup, attach_type, flags | turn, program, None) {
                Ok(attached) => return Ok(standing(target, attached).after(tried)),
                Err(err) => {
                    let next = net::too_old(&err);
                    // How the kernel refuses a program that is there.
                    if next && let Some(id) = is_there(&cgroup, attach_type, program) {
                        let by = net::AttachedProgram::new(id, 0);
                        let source = err;
                        return Err(LinkError::AlreadyAttached { target, by, source });
                    }
                    tried.push((name, err));
                    if next && !turn.is_empty() {
                        return Err(too_old(target, tried));
                    }
                    if !next {
                        break;
                    }
                }
            }
        }
        let last = Mechanism::CgroupAttach;
        Err(refused(&cgroup, attach_type, last, target, tried))
    }

    /// Puts a program in the place of `expected`, which `BPF_PROG_ATTACH`
    /// attached there shared with others, without a gap. Detaching removes it.
    ///
    /// Requires at least Linux 5.6.
    ///
    /// # Errors
    /// As [`Link::cgroup`]; `ENOENT` if `expected` is not attached there.
    pub fn cgroup_replace(
        program: &Program,
        path: &Path,
        attach_type: Option<AttachType>,
        expected: &Program,
    ) -> Result<Link, LinkError> {
        expect_type(program, "cgroup", &TYPES)?;
        let cgroup = open(path)?;
        let attach_type = self::attach_type(program, attach_type);
        net::expect_attach_type(program, attach_type)?;
        let target = format!("cgroup {} ({attach_type})", path.display());
        let flags = AttachFlags::ALLOW_MULTI;
        match attach(&cgroup, attach_type, flags, program, Some(expected)) {
            Ok(attached) => Ok(standing(target, attached)),
            Err(err) => {
                let tried = vec![("prog_attach, replace", err)];
                Err(net::refused(Mechanism::CgroupAttach, target, tried))
            }
        }
    }
}

/// The programs attached to a cgroup's hook. Requires at least Linux 4.15.
///
/// # Errors
/// [`LinkError::NoTarget`] if there is no such cgroup;
/// [`LinkError::Operation`].
pub fn cgroup_programs(path: &Path, attach_type: AttachType) -> Result<HookPrograms, LinkError> {
    programs(path, attach_type, 0)
}

/// The programs that a hook runs for the members of a cgroup, those attached
/// to cgroups above included, in the order they run. Requires at least
/// Linux 4.15.
///
/// # Errors
/// As [`cgroup_programs`].
pub fn cgroup_programs_in_effect(
    path: &Path,
    attach_type: AttachType,
) -> Result<HookPrograms, LinkError> {
    programs(path, attach_type, F_QUERY_EFFECTIVE)
}

fn programs(path: &Path, attach_type: AttachType, flags: u32) -> Result<HookPrograms, LinkError> {
    let cgroup = open(path)?;
    net::programs_on(Target::Fd(cgroup.as_fd()), attach_type, flags).map_err(|source| {
        LinkError::Operation {
            target: format!("cgroup {} ({attach_type})", path.display()),
            source,
        }
    })
}

/// The hook: the caller's, else what the program was loaded for. Device and
/// sock_ops programs have one hook only and older sections do not say it.
fn attach_type(program: &Program, given: Option<AttachType>) -> AttachType {
    given
        .or(program.attach_type())
        .unwrap_or(match program.program_type() {
            ProgramType::SOCK_OPS => AttachType::CGROUP_SOCK_OPS,
            ProgramType::CGROUP_DEVICE => AttachType::CGROUP_DEVICE,
            ProgramType::CGROUP_SYSCTL => AttachType::CGROUP_SYSCTL,
            ProgramType::CGROUP_SOCK => AttachType::CGROUP_INET_SOCK_CREATE,
            ProgramType::LSM => AttachType::LSM_CGROUP,
            _ => AttachType::CGROUP_INET_INGRESS,
        })
}

/// Opens the directory of a cgroup.
fn open(path: &Path) -> Result<OwnedFd, LinkError> {
    let missing = |source| LinkError::NoTarget {
        kind: "cgroup",
        name: path.display().to_string(),
        source,
        cure: None,
    };
    let full: PathBuf = if path.is_absolute() {
        path.to_owned()
    } else {
        let mounts = proc::mounts_of("cgroup2").map_err(missing)?;
        let none = || SysError::new("mount of cgroup2", Errno::ENOENT);
        mounts.first().ok_or_else(none).map_err(missing)?.join(path)
    };
    File::open(&full)
        .map_err(|e| SysError::from_io("open", &e).with_path(&full))
        .and_then(|file| fd::dup(file.as_fd()))
        .map_err(missing)
}

fn attach(
    cgroup: &OwnedFd,
    attach_type: AttachType,
    flags: AttachFlags,
    program: &Program,
    replace: Option<&Program>,
) -> Result<ProgramAttached, SysError> {
    let owner = Owner::Fd(fd::dup(cgroup.as_fd())?);
    ProgramAttached::new(owner, attach_type, flags, program, replace)
}

/// The program's id, if it is on the hook.
#[cold]
fn is_there(cgroup: &OwnedFd, attach_type: AttachType, program: &Program) -> Option<u32> {
    let id = net::program_id(program.as_fd()).ok()?;
    let there = net::is_on(Target::Fd(cgroup.as_fd()), attach_type, id);
    there.is_ok_and(|there| there).then_some(id)
}

fn standing(target: String, attached: ProgramAttached) -> Link {
    let inner = Inner::Standing(Standing::new(attached));
    Link::new(target, Mechanism::CgroupAttach, inner)
}

/// Says who is in the way: a cgroup whose program does not share answers
/// `EPERM`, and so does a parent's.
#[cold]
fn refused(
    cgroup: &OwnedFd,
    attach_type: AttachType,
    last: Mechanism,
    target: String,
    tried: Vec<(&'static str, SysError)>,
) -> LinkError {
    // The directory is of another file system.
    if let Some((_, source)) = tried.last().filter(|(_, err)| err.is(Errno::EBADF)) {
        return LinkError::NoTarget {
            kind: "cgroup (version 2)",
            name: target,
            source: source.clone().with_detail("not below a mount of cgroup2"),
            cure: None,
        };
    }
    let taken = tried.last().is_some_and(|(_, err)| {
        err.is(Errno::EPERM) && cure::missing_capability(Need::Network).is_none()
    });
    let first = |flags| {
        let found = net::programs_on(Target::Fd(cgroup.as_fd()), attach_type, flags).ok()?;
        found.programs.first().map(|program| program.id)
    };
    let holder = taken.then(|| first(0).or_else(|| first(F_QUERY_EFFECTIVE)));
    net::refused_for(last, holder.flatten(), target, tried)
}
