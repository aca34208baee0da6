//! What a loader gives the kernel for an object, taken down, so that the
//! floor can be measured: the same system calls from prepared buffers.

use std::sync::{Arc, Mutex};

use ebpf_manager::bpf::{Collection, LoadOptions, MapType, open_object};
use ebpf_manager::elf::btf::encode::BtfFeatures;
use ebpf_manager::elf::edit::Patcher;
use ebpf_manager::elf::{FixupTarget, LinkedProgram};
use ebpf_manager_sys::abi::pod;

use crate::Result;

/// Words of the header of a map: type, sizes of key and value, entries, flags,
/// BTF types of key and value.
pub const MAP_WORDS: usize = 7;

/// A growing file of fields. Each begins at a multiple of 8 bytes, with its
/// length.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn field(&mut self, bytes: &[u8]) {
        self.0
            .extend_from_slice(&(bytes.len() as u64).to_ne_bytes());
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
    }

    fn words(&mut self, words: &[u32]) {
        self.field(pod::slice_bytes(words));
    }
}

/// Loads the object and returns what the kernel was given.
///
/// In order: BTF; licence; number of maps; for each map its words and name;
/// for each program its type, name, instructions, fixups (instruction, map),
/// function records and their size, line records and their size.
pub fn record(path: &str) -> Result<Vec<u8>> {
    let object = open_object(path)?;
    let linked: Arc<Mutex<Vec<(u32, String, LinkedProgram)>>> = Arc::default();
    let seen = Arc::clone(&linked);
    let mut options = LoadOptions::default();
    options.patchers.push(Patcher::new(move |spec, editor| {
        let program = editor.program().clone();
        if let Ok(mut seen) = seen.lock() {
            seen.push((spec.program_type.0, spec.name.clone(), program));
        }
        Ok(())
    }));
    Collection::load(&object, options)?;
    let mut out = Writer::default();
    out.field(
        &object
            .btf_for_kernel(BtfFeatures::all())?
            .unwrap_or_default(),
    );
    let mut licence = object.license().unwrap_or_default().as_bytes().to_vec();
    licence.push(0);
    out.field(&licence);
    out.words(&[object.maps().len() as u32]);
    for map in object.maps() {
        // The kernel refuses types for ring buffers.
        let typed = |number| {
            if map.map_type == MapType::RINGBUF {
                0
            } else {
                number
            }
        };
        let words: [u32; MAP_WORDS] = [
            map.map_type.0,
            typed(map.key_size),
            typed(map.value_size),
            map.max_entries,
            map.flags.bits(),
            typed(map.key_type_id),
            typed(map.value_type_id),
        ];
        out.words(&words);
        out.field(map.name.as_bytes());
    }
    let linked = linked.lock().map_err(|_| "a patcher panicked")?;
    for (program_type, name, program) in linked.iter() {
        out.words(&[*program_type]);
        out.field(name.as_bytes());
        out.field(pod::slice_bytes(&program.insns));
        let mut fixups = Vec::new();
        for fixup in &program.fixups {
            match fixup.target {
                FixupTarget::Map(map) | FixupTarget::MapValue(map) => {
                    fixups.extend([fixup.insn, map]);
                }
                FixupTarget::Extern(_) => return Err("a symbol of the kernel is used".into()),
                FixupTarget::JumpTable { .. } => return Err("a jump table is used".into()),
            }
        }
        out.words(&fixups);
        out.field(&program.func_info);
        out.words(&[program.func_info_rec_size]);
        out.field(&program.line_info);
        out.words(&[program.line_info_rec_size]);
    }
    Ok(out.0)
}
