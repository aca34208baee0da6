//! Global variables of a live collection.

use std::sync::OnceLock;

use ebpf_manager_elf::VariableSpec;
use ebpf_manager_sys::abi::bpf::MapFlags;
use ebpf_manager_sys::abi::pod::{self, Pod};
use ebpf_manager_sys::map_memory::MapMemory;
use ebpf_manager_sys::{Errno, SysError};

use crate::error::MapError;
use crate::map::Map;

/// A global variable of a loaded object: `.data`, `.bss` or `.rodata`.
///
/// Access goes through the map's memory where the kernel maps it (Linux 5.5),
/// without a system call; a variable of up to 8 bytes is then read and written
/// whole. Elsewhere the whole section is read, or read and written back, which
/// may undo what programs change at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Variable<'c> {
    pub(crate) spec: &'c VariableSpec,
    pub(crate) map: &'c Map,
    pub(crate) memory: &'c OnceLock<Option<MapMemory>>,
}

impl Variable<'_> {
    /// Name in the object.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.spec.size as usize
    }

    /// The value as a plain-data type of the variable's size.
    ///
    /// # Errors
    /// [`MapError::Access`], with `EINVAL` if the size differs.
    pub fn get<T: Pod>(&self) -> Result<T, MapError> {
        let mut value = pod::zeroed::<T>();
        self.read(pod::bytes_of_mut(&mut value))?;
        Ok(value)
    }

    /// Sets the value from a plain-data type of the variable's size.
    ///
    /// # Errors
    /// [`MapError::Access`], with `EINVAL` if the size differs and `EPERM` for
    /// a constant, which is frozen.
    pub fn set<T: Pod>(&self, value: &T) -> Result<(), MapError> {
        self.write(pod::bytes_of(value))
    }

    /// Copies the value to `to`, which must have the variable's size.
    ///
    /// # Errors
    /// [`MapError::Access`], with `EINVAL` if the size differs.
    pub fn read(&self, to: &mut [u8]) -> Result<(), MapError> {
        self.check(to.len())?;
        let start = self.spec.offset as usize;
        if let Some(memory) = self.memory() {
            return memory.read(start, to).map_err(|e| self.access(e));
        }
        let section = self.section()?;
        match section.get(start..start + to.len()) {
            Some(value) => to.copy_from_slice(value),
            None => return Err(self.unmapped()),
        }
        Ok(())
    }

    /// Sets the value; `from` must have the variable's size.
    ///
    /// # Errors
    /// As for [`Variable::set`].
    pub fn write(&self, from: &[u8]) -> Result<(), MapError> {
        self.check(from.len())?;
        let start = self.spec.offset as usize;
        if let Some(memory) = self.memory() {
            return memory.write(start, from).map_err(|e| self.access(e));
        }
        let mut section = self.section()?;
        match section.get_mut(start..start + from.len()) {
            Some(value) => value.copy_from_slice(from),
            None => return Err(self.unmapped()),
        }
        self.map.update(&0_u32.to_ne_bytes(), &section)
    }

    fn section(&self) -> Result<Vec<u8>, MapError> {
        let mut section = vec![0; self.map.value_size()];
        self.map.lookup(&0_u32.to_ne_bytes(), &mut section)?;
        Ok(section)
    }

    /// An arena that was made elsewhere and replaces the object's.
    #[cold]
    fn unmapped(&self) -> MapError {
        let what = format!("the memory of {} is not mapped here", self.map.name());
        self.access(SysError::new("access a variable", Errno::EINVAL).with_detail(what))
    }

    fn memory(&self) -> Option<&MapMemory> {
        if let Some(arena) = self.map.arena() {
            return Some(arena);
        }
        let mapped = || {
            let mappable = self.map.flags().contains(MapFlags::MMAPABLE);
            mappable
                .then(|| MapMemory::new(self.map.raw()).ok())
                .flatten()
        };
        self.memory.get_or_init(mapped).as_ref()
    }

    fn check(&self, len: usize) -> Result<(), MapError> {
        if len == self.size() {
            return Ok(());
        }
        let what = format!(
            "variable {} has {} bytes, not {len}",
            self.name(),
            self.size()
        );
        Err(self.access(SysError::new("access a variable", Errno::EINVAL).with_detail(what)))
    }

    #[cold]
    fn access(&self, source: SysError) -> MapError {
        MapError::Access {
            map: self.map.name().to_owned(),
            source,
        }
    }
}
