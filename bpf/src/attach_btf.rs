//! Where programs go that name their hook when they are loaded: ids of kernel
//! types for fentry and its kin, tp_btf, LSM and iterators; of a program's
//! functions for freplace.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ebpf_manager_elf::ProgramSpec;
use ebpf_manager_elf::btf::{Btf, Kind, KindSet, NameHit, NameQuery};
use ebpf_manager_sys::abi::bpf::{AttachType, ProgramType};
use ebpf_manager_sys::bpf::{self as sys, ObjectKind};
use ebpf_manager_sys::{Errno, SysError};

use crate::error::ProgramError;
use crate::link::symbols;
use crate::modules;
use crate::program::Program;

/// Where a program goes, instead of what its section name says.
#[derive(Debug)]
pub struct AttachTo {
    program: String,
    target: Option<OwnedFd>,
    function: Option<String>,
}

impl AttachTo {
    /// The program of the C function `program` goes to the kernel function,
    /// tracepoint, LSM hook or iterator `name`.
    pub fn kernel(program: impl Into<String>, name: impl Into<String>) -> AttachTo {
        AttachTo {
            program: program.into(),
            target: None,
            function: Some(name.into()),
        }
    }

    /// The program of the C function `program` goes to a function of another
    /// loaded program: freplace (Linux 5.6) replaces it, fentry and fexit
    /// (5.5) trace it. Without `function`, to the one its section names.
    ///
    /// # Errors
    /// [`ProgramError::Operation`] if the descriptor cannot be duplicated.
    pub fn program(
        program: impl Into<String>,
        target: &Program,
        function: Option<&str>,
    ) -> Result<AttachTo, ProgramError> {
        let fd = ebpf_manager_sys::fd::dup(target.as_fd()).map_err(|source| {
            ProgramError::Operation {
                program: target.name().to_owned(),
                source,
                cure: None,
            }
        })?;
        Ok(AttachTo {
            program: program.into(),
            target: Some(fd),
            function: function.map(str::to_owned),
        })
    }

    /// The same place, for the program or copy of this name.
    #[must_use]
    pub fn named(mut self, program: impl Into<String>) -> AttachTo {
        self.program = program.into();
        self
    }

    /// C function name of the program that is attached.
    pub fn name(&self) -> &str {
        &self.program
    }
}

/// What the kernel is told when a program is loaded.
#[derive(Debug, Default)]
pub(crate) struct AttachPoint {
    /// 0 for programs that are not attached by type.
    pub(crate) btf_id: u32,
    /// The program or the module's BTF that the id is of.
    pub(crate) of: Option<OwnedFd>,
    /// For a member of a structure, its index instead of an attach type.
    pub(crate) member: Option<AttachType>,
}

impl AttachPoint {
    pub(crate) fn of(&self) -> Option<BorrowedFd<'_>> {
        self.of.as_ref().map(AsFd::as_fd)
    }
}

/// The kernel type that one program needs.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Name of the type.
    name: String,
    kind: Kind,
}

/// What to look for in the kernel's types for a program; `None` if nothing.
///
/// # Errors
/// [`ProgramError::NoAttachTarget`] if nothing says where the program goes.
pub(crate) fn wanted(
    spec: &ProgramSpec,
    attach_to: &[AttachTo],
) -> Result<Option<Wanted>, ProgramError> {
    let Some((what, prefix, kind)) = family(spec) else {
        return Ok(None);
    };
    let to = attach_to.iter().find(|to| to.program == spec.name);
    if to.is_some_and(|to| to.target.is_some()) {
        return Ok(None);
    }
    let target = to.and_then(|to| to.function.as_deref());
    match target.or(spec.target.as_deref()) {
        Some(target) if spec.program_type != ProgramType::EXT => Ok(Some(Wanted {
            name: [prefix, target].concat(),
            kind,
        })),
        target => Err(ProgramError::NoAttachTarget {
            program: spec.name.clone(),
            what,
            name: target.unwrap_or_default().to_owned(),
        }),
    }
}

/// What a program is attached to, and how the kernel names the type of that.
fn family(spec: &ProgramSpec) -> Option<(&'static str, &'static str, Kind)> {
    match (spec.program_type, spec.attach_type) {
        (ProgramType::TRACING, Some(AttachType::TRACE_RAW_TP)) => {
            Some(("tracepoint", "btf_trace_", Kind::TYPEDEF))
        }
        (ProgramType::TRACING, Some(AttachType::TRACE_ITER)) => {
            Some(("iterator", "bpf_iter_", Kind::FUNC))
        }
        (ProgramType::TRACING, _) => Some(("kernel function", "", Kind::FUNC)),
        (ProgramType::LSM, _) => Some(("LSM hook", "bpf_lsm_", Kind::FUNC)),
        (ProgramType::EXT, _) => Some(("function of a target program", "", Kind::FUNC)),
        _ => None,
    }
}

/// Adds the names to the walk over the kernel's types.
pub(crate) fn add_names<'n>(query: &mut NameQuery<'n>, wanted: impl Iterator<Item = &'n Wanted>) {
    for want in wanted {
        query.add(want.name.as_bytes(), KindSet::of(&[want.kind]));
    }
}

/// The id of what is wanted, of what the walk found in `btf`.
fn find(want: &Wanted, query: &NameQuery<'_>, btf: &Btf<'_>, hits: &[NameHit]) -> Option<u32> {
    let name = query.position(want.name.as_bytes())?;
    let hit = hits
        .iter()
        .find(|hit| hit.name == name && btf.get(hit.id).is_some_and(|ty| ty.kind() == want.kind))?;
    Some(hit.id)
}

/// Where a program goes, given what the walk over the kernel's types found.
/// Functions that the kernel image lacks are looked for in modules.
///
/// # Errors
/// [`ProgramError::NoAttachTarget`].
pub(crate) fn resolve(
    spec: &ProgramSpec,
    want: Option<&Wanted>,
    attach_to: &[AttachTo],
    query: &NameQuery<'_>,
    kernel: Option<(&Btf<'_>, &[NameHit])>,
) -> Result<AttachPoint, ProgramError> {
    let to = attach_to.iter().find(|to| to.program == spec.name);
    let point = match (want, to, kernel) {
        (Some(want), _, Some((btf, hits))) => match find(want, query, btf, hits) {
            Some(btf_id) => Some(AttachPoint {
                btf_id,
                ..AttachPoint::default()
            }),
            None => in_modules(want, query, btf).or_else(|| by_alias(want, btf)),
        },
        (None, Some(to), _) if to.target.is_some() => Some(in_program(spec, to)?),
        (None, ..) => Some(AttachPoint::default()),
        (Some(_), _, None) => None,
    };
    point.ok_or_else(|| absent(spec, to))
}

#[cold]
fn absent(spec: &ProgramSpec, to: Option<&AttachTo>) -> ProgramError {
    let name = to.and_then(|to| to.function.as_deref());
    ProgramError::NoAttachTarget {
        program: spec.name.clone(),
        what: family(spec).map_or("target", |(what, ..)| what),
        name: name
            .or(spec.target.as_deref())
            .unwrap_or_default()
            .to_owned(),
    }
}

/// A function can have several names, and the compiler's notes that BTF is made
/// of know one of them: `__x64_sys_getpid` is `__do_sys_getpid` there.
#[cold]
fn by_alias(want: &Wanted, kernel: &Btf<'_>) -> Option<AttachPoint> {
    if want.kind != Kind::FUNC {
        return None;
    }
    let btf_id = symbols::aliases(&want.name)
        .iter()
        .find_map(|alias| kernel.find_by_name_kind(alias, Kind::FUNC))?;
    Some(AttachPoint {
        btf_id,
        ..AttachPoint::default()
    })
}

/// Looks through the types of all loaded modules. Linux 5.11.
#[cold]
fn in_modules(want: &Wanted, query: &NameQuery<'_>, kernel: &Btf<'_>) -> Option<AttachPoint> {
    let mut point = None;
    modules::search(kernel, query, &mut |btf, hits, fd| {
        let Some(btf_id) = find(want, query, btf, hits) else {
            return ControlFlow::Continue(());
        };
        point = Some(AttachPoint {
            btf_id,
            of: Some(fd),
            member: None,
        });
        ControlFlow::Break(())
    });
    point
}

/// The id of a function in the types of a loaded program.
pub(crate) fn function_of(target: BorrowedFd<'_>, name: &str) -> Result<Option<u32>, SysError> {
    let info = sys::prog_info(target)?;
    if info.btf_id == 0 {
        let none = SysError::new("bpf(BPF_BTF_GET_FD_BY_ID)", Errno::ENOENT);
        return Err(none.with_detail("the target has no BTF"));
    }
    let btf = sys::fd_by_id(ObjectKind::Btf, info.btf_id, 0)?;
    let bytes = sys::btf_data(btf.as_fd())?;
    let btf = Btf::parse(&bytes).ok();
    Ok(btf.and_then(|btf| btf.find_by_name_kind(name, Kind::FUNC)))
}

/// A function of a loaded program.
fn in_program(spec: &ProgramSpec, to: &AttachTo) -> Result<AttachPoint, ProgramError> {
    let failed = |source| ProgramError::Operation {
        program: spec.name.clone(),
        source,
        cure: None,
    };
    let Some(target) = &to.target else {
        return Ok(AttachPoint::default());
    };
    let name = to.function.as_deref().or(spec.target.as_deref());
    let id = function_of(target.as_fd(), name.unwrap_or_default())
        .map_err(failed)?
        .ok_or_else(|| absent(spec, Some(to)))?;
    Ok(AttachPoint {
        btf_id: id,
        of: Some(ebpf_manager_sys::fd::dup(target.as_fd()).map_err(failed)?),
        member: None,
    })
}
