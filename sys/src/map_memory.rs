//! The memory of array maps, shared with the programs that use them.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::Result;
use crate::abi::bpf::{MapFlags, MapType};
use crate::bpf::MapFd;
use crate::errno::{Errno, SysError};
use crate::mmap::{Access, Mapping};
use crate::proc::page_size;

/// Memory of a map.
enum Memory {
    Anywhere(Mapping),
    Fixed(FixedMapping),
}

impl Memory {
    fn ptr_at<T>(&self, offset: usize) -> *mut T {
        match self {
            Memory::Anywhere(mapping) => mapping.ptr_at(offset),
            Memory::Fixed(mapping) => {
                let start = std::ptr::with_exposed_provenance_mut::<u8>(mapping.address);
                start.wrapping_add(offset).cast()
            }
        }
    }
}

/// A shared mapping at an address of the map's choice.
struct FixedMapping {
    address: usize,
    len: usize,
}

impl FixedMapping {
    fn new(fd: BorrowedFd<'_>, address: usize, len: usize) -> Result<FixedMapping> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
        let wanted = std::ptr::without_provenance_mut(address);
        // SAFETY: MAP_FIXED_NOREPLACE takes no address that is in use, so no
        // memory that anything refers to is replaced.
        let got = unsafe { libc::mmap(wanted, len, protection, flags, fd.as_raw_fd(), 0) };
        if got == libc::MAP_FAILED {
            return Err(SysError::last("mmap"));
        }
        Ok(FixedMapping {
            address: got.expose_provenance(),
            len,
        })
    }
}

impl Drop for FixedMapping {
    fn drop(&mut self) {
        let start = std::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the mapping was made with this address and length, and what
        // was read from it was copied.
        unsafe { libc::munmap(start, self.len) };
    }
}

/// The values of a `BPF_MAP_TYPE_ARRAY` with `BPF_F_MMAPABLE`, mapped: global
/// variables are read and written without a system call.
///
/// Programs may write at the same time, so memory is copied, never lent. What
/// is aligned to its own size, up to 8 bytes, is copied as a whole and cannot
/// be seen half-written; there is no order between copies.
///
/// Dropping it unmaps; the map lives on.
///
/// Requires at least Linux 5.5.
pub struct MapMemory {
    map: Memory,
    len: usize,
    writable: bool,
}

impl MapMemory {
    /// Maps all values of `map`; for writing too, unless the map is frozen or
    /// read-only for user space.
    ///
    /// # Errors
    /// `EINVAL` if the map is no array or was made without `BPF_F_MMAPABLE`;
    /// otherwise what mmap(2) says.
    pub fn new(map: &MapFd) -> Result<MapMemory> {
        if map.map_type() != MapType::ARRAY || !map.flags().contains(MapFlags::MMAPABLE) {
            return Err(SysError::new("mmap", Errno::EINVAL)
                .with_detail("not an array map with BPF_F_MMAPABLE"));
        }
        // Each value starts at a multiple of 8 (`array_map_elem_size` in
        // kernel/bpf/arraymap.c of Linux 6.12).
        let len = map
            .value_size()
            .checked_next_multiple_of(8)
            .and_then(|size| size.checked_mul(map.max_entries() as usize))
            .ok_or_else(|| SysError::new("mmap", Errno::E2BIG))?;
        let pages = len
            .checked_next_multiple_of(page_size())
            .ok_or_else(|| SysError::new("mmap", Errno::E2BIG))?;
        let (mapping, writable) = match Mapping::new(map.as_fd(), 0, pages, Access::ReadWrite) {
            Ok(mapping) => (mapping, true),
            // EPERM: frozen. EACCES: read-only for user space.
            Err(err) if err.errno().is_permission() => {
                (Mapping::new(map.as_fd(), 0, pages, Access::Read)?, false)
            }
            Err(err) => return Err(err),
        };
        Ok(MapMemory {
            map: Memory::Anywhere(mapping),
            len,
            writable,
        })
    }

    /// Maps a whole arena. Programs can use an arena without an address
    /// (`map_extra`) only once it is mapped, and it is mapped to that place
    /// ever after. Pages take memory when they are first touched.
    ///
    /// Requires at least Linux 6.9.
    ///
    /// # Errors
    /// `EINVAL` if the map is no arena; `EEXIST` if something is at `address`
    /// (0 for any) already; otherwise what mmap(2) says.
    pub fn arena(map: &MapFd, address: u64) -> Result<MapMemory> {
        if map.map_type() != MapType::ARENA {
            return Err(SysError::new("mmap", Errno::EINVAL).with_detail("not an arena"));
        }
        let len = (map.max_entries() as usize)
            .checked_mul(page_size())
            .ok_or_else(|| SysError::new("mmap", Errno::E2BIG))?;
        let memory = if address == 0 {
            Memory::Anywhere(Mapping::new(map.as_fd(), 0, len, Access::ReadWrite)?)
        } else {
            Memory::Fixed(FixedMapping::new(map.as_fd(), address as usize, len)?)
        };
        Ok(MapMemory {
            map: memory,
            len,
            writable: true,
        })
    }

    /// Where the memory is in this process.
    pub fn address(&self) -> u64 {
        self.map.ptr_at::<u8>(0) as u64
    }

    /// Bytes of all values, each rounded up to a multiple of 8.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: no array is empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// False if the map is frozen or read-only for user space.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Copies the bytes at `offset` into `to`.
    ///
    /// # Errors
    /// `ERANGE` if they reach outside.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        self.check(offset, to.len())?;
        let mut at = offset;
        let mut rest = to;
        while !rest.is_empty() {
            let unit = unit(at, rest.len());
            let (head, tail) = rest.split_at_mut(unit);
            match unit {
                8 => head.copy_from_slice(&self.atomic64(at).load(Ordering::Relaxed).to_ne_bytes()),
                4 => head.copy_from_slice(&self.atomic32(at).load(Ordering::Relaxed).to_ne_bytes()),
                2 => head.copy_from_slice(&self.atomic16(at).load(Ordering::Relaxed).to_ne_bytes()),
                _ => head.copy_from_slice(&[self.atomic8(at).load(Ordering::Relaxed)]),
            }
            at += unit;
            rest = tail;
        }
        Ok(())
    }

    /// Copies `from` to the bytes at `offset`.
    ///
    /// # Errors
    /// `ERANGE` if they reach outside, `EPERM` if the map is not writable.
    #[expect(
        clippy::same_functions_in_if_condition,
        reason = "each converts to an array of another length"
    )]
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.check(offset, from.len())?;
        if !self.writable {
            return Err(
                SysError::new("write to a map", Errno::EPERM).with_detail("the map is frozen")
            );
        }
        let mut at = offset;
        let mut rest = from;
        while !rest.is_empty() {
            let unit = unit(at, rest.len());
            let (head, tail) = rest.split_at(unit);
            if let Ok(bytes) = head.try_into() {
                self.atomic64(at)
                    .store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
            } else if let Ok(bytes) = head.try_into() {
                self.atomic32(at)
                    .store(u32::from_ne_bytes(bytes), Ordering::Relaxed);
            } else if let Ok(bytes) = head.try_into() {
                self.atomic16(at)
                    .store(u16::from_ne_bytes(bytes), Ordering::Relaxed);
            } else if let [byte] = head {
                self.atomic8(at).store(*byte, Ordering::Relaxed);
            }
            at += unit;
            rest = tail;
        }
        Ok(())
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(SysError::new("access a map's memory", Errno::ERANGE)),
        }
    }

    fn atomic64(&self, at: usize) -> &AtomicU64 {
        // SAFETY: callers checked that 8 bytes at `at` lie inside the mapping,
        // which starts at a page, and that `at` is a multiple of 8; other
        // writers are programs, whose aligned accesses are whole.
        unsafe { &*self.map.ptr_at(at) }
    }

    fn atomic32(&self, at: usize) -> &AtomicU32 {
        // SAFETY: as for `atomic64`, with 4 bytes.
        unsafe { &*self.map.ptr_at(at) }
    }

    fn atomic16(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as for `atomic64`, with 2 bytes.
        unsafe { &*self.map.ptr_at(at) }
    }

    fn atomic8(&self, at: usize) -> &AtomicU8 {
        // SAFETY: callers checked that `at` lies inside the mapping.
        unsafe { &*self.map.ptr_at(at) }
    }
}

impl fmt::Debug for MapMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "MapMemory({} bytes, writable: {})",
            self.len, self.writable
        )
    }
}

/// The largest aligned unit at `offset` that is no longer than `left`, which is
/// not 0.
fn unit(offset: usize, left: usize) -> usize {
    let aligned = if offset == 0 {
        8
    } else {
        1 << offset.trailing_zeros().min(3)
    };
    let fits = 1 << left.ilog2().min(3);
    aligned.min(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{MapCreate, map_create};
    use std::io::Write;

    #[test]
    fn units_are_aligned_and_fit() {
        assert_eq!(unit(0, 100), 8);
        assert_eq!(unit(0, 7), 4);
        assert_eq!(unit(4, 8), 4);
        assert_eq!(unit(6, 8), 2);
        assert_eq!(unit(7, 8), 1);
        assert_eq!(unit(16, 1), 1);
        assert_eq!(unit(24, 8), 8);
    }

    #[test]
    fn memory_is_the_maps() {
        let created = map_create(&MapCreate {
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size: 21,
            max_entries: 3,
            flags: MapFlags::MMAPABLE,
            ..MapCreate::default()
        });
        let map = match created {
            Err(err) if err.errno().is_permission() => {
                let _ = writeln!(std::io::stderr(), "skipped: memory_is_the_maps: {err}");
                return;
            }
            created => created.unwrap(),
        };
        let memory = MapMemory::new(&map).unwrap();
        assert_eq!(memory.len(), 72);
        assert!(memory.is_writable());
        // From an odd place, over all widths.
        let pattern: Vec<u8> = (1..=20).collect();
        memory.write(25, &pattern).unwrap();
        let mut back = [0; 20];
        memory.read(25, &mut back).unwrap();
        assert_eq!(back, *pattern);
        let mut value = [0; 21];
        assert!(map.lookup(&1_u32.to_ne_bytes(), &mut value).unwrap());
        assert_eq!(value[1..], *pattern);

        assert!(memory.read(70, &mut [0; 3]).unwrap_err().is(Errno::ERANGE));
        assert!(
            memory
                .write(usize::MAX, &[0; 3])
                .unwrap_err()
                .is(Errno::ERANGE)
        );

        drop(memory);
        map.freeze().unwrap();
        let frozen = MapMemory::new(&map).unwrap();
        assert!(!frozen.is_writable());
        assert!(frozen.write(0, &[1]).unwrap_err().is(Errno::EPERM));
        frozen.read(25, &mut back).unwrap();
        assert_eq!(back, *pattern);
    }

    #[test]
    fn other_maps_are_refused() {
        let created = map_create(&MapCreate {
            map_type: MapType::ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
            ..MapCreate::default()
        });
        if let Ok(map) = created {
            assert!(MapMemory::new(&map).unwrap_err().is(Errno::EINVAL));
        }
    }
}
