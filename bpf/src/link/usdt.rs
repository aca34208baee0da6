//! Places that the author of a user program marked, with their arguments.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use ebpf_manager_elf::section;
use ebpf_manager_elf::symbols::SymbolError;
use ebpf_manager_elf::usdt::{self, UsdtFile};
use ebpf_manager_sys::abi::bpf::{AttachType, ElemFlags, ProgramType};
use ebpf_manager_sys::abi::insn::Insn;
use ebpf_manager_sys::bpf::{self as sys, LinkCreate, LinkOptions, ProgLoad, Target};
use ebpf_manager_sys::lock::Mutex;
use ebpf_manager_sys::{Errno, SysError};

use super::symbols;
use super::trace::expect_type;
use super::uprobe::{At, Uprobe, find_binary, uprobe_many};
use super::usdt_spec::{Layout, encode};
use super::{Inner, Keep, Link, Mechanism};
use crate::collection::Collection;
use crate::error::LinkError;
use crate::map::Map;
use crate::memlock;
use crate::program::Program;

/// Marked places of one name in a user binary (USDT), and how to attach there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usdt {
    /// The executable or library, looked up as [`Uprobe`] does.
    pub path: PathBuf,
    /// Who marked the places: `libc`.
    pub provider: String,
    /// What they are called: `setjmp`.
    pub name: String,
    /// Only this process; `None` for all.
    pub pid: Option<u32>,
    /// What `bpf_usdt_cookie` returns; `bpf_get_attach_cookie` in programs
    /// that read no arguments (Linux 5.15).
    pub cookie: u64,
    /// The only kernel interface to use; `None` tries all, the newest first.
    pub by: Option<Mechanism>,
}

impl Usdt {
    /// All places of `path` that are marked `provider:name`.
    pub fn new(
        path: impl Into<PathBuf>,
        provider: impl Into<String>,
        name: impl Into<String>,
    ) -> Usdt {
        Usdt {
            path: path.into(),
            provider: provider.into(),
            name: name.into(),
            pid: None,
            cookie: 0,
            by: None,
        }
    }

    /// Only in this process.
    #[must_use]
    pub fn pid(mut self, pid: u32) -> Usdt {
        self.pid = Some(pid);
        self
    }

    /// What `bpf_usdt_cookie` returns.
    #[must_use]
    pub fn cookie(mut self, cookie: u64) -> Usdt {
        self.cookie = cookie;
        self
    }

    /// Uses this kernel interface and no other.
    #[must_use]
    pub fn attach_by(mut self, mechanism: Mechanism) -> Usdt {
        self.by = Some(mechanism);
        self
    }
}

/// The maps of an object through which its programs learn where the arguments
/// of marked places are: `__bpf_usdt_specs` and `__bpf_usdt_ip_to_spec_id`, as
/// `usdt.bpf.h` of libbpf declares them.
///
/// [`Collection::usdt_specs`] has those of a collection. Clones share them.
#[derive(Clone, Debug)]
pub struct UsdtSpecs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    specs: Map,
    /// By address, for kernels without cookies.
    by_address: Option<Map>,
    layout: Layout,
    has_cookies: bool,
    slots: Mutex<Vec<Slot>>,
}

/// An entry of the map, shared by the places with the same arguments and
/// cookie.
#[derive(Debug)]
struct Slot {
    value: Vec<u8>,
    users: usize,
}

impl UsdtSpecs {
    /// Takes the maps over. `by_address` is needed before Linux 5.15 only.
    /// Nobody else may write to them.
    ///
    /// # Errors
    /// [`LinkError::Operation`] with `EINVAL` if their sizes are not those of
    /// `usdt.bpf.h`.
    pub fn new(specs: Map, by_address: Option<Map>) -> Result<UsdtSpecs, LinkError> {
        let layout = Layout::of_size(specs.value_size());
        let (Some(layout), 4) = (layout, specs.key_size()) else {
            return Err(operation(
                specs.name(),
                SysError::new("USDT specifications", Errno::EINVAL)
                    .with_detail("the map's sizes are not those of usdt.bpf.h"),
            ));
        };
        Ok(UsdtSpecs(Arc::new(Shared {
            specs,
            by_address,
            layout,
            has_cookies: crate::externs::has_attach_cookie(),
            slots: Mutex::new(Vec::new()),
        })))
    }
}

impl Shared {
    /// The number of an entry with this content.
    fn acquire(&self, value: Vec<u8>) -> Result<u32, SysError> {
        let mut slots = self.slots.lock();
        let same = slots
            .iter_mut()
            .enumerate()
            .find(|(_, slot)| slot.users > 0 && slot.value == value);
        if let Some((index, slot)) = same {
            slot.users += 1;
            return Ok(index as u32);
        }
        let index = slots
            .iter()
            .position(|slot| slot.users == 0)
            .unwrap_or(slots.len());
        if index >= self.specs.max_entries() as usize {
            return Err(
                SysError::new("USDT specifications", Errno::ENOSPC).with_detail(
                    "the map is full: define BPF_USDT_MAX_SPEC_CNT as more than 256 in the program",
                ),
            );
        }
        let id = index as u32;
        self.specs
            .raw()
            .update(&id.to_ne_bytes(), &value, ElemFlags::default())?;
        let slot = Slot { value, users: 1 };
        match slots.get_mut(index) {
            Some(free) => *free = slot,
            None => slots.push(slot),
        }
        Ok(id)
    }
}

/// What a link uses of the maps.
#[derive(Debug)]
struct Used {
    shared: Arc<Shared>,
    ids: Vec<u32>,
    addresses: Vec<u64>,
    pinned: AtomicBool,
}

impl Keep for Used {
    fn pinned(&self) {
        self.pinned.store(true, Ordering::Relaxed);
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        // A pinned link goes on without this one.
        if self.pinned.load(Ordering::Relaxed) {
            return;
        }
        if let Some(map) = &self.shared.by_address {
            for address in &self.addresses {
                let _ = map.delete(&address.to_ne_bytes());
            }
        }
        let mut slots = self.shared.slots.lock();
        for id in &self.ids {
            if let Some(slot) = slots.get_mut(*id as usize) {
                slot.users -= 1;
            }
        }
    }
}

/// A place as the file has it.
struct Marked {
    offset: u64,
    address: u64,
    semaphore: u64,
    arguments: Vec<u8>,
}

impl Link {
    /// Attaches a program to marked places of a user binary: one
    /// uprobe.multi link (Linux 6.6, if the program's section is `usdt`), or
    /// one uprobe for each place, held by the same link.
    ///
    /// `specs` are the maps of the program's object, through which it reads
    /// arguments; without them it cannot.
    ///
    /// Requires at least Linux 4.20 for places with a counter. Before Linux
    /// 5.15, arguments of places in a position-independent file can be read in
    /// one process only, which has to be named.
    ///
    /// # Errors
    /// As [`Link::uprobe`]; [`LinkError::Symbol`] if the file has no such
    /// place; [`LinkError::Operation`] with `ENOSPC` if the maps are full;
    /// [`LinkError::Unsupported`].
    pub fn usdt(
        program: &Program,
        specs: Option<&UsdtSpecs>,
        usdt: &Usdt,
    ) -> Result<Link, LinkError> {
        expect_type(program, "USDT probe", &[ProgramType::KPROBE])?;
        let path = find_binary(&usdt.path, usdt.pid)?;
        let target = format!(
            "usdt {}:{}:{}",
            usdt.path.display(),
            usdt.provider,
            usdt.name
        );
        let (file, marked) = places_in(&path, usdt)?;
        let mut places: Vec<At> = marked
            .iter()
            .map(|place| At {
                offset: place.offset,
                ref_counter: place.semaphore,
                cookie: usdt.cookie,
            })
            .collect();
        let used = match specs {
            Some(specs) => Some(describe(
                specs,
                file,
                &marked,
                &path,
                usdt,
                &target,
                &mut places,
            )?),
            None => None,
        };
        let mut like = Uprobe::offset(&usdt.path, 0);
        like.pid = usdt.pid;
        like.by = usdt.by;
        let link = uprobe_many(program, &like, &path, &places, target)?;
        Ok(match used {
            Some(used) => Link {
                inner: Inner::Keeping(Box::new(link.inner), Box::new(used)),
                ..link
            },
            None => link,
        })
    }
}

/// Reads the notes of a file.
fn places_in(path: &Path, usdt: &Usdt) -> Result<(UsdtFile, Vec<Marked>), LinkError> {
    let bytes = symbols::read_binary(path)?;
    let mut marked = Vec::new();
    let mut others = 0;
    let file = usdt::for_each_place(&bytes, &mut |place| {
        if place.provider != usdt.provider.as_bytes() || place.name != usdt.name.as_bytes() {
            others += 1;
            return;
        }
        marked.push(Marked {
            offset: place.offset,
            address: place.address,
            semaphore: place.semaphore.unwrap_or(0),
            arguments: place.arguments.to_vec(),
        });
    });
    let symbol = |source| LinkError::Symbol {
        path: path.to_owned(),
        source,
    };
    let file = file.map_err(|source| symbol(SymbolError::File(source)))?;
    if marked.is_empty() {
        return Err(symbol(SymbolError::NotMarked {
            name: format!("{}:{}", usdt.provider, usdt.name),
            others,
        }));
    }
    Ok((file, marked))
}

/// Tells the program where the arguments of each place are.
fn describe(
    specs: &UsdtSpecs,
    file: UsdtFile,
    marked: &[Marked],
    path: &Path,
    usdt: &Usdt,
    target: &str,
    places: &mut [At],
) -> Result<Used, LinkError> {
    let shared = &specs.0;
    let mut used = Used {
        shared: Arc::clone(shared),
        ids: Vec::with_capacity(marked.len()),
        addresses: Vec::new(),
        pinned: AtomicBool::new(false),
    };
    for (place, at) in marked.iter().zip(places) {
        let arguments = usdt::arguments(file.machine, &place.arguments);
        let value = encode(&arguments, usdt.cookie, shared.layout);
        let id = shared
            .acquire(value)
            .map_err(|source| operation(target, source))?;
        used.ids.push(id);
        at.cookie = if shared.has_cookies { id.into() } else { 0 };
    }
    if shared.has_cookies {
        return Ok(used);
    }
    let Some(map) = &shared.by_address else {
        return Err(operation(
            target,
            SysError::new("USDT specifications", Errno::ENOENT)
                .with_detail("the object has no map __bpf_usdt_ip_to_spec_id"),
        ));
    };
    let mappings = match (file.fixed, usdt.pid) {
        (true, _) => Vec::new(),
        (false, Some(pid)) => {
            symbols::mappings(pid, path).map_err(|source| operation(target, source))?
        }
        (false, None) => {
            return Err(LinkError::Unsupported {
                feature: "USDT arguments of position-independent code in all processes",
                since: "5.15",
            });
        }
    };
    for (index, place) in marked.iter().enumerate() {
        let id = used.ids.get(index).copied().unwrap_or(0).to_ne_bytes();
        let mapped = mappings.iter().filter_map(|mapping| {
            let into = place.offset.checked_sub(mapping.offset)?;
            (into < mapping.len).then_some(mapping.start + into)
        });
        for address in mapped.chain(file.fixed.then_some(place.address)) {
            map.raw()
                .update(&address.to_ne_bytes(), &id, ElemFlags::default())
                .map_err(|source| operation(target, source))?;
            used.addresses.push(address);
        }
    }
    Ok(used)
}

#[cold]
fn operation(target: &str, source: SysError) -> LinkError {
    LinkError::Operation {
        target: target.to_owned(),
        source,
    }
}

/// What a program of this section is loaded for where nothing else says it:
/// uprobe.multi for `usdt`, if the kernel has that.
pub(crate) fn attach_type(section: &str) -> Option<AttachType> {
    let marked = matches!(section::parse(section).prefix, "usdt" | "usdt.s");
    (marked && has_uprobe_multi()).then_some(AttachType::TRACE_UPROBE_MULTI)
}

/// Tries it, once: a kernel that knows the link looks at the path, which is
/// no file.
#[cold]
fn has_uprobe_multi() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let load = ProgLoad {
            prog_type: ProgramType::KPROBE,
            insns: &[Insn::mov64_imm(0, 0), Insn::exit()],
            license: c"GPL",
            expected_attach_type: AttachType::TRACE_UPROBE_MULTI,
            ..ProgLoad::default()
        };
        let Ok(program) = memlock::retry(|| sys::prog_load(&load, None)) else {
            return false;
        };
        let create = LinkCreate {
            object: program.as_fd(),
            target: Target::None,
            attach_type: AttachType::TRACE_UPROBE_MULTI,
            flags: 0,
            options: LinkOptions::UprobeMulti {
                path: c"/",
                offsets: &[0],
                ref_ctr_offsets: &[],
                cookies: &[],
                flags: 0,
                pid: 0,
            },
        };
        sys::link_create(&create).is_err_and(|err| err.is(Errno::EBADF))
    })
}

impl Collection {
    /// The maps for USDT arguments; `None` if the object has none.
    ///
    /// # Errors
    /// Those of [`UsdtSpecs::new`]; [`LinkError::Operation`] if a descriptor
    /// cannot be duplicated.
    pub fn usdt_specs(&self) -> Result<Option<UsdtSpecs>, LinkError> {
        let cell = self.usdt_cell();
        if let Some(specs) = cell.get() {
            return Ok(Some(specs.clone()));
        }
        let share = |name: &str| -> Result<Option<Map>, LinkError> {
            let Some(map) = self.map(name) else {
                return Ok(None);
            };
            let fd = ebpf_manager_sys::fd::dup(map.as_fd());
            let fd = fd.map_err(|source| operation(name, source))?;
            match Map::from_fd(name, fd) {
                Ok(map) => Ok(Some(map)),
                Err(err) => Err(operation(
                    name,
                    SysError::new("USDT specifications", Errno::EINVAL)
                        .with_detail(err.to_string()),
                )),
            }
        };
        let Some(specs) = share("__bpf_usdt_specs")? else {
            return Ok(None);
        };
        let specs = UsdtSpecs::new(specs, share("__bpf_usdt_ip_to_spec_id")?)?;
        Ok(Some(cell.get_or_init(|| specs).clone()))
    }
}
