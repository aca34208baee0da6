//! Maps: creation with fallback to old kernels, elements, pins.

mod elements;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use ebpf_manager_elf::MapSpec;
use ebpf_manager_sys::abi::bpf::{MapFlags, MapType, ProgramType};
use ebpf_manager_sys::abi::insn::Insn;
use ebpf_manager_sys::bpf::{self as sys, MapCreate, MapFd, ProgLoad};
use ebpf_manager_sys::map_memory::MapMemory;
use ebpf_manager_sys::{Errno, SysError};

use crate::cure::{self, Need};
use crate::error::MapError;
use crate::memlock;
use crate::struct_ops::Operations;

/// A live map.
///
/// Clones share one descriptor. It is closed with the last of them; the kernel
/// frees the map when nothing else (a program, a pin, another descriptor)
/// holds it.
#[derive(Clone, Debug)]
pub struct Map {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    fd: MapFd,
    name: String,
    lost: Vec<Loss>,
    operations: OnceLock<Box<[u8]>>,
    arena: Option<MapMemory>,
}

/// Something that an older kernel made us do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What is missing.
    pub what: &'static str,
    /// The first kernel version that has it.
    pub since: &'static str,
}

/// Kernel objects that a map's creation refers to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MapContext<'a> {
    /// The object's BTF, which `key_type_id` and `value_type_id` belong to.
    pub(crate) btf: Option<BorrowedFd<'a>>,
    /// A map of the inner definition.
    pub(crate) inner: Option<BorrowedFd<'a>>,
    /// For a map of type `STRUCT_OPS`.
    pub(crate) operations: Option<&'a Operations>,
}

impl Map {
    /// Creates a map. Contents, slots and pinning of the specification are
    /// left to [`Collection`](crate::Collection); BTF types are not attached.
    ///
    /// An inner map is created from `spec.inner` as a model and closed again.
    ///
    /// # Errors
    /// [`MapError::Spec`] if sizes are missing, [`MapError::Create`] if the
    /// kernel refuses.
    pub fn create(spec: &MapSpec) -> Result<Map, MapError> {
        Map::create_in(spec, MapContext::default())
    }

    pub(crate) fn create_in(spec: &MapSpec, context: MapContext<'_>) -> Result<Map, MapError> {
        let model = match (&spec.inner, context.inner) {
            (Some(inner), None) => Some(Map::create_in(
                inner,
                MapContext {
                    inner: None,
                    operations: None,
                    ..context
                },
            )?),
            _ => None,
        };
        let (max_entries, key_size, mut value_size) = sizes(spec)?;
        let typed = spec.key_type_id != 0 || spec.value_type_id != 0;
        let mut btf = context.btf.filter(|_| typed && takes_btf(spec.map_type));
        if let Some(operations) = context.operations {
            value_size = operations.layout.value.len() as u32;
            // No type of it is used, but it has to be there.
            btf = context.btf;
        }
        let mut create = MapCreate {
            map_type: spec.map_type,
            key_size,
            value_size,
            max_entries,
            flags: spec.flags,
            name: &spec.name,
            inner_map: context.inner.or(model.as_ref().map(AsFd::as_fd)),
            numa_node: spec.numa_node,
            btf,
            btf_key_type_id: if btf.is_some() { spec.key_type_id } else { 0 },
            btf_value_type_id: if btf.is_some() { spec.value_type_id } else { 0 },
            map_extra: spec.map_extra,
            btf_vmlinux_value_type_id: context.operations.map_or(0, |o| o.layout.value_type_id),
            value_type_btf: context.operations.and_then(Operations::module),
            ..MapCreate::default()
        };
        let mut lost = Vec::new();
        if spec.map_type == MapType::ARENA {
            return Map::create_arena(spec, &create);
        }
        let mut created = try_create(&create);
        if create.btf_vmlinux_value_type_id != 0
            && created.as_ref().is_err_and(|err| err.is(Errno::ENOTSUPP))
        {
            // Kernels up to 5.15 read their own types when the first program
            // is loaded, and know no structures before.
            let first = ProgLoad {
                prog_type: ProgramType::SOCKET_FILTER,
                insns: &[Insn::mov64_imm(0, 0), Insn::exit()],
                license: c"",
                ..ProgLoad::default()
            };
            let _ = memlock::retry(|| sys::prog_load(&first, None));
            created = try_create(&create);
        }
        let first = match created {
            Ok(fd) => return Ok(Map::new(fd, &spec.name, lost)),
            Err(err) => err,
        };
        // Only these say "I do not know this field or flag".
        if matches!(
            first.errno(),
            Errno::EINVAL | Errno::E2BIG | Errno::ENOTSUPP
        ) {
            while let Some(loss) = degrade(&mut create) {
                lost.push(loss);
                if let Ok(fd) = try_create(&create) {
                    return Ok(Map::new(fd, &spec.name, lost));
                }
            }
        }
        // What holds sockets and interfaces takes more than other maps.
        let need = match spec.map_type {
            MapType::SOCKMAP
            | MapType::SOCKHASH
            | MapType::DEVMAP
            | MapType::DEVMAP_HASH
            | MapType::XSKMAP => Need::Network,
            _ => Need::Bpf,
        };
        let cure = cure::find(&first, need);
        Err(MapError::Create {
            map: spec.name.clone(),
            source: first,
            cure,
        })
    }

    /// Programs know an arena's addresses once it is mapped.
    fn create_arena(spec: &MapSpec, create: &MapCreate<'_>) -> Result<Map, MapError> {
        let fail = |source| MapError::Create {
            map: spec.name.clone(),
            cure: cure::find(&source, Need::Bpf),
            source,
        };
        let fd = try_create(create).map_err(fail)?;
        let memory = MapMemory::arena(&fd, spec.map_extra).map_err(fail)?;
        if let Some(contents) = spec.contents.as_slice() {
            memory.write(0, contents).map_err(|source| {
                fail(match source.errno() {
                    Errno::ERANGE => source.with_detail("the arena is too small for its variables"),
                    _ => source,
                })
            })?;
        }
        Ok(Map {
            inner: Arc::new(Inner {
                fd,
                name: spec.name.clone(),
                lost: Vec::new(),
                operations: OnceLock::new(),
                arena: Some(memory),
            }),
        })
    }

    /// The memory of an arena that was created here, mapped as long as the map
    /// is open. `None` for other maps.
    pub fn arena(&self) -> Option<&MapMemory> {
        self.inner.arena.as_ref()
    }

    /// Opens a pinned map.
    ///
    /// # Errors
    /// [`MapError::Pin`]; `ENOENT` if there is no such pin, `EINVAL` if it is
    /// not a map.
    pub fn from_pin(name: &str, path: &Path) -> Result<Map, MapError> {
        let fail = |source: SysError| MapError::Pin {
            map: name.to_owned(),
            cure: cure::find(&source, Need::Bpf),
            source: source.with_path(path),
        };
        let fd = sys::obj_get(path, 0, None).map_err(fail)?;
        Map::from_fd(name, fd).map_err(|err| match err {
            MapError::Access { source, .. } => fail(source),
            other => other,
        })
    }

    /// Takes over a descriptor of a map.
    ///
    /// # Errors
    /// [`MapError::Access`] with `EINVAL` if it is not a map's.
    pub fn from_fd(name: &str, fd: OwnedFd) -> Result<Map, MapError> {
        let fd = MapFd::from_fd(fd).map_err(|source| MapError::Access {
            map: name.to_owned(),
            source,
        })?;
        Ok(Map::new(fd, name, Vec::new()))
    }

    /// The same map under another name: to replace the map of that name in an
    /// object.
    ///
    /// # Errors
    /// [`MapError::Access`] if the descriptor cannot be duplicated.
    pub fn named(&self, name: &str) -> Result<Map, MapError> {
        if self.name() == name {
            return Ok(self.clone());
        }
        let fd = ebpf_manager_sys::fd::dup(self.as_fd()).map_err(|e| self.access(e))?;
        Map::from_fd(name, fd)
    }

    fn new(fd: MapFd, name: &str, lost: Vec<Loss>) -> Map {
        let name = name.to_owned();
        Map {
            inner: Arc::new(Inner {
                fd,
                name,
                lost,
                operations: OnceLock::new(),
                arena: None,
            }),
        }
    }

    /// The descriptor alone, if nobody else holds the map.
    pub(crate) fn into_fd(self) -> Option<OwnedFd> {
        Some(Arc::into_inner(self.inner)?.fd.into())
    }

    /// The name it was declared under; the kernel knows its first 15 bytes.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Map type.
    pub fn map_type(&self) -> MapType {
        self.inner.fd.map_type()
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.inner.fd.key_size()
    }

    /// Bytes of a value; of one CPU's value for per-CPU types.
    pub fn value_size(&self) -> usize {
        self.inner.fd.value_size()
    }

    /// Elements; bytes for ring buffers.
    pub fn max_entries(&self) -> u32 {
        self.inner.fd.max_entries()
    }

    /// Flags the kernel created it with.
    pub fn flags(&self) -> MapFlags {
        self.inner.fd.flags()
    }

    /// What this kernel could not give it.
    pub fn losses(&self) -> &[Loss] {
        &self.inner.lost
    }

    /// The raw map, for calls not wrapped here.
    pub fn raw(&self) -> &MapFd {
        &self.inner.fd
    }

    /// The kernel's id of the map. Requires at least Linux 4.13.
    pub fn id(&self) -> Result<u32, MapError> {
        sys::map_info(self.inner.fd.as_fd())
            .map(|info| info.id)
            .map_err(|e| self.access(e))
    }

    /// For a map of type `STRUCT_OPS` that a collection has loaded: the value
    /// that makes the kernel use its programs, once it is written for key 0
    /// ([`Map::update`]). It holds descriptors of the programs, which have to
    /// be open then.
    ///
    /// With the flag [`MapFlags::LINK`] (section `.struct_ops.link`, Linux
    /// 6.4) that only makes it ready, and a link attaches it. Without the flag
    /// it is in use until the key is deleted.
    ///
    /// `None` for other maps, and if one of its programs was not loaded.
    pub fn operations(&self) -> Option<&[u8]> {
        self.inner.operations.get().map(|value| &value[..])
    }

    pub(crate) fn set_operations(&self, value: Vec<u8>) {
        // Set once: a collection loads a map once.
        let _ = self.inner.operations.set(value.into_boxed_slice());
    }

    /// Forbids user space to change the map. Requires at least Linux 5.2.
    pub fn freeze(&self) -> Result<(), MapError> {
        self.inner.fd.freeze().map_err(|e| self.access(e))
    }

    /// Pins the map below a BPF file system. The pin keeps it alive after
    /// this process; remove the file to let go.
    pub fn pin(&self, path: &Path) -> Result<(), MapError> {
        sys::obj_pin(self.inner.fd.as_fd(), path, None).map_err(|source| MapError::Pin {
            map: self.inner.name.clone(),
            cure: match source.errno() {
                // The kernel refuses paths of other file systems this way.
                Errno::EPERM | Errno::EINVAL => Some(cure::Cure::MountBpffs),
                _ => cure::find(&source, Need::Bpf),
            },
            source: source.with_path(path),
        })
    }

    /// Checks that this map can stand in for what `spec` declares; `path` is
    /// where it is pinned, for the error.
    ///
    /// # Errors
    /// [`MapError::Mismatch`] with the first field that differs.
    pub fn check(&self, spec: &MapSpec, path: Option<&Path>) -> Result<(), MapError> {
        let (max_entries, key_size, value_size) = sizes(spec)?;
        let mut ignored = MapFlags::MMAPABLE | MapFlags::TOKEN_FD;
        if matches!(spec.map_type, MapType::DEVMAP | MapType::DEVMAP_HASH) {
            // The kernel sets it for all of them.
            ignored |= MapFlags::RDONLY_PROG;
        }
        let fields: [(&'static str, u64, u64); 5] = [
            ("type", spec.map_type.0.into(), self.map_type().0.into()),
            ("key size", key_size.into(), self.key_size() as u64),
            ("value size", value_size.into(), self.value_size() as u64),
            ("max_entries", max_entries.into(), self.max_entries().into()),
            (
                "flags",
                (spec.flags - ignored).bits().into(),
                (self.flags() - ignored).bits().into(),
            ),
        ];
        for (field, expected, found) in fields {
            if expected != found {
                return Err(MapError::Mismatch {
                    map: spec.name.clone(),
                    path: path.map(Path::to_owned),
                    field,
                    expected: in_words(field, expected),
                    found: in_words(field, found),
                });
            }
        }
        Ok(())
    }

    #[cold]
    fn access(&self, source: SysError) -> MapError {
        MapError::Access {
            map: self.inner.name.clone(),
            source,
        }
    }
}

/// A field's value as people write it.
#[cold]
fn in_words(field: &str, value: u64) -> String {
    match field {
        "type" => MapType(value as u32).to_string(),
        "flags" => format!("{value:#x}"),
        _ => value.to_string(),
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }
}

fn try_create(create: &MapCreate<'_>) -> Result<MapFd, SysError> {
    memlock::retry(|| sys::map_create(create))
}

/// Gives up one thing that an old kernel may not know, the newest first.
fn degrade(create: &mut MapCreate<'_>) -> Option<Loss> {
    if create.btf.take().is_some() {
        create.btf_key_type_id = 0;
        create.btf_value_type_id = 0;
        return Some(Loss {
            what: "BTF types of the map's key and value",
            since: "4.18",
        });
    }
    if create.flags.contains(MapFlags::MMAPABLE) {
        create.flags -= MapFlags::MMAPABLE;
        return Some(Loss {
            what: "mapping of the map's memory",
            since: "5.5",
        });
    }
    if !create.name.is_empty() {
        create.name = "";
        return Some(Loss {
            what: "the map's name",
            since: "4.15",
        });
    }
    None
}

/// `max_entries`, `key_size` and `value_size` as the kernel wants them.
fn sizes(spec: &MapSpec) -> Result<(u32, u32, u32), MapError> {
    use MapType as T;
    let fault = |what: String| MapError::Spec {
        map: spec.name.clone(),
        what,
    };
    let possible_cpus = || match sys::possible_cpus() {
        Ok(cpus) => Ok(cpus as u32),
        Err(source) => Err(MapError::Access {
            map: spec.name.clone(),
            source,
        }),
    };
    let word = |size: u32| if size == 0 { 4 } else { size };
    let (mut max, mut key, mut value) = (spec.max_entries, spec.key_size, spec.value_size);
    match spec.map_type {
        T::UNSPEC => return Err(fault("no map type; set one before loading".to_owned())),
        T::PERF_EVENT_ARRAY => {
            // The kernel takes nothing else, and nothing is ever looked up.
            (key, value) = (4, 4);
            if max == 0 {
                max = possible_cpus()?;
            }
        }
        T::RINGBUF | T::USER_RINGBUF if max != 0 => {
            // A value type describes the records and is not for the kernel.
            (key, value) = (0, 0);
            let page = ebpf_manager_sys::proc::page_size() as u32;
            max = max
                .checked_next_power_of_two()
                .map(|m| m.max(page))
                .ok_or_else(|| {
                    fault(format!(
                        "max_entries {max} is more than the largest ring buffer"
                    ))
                })?;
        }
        T::LRU_HASH | T::LRU_PERCPU_HASH if spec.flags.contains(MapFlags::NO_COMMON_LRU) => {
            // As the kernel does, which gives each CPU a list of its own: a
            // pinned map is compared with this.
            let cpus = possible_cpus()?;
            let down = max - max % cpus;
            max = max.checked_next_multiple_of(cpus).unwrap_or(down);
        }
        T::PROG_ARRAY | T::CGROUP_ARRAY | T::ARRAY_OF_MAPS => {
            (key, value) = (word(key), word(value));
        }
        T::HASH_OF_MAPS => value = word(value),
        _ => {}
    }
    let sizeless = matches!(
        spec.map_type,
        T::SK_STORAGE
            | T::INODE_STORAGE
            | T::TASK_STORAGE
            | T::CGRP_STORAGE
            | T::CGROUP_STORAGE
            | T::PERCPU_CGROUP_STORAGE
    );
    if max == 0 && !sizeless {
        return Err(fault("max_entries is 0; set it before loading".to_owned()));
    }
    let unallocated = spec.map_type == T::LPM_TRIE || sizeless && !is_cgroup_storage(spec);
    if unallocated && !spec.flags.contains(MapFlags::NO_PREALLOC) {
        return Err(fault(
            "maps of its type need the flag BPF_F_NO_PREALLOC".to_owned(),
        ));
    }
    Ok((max, key, value))
}

/// Storage of control groups before `CGRP_STORAGE`: one fixed buffer each.
fn is_cgroup_storage(spec: &MapSpec) -> bool {
    matches!(
        spec.map_type,
        MapType::CGROUP_STORAGE | MapType::PERCPU_CGROUP_STORAGE
    )
}

/// Map types that the kernel refuses BTF types for.
fn takes_btf(map_type: MapType) -> bool {
    use MapType as T;
    !matches!(
        map_type,
        T::PERF_EVENT_ARRAY
            | T::CGROUP_ARRAY
            | T::STACK_TRACE
            | T::ARRAY_OF_MAPS
            | T::HASH_OF_MAPS
            | T::DEVMAP
            | T::DEVMAP_HASH
            | T::CPUMAP
            | T::XSKMAP
            | T::SOCKMAP
            | T::SOCKHASH
            | T::QUEUE
            | T::STACK
            | T::ARENA
            | T::RINGBUF
            | T::USER_RINGBUF
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(map_type: MapType, max_entries: u32) -> MapSpec {
        MapSpec {
            name: "m".to_owned(),
            map_type,
            max_entries,
            ..MapSpec::default()
        }
    }

    #[test]
    fn sizes_are_completed() {
        let page = ebpf_manager_sys::proc::page_size() as u32;
        assert_eq!(sizes(&spec(MapType::RINGBUF, 1)).unwrap().0, page);
        assert_eq!(
            sizes(&spec(MapType::RINGBUF, page + 1)).unwrap().0,
            2 * page
        );
        let (max, key, value) = sizes(&spec(MapType::PERF_EVENT_ARRAY, 0)).unwrap();
        assert!(max > 0);
        assert_eq!((key, value), (4, 4));
        assert!(
            sizes(&spec(MapType::HASH, 0))
                .unwrap_err()
                .to_string()
                .contains("max_entries is 0")
        );
        assert!(sizes(&spec(MapType::UNSPEC, 1)).is_err());
        assert!(sizes(&spec(MapType::RINGBUF, u32::MAX)).is_err());
        let cpus = sys::possible_cpus().unwrap() as u32;
        let mut lru = spec(MapType::LRU_HASH, 2 * cpus + 1);
        assert_eq!(sizes(&lru).unwrap().0, 2 * cpus + 1);
        lru.flags = MapFlags::NO_COMMON_LRU;
        let rounded = (2 * cpus + 1).next_multiple_of(cpus);
        assert_eq!(sizes(&lru).unwrap().0, rounded);
        lru.max_entries = u32::MAX;
        assert_eq!(sizes(&lru).unwrap().0, u32::MAX - u32::MAX % cpus);
        let mut odd = spec(MapType::PERF_EVENT_ARRAY, 3);
        (odd.key_size, odd.value_size) = (8, 24);
        assert_eq!(sizes(&odd).unwrap(), (3, 4, 4));
        for map_type in [MapType::TASK_STORAGE, MapType::LPM_TRIE] {
            let mut spec = spec(map_type, u32::from(map_type == MapType::LPM_TRIE));
            let err = sizes(&spec).unwrap_err().to_string();
            assert!(err.contains("BPF_F_NO_PREALLOC"), "{err}");
            spec.flags = MapFlags::NO_PREALLOC;
            assert_eq!(sizes(&spec).unwrap().0, spec.max_entries);
        }
        assert_eq!(sizes(&spec(MapType::CGROUP_STORAGE, 0)).unwrap().0, 0);
    }

    #[test]
    fn every_loss_is_taken_once() {
        let mut create = MapCreate {
            name: "n",
            flags: MapFlags::MMAPABLE,
            ..MapCreate::default()
        };
        assert_eq!(degrade(&mut create).unwrap().since, "5.5");
        assert_eq!(degrade(&mut create).unwrap().since, "4.15");
        assert_eq!(degrade(&mut create), None);
    }
}
