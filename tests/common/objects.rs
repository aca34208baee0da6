//! The kernel's own lists: BPF objects by id, and what hangs on network
//! devices.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::{fs, process};

use ebpf_manager_sys::abi::info::name_str;
use ebpf_manager_sys::abi::netlink::TcParent;
use ebpf_manager_sys::bpf::{self, ObjectKind};
use ebpf_manager_sys::rtnl::Rtnl;

/// A kind of BPF object; ordered, unlike the kernel interface's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Link,
    Program,
    Map,
    Btf,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Link, Kind::Program, Kind::Map, Kind::Btf];

    fn of_kernel(self) -> ObjectKind {
        match self {
            Kind::Link => ObjectKind::Link,
            Kind::Program => ObjectKind::Program,
            Kind::Map => ObjectKind::Map,
            Kind::Btf => ObjectKind::Btf,
        }
    }
}

/// Ids of all objects of a kind on the machine. Empty without the privilege to
/// list them, or on a kernel that does not number them.
pub(crate) fn ids(kind: Kind) -> Vec<u32> {
    let mut ids = Vec::new();
    let mut last = 0;
    while let Ok(Some(id)) = bpf::next_id(kind.of_kernel(), last) {
        // A module's types come with the module, which a test may load.
        if kind != Kind::Btf || !is_kernel_btf(id) {
            ids.push(id);
        }
        last = id;
    }
    ids
}

fn open(kind: Kind, id: u32) -> Option<OwnedFd> {
    bpf::fd_by_id(kind.of_kernel(), id, 0).ok()
}

fn is_kernel_btf(id: u32) -> bool {
    open(Kind::Btf, id)
        .and_then(|fd| bpf::btf_info(fd.as_fd()).ok())
        .is_some_and(|info| info.kernel_btf != 0)
}

/// One line about an object for a person to find it by.
pub(crate) fn describe(kind: Kind, id: u32) -> String {
    let Some(fd) = open(kind, id) else {
        return format!("{kind:?} {id}, gone by now");
    };
    match kind {
        Kind::Program => match bpf::prog_info(fd.as_fd()) {
            Ok(info) => format!(
                "program {id} {:?} ({:?})",
                name_str(&info.name),
                info.prog_type
            ),
            Err(e) => format!("program {id}: {e}"),
        },
        Kind::Map => match bpf::map_info(fd.as_fd()) {
            Ok(info) => format!("map {id} {:?} ({:?})", name_str(&info.name), info.map_type),
            Err(e) => format!("map {id}: {e}"),
        },
        Kind::Link => match bpf::link_info(fd.as_fd()) {
            Ok(info) => format!(
                "link {id} of program {} ({:?})",
                info.prog_id, info.link_type
            ),
            Err(e) => format!("link {id}: {e}"),
        },
        Kind::Btf => format!("BTF {id}"),
    }
}

/// Objects that a descriptor of another process keeps, directly or through
/// another object.
pub(crate) fn held_elsewhere() -> BTreeSet<(Kind, u32)> {
    let mut held = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let pid = name.to_str().and_then(|n| n.parse::<u32>().ok());
        if pid.is_none_or(|pid| pid == process::id()) {
            continue;
        }
        let fds = fs::read_dir(process.path().join("fdinfo"));
        for fd in fds.into_iter().flatten().flatten() {
            direct(&fd.path(), &mut held);
        }
    }
    // Links hold programs, programs hold maps, both hold BTF; in this order
    // one pass over each kind reaches everything.
    for kind in Kind::ALL {
        let of_kind: Vec<u32> = held.iter().filter(|h| h.0 == kind).map(|h| h.1).collect();
        for id in of_kind {
            if let Some(fd) = open(kind, id) {
                indirect(kind, &fd, &mut held);
            }
        }
    }
    held
}

/// Objects that `/proc/PID/fdinfo/FD` names.
fn direct(fdinfo: &Path, held: &mut BTreeSet<(Kind, u32)>) {
    let text = fs::read_to_string(fdinfo).unwrap_or_default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let kind = match key {
            "link_id" => Kind::Link,
            "prog_id" => Kind::Program,
            "map_id" => Kind::Map,
            "btf_id" => Kind::Btf,
            _ => continue,
        };
        if let Ok(id) = value.trim().parse() {
            held.insert((kind, id));
        }
    }
}

fn indirect(kind: Kind, fd: &OwnedFd, held: &mut BTreeSet<(Kind, u32)>) {
    match kind {
        Kind::Link => {
            if let Ok(info) = bpf::link_info(fd.as_fd()) {
                held.insert((Kind::Program, info.prog_id));
            }
        }
        Kind::Program => {
            if let Ok(info) = bpf::prog_info(fd.as_fd()) {
                held.insert((Kind::Btf, info.btf_id));
            }
            if let Ok(maps) = bpf::prog_map_ids(fd.as_fd()) {
                held.extend(maps.into_iter().map(|id| (Kind::Map, id)));
            }
        }
        Kind::Map => {
            if let Ok(info) = bpf::map_info(fd.as_fd()) {
                held.insert((Kind::Btf, info.btf_id));
            }
        }
        Kind::Btf => {}
    }
}

/// Interfaces of the calling thread's network namespace with their XDP
/// programs, queueing disciplines and filters.
pub(crate) fn network_hooks() -> Vec<String> {
    let mut hooks = Vec::new();
    let Ok(mut rtnl) = Rtnl::open() else {
        return hooks;
    };
    for link in rtnl.links().unwrap_or_default() {
        let name = &link.name;
        let xdp = link.xdp;
        hooks.push(format!("interface {name} ({})", link.kind));
        for (mode, id) in [
            ("driver", xdp.drv),
            ("generic", xdp.skb),
            ("hardware", xdp.hw),
        ] {
            if id != 0 {
                hooks.push(format!("{mode} XDP program {id} on {name}"));
            }
        }
        for qdisc in rtnl.qdiscs(link.index).unwrap_or_default() {
            hooks.push(format!("qdisc {} {:x} on {name}", qdisc.kind, qdisc.handle));
        }
        for (side, parent) in [("ingress", TcParent::INGRESS), ("egress", TcParent::EGRESS)] {
            // Fails on an interface without clsact, which has none.
            for filter in rtnl.filters(link.index, parent).unwrap_or_default() {
                hooks.push(format!(
                    "{side} filter {} {:?} of program {} on {name}, priority {} handle {:x}",
                    filter.kind,
                    filter.name,
                    filter.program_id,
                    filter.id.priority,
                    filter.id.handle
                ));
            }
        }
    }
    hooks
}
