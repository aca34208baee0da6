//! Shared mappings whose memory the kernel may change at any time, and the one
//! kernel file whose memory never changes.
//!
//! [`Mapping`] hands out no reference to plain memory: a `&[u8]` promises that
//! nobody writes while it lives, which memory shared with the kernel cannot
//! keep. It offers bounds-checked atomic loads and stores instead. The rings
//! built on top lend single records, for exactly as long as their protocol
//! forbids the kernel to write there.
//!
//! Regular files are not offered as slices at all: whoever may open one may
//! truncate or rewrite it under the mapping, so they have to be read.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{Mmap, MmapOptions, MmapRaw};

use crate::Result;
use crate::abi::pod::Pod;
use crate::errno::{Errno, SysError};

/// Bytes of a memory page.
pub fn page_size() -> usize {
    // SAFETY: sysconf takes an integer and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// What a mapping allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Loads only.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// A shared mapping (`MAP_SHARED`) of memory that the kernel or another
/// process may write to.
///
/// Dropping it unmaps. The mapping keeps the mapped object (BPF map, perf
/// event ring) alive, its descriptor may be closed.
#[derive(Debug)]
pub struct Mapping {
    raw: MmapRaw,
    access: Access,
}

impl Mapping {
    /// Maps `len` bytes of `fd` from byte `offset` on.
    ///
    /// # Errors
    /// `EINVAL` if `len` is zero or `offset` is no multiple of the page size;
    /// otherwise what mmap(2) says, such as `EPERM` where the kernel allows no
    /// writable mapping, or `ENODEV` where it allows none.
    pub fn new(fd: BorrowedFd<'_>, offset: u64, len: usize, access: Access) -> Result<Mapping> {
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
        Ok(Mapping { raw, access })
    }

    /// Bytes mapped; never zero.
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// The `u32` at byte `offset`, loaded with acquire ordering; `None` if the
    /// offset is out of bounds or not a multiple of 4.
    pub fn load_u32(&self, offset: usize) -> Option<u32> {
        Some(self.atomic_u32(offset)?.load(Ordering::Acquire))
    }

    /// The `u64` at byte `offset`, loaded with acquire ordering; `None` if the
    /// offset is out of bounds or not a multiple of 8.
    pub fn load_u64(&self, offset: usize) -> Option<u64> {
        Some(self.atomic_u64(offset)?.load(Ordering::Acquire))
    }

    /// Stores a `u32` at byte `offset` with release ordering; `None` if the
    /// offset is out of bounds or not a multiple of 4, or the mapping is
    /// read-only.
    pub fn store_u32(&self, offset: usize, value: u32) -> Option<()> {
        self.writable()?;
        self.atomic_u32(offset)?.store(value, Ordering::Release);
        Some(())
    }

    /// Stores a `u64` at byte `offset` with release ordering; `None` if the
    /// offset is out of bounds or not a multiple of 8, or the mapping is
    /// read-only.
    pub fn store_u64(&self, offset: usize, value: u64) -> Option<()> {
        self.writable()?;
        self.atomic_u64(offset)?.store(value, Ordering::Release);
        Some(())
    }

    fn writable(&self) -> Option<()> {
        (self.access == Access::ReadWrite).then_some(())
    }

    /// The atomic at `offset`. A store to a read-only mapping would fault,
    /// which is why the callers above ask first.
    fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
        let at = self.place::<u32>(offset)?;
        // SAFETY: `place` checked bounds and alignment; the memory stays
        // mapped as long as `self`, and this crate accesses shared memory of
        // a mapping's atomics in no other way.
        Some(unsafe { AtomicU32::from_ptr(at) })
    }

    fn atomic_u64(&self, offset: usize) -> Option<&AtomicU64> {
        let at = self.place::<u64>(offset)?;
        // SAFETY: as in `atomic_u32`.
        Some(unsafe { AtomicU64::from_ptr(at) })
    }

    /// Pointer to the integer at `offset`, if in bounds and aligned (mappings
    /// start at a page).
    fn place<T: Pod>(&self, offset: usize) -> Option<*mut T> {
        fits(self.len(), offset, size_of::<T>()).then(|| self.ptr_at(offset))
    }

    /// Pointer to byte `offset` of the mapping, unchecked. Reading through it
    /// is the caller's to justify.
    #[inline]
    pub(crate) fn ptr_at<T>(&self, offset: usize) -> *mut T {
        self.raw.as_mut_ptr().wrapping_add(offset).cast()
    }
}

/// Whether `size` bytes, aligned to their own size, lie at `offset` in `len`.
fn fits(len: usize, offset: usize, size: usize) -> bool {
    offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= len)
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
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open and `stat` is writable memory of the size
    // fstatfs fills.
    let ret = unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) };
    if ret != 0 {
        return Err(SysError::last("fstatfs"));
    }
    // SAFETY: fstatfs succeeded, so it filled the structure.
    let stat = unsafe { stat.assume_init() };
    #[allow(
        clippy::unnecessary_cast,
        reason = "the two types differ between C libraries"
    )]
    Ok(stat.f_type as i64 == libc::SYSFS_MAGIC as i64)
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
        assert!(offset + bytes.len() <= map.len());
        let to = map.ptr_at(offset);
        // SAFETY: in bounds as asserted; the tests write only where the ring
        // protocol has given the memory to the producer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn both_are_send_and_sync() {
        fn check<T: Send + Sync>() {}
        check::<Mapping>();
        check::<ReadOnlyMapping>();
    }

    #[test]
    fn bounds() {
        assert!(fits(16, 8, 8));
        assert!(!fits(16, 9, 8));
        assert!(!fits(16, 12, 8));
        assert!(!fits(16, 16, 4));
        assert!(!fits(16, usize::MAX - 3, 4));
        assert!(!fits(7, 0, 8));
    }

    #[test]
    fn loads_and_stores_reach_the_shared_memory() {
        let fd = testing::memfd(page_size());
        let rw = testing::writable(&fd, page_size());
        let ro = Mapping::new(fd.as_fd(), 0, page_size(), Access::Read).unwrap();
        assert_eq!(rw.store_u64(8, 0x0102_0304_0506_0708), Some(()));
        assert_eq!(ro.load_u64(8), Some(0x0102_0304_0506_0708));
        assert_eq!(rw.store_u32(0, 7), Some(()));
        assert_eq!(ro.load_u32(0), Some(7));
        assert_eq!(ro.store_u32(0, 1), None);
        assert_eq!(ro.store_u64(0, 1), None);
        assert_eq!(ro.load_u64(page_size()), None);
        assert_eq!(ro.load_u64(4), None);
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
        let map = match map_vmlinux_btf() {
            Ok(map) => map,
            Err(err) if err.is(Errno::ENOENT) || err.is(Errno::ENODEV) => {
                eprintln!("skipped: kernel_types_are_mapped_without_a_copy: {err}");
                return;
            }
            Err(err) => panic!("{err}"),
        };
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
