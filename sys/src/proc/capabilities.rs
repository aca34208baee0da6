//! Capabilities of the calling thread.

use bitflags::bitflags;

use crate::Result;
use crate::errno::retry_eintr;

bitflags! {
    /// Capabilities of a thread; bits not named here are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Capabilities: u64 {
        /// CAP_NET_ADMIN: attach to interfaces, change queueing disciplines.
        const NET_ADMIN = 1 << 12;
        /// CAP_SYS_ADMIN: everything BPF before Linux 5.8; still needed for
        /// iterating over ids of foreign objects.
        const SYS_ADMIN = 1 << 21;
        /// CAP_SYS_RESOURCE: raise limits such as RLIMIT_MEMLOCK.
        const SYS_RESOURCE = 1 << 24;
        /// CAP_SYSLOG: see kernel addresses with `kptr_restrict` 1.
        const SYSLOG = 1 << 34;
        /// CAP_PERFMON: tracing programs and perf events. Linux 5.8.
        const PERFMON = 1 << 38;
        /// CAP_BPF: maps and programs. Linux 5.8.
        const BPF = 1 << 39;
        // Others exist.
        const _ = !0;
    }
}

/// _LINUX_CAPABILITY_VERSION_3 and pid 0, the calling thread. With it go two
/// times effective, permitted, inheritable: low and high halves.
const HEADER: [u32; 2] = [0x2008_0522, 0];

/// The calling thread's effective capabilities.
///
/// # Errors
/// None that a working system gives; whatever capget(2) returns otherwise.
pub fn effective_capabilities() -> Result<Capabilities> {
    let header = HEADER;
    let mut data = [0_u32; 6];
    let (header, data_ptr) = (header.as_ptr(), data.as_mut_ptr());
    retry_eintr("capget", || {
        // SAFETY: version 3 reads an 8-byte header and writes two structs of
        // three u32 each, which is the size of `data`; both outlive the call.
        unsafe { libc::syscall(libc::SYS_capget, header, data_ptr) }
    })?;
    let bits = u64::from(data[0]) | u64::from(data[3]) << 32;
    Ok(Capabilities::from_bits_retain(bits))
}

/// Gives up all capabilities but these, for good, in the calling thread and
/// what it starts. Other threads of the process keep theirs.
///
/// # Errors
/// `EPERM` if `kept` has one that the thread does not have.
pub fn keep_capabilities(kept: Capabilities) -> Result<()> {
    let header = HEADER;
    let (low, high) = (kept.bits() as u32, (kept.bits() >> 32) as u32);
    let data = [low, low, 0, high, high, 0_u32];
    let (header, data_ptr) = (header.as_ptr(), data.as_ptr());
    retry_eintr("capset", || {
        // SAFETY: version 3 reads an 8-byte header and two structs of three
        // u32 each, which is the size of `data`; both outlive the call.
        unsafe { libc::syscall(libc::SYS_capset, header, data_ptr) }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::path::Path;

    use super::*;
    use crate::proc::for_each_line;

    #[test]
    fn capabilities_match_proc() {
        let mut from_proc = None;
        for_each_line(Path::new("/proc/thread-self/status"), &mut |line| {
            if let Some(hex) = line.strip_prefix(b"CapEff:") {
                let text = str::from_utf8(hex.trim_ascii()).unwrap();
                from_proc = Some(u64::from_str_radix(text, 16).unwrap());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        let caps = effective_capabilities().unwrap();
        assert_eq!(Some(caps.bits()), from_proc);
    }

    #[test]
    fn a_thread_gives_up_capabilities() {
        let before = effective_capabilities().unwrap();
        let kept = before & (Capabilities::BPF | Capabilities::NET_ADMIN);
        std::thread::spawn(move || {
            keep_capabilities(kept).unwrap();
            assert_eq!(effective_capabilities().unwrap(), kept);
            keep_capabilities(Capabilities::empty()).unwrap();
            let err = keep_capabilities(Capabilities::BPF).unwrap_err();
            assert!(err.is(crate::Errno::EPERM), "{err}");
        })
        .join()
        .unwrap();
        assert_eq!(effective_capabilities().unwrap(), before);
    }
}
