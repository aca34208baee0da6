//! CPUs: which exist, which are online, which this thread may use.

use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

use super::read::{file_error, read_opened};
use super::{decimal, file_system, malformed, read_small};
use crate::Result;
use crate::errno::{Errno, SysError};

/// Highest CPU id accepted in a list; the kernel's own limit is 8192 CPUs.
const MAX_CPU_ID: u64 = 0xffff;

const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// Number of CPUs that may ever come online, which is how many values an
/// element of a per-CPU map has. Read once.
///
/// The kernel writes so many values into a caller's buffer, so the number is
/// taken from sysfs alone, or from what a container has in its place: a file
/// of lxcfs, which is FUSE and hands the kernel's own list through. Whoever may
/// mount any other FUSE there could cause harm in simpler ways.
///
/// # Errors
/// Those of [`read_small`]; `EBADMSG` if the text is not a CPU list, `EINVAL`
/// if the file is on another file system.
pub fn possible_cpus() -> Result<usize> {
    static COUNT: OnceLock<usize> = OnceLock::new();
    if let Some(&count) = COUNT.get() {
        return Ok(count);
    }
    let count = read_possible()?;
    Ok(*COUNT.get_or_init(|| count))
}

fn read_possible() -> Result<usize> {
    let path = Path::new(POSSIBLE);
    let file = File::open(path).map_err(|err| file_error("open", &err, path))?;
    #[allow(
        clippy::unnecessary_cast,
        reason = "the type differs between C libraries"
    )]
    let trusted = [libc::SYSFS_MAGIC as i64, libc::FUSE_SUPER_MAGIC as i64];
    if !trusted.contains(&file_system(&file)?) {
        return Err(SysError::new("open", Errno::EINVAL)
            .with_path(path)
            .with_detail("not on sysfs"));
    }
    let mut buf = [0; 4096];
    let count = count_cpus(read_opened(file, path, &mut buf, &|_| false)?);
    count.ok_or_else(|| malformed(path))
}

/// How many CPUs a list names; `None` if it names none or is none.
fn count_cpus(text: &[u8]) -> Option<usize> {
    let mut count = 0;
    for_each_cpu_range(text, &mut |first, last| {
        count += (last - first) as usize + 1;
    })?;
    (count != 0).then_some(count)
}

/// Ids of the CPUs that are online now, ascending. CPUs come and go: opening
/// a perf event on one of these can still fail with `ENODEV`.
///
/// # Errors
/// Those of [`read_small`]; `EBADMSG` if the text is not a CPU list.
pub fn online_cpus() -> Result<Vec<u32>> {
    let path = Path::new("/sys/devices/system/cpu/online");
    parse_cpu_list(read_small(path, &mut [0; 4096])?).ok_or_else(|| malformed(path))
}

/// Parses a list such as `0-3,8,10-11` as the kernel prints it: ascending,
/// without overlaps, perhaps empty, perhaps with a final newline.
///
/// `None` for anything else and for ids above 65535.
pub fn parse_cpu_list(text: &[u8]) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for_each_cpu_range(text, &mut |first, last| cpus.extend(first..=last))?;
    Some(cpus)
}

/// Calls `visit` with the first and last id of each range of a CPU list.
/// `None` if the text is none; the ranges in front were visited then.
fn for_each_cpu_range(text: &[u8], visit: &mut dyn FnMut(u32, u32)) -> Option<()> {
    let text = text.trim_ascii_end();
    if text.is_empty() {
        return Some(());
    }
    let mut next = 0;
    for range in text.split(|&b| b == b',') {
        let (first, rest) = decimal(range)?;
        let last = match rest {
            [] => first,
            [b'-', rest @ ..] => match decimal(rest)? {
                (last, []) => last,
                _ => return None,
            },
            _ => return None,
        };
        if first < next || last < first || last > MAX_CPU_ID {
            return None;
        }
        visit(first as u32, last as u32);
        next = last + 1;
    }
    Some(())
}

/// CPUs that the calling thread may run on; 1 if the kernel does not say.
pub fn usable_cpus() -> usize {
    // Room for the CPUs of any kernel there is (`CONFIG_NR_CPUS` ends at 8192).
    let mut mask = [0_u64; 128];
    let size = size_of_val(&mask);
    // SAFETY: the kernel writes at most `size` bytes, those of `mask`.
    let bytes = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size, &raw mut mask) };
    if bytes <= 0 {
        return 1;
    }
    mask.iter()
        .map(|word| word.count_ones() as usize)
        .sum::<usize>()
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::c_path;
    use crate::testing::with_mounted;

    #[test]
    fn cpu_lists() {
        let ok = |text: &[u8], cpus: &[u32]| {
            assert_eq!(parse_cpu_list(text).as_deref(), Some(cpus), "{text:?}");
            let count = Some(cpus.len()).filter(|&n| n != 0);
            assert_eq!(count_cpus(text), count, "{text:?}");
        };
        ok(b"0\n", &[0]);
        ok(b"0-3,8,10-11\n", &[0, 1, 2, 3, 8, 10, 11]);
        ok(b"2,65535", &[2, 65535]);
        ok(b"\n", &[]);
        ok(b"", &[]);
        for bad in [
            "a",
            "0-",
            "-1",
            "0,",
            ",0",
            "3-1",
            "0-1-2",
            "0 1",
            "1,0",
            "0-3,3",
            "0-65536",
            "0-4294967295",
            "99999999999999999999999",
            "0x3",
            "1\n2",
        ] {
            assert_eq!(parse_cpu_list(bad.as_bytes()), None, "{bad:?}");
            assert_eq!(count_cpus(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn the_number_of_cpus_comes_from_sysfs() {
        with_mounted("tmpfs", |dir| {
            let file = dir.join("possible");
            std::fs::write(&file, "0\n").unwrap();
            let from = c_path("mount", &file).unwrap();
            let to = c_path("mount", Path::new(POSSIBLE)).unwrap();
            let (none, bind) = (std::ptr::null(), libc::MS_BIND);
            // SAFETY: both paths are terminated; the mount is this thread's.
            let ret = unsafe { libc::mount(from.as_ptr(), to.as_ptr(), none, bind, none.cast()) };
            assert_eq!(ret, 0, "{}", Errno::last());
            let err = read_possible().unwrap_err();
            assert!(err.is(Errno::EINVAL), "{err}");
        });
    }

    #[test]
    fn cpus_of_this_machine() {
        let online = online_cpus().unwrap();
        assert!(!online.is_empty());
        let possible = possible_cpus().unwrap();
        assert!(online.len() <= possible);
        assert_eq!(possible_cpus(), Ok(possible));
    }
}
