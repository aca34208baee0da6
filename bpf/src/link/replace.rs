//! freplace: a program in the place of another program's function.

use std::os::fd::AsFd;

use ebpf_manager_sys::abi::bpf::{AttachType, ProgramType};
use ebpf_manager_sys::bpf::{self as sys, LinkCreate, LinkOptions, Target};
use ebpf_manager_sys::{Errno, SysError};

use super::trace::{expect_type, failed};
use super::{Link, Mechanism};
use crate::attach_btf;
use crate::error::LinkError;
use crate::program::Program;

impl Link {
    /// Puts a program in the place of `function` of the program `target`.
    ///
    /// Unlike [`Link::tracing`], which attaches where the program was loaded
    /// for and only once, this attaches again after a detach, and to another
    /// program with a function of the same signature. Requires at least
    /// Linux 5.10.
    ///
    /// # Errors
    /// [`LinkError::WrongType`]; [`LinkError::NoTarget`] if there is no such
    /// function; [`LinkError::Attach`], with `EBUSY` if the function is
    /// replaced already, `EINVAL` if the signature differs.
    pub fn freplace(
        program: &Program,
        target: &Program,
        function: &str,
    ) -> Result<Link, LinkError> {
        expect_type(program, "function of a program", &[ProgramType::EXT])?;
        let name = || format!("{function} of program {}", target.name());
        let missing = |source| LinkError::NoTarget {
            kind: "function",
            name: name(),
            source,
            cure: None,
        };
        let target_btf_id = attach_btf::function_of(target.as_fd(), function)
            .map_err(missing)?
            .ok_or_else(|| missing(SysError::new("lookup in BTF", Errno::ENOENT)))?;
        let create = LinkCreate {
            object: program.as_fd(),
            target: Target::Fd(target.as_fd()),
            attach_type: AttachType::default(),
            flags: 0,
            options: LinkOptions::Tracing {
                target_btf_id,
                cookie: 0,
            },
        };
        match sys::link_create(&create) {
            Ok(fd) => Ok(Link::of_fd(fd, name(), Mechanism::TracingLink)),
            Err(err) => Err(failed(&name(), vec![("tracing link", err)])),
        }
    }
}
