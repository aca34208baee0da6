//! Pausing without detaching: programs that look whether they are bypassed.
//!
//! A program takes part that starts with a look at the symbol
//! `bypass_program` (`asm("%0 = bypass_program ll" : "=r"(x))`, among its
//! first two instructions), in an object with a map `program_bypassed`. Each
//! gets a prologue that reads its number in that map and, if that is set,
//! returns at once what lets things go their way.
//!
//! A number is a program's, not a probe's: what is attached several times is
//! bypassed everywhere.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ebpf_manager_bpf::elf::edit::{Code, PatchError, Patcher, ProgramEditor, Reference};
use ebpf_manager_bpf::elf::insn::{Insn, jmp, size};
use ebpf_manager_bpf::elf::{FixupTarget, ProgramSpec};
use ebpf_manager_bpf::lock::Mutex;
use ebpf_manager_bpf::{Map, MapError, MapType, ProgramType};

use crate::live::ProgramRef;
use crate::wiring::Draft;

pub(crate) const MAP: &str = "program_bypassed";
const SYMBOL: &str = "bypass_program";

/// Clones that can be bypassed at a time; others are detached instead.
const CLONES: usize = 64;

/// The programs that can be bypassed.
pub(crate) struct Bypass {
    map: Map,
    /// Programs of the object and declared copies, and whether each got a
    /// prologue. Their places are their numbers; clones come behind.
    names: Vec<(String, bool)>,
    state: Mutex<Numbers>,
}

struct Numbers {
    /// The map's value: four bytes for each number.
    value: Vec<u8>,
    /// Numbers of clones that are taken.
    taken: [bool; CLONES],
}

/// A clone's number, its own for as long as the clone is there.
pub(crate) struct Ticket {
    bypass: Arc<Bypass>,
    number: usize,
    marked: AtomicBool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let index = self.number - self.bypass.names.len();
        if let Some(taken) = self.bypass.state.lock().taken.get_mut(index) {
            *taken = false;
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").field(&self.number).finish()
    }
}

/// Programs, and whether each got a prologue.
pub(crate) type Marked = Arc<Mutex<Vec<(String, bool)>>>;

/// Gives the object's programs their prologues while they are loaded.
pub(crate) fn prepare(draft: &mut Draft) -> Option<Marked> {
    let index = draft.object.maps().iter().position(|map| map.name == MAP)?;
    let names: Vec<(String, bool)> = draft
        .object
        .programs()
        .iter()
        .map(|program| program.name.clone())
        .chain(draft.options.copies.iter().map(|copy| copy.name.clone()))
        .map(|name| (name, false))
        .collect();
    if let Some(map) = draft.object.maps_mut().get_mut(index) {
        // One value, whose address programs know without a lookup.
        map.map_type = MapType::ARRAY;
        (map.key_size, map.value_size) = (4, 4 * (names.len() + CLONES) as u32);
        (map.key_type_id, map.value_type_id) = (0, 0);
        map.max_entries = 1;
    }
    let marked: Marked = Arc::new(Mutex::new(names));
    let known = Arc::clone(&marked);
    let patcher = Patcher::new(move |spec, editor| {
        let mut known = known.lock();
        let number = known.iter().position(|(name, _)| *name == spec.name);
        if let Some(number) = number {
            known[number].1 = prologue(spec, editor, number)?;
        }
        Ok(())
    });
    draft.options.patchers.push(patcher);
    Some(marked)
}

/// Lets a program that asks for it look at its number; false if it does not.
fn prologue(
    spec: &ProgramSpec,
    editor: &mut ProgramEditor<'_>,
    number: usize,
) -> Result<bool, PatchError> {
    let symbols = editor.object().externs();
    let marked = editor.units().take(2).any(|unit| match unit.refers {
        Some(Reference::Symbol(FixupTarget::Extern(index))) => symbols
            .get(index as usize)
            .is_some_and(|symbol| symbol.name == SYMBOL),
        _ => false,
    });
    let (true, Some(map)) = (marked, editor.map(MAP)) else {
        return Ok(false);
    };
    let mut code = Code::new();
    code.load_map_value(0, map, 4 * number as u32);
    code.push(Insn::load(size::W, 0, 0, 0));
    code.push(Insn::jump_imm(jmp::JEQ, 0, 0, 2));
    code.push(Insn::mov64_imm(0, verdict(spec)));
    code.push(Insn::exit());
    editor.prologue(0, code)?;
    Ok(true)
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
    /// Of programs that were just loaded.
    pub(crate) fn new(map: &Map, marked: &Marked) -> Bypass {
        let names = marked.lock().clone();
        let value = vec![0; 4 * (names.len() + CLONES)];
        let taken = [false; CLONES];
        Bypass {
            map: map.clone(),
            names,
            state: Mutex::new(Numbers { value, taken }),
        }
    }

    /// Lets every program run: the map may have outlived another run.
    pub(crate) fn clear(&self) -> Result<(), MapError> {
        self.map
            .update(&0_u32.to_ne_bytes(), &self.state.lock().value)
    }

    /// A number for a clone, with what gives it a prologue; `None` if there
    /// are too many.
    pub(crate) fn reserve(self: &Arc<Bypass>) -> Result<Option<Arc<Ticket>>, MapError> {
        let free = {
            let mut state = self.state.lock();
            let free = state.taken.iter().position(|taken| !taken);
            if let Some(taken) = free.and_then(|index| state.taken.get_mut(index)) {
                *taken = true;
            }
            free
        };
        let Some(index) = free else { return Ok(None) };
        let ticket = Ticket {
            bypass: Arc::clone(self),
            number: self.names.len() + index,
            marked: AtomicBool::new(false),
        };
        // The one before may have been paused to its end.
        self.set(ticket.number, false)?;
        Ok(Some(Arc::new(ticket)))
    }

    /// The number of a program that can be bypassed.
    pub(crate) fn number(&self, program: &ProgramRef) -> Option<usize> {
        if let Some(ticket) = program.ticket() {
            let marked = ticket.marked.load(Ordering::Relaxed);
            return marked.then_some(ticket.number);
        }
        if !program.is_loaded() {
            return None;
        }
        let name = program.name();
        let mut names = self.names.iter();
        names.position(|(known, marked)| *marked && known == name)
    }

    /// Bypasses the program of this number, or no longer.
    pub(crate) fn set(&self, number: usize, bypassed: bool) -> Result<(), MapError> {
        let mut state = self.state.lock();
        if let Some(word) = state.value.get_mut(4 * number..4 * number + 4) {
            word.copy_from_slice(&u32::from(bypassed).to_ne_bytes());
        }
        self.map.update(&0_u32.to_ne_bytes(), &state.value)
    }

    /// Whether the program of this number is bypassed.
    pub(crate) fn is_set(&self, number: usize) -> bool {
        let state = self.state.lock();
        let word = state.value.get(4 * number..4 * number + 4);
        word.is_some_and(|word| word != [0; 4])
    }
}

/// Gives the clone of a ticket its prologue.
pub(crate) fn patcher(ticket: &Arc<Ticket>) -> Patcher {
    let ticket = Arc::clone(ticket);
    Patcher::new(move |spec, editor| {
        let marked = prologue(spec, editor, ticket.number)?;
        ticket.marked.store(marked, Ordering::Relaxed);
        Ok(())
    })
}
