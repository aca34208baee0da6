//! Maps: creation, elements, batches.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::info::is_kind;
use super::{bpf, bpf_fd, bpf_once, invalid, len32, map_info, num, num_or_none, obj_name, op};
use crate::Result;
use crate::abi::attr::{self, Attr, Ptr, PtrMut};
use crate::abi::bpf::{Command, ElemFlags, MapFlags, MapType};
use crate::errno::{Errno, SysError, retry_eintr};
use crate::fd;

/// A map to create. Start from `Default` and set what differs.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapCreate<'a> {
    /// Kind of map.
    pub map_type: MapType,
    /// Bytes of a key; 0 for kinds without keys.
    pub key_size: u32,
    /// Bytes of one value; per CPU where values are.
    pub value_size: u32,
    /// Elements; bytes for ring buffers, pages for arenas.
    pub max_entries: u32,
    /// Flags. Those that announce one of the fields below are added.
    pub flags: MapFlags,
    /// Name, passed through [`obj_name`]. Empty for none, which kernels before
    /// 4.15 need.
    pub name: &'a str,
    /// Model of the inner maps of a map of maps. Linux 4.12.
    pub inner_map: Option<BorrowedFd<'a>>,
    /// Memory node to allocate on. Linux 4.14.
    pub numa_node: Option<u32>,
    /// Network device to offload to, 0 for none. Linux 4.16.
    pub ifindex: u32,
    /// BTF with the types of key and value. Linux 4.18.
    pub btf: Option<BorrowedFd<'a>>,
    /// Type of the key in `btf`, 0 for none.
    pub btf_key_type_id: u32,
    /// Type of the value in `btf`, 0 for none.
    pub btf_value_type_id: u32,
    /// Kernel type of a struct_ops value. Linux 5.6.
    pub btf_vmlinux_value_type_id: u32,
    /// Hash functions of a bloom filter, address of an arena. Linux 5.16.
    pub map_extra: u64,
    /// BTF of the module that `btf_vmlinux_value_type_id` is from. Linux 6.9.
    pub value_type_btf: Option<BorrowedFd<'a>>,
    /// Token that grants the right to create. Linux 6.9.
    pub token: Option<BorrowedFd<'a>>,
}

/// `BPF_MAP_CREATE`. Linux 3.18.
///
/// # Errors
/// `E2BIG` if a field is set that this kernel does not know.
pub fn map_create(create: &MapCreate<'_>) -> Result<MapFd> {
    let mut flags = create.flags;
    flags.set(
        MapFlags::NUMA_NODE,
        create.numa_node.is_some() || flags.contains(MapFlags::NUMA_NODE),
    );
    if create.value_type_btf.is_some() {
        flags |= MapFlags::VTYPE_BTF_OBJ_FD;
    }
    if create.token.is_some() {
        flags |= MapFlags::TOKEN_FD;
    }
    // Before the call, so that a map is never created and then lost.
    let buffer_value_size = buffer_value_size(create.map_type, create.value_size)?;
    let mut attr = attr::MapCreate {
        map_type: create.map_type,
        key_size: create.key_size,
        value_size: create.value_size,
        max_entries: create.max_entries,
        map_flags: flags.bits(),
        inner_map_fd: num_or_none(create.inner_map),
        numa_node: create.numa_node.unwrap_or(0),
        map_name: obj_name(create.name),
        map_ifindex: create.ifindex,
        btf_fd: num_or_none(create.btf),
        btf_key_type_id: create.btf_key_type_id,
        btf_value_type_id: create.btf_value_type_id,
        btf_vmlinux_value_type_id: create.btf_vmlinux_value_type_id,
        map_extra: create.map_extra,
        value_type_btf_obj_fd: num_or_none(create.value_type_btf) as i32,
        map_token_fd: num_or_none(create.token) as i32,
    };
    // SAFETY: the attribute holds no address.
    let fd = unsafe { bpf_fd(Command::MAP_CREATE, &mut attr) }?;
    Ok(MapFd {
        fd,
        map_type: create.map_type,
        flags,
        key_size: create.key_size as usize,
        value_size: create.value_size as usize,
        buffer_value_size,
        max_entries: create.max_entries,
    })
}

/// Bytes a value takes in a buffer of user space; `None` for a kind of map
/// this crate does not know, whose values may take any number.
pub(super) fn buffer_value_size(map_type: MapType, value_size: u32) -> Result<Option<usize>> {
    let size = value_size as usize;
    Ok(match map_type {
        _ if is_per_cpu(map_type) => {
            let cpus = super::possible_cpus()?;
            Some(
                size.next_multiple_of(8)
                    .checked_mul(cpus)
                    .ok_or_else(|| invalid(Command::MAP_CREATE, "value too large"))?,
            )
        }
        _ if map_type.name().is_some() => Some(size),
        _ => None,
    })
}

/// Whether maps of a type have a value for each CPU.
fn is_per_cpu(map_type: MapType) -> bool {
    matches!(
        map_type,
        MapType::PERCPU_HASH
            | MapType::PERCPU_ARRAY
            | MapType::LRU_PERCPU_HASH
            | MapType::PERCPU_CGROUP_STORAGE
    )
}

/// A map, with the sizes the kernel has for it.
///
/// The kernel reads and writes whole keys and values without being told how
/// large the caller's buffers are. The sizes here come from the kernel or from
/// the call that created the map, so every function can check. Dropping it
/// closes the descriptor; the map lives on while anything else refers to it.
#[derive(Debug)]
pub struct MapFd {
    fd: OwnedFd,
    map_type: MapType,
    flags: MapFlags,
    key_size: usize,
    value_size: usize,
    buffer_value_size: Option<usize>,
    max_entries: u32,
}

impl AsFd for MapFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<MapFd> for OwnedFd {
    fn from(map: MapFd) -> OwnedFd {
        map.fd
    }
}

impl MapFd {
    /// Takes a map descriptor from elsewhere and asks the kernel for its
    /// sizes. Linux 4.13.
    ///
    /// # Errors
    /// `EINVAL` if the descriptor is not that of a map.
    pub fn from_fd(fd: OwnedFd) -> Result<MapFd> {
        let fd = fd::above_std(fd)?;
        if is_kind(fd.as_fd(), "bpf-map") == Some(false) {
            return Err(invalid(Command::OBJ_GET_INFO_BY_FD, "not a map"));
        }
        let info = map_info(fd.as_fd())?;
        Ok(MapFd {
            map_type: info.map_type,
            flags: MapFlags::from_bits_retain(info.map_flags),
            key_size: info.key_size as usize,
            value_size: info.value_size as usize,
            buffer_value_size: buffer_value_size(info.map_type, info.value_size)?,
            max_entries: info.max_entries,
            fd,
        })
    }

    /// Another descriptor of the same map.
    pub fn try_clone(&self) -> Result<MapFd> {
        Ok(MapFd {
            fd: fd::dup(self.fd.as_fd())?,
            ..*self
        })
    }

    /// Kind of map.
    pub fn map_type(&self) -> MapType {
        self.map_type
    }

    /// Flags the map was created with.
    pub fn flags(&self) -> MapFlags {
        self.flags
    }

    /// Bytes of a key; 0 for kinds without keys.
    pub fn key_size(&self) -> usize {
        self.key_size
    }

    /// Bytes of one value; per CPU where values are.
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    /// Elements; bytes for ring buffers, pages for arenas.
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Bytes of a value in the buffers of the functions below: for per-CPU
    /// kinds one value per possible CPU, each rounded up to 8 bytes, otherwise
    /// [`value_size`](Self::value_size). `None` for kinds of map this crate
    /// does not know; the functions refuse those.
    pub fn buffer_value_size(&self) -> Option<usize> {
        self.buffer_value_size
    }

    /// Whether an element has a value for each possible CPU.
    pub fn is_per_cpu(&self) -> bool {
        is_per_cpu(self.map_type)
    }

    fn check_key(&self, command: Command, key: &[u8]) -> Result<()> {
        if key.len() != self.key_size {
            return Err(wrong_len(command, "key", key.len(), Some(self.key_size)));
        }
        Ok(())
    }

    fn check_value(&self, command: Command, value: &[u8]) -> Result<()> {
        if Some(value.len()) != self.buffer_value_size {
            let expected = self.buffer_value_size;
            return Err(wrong_len(command, "value", value.len(), expected));
        }
        Ok(())
    }

    /// Copies the value of `key` into `value`; false if there is none. Queues
    /// and stacks (4.20) take an empty key and are not changed; a bloom filter
    /// (5.16) takes an empty key and says whether it may hold `value`.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<bool> {
        self.lookup_with_flags(key, value, ElemFlags::empty())
    }

    /// [`lookup`](Self::lookup) with flags. Linux 5.1.
    pub fn lookup_with_flags(
        &self,
        key: &[u8],
        value: &mut [u8],
        flags: ElemFlags,
    ) -> Result<bool> {
        self.read_elem(Command::MAP_LOOKUP_ELEM, key, value, flags)
    }

    /// Moves the value of `key` into `value`; false if there is none. Linux
    /// 4.20 for queues and stacks, 5.14 for hashes.
    pub fn lookup_and_delete(
        &self,
        key: &[u8],
        value: &mut [u8],
        flags: ElemFlags,
    ) -> Result<bool> {
        self.read_elem(Command::MAP_LOOKUP_AND_DELETE_ELEM, key, value, flags)
    }

    fn read_elem(
        &self,
        command: Command,
        key: &[u8],
        value: &mut [u8],
        flags: ElemFlags,
    ) -> Result<bool> {
        self.check_key(command, key)?;
        self.check_value(command, value)?;
        let mut attr = attr::MapElemMut {
            map_fd: num(self.as_fd()),
            key: Ptr::of(key),
            value_or_next_key: PtrMut::of(value),
            flags: flags.bits(),
            ..Default::default()
        };
        // SAFETY: the kernel reads `key_size` bytes of `key` and writes
        // `buffer_value_size` bytes of `value`; both lengths were checked.
        found(unsafe { bpf(command, &mut attr) })
    }

    /// Stores `value` under `key`. Kinds without keys take an empty one.
    ///
    /// Values of a `TASK_STORAGE` map may hold pointers to memory of this
    /// process, where their BTF says `__uptr` (Linux 6.13): the kernel pins the
    /// page behind such a number, and programs read and write there. What they
    /// point to must be memory that nothing here holds a reference to.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` as `flags` demand; `E2BIG` if the map is full.
    pub fn update(&self, key: &[u8], value: &[u8], flags: ElemFlags) -> Result<()> {
        self.check_key(Command::MAP_UPDATE_ELEM, key)?;
        self.check_value(Command::MAP_UPDATE_ELEM, value)?;
        let mut attr = attr::MapElem {
            map_fd: num(self.as_fd()),
            key: Ptr::of(key),
            value: Ptr::of(value),
            flags: flags.bits(),
            ..Default::default()
        };
        // SAFETY: the kernel reads `key_size` bytes of `key` and
        // `buffer_value_size` bytes of `value`; both lengths were checked.
        unsafe { bpf(Command::MAP_UPDATE_ELEM, &mut attr) }?;
        Ok(())
    }

    /// Removes `key`; false if it is not there. Arrays refuse with `EINVAL`.
    pub fn delete(&self, key: &[u8]) -> Result<bool> {
        self.check_key(Command::MAP_DELETE_ELEM, key)?;
        let mut attr = attr::MapElem {
            map_fd: num(self.as_fd()),
            key: Ptr::of(key),
            ..Default::default()
        };
        // SAFETY: the kernel reads `key_size` bytes of `key`, as checked.
        found(unsafe { bpf(Command::MAP_DELETE_ELEM, &mut attr) })
    }

    /// Copies the key after `key` into `next`; the first one for `None` (4.12)
    /// and for a key that is not in the map. False after the last one.
    pub fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<bool> {
        if let Some(key) = key {
            self.check_key(Command::MAP_GET_NEXT_KEY, key)?;
        }
        self.check_key(Command::MAP_GET_NEXT_KEY, next)?;
        let mut attr = attr::MapElemMut {
            map_fd: num(self.as_fd()),
            key: Ptr::of(key.unwrap_or(&[])),
            value_or_next_key: PtrMut::of(next),
            ..Default::default()
        };
        // SAFETY: the kernel reads `key_size` bytes of `key` and writes as
        // many to `next`; both lengths were checked.
        found(unsafe { bpf(Command::MAP_GET_NEXT_KEY, &mut attr) })
    }

    /// Forbids any further change from user space. Linux 5.2.
    pub fn freeze(&self) -> Result<()> {
        let mut attr = attr::MapFreeze {
            map_fd: num(self.as_fd()),
        };
        // SAFETY: the attribute holds no address.
        unsafe { bpf(Command::MAP_FREEZE, &mut attr) }?;
        Ok(())
    }

    /// Copies the next elements into `keys` and `values`, which hold whole
    /// keys and values of as many elements, and returns how many there were.
    /// Linux 5.6.
    ///
    /// Fewer than asked for does not mean the end: ask `cursor.is_done()`.
    ///
    /// # Errors
    /// `ENOSPC` if one bucket of a hash holds more elements than the buffers
    /// do; the cursor stays where it is. `ENOTSUPP` for kinds without batches.
    pub fn lookup_batch(
        &self,
        cursor: &mut BatchCursor,
        keys: &mut [u8],
        values: &mut [u8],
        flags: ElemFlags,
    ) -> Result<usize> {
        self.read_batch(Command::MAP_LOOKUP_BATCH, cursor, keys, values, flags)
    }

    /// [`lookup_batch`](Self::lookup_batch) that removes what it copies.
    /// Linux 5.6, hashes only.
    pub fn lookup_and_delete_batch(
        &self,
        cursor: &mut BatchCursor,
        keys: &mut [u8],
        values: &mut [u8],
        flags: ElemFlags,
    ) -> Result<usize> {
        let command = Command::MAP_LOOKUP_AND_DELETE_BATCH;
        self.read_batch(command, cursor, keys, values, flags)
    }

    fn read_batch(
        &self,
        command: Command,
        cursor: &mut BatchCursor,
        keys: &mut [u8],
        values: &mut [u8],
        flags: ElemFlags,
    ) -> Result<usize> {
        let count = self.check_batch(command, keys, Some(values))?;
        if cursor.token.len() < self.token_len() {
            return Err(invalid(command, "cursor of another map"));
        }
        // Asked for nothing, the kernel does not say where it is.
        if cursor.done || count == 0 {
            return Ok(0);
        }
        let mut attr = attr::MapBatchMut {
            in_batch: Ptr::of(if cursor.started { &cursor.token } else { &[] }),
            out_batch: PtrMut::of(&mut cursor.next),
            keys: PtrMut::of(keys),
            values: PtrMut::of(values),
            map_fd: num(self.as_fd()),
            elem_flags: flags.bits(),
            ..Default::default()
        };
        let result = retry_eintr(op(command), || {
            // A kernel that gives up with EINTR, as it does when an array
            // element vanishes under it, has written what it copied so far.
            attr.count = count;
            // SAFETY: the kernel reads and writes a position of at most
            // `token_len` bytes, `count` keys and `count` values; all lengths
            // were checked.
            unsafe { bpf_once(command, attr.bytes_mut(), attr::MapBatchMut::MIN_LEN) }
        });
        match result {
            Ok(_) => {}
            Err(err) if err.is(Errno::ENOENT) => cursor.done = true,
            Err(err) => return Err(err),
        }
        let filled = attr.count.min(count) as usize;
        cursor.started = true;
        std::mem::swap(&mut cursor.token, &mut cursor.next);
        Ok(filled)
    }

    /// Stores `values` under `keys`, in order. Linux 5.6.
    pub fn update_batch(
        &self,
        keys: &[u8],
        values: &[u8],
        flags: ElemFlags,
    ) -> Result<(), BatchError> {
        self.write_batch(Command::MAP_UPDATE_BATCH, keys, Some(values), flags)
    }

    /// Removes `keys`, in order. Linux 5.6.
    pub fn delete_batch(&self, keys: &[u8], flags: ElemFlags) -> Result<(), BatchError> {
        self.write_batch(Command::MAP_DELETE_BATCH, keys, None, flags)
    }

    fn write_batch(
        &self,
        command: Command,
        keys: &[u8],
        values: Option<&[u8]>,
        flags: ElemFlags,
    ) -> Result<(), BatchError> {
        let count = self
            .check_batch(command, keys, values)
            .map_err(|source| BatchError { done: 0, source })?;
        let mut attr = attr::MapBatch {
            keys: Ptr::of(keys),
            values: Ptr::of(values.unwrap_or(&[])),
            count,
            map_fd: num(self.as_fd()),
            elem_flags: flags.bits(),
            ..Default::default()
        };
        // SAFETY: the kernel reads `count` keys and, unless it deletes,
        // `count` values; both lengths were checked.
        match unsafe { bpf(command, &mut attr) } {
            Ok(_) => Ok(()),
            // A kernel that refuses before it starts leaves the count alone.
            Err(source) => Err(BatchError {
                done: if attr.count < count {
                    attr.count as usize
                } else {
                    0
                },
                source,
            }),
        }
    }

    /// How many elements the buffers hold.
    fn check_batch(&self, command: Command, keys: &[u8], values: Option<&[u8]>) -> Result<u32> {
        if self.key_size == 0 || !keys.len().is_multiple_of(self.key_size) {
            let expected = Some(self.key_size);
            return Err(wrong_len(command, "keys", keys.len(), expected));
        }
        let count = keys.len() / self.key_size;
        if let Some(values) = values {
            let expected = self.buffer_value_size.and_then(|s| s.checked_mul(count));
            if expected != Some(values.len()) {
                return Err(wrong_len(command, "values", values.len(), expected));
            }
        }
        len32(command, count)
    }

    /// Bytes of a position between batches: hashes count buckets in 4 bytes,
    /// other kinds use a key.
    fn token_len(&self) -> usize {
        self.key_size.max(8)
    }
}

/// How far batched lookups of one map have come.
#[derive(Clone, Debug)]
pub struct BatchCursor {
    token: Vec<u8>,
    next: Vec<u8>,
    started: bool,
    done: bool,
}

impl BatchCursor {
    /// In front of the first element of `map`. Allocates; batches do not.
    pub fn new(map: &MapFd) -> BatchCursor {
        BatchCursor {
            token: vec![0; map.token_len()],
            next: vec![0; map.token_len()],
            started: false,
            done: false,
        }
    }

    /// The last element has been returned.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Returns to the front.
    pub fn rewind(&mut self) {
        self.started = false;
        self.done = false;
    }
}

/// A batch that stopped on the way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("batch stopped after {done} elements")]
pub struct BatchError {
    /// Elements stored or removed before the one that failed.
    pub done: usize,
    /// Why.
    #[source]
    pub source: SysError,
}

/// Whether an element was there.
fn found(result: Result<i64>) -> Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(err) if err.is(Errno::ENOENT) => Ok(false),
        Err(err) => Err(err),
    }
}

#[cold]
fn wrong_len(
    command: Command,
    what: &'static str,
    given: usize,
    expected: Option<usize>,
) -> SysError {
    let detail = match expected {
        Some(expected) => format!("{what} of {given} bytes, the map takes {expected}"),
        None => "values of this kind of map have no known size".to_owned(),
    };
    SysError::new(op(command), Errno::EINVAL).with_detail(detail)
}
