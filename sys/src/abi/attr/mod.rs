//! The argument of bpf(2), one structure per command.
//!
//! The kernel declares one union; each command reads one of its members and
//! insists that everything behind that member's last field is zero. Fields a
//! kernel does not know are unknown bytes to it, refused with `E2BIG` unless
//! zero, so a structure starts from [`Default`] (all zero) and is passed only
//! through the last field in use.
//!
//! Descriptor fields are 0 for "none". Source: `union bpf_attr` of Linux 6.12;
//! later additions are named where they occur.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use super::bpf::{AttachType, MapType, ProgramType, StatsType, TaskFdType};
use super::pod::Pod;

/// Address of memory that the kernel reads during the call.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub struct Ptr<'a>(u64, PhantomData<&'a [u8]>);

/// Address of memory that the kernel writes during the call.
#[repr(transparent)]
#[derive(Default)]
pub struct PtrMut<'a>(u64, PhantomData<&'a mut [u8]>);

impl<'a> Ptr<'a> {
    /// No memory.
    pub const NULL: Ptr<'static> = Ptr(0, PhantomData);

    fn address<T>(ptr: *const T) -> Ptr<'a> {
        Ptr(ptr.expose_provenance() as u64, PhantomData)
    }

    /// The start of `data`; null for an empty slice.
    pub fn of<T: Pod>(data: &'a [T]) -> Ptr<'a> {
        if data.is_empty() {
            return Ptr::NULL;
        }
        Ptr::address(data.as_ptr())
    }

    /// A terminated string.
    pub fn of_str(text: &'a CStr) -> Ptr<'a> {
        Ptr::address(text.as_ptr())
    }

    /// An array of descriptor numbers; null for an empty one.
    pub fn of_fds(fds: &'a [BorrowedFd<'_>]) -> Ptr<'a> {
        if fds.is_empty() {
            return Ptr::NULL;
        }
        // `BorrowedFd` is documented to be transparent over the number.
        Ptr::address(fds.as_ptr())
    }

    /// An array of strings; null for an empty one.
    pub fn of_str_array(strings: &'a [*const c_char]) -> Ptr<'a> {
        if strings.is_empty() {
            return Ptr::NULL;
        }
        Ptr::address(strings.as_ptr())
    }
}

impl<'a> PtrMut<'a> {
    /// The address, for structures that hold it as a number.
    pub fn address(&self) -> u64 {
        self.0
    }

    /// The start of `data`; null for an empty slice.
    pub fn of<T: Pod>(data: &'a mut [T]) -> PtrMut<'a> {
        if data.is_empty() {
            return PtrMut::default();
        }
        PtrMut(data.as_mut_ptr().expose_provenance() as u64, PhantomData)
    }
}

impl fmt::Debug for Ptr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for PtrMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// An argument of bpf(2).
///
/// # Safety
/// The type must be `repr(C)` and consist of initialised bytes only: no
/// padding, and every bit pattern valid.
pub(crate) unsafe trait Attr {
    /// Bytes always passed: what the first kernel with the command read, or,
    /// where a kernel answers only if the field is inside the size passed
    /// (`log_true_size`), through that field.
    const MIN_LEN: usize;

    /// The bytes of the argument, as the kernel reads and writes them.
    fn bytes_mut(&mut self) -> &mut [u8]
    where
        Self: Sized,
    {
        let len = size_of::<Self>();
        let start = std::ptr::from_mut(self).cast::<u8>();
        // SAFETY: implementors have no padding and accept every bit pattern,
        // so `self` is `len` initialised bytes that may be overwritten with
        // anything; the exclusive borrow is carried over to the result.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

/// How many bytes of the argument `bytes` to pass: through the last field that
/// is set, at least `min`, in whole 8-byte units unless the structure ends.
///
/// An older kernel then sees no field it lacks, unless the caller set one.
pub(crate) fn used_len(bytes: &[u8], min: usize) -> usize {
    let set = bytes
        .iter()
        .rposition(|&b| b != 0)
        .map_or(0, |last| last + 1);
    set.max(min).next_multiple_of(8).min(bytes.len())
}

macro_rules! attr {
    ($(#[$meta:meta])* $name:ident $(<$lt:lifetime>)? = $size:literal, min $min:literal { $($body:tt)* }) => {
        layout! {
            $(#[$meta])*
            #[derive(Debug, Default)]
            $name $(<$lt>)? = $size { $($body)* }
        }

        // SAFETY: `layout!` proved that the fields fill the structure; each is
        // an integer, made of integers, or a `LinkExtra`, whose bytes are all
        // initialised.
        unsafe impl $(<$lt>)? Attr for $name $(<$lt>)? {
            const MIN_LEN: usize = $min;
        }
    };
}

mod link;

pub use link::{
    IterCgroup, IterCreate, IterMap, IterTask, LinkCreate, LinkDetach, LinkExtra, LinkIter,
    LinkKprobeMulti, LinkNetfilter, LinkOrder, LinkTracing, LinkUpdate, LinkUprobeMulti,
    RawTracepointOpen,
};

attr! {
    /// `BPF_MAP_CREATE`. Linux 3.18.
    MapCreate = 80, min 16 {
        0 map_type: MapType,
        4 key_size: u32,
        8 value_size: u32,
        12 max_entries: u32,
        /// Linux 4.6.
        16 map_flags: u32,
        /// Linux 4.12.
        20 inner_map_fd: u32,
        /// Linux 4.14.
        24 numa_node: u32,
        /// Linux 4.15.
        28 map_name: [u8; 16],
        /// Linux 4.16.
        44 map_ifindex: u32,
        /// Linux 4.18.
        48 btf_fd: u32,
        /// Linux 4.18.
        52 btf_key_type_id: u32,
        /// Linux 4.18.
        56 btf_value_type_id: u32,
        /// Linux 5.6.
        60 btf_vmlinux_value_type_id: u32,
        /// Linux 5.16.
        64 map_extra: u64,
        /// Linux 6.9.
        72 value_type_btf_obj_fd: i32,
        /// Linux 6.9.
        76 map_token_fd: i32,
    }
}

attr! {
    /// `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM`, which only read.
    /// Linux 3.18.
    MapElem<'a> = 32, min 32 {
        0 map_fd: u32,
        4 pad: u32,
        8 key: Ptr<'a>,
        16 value: Ptr<'a>,
        24 flags: u64,
    }
}

attr! {
    /// `BPF_MAP_LOOKUP_ELEM`, `BPF_MAP_LOOKUP_AND_DELETE_ELEM` (4.20) and
    /// `BPF_MAP_GET_NEXT_KEY`, which write the value or the next key.
    /// Linux 3.18; `flags` on lookups since 5.1.
    MapElemMut<'a> = 32, min 24 {
        0 map_fd: u32,
        4 pad: u32,
        8 key: Ptr<'a>,
        16 value_or_next_key: PtrMut<'a>,
        24 flags: u64,
    }
}

attr! {
    /// `BPF_MAP_UPDATE_BATCH` and `BPF_MAP_DELETE_BATCH`, which only read.
    /// Linux 5.6.
    MapBatch<'a> = 56, min 56 {
        0 in_batch: Ptr<'a>,
        8 out_batch: Ptr<'a>,
        16 keys: Ptr<'a>,
        24 values: Ptr<'a>,
        /// Elements offered; on return those processed.
        32 count: u32,
        36 map_fd: u32,
        40 elem_flags: u64,
        48 flags: u64,
    }
}

attr! {
    /// `BPF_MAP_LOOKUP_BATCH` and `BPF_MAP_LOOKUP_AND_DELETE_BATCH`, which
    /// write keys, values and the position. Linux 5.6.
    MapBatchMut<'a> = 56, min 56 {
        0 in_batch: Ptr<'a>,
        8 out_batch: PtrMut<'a>,
        16 keys: PtrMut<'a>,
        24 values: PtrMut<'a>,
        /// Room for elements; on return those filled.
        32 count: u32,
        36 map_fd: u32,
        40 elem_flags: u64,
        48 flags: u64,
    }
}

attr! {
    /// `BPF_MAP_FREEZE`. Linux 5.2.
    MapFreeze = 4, min 4 {
        0 map_fd: u32,
    }
}

attr! {
    /// `BPF_PROG_LOAD`. Linux 3.18.
    ProgLoad<'a> = 152, min 144 {
        0 prog_type: ProgramType,
        4 insn_cnt: u32,
        8 insns: Ptr<'a>,
        16 license: Ptr<'a>,
        24 log_level: u32,
        28 log_size: u32,
        32 log_buf: PtrMut<'a>,
        /// Linux 4.1; compared for kprobe programs before 5.0.
        40 kern_version: u32,
        /// Linux 4.12.
        44 prog_flags: u32,
        /// Linux 4.15.
        48 prog_name: [u8; 16],
        /// Linux 4.15.
        64 prog_ifindex: u32,
        /// Linux 4.17.
        68 expected_attach_type: AttachType,
        /// Linux 5.0.
        72 prog_btf_fd: u32,
        /// Linux 5.0.
        76 func_info_rec_size: u32,
        /// Linux 5.0.
        80 func_info: Ptr<'a>,
        /// Linux 5.0.
        88 func_info_cnt: u32,
        /// Linux 5.0.
        92 line_info_rec_size: u32,
        /// Linux 5.0.
        96 line_info: Ptr<'a>,
        /// Linux 5.0.
        104 line_info_cnt: u32,
        /// Linux 5.5.
        108 attach_btf_id: u32,
        /// A program (5.5) or a module's BTF (5.11).
        112 attach_prog_or_btf_obj_fd: u32,
        /// Linux 5.17.
        116 core_relo_cnt: u32,
        /// Linux 5.14.
        120 fd_array: Ptr<'a>,
        /// Linux 5.17.
        128 core_relos: Ptr<'a>,
        /// Linux 5.17.
        136 core_relo_rec_size: u32,
        /// Written by the kernel since Linux 6.4.
        140 log_true_size: u32,
        /// Linux 6.9.
        144 prog_token_fd: i32,
        148 pad: u32,
    }
}

attr! {
    /// `BPF_OBJ_PIN` and `BPF_OBJ_GET`. Linux 4.4.
    Obj<'a> = 24, min 12 {
        0 pathname: Ptr<'a>,
        8 bpf_fd: u32,
        /// Linux 4.15.
        12 file_flags: u32,
        /// Linux 6.5.
        16 path_fd: i32,
        20 pad: u32,
    }
}

attr! {
    /// `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`. Linux 4.10.
    ProgAttach = 32, min 12 {
        0 target_fd_or_ifindex: u32,
        4 attach_bpf_fd: u32,
        8 attach_type: AttachType,
        12 attach_flags: u32,
        /// Linux 5.6.
        16 replace_bpf_fd: u32,
        /// Linux 6.6.
        20 relative_fd_or_id: u32,
        /// Linux 6.6.
        24 expected_revision: u64,
    }
}

attr! {
    /// `BPF_PROG_TEST_RUN`. Linux 4.12.
    TestRun<'a> = 80, min 40 {
        0 prog_fd: u32,
        4 retval: u32,
        8 data_size_in: u32,
        12 data_size_out: u32,
        16 data_in: Ptr<'a>,
        24 data_out: PtrMut<'a>,
        32 repeat: u32,
        36 duration: u32,
        /// Linux 5.2.
        40 ctx_size_in: u32,
        /// Linux 5.2.
        44 ctx_size_out: u32,
        /// Linux 5.2. Written back for programs of type syscall (5.14).
        48 ctx_in: PtrMut<'a>,
        /// Linux 5.2.
        56 ctx_out: PtrMut<'a>,
        /// Linux 5.10.
        64 flags: u32,
        /// Linux 5.10.
        68 cpu: u32,
        /// Linux 5.18.
        72 batch_size: u32,
        76 pad: u32,
    }
}

attr! {
    /// `BPF_{PROG,MAP,BTF,LINK}_GET_NEXT_ID` and `..._GET_FD_BY_ID`.
    /// Linux 4.13; BTF since 4.18, next BTF since 5.4, links since 5.8.
    GetId = 12, min 8 {
        0 start_id_or_id: u32,
        4 next_id: u32,
        /// Linux 4.15; maps only.
        8 open_flags: u32,
    }
}

attr! {
    /// `BPF_OBJ_GET_INFO_BY_FD`. Linux 4.13.
    InfoByFd<'a> = 16, min 16 {
        0 bpf_fd: u32,
        4 info_len: u32,
        8 info: PtrMut<'a>,
    }
}

attr! {
    /// `BPF_PROG_QUERY`. Linux 4.15. Passed whole, because the kernel writes
    /// an answer only where the size reaches; older ones take zeros.
    ProgQuery<'a> = 64, min 64 {
        0 target_fd_or_ifindex: u32,
        4 attach_type: AttachType,
        8 query_flags: u32,
        12 attach_flags: u32,
        16 prog_ids: PtrMut<'a>,
        24 count: u32,
        28 pad: u32,
        /// Linux 6.0.
        32 prog_attach_flags: PtrMut<'a>,
        /// Linux 6.6.
        40 link_ids: PtrMut<'a>,
        /// Linux 6.6.
        48 link_attach_flags: PtrMut<'a>,
        /// Linux 6.6.
        56 revision: u64,
    }
}

attr! {
    /// `BPF_BTF_LOAD`. Linux 4.18.
    BtfLoad<'a> = 40, min 32 {
        0 btf: Ptr<'a>,
        8 btf_log_buf: PtrMut<'a>,
        16 btf_size: u32,
        20 btf_log_size: u32,
        24 btf_log_level: u32,
        /// Written by the kernel since Linux 6.4.
        28 btf_log_true_size: u32,
        /// Linux 6.9.
        32 btf_flags: u32,
        /// Linux 6.9.
        36 btf_token_fd: i32,
    }
}

attr! {
    /// `BPF_TASK_FD_QUERY`. Linux 4.18.
    TaskFdQuery<'a> = 48, min 48 {
        0 pid: u32,
        4 fd: u32,
        8 flags: u32,
        12 buf_len: u32,
        16 buf: PtrMut<'a>,
        24 prog_id: u32,
        28 fd_type: TaskFdType,
        32 probe_offset: u64,
        40 probe_addr: u64,
    }
}

attr! {
    /// `BPF_ENABLE_STATS`. Linux 5.8.
    EnableStats = 4, min 4 {
        0 stats_type: StatsType,
    }
}

attr! {
    /// `BPF_PROG_BIND_MAP`. Linux 5.10.
    ProgBindMap = 12, min 12 {
        0 prog_fd: u32,
        4 map_fd: u32,
        8 flags: u32,
    }
}

attr! {
    /// `BPF_TOKEN_CREATE`. Linux 6.9.
    TokenCreate = 8, min 8 {
        0 flags: u32,
        4 bpffs_fd: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_passed_ends_at_the_last_field_set() {
        assert_eq!(used_len(&[0; 80], 16), 16);
        let mut attr = MapCreate {
            max_entries: 1,
            ..MapCreate::default()
        };
        assert_eq!(used_len(attr.bytes_mut(), MapCreate::MIN_LEN), 16);
        attr.map_flags = 1;
        // Whole units: 20 is not one.
        assert_eq!(used_len(attr.bytes_mut(), MapCreate::MIN_LEN), 24);
        attr.map_extra = 5;
        assert_eq!(used_len(attr.bytes_mut(), MapCreate::MIN_LEN), 72);
        attr.map_token_fd = 1 << 24;
        assert_eq!(used_len(attr.bytes_mut(), MapCreate::MIN_LEN), 80);
        // Never beyond the structure.
        let mut attr = GetId {
            open_flags: 8,
            ..GetId::default()
        };
        assert_eq!(used_len(attr.bytes_mut(), GetId::MIN_LEN), 12);
        assert_eq!(used_len(&[], 0), 0);
    }

    #[test]
    fn empty_memory_is_null() {
        assert_eq!(format!("{:?}", Ptr::of::<u32>(&[])), "0x0");
        assert_eq!(format!("{:?}", PtrMut::of::<u8>(&mut [])), "0x0");
        assert_eq!(format!("{:?}", Ptr::of_fds(&[])), "0x0");
        assert_eq!(format!("{:?}", Ptr::of_str_array(&[])), "0x0");
        assert_ne!(format!("{:?}", Ptr::of_str(c"")), "0x0");
    }
}
