//! The elements of a map: one, all, or many at once.

use std::ops::ControlFlow;

use ebpf_manager_sys::abi::bpf::ElemFlags;
use ebpf_manager_sys::abi::pod::{self, Pod};
use ebpf_manager_sys::bpf::{BatchCursor, BatchError};
use ebpf_manager_sys::{Errno, SysError};

use super::Map;
use crate::error::MapError;

/// Bytes of elements that one call asks for when all are read.
const BATCH_BYTES: usize = 64 * 1024;

impl Map {
    /// Reads the value of `key` into `value`; false if there is none.
    ///
    /// `value` has [`Map::value_size`] bytes, for per-CPU types that size
    /// rounded up to 8 times the number of possible CPUs.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<bool, MapError> {
        self.inner.fd.lookup(key, value).map_err(|e| self.access(e))
    }

    /// As [`lookup`](Self::lookup), and removes the element (hashes: Linux
    /// 5.14; queues and stacks, which take an empty key and give their next
    /// value: 4.20).
    ///
    /// # Errors
    /// [`MapError::Access`] with `ENOTSUPP` for other types, `EINVAL` on older
    /// kernels.
    pub fn take(&self, key: &[u8], value: &mut [u8]) -> Result<bool, MapError> {
        let taken = self
            .inner
            .fd
            .lookup_and_delete(key, value, ElemFlags::empty());
        taken.map_err(|e| self.access(e))
    }

    /// Sets the value of `key`, adding it if needed.
    pub fn update(&self, key: &[u8], value: &[u8]) -> Result<(), MapError> {
        self.update_with(key, value, ElemFlags::empty())
    }

    /// Sets the value of `key` with flags: only if absent, only if present.
    pub fn update_with(&self, key: &[u8], value: &[u8], flags: ElemFlags) -> Result<(), MapError> {
        self.inner
            .fd
            .update(key, value, flags)
            .map_err(|e| self.access(e))
    }

    /// As [`update_with`](Self::update_with), with the kernel's bare answer.
    pub(crate) fn update_raw(
        &self,
        key: &[u8],
        value: &[u8],
        flags: ElemFlags,
    ) -> Result<(), SysError> {
        self.inner.fd.update(key, value, flags)
    }

    /// Removes `key`; false if it was not there.
    pub fn delete(&self, key: &[u8]) -> Result<bool, MapError> {
        self.inner.fd.delete(key).map_err(|e| self.access(e))
    }

    /// The value of `key` as a plain-data type of exactly the map's sizes.
    ///
    /// # Errors
    /// [`MapError::Access`] with `EINVAL` if a size differs.
    pub fn get<V: Pod>(&self, key: &impl Pod) -> Result<Option<V>, MapError> {
        let mut value = pod::zeroed::<V>();
        let found = self.lookup(pod::bytes_of(key), pod::bytes_of_mut(&mut value))?;
        Ok(found.then_some(value))
    }

    /// Sets the value of `key` from plain-data types of exactly the map's
    /// sizes.
    ///
    /// # Errors
    /// [`MapError::Access`] with `EINVAL` if a size differs.
    pub fn set(&self, key: &impl Pod, value: &impl Pod) -> Result<(), MapError> {
        self.update(pod::bytes_of(key), pod::bytes_of(value))
    }

    /// The values of `key` in a map of a per-CPU type, one for each possible
    /// CPU, in order; `None` if there is no such key.
    ///
    /// # Errors
    /// [`MapError::Access`] with `EINVAL` if a size differs from
    /// [`Map::key_size`] or [`Map::value_size`], or the map's type has one
    /// value for all CPUs.
    pub fn get_per_cpu<V: Pod>(&self, key: &impl Pod) -> Result<Option<Vec<V>>, MapError> {
        let mut bytes = vec![0; self.per_cpu_len::<V>()?];
        if !self.lookup(pod::bytes_of(key), &mut bytes)? {
            return Ok(None);
        }
        let values = bytes.chunks_exact(cpu_stride(size_of::<V>()));
        let values = values.filter_map(|bytes| pod::from_bytes(bytes.get(..size_of::<V>())?));
        Ok(Some(values.collect()))
    }

    /// Sets the values of `key` in a map of a per-CPU type, one for each
    /// possible CPU, in order.
    ///
    /// # Errors
    /// As [`get_per_cpu`](Self::get_per_cpu); `EINVAL` also if the number of
    /// values is not that of the CPUs.
    pub fn set_per_cpu<V: Pod>(&self, key: &impl Pod, values: &[V]) -> Result<(), MapError> {
        let mut bytes = vec![0; self.per_cpu_len::<V>()?];
        let stride = cpu_stride(size_of::<V>());
        if bytes.len() != values.len() * stride {
            return Err(self.unfit(format!(
                "{} values for {} CPUs",
                values.len(),
                bytes.len() / stride
            )));
        }
        for (to, value) in bytes.chunks_exact_mut(stride).zip(values) {
            to[..size_of::<V>()].copy_from_slice(pod::bytes_of(value));
        }
        self.update(pod::bytes_of(key), &bytes)
    }

    /// Bytes of the values of all CPUs, each a `V`.
    fn per_cpu_len<V: Pod>(&self) -> Result<usize, MapError> {
        let fd = &self.inner.fd;
        let len = fd.buffer_value_size().unwrap_or_default();
        if !fd.is_per_cpu() {
            return Err(self.unfit("its type has one value for all CPUs".to_owned()));
        }
        if size_of::<V>() != fd.value_size() || len == 0 {
            let (given, has) = (size_of::<V>(), fd.value_size());
            return Err(self.unfit(format!("value of {given} bytes, the map takes {has}")));
        }
        Ok(len)
    }

    #[cold]
    fn unfit(&self, what: String) -> MapError {
        self.access(SysError::new("access to a map", Errno::EINVAL).with_detail(what))
    }

    /// Calls `visit` with each key, in the kernel's order, until it breaks.
    ///
    /// A map that changes meanwhile may show keys twice or not at all, and a
    /// hash restarts from its first key when the current one is deleted.
    pub fn for_each_key(
        &self,
        visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), MapError> {
        let mut key = vec![0; self.key_size()];
        let mut next = vec![0; self.key_size()];
        let mut first = true;
        loop {
            let from = (!first).then_some(key.as_slice());
            if !self
                .inner
                .fd
                .next_key(from, &mut next)
                .map_err(|e| self.access(e))?
            {
                return Ok(());
            }
            std::mem::swap(&mut key, &mut next);
            first = false;
            if visit(&key).is_break() {
                return Ok(());
            }
        }
    }

    /// Calls `visit` with each key and its value, in the kernel's order, until
    /// it breaks. Values of per-CPU types are those of all CPUs, as
    /// [`lookup`](Self::lookup) gives them.
    ///
    /// Where the kernel can (Linux 5.6, for most types), many elements are
    /// copied by one call, [`ENOSPC`](Errno::ENOSPC) of a crowded hash bucket
    /// is met with larger buffers; elsewhere keys are looked up one by one. A
    /// map that changes meanwhile may show elements twice or not at all.
    #[expect(clippy::type_complexity, reason = "key, value, whether to go on")]
    pub fn for_each(
        &self,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), MapError> {
        let fd = &self.inner.fd;
        let (key_size, value_size) = (fd.key_size(), fd.buffer_value_size().unwrap_or_default());
        if key_size != 0 && value_size != 0 {
            let mut room = (BATCH_BYTES / (key_size + value_size)).max(1);
            room = room.min(self.max_entries().max(1) as usize);
            let (mut keys, mut values) = (vec![0; room * key_size], vec![0; room * value_size]);
            let mut cursor = BatchCursor::new(fd);
            let mut any = false;
            while !cursor.is_done() {
                match fd.lookup_batch(&mut cursor, &mut keys, &mut values, ElemFlags::empty()) {
                    Ok(count) => {
                        any = true;
                        let keys = keys.chunks_exact(key_size);
                        let elements = keys.zip(values.chunks_exact(value_size));
                        for (key, value) in elements.take(count) {
                            if visit(key, value).is_break() {
                                return Ok(());
                            }
                        }
                    }
                    Err(err) if err.is(Errno::ENOSPC) && room < self.max_entries() as usize => {
                        room *= 2;
                        keys.resize(room * key_size, 0);
                        values.resize(room * value_size, 0);
                    }
                    Err(err) if !any && is_unknown(&err) => return self.walk(visit, value_size),
                    Err(err) => return Err(self.access(err)),
                }
            }
            return Ok(());
        }
        self.walk(visit, value_size)
    }

    /// All elements as plain-data types of exactly the map's sizes, in the
    /// kernel's order. See [`for_each`](Self::for_each).
    ///
    /// # Errors
    /// [`MapError::Access`] with `EINVAL` if a size differs.
    pub fn entries<K: Pod, V: Pod>(&self) -> Result<Vec<(K, V)>, MapError> {
        let fd = &self.inner.fd;
        let sizes = (fd.key_size(), fd.buffer_value_size().unwrap_or_default());
        if sizes != (size_of::<K>(), size_of::<V>()) {
            let (key, value) = sizes;
            return Err(self.unfit(format!("the map's keys have {key} bytes, values {value}")));
        }
        let mut entries = Vec::new();
        self.for_each(&mut |key, value| {
            entries.extend(pod::from_bytes(key).zip(pod::from_bytes(value)));
            ControlFlow::Continue(())
        })?;
        Ok(entries)
    }

    /// [`for_each`](Self::for_each), key by key.
    #[expect(clippy::type_complexity, reason = "as for_each")]
    fn walk(
        &self,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
        value_size: usize,
    ) -> Result<(), MapError> {
        let mut value = vec![0; value_size];
        let mut result = Ok(());
        self.for_each_key(&mut |key| match self.lookup(key, &mut value) {
            Ok(true) => visit(key, &value),
            // It went away in between.
            Ok(false) => ControlFlow::Continue(()),
            Err(err) => {
                result = Err(err);
                ControlFlow::Break(())
            }
        })?;
        result
    }

    /// Stores many elements in order: `keys` holds whole keys, `values` as
    /// many whole values. By one call where the kernel can (Linux 5.6, for
    /// most types), elsewhere one by one.
    ///
    /// # Errors
    /// [`MapError::Access`] at the first element that is refused, with its
    /// number; those before it are stored.
    pub fn update_many(
        &self,
        keys: &[u8],
        values: &[u8],
        flags: ElemFlags,
    ) -> Result<(), MapError> {
        let fd = &self.inner.fd;
        self.many(fd.update_batch(keys, values, flags), || {
            let values = values.chunks_exact(fd.buffer_value_size().unwrap_or_default().max(1));
            let keys = keys.chunks_exact(fd.key_size().max(1));
            in_order(
                keys.zip(values)
                    .map(|(key, value)| fd.update(key, value, flags)),
            )
        })
    }

    /// Removes many elements in order: `keys` holds whole keys. By one call
    /// where the kernel can (Linux 5.6, for most types), elsewhere one by one.
    ///
    /// # Errors
    /// [`MapError::Access`] at the first key that is refused or not there
    /// (`ENOENT`), with its number; those before it are removed.
    pub fn delete_many(&self, keys: &[u8]) -> Result<(), MapError> {
        let fd = &self.inner.fd;
        self.many(fd.delete_batch(keys, ElemFlags::empty()), || {
            let keys = keys.chunks_exact(fd.key_size().max(1));
            in_order(keys.map(|key| {
                let found = fd.delete(key)?;
                let absent = || SysError::new("bpf(BPF_MAP_DELETE_ELEM)", Errno::ENOENT);
                found.then_some(()).ok_or_else(absent)
            }))
        })
    }

    /// What became of a batch, and of its elements one by one if the kernel
    /// knows no batches.
    fn many(
        &self,
        batch: Result<(), BatchError>,
        singly: impl FnOnce() -> Result<(), BatchError>,
    ) -> Result<(), MapError> {
        let result = match batch {
            Err(err) if err.done == 0 && is_unknown(&err.source) => singly(),
            result => result,
        };
        result.map_err(|err| {
            let which = format!("element {} of those given", err.done);
            self.access(match err.source.detail() {
                // Lengths that do not fit.
                Some(_) => err.source,
                None => err.source.with_detail(which),
            })
        })
    }
}

/// Bytes from the value of one CPU to that of the next.
fn cpu_stride(value_size: usize) -> usize {
    value_size.next_multiple_of(8)
}

/// A kernel without batches, or without those of a map's type.
fn is_unknown(err: &SysError) -> bool {
    err.detail().is_none()
        && [Errno::EINVAL, Errno::ENOTSUPP, Errno::EOPNOTSUPP].contains(&err.errno())
}

/// Calls one by one, until one fails.
fn in_order(calls: impl Iterator<Item = Result<(), SysError>>) -> Result<(), BatchError> {
    for (done, call) in calls.enumerate() {
        call.map_err(|source| BatchError { done, source })?;
    }
    Ok(())
}
