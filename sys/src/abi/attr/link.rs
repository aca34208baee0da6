//! Arguments of the commands that make and change links.

use std::fmt;

use super::{Attr, Ptr};
use crate::abi::bpf::{AttachType, CgroupIterOrder};

attr! {
    /// `BPF_RAW_TRACEPOINT_OPEN`. Linux 4.17.
    RawTracepointOpen<'a> = 24, min 16 {
        0 name: Ptr<'a>,
        8 prog_fd: u32,
        12 pad: u32,
        /// Linux 6.10.
        16 cookie: u64,
    }
}

attr! {
    /// `BPF_LINK_CREATE`. Linux 5.7.
    LinkCreate<'a> = 64, min 16 {
        /// The program, or for struct_ops (6.4) the map.
        0 prog_or_map_fd: u32,
        4 target_fd_or_ifindex: u32,
        8 attach_type: AttachType,
        12 flags: u32,
        16 extra: LinkExtra<'a>,
    }
}

/// What [`LinkCreate`] carries besides the common fields, by kind of link.
///
/// The members are private: each value is made from all zeros and one member
/// written over them, so that every byte is initialised.
#[repr(C)]
#[derive(Clone, Copy)]
pub union LinkExtra<'a> {
    zero: [u64; 6],
    target_btf_id: u32,
    iter: LinkIter<'a>,
    perf_event_cookie: u64,
    kprobe_multi: LinkKprobeMulti<'a>,
    tracing: LinkTracing,
    netfilter: LinkNetfilter,
    uprobe_multi: LinkUprobeMulti<'a>,
    order: LinkOrder,
}

const _: () = assert!(size_of::<LinkExtra<'_>>() == 48);
const _: () = assert!(align_of::<LinkExtra<'_>>() == 8);

macro_rules! extra {
    ($($(#[$meta:meta])* $member:ident: $ty:ty;)*) => {
        impl<'a> LinkExtra<'a> {
            $($(#[$meta])* pub fn $member(value: $ty) -> LinkExtra<'a> {
                let mut extra = LinkExtra::default();
                extra.$member = value;
                extra
            })*
        }
    };
}

extra! {
    /// freplace and tracing without a cookie. Linux 5.10.
    target_btf_id: u32;
    /// Iterators. Linux 5.8.
    iter: LinkIter<'a>;
    /// `perf_event.bpf_cookie`. Linux 5.15.
    perf_event_cookie: u64;
    /// Many kernel functions. Linux 5.18.
    kprobe_multi: LinkKprobeMulti<'a>;
    /// fentry, fexit, LSM and the like with a cookie. Linux 5.19.
    tracing: LinkTracing;
    /// Netfilter hooks. Linux 6.4.
    netfilter: LinkNetfilter;
    /// Many places of a user binary. Linux 6.6.
    uprobe_multi: LinkUprobeMulti<'a>;
    /// Position among other programs: tcx (6.6), netkit (6.7), cgroup (6.17).
    order: LinkOrder;
}

impl Default for LinkExtra<'_> {
    fn default() -> Self {
        LinkExtra { zero: [0; 6] }
    }
}

impl fmt::Debug for LinkExtra<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkExtra")
    }
}

layout! {
    /// `link_create.iter_info`.
    #[derive(Clone, Copy, Debug, Default)]
    LinkIter<'a> = 16 {
        0 iter_info: Ptr<'a>,
        8 iter_info_len: u32,
        12 pad: u32,
    }
}

layout! {
    /// `link_create.kprobe_multi`.
    #[derive(Clone, Copy, Debug, Default)]
    LinkKprobeMulti<'a> = 32 {
        0 flags: u32,
        4 cnt: u32,
        8 syms: Ptr<'a>,
        16 addrs: Ptr<'a>,
        24 cookies: Ptr<'a>,
    }
}

layout! {
    /// `link_create.tracing`.
    #[derive(Clone, Copy, Debug, Default)]
    LinkTracing = 16 {
        0 target_btf_id: u32,
        4 pad: u32,
        8 cookie: u64,
    }
}

layout! {
    /// `link_create.netfilter`.
    #[derive(Clone, Copy, Debug, Default)]
    LinkNetfilter = 16 {
        0 pf: u32,
        4 hooknum: u32,
        8 priority: i32,
        12 flags: u32,
    }
}

layout! {
    /// `link_create.uprobe_multi`.
    #[derive(Clone, Copy, Debug, Default)]
    LinkUprobeMulti<'a> = 48 {
        0 path: Ptr<'a>,
        8 offsets: Ptr<'a>,
        16 ref_ctr_offsets: Ptr<'a>,
        24 cookies: Ptr<'a>,
        32 cnt: u32,
        36 flags: u32,
        40 pid: u32,
        44 pad: u32,
    }
}

layout! {
    /// `link_create.tcx`, `link_create.netkit` and `link_create.cgroup`.
    #[derive(Clone, Copy, Debug, Default)]
    LinkOrder = 16 {
        0 relative_fd_or_id: u32,
        4 pad: u32,
        8 expected_revision: u64,
    }
}

record! {
    /// `bpf_iter_link_info.map`. Linux 5.9.
    IterMap = 4 {
        0 map_fd: u32,
    }
}

record! {
    /// `bpf_iter_link_info.cgroup`. Linux 6.1.
    IterCgroup = 16 {
        0 order: CgroupIterOrder,
        4 cgroup_fd: u32,
        8 cgroup_id: u64,
    }
}

record! {
    /// `bpf_iter_link_info.task`. Linux 6.1.
    IterTask = 12 {
        0 tid: u32,
        4 pid: u32,
        8 pid_fd: u32,
    }
}

attr! {
    /// `BPF_LINK_UPDATE`. Linux 5.7; maps since 6.4.
    LinkUpdate = 16, min 16 {
        0 link_fd: u32,
        4 new_prog_or_map_fd: u32,
        8 flags: u32,
        12 old_prog_or_map_fd: u32,
    }
}

attr! {
    /// `BPF_LINK_DETACH`. Linux 5.9.
    LinkDetach = 4, min 4 {
        0 link_fd: u32,
    }
}

attr! {
    /// `BPF_ITER_CREATE`. Linux 5.8.
    IterCreate = 8, min 8 {
        0 link_fd: u32,
        4 flags: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::super::used_len;
    use super::*;

    #[test]
    fn union_members_leave_the_rest_zero() {
        let mut attr = LinkCreate {
            extra: LinkExtra::target_btf_id(u32::MAX),
            ..LinkCreate::default()
        };
        assert_eq!(used_len(attr.bytes_mut(), LinkCreate::MIN_LEN), 24);
        attr.extra = LinkExtra::uprobe_multi(LinkUprobeMulti {
            pid: 1,
            ..LinkUprobeMulti::default()
        });
        assert_eq!(used_len(attr.bytes_mut(), LinkCreate::MIN_LEN), 64);
        assert_eq!(&attr.bytes_mut()[16..24], [0; 8]);
    }
}
