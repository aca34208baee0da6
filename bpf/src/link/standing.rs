//! Attachments that no descriptor holds: they stand until they are taken down
//! by a call, which their drop makes.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use ebpf_manager_sys::abi::bpf::{AttachFlags, AttachType};
use ebpf_manager_sys::bpf::{self as sys, ProgAttach, Target};
use ebpf_manager_sys::{Errno, SysError, fd};

use super::interface::NetNamespace;
use super::net;
use crate::program::Program;

/// An attachment, until it is taken down. Behind a trait, so that a program
/// contains the kinds it makes and no others.
pub(super) struct Standing(Option<Box<dyn Attachment>>);

/// A kind of attachment that no descriptor holds.
pub(super) trait Attachment: Send + Sync {
    /// Takes it down. Called once more if it fails, not after it succeeded.
    fn detach(&self) -> Result<(), SysError>;

    /// Puts another program in its place.
    fn update(&mut self, program: &Program) -> Result<(), SysError>;

    /// Whether it is still there and runs the same program; `None` where the
    /// kernel does not tell.
    fn is_attached(&self) -> Result<Option<bool>, SysError>;
}

impl Standing {
    pub(super) fn new(attachment: impl Attachment + 'static) -> Standing {
        Standing(Some(Box::new(attachment)))
    }

    /// Takes it down. One whose interface, cgroup or filter is gone is down.
    pub(super) fn detach(mut self) -> Result<(), SysError> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<(), SysError> {
        let gone = |err: &SysError| matches!(err.errno(), Errno::ENODEV | Errno::ENOENT);
        let Some(it) = self.0.take() else {
            return Ok(());
        };
        // Nobody else is going to do it, so once more if something was wanting
        // or an answer was lost.
        match it
            .detach()
            .or_else(|err| if gone(&err) { Err(err) } else { it.detach() })
        {
            Err(err) if gone(&err) => Ok(()),
            result => result,
        }
    }

    /// Puts another program in its place.
    pub(super) fn update(&mut self, program: &Program) -> Result<(), SysError> {
        self.0.as_mut().map_or(Ok(()), |it| it.update(program))
    }

    /// Whether it is still there and runs the same program; `None` where the
    /// kernel does not tell.
    pub(super) fn is_attached(&self) -> Result<Option<bool>, SysError> {
        match self
            .0
            .as_ref()
            .map_or(Ok(Some(false)), |it| it.is_attached())
        {
            Err(err) if matches!(err.errno(), Errno::ENODEV | Errno::ENOENT) => Ok(Some(false)),
            result => result,
        }
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing").finish_non_exhaustive()
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        // Whoever wants to know calls `detach`.
        let _ = self.take_down();
    }
}

/// An attachment made by `BPF_PROG_ATTACH`.
#[derive(Debug)]
pub(super) struct ProgramAttached {
    target: Owner,
    attach_type: AttachType,
    flags: AttachFlags,
    program: OwnedFd,
}

/// What has the hook.
#[derive(Debug)]
pub(super) enum Owner {
    /// A cgroup, map or device.
    Fd(OwnedFd),
    /// The network namespace of the calling thread.
    Namespace(NetNamespace),
}

impl Owner {
    fn run(
        &self,
        work: &mut (dyn FnMut(Target<'_>) -> Result<(), SysError> + Send),
    ) -> Result<(), SysError> {
        match self {
            Owner::Fd(fd) => work(Target::Fd(fd.as_fd())),
            Owner::Namespace(namespace) => namespace.run(&mut || work(Target::None)),
        }
    }
}

impl ProgramAttached {
    /// Attaches `program`, in the place of `replace` if that is given.
    pub(super) fn new(
        target: Owner,
        attach_type: AttachType,
        flags: AttachFlags,
        program: &Program,
        replace: Option<&Program>,
    ) -> Result<ProgramAttached, SysError> {
        let attached = ProgramAttached {
            target,
            attach_type,
            flags,
            program: fd::dup(program.as_fd())?,
        };
        attached.target.run(&mut |target| {
            sys::prog_attach(&ProgAttach {
                flags,
                replace: replace.map(AsFd::as_fd),
                ..ProgAttach::new(target, attach_type, attached.program.as_fd())
            })
        })?;
        Ok(attached)
    }

    /// Whether a hook that holds a single program holds another one by now,
    /// which the kernel would replace or take down without a question. No if
    /// the kernel does not tell.
    fn is_displaced(&self) -> bool {
        !self.flags.contains(AttachFlags::ALLOW_MULTI) && matches!(self.is_current(), Ok(false))
    }

    fn is_current(&self) -> Result<bool, SysError> {
        let id = net::program_id(self.program.as_fd())?;
        // Unlike attaching, a question names the namespace.
        let fd = match &self.target {
            Owner::Fd(fd) => fd.as_fd(),
            Owner::Namespace(namespace) => namespace.as_fd(),
        };
        net::is_on(Target::Fd(fd), self.attach_type, id)
    }
}

impl Attachment for ProgramAttached {
    fn detach(&self) -> Result<(), SysError> {
        if self.is_displaced() {
            return Ok(());
        }
        self.target.run(&mut |target| {
            sys::prog_detach(&ProgAttach::new(
                target,
                self.attach_type,
                self.program.as_fd(),
            ))
        })
    }

    /// A hook that holds a single program replaces it; one that holds several
    /// is told which (Linux 5.6).
    fn update(&mut self, program: &Program) -> Result<(), SysError> {
        if self.is_displaced() {
            return Err(SysError::new("bpf(BPF_PROG_ATTACH)", Errno::ENOENT)
                .with_detail("another program is attached"));
        }
        let new = fd::dup(program.as_fd())?;
        let multi = self.flags.contains(AttachFlags::ALLOW_MULTI);
        self.target.run(&mut |target| {
            sys::prog_attach(&ProgAttach {
                flags: self.flags,
                replace: multi.then_some(self.program.as_fd()),
                ..ProgAttach::new(target, self.attach_type, new.as_fd())
            })
        })?;
        self.program = new;
        Ok(())
    }

    fn is_attached(&self) -> Result<Option<bool>, SysError> {
        // Hooks learnt one by one to answer.
        match self.is_current() {
            Err(err) if net::too_old(&err) => Ok(None),
            result => result.map(Some),
        }
    }
}
