//! A mount namespace of the calling thread's own.

use std::path::Path;
use std::ptr;

use crate::Result;
use crate::errno::retry_eintr;
use crate::proc::mount_fs;

/// Mounts a file system where only the calling thread, and the threads and
/// processes it starts later, see it. Nothing of it is left when they are
/// gone, and nobody else notices.
///
/// Call it before starting threads: those that run already keep their view.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN; `ENODEV` if the kernel lacks the file
/// system; `ENOENT` if `target` does not exist.
pub fn mount_privately(fstype: &str, target: &Path) -> Result<()> {
    retry_eintr("unshare(CLONE_NEWNS)", || {
        // SAFETY: takes a number and touches no memory.
        i64::from(unsafe { libc::unshare(libc::CLONE_NEWNS) })
    })?;
    // Mounts are passed on to the namespace they came from unless told
    // otherwise.
    let root = c"/";
    retry_eintr("mount(MS_PRIVATE)", || {
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: the target is a terminated string; the other addresses are
        // null, which a change of propagation ignores.
        i64::from(unsafe {
            libc::mount(ptr::null(), root.as_ptr(), ptr::null(), flags, ptr::null())
        })
    })?;
    mount_fs(fstype, target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::mounts_of;
    use std::io::Write;

    #[test]
    fn only_the_thread_sees_it() {
        let dir = std::env::temp_dir().join(format!("ebpf_manager_mntns_{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let target = dir.clone();
        let inside = std::thread::spawn(move || {
            mount_privately("tmpfs", &target).map(|()| {
                let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
                mounts.contains(target.to_str().unwrap())
            })
        })
        .join()
        .unwrap();
        match inside {
            Err(err) if err.errno().is_permission() => {
                let _ = writeln!(std::io::stderr(), "skipped: only_the_thread_sees_it: {err}");
            }
            result => assert!(result.unwrap()),
        }
        assert!(!mounts_of("tmpfs").unwrap().contains(&dir));
        std::fs::remove_dir(&dir).unwrap();
    }
}
