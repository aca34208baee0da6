//! Perf buffers that keep the newest records.

use std::os::fd::{AsFd, AsRawFd};

use ebpf_manager_sys::SysError;
use ebpf_manager_sys::abi::bpf::{ElemFlags, MapType};
use ebpf_manager_sys::abi::perf::AttrFlags;
use ebpf_manager_sys::perf::{PerfEventAttr, Scope};
use ebpf_manager_sys::perfring::{OverwritableRing, PerfRecord};
use ebpf_manager_sys::proc::online_cpus;

use super::claim::{Claim, map_id};
use super::perf::{open_output, pages};
use super::{Record, check_type, kernel};
use crate::error::ReaderError;
use crate::map::Map;

/// A flight recorder: a `BPF_MAP_TYPE_PERF_EVENT_ARRAY` whose rings programs
/// overwrite for ever, to be read when something has happened.
///
/// Nothing is ever lost for lack of room and nobody is woken up; the oldest
/// records make place for new ones. It serves the CPUs that are online when it
/// is made. Dropping it takes the rings away from programs.
///
/// Requires at least Linux 4.7.
#[derive(Debug)]
pub struct OverwritableBuffer {
    map: Map,
    rings: Vec<(Claim, OverwritableRing)>,
}

impl OverwritableBuffer {
    /// Makes a ring of at least `bytes_per_cpu` bytes (rounded up to pages, a
    /// power of two of them) for each CPU; `timestamps` puts the time into
    /// each record.
    ///
    /// # Errors
    /// [`ReaderError::WrongMap`]; [`ReaderError::Kernel`], with `EBUSY` if this
    /// process has a reader of the map for one of the CPUs already.
    pub fn new(
        map: &Map,
        bytes_per_cpu: usize,
        timestamps: bool,
    ) -> Result<OverwritableBuffer, ReaderError> {
        check_type(map, MapType::PERF_EVENT_ARRAY)?;
        let mut buffer = OverwritableBuffer {
            map: map.clone(),
            rings: Vec::new(),
        };
        buffer
            .open(pages(bytes_per_cpu), timestamps)
            .map_err(|err| kernel(map.name(), err))?;
        Ok(buffer)
    }

    fn open(&mut self, pages: usize, timestamps: bool) -> Result<(), SysError> {
        let map = map_id(&self.map)?;
        for cpu in online_cpus()? {
            if cpu >= self.map.max_entries() {
                break;
            }
            let claim = Claim::new(map, cpu)?;
            let mut found = None;
            let attr = PerfEventAttr::bpf_output().flags(AttrFlags::WRITE_BACKWARD);
            open_output(attr, timestamps, &mut |attr| {
                let scope = Scope::AllThreads;
                found = Some(OverwritableRing::open(attr, scope, Some(cpu), pages)?);
                Ok(())
            })?;
            let Some(ring) = found else {
                continue;
            };
            let fd = ring.as_fd().as_raw_fd().to_ne_bytes();
            self.rings.push((claim, ring));
            self.map
                .update_raw(&cpu.to_ne_bytes(), &fd, ElemFlags::empty())?;
        }
        Ok(())
    }

    /// Name of the map.
    pub fn name(&self) -> &str {
        self.map.name()
    }

    /// Hands a copy of what is there to `each`, CPU by CPU, the oldest record
    /// of each first, and returns how many records that were. They stay and
    /// are read again the next time, as far as not overwritten by then.
    ///
    /// A CPU that is being copied refuses new records meanwhile.
    ///
    /// # Errors
    /// [`ReaderError::Kernel`].
    pub fn read(&mut self, each: &mut dyn FnMut(&Record<'_>)) -> Result<usize, ReaderError> {
        let mut count = 0;
        for (claim, ring) in &mut self.rings {
            let read = ring.read(&mut |record| {
                if let PerfRecord::Sample { data, time_ns } = record {
                    count += 1;
                    each(&Record {
                        cpu: Some(claim.cpu),
                        time_ns,
                        ..Record::new(data)
                    });
                }
            });
            read.map_err(|err| kernel(self.map.name(), err))?;
        }
        Ok(count)
    }
}

impl Drop for OverwritableBuffer {
    fn drop(&mut self) {
        for (claim, _) in &self.rings {
            let _ = self.map.delete(&claim.cpu.to_ne_bytes());
        }
    }
}
