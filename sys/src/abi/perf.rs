//! Numbers and layouts of perf_event_open(2), of the perf memory ring, and of
//! the record header of the BPF ring buffer.
//!
//! Source: `include/uapi/linux/perf_event.h` of Linux 6.12; for the BPF ring
//! buffer `include/uapi/linux/bpf.h` and `kernel/bpf/ringbuf.c` of the same.

use std::mem::offset_of;

use bitflags::bitflags;

use super::pod::Pod;

/// `struct perf_event_attr` up to `PERF_ATTR_SIZE_VER8`.
///
/// Unions carry the name of the member that BPF attachment uses. The kernel
/// accepts a structure longer than its own as long as the bytes it does not
/// know are zero, and answers `E2BIG` otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventAttr {
    /// Event family, or the number of a PMU; see [`event_type`].
    pub kind: u32,
    /// Bytes of this structure that the kernel reads.
    pub size: u32,
    /// Event within the family: tracepoint id, [`software`] event, PMU bits.
    pub config: u64,
    /// `sample_period`, or `sample_freq` if [`AttrFlags::FREQ`] is set.
    pub sample_period: u64,
    /// What each sample carries.
    pub sample_type: SampleType,
    /// What read(2) returns.
    pub read_format: ReadFormat,
    /// The bit field.
    pub flags: AttrFlags,
    /// `wakeup_events`, or `wakeup_watermark` in bytes if
    /// [`AttrFlags::WATERMARK`] is set.
    pub wakeup: u32,
    /// Breakpoint kind.
    pub bp_type: u32,
    /// `config1`: address of the `kprobe_func` or `uprobe_path` string.
    pub config1: u64,
    /// `config2`: `kprobe_addr` or `probe_offset`.
    pub config2: u64,
    /// Which branches to record.
    pub branch_sample_type: u64,
    /// User registers to sample.
    pub sample_regs_user: u64,
    /// Bytes of user stack to sample.
    pub sample_stack_user: u32,
    /// Clock of time stamps, with [`AttrFlags::USE_CLOCKID`].
    pub clockid: i32,
    /// Registers to sample at the interrupt.
    pub sample_regs_intr: u64,
    /// Wakeup watermark of the AUX area in bytes.
    pub aux_watermark: u32,
    /// Frames of a call chain at most.
    pub sample_max_stack: u16,
    /// Padding, zero.
    pub reserved_2: u16,
    /// Bytes of AUX area per sample.
    pub aux_sample_size: u32,
    /// Padding, zero; `aux_action` since Linux 6.14.
    pub aux_action: u32,
    /// Value handed to the signal of [`AttrFlags::SIGTRAP`].
    pub sig_data: u64,
    /// `config3`, a further extension of `config`. Linux 6.3.
    pub config3: u64,
}

/// `PERF_ATTR_SIZE_VER8`.
pub const ATTR_SIZE_VER8: u32 = 136;

const _: () = {
    assert!(size_of::<EventAttr>() == ATTR_SIZE_VER8 as usize);
    assert!(offset_of!(EventAttr, kind) == 0);
    assert!(offset_of!(EventAttr, size) == 4);
    assert!(offset_of!(EventAttr, config) == 8);
    assert!(offset_of!(EventAttr, sample_period) == 16);
    assert!(offset_of!(EventAttr, sample_type) == 24);
    assert!(offset_of!(EventAttr, read_format) == 32);
    assert!(offset_of!(EventAttr, flags) == 40);
    assert!(offset_of!(EventAttr, wakeup) == 48);
    assert!(offset_of!(EventAttr, bp_type) == 52);
    assert!(offset_of!(EventAttr, config1) == 56);
    assert!(offset_of!(EventAttr, config2) == 64);
    assert!(offset_of!(EventAttr, branch_sample_type) == 72);
    assert!(offset_of!(EventAttr, sample_regs_user) == 80);
    assert!(offset_of!(EventAttr, sample_stack_user) == 88);
    assert!(offset_of!(EventAttr, clockid) == 92);
    assert!(offset_of!(EventAttr, sample_regs_intr) == 96);
    assert!(offset_of!(EventAttr, aux_watermark) == 104);
    assert!(offset_of!(EventAttr, sample_max_stack) == 108);
    assert!(offset_of!(EventAttr, reserved_2) == 110);
    assert!(offset_of!(EventAttr, aux_sample_size) == 112);
    assert!(offset_of!(EventAttr, aux_action) == 116);
    assert!(offset_of!(EventAttr, sig_data) == 120);
    assert!(offset_of!(EventAttr, config3) == 128);
};

// SAFETY: integers (the flag types are transparent over `u64`) at the offsets
// asserted above, which leave no padding.
unsafe impl Pod for EventAttr {}

/// `enum perf_type_id`. Other numbers are PMUs, read from
/// `/sys/bus/event_source/devices/<pmu>/type`.
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod event_type {
    pub const HARDWARE: u32 = 0;
    pub const SOFTWARE: u32 = 1;
    pub const TRACEPOINT: u32 = 2;
    pub const HW_CACHE: u32 = 3;
    pub const RAW: u32 = 4;
    pub const BREAKPOINT: u32 = 5;
}

/// `enum perf_hw_id`: [`EventAttr::config`] for [`event_type::HARDWARE`].
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod hardware {
    pub const CPU_CYCLES: u64 = 0;
    pub const INSTRUCTIONS: u64 = 1;
    pub const CACHE_REFERENCES: u64 = 2;
    pub const CACHE_MISSES: u64 = 3;
    pub const BRANCH_INSTRUCTIONS: u64 = 4;
    pub const BRANCH_MISSES: u64 = 5;
    pub const BUS_CYCLES: u64 = 6;
    pub const STALLED_CYCLES_FRONTEND: u64 = 7;
    pub const STALLED_CYCLES_BACKEND: u64 = 8;
    pub const REF_CPU_CYCLES: u64 = 9;
}

/// `enum perf_sw_ids`: [`EventAttr::config`] for [`event_type::SOFTWARE`].
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod software {
    pub const CPU_CLOCK: u64 = 0;
    pub const TASK_CLOCK: u64 = 1;
    pub const PAGE_FAULTS: u64 = 2;
    pub const CONTEXT_SWITCHES: u64 = 3;
    pub const CPU_MIGRATIONS: u64 = 4;
    pub const PAGE_FAULTS_MIN: u64 = 5;
    pub const PAGE_FAULTS_MAJ: u64 = 6;
    pub const ALIGNMENT_FAULTS: u64 = 7;
    pub const EMULATION_FAULTS: u64 = 8;
    pub const DUMMY: u64 = 9;
    pub const BPF_OUTPUT: u64 = 10;
    pub const CGROUP_SWITCHES: u64 = 11;
}

/// Bit `n` of `perf_event_attr`'s bit field. C compilers number bit fields
/// from the most significant end on big-endian machines.
const fn attr_bit(n: u32) -> u64 {
    if cfg!(target_endian = "big") {
        1 << (63 - n)
    } else {
        1 << n
    }
}

bitflags! {
    /// The bit field of [`EventAttr`]; bits not named here are kept.
    #[repr(transparent)]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct AttrFlags: u64 {
        /// Start switched off.
        const DISABLED = attr_bit(0);
        /// Children inherit the event.
        const INHERIT = attr_bit(1);
        /// Must always be on the PMU.
        const PINNED = attr_bit(2);
        /// Only group on the PMU.
        const EXCLUSIVE = attr_bit(3);
        /// Leave out user space.
        const EXCLUDE_USER = attr_bit(4);
        /// Leave out the kernel.
        const EXCLUDE_KERNEL = attr_bit(5);
        /// Leave out the hypervisor.
        const EXCLUDE_HV = attr_bit(6);
        /// Leave out the idle task.
        const EXCLUDE_IDLE = attr_bit(7);
        /// Records for executable mappings.
        const MMAP = attr_bit(8);
        /// Records for process names.
        const COMM = attr_bit(9);
        /// `sample_period` is a frequency in hertz.
        const FREQ = attr_bit(10);
        /// Counts per task.
        const INHERIT_STAT = attr_bit(11);
        /// The next exec switches it on.
        const ENABLE_ON_EXEC = attr_bit(12);
        /// Records for fork and exit.
        const TASK = attr_bit(13);
        /// `wakeup` is in bytes.
        const WATERMARK = attr_bit(14);
        /// `precise_ip`, low bit: constant skid. Both bits: no skid.
        const PRECISE_IP_LOW = attr_bit(if cfg!(target_endian = "big") { 16 } else { 15 });
        /// `precise_ip`, high bit: no skid if possible.
        const PRECISE_IP_HIGH = attr_bit(if cfg!(target_endian = "big") { 15 } else { 16 });
        /// Records for other mappings.
        const MMAP_DATA = attr_bit(17);
        /// Every record ends in the identifying fields.
        const SAMPLE_ID_ALL = attr_bit(18);
        /// Leave out the host.
        const EXCLUDE_HOST = attr_bit(19);
        /// Leave out guests.
        const EXCLUDE_GUEST = attr_bit(20);
        /// Leave out kernel call chains.
        const EXCLUDE_CALLCHAIN_KERNEL = attr_bit(21);
        /// Leave out user call chains.
        const EXCLUDE_CALLCHAIN_USER = attr_bit(22);
        /// Mapping records with inode data.
        const MMAP2 = attr_bit(23);
        /// Mark names that come from an exec.
        const COMM_EXEC = attr_bit(24);
        /// Use `clockid` for time stamps.
        const USE_CLOCKID = attr_bit(25);
        /// Records for context switches.
        const CONTEXT_SWITCH = attr_bit(26);
        /// Write the ring from its end to its beginning. Linux 4.7.
        const WRITE_BACKWARD = attr_bit(27);
        /// Records for namespaces. Linux 4.12.
        const NAMESPACES = attr_bit(28);
        /// Records for kernel symbols. Linux 5.1.
        const KSYMBOL = attr_bit(29);
        /// Records for BPF programs. Linux 5.1.
        const BPF_EVENT = attr_bit(30);
        /// AUX records instead of events. Linux 5.4.
        const AUX_OUTPUT = attr_bit(31);
        /// Records for cgroups. Linux 5.7.
        const CGROUP = attr_bit(32);
        /// Records for changed kernel text. Linux 5.9.
        const TEXT_POKE = attr_bit(33);
        /// Build ids in mapping records. Linux 5.12.
        const BUILD_ID = attr_bit(34);
        /// Inherited by threads only. Linux 5.13.
        const INHERIT_THREAD = attr_bit(35);
        /// Removed on exec. Linux 5.13.
        const REMOVE_ON_EXEC = attr_bit(36);
        /// Synchronous `SIGTRAP` per event. Linux 5.13.
        const SIGTRAP = attr_bit(37);
        const _ = !0;
    }
}

bitflags! {
    /// `enum perf_event_sample_format`; bits not named here are kept.
    #[repr(transparent)]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct SampleType: u64 {
        /// Instruction pointer.
        const IP = 1 << 0;
        /// Process and thread id.
        const TID = 1 << 1;
        /// Time stamp in nanoseconds.
        const TIME = 1 << 2;
        /// Address, for events that have one.
        const ADDR = 1 << 3;
        /// Counter values.
        const READ = 1 << 4;
        /// Call chain.
        const CALLCHAIN = 1 << 5;
        /// Event id (of the group leader).
        const ID = 1 << 6;
        /// CPU number.
        const CPU = 1 << 7;
        /// Sample period.
        const PERIOD = 1 << 8;
        /// Event id (of the event itself).
        const STREAM_ID = 1 << 9;
        /// Raw data: a tracepoint's record, or what a program put out.
        const RAW = 1 << 10;
        /// Branches.
        const BRANCH_STACK = 1 << 11;
        /// User registers.
        const REGS_USER = 1 << 12;
        /// User stack.
        const STACK_USER = 1 << 13;
        /// Cost.
        const WEIGHT = 1 << 14;
        /// Where in the memory hierarchy.
        const DATA_SRC = 1 << 15;
        /// Event id in front of all others. Linux 3.12.
        const IDENTIFIER = 1 << 16;
        /// Reason of a transaction's abort.
        const TRANSACTION = 1 << 17;
        /// Registers at the interrupt.
        const REGS_INTR = 1 << 18;
        /// Physical address. Linux 4.14.
        const PHYS_ADDR = 1 << 19;
        /// Part of the AUX area. Linux 5.5.
        const AUX = 1 << 20;
        /// Cgroup id. Linux 5.7.
        const CGROUP = 1 << 21;
        /// Page size of the data address. Linux 5.11.
        const DATA_PAGE_SIZE = 1 << 22;
        /// Page size of the code address. Linux 5.11.
        const CODE_PAGE_SIZE = 1 << 23;
        /// Costs in detail. Linux 5.12.
        const WEIGHT_STRUCT = 1 << 24;
        const _ = !0;
    }
}

impl SampleType {
    /// The members that stand before [`SampleType::RAW`] in a sample and take
    /// eight bytes each.
    pub const FIXED_BEFORE_RAW: SampleType = SampleType::IDENTIFIER
        .union(SampleType::IP)
        .union(SampleType::TID)
        .union(SampleType::TIME)
        .union(SampleType::ADDR)
        .union(SampleType::ID)
        .union(SampleType::STREAM_ID)
        .union(SampleType::CPU)
        .union(SampleType::PERIOD);

    /// Where the time stamp stands in a sample record, in bytes from the
    /// record's start; `None` if there is none.
    pub const fn time_offset(self) -> Option<usize> {
        if !self.contains(SampleType::TIME) {
            return None;
        }
        let before = SampleType::IDENTIFIER
            .union(SampleType::IP)
            .union(SampleType::TID);
        let words = self.intersection(before).bits().count_ones() as usize;
        Some(size_of::<RecordHeader>() + 8 * words)
    }

    /// Where the raw data's size field stands in a sample record, in bytes
    /// from the record's start; `None` if there is none, or if members of
    /// variable size stand before it.
    pub const fn raw_offset(self) -> Option<usize> {
        let variable = SampleType::READ.union(SampleType::CALLCHAIN);
        if !self.contains(SampleType::RAW) || self.intersects(variable) {
            return None;
        }
        let fixed = self.intersection(SampleType::FIXED_BEFORE_RAW).bits();
        Some(size_of::<RecordHeader>() + 8 * fixed.count_ones() as usize)
    }
}

bitflags! {
    /// `enum perf_event_read_format`; bits not named here are kept.
    #[repr(transparent)]
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct ReadFormat: u64 {
        /// Nanoseconds the event was enabled.
        const TOTAL_TIME_ENABLED = 1 << 0;
        /// Nanoseconds the event was counting.
        const TOTAL_TIME_RUNNING = 1 << 1;
        /// The event's id.
        const ID = 1 << 2;
        /// Values of the whole group.
        const GROUP = 1 << 3;
        /// Samples lost. Linux 6.0.
        const LOST = 1 << 4;
        const _ = !0;
    }
}

bitflags! {
    /// Flags of perf_event_open(2); bits not named here are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct OpenFlags: u64 {
        /// Use the group only for its output.
        const FD_NO_GROUP = 1 << 0;
        /// Send output to the group leader's ring.
        const FD_OUTPUT = 1 << 1;
        /// The process argument is a descriptor of a cgroup directory.
        const PID_CGROUP = 1 << 2;
        /// Close the descriptor on exec.
        const FD_CLOEXEC = 1 << 3;
        const _ = !0;
    }
}

/// `struct perf_event_header`, in front of every record of a perf ring.
///
/// The kernel keeps records 8-byte aligned, so a header never wraps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is; see [`record_type`].
    pub kind: u32,
    /// `PERF_RECORD_MISC_*` bits.
    pub misc: u16,
    /// Bytes of the record, header included.
    pub size: u16,
}

const _: () = {
    assert!(size_of::<RecordHeader>() == 8);
    assert!(offset_of!(RecordHeader, kind) == 0);
    assert!(offset_of!(RecordHeader, misc) == 4);
    assert!(offset_of!(RecordHeader, size) == 6);
};

// SAFETY: three integers at the offsets asserted above, without padding.
unsafe impl Pod for RecordHeader {}

/// `enum perf_event_type`: what a record of a perf ring is.
#[allow(missing_docs, reason = "the kernel's own names")]
pub mod record_type {
    pub const MMAP: u32 = 1;
    pub const LOST: u32 = 2;
    pub const COMM: u32 = 3;
    pub const EXIT: u32 = 4;
    pub const THROTTLE: u32 = 5;
    pub const UNTHROTTLE: u32 = 6;
    pub const FORK: u32 = 7;
    pub const READ: u32 = 8;
    pub const SAMPLE: u32 = 9;
    pub const MMAP2: u32 = 10;
    pub const AUX: u32 = 11;
    pub const ITRACE_START: u32 = 12;
    pub const LOST_SAMPLES: u32 = 13;
    pub const SWITCH: u32 = 14;
    pub const SWITCH_CPU_WIDE: u32 = 15;
    pub const NAMESPACES: u32 = 16;
    pub const KSYMBOL: u32 = 17;
    pub const BPF_EVENT: u32 = 18;
    pub const CGROUP: u32 = 19;
    pub const TEXT_POKE: u32 = 20;
    pub const AUX_OUTPUT_HW_ID: u32 = 21;
}

/// `struct perf_event_mmap_page`: the first page of a perf ring's mapping.
///
/// The kernel writes to it at any time; this type only gives the offsets.
#[repr(C)]
#[derive(Debug)]
pub struct MmapPage {
    /// Version of this structure.
    pub version: u32,
    /// Lowest version it is compatible with.
    pub compat_version: u32,
    /// Sequence lock of the counter fields.
    pub lock: u32,
    /// Hardware counter number.
    pub index: u32,
    /// Add to the hardware counter.
    pub offset: i64,
    /// Nanoseconds the event was active.
    pub time_enabled: u64,
    /// Nanoseconds it was on a CPU.
    pub time_running: u64,
    /// Capability bits.
    pub capabilities: u64,
    /// Bits of the hardware counter.
    pub pmc_width: u16,
    /// Conversion from cycles to time.
    pub time_shift: u16,
    /// Conversion from cycles to time.
    pub time_mult: u32,
    /// Conversion from cycles to time.
    pub time_offset: u64,
    /// Conversion from time stamps to cycles.
    pub time_zero: u64,
    /// Bytes of this structure up to the reserved part.
    pub size: u32,
    /// Padding.
    pub reserved_1: u32,
    /// Conversion for a clock narrower than 64 bits.
    pub time_cycles: u64,
    /// Conversion for a clock narrower than 64 bits.
    pub time_mask: u64,
    /// Room to grow, up to 1 KiB.
    pub reserved: [u8; 116 * 8],
    /// Bytes ever written; the kernel advances it.
    pub data_head: u64,
    /// Bytes ever read; user space advances it.
    pub data_tail: u64,
    /// Where the data starts in the mapping. Zero before Linux 4.1.
    pub data_offset: u64,
    /// Bytes of data. Zero before Linux 4.1.
    pub data_size: u64,
    /// Bytes ever written to the AUX area.
    pub aux_head: u64,
    /// Bytes ever read from the AUX area.
    pub aux_tail: u64,
    /// Where the AUX area starts.
    pub aux_offset: u64,
    /// Bytes of the AUX area.
    pub aux_size: u64,
}

const _: () = {
    assert!(offset_of!(MmapPage, lock) == 8);
    assert!(offset_of!(MmapPage, offset) == 16);
    assert!(offset_of!(MmapPage, capabilities) == 40);
    assert!(offset_of!(MmapPage, time_offset) == 56);
    assert!(offset_of!(MmapPage, size) == 72);
    assert!(offset_of!(MmapPage, time_cycles) == 80);
    assert!(offset_of!(MmapPage, reserved) == 96);
    assert!(offset_of!(MmapPage, data_head) == 1024);
    assert!(offset_of!(MmapPage, data_tail) == 1032);
    assert!(offset_of!(MmapPage, data_offset) == 1040);
    assert!(offset_of!(MmapPage, data_size) == 1048);
    assert!(offset_of!(MmapPage, aux_head) == 1056);
    assert!(size_of::<MmapPage>() == 1088);
};

/// `PERF_EVENT_IOC_*`: requests of ioctl(2) on a perf event. Their numbers
/// depend on the architecture.
pub mod ioc {
    use libc::{_IO, _IOR, _IOW, _IOWR, Ioctl, c_char, c_void};

    const MAGIC: u32 = b'$' as u32;

    /// Start counting.
    pub const ENABLE: Ioctl = _IO(MAGIC, 0);
    /// Stop counting.
    pub const DISABLE: Ioctl = _IO(MAGIC, 1);
    /// Arm for so many more overflows.
    pub const REFRESH: Ioctl = _IO(MAGIC, 2);
    /// Set the count to zero.
    pub const RESET: Ioctl = _IO(MAGIC, 3);
    /// Set the sample period.
    pub const PERIOD: Ioctl = _IOW::<u64>(MAGIC, 4);
    /// Send output to another event's ring.
    pub const SET_OUTPUT: Ioctl = _IO(MAGIC, 5);
    /// Set the tracepoint filter.
    pub const SET_FILTER: Ioctl = _IOW::<*const c_char>(MAGIC, 6);
    /// Get the event's id.
    pub const ID: Ioctl = _IOR::<*mut u64>(MAGIC, 7);
    /// Attach a BPF program. Linux 4.1.
    pub const SET_BPF: Ioctl = _IOW::<u32>(MAGIC, 8);
    /// Pause or resume output to the ring. Linux 4.7.
    pub const PAUSE_OUTPUT: Ioctl = _IOW::<u32>(MAGIC, 9);
    /// List the attached BPF programs. Linux 4.16.
    pub const QUERY_BPF: Ioctl = _IOWR::<*mut c_void>(MAGIC, 10);
    /// Change a breakpoint. Linux 4.17.
    pub const MODIFY_ATTRIBUTES: Ioctl = _IOW::<*mut c_void>(MAGIC, 11);
}

/// `BPF_TRACE_MAX_PROGS`: most programs the kernel attaches to one event, and
/// most ids [`ioc::QUERY_BPF`] may ask for.
pub const TRACE_MAX_PROGS: usize = 64;

/// Record header of the BPF ring buffer: `len` with two flag bits, then
/// `pg_off`, which only the kernel uses.
pub mod ringbuf {
    /// `BPF_RINGBUF_BUSY_BIT`: reserved, not committed yet.
    pub const BUSY_BIT: u32 = 1 << 31;
    /// `BPF_RINGBUF_DISCARD_BIT`: committed, to be skipped.
    pub const DISCARD_BIT: u32 = 1 << 30;
    /// `BPF_RINGBUF_HDR_SZ`: bytes of the header.
    pub const HEADER_SIZE: usize = 8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    ))]
    fn requests_are_the_headers_numbers() {
        assert_eq!(ioc::ENABLE, 0x2400);
        assert_eq!(ioc::DISABLE, 0x2401);
        assert_eq!(ioc::SET_FILTER, 0x4008_2406);
        assert_eq!(ioc::ID, 0x8008_2407);
        assert_eq!(ioc::SET_BPF, 0x4004_2408);
        assert_eq!(ioc::PAUSE_OUTPUT, 0x4004_2409);
        assert_eq!(ioc::QUERY_BPF, 0xc008_240a);
    }

    #[test]
    fn raw_data_follows_the_fixed_members() {
        assert_eq!(SampleType::RAW.raw_offset(), Some(8));
        assert_eq!(SampleType::TIME.raw_offset(), None);
        let both = SampleType::RAW | SampleType::TIME | SampleType::CPU;
        assert_eq!(both.raw_offset(), Some(24));
        assert_eq!((both | SampleType::REGS_USER).raw_offset(), Some(24));
        assert_eq!((both | SampleType::CALLCHAIN).raw_offset(), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn bit_field_positions() {
        assert_eq!(AttrFlags::DISABLED.bits(), 1);
        assert_eq!(AttrFlags::WATERMARK.bits(), 1 << 14);
        assert_eq!(AttrFlags::SAMPLE_ID_ALL.bits(), 1 << 18);
        assert_eq!(AttrFlags::WRITE_BACKWARD.bits(), 1 << 27);
        assert_eq!(AttrFlags::SIGTRAP.bits(), 1 << 37);
    }
}
