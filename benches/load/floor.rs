//! The floor: the system calls that loading and attaching cannot do without,
//! issued from buffers that were prepared before.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ebpf_manager::bpf::SysError;
use ebpf_manager::elf::btf::encode::BtfFeatures;
use ebpf_manager::elf::{FixupTarget, LinkedProgram, Object};
use ebpf_manager_sys::abi::bpf::{AttachType, MapFlags, MapType, ProgramType};
use ebpf_manager_sys::abi::insn::Insn;
use ebpf_manager_sys::abi::perf::OpenFlags;
use ebpf_manager_sys::abi::pod;
use ebpf_manager_sys::bpf::{
    BtfLoad, LinkCreate, LinkOptions, MapCreate, MapFd, ProgLoad, Records, Target, btf_load,
    link_create, map_create, prog_load,
};
use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};
use ebpf_manager_sys::tracefs::Tracefs;

use crate::EVENT;

/// Everything the kernel is to be given, for one program.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Prepared {
    btf: Vec<u8>,
    maps: Vec<PreparedMap>,
    insns: Vec<Insn>,
    /// Instruction and the map whose descriptor it waits for.
    fixups: Vec<(u32, u32)>,
    func_info: Vec<u8>,
    func_info_rec_size: u32,
    line_info: Vec<u8>,
    line_info_rec_size: u32,
    license: CString,
    name: String,
    program_type: u32,
    event_id: u64,
}

#[derive(Debug, Default, PartialEq)]
struct PreparedMap {
    name: String,
    /// Type, sizes of key and value, entries, flags, BTF types of key and
    /// value.
    numbers: [u32; 7],
}

/// What the floor has created so far. Dropping it closes everything.
#[derive(Default)]
pub(crate) struct Live {
    btf: Option<OwnedFd>,
    maps: Vec<MapFd>,
    program: Option<OwnedFd>,
    attached: Option<(OwnedFd, PerfEvent)>,
}

impl Prepared {
    /// Takes down what the loader gives the kernel for the first program of
    /// `object`.
    pub(crate) fn new(object: &Object) -> Result<Prepared, Box<dyn std::error::Error>> {
        let linker = object.linker()?;
        let spec = object.programs().first().ok_or("no program")?;
        let mut linked = LinkedProgram::default();
        linker.link(spec, &mut linked)?;
        let fixups = linked.fixups.iter().map(|fixup| match fixup.target {
            FixupTarget::Map(map) | FixupTarget::MapValue(map) => Ok((fixup.insn, map)),
            FixupTarget::Extern(_) => Err("the program refers to a symbol of the kernel"),
            FixupTarget::JumpTable { .. } => Err("the program has a jump table"),
        });
        let maps = object.maps().iter().map(|spec| {
            // The kernel refuses types for ring buffers.
            let typed = spec.map_type != MapType::RINGBUF;
            PreparedMap {
                name: spec.name.clone(),
                numbers: [
                    spec.map_type.0,
                    if typed { spec.key_size } else { 0 },
                    if typed { spec.value_size } else { 0 },
                    spec.max_entries,
                    spec.flags.bits(),
                    if typed { spec.key_type_id } else { 0 },
                    if typed { spec.value_type_id } else { 0 },
                ],
            }
        });
        let (category, event) = EVENT;
        Ok(Prepared {
            btf: object
                .btf_for_kernel(BtfFeatures::all())?
                .unwrap_or_default(),
            maps: maps.collect(),
            fixups: fixups.collect::<Result<_, _>>()?,
            license: CString::new(object.license().unwrap_or_default())?,
            name: spec.name.clone(),
            program_type: spec.program_type.0,
            event_id: Tracefs::find()?.event_id(category, event)?,
            insns: linked.insns,
            func_info: linked.func_info,
            func_info_rec_size: linked.func_info_rec_size,
            line_info: linked.line_info,
            line_info_rec_size: linked.line_info_rec_size,
        })
    }

    /// BTF and maps.
    pub(crate) fn create_maps(&self, live: &mut Live) -> Result<(), SysError> {
        let load = BtfLoad {
            btf: &self.btf,
            token: None,
        };
        live.btf = Some(btf_load(&load, None)?);
        for map in &self.maps {
            let [map_type, key, value, entries, flags, key_type, value_type] = map.numbers;
            let typed = key_type != 0 || value_type != 0;
            live.maps.push(map_create(&MapCreate {
                map_type: MapType(map_type),
                key_size: key,
                value_size: value,
                max_entries: entries,
                flags: MapFlags::from_bits_retain(flags),
                name: &map.name,
                btf: live.btf.as_ref().filter(|_| typed).map(AsFd::as_fd),
                btf_key_type_id: key_type,
                btf_value_type_id: value_type,
                ..MapCreate::default()
            })?);
        }
        Ok(())
    }

    /// The program. Afterwards nobody needs the BTF.
    pub(crate) fn verify(&mut self, live: &mut Live) -> Result<(), SysError> {
        for &(insn, map) in &self.fixups {
            if let Some(insn) = self.insns.get_mut(insn as usize)
                && let Some(map) = live.maps.get(map as usize)
            {
                insn.imm = map.as_fd().as_raw_fd();
            }
        }
        live.program = Some(prog_load(
            &ProgLoad {
                prog_type: ProgramType(self.program_type),
                insns: &self.insns,
                license: &self.license,
                name: &self.name,
                btf: live.btf.as_ref().map(AsFd::as_fd),
                func_info: Records {
                    bytes: &self.func_info,
                    rec_size: self.func_info_rec_size,
                },
                line_info: Records {
                    bytes: &self.line_info,
                    rec_size: self.line_info_rec_size,
                },
                ..ProgLoad::default()
            },
            None,
        )?);
        live.btf = None;
        Ok(())
    }

    /// A link on the tracepoint's event.
    pub(crate) fn attach(&self, live: &mut Live) -> Result<(), SysError> {
        let Some(program) = &live.program else {
            return Ok(());
        };
        let event = self.open_event()?;
        let link = link_create(&LinkCreate {
            object: program.as_fd(),
            target: Target::Fd(event.as_fd()),
            attach_type: AttachType::PERF_EVENT,
            flags: 0,
            options: LinkOptions::None,
        })?;
        live.attached = Some((link, event));
        Ok(())
    }

    /// The event that stands for the tracepoint.
    pub(crate) fn open_event(&self) -> Result<PerfEvent, SysError> {
        let attr = PerfEventAttr::tracepoint(self.event_id);
        PerfEvent::open(&attr, Scope::AllThreads, Some(0), None, OpenFlags::empty())
    }

    /// As bytes for another process.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut field = |bytes: &[u8]| {
            out.extend_from_slice(&(bytes.len() as u32).to_ne_bytes());
            out.extend_from_slice(bytes);
        };
        field(&self.btf);
        field(pod::slice_bytes(&self.insns));
        let fixups = self.fixups.iter().flat_map(|f| [f.0, f.1]);
        field(&words(fixups));
        field(&self.func_info);
        field(&self.line_info);
        field(self.license.as_bytes());
        field(self.name.as_bytes());
        field(&words([
            self.func_info_rec_size,
            self.line_info_rec_size,
            self.program_type,
            self.event_id as u32,
        ]));
        for map in &self.maps {
            field(map.name.as_bytes());
            field(&words(map.numbers));
        }
        out
    }

    /// What [`Prepared::encode`] wrote; `None` if it was something else.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Prepared> {
        let mut field = || {
            let (len, rest) = bytes.split_first_chunk::<4>()?;
            let (field, rest) = rest.split_at_checked(u32::from_ne_bytes(*len) as usize)?;
            bytes = rest;
            Some(field)
        };
        let mut prepared = Prepared {
            btf: field()?.to_vec(),
            ..Prepared::default()
        };
        let insns = field()?.chunks_exact(8);
        let insn = |word: &[u8]| Some(Insn::from_ne_bytes(*word.first_chunk()?));
        prepared.insns = insns.filter_map(insn).collect();
        let fixups = numbers(field()?);
        prepared.fixups = fixups.chunks_exact(2).map(|f| (f[0], f[1])).collect();
        prepared.func_info = field()?.to_vec();
        prepared.line_info = field()?.to_vec();
        prepared.license = CString::new(field()?).ok()?;
        prepared.name = String::from_utf8(field()?.to_vec()).ok()?;
        let [func, line, program_type, event_id] = numbers(field()?).try_into().ok()?;
        prepared.func_info_rec_size = func;
        prepared.line_info_rec_size = line;
        prepared.program_type = program_type;
        prepared.event_id = event_id.into();
        while let Some(name) = field() {
            prepared.maps.push(PreparedMap {
                name: String::from_utf8(name.to_vec()).ok()?,
                numbers: numbers(field()?).try_into().ok()?,
            });
        }
        Some(prepared)
    }
}

fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_ne_bytes).collect()
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}
