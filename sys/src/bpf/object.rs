//! What programs, maps, BTF and links have in common: ids and pins; and the
//! commands about none of them.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use super::{bpf, bpf_fd, len32, num, op};
use crate::Result;
use crate::abi::attr::{self, Ptr, PtrMut};
use crate::abi::bpf::{Command, F_PATH_FD, StatsType, TaskFdType};
use crate::errno::Errno;
use crate::proc::c_path;

/// Kinds of object the kernel numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ObjectKind {
    /// A program.
    Program,
    /// A map.
    Map,
    /// A BTF blob.
    Btf,
    /// A link.
    Link,
}

/// Id of the first object of `kind` after `start`, 0 for the very first;
/// `None` after the last. Needs `CAP_SYS_ADMIN`. Linux 4.13 for programs and
/// maps, 5.4 for BTF, 5.8 for links.
pub fn next_id(kind: ObjectKind, start: u32) -> Result<Option<u32>> {
    let command = match kind {
        ObjectKind::Program => Command::PROG_GET_NEXT_ID,
        ObjectKind::Map => Command::MAP_GET_NEXT_ID,
        ObjectKind::Btf => Command::BTF_GET_NEXT_ID,
        ObjectKind::Link => Command::LINK_GET_NEXT_ID,
    };
    let mut attr = attr::GetId {
        start_id_or_id: start,
        ..Default::default()
    };
    // SAFETY: the attribute holds no address.
    match unsafe { bpf(command, &mut attr) } {
        Ok(_) => Ok(Some(attr.next_id)),
        Err(err) if err.is(Errno::ENOENT) => Ok(None),
        Err(err) => Err(err),
    }
}

/// A descriptor of the object of `kind` with `id`. Needs `CAP_SYS_ADMIN`.
/// `open_flags` restricts a map to `BPF_F_RDONLY` or `BPF_F_WRONLY` (4.15) and
/// is 0 for other kinds. Linux 4.13 for programs and maps, 4.18 for BTF, 5.8
/// for links.
///
/// # Errors
/// `ENOENT` if there is none, or none any more.
pub fn fd_by_id(kind: ObjectKind, id: u32, open_flags: u32) -> Result<OwnedFd> {
    let command = match kind {
        ObjectKind::Program => Command::PROG_GET_FD_BY_ID,
        ObjectKind::Map => Command::MAP_GET_FD_BY_ID,
        ObjectKind::Btf => Command::BTF_GET_FD_BY_ID,
        ObjectKind::Link => Command::LINK_GET_FD_BY_ID,
    };
    let mut attr = attr::GetId {
        start_id_or_id: id,
        open_flags,
        ..Default::default()
    };
    // SAFETY: the attribute holds no address.
    unsafe { bpf_fd(command, &mut attr) }
}

/// `BPF_OBJ_PIN`: gives a map, program (4.4) or link (5.7) the name `path` in
/// a BPF file system, which keeps it alive. `path` is relative to `dir` if
/// given (6.5).
///
/// # Errors
/// `EEXIST` if the name is taken; `EPERM` outside a BPF file system.
pub fn obj_pin(object: BorrowedFd<'_>, path: &Path, dir: Option<BorrowedFd<'_>>) -> Result<()> {
    obj(Command::OBJ_PIN, num(object), path, dir, 0)?;
    Ok(())
}

/// `BPF_OBJ_GET`: opens what is pinned at `path`. Linux 4.4. `file_flags`
/// restricts a map to `BPF_F_RDONLY` or `BPF_F_WRONLY` (4.15). `path` is
/// relative to `dir` if given (6.5).
pub fn obj_get(path: &Path, file_flags: u32, dir: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let raw = obj(Command::OBJ_GET, 0, path, dir, file_flags)?;
    crate::fd::own(op(Command::OBJ_GET), raw)
}

fn obj(
    command: Command,
    bpf_fd: u32,
    path: &Path,
    dir: Option<BorrowedFd<'_>>,
    file_flags: u32,
) -> Result<i64> {
    let name = c_path(op(command), path)?;
    let mut attr = attr::Obj {
        pathname: Ptr::of_str(&name),
        bpf_fd,
        file_flags,
        ..Default::default()
    };
    if let Some(dir) = dir {
        attr.file_flags |= F_PATH_FD;
        attr.path_fd = dir.as_raw_fd();
    }
    // SAFETY: the kernel reads `pathname` up to its terminator.
    unsafe { bpf(command, &mut attr) }.map_err(|err| err.with_path(path))
}

/// What a descriptor of some process is to the tracing subsystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskFd {
    /// Program behind it.
    pub prog_id: u32,
    /// Kind of event.
    pub fd_type: TaskFdType,
    /// Offset into the function or file.
    pub probe_offset: u64,
    /// Address of a kprobe given by address.
    pub probe_addr: u64,
    /// Bytes of the name of tracepoint, function or file.
    pub name_len: usize,
}

/// `BPF_TASK_FD_QUERY`: asks about descriptor `fd` of process `pid` and puts
/// the terminated name into `name`. Linux 4.18.
///
/// # Errors
/// `ENOTSUPP` for a descriptor without a program; `ENOSPC` if the name does
/// not fit.
pub fn task_fd_query(pid: u32, fd: RawFd, name: &mut [u8]) -> Result<TaskFd> {
    let mut attr = attr::TaskFdQuery {
        pid,
        fd: fd as u32,
        buf_len: len32(Command::TASK_FD_QUERY, name.len())?,
        buf: PtrMut::of(name),
        ..Default::default()
    };
    // SAFETY: the kernel writes at most `buf_len` bytes, the length of `name`.
    unsafe { bpf(Command::TASK_FD_QUERY, &mut attr) }?;
    Ok(TaskFd {
        prog_id: attr.prog_id,
        fd_type: attr.fd_type,
        probe_offset: attr.probe_offset,
        probe_addr: attr.probe_addr,
        name_len: attr.buf_len as usize,
    })
}

/// `BPF_ENABLE_STATS`: programs are timed until every such descriptor is
/// closed. Linux 5.8.
pub fn enable_stats(stats_type: StatsType) -> Result<OwnedFd> {
    let mut attr = attr::EnableStats { stats_type };
    // SAFETY: the attribute holds no address.
    unsafe { bpf_fd(Command::ENABLE_STATS, &mut attr) }
}

/// `BPF_TOKEN_CREATE`: the rights that the BPF file system with the root
/// directory `bpffs` delegates. Linux 6.9.
pub fn token_create(bpffs: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut attr = attr::TokenCreate {
        flags: 0,
        bpffs_fd: num(bpffs),
    };
    // SAFETY: the attribute holds no address.
    unsafe { bpf_fd(Command::TOKEN_CREATE, &mut attr) }
}
