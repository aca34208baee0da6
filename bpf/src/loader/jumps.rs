//! The maps of jump tables, in which `gotox` looks up where it goes.

use ebpf_manager_sys::SysError;
use ebpf_manager_sys::abi::bpf::{ElemFlags, MapType};
use ebpf_manager_sys::abi::insn::{Insn, JA32};
use ebpf_manager_sys::bpf::{self as sys, MapCreate, MapFd};
use ebpf_manager_sys::proc::KernelVersion;

use crate::cure::{self, Need, needs};
use crate::error::ProgramError;

/// First version with indirect jumps.
const SINCE: KernelVersion = KernelVersion::new(6, 19, 0);

/// Bytes of `struct bpf_insn_array_value`: the instruction that the loader
/// counts, what the verifier and the JIT make of it, and four more.
const VALUE_SIZE: usize = 16;

/// Makes the map of a jump table. The kernel takes it for one program only, and
/// only when nothing can change it any more.
#[cold]
pub(super) fn make_jump_table(table: &[u32], insns: &mut [Insn]) -> Result<MapFd, SysError> {
    let map = sys::map_create(&MapCreate {
        name: ".jumptables",
        map_type: MapType::INSN_ARRAY,
        key_size: 4,
        value_size: VALUE_SIZE as u32,
        max_entries: table.len() as u32,
        ..MapCreate::default()
    })?;
    for (key, target) in (0_u32..).zip(table) {
        // The verifier leaves out jumps to what follows, and up to Linux 7.2
        // forgets entries that lead to one: a program that takes such an entry
        // jumps to address 0. It does not leave out the long form.
        let insn = insns.get_mut(*target as usize);
        if let Some(insn) = insn.filter(|insn| **insn == Insn::jump(0)) {
            *insn = Insn::new(JA32, 0, 0, 0, 0);
        }
        let mut value = [0; VALUE_SIZE];
        value[..4].copy_from_slice(&target.to_ne_bytes());
        map.update(&key.to_ne_bytes(), &value, ElemFlags::empty())?;
    }
    map.freeze()?;
    Ok(map)
}

/// Older kernels do not know the type of map.
#[cold]
pub(super) fn refused(program: &str, source: SysError) -> ProgramError {
    ProgramError::Operation {
        program: program.to_owned(),
        cure: needs("a jump table", SINCE).or_else(|| cure::find(&source, Need::Bpf)),
        source,
    }
}
