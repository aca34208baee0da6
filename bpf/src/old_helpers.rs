//! Helpers that read memory, on kernels that do not tell the kernel's from
//! that of processes.

use std::sync::OnceLock;

use ebpf_manager_sys::Errno;
use ebpf_manager_sys::abi::bpf::ProgramType;
use ebpf_manager_sys::abi::insn::Insn;
use ebpf_manager_sys::bpf::{self as sys, ProgLoad};

use crate::map::Loss;
use crate::memlock;

/// `bpf_probe_read_kernel`.
const PROBE_READ_KERNEL: i32 = 113;

pub(crate) const LOSS: Loss = Loss {
    what: "helpers that read kernel and user memory apart",
    since: "5.5",
};

/// The program with the helpers of old, if it calls newer ones that this
/// kernel does not have.
pub(crate) fn replaced(insns: &[Insn]) -> Option<Vec<Insn>> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let replaced = with_old_helpers(insns)?;
    (!*KNOWN.get_or_init(is_known)).then_some(replaced)
}

/// Calls `bpf_probe_read` and `bpf_probe_read_str`, which read either memory
/// where both have one address space; `None` if nothing changes.
fn with_old_helpers(insns: &[Insn]) -> Option<Vec<Insn>> {
    let old = |insn: &Insn| match insn.imm {
        // bpf_probe_read_user, _kernel; then the same for strings.
        112 | 113 if insn.is_helper_call() => Some(4),
        114 | 115 if insn.is_helper_call() => Some(45),
        _ => None,
    };
    insns.iter().find_map(old)?;
    let mut insns = insns.to_vec();
    let mut wide = false;
    for insn in &mut insns {
        // The second word of a wide instruction is no call, whatever it holds.
        if !std::mem::replace(&mut wide, insn.is_ld_imm64())
            && let Some(old) = old(insn)
        {
            insn.imm = old;
        }
    }
    Some(insns)
}

fn is_known() -> bool {
    let load = ProgLoad {
        prog_type: ProgramType::TRACEPOINT,
        insns: &[
            Insn::mov64_reg(1, 10),
            Insn::alu64_imm(0x00, 1, -8),
            Insn::mov64_imm(2, 8),
            Insn::mov64_imm(3, 0),
            Insn::call(PROBE_READ_KERNEL),
            Insn::exit(),
        ],
        license: c"GPL",
        ..ProgLoad::default()
    };
    // Other answers are about the caller.
    !memlock::retry(|| sys::prog_load(&load, None)).is_err_and(|err| err.is(Errno::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_alone_are_replaced() {
        let wide = Insn::ld_imm64(1, 0, 113 << 32);
        let subprogram = Insn::new(Insn::call(113).code, 0, 1, 0, 113);
        let insns = [
            wide[0],
            wide[1],
            Insn::call(112),
            Insn::call(113),
            Insn::call(114),
            Insn::call(115),
            subprogram,
            Insn::call(14),
        ];
        let old = with_old_helpers(&insns).unwrap();
        let imms: Vec<_> = old.iter().map(|insn| insn.imm).collect();
        assert_eq!(imms, [0, 113, 4, 4, 45, 45, 113, 14]);
        assert_eq!(with_old_helpers(&[subprogram, wide[0], wide[1]]), None);
    }
}
