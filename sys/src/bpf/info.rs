//! What the kernel tells about an object behind a descriptor.
//!
//! Lists take two calls: one for the length, one for the content. The second
//! starts from zero again, so that no answer of the first is taken for an
//! address.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use super::{bpf, invalid, len32, num, op};
use crate::Result;
use crate::abi::attr::{self, PtrMut};
use crate::abi::bpf::{Command, LinkType, PerfLinkType};
use crate::abi::info::{
    self, BtfInfo, CgroupDetail, FuncInfo, IterDetail, KprobeMultiDetail, LineInfo, MapDetail,
    MapInfo, NetdevDetail, NetfilterDetail, NetnsDetail, PerfEventDetail, ProgInfo,
    RawTracepointDetail, TracingDetail, UprobeMultiDetail,
};
use crate::abi::insn::Insn;
use crate::abi::pod::{self, Pod};
use crate::errno::{Errno, SysError};
use crate::fd::above_std;

const COMMAND: Command = Command::OBJ_GET_INFO_BY_FD;

/// What the kernel calls the descriptor that created a link.
const LINK: &str = "bpf_link";

/// Longest name the kernel returns, terminator included.
const NAME_MAX: usize = libc::PATH_MAX as usize;

/// `BPF_OBJ_GET_INFO_BY_FD`; returns how many bytes of `info` are the
/// kernel's. A kernel that knows less leaves the rest as it was.
///
/// # Safety
/// Every address in `info` must be writable for the length beside it.
unsafe fn info_by_fd<T: Pod>(fd: BorrowedFd<'_>, info: &mut T) -> Result<usize> {
    // SAFETY: passed on from the caller.
    unsafe { info_bytes(fd, pod::bytes_of_mut(info)) }
}

/// [`info_by_fd`] without the type, so that it exists once.
///
/// # Safety
/// As for [`info_by_fd`].
unsafe fn info_bytes(fd: BorrowedFd<'_>, info: &mut [u8]) -> Result<usize> {
    let room = info.len();
    let mut attr = attr::InfoByFd {
        bpf_fd: num(fd),
        info_len: len32(COMMAND, room)?,
        info: PtrMut::of(info),
    };
    // SAFETY: the kernel writes at most `info_len` bytes, which is the length
    // of `info`; the caller vouches for the addresses inside.
    unsafe { bpf(COMMAND, &mut attr) }?;
    let len = attr.info_len as usize;
    if len > room {
        return Err(SysError::new(op(COMMAND), Errno::EOVERFLOW));
    }
    Ok(len)
}

/// [`info_by_fd`] without any address.
fn plain_info<T: Pod>(fd: BorrowedFd<'_>) -> Result<(T, usize)> {
    let mut info = pod::zeroed::<T>();
    // SAFETY: all addresses are null, which the kernel takes as "not asked".
    let len = unsafe { info_by_fd(fd, &mut info) }?;
    Ok((info, len))
}

/// Whether `fd` is of the kind that `/proc/thread-self/fd` calls `anon_inode:`
/// and `name`; `None` where there is no telling. The kernel answers
/// `BPF_OBJ_GET_INFO_BY_FD` for any kind without saying which.
pub(super) fn is_kind(fd: BorrowedFd<'_>, name: &str) -> Option<bool> {
    // Not `self`: a thread may have a table of its own (`CLONE_FILES`).
    let link = std::fs::read_link(format!("/proc/thread-self/fd/{}", fd.as_raw_fd())).ok()?;
    let found = link.to_str()?.strip_prefix("anon_inode:")?;
    let found = found.trim_matches(['[', ']']);
    // A link that was opened again is spelled otherwise.
    Some(found == name || (found, name) == ("bpf-link", LINK))
}

/// Refuses unless `fd` is certainly of that kind. Asked before an address is
/// put where another kind of object would have something else.
fn require_kind(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    match is_kind(fd, name) {
        Some(true) => Ok(()),
        Some(false) => Err(invalid(COMMAND, "another kind of object")),
        None => Err(invalid(
            COMMAND,
            "/proc/thread-self/fd does not tell the kind",
        )),
    }
}

/// What the kernel tells about a program. Linux 4.13. Lists are only counted.
///
/// `prog` must be a program: the kernel answers for any object, with bytes
/// that mean something else. The same holds for the functions below.
pub fn prog_info(prog: BorrowedFd<'_>) -> Result<ProgInfo> {
    Ok(plain_info(prog)?.0)
}

/// Takes a program's descriptor from elsewhere, moved above 2, and asks what
/// the kernel tells about it. Linux 4.13.
///
/// # Errors
/// `EINVAL` if the descriptor is not that of a program.
pub fn prog_from_fd(fd: OwnedFd) -> Result<(OwnedFd, ProgInfo)> {
    let fd = above_std(fd)?;
    if is_kind(fd.as_fd(), "bpf-prog") == Some(false) {
        return Err(invalid(COMMAND, "not a program"));
    }
    let info = prog_info(fd.as_fd())?;
    Ok((fd, info))
}

/// What the kernel tells about a map. Linux 4.13.
pub fn map_info(map: BorrowedFd<'_>) -> Result<MapInfo> {
    Ok(plain_info(map)?.0)
}

/// What the kernel tells about a BTF blob. Linux 4.18.
pub fn btf_info(btf: BorrowedFd<'_>) -> Result<BtfInfo> {
    Ok(plain_info(btf)?.0)
}

/// Lists that belong to a program.
#[derive(Clone, Copy)]
enum ProgList {
    MapIds,
    Insns,
    FuncInfo,
    LineInfo,
}

/// Where [`ProgInfo`] has a list.
struct Slot<'a> {
    len: &'a mut u32,
    /// What one element adds to `len`.
    unit: usize,
    address: &'a mut u64,
    rec_size: Option<&'a mut u32>,
}

impl ProgList {
    fn slot(self, info: &mut ProgInfo) -> Slot<'_> {
        let (len, unit, address, rec_size) = match self {
            ProgList::MapIds => (&mut info.nr_map_ids, 1, &mut info.map_ids, None),
            ProgList::Insns => (
                &mut info.xlated_prog_len,
                size_of::<Insn>(),
                &mut info.xlated_prog_insns,
                None,
            ),
            ProgList::FuncInfo => (
                &mut info.nr_func_info,
                1,
                &mut info.func_info,
                Some(&mut info.func_info_rec_size),
            ),
            ProgList::LineInfo => (
                &mut info.nr_line_info,
                1,
                &mut info.line_info,
                Some(&mut info.line_info_rec_size),
            ),
        };
        Slot {
            len,
            unit,
            address,
            rec_size,
        }
    }

    /// Fetches the list, whose elements are `T`.
    fn fetch<T: Pod>(self, prog: BorrowedFd<'_>) -> Result<Vec<T>> {
        require_kind(prog, "bpf-prog")?;
        let mut info = prog_info(prog)?;
        let slot = self.slot(&mut info);
        let len = *slot.len;
        let rec_size = slot.rec_size.map_or(0, |size| *size);
        let count = len as usize / slot.unit;
        if count == 0 {
            return Ok(Vec::new());
        }
        if rec_size != 0 && rec_size as usize != size_of::<T>() {
            return Err(invalid(COMMAND, "records of another size"));
        }
        let mut list = vec![pod::zeroed::<T>(); count];
        let mut info = ProgInfo::default();
        let slot = self.slot(&mut info);
        *slot.len = len;
        *slot.address = PtrMut::of(&mut list).address();
        if let Some(size) = slot.rec_size {
            *size = rec_size;
        }
        // SAFETY: the one address is that of `list`, which has room for as
        // many elements as the length says, each of the size the kernel uses:
        // fixed for ids and instructions, compared above for records.
        unsafe { info_by_fd(prog, &mut info) }?;
        let slot = self.slot(&mut info);
        if *slot.address == 0 {
            return Err(SysError::new(op(COMMAND), Errno::EPERM)
                .with_detail("hidden by kernel.kptr_restrict or bpf_jit_harden"));
        }
        list.truncate(*slot.len as usize / slot.unit);
        Ok(list)
    }
}

/// Ids of the maps a program uses. Linux 4.15.
pub fn prog_map_ids(prog: BorrowedFd<'_>) -> Result<Vec<u32>> {
    ProgList::MapIds.fetch(prog)
}

/// A program's instructions as the verifier rewrote them. Empty without
/// privilege. Linux 4.13.
pub fn prog_insns(prog: BorrowedFd<'_>) -> Result<Vec<Insn>> {
    ProgList::Insns.fetch(prog)
}

/// Where a program's functions start. Empty without privilege or BTF.
/// Linux 5.0.
pub fn prog_func_info(prog: BorrowedFd<'_>) -> Result<Vec<FuncInfo>> {
    ProgList::FuncInfo.fetch(prog)
}

/// A program's source lines. Empty without privilege or BTF. Linux 5.0.
pub fn prog_line_info(prog: BorrowedFd<'_>) -> Result<Vec<LineInfo>> {
    ProgList::LineInfo.fetch(prog)
}

/// The whole of a BTF blob. Linux 4.18. That of the kernel and its modules is
/// read faster from `/sys/kernel/btf`.
pub fn btf_data(btf: BorrowedFd<'_>) -> Result<Vec<u8>> {
    require_kind(btf, "btf")?;
    let mut data = vec![0; btf_info(btf)?.btf_size as usize];
    let mut info = BtfInfo {
        btf_size: len32(COMMAND, data.len())?,
        btf: PtrMut::of(&mut data).address(),
        ..BtfInfo::default()
    };
    // SAFETY: the one address is that of `data`, whose length is beside it.
    unsafe { info_by_fd(btf, &mut info) }?;
    data.truncate(info.btf_size as usize);
    Ok(data)
}

/// The name of a kernel BTF: `vmlinux` or that of the module. Empty for BTF
/// that a process loaded. Linux 5.11.
///
/// # Errors
/// `E2BIG` below Linux 5.11.
pub fn btf_name(btf: BorrowedFd<'_>) -> Result<OsString> {
    require_kind(btf, "btf")?;
    let mut name = vec![0; NAME_MAX];
    let mut info = BtfInfo {
        name_len: len32(COMMAND, name.len())?,
        name: PtrMut::of(&mut name).address(),
        ..BtfInfo::default()
    };
    // SAFETY: the one address is that of `name`, whose length is beside it.
    unsafe { info_by_fd(btf, &mut info) }?;
    Ok(text(name))
}

/// The text in front of the terminator.
fn text(mut bytes: Vec<u8>) -> OsString {
    let len = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    bytes.truncate(len);
    OsString::from_vec(bytes)
}

/// What the kernel tells about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Kind of link.
    pub link_type: LinkType,
    /// The kernel's number for it.
    pub id: u32,
    /// The program's; 0 for struct_ops.
    pub prog_id: u32,
    /// The rest, by kind.
    pub detail: LinkDetail,
}

/// What the kernel tells by kind of link. A kernel that does not know a field
/// leaves it 0; addresses are always 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkDetail {
    /// Nothing, or a kind this crate does not know.
    None,
    /// Raw tracepoint; the name by [`link_name`].
    RawTracepoint(RawTracepointDetail),
    /// fentry, fexit, fmod_ret, LSM, tp_btf, freplace.
    Tracing(TracingDetail),
    /// cgroup.
    Cgroup(CgroupDetail),
    /// Iterator; the name of what it walks by [`link_name`].
    Iter(IterDetail),
    /// Network namespace.
    Netns(NetnsDetail),
    /// XDP; without an attach type.
    Xdp(NetdevDetail),
    /// struct_ops; without an attach type.
    StructOps(MapDetail),
    /// Netfilter.
    Netfilter(NetfilterDetail),
    /// Many kernel functions.
    KprobeMulti(KprobeMultiDetail),
    /// Many places of a user binary; its path by [`link_name`].
    UprobeMulti(UprobeMultiDetail),
    /// Perf event. Linux 6.6.
    PerfEvent(PerfEvent),
    /// tcx.
    Tcx(NetdevDetail),
    /// netkit.
    Netkit(NetdevDetail),
    /// Sockmap.
    Sockmap(MapDetail),
}

/// What a perf event link sits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerfEvent {
    /// A place of a user binary; its path by [`link_name`].
    Uprobe {
        /// At the function's return.
        ret: bool,
        /// Offset into the file.
        offset: u32,
        /// What `bpf_get_attach_cookie` returns.
        cookie: u64,
    },
    /// A kernel function; its name by [`link_name`].
    Kprobe(KprobeDetail),
    /// A tracepoint; its name by [`link_name`].
    Tracepoint {
        /// What `bpf_get_attach_cookie` returns.
        cookie: u64,
    },
    /// Another perf event.
    Event {
        /// `PERF_TYPE_*`.
        perf_type: u32,
        /// `config` of the event.
        config: u64,
        /// What `bpf_get_attach_cookie` returns.
        cookie: u64,
    },
}

/// A kernel function under a perf event link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KprobeDetail {
    /// At the function's return.
    pub ret: bool,
    /// Offset into the function.
    pub offset: u32,
    /// Address, 0 without the privilege to see it.
    pub addr: u64,
    /// Events that found the probe busy. Linux 6.7.
    pub missed: u64,
    /// What `bpf_get_attach_cookie` returns. Linux 6.9.
    pub cookie: u64,
}

/// What the kernel tells about a link. Linux 5.8. Names are not fetched.
///
/// # Errors
/// `EINVAL` if `link` is another kind of object.
pub fn link_info(link: BorrowedFd<'_>) -> Result<LinkInfo> {
    if is_kind(link, LINK) == Some(false) {
        return Err(invalid(COMMAND, "not a link"));
    }
    let (raw, len) = plain_info::<info::LinkInfo>(link)?;
    Ok(LinkInfo {
        link_type: raw.link_type,
        id: raw.id,
        prog_id: raw.prog_id,
        detail: decode(&raw, len),
    })
}

fn decode(raw: &info::LinkInfo, len: usize) -> LinkDetail {
    if len <= std::mem::offset_of!(info::LinkInfo, detail) {
        return LinkDetail::None;
    }
    match raw.link_type {
        LinkType::RAW_TRACEPOINT => LinkDetail::RawTracepoint(detail(raw)),
        LinkType::TRACING => LinkDetail::Tracing(detail(raw)),
        LinkType::CGROUP => LinkDetail::Cgroup(detail(raw)),
        LinkType::ITER => LinkDetail::Iter(detail(raw)),
        LinkType::NETNS => LinkDetail::Netns(detail(raw)),
        LinkType::XDP => LinkDetail::Xdp(detail(raw)),
        LinkType::STRUCT_OPS => LinkDetail::StructOps(detail(raw)),
        LinkType::NETFILTER => LinkDetail::Netfilter(detail(raw)),
        LinkType::KPROBE_MULTI => LinkDetail::KprobeMulti(detail(raw)),
        LinkType::UPROBE_MULTI => LinkDetail::UprobeMulti(detail(raw)),
        LinkType::PERF_EVENT => decode_perf(&detail(raw)),
        LinkType::TCX => LinkDetail::Tcx(detail(raw)),
        LinkType::NETKIT => LinkDetail::Netkit(detail(raw)),
        LinkType::SOCKMAP => LinkDetail::Sockmap(detail(raw)),
        _ => LinkDetail::None,
    }
}

/// The beginning of the detail bytes, as `T`.
fn detail<T: Pod>(raw: &info::LinkInfo) -> T {
    pod::bytes_of(&raw.detail)
        .get(..size_of::<T>())
        .and_then(pod::from_bytes)
        .unwrap_or_else(pod::zeroed)
}

fn decode_perf(raw: &PerfEventDetail) -> LinkDetail {
    let kind = raw.event_type;
    LinkDetail::PerfEvent(match kind {
        PerfLinkType::UPROBE | PerfLinkType::URETPROBE => PerfEvent::Uprobe {
            ret: kind == PerfLinkType::URETPROBE,
            offset: raw.offset,
            cookie: raw.addr_or_cookie,
        },
        PerfLinkType::KPROBE | PerfLinkType::KRETPROBE => PerfEvent::Kprobe(KprobeDetail {
            ret: kind == PerfLinkType::KRETPROBE,
            offset: raw.offset,
            addr: raw.addr_or_cookie,
            missed: raw.missed,
            cookie: raw.kprobe_cookie,
        }),
        PerfLinkType::TRACEPOINT => PerfEvent::Tracepoint {
            cookie: raw.addr_or_cookie,
        },
        PerfLinkType::EVENT => PerfEvent::Event {
            perf_type: raw.name_len,
            config: raw.name,
            cookie: raw.addr_or_cookie,
        },
        _ => return LinkDetail::None,
    })
}

/// The name that goes with a link: of its tracepoint, kernel function or user
/// binary, or of what an iterator walks. `None` for links without, and where
/// the kernel does not tell. Linux 5.8; perf events since 6.6, many user
/// places since 6.8.
pub fn link_name(link: BorrowedFd<'_>) -> Result<Option<OsString>> {
    require_kind(link, LINK)?;
    let known = link_info(link)?;
    let mut name = vec![0; NAME_MAX];
    let room = len32(COMMAND, name.len())?;
    let address = PtrMut::of(&mut name).address();
    let mut info = info::LinkInfo::default();
    match known.detail {
        LinkDetail::RawTracepoint(_) | LinkDetail::Iter(_) => put(
            &mut info,
            &RawTracepointDetail {
                tp_name: address,
                tp_name_len: room,
                ..Default::default()
            },
        ),
        LinkDetail::UprobeMulti(multi) if multi.count != 0 => put(
            &mut info,
            &UprobeMultiDetail {
                path: address,
                path_size: room,
                ..Default::default()
            },
        ),
        LinkDetail::PerfEvent(
            PerfEvent::Uprobe { .. } | PerfEvent::Kprobe(_) | PerfEvent::Tracepoint { .. },
        ) => put(
            &mut info,
            &PerfEventDetail {
                name: address,
                name_len: room,
                ..Default::default()
            },
        ),
        _ => return Ok(None),
    }
    // SAFETY: the one address is that of `name`, its length is beside it where
    // this kind of link has both; the kind of a link never changes.
    unsafe { info_by_fd(link, &mut info) }?;
    let name = text(name);
    Ok((!name.is_empty()).then_some(name))
}

/// Makes `value` the beginning of the detail bytes.
fn put<T: Pod>(info: &mut info::LinkInfo, value: &T) {
    let from = pod::bytes_of(value);
    if let Some(to) = pod::bytes_of_mut(&mut info.detail).get_mut(..from.len()) {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(link_type: LinkType, value: &impl Pod) -> info::LinkInfo {
        let mut raw = info::LinkInfo {
            link_type,
            ..Default::default()
        };
        put(&mut raw, value);
        raw
    }

    #[test]
    fn details_follow_the_kind() {
        let tcx = NetdevDetail {
            ifindex: 3,
            ..Default::default()
        };
        assert_eq!(decode(&raw(LinkType::TCX, &tcx), 64), LinkDetail::Tcx(tcx));
        // A kernel that filled in the common fields alone.
        assert_eq!(decode(&raw(LinkType::TCX, &tcx), 16), LinkDetail::None);
        assert_eq!(decode(&raw(LinkType(99), &tcx), 64), LinkDetail::None);
    }

    #[test]
    fn perf_events_follow_their_type() {
        let mut perf = PerfEventDetail {
            event_type: PerfLinkType::KRETPROBE,
            offset: 4,
            addr_or_cookie: 5,
            missed: 6,
            kprobe_cookie: 7,
            ..Default::default()
        };
        assert_eq!(
            decode(&raw(LinkType::PERF_EVENT, &perf), 64),
            LinkDetail::PerfEvent(PerfEvent::Kprobe(KprobeDetail {
                ret: true,
                offset: 4,
                addr: 5,
                missed: 6,
                cookie: 7
            }))
        );
        perf.event_type = PerfLinkType::UPROBE;
        assert_eq!(
            decode(&raw(LinkType::PERF_EVENT, &perf), 64),
            LinkDetail::PerfEvent(PerfEvent::Uprobe {
                ret: false,
                offset: 4,
                cookie: 5
            })
        );
        perf.event_type = PerfLinkType::EVENT;
        perf.name = 8;
        perf.name_len = 9;
        assert_eq!(
            decode(&raw(LinkType::PERF_EVENT, &perf), 64),
            LinkDetail::PerfEvent(PerfEvent::Event {
                perf_type: 9,
                config: 8,
                cookie: 5
            })
        );
        perf.event_type = PerfLinkType::UNSPEC;
        assert_eq!(
            decode(&raw(LinkType::PERF_EVENT, &perf), 64),
            LinkDetail::None
        );
    }
}
