//! What a reader hands over.

use std::ops::Deref;

use ebpf_manager_sys::abi::pod::{self, Pod};

/// A record lent in place: its data, and what the buffer knows about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Record<'r> {
    /// The data. In a perf buffer up to seven bytes of padding follow what
    /// the program wrote, and nothing tells them apart.
    pub data: &'r [u8],
    /// The CPU it was written on; `None` in a ring buffer, which does not say.
    pub cpu: Option<u32>,
    /// When it was written, in nanoseconds of the clock of
    /// `bpf_ktime_get_ns()`, if a perf buffer was asked for that.
    pub time_ns: Option<u64>,
    /// Records lost on this CPU since the record before this one. Always zero
    /// in a ring buffer, which does not count them.
    pub lost_before: u64,
}

impl<'r> Record<'r> {
    /// A record of nothing but data.
    #[inline]
    pub fn new(data: &'r [u8]) -> Record<'r> {
        Record {
            data,
            cpu: None,
            time_ns: None,
            lost_before: 0,
        }
    }

    /// The structure that the data begins with; `None` if there is less of it.
    ///
    /// ```
    /// use ebpf_manager_bpf::{Record, pod_struct};
    ///
    /// pod_struct! {
    ///     struct Event { pid: u32, cpu: u32 }
    /// }
    /// let record = Record::new(&[1, 0, 0, 0, 2, 0, 0, 0, /* padding: */ 0, 0, 0, 0]);
    /// # #[cfg(target_endian = "little")]
    /// assert!(record.read::<Event>().is_some_and(|event| event.pid == 1 && event.cpu == 2));
    /// ```
    #[inline]
    pub fn read<T: Pod>(&self) -> Option<T> {
        pod::from_prefix(self.data)
    }

    /// A copy to keep.
    pub fn to_owned(&self) -> OwnedRecord {
        OwnedRecord {
            data: self.data.to_vec(),
            cpu: self.cpu,
            time_ns: self.time_ns,
            lost_before: self.lost_before,
        }
    }
}

impl Deref for Record<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.data
    }
}

/// A copy of a [`Record`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct OwnedRecord {
    /// See [`Record::data`].
    pub data: Vec<u8>,
    /// See [`Record::cpu`].
    pub cpu: Option<u32>,
    /// See [`Record::time_ns`].
    pub time_ns: Option<u64>,
    /// See [`Record::lost_before`].
    pub lost_before: u64,
}

impl OwnedRecord {
    /// See [`Record::read`].
    pub fn read<T: Pod>(&self) -> Option<T> {
        pod::from_prefix(&self.data)
    }
}

impl Deref for OwnedRecord {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data
    }
}
