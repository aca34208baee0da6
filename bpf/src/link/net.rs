//! What network hooks share: ways to attach, order among programs, errors.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ebpf_manager_sys::abi::bpf::{AttachFlags, AttachType};
use ebpf_manager_sys::abi::info::{ProgInfo, name_str};
use ebpf_manager_sys::bpf::{
    self as sys, LinkCreate, LinkOptions, ObjectKind, QueryBuffers, Relative, Target,
};
use ebpf_manager_sys::{Errno, SysError};

use super::interface::{Interface, NetNamespace};
use super::{Link, Mechanism};
pub(super) use crate::cure::needs;
use crate::cure::{self, Need};
use crate::error::LinkError;
use crate::program::Program;

/// The kernel interface to attach with, where there are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Method {
    /// A link where the kernel has one for this hook, else what came before.
    #[default]
    Auto,
    /// A `bpf_link` or nothing. It goes with its last descriptor, and nobody
    /// else can replace the program.
    Link,
    /// What came before links: rtnetlink for XDP, `BPF_PROG_ATTACH` for
    /// cgroups and socket maps. Others can replace the program, and it stays
    /// attached if this process is killed.
    Classic,
}

/// Where a program goes among those of its hook: tcx (Linux 6.6), netkit
/// (6.7), cgroup links (6.17).
///
/// Ids come from [`Program::id`](crate::Program::id) and [`Link::id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Order {
    /// The place.
    pub place: Place,
    /// Fail with `ESTALE` unless the hook's list still has this revision, as
    /// [`Interface::tcx_programs`] gave it; 0 for any.
    pub expected_revision: u64,
}

/// A place among the programs of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Place {
    /// Behind all others.
    #[default]
    Last,
    /// In front of all others.
    First,
    /// In front of the program with this id.
    BeforeProgram(u32),
    /// Behind the program with this id.
    AfterProgram(u32),
    /// In front of the link with this id.
    BeforeLink(u32),
    /// Behind the link with this id.
    AfterLink(u32),
}

impl Order {
    /// The link's options, and the flags that go with them.
    pub(super) fn options(self) -> (LinkOptions<'static>, AttachFlags) {
        let (relative, flags) = match self.place {
            Place::Last => (None, AttachFlags::empty()),
            Place::First => (None, AttachFlags::BEFORE),
            Place::BeforeProgram(id) => (Some(Relative::ProgramId(id)), AttachFlags::BEFORE),
            Place::AfterProgram(id) => (Some(Relative::ProgramId(id)), AttachFlags::AFTER),
            Place::BeforeLink(id) => (Some(Relative::LinkId(id)), AttachFlags::BEFORE),
            Place::AfterLink(id) => (Some(Relative::LinkId(id)), AttachFlags::AFTER),
        };
        let options = LinkOptions::Order {
            relative,
            expected_revision: self.expected_revision,
        };
        (options, flags)
    }
}

/// A program that is attached somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedProgram {
    /// The kernel's id of the program.
    pub id: u32,
    /// First 15 bytes of its name; empty if the kernel does not tell.
    pub name: String,
    /// The kernel's id of the link that holds it; 0 without a link, before
    /// Linux 6.6, and where the kernel does not say which of them.
    pub link_id: u32,
}

impl AttachedProgram {
    /// The one that could not be attached, because it is.
    pub(super) fn itself(info: &ProgInfo) -> AttachedProgram {
        AttachedProgram {
            id: info.id,
            name: name_str(&info.name).to_owned(),
            link_id: 0,
        }
    }

    pub(super) fn new(id: u32, link_id: u32) -> AttachedProgram {
        let name = sys::fd_by_id(ObjectKind::Program, id, 0)
            .and_then(|fd| sys::prog_info(fd.as_fd()))
            .map(|info| name_str(&info.name).to_owned());
        AttachedProgram {
            id,
            name: name.unwrap_or_default(),
            link_id,
        }
    }
}

/// `program 12 (name)`.
impl fmt::Display for AttachedProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "program {}", self.id)?;
        if !self.name.is_empty() {
            write!(f, " ({})", self.name)?;
        }
        Ok(())
    }
}

/// The programs of a hook, in the order they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookPrograms {
    /// Counts up with every change of the list; 0 before Linux 6.6.
    pub revision: u64,
    /// The programs.
    pub programs: Vec<AttachedProgram>,
}

/// Ids of the programs on a hook and of their links, at most 64, and the
/// revision.
fn ids_on(
    target: Target<'_>,
    attach_type: AttachType,
    flags: u32,
) -> Result<(Vec<(u32, u32)>, u64), SysError> {
    let (mut programs, mut links) = ([0; 64], [0; 64]);
    let mut query = |links| {
        let mut buffers = QueryBuffers {
            prog_ids: &mut programs,
            link_ids: links,
            ..QueryBuffers::default()
        };
        sys::prog_query(target, attach_type, flags, &mut buffers)
    };
    let found = match query(&mut links) {
        // Kernels before 6.6 do not know the list of links.
        Err(err) if matches!(err.errno(), Errno::EINVAL | Errno::E2BIG) => query(&mut [])?,
        found => found?,
    };
    let ids = programs.into_iter().zip(links).take(found.count).collect();
    Ok((ids, found.revision))
}

/// The programs on a hook.
pub(super) fn programs_on(
    target: Target<'_>,
    attach_type: AttachType,
    flags: u32,
) -> Result<HookPrograms, SysError> {
    let (ids, revision) = ids_on(target, attach_type, flags)?;
    Ok(HookPrograms {
        revision,
        programs: ids
            .into_iter()
            .map(|(id, link)| AttachedProgram::new(id, link))
            .collect(),
    })
}

/// Whether the program with this id is on a hook.
pub(super) fn is_on(
    target: Target<'_>,
    attach_type: AttachType,
    id: u32,
) -> Result<bool, SysError> {
    let (ids, _) = ids_on(target, attach_type, 0)?;
    Ok(ids.iter().any(|(program, _)| *program == id))
}

/// The kernel's id of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> Result<u32, SysError> {
    sys::prog_info(program).map(|info| info.id)
}

/// Creates a link in a namespace, the calling thread's if none is given.
pub(super) fn link_create_in(
    namespace: Option<&NetNamespace>,
    create: &LinkCreate<'_>,
) -> Result<OwnedFd, SysError> {
    let Some(namespace) = namespace else {
        return sys::link_create(create);
    };
    let mut link = None;
    namespace.run(&mut || {
        link = Some(sys::link_create(create)?);
        Ok(())
    })?;
    link.ok_or_else(|| SysError::new("bpf(BPF_LINK_CREATE)", Errno::ECANCELED))
}

/// Whether an attempt with a newer interface failed the way kernels fail that
/// do not know it.
pub(super) fn too_old(err: &SysError) -> bool {
    matches!(err.errno(), Errno::EINVAL | Errno::E2BIG)
}

/// A link made of a `bpf_link`.
pub(super) fn link(target: String, mechanism: Mechanism, link: OwnedFd) -> Link {
    Link::of_fd(link, target, mechanism)
}

/// Refuses a program that was loaded for another hook, which the kernel would
/// do without saying why.
pub(super) fn expect_attach_type(program: &Program, hook: AttachType) -> Result<(), LinkError> {
    match program.attach_type() {
        Some(found) if found != hook => Err(LinkError::WrongAttachType { hook, found }),
        _ => Ok(()),
    }
}

/// Every way was refused, `last` being the oldest that was tried.
#[cold]
pub(super) fn refused(
    last: Mechanism,
    target: String,
    tried: Vec<(&'static str, SysError)>,
) -> LinkError {
    let cure = tried.last().and_then(|(_, err)| {
        if too_old(err) {
            // The kernel says EINVAL as well to who may not attach to a cgroup.
            return needs(last.as_str(), last.since())
                .or_else(|| cure::missing_capability(Need::Network));
        }
        cure::find(err, Need::Network)
    });
    LinkError::Attach {
        target,
        tried,
        cure,
    }
}

/// Every way was refused; `holder` is the program in the way, if there is one.
#[cold]
pub(super) fn refused_for(
    last: Mechanism,
    holder: Option<u32>,
    target: String,
    tried: Vec<(&'static str, SysError)>,
) -> LinkError {
    let id = holder.filter(|id| *id != 0);
    match (id, tried.last()) {
        (Some(id), Some((_, source))) => LinkError::AlreadyAttached {
            target,
            by: AttachedProgram::new(id, 0),
            source: source.clone(),
        },
        _ => refused(last, target, tried),
    }
}

/// Whether an errno says that something else is attached.
pub(super) fn is_taken(err: &SysError) -> bool {
    matches!(err.errno(), Errno::EBUSY | Errno::EEXIST)
}

/// The first program on a hook, if the last attempt says it is taken.
#[cold]
pub(super) fn holder(
    tried: &[(&'static str, SysError)],
    target: Target<'_>,
    attach_type: AttachType,
) -> Option<u32> {
    tried.last().filter(|(_, err)| is_taken(err))?;
    let (ids, _) = ids_on(target, attach_type, 0).ok()?;
    ids.first().map(|(program, _)| *program)
}

/// Every way was refused on an interface, which may have been missing.
#[cold]
pub(super) fn refused_on(
    last: Mechanism,
    interface: &Interface,
    index: u32,
    holder: Option<u32>,
    target: String,
    tried: Vec<(&'static str, SysError)>,
) -> LinkError {
    let lookup = interface
        .namespace()
        .and_then(|namespace| namespace.rtnl()?.link_by_index(index));
    match lookup {
        Err(source) if source.is(Errno::ENODEV) => interface.missing(source),
        _ => refused_for(last, holder, target, tried),
    }
}
