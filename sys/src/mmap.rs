//! Shared mappings whose memory the kernel may change at any time, and the one
//! kernel file whose memory never changes.
//!
//! A `Mapping` hands out no reference to its memory: a `&[u8]` promises that
//! nobody writes while it lives, which memory shared with the kernel cannot
//! keep. The rings built on top access positions as atomics and lend single
//! records, for exactly as long as their protocol forbids the kernel to write
//! there. It stays inside the crate, because whoever could map a ring a second
//! time and store to it would break that protocol in safe code.
//!
//! Regular files are not offered as slices at all: whoever may open one may
//! truncate or rewrite it under the mapping, so they have to be read.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

use memmap2::{Mmap, MmapOptions, MmapRaw};

use crate::Result;
use crate::errno::{Errno, SysError};
use crate::proc::{file_system, page_size};

/// What a mapping allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

/// A shared mapping (`MAP_SHARED`) of memory that the kernel may write to.
///
/// Dropping it unmaps. The mapping keeps the mapped object (BPF map, perf
/// event ring) alive, its descriptor may be closed.
///
/// It is `Send` and `Sync` because it only is an address and a length: every
/// access is an unsafe one that its user justifies.
#[derive(Debug)]
pub(crate) struct Mapping {
    raw: MmapRaw,
}

impl Mapping {
    /// Maps `len` bytes of `fd` from byte `offset` on.
    ///
    /// # Errors
    /// `EINVAL` if `len` is zero or `offset` is no multiple of the page size;
    /// otherwise what mmap(2) says, such as `EPERM` where the kernel allows no
    /// writable mapping, or `ENODEV` where it allows none.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: Access,
    ) -> Result<Mapping> {
        if len == 0 || !offset.is_multiple_of(page_size() as u64) {
            return Err(SysError::new("mmap", Errno::EINVAL));
        }
        let mut options = MmapOptions::new();
        options.offset(offset).len(len);
        let raw = match access {
            Access::Read => options.map_raw_read_only(fd.as_raw_fd()),
            Access::ReadWrite => options.map_raw(fd.as_raw_fd()),
        };
        let raw = raw.map_err(|err| SysError::from_io("mmap", &err))?;
        Ok(Mapping { raw })
    }

    /// Pointer to byte `offset` of the mapping, which starts at a page.
    /// Unchecked: bounds and alignment are for the user to justify.
    #[inline]
    pub(crate) fn ptr_at<T>(&self, offset: usize) -> *mut T {
        self.raw.as_mut_ptr().wrapping_add(offset).cast()
    }
}

/// A read-only mapping of memory that does not change while it is mapped.
///
/// Dropping it unmaps.
#[derive(Debug)]
pub struct ReadOnlyMapping {
    map: Mmap,
}

impl ReadOnlyMapping {
    /// The mapped bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.map
    }
}

const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Maps the type information of the running kernel,
/// `/sys/kernel/btf/vmlinux`, without copying it (it is several megabytes).
///
/// Requires at least Linux 6.16; before that the file can only be read, and
/// this fails with `ENODEV`.
///
/// # Errors
/// `ENOENT` if the kernel has no BTF, `ENODEV` if it cannot be mapped,
/// `EINVAL` if the path is not on sysfs.
pub fn map_vmlinux_btf() -> Result<ReadOnlyMapping> {
    let fail = |op, err: &std::io::Error| SysError::from_io(op, err).with_path(VMLINUX_BTF);
    let file = File::open(VMLINUX_BTF).map_err(|err| fail("open", &err))?;
    if !is_on_sysfs(&file)? {
        return Err(SysError::new("open", Errno::EINVAL)
            .with_path(VMLINUX_BTF)
            .with_detail("not on sysfs"));
    }
    let size = file.metadata().map_err(|err| fail("fstat", &err))?.len();
    let size = usize::try_from(size)
        .ok()
        .filter(|&size| size != 0)
        .ok_or_else(|| SysError::new("fstat", Errno::ENODATA).with_path(VMLINUX_BTF))?;
    let mut options = MmapOptions::new();
    options.len(size);
    // The kernel refuses a shared mapping of this file: `VM_MAYSHARE` in
    // btf_sysfs_vmlinux_mmap(), kernel/bpf/sysfs_btf.c of Linux 6.16.
    // SAFETY: `file` is `vmlinux` on sysfs, checked above. The kernel backs it
    // with its own read-only section between __start_BTF and __stop_BTF, which
    // is fixed when the kernel is linked, has exactly the size just read, and
    // is neither written nor freed while the kernel runs; it refuses writable
    // mappings of it.
    let map = unsafe { options.map_copy_read_only(&file) };
    let map = map.map_err(|err| fail("mmap", &err))?;
    Ok(ReadOnlyMapping { map })
}

fn is_on_sysfs(file: &File) -> Result<bool> {
    #[allow(
        clippy::unnecessary_cast,
        reason = "the type differs between C libraries"
    )]
    Ok(file_system(file)? == libc::SYSFS_MAGIC as i64)
}

/// Memory that tests share with themselves in place of the kernel.
#[cfg(test)]
pub(crate) mod testing {
    use super::{Access, Mapping};
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    pub(crate) fn memfd(len: usize) -> OwnedFd {
        // SAFETY: the name is a terminated string; the call returns a number.
        let raw = unsafe { libc::memfd_create(c"ring".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(raw >= 0);
        // SAFETY: memfd_create just returned this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        std::fs::File::from(fd.try_clone().unwrap())
            .set_len(len as u64)
            .unwrap();
        fd
    }

    pub(crate) fn writable(fd: &OwnedFd, len: usize) -> Mapping {
        Mapping::new(fd.as_fd(), 0, len, Access::ReadWrite).unwrap()
    }

    /// Writes as the kernel would: behind the reader's back.
    pub(crate) fn poke(map: &Mapping, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= map.raw.len());
        let to = map.ptr_at(offset);
        // SAFETY: in bounds as asserted; the tests write only where the ring
        // protocol has given the memory to the producer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    pub(crate) fn peek(map: &Mapping, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= map.raw.len());
        let mut bytes = vec![0; len];
        let from = map.ptr_at::<u8>(offset);
        // SAFETY: in bounds as asserted; nobody else writes meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len) };
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::require;
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn both_are_send_and_sync() {
        fn check<T: Send + Sync>() {}
        check::<Mapping>();
        check::<ReadOnlyMapping>();
    }

    #[test]
    fn mappings_share_their_memory() {
        let page = page_size();
        let fd = testing::memfd(2 * page);
        let whole = testing::writable(&fd, 2 * page);
        let second = Mapping::new(fd.as_fd(), page as u64, page, Access::Read).unwrap();
        testing::poke(&whole, page + 8, b"shared");
        assert_eq!(testing::peek(&second, 8, 6), b"shared");
    }

    #[test]
    fn bad_ranges_are_refused() {
        let fd = testing::memfd(page_size());
        let map = |offset, len| Mapping::new(fd.as_fd(), offset, len, Access::Read);
        assert!(map(1, 8).unwrap_err().is(Errno::EINVAL));
        assert!(map(0, 0).unwrap_err().is(Errno::EINVAL));
    }

    #[test]
    fn kernel_types_are_mapped_without_a_copy() {
        let map = require!((6, 16), ["CONFIG_DEBUG_INFO_BTF"], map_vmlinux_btf());
        let mut read = Vec::new();
        File::open(VMLINUX_BTF)
            .unwrap()
            .read_to_end(&mut read)
            .unwrap();
        assert!(map.as_slice() == read);
    }

    #[test]
    fn only_sysfs_counts_as_sysfs() {
        assert!(!is_on_sysfs(&File::open("/proc/self/status").unwrap()).unwrap());
    }
}
