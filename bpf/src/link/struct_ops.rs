//! Structures of the kernel that programs fill, given to it.

use std::os::fd::AsFd;

use ebpf_manager_sys::abi::bpf::{AttachType, ElemFlags, MapFlags, MapType};
use ebpf_manager_sys::bpf::{self as sys, LinkCreate, LinkOptions, Target};
use ebpf_manager_sys::{Errno, SysError};

use super::standing::{Attachment, Standing};
use super::trace::failed;
use super::{Inner, Link, Mechanism};
use crate::error::LinkError;
use crate::map::Map;
use crate::program::Program;

/// The one key of such a map.
const KEY: [u8; 4] = [0; 4];

impl Link {
    /// Gives the kernel the structure of the map `map`, whose programs it
    /// calls from now on: a congestion control is there to be chosen.
    ///
    /// A map of section `.struct_ops.link` (Linux 6.4) gets a link, which can
    /// be pinned and [updated](Link::update_map); one of section
    /// `.struct_ops` (5.6) stands until it is taken down. Sockets that use a
    /// structure keep it.
    ///
    /// # Errors
    /// [`LinkError::Attach`], with `EINVAL` if the map is of another type or
    /// one of its programs was not loaded, and with the kernel's answer:
    /// `EEXIST` if it has one of that name, `EBUSY` if this one was taken down
    /// and is still used.
    pub fn struct_ops(map: &Map) -> Result<Link, LinkError> {
        let target = format!("struct_ops {}", map.name());
        prepare(map).map_err(|err| failed(&target, vec![("struct_ops map", err)]))?;
        if !map.flags().contains(MapFlags::LINK) {
            let inner = Inner::Standing(Standing::new(Registered(map.clone())));
            return Ok(Link::new(target, Mechanism::StructOpsMap, inner));
        }
        let create = LinkCreate {
            object: map.as_fd(),
            target: Target::None,
            attach_type: AttachType::STRUCT_OPS,
            flags: 0,
            options: LinkOptions::None,
        };
        match sys::link_create(&create) {
            Ok(fd) => Ok(Link::of_fd(fd, target, Mechanism::StructOpsLink)),
            Err(err) => Err(failed(&target, vec![("struct_ops link", err)])),
        }
    }

    /// Puts the structure of another map, for the same use, in the place of
    /// this one. At no time is there none.
    ///
    /// # Errors
    /// [`LinkError::Impossible`] for all but links of [`Link::struct_ops`];
    /// [`LinkError::Operation`], with `EINVAL` if the structures differ in
    /// what may not change (the name of a congestion control).
    pub fn update_map(&mut self, map: &Map) -> Result<(), LinkError> {
        let (Mechanism::StructOpsLink, Some(link)) = (self.mechanism, self.inner.link()) else {
            return Err(self.impossible("change its map"));
        };
        prepare(map)
            .and_then(|()| sys::link_update(link, map.as_fd(), None))
            .map_err(|source| self.operation(source))
    }
}

/// Writes the structure, which makes it ready for a link or puts it to use.
fn prepare(map: &Map) -> Result<(), SysError> {
    let value = match map.operations() {
        Some(value) if map.map_type() == MapType::STRUCT_OPS => value,
        _ => {
            return Err(SysError::new("struct_ops", Errno::EINVAL)
                .with_detail("not a structure of the kernel, or its programs are not loaded"));
        }
    };
    match map.raw().update(&KEY, value, ElemFlags::empty()) {
        // It is written once; links come and go.
        Err(err) if err.is(Errno::EBUSY) && map.flags().contains(MapFlags::LINK) => Ok(()),
        result => result,
    }
}

/// A structure that is in use until its key is deleted.
struct Registered(Map);

impl Attachment for Registered {
    fn detach(&self) -> Result<(), SysError> {
        self.0.raw().delete(&KEY).map(drop)
    }

    fn update(&mut self, _program: &Program) -> Result<(), SysError> {
        Err(SysError::new("struct_ops", Errno::EINVAL)
            .with_detail("its programs are those of its map"))
    }

    fn is_attached(&self) -> Result<Option<bool>, SysError> {
        // References and state stand first; 1 is in use.
        let mut value = vec![0; self.0.value_size()];
        let found = self.0.raw().lookup(&KEY, &mut value)?;
        Ok(Some(found && value.get(4..8) == Some(&1_u32.to_ne_bytes())))
    }
}
