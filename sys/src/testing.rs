//! What tests that ask the kernel share: skipping honestly, namespaces and
//! directories of their own, small programs.
//!
//! A kernel's refusal excuses a test only if [`require!`] knows a reason why
//! this kernel or process has to refuse. Error numbers are no such reason:
//! `EINVAL` stands for "too old" as well as for a wrong argument of ours.

use std::fmt::Display;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};

use crate::abi::bpf::{MapType, ProgramType, log_level};
use crate::abi::insn::{Insn, class, mode, pseudo, size};
use crate::bpf::{self, Log, MapCreate, MapFd, ProgLoad, TestRun};
use crate::errno::Errno;
use crate::proc::{Capabilities, KernelVersion, Uname, effective_capabilities};
use crate::{Result, proc};

// ----------------------------------------------------------------- skipping

/// What `require!` takes beside build options: that the kernel is not locked
/// down.
pub(crate) const NO_LOCKDOWN: &str = "a kernel that is not locked down";

/// Unwraps `require!((6, 4), ["CONFIG_X"], result)`: what this kernel answered
/// about something that Linux 6.4 and later have, if built with `CONFIG_X`.
///
/// A refusal ends the calling test: it is skipped if the kernel is older, was
/// not built with the option or the process lacks the privilege, and fails
/// otherwise.
macro_rules! require {
    (($major:literal, $minor:literal), $result:expr) => {
        $crate::testing::require!(($major, $minor), [], $result)
    };
    (($major:literal, $minor:literal), [$($need:expr),*], $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(err) => return $crate::testing::refused(($major, $minor), &[$($need),*], &err),
        }
    };
}
pub(crate) use require;

/// Skips the calling test, or fails it if nothing excuses the refusal.
#[track_caller]
pub(crate) fn refused(since: (u32, u32), needs: &[&str], err: &dyn Display) {
    match excuse(this_kernel(), privileged(), since, needs, &lacks) {
        Some(reason) => skip(&reason),
        None => panic!("Linux {}.{} and later do this: {err}", since.0, since.1),
    }
}

/// Why a kernel or process need not have what came with Linux `since` and
/// depends on `needs`.
fn excuse(
    kernel: (u32, u32),
    privileged: bool,
    since: (u32, u32),
    needs: &[&str],
    lacks: &dyn Fn(&str) -> bool,
) -> Option<String> {
    if kernel < since {
        let ((major, minor), (this, patch)) = (since, kernel);
        return Some(format!(
            "needs Linux {major}.{minor}, this is {this}.{patch}"
        ));
    }
    if !privileged {
        return Some("needs root with all capabilities".to_owned());
    }
    let lacking = needs.iter().find(|need| lacks(need))?;
    Some(format!("needs {lacking}"))
}

/// Says past the test runner's capture that the calling test does not run.
pub(crate) fn skip(reason: &dyn Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("main");
    let line = format!("skipped: {test}: {reason}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn this_kernel() -> (u32, u32) {
    let version = KernelVersion::current().unwrap();
    (version.major, version.minor)
}

/// True with the capabilities that count: those of a container's own user
/// namespace do not.
fn privileged() -> bool {
    let all_users = std::fs::read_to_string("/proc/self/uid_map");
    let needed = Capabilities::SYS_ADMIN | Capabilities::NET_ADMIN;
    all_users.is_ok_and(|map| map.trim_end().ends_with(" 4294967295"))
        && effective_capabilities().unwrap().contains(needed)
}

/// True if the kernel is known to lack a build option, or to be locked down.
fn lacks(need: &str) -> bool {
    static CONFIG: OnceLock<Option<String>> = OnceLock::new();
    if need == NO_LOCKDOWN {
        return locked_down();
    }
    let Some(config) = CONFIG.get_or_init(config) else {
        return false;
    };
    !config.lines().any(|line| {
        line.strip_prefix(need)
            .is_some_and(|value| value == "=y" || value == "=m")
    })
}

/// How the kernel was built, where it or its distribution tells.
fn config() -> Option<String> {
    let unpacked = Command::new("gzip")
        .args(["-dc", "/proc/config.gz"])
        .stderr(Stdio::null())
        .output();
    if let Ok(out) = unpacked
        && out.status.success()
    {
        return String::from_utf8(out.stdout).ok();
    }
    let uname = Uname::get().ok()?;
    let release = uname.release();
    std::fs::read_to_string(format!("/boot/config-{release}"))
        .or_else(|_| std::fs::read_to_string(format!("/lib/modules/{release}/config")))
        .ok()
}

fn locked_down() -> bool {
    let mut mode = proc::lockdown();
    if mode.is_err() {
        // Not mounted, perhaps: look where the test mounts it itself.
        in_private(libc::CLONE_NEWNS, || {
            let at = Path::new("/sys/kernel/security");
            let _ = proc::mount_fs("securityfs", at);
            mode = proc::lockdown();
        });
    }
    mode.is_ok_and(|mode| mode > proc::Lockdown::None)
}

// -------------------------------------------------------- places of our own

/// Runs `work` on a thread in new namespaces of the given kinds
/// (`CLONE_NEW…`), or skips the calling test where that is not allowed. Mounts
/// of the thread do not reach the rest of the system.
pub(crate) fn in_private(kinds: i32, work: impl FnOnce() + Send) {
    let name = std::thread::current().name().unwrap_or("main").to_owned();
    let outcome = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name);
        let thread = thread.spawn_scoped(scope, || {
            // SAFETY: moves the calling thread and touches no memory.
            let moved = unsafe { libc::unshare(kinds) };
            require!(
                (3, 8),
                if moved == 0 {
                    Ok(())
                } else {
                    Err(Errno::last())
                }
            );
            if kinds & libc::CLONE_NEWNS != 0 {
                mounts_stay_here();
            }
            work();
        });
        thread.unwrap().join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn mounts_stay_here() {
    let (none, flags) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: the target is a terminated string; with these flags the kernel
    // reads nothing else.
    let ret = unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) };
    assert_eq!(ret, 0, "{}", Errno::last());
}

/// Runs `work` with the root of a file system that nobody else sees mounted,
/// or skips the calling test without the privilege to mount.
pub(crate) fn with_mounted(fstype: &str, work: impl FnOnce(&Path) + Send) {
    let dir = TempDir::new();
    in_private(libc::CLONE_NEWNS, || {
        require!((4, 5), proc::mount_fs(fstype, dir.path()));
        work(dir.path());
    });
}

/// A directory of the test's own, removed with what it holds.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> TempDir {
        TempDir::below(&std::env::temp_dir())
    }

    pub(crate) fn below(parent: &Path) -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ebpf_manager_sys_{}_{count}", std::process::id());
        let path = parent.join(name);
        std::fs::create_dir(&path).unwrap();
        TempDir(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // The files of a cgroup go with it and cannot be removed.
        if std::fs::remove_dir(&self.0).is_err() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// File and offset of the code at `address` in this process.
pub(crate) fn code_at(address: usize) -> (PathBuf, u64) {
    let address = address as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (from, to) = fields.next().unwrap().split_once('-').unwrap();
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        if (hex(from)..hex(to)).contains(&address) {
            let start = hex(fields.nth(1).unwrap());
            return (fields.nth(2).unwrap().into(), start + address - hex(from));
        }
    }
    panic!("no mapping at {address:#x}");
}

// --------------------------------------------------------- maps and programs

/// `bpf_perf_event_output`.
pub(crate) const PERF_EVENT_OUTPUT: i32 = 25;
/// `bpf_ringbuf_output`.
pub(crate) const RINGBUF_OUTPUT: i32 = 130;
/// `bpf_ringbuf_reserve`.
pub(crate) const RINGBUF_RESERVE: i32 = 131;
/// `bpf_ringbuf_discard`.
pub(crate) const RINGBUF_DISCARD: i32 = 133;

/// Allows this process maps of any size, which kernels before 5.11 count
/// against a limit on locked memory. Once, so that tests may look at the limit.
pub(crate) fn raise_memlock_limit() {
    static RAISED: Once = Once::new();
    RAISED.call_once(|| {
        // Not where CAP_SYS_RESOURCE is missing.
        let _ = proc::set_memlock_limit(proc::Rlimit::UNLIMITED);
    });
}

pub(crate) fn create_map(
    map_type: MapType,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
) -> Result<MapFd> {
    raise_memlock_limit();
    bpf::map_create(&MapCreate {
        map_type,
        key_size,
        value_size,
        max_entries,
        ..MapCreate::default()
    })
}

/// `r0 = value; exit`
pub(crate) fn returns(value: i32) -> [Insn; 2] {
    [Insn::mov64_imm(0, value), Insn::exit()]
}

/// Loads a program that the kernel accepts.
///
/// # Panics
/// With what the verifier says, if it does not.
pub(crate) fn load(prog_type: ProgramType, insns: &[Insn]) -> OwnedFd {
    let load = ProgLoad {
        prog_type,
        insns,
        license: c"GPL",
        ..ProgLoad::default()
    };
    let mut buf = vec![0; 65536];
    let mut log = Log::new(log_level::BASIC, &mut buf);
    match bpf::prog_load(&load, Some(&mut log)) {
        Ok(fd) => fd,
        Err(err) => panic!("{err}: {}", String::from_utf8_lossy(log.bytes())),
    }
}

/// Runs a socket filter `repeat` times; returns what the last run returned.
pub(crate) fn run(program: &OwnedFd, repeat: u32) -> i32 {
    let mut run = TestRun {
        data_in: &[0; 64],
        repeat,
        ..TestRun::default()
    };
    let result = bpf::prog_test_run(program.as_fd(), &mut run).unwrap();
    result.retval as i32
}

/// `*(u64 *)(r10 + off) = imm`
pub(crate) fn store_imm(off: i16, imm: i32) -> Insn {
    Insn::new(class::ST | mode::MEM | size::DW, 10, 0, off, imm)
}

/// `r<dst> = r10 + off`
pub(crate) fn stack_addr(dst: u8, off: i32) -> [Insn; 2] {
    let add = Insn::new(class::ALU64, dst, 0, 0, off);
    [Insn::mov64_reg(dst, 10), add]
}

/// `r<dst> = map`
pub(crate) fn map_addr(dst: u8, map: &MapFd) -> [Insn; 2] {
    Insn::ld_imm64(dst, pseudo::MAP_FD, map.as_fd().as_raw_fd() as u64)
}

// ------------------------------------------------------------------- damage

/// Numbers that repeat from run to run (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize
    }

    /// `good` after one to four changes: a bit or byte of it, its length.
    pub(crate) fn damaged(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=self.next() % 4 {
            let at = self.next() % bytes.len().max(1);
            match self.next() % 4 {
                _ if bytes.is_empty() => bytes.push(self.next() as u8),
                0 => bytes.truncate(at),
                1 => drop(bytes.remove(at)),
                2 => bytes[at] ^= 1 << (self.next() % 8),
                _ => bytes[at] = self.next() as u8,
            }
        }
        bytes
    }
}

mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn only_facts_excuse_a_refusal() {
        let told = |kernel, privileged, since, needs: &[&str]| {
            excuse(kernel, privileged, since, needs, &|need| need == "CONFIG_B")
        };
        let reason = told((5, 10), true, (6, 4), &["CONFIG_B"]);
        assert_eq!(reason.unwrap(), "needs Linux 6.4, this is 5.10");
        let reason = told((6, 4), false, (6, 4), &[]);
        assert_eq!(reason.unwrap(), "needs root with all capabilities");
        let reason = told((6, 4), true, (6, 4), &["CONFIG_A", "CONFIG_B"]);
        assert_eq!(reason.unwrap(), "needs CONFIG_B");
        assert_eq!(told((6, 4), true, (6, 4), &["CONFIG_A"]), None);
        assert_eq!(told((6, 10), true, (6, 9), &[]), None);
        // The real ones.
        if privileged() {
            let fails = || refused((2, 6), &["CONFIG_BPF"], &"told so");
            assert!(catch_unwind(fails).is_err());
        }
        assert!(!lacks("CONFIG_BPF_SYSCALL"));
    }
}
