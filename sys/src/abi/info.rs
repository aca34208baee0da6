//! What `BPF_OBJ_GET_INFO_BY_FD` fills in, and the debug-information records
//! that accompany a program.
//!
//! A kernel older than a field leaves it zero; a newer kernel fills in no more
//! than the structure holds. Addresses are plain numbers here: the calls that
//! set them own the memory behind them.

use super::bpf::{
    AttachType, LinkType, MapType, OBJ_NAME_LEN, PerfLinkType, ProgramType, TAG_SIZE,
};

record! {
    /// `struct bpf_prog_info`. Linux 4.13.
    ProgInfo = 232 {
        0 prog_type: ProgramType,
        4 id: u32,
        8 tag: [u8; TAG_SIZE],
        /// Bytes of machine code; 0 without the privilege to see it.
        16 jited_prog_len: u32,
        /// Bytes of verified instructions.
        20 xlated_prog_len: u32,
        24 jited_prog_insns: u64,
        32 xlated_prog_insns: u64,
        /// Nanoseconds since boot. Linux 4.15.
        40 load_time: u64,
        /// Linux 4.15.
        48 created_by_uid: u32,
        /// Linux 4.15.
        52 nr_map_ids: u32,
        56 map_ids: u64,
        /// Linux 4.15.
        64 name: [u8; OBJ_NAME_LEN],
        /// Linux 4.16.
        80 ifindex: u32,
        /// Bit 0: the license is GPL-compatible. Linux 4.18.
        84 gpl_compatible: u32,
        /// Linux 4.16.
        88 netns_dev: u64,
        /// Linux 4.16.
        96 netns_ino: u64,
        /// Linux 4.18.
        104 nr_jited_ksyms: u32,
        108 nr_jited_func_lens: u32,
        112 jited_ksyms: u64,
        120 jited_func_lens: u64,
        /// Linux 5.0.
        128 btf_id: u32,
        132 func_info_rec_size: u32,
        136 func_info: u64,
        144 nr_func_info: u32,
        148 nr_line_info: u32,
        152 line_info: u64,
        160 jited_line_info: u64,
        168 nr_jited_line_info: u32,
        172 line_info_rec_size: u32,
        176 jited_line_info_rec_size: u32,
        180 nr_prog_tags: u32,
        184 prog_tags: u64,
        /// Counted while statistics are enabled. Linux 5.1.
        192 run_time_ns: u64,
        /// Counted while statistics are enabled. Linux 5.1.
        200 run_cnt: u64,
        /// Runs skipped because the program was already running on that CPU.
        /// Linux 5.12.
        208 recursion_misses: u64,
        /// Linux 5.16.
        216 verified_insns: u32,
        /// Linux 6.0.
        220 attach_btf_obj_id: u32,
        /// Linux 6.0.
        224 attach_btf_id: u32,
        228 pad: u32,
    }
}

record! {
    /// `struct bpf_map_info`. Linux 4.13.
    MapInfo = 88 {
        0 map_type: MapType,
        4 id: u32,
        8 key_size: u32,
        12 value_size: u32,
        16 max_entries: u32,
        20 map_flags: u32,
        /// Linux 4.15.
        24 name: [u8; OBJ_NAME_LEN],
        /// Linux 4.16.
        40 ifindex: u32,
        /// Linux 5.6.
        44 btf_vmlinux_value_type_id: u32,
        /// Linux 4.16.
        48 netns_dev: u64,
        /// Linux 4.16.
        56 netns_ino: u64,
        /// Linux 4.18.
        64 btf_id: u32,
        68 btf_key_type_id: u32,
        72 btf_value_type_id: u32,
        /// Linux 6.9.
        76 btf_vmlinux_id: u32,
        /// Linux 5.16.
        80 map_extra: u64,
    }
}

record! {
    /// `struct bpf_btf_info`. Linux 4.18.
    BtfInfo = 32 {
        0 btf: u64,
        /// Bytes of the whole BTF blob.
        8 btf_size: u32,
        12 id: u32,
        16 name: u64,
        /// Linux 5.11.
        24 name_len: u32,
        /// 1 for BTF of the kernel and its modules. Linux 5.11.
        28 kernel_btf: u32,
    }
}

record! {
    /// `struct bpf_link_info`. Linux 5.8. What the 48 bytes of `detail` mean
    /// depends on `link_type`; the structures below are their beginnings.
    LinkInfo = 64 {
        0 link_type: LinkType,
        4 id: u32,
        8 prog_id: u32,
        12 pad: u32,
        16 detail: [u64; 6],
    }
}

record! {
    /// `bpf_link_info.raw_tracepoint`.
    RawTracepointDetail = 24 {
        0 tp_name: u64,
        8 tp_name_len: u32,
        12 pad: u32,
        /// Linux 6.17.
        16 cookie: u64,
    }
}

record! {
    /// `bpf_link_info.tracing`.
    TracingDetail = 24 {
        0 attach_type: AttachType,
        /// Linux 5.13.
        4 target_obj_id: u32,
        /// Linux 5.13.
        8 target_btf_id: u32,
        12 pad: u32,
        /// Linux 6.17.
        16 cookie: u64,
    }
}

record! {
    /// `bpf_link_info.cgroup`.
    CgroupDetail = 16 {
        0 cgroup_id: u64,
        8 attach_type: AttachType,
        12 pad: u32,
    }
}

record! {
    /// `bpf_link_info.iter`. The last three fields depend on the target.
    IterDetail = 32 {
        0 target_name: u64,
        8 target_name_len: u32,
        12 map_id: u32,
        /// `cgroup_id` or, in its first half, `tid` and in its second `pid`.
        16 cgroup_id_or_task: u64,
        24 cgroup_order: u32,
        28 pad: u32,
    }
}

record! {
    /// `bpf_link_info.netns`.
    NetnsDetail = 8 {
        0 netns_ino: u32,
        4 attach_type: AttachType,
    }
}

record! {
    /// `bpf_link_info.tcx` and `bpf_link_info.netkit`, of which
    /// `bpf_link_info.xdp` is the first field.
    NetdevDetail = 8 {
        /// 0 once the device is gone.
        0 ifindex: u32,
        4 attach_type: AttachType,
    }
}

record! {
    /// `bpf_link_info.struct_ops`, and with the attach type
    /// `bpf_link_info.sockmap`.
    MapDetail = 8 {
        0 map_id: u32,
        4 attach_type: AttachType,
    }
}

record! {
    /// `bpf_link_info.netfilter`.
    NetfilterDetail = 16 {
        0 pf: u32,
        4 hooknum: u32,
        8 priority: i32,
        12 flags: u32,
    }
}

record! {
    /// `bpf_link_info.kprobe_multi`. Linux 6.6.
    KprobeMultiDetail = 32 {
        0 addrs: u64,
        8 count: u32,
        12 flags: u32,
        /// Linux 6.7.
        16 missed: u64,
        /// Linux 6.9.
        24 cookies: u64,
    }
}

record! {
    /// `bpf_link_info.uprobe_multi`. Linux 6.8.
    UprobeMultiDetail = 48 {
        0 path: u64,
        8 offsets: u64,
        16 ref_ctr_offsets: u64,
        24 cookies: u64,
        32 path_size: u32,
        36 count: u32,
        40 flags: u32,
        44 pid: u32,
    }
}

record! {
    /// `bpf_link_info.perf_event`. Linux 6.6. What follows `event_type`
    /// depends on it.
    PerfEventDetail = 48 {
        0 event_type: PerfLinkType,
        4 pad: u32,
        /// Name of file, function or tracepoint; `config` of a plain event.
        8 name: u64,
        /// Bytes of the name; `type` of a plain event.
        16 name_len: u32,
        /// Offset into file or function.
        20 offset: u32,
        /// Address of a kprobe; cookie of every other kind.
        24 addr_or_cookie: u64,
        /// Misses of a kprobe. Linux 6.7.
        32 missed: u64,
        /// Cookie of a kprobe. Linux 6.9.
        40 kprobe_cookie: u64,
    }
}

record! {
    /// `struct bpf_func_info`: a subprogram starts here. Linux 5.0.
    FuncInfo = 8 {
        /// Instruction, counted in 8-byte units.
        0 insn_off: u32,
        4 type_id: u32,
    }
}

record! {
    /// `struct bpf_line_info`: a source line starts here. Linux 5.0.
    LineInfo = 16 {
        /// Instruction, counted in 8-byte units.
        0 insn_off: u32,
        4 file_name_off: u32,
        8 line_off: u32,
        /// Line shifted left by 10, column below.
        12 line_col: u32,
    }
}

record! {
    /// `struct bpf_core_relo`: an instruction that depends on a kernel type.
    CoreRelo = 16 {
        /// Instruction, counted in bytes.
        0 insn_off: u32,
        4 type_id: u32,
        8 access_str_off: u32,
        /// `enum bpf_core_relo_kind`.
        12 kind: u32,
    }
}

impl ProgInfo {
    /// The license lets the program call GPL-only helpers. False below Linux
    /// 4.18, which does not say.
    pub fn is_gpl_compatible(&self) -> bool {
        // A C bit field: allocated from the low end on little-endian machines.
        let bit = if cfg!(target_endian = "little") {
            1
        } else {
            1 << 31
        };
        self.gpl_compatible & bit != 0
    }
}

/// The text before the terminator of a name as the kernel stores it. Kernels
/// accept ASCII only, so anything else reads as empty.
pub fn name_str(name: &[u8; OBJ_NAME_LEN]) -> &str {
    let len = name.iter().position(|&b| b == 0).unwrap_or(OBJ_NAME_LEN);
    std::str::from_utf8(&name[..len]).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_at_the_terminator() {
        assert_eq!(name_str(b"probe\0garbage123"), "probe");
        assert_eq!(name_str(&[b'x'; 16]), "xxxxxxxxxxxxxxxx");
        assert_eq!(name_str(&[0xff; 16]), "");
    }
}
