//! Pausing without detaching: programs that look whether they are bypassed.
//!
//! A program takes part that starts with a look at the symbol
//! `bypass_program` (`asm("%0 = bypass_program ll" : "=r"(x))`, among its
//! first two instructions), in an object with a map `program_bypassed`. Each
//! gets a prologue that reads its number in that map and, if that is set,
//! returns at once what lets things go their way.

use std::sync::Arc;

use ebpf_manager_bpf::elf::edit::{Code, Patcher, Reference};
use ebpf_manager_bpf::elf::insn::{Insn, jmp, size};
use ebpf_manager_bpf::elf::{FixupTarget, ProgramSpec};
use ebpf_manager_bpf::lock::Mutex;
use ebpf_manager_bpf::{Map, MapError, MapType, ProgramType};

use crate::wiring::Draft;

pub(crate) const MAP: &str = "program_bypassed";
const SYMBOL: &str = "bypass_program";

/// The programs that can be bypassed.
pub(crate) struct Bypass {
    map: Map,
    names: Vec<(String, bool)>,
    /// The map's value: four bytes for each name.
    value: Mutex<Vec<u8>>,
}

/// Programs, and whether each got a prologue.
pub(crate) type Marked = Arc<Mutex<Vec<(String, bool)>>>;

/// Gives the object's programs their prologues while they are loaded.
pub(crate) fn prepare(draft: &mut Draft) -> Option<Marked> {
    let index = draft.object.maps().iter().position(|map| map.name == MAP)?;
    let names: Vec<String> = draft
        .object
        .programs()
        .iter()
        .map(|program| program.name.clone())
        .chain(draft.options.copies.iter().map(|copy| copy.name.clone()))
        .collect();
    if let Some(map) = draft.object.maps_mut().get_mut(index) {
        // One value, whose address programs know without a lookup.
        map.map_type = MapType::ARRAY;
        (map.key_size, map.value_size) = (4, 4 * names.len() as u32);
        (map.key_type_id, map.value_type_id) = (0, 0);
        map.max_entries = 1;
    }
    let names = names.into_iter().map(|name| (name, false)).collect();
    let marked_programs: Marked = Arc::new(Mutex::new(names));
    let known = Arc::clone(&marked_programs);
    draft
        .options
        .patchers
        .push(Patcher::new(move |spec, editor| {
            let symbols = editor.object().externs();
            let marked = editor.units().take(2).any(|unit| match unit.refers {
                Some(Reference::Symbol(FixupTarget::Extern(index))) => symbols
                    .get(index as usize)
                    .is_some_and(|symbol| symbol.name == SYMBOL),
                _ => false,
            });
            let mut known = known.lock();
            let number = known.iter().position(|(name, _)| *name == spec.name);
            let (true, Some(number), Some(map)) = (marked, number, editor.map(MAP)) else {
                return Ok(());
            };
            known[number].1 = true;
            let mut code = Code::new();
            code.load_map_value(0, map, 4 * number as u32);
            code.push(Insn::load(size::W, 0, 0, 0));
            code.push(Insn::jump_imm(jmp::JEQ, 0, 0, 2));
            code.push(Insn::mov64_imm(0, verdict(spec)));
            code.push(Insn::exit());
            editor.prologue(0, code)
        }));
    Some(marked_programs)
}

/// What a program returns that has nothing against anything.
fn verdict(spec: &ProgramSpec) -> i32 {
    use ProgramType as T;
    match spec.program_type {
        // All of the packet; TC_ACT_UNSPEC, as if it were not there.
        T::SOCKET_FILTER | T::SCHED_CLS | T::SCHED_ACT => -1,
        // XDP_PASS.
        T::XDP => 2,
        // Allow; SK_PASS; NF_ACCEPT.
        T::CGROUP_SKB
        | T::CGROUP_SOCK
        | T::CGROUP_DEVICE
        | T::CGROUP_SOCK_ADDR
        | T::CGROUP_SYSCTL
        | T::CGROUP_SOCKOPT
        | T::SK_SKB
        | T::SK_MSG
        | T::SK_LOOKUP
        | T::SK_REUSEPORT
        | T::NETFILTER => 1,
        // BPF_FLOW_DISSECTOR_CONTINUE.
        T::FLOW_DISSECTOR => 129,
        _ => 0,
    }
}

impl Bypass {
    pub(crate) fn new(map: &Map, marked: &Marked) -> Bypass {
        let names = marked.lock().clone();
        let value = Mutex::new(vec![0; 4 * names.len()]);
        Bypass {
            map: map.clone(),
            names,
            value,
        }
    }

    /// Bypasses a program or no longer; false if it cannot be.
    pub(crate) fn set(&self, program: &str, bypassed: bool) -> Result<bool, MapError> {
        let Some(number) = self
            .names
            .iter()
            .position(|(name, marked)| *marked && name == program)
        else {
            return Ok(false);
        };
        let mut value = self.value.lock();
        let Some(word) = value.get_mut(4 * number..4 * number + 4) else {
            return Ok(false);
        };
        word.copy_from_slice(&u32::from(bypassed).to_ne_bytes());
        self.map.update(&0_u32.to_ne_bytes(), &value)?;
        Ok(true)
    }
}
