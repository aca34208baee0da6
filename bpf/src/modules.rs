//! Types of the kernel's modules, with the descriptors that name them to the
//! kernel.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};

use ebpf_manager_elf::btf::{Btf, NameHit, NameQuery};
use ebpf_manager_sys::bpf::{self as sys, ObjectKind};

/// Takes a module's types, what was found among them, and the descriptor that
/// names them.
pub(crate) type Visit<'v> = dyn FnMut(&Btf<'_>, &[NameHit], OwnedFd) -> ControlFlow<()> + 'v;

/// Looks for `query` in the types of all loaded modules, and calls `visit`
/// with those of each that has any, until it breaks. Linux 5.11.
#[cold]
pub(crate) fn search(kernel: &Btf<'_>, query: &NameQuery<'_>, visit: &mut Visit<'_>) {
    let mut last = 0;
    while let Ok(Some(id)) = sys::next_id(ObjectKind::Btf, last) {
        last = id;
        // It may be gone by now, or not ours to look at.
        let Ok(fd) = sys::fd_by_id(ObjectKind::Btf, id, 0) else {
            continue;
        };
        let module = sys::btf_info(fd.as_fd()).is_ok_and(|info| info.kernel_btf != 0)
            && sys::btf_name(fd.as_fd()).is_ok_and(|name| name != "vmlinux");
        if !module {
            continue;
        }
        let Ok(bytes) = sys::btf_data(fd.as_fd()) else {
            continue;
        };
        let mut hits = Vec::new();
        if let Ok(btf) = Btf::scan(&bytes, Some(kernel), query, &mut hits)
            && !hits.is_empty()
            && visit(&btf, &hits, fd).is_break()
        {
            return;
        }
    }
}
