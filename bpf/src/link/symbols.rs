//! Where a probe goes: kernel functions from kallsyms and ftrace, user
//! functions from the symbol tables of their files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ebpf_manager_elf::sort::sort;
use ebpf_manager_elf::symbols::{self, SymbolError};
use ebpf_manager_sys::proc::{self, Uname};
use ebpf_manager_sys::tracefs::Tracefs;
use ebpf_manager_sys::{Errno, SysError};

use crate::cure::{self, Cure, Need};
use crate::error::LinkError;

const KALLSYMS: &str = "/proc/kallsyms";

/// Names that are suggested instead of an absent one, at most.
const SUGGESTIONS: usize = 4;

/// The kernel's function for a system call: `openat` is `__x64_sys_openat`,
/// `__arm64_sys_openat`, `__se_sys_openat`, `sys_openat` or `SyS_openat`.
///
/// kallsyms is read once.
///
/// # Errors
/// [`LinkError::NoTarget`] if the kernel has none of these.
pub fn syscall_function(name: &str) -> Result<String, LinkError> {
    syscall_function_in(Path::new(KALLSYMS), name)
}

/// As [`syscall_function`], with the symbols of a file that is a copy of
/// `/proc/kallsyms`.
///
/// # Errors
/// As [`syscall_function`].
pub fn syscall_function_in(kallsyms: &Path, name: &str) -> Result<String, LinkError> {
    let no_target = |source| LinkError::NoTarget {
        kind: "system call",
        name: name.to_owned(),
        source,
        cure: None,
    };
    let uname = Uname::get().map_err(no_target)?;
    let prefixes = syscall_prefixes(uname.machine());
    let mut best = prefixes.len();
    let scan = proc::for_each_symbol(kallsyms, &mut |symbol| {
        let rank = symbol
            .name
            .strip_suffix(name.as_bytes())
            .filter(|_| symbol.is_function() && symbol.module.is_none())
            .and_then(|front| prefixes.iter().position(|p| p.as_bytes() == front));
        best = best.min(rank.unwrap_or(best));
        if best == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    scan.map_err(no_target)?;
    match prefixes.get(best) {
        Some(prefix) => Ok([prefix, name].concat()),
        None => Err(no_target(
            SysError::new("kallsyms", Errno::ENOENT).with_path(kallsyms),
        )),
    }
}

/// How system call functions may start, the likeliest first. Since Linux 4.17
/// the function that takes the registers is the one to probe; the others are
/// inlined into it on some builds.
fn syscall_prefixes(machine: &str) -> [&'static str; 5] {
    let own = match machine {
        "x86_64" => "__x64_sys_",
        "aarch64" => "__arm64_sys_",
        "riscv64" => "__riscv_sys_",
        "s390x" => "__s390x_sys_",
        "i386" | "i486" | "i586" | "i686" => "__ia32_sys_",
        "ppc64" | "ppc64le" => "__powerpc_sys_",
        _ => "__se_sys_",
    };
    [own, "__se_sys_", "sys_", "SyS_", "__sys_"]
}

/// What can be said about a kernel function that could not be probed.
#[cold]
pub(super) fn why_not(name: &str, err: &SysError) -> Option<Cure> {
    if err.errno().is_permission() {
        return cure::find(err, Need::Tracing);
    }
    if matches!(err.errno(), Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) {
        return None;
    }
    let (module, function) = match name.split_once(':') {
        Some((module, function)) => (Some(module.as_bytes()), function),
        None => (None, name),
    };
    let mut same = 0_usize;
    let mut similar: Vec<String> = Vec::new();
    proc::for_each_symbol(Path::new(KALLSYMS), &mut |symbol| {
        if !symbol.is_function() || module.is_some_and(|m| symbol.module != Some(m)) {
            return ControlFlow::Continue(());
        }
        match symbol.name.strip_prefix(function.as_bytes()) {
            Some([]) => same += 1,
            // `.isra.0`, `.constprop.0`, `.part.0`, `.cold`, `.llvm.123`.
            Some([b'.', ..]) if similar.len() < SUGGESTIONS => {
                similar.push(String::from_utf8_lossy(symbol.name).into_owned());
            }
            _ => {}
        }
        ControlFlow::Continue(())
    })
    .ok()?;
    match same {
        0 => Some(Cure::NoSuchSymbol { similar }),
        1 => Some(Cure::NotTraceable),
        count => Some(Cure::AmbiguousSymbol { count }),
    }
}

/// Other names of the kernel function `name`: those at its address. None if
/// the addresses are hidden from this process, or several functions have the
/// name.
#[cold]
pub(crate) fn aliases(name: &str) -> Vec<String> {
    // The names at one address stand together.
    let (mut address, mut here, mut all) = (0, 0, 0);
    let mut names: Vec<u8> = Vec::new();
    let mut found: Vec<u8> = Vec::new();
    let _ = proc::for_each_symbol(Path::new(KALLSYMS), &mut |symbol| {
        if symbol.address != address {
            if here > 0 {
                found.clone_from(&names);
            }
            names.clear();
            (address, here) = (symbol.address, 0);
        }
        if address != 0 && symbol.is_function() && symbol.module.is_none() {
            if symbol.name == name.as_bytes() {
                here += 1;
                all += 1;
            }
            names.extend_from_slice(symbol.name);
            names.push(b'\n');
        }
        ControlFlow::Continue(())
    });
    if here > 0 {
        found = names;
    }
    if all != 1 {
        return Vec::new();
    }
    found
        .split(|&b| b == b'\n')
        .filter(|alias| !alias.is_empty() && *alias != name.as_bytes())
        .map(|alias| String::from_utf8_lossy(alias).into_owned())
        .collect()
}

/// Names of the functions that ftrace can trace and that `pattern` matches
/// (`*` stands for anything, `?` for one byte), sorted.
///
/// # Errors
/// [`LinkError::NoTarget`]: none matches, or the list cannot be read, which
/// in lockdown says nothing about whether there are any.
pub fn traceable_functions(pattern: &str) -> Result<Vec<String>, LinkError> {
    let no_target = |source: SysError, cure| LinkError::NoTarget {
        kind: "traceable function",
        name: pattern.to_owned(),
        source,
        cure,
    };
    let tracefs = Tracefs::find().map_err(|e| no_target(e, Some(Cure::MountTracefs)))?;
    let mut names = Vec::new();
    tracefs
        .for_each_function(&mut |function| {
            if glob(pattern.as_bytes(), function.name) {
                names.push(String::from_utf8_lossy(function.name).into_owned());
            }
            ControlFlow::Continue(())
        })
        .map_err(|e| {
            let cure = cure::find(&e, Need::Tracing);
            no_target(e, cure)
        })?;
    sort(&mut names, |a, b| a < b);
    names.dedup();
    if names.is_empty() {
        let none = SysError::new("available_filter_functions", Errno::ENOENT);
        return Err(no_target(none, None));
    }
    Ok(names)
}

/// Whether `text` is what `pattern` says, whole.
pub(super) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last star: behind it, and at what text.
    let mut star: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(&want) if want == b'?' || want == byte => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((after, from)) => {
                    *from += 1;
                    (p, t) = (*after, *from);
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .unwrap_or_default()
        .iter()
        .all(|&b| b == b'*')
}

// ------------------------------------------------------------ user binaries

/// A part of a file that a process has mapped to be run.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) len: u64,
    /// Bytes from the start of the file.
    pub(super) offset: u64,
}

/// Where process `pid` has the code of the file `path`.
pub(super) fn mappings(pid: u32, path: &Path) -> Result<Vec<Mapping>, SysError> {
    use std::os::unix::fs::MetadataExt;
    let maps = PathBuf::from(format!("/proc/{pid}/maps"));
    let wanted =
        std::fs::metadata(path).map_err(|err| SysError::from_io("stat", &err).with_path(path))?;
    let wanted = (libc_dev(wanted.dev()), wanted.ino());
    let mut found = Vec::new();
    proc::for_each_line(&maps, &mut |line| {
        let mapping = parse_mapping(line).filter(|(_, dev, ino)| (*dev, *ino) == wanted);
        found.extend(mapping.map(|(mapping, ..)| mapping));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Major and minor number of a device.
fn libc_dev(dev: u64) -> (u64, u64) {
    (
        (dev >> 8) & 0xfff | (dev >> 32) & !0xfff,
        dev & 0xff | (dev >> 12) & !0xff & 0xffff_ffff,
    )
}

/// `7f00-7f10 r-xp 00001000 fe:00 123  /lib/x.so`, if it can be run: the
/// mapping, its device and its inode.
fn parse_mapping(line: &[u8]) -> Option<(Mapping, (u64, u64), u64)> {
    let line = std::str::from_utf8(line).ok()?;
    let mut fields = line.split_ascii_whitespace();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (hex(start)?, hex(end)?);
    if fields.next()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?.parse().ok()?;
    let mapping = Mapping {
        start,
        len: end.checked_sub(start)?,
        offset,
    };
    Some((mapping, (hex(major)?, hex(minor)?), inode))
}

/// The bytes of a binary.
pub(super) fn read_binary(path: &Path) -> Result<Vec<u8>, LinkError> {
    std::fs::read(path).map_err(|err| LinkError::NoTarget {
        kind: "binary",
        name: path.display().to_string(),
        source: SysError::from_io("read", &err).with_path(path),
        cure: None,
    })
}

/// File offset of `offset` bytes into the function `symbol`.
pub(super) fn user_offset(
    bytes: &[u8],
    path: &Path,
    symbol: &str,
    offset: u64,
) -> Result<u64, LinkError> {
    symbols::find_function(bytes, symbol, offset).map_err(|source| user_symbol(path, source))
}

/// Offsets of all functions of a binary that `pattern` matches, ascending.
pub(super) fn user_offsets(
    bytes: &[u8],
    path: &Path,
    pattern: &str,
) -> Result<Vec<u64>, LinkError> {
    let mut offsets = Vec::new();
    symbols::for_each_function(bytes, &mut |symbol| {
        if glob(pattern.as_bytes(), symbol.name) {
            offsets.push(symbol.offset);
        }
    })
    .map_err(|e| user_symbol(path, SymbolError::File(e)))?;
    sort(&mut offsets, |a, b| a < b);
    offsets.dedup();
    if offsets.is_empty() {
        let absent = SymbolError::Absent {
            name: pattern.to_owned(),
            stripped: false,
        };
        return Err(user_symbol(path, absent));
    }
    Ok(offsets)
}

fn user_symbol(path: &Path, source: SymbolError) -> LinkError {
    LinkError::Symbol {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, matches) in [
            ("tcp_*", "tcp_sendmsg", true),
            ("tcp_*", "udp_sendmsg", false),
            ("*send*", "tcp_sendmsg", true),
            ("*send*msg", "tcp_send_a_msgmsg", true),
            ("vfs_?ead", "vfs_read", true),
            ("vfs_?ead", "vfs_ead", false),
            ("vfs_read", "vfs_readv", false),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                matches,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn system_calls_in_a_copy_of_kallsyms() {
        let path = std::env::temp_dir().join(format!("ebpf-manager-{}-syms", std::process::id()));
        std::fs::write(
            &path,
            "1000 T do_sys_openat\n1008 T __se_sys_openat\n1010 t SyS_old\n\
             1018 T sys_mod\t[m]\n1020 D sys_data\n",
        )
        .unwrap();
        assert_eq!(
            syscall_function_in(&path, "openat").unwrap(),
            "__se_sys_openat"
        );
        assert_eq!(syscall_function_in(&path, "old").unwrap(), "SyS_old");
        for absent in ["mod", "data", "close"] {
            let err = syscall_function_in(&path, absent).unwrap_err();
            assert!(err.is(Errno::ENOENT), "{err}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
