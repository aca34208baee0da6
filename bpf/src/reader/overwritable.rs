//! Perf buffers that keep the newest records.

use std::os::fd::{AsFd, AsRawFd};

use ebpf_manager_sys::SysError;
use ebpf_manager_sys::abi::bpf::{ElemFlags, MapType};
use ebpf_manager_sys::abi::perf::AttrFlags;
use ebpf_manager_sys::perfring::{OverwritableRing, PerfRecord};
use ebpf_manager_sys::proc::online_cpus;

use super::perf::{open_event, pages};
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
    rings: Vec<(u32, OverwritableRing)>,
}

impl OverwritableBuffer {
    /// Makes a ring of at least `bytes_per_cpu` bytes (rounded up to pages, a
    /// power of two of them) for each CPU; `timestamps` puts the time into
    /// each record.
    ///
    /// # Errors
    /// [`ReaderError::WrongMap`], [`ReaderError::Kernel`].
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
        for cpu in online_cpus()? {
            if cpu >= self.map.max_entries() {
                break;
            }
            let attr = &|attr: ebpf_manager_sys::perf::PerfEventAttr<'static>| {
                attr.flags(AttrFlags::WRITE_BACKWARD)
            };
            let Some(event) = open_event(cpu, timestamps, attr)? else {
                continue;
            };
            let ring = OverwritableRing::new(event, pages)?;
            let fd = ring.as_fd().as_raw_fd().to_ne_bytes();
            self.rings.push((cpu, ring));
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
        for (cpu, ring) in &mut self.rings {
            let read = ring.read(&mut |record| {
                if let PerfRecord::Sample { data, time_ns } = record {
                    count += 1;
                    each(&Record {
                        cpu: Some(*cpu),
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
        for (cpu, _) in &self.rings {
            let _ = self.map.delete(&cpu.to_ne_bytes());
        }
    }
}
