//! What the kernel announces about devices: here, CPUs that come and go.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use crate::Result;
use crate::errno::{Errno, SysError, retry_eintr};
use crate::fd::own;
use crate::proc::parse_cpu_list;

/// A CPU that came or went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuChange {
    /// The CPU.
    pub cpu: u32,
    /// It came online; otherwise it went.
    pub online: bool,
}

/// What became of the queue of announcements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuNews {
    /// Nothing is waiting.
    None,
    /// One change.
    Change(CpuChange),
    /// The queue overflowed: look for yourself which CPUs are online.
    Missed,
}

/// A socket that receives the kernel's announcements. Readable when one is
/// waiting, most of which concern no CPU.
///
/// It must be opened in a network namespace of the initial user namespace to
/// receive anything.
#[derive(Debug)]
pub struct CpuEvents {
    fd: OwnedFd,
}

impl CpuEvents {
    /// Listens from now on. Needs no privilege.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` from a kernel without announcements; `EMFILE`.
    pub fn open() -> Result<CpuEvents> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let raw = retry_eintr("socket(uevent)", || {
            let protocol = libc::NETLINK_KOBJECT_UEVENT;
            // SAFETY: takes three numbers and touches no memory.
            i64::from(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })
        })?;
        let fd = own("socket(uevent)", raw)?;
        let mut address = no_address();
        // The kernel's group; the other one is the device manager's.
        address.nl_groups = 1;
        let len = size_of_val(&address) as libc::socklen_t;
        let address = ptr::from_ref(&address).cast();
        retry_eintr("bind(uevent)", || {
            // SAFETY: the kernel reads `len` bytes of `address`, which lives.
            i64::from(unsafe { libc::bind(fd.as_raw_fd(), address, len) })
        })?;
        Ok(CpuEvents { fd })
    }

    /// Takes the next change of a CPU out of the queue, and everything else
    /// in front of it. Never waits.
    ///
    /// # Errors
    /// None is expected.
    pub fn take(&self) -> Result<CpuNews> {
        loop {
            // What is cut off is of no interest.
            let mut buffer = [0_u8; 128];
            let mut from = no_address();
            let mut len = size_of_val(&from) as libc::socklen_t;
            let (to, room) = (buffer.as_mut_ptr().cast(), buffer.len());
            let at = ptr::from_mut(&mut from).cast();
            // SAFETY: the kernel writes at most `room` bytes to `to` and at
            // most `len` to `at`, which all live.
            let received =
                unsafe { libc::recvfrom(self.fd.as_raw_fd(), to, room, 0, at, &raw mut len) };
            let Ok(received) = usize::try_from(received) else {
                // Nothing is the usual answer: not worth an error's memory.
                match Errno::last() {
                    Errno::EAGAIN => return Ok(CpuNews::None),
                    Errno::ENOBUFS => return Ok(CpuNews::Missed),
                    Errno::EINTR => continue,
                    errno => return Err(SysError::new("recvfrom(uevent)", errno)),
                }
            };
            // Anybody may send to the group's members; only this is the kernel.
            if from.nl_pid == 0
                && let Some(change) = parse(buffer.get(..received).unwrap_or_default())
            {
                return Ok(CpuNews::Change(change));
            }
        }
    }
}

impl AsFd for CpuEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn no_address() -> libc::sockaddr_nl {
    // SAFETY: a structure of integers, for which zero is a value.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address
}

/// `ACTION@PATH`, then a zero and more.
fn parse(message: &[u8]) -> Option<CpuChange> {
    let header = message.split(|&b| b == 0).next()?;
    let (online, path) = if let Some(path) = header.strip_prefix(b"online@") {
        (true, path)
    } else {
        (false, header.strip_prefix(b"offline@")?)
    };
    let cpu = path.strip_prefix(b"/devices/system/cpu/cpu")?;
    let [cpu] = parse_cpu_list(cpu)?[..] else {
        return None;
    };
    Some(CpuChange { cpu, online })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cpus_are_heard_of() {
        let change = |cpu, online| Some(CpuChange { cpu, online });
        let on = b"online@/devices/system/cpu/cpu12\0ACTION=online\0";
        assert_eq!(parse(on), change(12, true));
        assert_eq!(parse(b"offline@/devices/system/cpu/cpu0"), change(0, false));
        for other in [
            &b""[..],
            b"online@/devices/system/cpu/cpu",
            b"online@/devices/system/cpu/cpu1x",
            b"online@/devices/system/cpu/cpu1-2",
            b"online@/devices/system/memory/memory1",
            b"add@/devices/system/cpu/cpu1",
        ] {
            assert_eq!(parse(other), None);
        }
    }

    #[test]
    fn nothing_waits_at_first() {
        let events = CpuEvents::open().unwrap();
        // Other devices may be announced meanwhile.
        assert_eq!(events.take(), Ok(CpuNews::None));
    }
}
