//! The memory of array maps, shared with the programs that use them.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

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
/// lies in one aligned word of 8 bytes is copied as a whole and cannot be seen
/// half-written; there is no order between words.
///
/// Dropping it unmaps; the map lives on.
///
/// Requires at least Linux 5.5.
pub struct MapMemory {
    map: Memory,
    /// A multiple of 8.
    len: usize,
    writable: bool,
    /// Touching a page may be fatal.
    faults: bool,
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
            faults: false,
        })
    }

    /// Maps a whole arena. Programs can use an arena without an address
    /// (`map_extra`) only once it is mapped, and it is mapped to that place
    /// ever after. Pages take memory when they are first touched; with the
    /// flag `BPF_F_SEGV_ON_FAULT` only programs allocate them, and touching any
    /// other raises SIGSEGV: the memory of such an arena is mapped, but neither
    /// read nor written here.
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
            faults: map.flags().contains(MapFlags::SEGV_ON_FAULT),
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
    /// `ERANGE` if they reach outside; `EOPNOTSUPP` for an arena that was made
    /// with `BPF_F_SEGV_ON_FAULT`.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        self.check(offset, to.len())?;
        let mut at = offset;
        let mut rest = to;
        while !rest.is_empty() {
            let (start, len) = part(at, rest.len());
            let (head, tail) = rest.split_at_mut(len);
            let word = self.word(at - start).load(Ordering::Relaxed).to_ne_bytes();
            for (to, from) in head.iter_mut().zip(word.iter().skip(start)) {
                *to = *from;
            }
            at += len;
            rest = tail;
        }
        Ok(())
    }

    /// Copies `from` to the bytes at `offset`.
    ///
    /// # Errors
    /// `ERANGE` if they reach outside, `EPERM` if the map is not writable;
    /// `EOPNOTSUPP` for an arena that was made with `BPF_F_SEGV_ON_FAULT`.
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
            let (start, len) = part(at, rest.len());
            let (head, tail) = rest.split_at(len);
            let word = self.word(at - start);
            if let Ok(whole) = head.try_into() {
                word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
            } else {
                // A program may write beside our part.
                let put = |old: u64| {
                    let mut new = old.to_ne_bytes();
                    for (to, from) in new.iter_mut().skip(start).zip(head) {
                        *to = *from;
                    }
                    Some(u64::from_ne_bytes(new))
                };
                let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, put);
            }
            at += len;
            rest = tail;
        }
        Ok(())
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        let op = "access a map's memory";
        if self.faults {
            return Err(SysError::new(op, Errno::EOPNOTSUPP).with_detail(
                "the arena has BPF_F_SEGV_ON_FAULT: touching a page that no program \
                 has allocated kills the process",
            ));
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(SysError::new(op, Errno::ERANGE)),
        }
    }

    /// The word at `at`. All access is by words, also to parts of them, because
    /// atomics of different sizes on the same bytes are undefined.
    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: callers checked that a byte of the 8 at `at`, a multiple of
        // 8, lies inside `len`, which is a multiple of 8 too. The mapping
        // starts at a page; other writers are programs, whose aligned accesses
        // are whole.
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

/// Where `offset` lies in its word, and how many of the next `left` bytes are
/// in the same word.
fn part(offset: usize, left: usize) -> (usize, usize) {
    let start = offset % 8;
    (start, left.min(8 - start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::{MapCreate, map_create};
    use crate::testing::require;
    use std::io::Write;

    #[test]
    fn parts_end_with_their_word() {
        assert_eq!(part(0, 100), (0, 8));
        assert_eq!(part(0, 7), (0, 7));
        assert_eq!(part(4, 8), (4, 4));
        assert_eq!(part(7, 8), (7, 1));
        assert_eq!(part(17, 1), (1, 1));
    }

    #[test]
    fn arenas_that_kill_are_not_touched() {
        let created = |flags| {
            map_create(&MapCreate {
                map_type: MapType::ARENA,
                max_entries: 1,
                flags: MapFlags::MMAPABLE | flags,
                ..MapCreate::default()
            })
        };
        let map = require!((6, 9), created(MapFlags::SEGV_ON_FAULT));
        let memory = MapMemory::arena(&map, 0).unwrap();
        assert_ne!(memory.address(), 0);
        let err = memory.write(0, &[1]).unwrap_err();
        assert!(err.is(Errno::EOPNOTSUPP), "{err}");
        let err = memory.read(0, &mut [0]).unwrap_err();
        assert!(err.to_string().contains("BPF_F_SEGV_ON_FAULT"), "{err}");

        let map = created(MapFlags::empty()).unwrap();
        let memory = MapMemory::arena(&map, 0).unwrap();
        memory.write(1, &[1]).unwrap();
        let mut back = [7; 2];
        memory.read(0, &mut back).unwrap();
        assert_eq!(back, [0, 1]);
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
