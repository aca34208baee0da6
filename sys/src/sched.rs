//! Where a thread runs.

use crate::Result;
use crate::errno::{Errno, SysError, retry_eintr};

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// `EINVAL` if the CPU is not online or not allowed, or above 1023.
pub fn stay_on(cpu: u32) -> Result<()> {
    const OP: &str = "sched_setaffinity";
    let mut set = [0_u64; 16];
    match set.get_mut(cpu as usize / 64) {
        Some(word) => *word = 1 << (cpu % 64),
        None => return Err(SysError::new(OP, Errno::EINVAL)),
    }
    let (ptr, len) = (set.as_ptr(), size_of_val(&set));
    retry_eintr(OP, || {
        // SAFETY: the kernel reads the `len` bytes of `set`, which lives.
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, len, ptr) }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_kept_or_refused() {
        std::thread::spawn(|| {
            let online = crate::proc::online_cpus().unwrap();
            assert_eq!(stay_on(online[0]), Ok(()));
            assert!(stay_on(1023).unwrap_err().is(Errno::EINVAL));
            assert!(stay_on(1024).unwrap_err().is(Errno::EINVAL));
        })
        .join()
        .unwrap();
    }
}
