//! What the running kernel has for the symbols that an object uses and does
//! not define: addresses, ids in the kernel's BTF, values of its
//! configuration.
//!
//! What the programs of a load use is looked up once. What is missing fails
//! only the programs that use it.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use ebpf_manager_elf::btf::{Btf, NameQuery, TypeId};
use ebpf_manager_elf::sort::sort;
use ebpf_manager_elf::{ExternKind, KernelConfig, Object, ObjectError, ProgramSpec};
use ebpf_manager_sys::abi::bpf::ProgramType;
use ebpf_manager_sys::abi::insn::{CALL, Insn, LD_IMM64, pseudo};
use ebpf_manager_sys::bpf::{self as sys, ProgLoad};
use ebpf_manager_sys::proc::{self, KernelVersion};

use crate::error::MissingSymbol;
use crate::kconfig;
use crate::kernel_btf::KernelBtf;
use crate::memlock;
use crate::modules;

/// Helper number that calls of an absent weak kernel function make, plus the
/// number of the extern: the verifier names it if the call can be reached.
/// libbpf counts from the same number.
const POISON: u32 = 2_002_000_000;

/// Externs told apart in poison.
const POISON_RANGE: u32 = 1_000_000;

/// `bpf_get_attach_cookie`.
const GET_ATTACH_COOKIE: i32 = 174;

/// The kernel symbol of bpf(2) where system calls have a wrapper. Other
/// machines have none, or give it no name of its own.
const WRAPPED_SYSCALL: &[u8] = if cfg!(target_arch = "x86_64") {
    b"__x64_sys_bpf"
} else if cfg!(target_arch = "aarch64") {
    b"__arm64_sys_bpf"
} else if cfg!(target_arch = "s390x") {
    b"__s390x_sys_bpf"
} else if cfg!(target_arch = "riscv64") {
    b"__riscv_sys_bpf"
} else {
    b""
};

/// What stands for one extern.
#[derive(Debug)]
enum Resolved {
    /// The number to load.
    Number(u64),
    /// The id in the BTF of the kernel, or of the module with this number.
    Type(TypeId, u16),
    /// The offset in the map of configuration values.
    Config(u32),
    Missing(MissingSymbol),
}

/// The externs of an object on this kernel.
#[derive(Debug)]
pub(crate) struct Externs<'o> {
    object: &'o Object,
    resolved: Vec<Resolved>,
    /// BTF of the modules that symbols are from; numbers start at 1.
    modules: Vec<OwnedFd>,
    /// Contents of the map of configuration values.
    config: Vec<u8>,
}

impl<'o> Externs<'o> {
    /// Looks up what the programs `wanted` use. `config_text` takes the place
    /// of the running kernel's configuration.
    ///
    /// # Errors
    /// [`ObjectError::Symbol`] if a configuration value does not fit the
    /// variable that is declared for it.
    pub(crate) fn resolve(
        object: &'o Object,
        wanted: &[&ProgramSpec],
        config_text: Option<&[u8]>,
    ) -> Result<Externs<'o>, ObjectError> {
        let mut externs = Externs {
            object,
            resolved: Vec::with_capacity(object.externs().len()),
            modules: Vec::new(),
            config: Vec::new(),
        };
        let used = object.used_externs(wanted.iter().copied());
        if !cfg!(feature = "kernel-symbols") {
            let resolved = object.externs().iter().map(|symbol| match symbol.kind {
                ExternKind::Constant => Resolved::Number(0),
                _ => Resolved::Missing(MissingSymbol::LeftOut),
            });
            externs.resolved.extend(resolved);
            return Ok(externs);
        }
        // Ids in instructions are the running kernel's, whichever BTF CO-RE is
        // told to use.
        let mut query = NameQuery::new();
        object.add_extern_names(&used, &mut query);
        query.finish();
        let mut hits = Vec::new();
        let kernel = if query.is_empty() {
            None
        } else {
            Some(KernelBtf::vmlinux())
        };
        let types = kernel.as_ref().map(|kernel| match kernel {
            Ok(kernel) => kernel.scan(&query, &mut hits),
            Err(err) => Err(err.clone()),
        });
        let mut addresses = Vec::new();
        for (index, symbol) in object.externs().iter().enumerate() {
            externs.resolved.push(match symbol.kind {
                _ if used.get(index) != Some(&true) => Resolved::Missing(MissingSymbol::Undefined),
                ExternKind::Constant => Resolved::Number(0),
                ExternKind::Config { offset, .. } => Resolved::Config(offset),
                ExternKind::Address => {
                    addresses.push(Wanted::new(symbol.name.as_bytes(), Some(index)));
                    Resolved::Missing(MissingSymbol::NoAddress)
                }
                ExternKind::Variable { .. } | ExternKind::Function { .. } => {
                    let found = match &types {
                        Some(Ok(kernel)) => object
                            .find_extern(symbol, &query, kernel, &hits)
                            .map_err(|_| MissingSymbol::OtherType)
                            .and_then(|id| id.ok_or(MissingSymbol::NoType)),
                        Some(Err(err)) => Err(MissingSymbol::NoTypes(err.clone())),
                        None => Err(MissingSymbol::NoType),
                    };
                    found.map_or_else(Resolved::Missing, |id| Resolved::Type(id, 0))
                }
                _ => Resolved::Missing(MissingSymbol::Undefined),
            });
        }
        if let Some(Ok(kernel)) = &types {
            externs.search_modules(&used, &query, kernel);
        }
        let mut config = object.kernel_config(&used);
        if config.as_ref().is_some_and(|c| c.needs(SYSCALL_WRAPPER)) && !WRAPPED_SYSCALL.is_empty()
        {
            addresses.push(Wanted::new(WRAPPED_SYSCALL, None));
        }
        find_addresses(&mut addresses);
        for wanted in addresses {
            if let Some(slot) = wanted.index.and_then(|at| externs.resolved.get_mut(at)) {
                *slot = wanted
                    .address
                    .map_or_else(Resolved::Missing, Resolved::Number);
            } else if let Some(config) = &mut config {
                let wrapped = wanted.address != Err(MissingSymbol::NoAddress);
                config.number(SYSCALL_WRAPPER, wrapped.into())?;
            }
        }
        if let Some(config) = config {
            externs.fill_config(config, config_text)?;
        }
        Ok(externs)
    }

    /// Looks through loaded modules for functions and variables that the
    /// kernel image does not have. Linux 5.12 and, for functions, 5.16.
    fn search_modules(&mut self, used: &[bool], query: &NameQuery<'_>, kernel: &Btf<'_>) {
        let object = self.object;
        let (resolved, modules) = (&mut self.resolved, &mut self.modules);
        let wanted = |slot: &Resolved| matches!(slot, Resolved::Missing(MissingSymbol::NoType));
        if !resolved
            .iter()
            .zip(used)
            .any(|(r, used)| *used && wanted(r))
        {
            return;
        }
        modules::search(kernel, query, &mut |btf, hits, fd| {
            let number = modules.len() as u16 + 1;
            let mut found = false;
            let mut left = false;
            let symbols = object.externs().iter().zip(used).zip(resolved.iter_mut());
            for ((symbol, used), slot) in symbols {
                if !used || !wanted(slot) {
                    continue;
                }
                match object.find_extern(symbol, query, btf, hits) {
                    Ok(Some(id)) => {
                        *slot = Resolved::Type(id, number);
                        found = true;
                    }
                    Ok(None) => left = true,
                    Err(_) => *slot = Resolved::Missing(MissingSymbol::OtherType),
                }
            }
            if found {
                modules.push(fd);
            }
            // Instructions have 15 bits for the number.
            if left && number < i16::MAX as u16 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
    }

    /// Descriptors of the modules, as instructions number them; empty if no
    /// symbol is from a module.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        // Nothing refers to the first one: 0 is the kernel image.
        let modules = self.modules.iter();
        let first = modules.clone().take(1);
        first.chain(modules).map(AsFd::as_fd).collect()
    }

    /// Contents of the map with this index, if it is the one of configuration
    /// values.
    pub(crate) fn config_contents(&self, map: usize) -> Option<&[u8]> {
        (self.object.config_map() == Some(map)).then_some(self.config.as_slice())
    }

    fn fill_config(
        &mut self,
        mut config: KernelConfig<'_>,
        text: Option<&[u8]>,
    ) -> Result<(), ObjectError> {
        config.number(SYSCALL_WRAPPER, 0)?;
        if config.needs(KERNEL_VERSION)
            && let Ok(version) = KernelVersion::current()
        {
            config.number(KERNEL_VERSION, version.code().into())?;
        }
        if config.needs(BPF_COOKIE) {
            config.number(BPF_COOKIE, has_attach_cookie().into())?;
        }
        let mut reason = MissingSymbol::NotConfigured;
        if config.needs_options() {
            let mut result = Ok(());
            let mut line = |line: &[u8]| match config.line(line) {
                Ok(()) => ControlFlow::Continue(()),
                Err(err) => {
                    result = Err(err);
                    ControlFlow::Break(())
                }
            };
            let read = match text {
                Some(text) => {
                    let _ = text.split(|b| *b == b'\n').try_for_each(line);
                    Ok(())
                }
                None => kconfig::for_each_line(&mut line),
            };
            result?;
            if let Err(err) = read {
                reason = MissingSymbol::NoConfig(err);
            }
        }
        let (contents, missing) = config.finish();
        self.config = contents;
        for index in missing {
            let weak = self.object.externs().get(index as usize);
            if let Some(slot) = self.resolved.get_mut(index as usize)
                && weak.is_some_and(|symbol| !symbol.weak)
            {
                *slot = Resolved::Missing(reason.clone());
            }
        }
        Ok(())
    }

    /// Puts what stands for an extern into the instruction at `at` that
    /// refers to it. `config` is the descriptor of the map of configuration
    /// values.
    ///
    /// # Errors
    /// Why nothing stands for it, unless it is weak.
    pub(crate) fn apply(
        &self,
        index: u32,
        insns: &mut [Insn],
        at: usize,
        config: i32,
    ) -> Result<(), MissingSymbol> {
        let symbol = self.object.externs().get(index as usize);
        let resolved = self.resolved.get(index as usize);
        let (Some(symbol), Some(resolved)) = (symbol, resolved) else {
            return Err(MissingSymbol::Undefined);
        };
        match insns.get_mut(at..).unwrap_or_default() {
            [first, second, ..] if first.code == LD_IMM64 => {
                let addend = first.imm;
                let (src, low, high) = match resolved {
                    Resolved::Number(number) => {
                        let number = number.wrapping_add_signed(addend.into());
                        (0, number as i32, (number >> 32) as i32)
                    }
                    Resolved::Config(offset) => (
                        pseudo::MAP_VALUE,
                        config,
                        (*offset as i32).wrapping_add(addend),
                    ),
                    Resolved::Type(id, module) => {
                        let module = usize::from(*module).checked_sub(1);
                        let module = module.and_then(|at| self.modules.get(at));
                        let fd = module.map_or(0, AsRawFd::as_raw_fd);
                        (pseudo::BTF_ID, *id as i32, fd)
                    }
                    Resolved::Missing(_) if symbol.weak => (0, 0, 0),
                    Resolved::Missing(reason) => return Err(reason.clone()),
                };
                first.set_src(src);
                first.imm = low;
                second.imm = high;
            }
            [call, ..] if call.code == CALL => match resolved {
                Resolved::Type(id, module)
                    if matches!(symbol.kind, ExternKind::Function { .. }) =>
                {
                    call.set_src(pseudo::KFUNC_CALL);
                    call.off = *module as i16;
                    call.imm = *id as i32;
                }
                Resolved::Missing(_) if symbol.weak => {
                    *call = Insn::call((POISON + index.min(POISON_RANGE)) as i32);
                }
                Resolved::Missing(reason) => return Err(reason.clone()),
                _ => return Err(MissingSymbol::Undefined),
            },
            _ => {}
        }
        Ok(())
    }

    /// What the verifier stumbled over when it reports an unknown function of
    /// this number.
    pub(crate) fn explain(&self, function: u32) -> Option<String> {
        let index = function.checked_sub(POISON)? as usize;
        let symbol = self.object.externs().get(index)?;
        match self.resolved.get(index)? {
            Resolved::Missing(reason) => Some(format!(
                "calls the weak function {} without asking whether it is there; it is one {reason}",
                symbol.name
            )),
            _ => None,
        }
    }
}

const SYSCALL_WRAPPER: &str = "LINUX_HAS_SYSCALL_WRAPPER";
const KERNEL_VERSION: &str = "LINUX_KERNEL_VERSION";
const BPF_COOKIE: &str = "LINUX_HAS_BPF_COOKIE";

/// A symbol to look for in kallsyms.
struct Wanted<'a> {
    name: &'a [u8],
    /// The extern that wants its address.
    index: Option<usize>,
    address: Result<u64, MissingSymbol>,
}

impl<'a> Wanted<'a> {
    fn new(name: &'a [u8], index: Option<usize>) -> Wanted<'a> {
        Wanted {
            name,
            index,
            address: Err(MissingSymbol::NoAddress),
        }
    }
}

/// Finds the addresses of kernel symbols in one pass.
fn find_addresses(wanted: &mut [Wanted<'_>]) {
    if wanted.is_empty() {
        return;
    }
    sort(wanted, |a, b| a.name < b.name);
    let scan = proc::for_each_symbol(Path::new("/proc/kallsyms"), &mut |symbol| {
        let mut name = symbol.name;
        // Link-time optimisation renames static data.
        if symbol.kind == b'd'
            && let Some(end) = name.windows(6).position(|w| w == b".llvm.")
        {
            name = name.get(..end).unwrap_or_default();
        }
        let found = wanted.binary_search_by_key(&name, |w| w.name);
        if let Some(wanted) = found.ok().and_then(|at| wanted.get_mut(at)) {
            wanted.address = match wanted.address {
                Err(MissingSymbol::NoAddress) => Ok(symbol.address),
                Ok(address) if address == symbol.address => Ok(address),
                _ => Err(MissingSymbol::Ambiguous),
            };
        }
        ControlFlow::Continue(())
    });
    for wanted in wanted {
        match &scan {
            Ok(scan) if scan.addresses_hidden && wanted.address.is_ok() => {
                wanted.address = Err(MissingSymbol::Hidden);
            }
            Ok(_) => {}
            Err(err) => wanted.address = Err(MissingSymbol::NoSymbols(err.clone())),
        }
    }
}

/// Whether programs can read the cookie they were attached with. Linux 5.15.
pub(crate) fn has_attach_cookie() -> bool {
    let load = ProgLoad {
        prog_type: ProgramType::TRACEPOINT,
        insns: &[Insn::call(GET_ATTACH_COOKIE), Insn::exit()],
        license: c"GPL",
        ..ProgLoad::default()
    };
    memlock::retry(|| sys::prog_load(&load, None)).is_ok()
}
