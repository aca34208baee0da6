//! The maps of jump tables, in which `gotox` looks up where it goes.

use ebpf_manager_elf::{JumpTable, LinkedProgram, MapSpec, ProgramSpec};
use ebpf_manager_sys::Errno;
use ebpf_manager_sys::abi::bpf::MapType;
use ebpf_manager_sys::abi::insn::{Insn, JA32};
use ebpf_manager_sys::proc::KernelVersion;

use crate::cure::Cure;
use crate::error::{MapError, ProgramError};
use crate::map::Map;

/// First version with indirect jumps.
const SINCE: KernelVersion = KernelVersion::new(6, 19, 0);

/// Bytes of `struct bpf_insn_array_value`: the instruction that the loader
/// counts, what the verifier and the JIT make of it, and four more.
const VALUE_SIZE: usize = 16;

/// Makes a map of each jump table of a program. The kernel takes each for one
/// program only, and only when nothing can change it any more.
pub(super) fn make_jump_tables(
    spec: &ProgramSpec,
    linked: &mut LinkedProgram,
    out: &mut Vec<Map>,
) -> Result<(), ProgramError> {
    out.clear();
    for table in &linked.jump_tables {
        // The verifier leaves out jumps to what follows, and up to Linux 7.2
        // forgets entries that lead to one: a program that takes such an entry
        // jumps to address 0. It does not leave out the long form.
        for target in &table.targets {
            let insn = linked.insns.get_mut(*target as usize);
            if let Some(insn) = insn.filter(|insn| **insn == Insn::jump(0)) {
                *insn = Insn::new(JA32, 0, 0, 0, 0);
            }
        }
        let map = make(table).map_err(|source| ProgramError::JumpTable {
            program: spec.name.clone(),
            source: Box::new(source),
        })?;
        out.push(map);
    }
    Ok(())
}

fn make(table: &JumpTable) -> Result<Map, MapError> {
    let map = Map::create(&MapSpec {
        name: ".jumptables".to_owned(),
        map_type: MapType::INSN_ARRAY,
        key_size: 4,
        value_size: VALUE_SIZE as u32,
        max_entries: table.targets.len() as u32,
        ..MapSpec::default()
    });
    let map = map.map_err(explain)?;
    for (key, target) in (0_u32..).zip(&table.targets) {
        let mut value = [0; VALUE_SIZE];
        value[..4].copy_from_slice(&target.to_ne_bytes());
        map.update(&key.to_ne_bytes(), &value)?;
    }
    map.freeze()?;
    Ok(map)
}

/// Older kernels do not know the type of map.
#[cold]
fn explain(mut err: MapError) -> MapError {
    if let MapError::Create { source, cure, .. } = &mut err
        && source.is(Errno::EINVAL)
        && let Ok(running) = KernelVersion::current()
        && running < SINCE
    {
        *cure = Some(Cure::KernelTooOld {
            feature: "a jump table",
            since: SINCE,
            running,
        });
    }
    err
}
