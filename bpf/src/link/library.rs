//! Which file is meant: libraries by their names, as the dynamic linker finds
//! them, and paths as another process sees them.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use ebpf_manager_elf::library_cache::{CachedLibrary, for_each_library};
use ebpf_manager_sys::{Errno, SysError, proc};

/// Directories that dynamic linkers search without being told, on common
/// distributions.
static LIBRARY_DIRS: &[&str] = &[
    #[cfg(target_arch = "x86_64")]
    "/lib/x86_64-linux-gnu",
    #[cfg(target_arch = "x86_64")]
    "/usr/lib/x86_64-linux-gnu",
    #[cfg(target_arch = "aarch64")]
    "/lib/aarch64-linux-gnu",
    #[cfg(target_arch = "aarch64")]
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/usr/lib",
];

/// The dynamic linker's list of libraries.
const CACHE: &str = "/etc/ld.so.cache";

/// Longest cache that is read, in bytes; those of large systems have a tenth.
const MAX_CACHE: u64 = 4 << 20;

/// A link to a link to a link: the kernel follows as many.
const MAX_LINKS: usize = 40;

/// The file that `path` means. A bare name is a library: one that process
/// `pid` has mapped, or what the dynamic linker would take: one below
/// `$LD_LIBRARY_PATH`, of its cache, below the usual directories. With `pid`,
/// all this is that process's, and below its root.
pub(super) fn user_file(path: &Path, pid: Option<u32>) -> Result<PathBuf, SysError> {
    let root = pid.map(|pid| PathBuf::from(format!("/proc/{pid}/root")));
    let rooted = |path: &Path| match &root {
        Some(root) => below(root, path),
        None => path.to_owned(),
    };
    if path.components().count() > 1 {
        // A relative path is ours to resolve, not the process's.
        return Ok(if path.is_absolute() && !path.starts_with("/proc") {
            rooted(path)
        } else {
            path.to_owned()
        });
    }
    if let Some(mapped) = pid.and_then(|pid| mapped_file(pid, path)) {
        return Ok(rooted(&mapped));
    }
    let dirs = match pid {
        Some(pid) => environment(pid, b"LD_LIBRARY_PATH="),
        None => std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default(),
    };
    library(path, &dirs, &rooted).ok_or_else(|| {
        SysError::new("library search", Errno::ENOENT)
            .with_path(path)
            .with_detail("no library of this name; give a path")
    })
}

/// What the dynamic linker takes for a name: a file below one of `dirs`, which
/// have colons between them, of its cache, or below the usual directories.
fn library(name: &Path, dirs: &OsStr, rooted: &dyn Fn(&Path) -> PathBuf) -> Option<PathBuf> {
    let there = |candidate: &Path| Some(rooted(candidate)).filter(|file| file.is_file());
    std::env::split_paths(dirs)
        .filter(|dir| dir.is_absolute())
        .find_map(|dir| there(&dir.join(name)))
        .or_else(|| {
            let file = rooted(Path::new(CACHE));
            // Of another root it may be anything: a pipe, or without an end.
            let about = file.metadata().ok()?;
            if !about.is_file() || about.len() > MAX_CACHE {
                return None;
            }
            cached(&std::fs::read(file).ok()?, name, &there)
        })
        .or_else(|| {
            let mut dirs = LIBRARY_DIRS.iter().map(Path::new);
            dirs.find_map(|dir| there(&dir.join(name)))
        })
}

/// What the cache has for this name and this machine: the first, as there are
/// libraries for better processors in front of the plain ones. Those of other
/// architectures only where there is nothing else.
fn cached(bytes: &[u8], name: &Path, there: &dyn Fn(&Path) -> Option<PathBuf>) -> Option<PathBuf> {
    let mut best = None;
    let mut best_rank = 0;
    // What was understood before any damage counts.
    let _ = for_each_library(bytes, name.as_os_str().as_bytes(), &mut |library| {
        let rank = suits(&library);
        if rank > best_rank
            && let Some(file) = there(Path::new(OsStr::from_bytes(library.path)))
        {
            (best, best_rank) = (Some(file), rank);
        }
    });
    best
}

/// How well a library suits this machine: not at all is 0.
fn suits(library: &CachedLibrary<'_>) -> u8 {
    const OWN: u32 = match () {
        () if cfg!(target_arch = "x86_64") => 0x0303,
        () if cfg!(target_arch = "aarch64") => 0x0a03,
        () if cfg!(target_arch = "s390x") => 0x0403,
        () if cfg!(target_arch = "powerpc64") => 0x0503,
        // Anything of glibc's.
        () => 0x0003,
    };
    match library.hardware {
        Some(processor) if !processor_is(processor) => 0,
        _ if library.kind == OWN => 2,
        _ => u8::from(library.kind & 0xff == OWN & 0xff),
    }
}

/// Whether this processor is of a kind that libraries are built for.
fn processor_is(kind: &[u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let second = || has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
        let third = || {
            second()
                && (has!("avx2") && has!("fma") && has!("f16c"))
                && (has!("bmi1") && has!("bmi2") && has!("lzcnt") && has!("movbe"))
        };
        match kind {
            b"x86-64-v2" => second(),
            b"x86-64-v3" => third(),
            b"x86-64-v4" => {
                third()
                    && (has!("avx512f") && has!("avx512bw") && has!("avx512cd"))
                    && (has!("avx512dq") && has!("avx512vl"))
            }
            _ => false,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = kind;
        false
    }
}

/// `path` as a process with this root sees it: links that start from the root
/// start from its root. What does not exist stays as it is.
fn below(root: &Path, path: &Path) -> PathBuf {
    let mut done = root.to_owned();
    let depth = |done: &Path| done.components().count();
    let start = depth(root);
    // What is still to be followed, the next at the end.
    let parts = |path: &Path| -> Vec<PathBuf> {
        let names = path.components().rev().filter_map(|part| match part {
            Component::Normal(name) => Some(PathBuf::from(name)),
            Component::ParentDir => Some(PathBuf::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        });
        names.collect()
    };
    let mut left = parts(path);
    let mut links = 0;
    while let Some(part) = left.pop() {
        if part == Path::new("..") {
            if depth(&done) > start {
                done.pop();
            }
            continue;
        }
        let next = done.join(part);
        match std::fs::read_link(&next) {
            Ok(target) if links < MAX_LINKS => {
                links += 1;
                if target.is_absolute() {
                    root.clone_into(&mut done);
                }
                left.extend(parts(&target));
            }
            _ => done = next,
        }
    }
    done
}

/// The value of a variable that the process was started with.
fn environment(pid: u32, name: &[u8]) -> std::ffi::OsString {
    let all = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let value = all.split(|&b| b == 0).find_map(|v| v.strip_prefix(name));
    OsStr::from_bytes(value.unwrap_or_default()).to_owned()
}

/// A file of this name that the process has mapped.
fn mapped_file(pid: u32, name: &Path) -> Option<PathBuf> {
    let mut found = None;
    let maps = PathBuf::from(format!("/proc/{pid}/maps"));
    proc::for_each_line(&maps, &mut |line| {
        let path = line
            .iter()
            .position(|&b| b == b'/')
            .and_then(|at| std::str::from_utf8(line.get(at..)?).ok())
            .map(Path::new);
        match path {
            Some(path) if path.file_name() == Some(name.as_os_str()) => {
                found = Some(path.to_owned());
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    })
    .ok()?;
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn libraries_are_found_by_name() {
        let own = std::process::id();
        let libc = user_file(Path::new("libc.so.6"), Some(own)).unwrap();
        assert!(libc.starts_with(format!("/proc/{own}/root")), "{libc:?}");
        assert!(libc.is_file());
        assert!(user_file(Path::new("libc.so.6"), None).unwrap().is_file());
        let err = user_file(Path::new("libnowhere.so"), None).unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
        let kept = user_file(Path::new("./a"), Some(own)).unwrap();
        assert_eq!(kept, Path::new("./a"));
    }

    /// A root with a library where only the cache finds it, behind links that
    /// mean something else outside.
    #[test]
    fn links_stay_below_the_root() {
        let root = std::env::temp_dir().join(format!("ebpf-manager-{}-root", std::process::id()));
        std::fs::create_dir_all(root.join("opt/real")).unwrap();
        std::fs::write(root.join("opt/real/libx.so.2.0"), "").unwrap();
        symlink("/opt/real", root.join("opt/current")).unwrap();
        symlink("/../../opt/current/libx.so.2.0", root.join("opt/libx.so.2")).unwrap();
        symlink("libx.so.2", root.join("opt/libx.so")).unwrap();
        symlink("/opt/loop", root.join("opt/loop")).unwrap();
        let real = root.join("opt/real/libx.so.2.0");
        for path in ["/opt/libx.so.2", "/opt/libx.so", "/opt/../opt/./libx.so"] {
            assert_eq!(below(&root, Path::new(path)), real, "{path}");
        }
        let loops = below(&root, Path::new("/opt/loop"));
        assert_eq!(loops, root.join("opt/loop"));
        let absent = below(&root, Path::new("/no/such/file"));
        assert_eq!(absent, root.join("no/such/file"));
        // Three ways to a library, the first one first.
        let search = |dirs: &str| {
            let rooted = |path: &Path| below(&root, path);
            library(Path::new("libx.so.2"), OsStr::new(dirs), &rooted)
        };
        assert_eq!(search("/nowhere"), None);
        assert_eq!(search("/nowhere:/opt"), Some(real.clone()));
        std::fs::create_dir_all(root.join("lib")).unwrap();
        let plain = root.join("lib/libx.so.2");
        std::fs::write(&plain, "").unwrap();
        assert_eq!(search(""), Some(plain.clone()));
        std::fs::create_dir(root.join("etc")).unwrap();
        // Kind, name and path, which stand behind the one entry.
        let entry: [u32; 6] = [0x0003, 72, 82, 0, 0, 0];
        let numbers = [1_u32, 0, 0, 0, 0, 0, 0].into_iter().chain(entry);
        let numbers: Vec<u8> = numbers.flat_map(u32::to_ne_bytes).collect();
        let text = b"libx.so.2\0/opt/libx.so.2\0";
        let cache = [&b"glibc-ld.so.cache1.1"[..], &numbers, text].concat();
        std::fs::write(root.join("etc/ld.so.cache"), cache).unwrap();
        assert_eq!(search(""), Some(real));
        // What has no end is not read: the usual directories are left.
        std::fs::remove_file(root.join("etc/ld.so.cache")).unwrap();
        let endless = std::fs::canonicalize("/dev/zero").unwrap();
        assert!(!endless.metadata().unwrap().is_file());
        let rooted = |path: &Path| {
            if path == Path::new(CACHE) {
                endless.clone()
            } else {
                below(&root, path)
            }
        };
        let found = library(Path::new("libx.so.2"), OsStr::new(""), &rooted);
        assert_eq!(found, Some(plain));
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn the_library_for_this_machine_is_taken() {
        let rank = |kind, hardware| {
            suits(&CachedLibrary {
                name: b"libx.so",
                path: b"/libx.so",
                kind,
                hardware,
            })
        };
        assert_eq!(rank(0x0103, Some(b"no-such-processor")), 0);
        assert_eq!(rank(0x0303, Some(b"")), 0);
        assert_eq!(rank(0x0004, None), 0);
        assert!(rank(0x0103, None) > 0);
        #[cfg(target_arch = "x86_64")]
        assert!(rank(0x0303, None) > rank(0x0003, None));
    }

    /// What the dynamic linker itself says it would take.
    #[test]
    fn the_cache_of_this_machine_is_followed() {
        let Ok(bytes) = std::fs::read(CACHE) else {
            return;
        };
        let there = |path: &Path| Some(path.to_owned());
        if let Some(libc) = cached(&bytes, Path::new("libc.so.6"), &there) {
            let own = mapped_file(std::process::id(), Path::new("libc.so.6")).unwrap();
            let real = |path: &Path| std::fs::canonicalize(path).unwrap();
            assert_eq!(real(&libc), real(&own));
        }
    }
}
