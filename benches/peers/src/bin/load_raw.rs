//! The floor of loading: replays the system calls of a recording.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;

use ebpf_manager_peers::{Result, child, recording::MAP_WORDS};
use ebpf_manager_sys::abi::bpf::{AttachType, MapFlags, MapType, ProgramType};
use ebpf_manager_sys::abi::insn::Insn;
use ebpf_manager_sys::abi::perf::OpenFlags;
use ebpf_manager_sys::bpf::{
    BtfLoad, LinkCreate, LinkOptions, MapCreate, MapFd, ProgLoad, Records, Target, btf_load,
    link_create, map_create, prog_load,
};
use ebpf_manager_sys::perf::{PerfEvent, PerfEventAttr, Scope};

/// Fields of a recording, mapped privately.
struct Reader {
    base: *mut u8,
    len: usize,
    at: usize,
}

impl Reader {
    fn open(path: &str) -> Result<Reader> {
        let file = File::open(path)?;
        let len = file.metadata()?.len() as usize;
        // SAFETY: a new private mapping of a whole file that nobody changes.
        let base = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let base = base.cast();
        Ok(Reader { base, len, at: 0 })
    }

    /// The next field; each is given out once.
    fn field<T: Copy>(&mut self) -> Result<&'static mut [T]> {
        let header = self.at + 8;
        if header > self.len {
            return Err("the recording ends early".into());
        }
        // SAFETY: inside the mapping, whose start and fields are aligned to 8.
        let len = unsafe { self.base.add(self.at).cast::<u64>().read() } as usize;
        let end = header.checked_add(len).filter(|end| *end <= self.len);
        end.ok_or("the recording is damaged")?;
        self.at = (header + len).next_multiple_of(8);
        // SAFETY: inside the mapping, which is never unmapped, and given out
        // once; T is plain numbers of at most 8 bytes.
        Ok(unsafe {
            let start = self.base.add(header).cast();
            std::slice::from_raw_parts_mut(start, len / size_of::<T>())
        })
    }
}

fn text(bytes: &[u8]) -> Result<&str> {
    Ok(std::str::from_utf8(bytes)?)
}

fn load(arguments: &[String]) -> Result<Vec<u64>> {
    let mut file = Reader::open(arguments.first().ok_or("no recording")?)?;
    let btf: Option<OwnedFd> = match file.field::<u8>()? {
        [] => None,
        btf => Some(btf_load(&BtfLoad { btf, token: None }, None)?),
    };
    let license = CStr::from_bytes_with_nul(file.field::<u8>()?)?;
    let count = file.field::<u32>()?.first().copied().unwrap_or(0);
    let mut maps: Vec<MapFd> = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let words: [u32; MAP_WORDS] = (&*file.field::<u32>()?).try_into()?;
        let [kind, key, value, entries, flags, key_type, value_type] = words;
        let typed = key_type != 0 || value_type != 0;
        maps.push(map_create(&MapCreate {
            map_type: MapType(kind),
            key_size: key,
            value_size: value,
            max_entries: entries,
            flags: MapFlags::from_bits_retain(flags),
            name: text(file.field::<u8>()?)?,
            btf: btf.as_ref().filter(|_| typed).map(AsFd::as_fd),
            btf_key_type_id: key_type,
            btf_value_type_id: value_type,
            ..MapCreate::default()
        })?);
    }
    let mut programs: Vec<OwnedFd> = Vec::new();
    while file.at < file.len {
        let kind = file.field::<u32>()?.first().copied().unwrap_or(0);
        let name = text(file.field::<u8>()?)?;
        let insns: &mut [Insn] = file.field()?;
        for fixup in file.field::<u32>()?.chunks_exact(2) {
            insns[fixup[0] as usize].imm = maps[fixup[1] as usize].as_fd().as_raw_fd();
        }
        let mut records = || -> Result<Records<'_>> {
            let bytes = file.field::<u8>()?;
            let rec_size = file.field::<u32>()?.first().copied().unwrap_or(0);
            Ok(Records { bytes, rec_size })
        };
        programs.push(prog_load(
            &ProgLoad {
                prog_type: ProgramType(kind),
                insns,
                license,
                name,
                btf: btf.as_ref().map(AsFd::as_fd),
                func_info: records()?,
                line_info: records()?,
                ..ProgLoad::default()
            },
            None,
        )?);
    }
    // With a tracepoint's number, the first program is attached to it.
    if let (Some(event), Some(program)) = (arguments.get(1), programs.first()) {
        let attr = PerfEventAttr::tracepoint(event.parse()?);
        let event = PerfEvent::open(&attr, Scope::AllThreads, Some(0), None, OpenFlags::empty())?;
        let link = link_create(&LinkCreate {
            object: program.as_fd(),
            target: Target::Fd(event.as_fd()),
            attach_type: AttachType::PERF_EVENT,
            flags: 0,
            options: LinkOptions::None,
        })?;
        drop((link, event));
    }
    // The kernel closes everything when the process ends.
    std::mem::forget((btf, maps, programs));
    Ok(Vec::new())
}

fn main() -> ExitCode {
    child::run(load)
}
