//! Programs: loading with fallback to old kernels, running, pinning.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use ebpf_manager_elf::btf::ext::{CoreRelo, LineInfo};
use ebpf_manager_elf::{LinkedProgram, Linker, ProgramSpec};
use ebpf_manager_sys::abi::bpf::{AttachType, ProgramType, StatsType};
use ebpf_manager_sys::bpf::{self as sys, Log, ProgLoad, Records, TestRun, TestRunResult};
use ebpf_manager_sys::{Errno, SysError};

use crate::cure::{self, Cure, Need};
use crate::error::{ProgramError, Rejection};
use crate::link::usdt;
use crate::map::Loss;
use crate::memlock;
use crate::old_helpers;
use crate::verifier_log::{SourceLine, VerifierLog};

/// A loaded program.
///
/// Dropping it closes this reference; the kernel frees the program when
/// nothing else (a link, a pin, a program array) holds it.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    name: String,
    kind: ProgramType,
    attach_type: Option<AttachType>,
    section: String,
    target: Option<String>,
    lost: Vec<Loss>,
}

/// How often a program ran, and for how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Runs.
    pub runs: u64,
    /// Time in all of them.
    pub time: Duration,
}

/// Has the kernel measure all programs of the machine for as long as the
/// answer is open. Costs some nanoseconds for each run. Requires at least
/// Linux 5.8.
///
/// # Errors
/// `EINVAL` below Linux 5.8, `EPERM` without `CAP_SYS_ADMIN`.
pub fn measure_programs() -> Result<OwnedFd, SysError> {
    sys::enable_stats(StatsType::RUN_TIME)
}

/// What every program of a collection is loaded with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgramContext<'a> {
    pub(crate) license: &'a CStr,
    pub(crate) kernel_version: u32,
    pub(crate) btf: Option<BorrowedFd<'a>>,
    pub(crate) log_limit: usize,
    /// CO-RE relocations for the kernel.
    pub(crate) core_relos: &'a [u8],
    pub(crate) attach_btf_id: u32,
    pub(crate) attach_to: Option<BorrowedFd<'a>>,
    /// BTF of modules, by the numbers that calls of their functions carry.
    pub(crate) modules: &'a [BorrowedFd<'a>],
    /// Index of the member that the program is in a structure.
    pub(crate) member: Option<AttachType>,
}

/// First size of the log buffer; it grows to what the kernel reports.
const LOG_START: usize = 64 * 1024;

/// Largest log buffer of kernels before 5.2.
const OLD_LOG_LIMIT: usize = (16 << 20) - 1;

impl Program {
    /// Takes over a descriptor of a program.
    ///
    /// # Errors
    /// [`ProgramError::Operation`] with `EINVAL` if it is not a program's.
    pub fn from_fd(name: &str, fd: OwnedFd) -> Result<Program, ProgramError> {
        let (fd, info) = sys::prog_from_fd(fd).map_err(|source| ProgramError::Operation {
            program: name.to_owned(),
            cure: None,
            source,
        })?;
        Ok(Program {
            fd,
            name: name.to_owned(),
            kind: info.prog_type,
            attach_type: None,
            section: String::new(),
            target: None,
            lost: Vec::new(),
        })
    }

    /// Opens a pinned program.
    ///
    /// # Errors
    /// [`ProgramError::Operation`]; `ENOENT` if there is no such pin.
    pub fn from_pin(name: &str, path: &Path) -> Result<Program, ProgramError> {
        let fd = sys::obj_get(path, 0, None).map_err(|source| ProgramError::Operation {
            program: name.to_owned(),
            cure: cure::find(&source, Need::Bpf),
            source,
        })?;
        Program::from_fd(name, fd)
    }

    /// The descriptor alone.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Adds what the kernel does not tell about a program: that it is the one
    /// of this specification.
    #[must_use]
    pub fn described_by(mut self, spec: &ProgramSpec) -> Program {
        self.attach_type = spec.attach_type;
        self.section.clone_from(&spec.section);
        self.target.clone_from(&spec.target);
        self
    }

    /// C function name; the kernel knows its first 15 bytes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Type it was loaded as.
    pub fn program_type(&self) -> ProgramType {
        self.kind
    }

    /// Expected attach type it was loaded with.
    pub fn attach_type(&self) -> Option<AttachType> {
        self.attach_type
    }

    /// Section of the object it came from; empty for a pinned program.
    pub fn section(&self) -> &str {
        &self.section
    }

    /// Attach target from the section name, after the slash.
    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    /// What this kernel could not give it.
    pub fn losses(&self) -> &[Loss] {
        &self.lost
    }

    /// The kernel's id of the program. Requires at least Linux 4.13.
    pub fn id(&self) -> Result<u32, ProgramError> {
        sys::prog_info(self.fd.as_fd())
            .map(|info| info.id)
            .map_err(|e| self.operation(e))
    }

    /// How often the program ran, and for how long, while something measured
    /// ([`measure_programs`](crate::measure_programs)). Linux 5.1; zero below.
    ///
    /// # Errors
    /// [`ProgramError::Operation`].
    pub fn run_stats(&self) -> Result<RunStats, ProgramError> {
        let info = sys::prog_info(self.fd.as_fd()).map_err(|e| self.operation(e))?;
        Ok(RunStats {
            runs: info.run_cnt,
            time: Duration::from_nanos(info.run_time_ns),
        })
    }

    /// Runs that the kernel left out, because the CPU was in the middle of
    /// another run that excludes them: what such a program did not see.
    ///
    /// Counted since Linux 5.12, for tracepoints and kprobes since 6.7; zero
    /// below that.
    ///
    /// # Errors
    /// [`ProgramError::Operation`].
    pub fn missed_runs(&self) -> Result<u64, ProgramError> {
        sys::prog_info(self.fd.as_fd())
            .map(|info| info.recursion_misses)
            .map_err(|e| self.operation(e))
    }

    /// Runs the program on `data` without attaching it
    /// (`BPF_PROG_TEST_RUN`). Requires at least Linux 4.12; which types can be
    /// run depends on the kernel.
    pub fn test_run(&self, run: &mut TestRun<'_>) -> Result<TestRunResult, ProgramError> {
        sys::prog_test_run(self.fd.as_fd(), run).map_err(|e| self.operation(e))
    }

    /// Pins the program below a BPF file system. The pin keeps it alive after
    /// this process; remove the file to let go.
    pub fn pin(&self, path: &Path) -> Result<(), ProgramError> {
        sys::obj_pin(self.fd.as_fd(), path, None).map_err(|source| match source.errno() {
            Errno::EPERM | Errno::EINVAL => ProgramError::Operation {
                program: self.name.clone(),
                source: source.with_path(path),
                cure: Some(Cure::MountBpffs),
            },
            _ => self.operation(source.with_path(path)),
        })
    }

    #[cold]
    fn operation(&self, source: SysError) -> ProgramError {
        let cure = cure::find(&source, need(self.kind));
        ProgramError::Operation {
            program: self.name.clone(),
            source,
            cure,
        }
    }

    /// Loads a linked program whose fixups are done.
    pub(crate) fn load(
        spec: &ProgramSpec,
        linked: &LinkedProgram,
        linker: &Linker<'_>,
        context: ProgramContext<'_>,
        core: &dyn Fn(u32, Option<u32>) -> Option<String>,
    ) -> Result<Program, ProgramError> {
        let debug = context.btf.is_some();
        let attach_type = spec
            .attach_type
            .or_else(|| usdt::attach_type(&spec.section));
        let mut load = ProgLoad {
            prog_type: spec.program_type,
            insns: &linked.insns,
            license: context.license,
            name: &spec.name,
            flags: spec.flags,
            ifindex: spec.interface,
            kern_version: context.kernel_version,
            expected_attach_type: context.member.or(attach_type).unwrap_or_default(),
            btf: context.btf,
            attach_btf_id: context.attach_btf_id,
            attach_to: context.attach_to,
            fd_array: context.modules,
            ..ProgLoad::default()
        };
        if debug {
            load.func_info = Records {
                bytes: &linked.func_info,
                rec_size: linked.func_info_rec_size,
            };
            load.line_info = Records {
                bytes: &linked.line_info,
                rec_size: linked.line_info_rec_size,
            };
        }
        if !context.core_relos.is_empty() {
            if !debug {
                // The kernel would not look at them.
                let refused = SysError::new("bpf(BPF_PROG_LOAD)", Errno::EINVAL);
                return Err(ProgramError::Operation {
                    program: spec.name.clone(),
                    source: refused.with_detail("CO-RE by the kernel needs the object's BTF"),
                    cure: None,
                });
            }
            load.core_relos = Records {
                bytes: context.core_relos,
                rec_size: CoreRelo::SIZE,
            };
        }
        let mut lost = Vec::new();
        let mut result = memlock::retry(|| sys::prog_load(&load, None));
        let older;
        if cfg!(feature = "old-kernels")
            && result.is_err()
            && let Some(insns) = old_helpers::replaced(&linked.insns)
        {
            older = insns;
            load.insns = &older;
            lost.push(old_helpers::LOSS);
            result = memlock::retry(|| sys::prog_load(&load, None));
        }
        let fd = match result {
            Ok(fd) => fd,
            Err(first) => match explain(&load, first, context.log_limit) {
                Ok(fd) => fd,
                Err((source, log)) => {
                    match without_novelties(&mut load, &source, &log, &mut lost) {
                        Some(fd) => fd,
                        None => return Err(rejected(spec, linked, linker, source, log, core)),
                    }
                }
            },
        };
        Ok(Program {
            fd,
            name: spec.name.clone(),
            kind: spec.program_type,
            attach_type,
            section: spec.section.clone(),
            target: spec.target.clone(),
            lost,
        })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Program {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// What loading and attaching a type needs.
pub(crate) fn need(program_type: ProgramType) -> Need {
    use ProgramType as T;
    match program_type {
        T::KPROBE
        | T::TRACEPOINT
        | T::PERF_EVENT
        | T::RAW_TRACEPOINT
        | T::RAW_TRACEPOINT_WRITABLE
        | T::TRACING
        | T::LSM
        | T::EXT => Need::Tracing,
        T::SOCKET_FILTER | T::STRUCT_OPS | T::SYSCALL | T::UNSPEC => Need::Bpf,
        _ => Need::Network,
    }
}

/// Loads again with a log, grown until it holds everything the kernel has to
/// say. The load may also succeed this time.
fn explain(
    load: &ProgLoad<'_>,
    first: SysError,
    limit: usize,
) -> Result<OwnedFd, (SysError, VerifierLog)> {
    // Without the privilege there is no log either.
    if first.is(Errno::EPERM) && cure::missing_capability(need(load.prog_type)).is_some() {
        return Err((first, VerifierLog::default()));
    }
    let limit = limit.max(LOG_START);
    let mut size = LOG_START;
    loop {
        let mut buffer = vec![0; size];
        let mut log = Log::new(1, &mut buffer);
        let result = memlock::retry(|| sys::prog_load(load, Some(&mut log)));
        let wanted = log.true_size().map(|s| s as usize);
        let source = match result {
            Ok(fd) => return Ok(fd),
            Err(err) => err,
        };
        // Before 5.2 a buffer has less than 16 MiB.
        if source.is(Errno::EINVAL) && size > OLD_LOG_LIMIT && log.bytes().is_empty() {
            return Err((first, VerifierLog::default()));
        }
        // ENOSPC: the log did not fit, and the verdict is hidden behind that.
        let full = source.is(Errno::ENOSPC) || wanted.is_some_and(|w| w > size);
        if !full || size >= limit {
            let source = if source.is(Errno::ENOSPC) {
                first
            } else {
                source
            };
            return Err((source, VerifierLog::new(buffer, full)));
        }
        size = grown(size, wanted, limit);
    }
}

/// Next size of a log buffer that was too small: what the kernel asked for, at
/// least twice as much as before, but never more than the limit.
fn grown(size: usize, wanted: Option<usize>, limit: usize) -> usize {
    wanted.unwrap_or(size * 4).max(size * 2).min(limit)
}

/// If the kernel refused the attribute rather than the program, gives up what
/// it may not know, the newest first.
fn without_novelties(
    load: &mut ProgLoad<'_>,
    source: &SysError,
    log: &VerifierLog,
    lost: &mut Vec<Loss>,
) -> Option<OwnedFd> {
    if !log.is_empty() || !matches!(source.errno(), Errno::EINVAL | Errno::E2BIG) {
        return None;
    }
    loop {
        lost.push(degrade(load)?);
        if let Ok(fd) = memlock::retry(|| sys::prog_load(load, None)) {
            return Some(fd);
        }
    }
}

fn degrade(load: &mut ProgLoad<'_>) -> Option<Loss> {
    // Without BTF the kernel would not relocate, and say nothing.
    if !load.core_relos.bytes.is_empty() {
        return None;
    }
    if load.btf.take().is_some() {
        load.func_info = Records::default();
        load.line_info = Records::default();
        return Some(Loss {
            what: "function and line information",
            since: "5.0",
        });
    }
    // Types that came later are nothing without it.
    let typed = load.attach_btf_id != 0;
    if load.expected_attach_type != AttachType::default() && !typed {
        load.expected_attach_type = AttachType::default();
        return Some(Loss {
            what: "expected attach type",
            since: "4.17",
        });
    }
    if !load.name.is_empty() {
        load.name = "";
        return Some(Loss {
            what: "the program's name",
            since: "4.15",
        });
    }
    None
}

#[cold]
fn rejected(
    spec: &ProgramSpec,
    linked: &LinkedProgram,
    linker: &Linker<'_>,
    source: SysError,
    log: VerifierLog,
    core: &dyn Fn(u32, Option<u32>) -> Option<String>,
) -> ProgramError {
    let insn = log.last_insn();
    let source_line = insn.and_then(|insn| source_line(linked, linker, insn));
    let core = log.unknown_function().and_then(|id| core(id, insn));
    let needs_gpl = log.summary().is_some_and(|s| s.contains("GPL"));
    let cure = if needs_gpl {
        Some(Cure::GplLicence)
    } else if log.is_empty() {
        cure::find(&source, need(spec.program_type))
    } else {
        None
    };
    ProgramError::Rejected(Box::new(Rejection {
        program: spec.name.clone(),
        program_type: spec.program_type,
        source,
        log,
        insn,
        source_line,
        core,
        cure,
    }))
}

/// The source line of an instruction of a linked program.
pub(crate) fn source_line(
    linked: &LinkedProgram,
    linker: &Linker<'_>,
    insn: u32,
) -> Option<SourceLine> {
    let btf = linker.btf()?;
    let size = (linked.line_info_rec_size as usize).max(LineInfo::SIZE as usize);
    // Records are sorted by instruction; a line holds until the next one.
    let line = linked
        .line_info
        .chunks_exact(size)
        .filter_map(LineInfo::from_bytes)
        .take_while(|line| line.insn_off <= insn)
        .last()?;
    let (function, _) = linked.locate(insn)?;
    Some(SourceLine {
        file: btf.name(line.file_name_off).to_owned(),
        line: line.line,
        column: line.column,
        text: btf.name(line.line_off).trim().to_owned(),
        function: linker
            .function_name(linked, function)
            .unwrap_or_default()
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_grow_to_the_limit_and_not_beyond() {
        assert_eq!(grown(64, None, 1000), 256);
        assert_eq!(grown(64, Some(65), 1000), 128);
        assert_eq!(grown(64, Some(500), 1000), 500);
        assert_eq!(grown(64, Some(500), 100), 100);
    }
}
