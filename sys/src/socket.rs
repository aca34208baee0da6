//! BPF programs as options of a socket.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Result;
use crate::errno::retry_eintr;

/// What a program does for a socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Filter {
    /// Decides what it receives: `SO_ATTACH_BPF`. Linux 3.19.
    Packets,
    /// Chooses a socket of its reuseport group: `SO_ATTACH_REUSEPORT_EBPF`.
    /// Linux 4.5; detached by `SO_DETACH_REUSEPORT_BPF`, Linux 5.3.
    ReusePort,
}

/// Attaches `program`, in the place of another if there is one.
///
/// # Errors
/// `ENOTSOCK`; `EPERM` if the filter is locked; `EINVAL` for a program of the
/// wrong type.
pub fn attach(socket: BorrowedFd<'_>, kind: Filter, program: BorrowedFd<'_>) -> Result<()> {
    let (op, option) = match kind {
        Filter::Packets => ("setsockopt(SO_ATTACH_BPF)", libc::SO_ATTACH_BPF),
        Filter::ReusePort => (
            "setsockopt(SO_ATTACH_REUSEPORT_EBPF)",
            libc::SO_ATTACH_REUSEPORT_EBPF,
        ),
    };
    set(op, socket, option, program.as_raw_fd())
}

/// Detaches whichever program is attached.
///
/// # Errors
/// `ENOENT` if there is none; `EPERM` if the filter is locked; `ENOPROTOOPT`
/// where the kernel cannot detach it.
pub fn detach(socket: BorrowedFd<'_>, kind: Filter) -> Result<()> {
    let (op, option) = match kind {
        Filter::Packets => ("setsockopt(SO_DETACH_BPF)", libc::SO_DETACH_BPF),
        Filter::ReusePort => (
            "setsockopt(SO_DETACH_REUSEPORT_BPF)",
            libc::SO_DETACH_REUSEPORT_BPF,
        ),
    };
    set(op, socket, option, 0)
}

/// Lets other sockets of the same user be bound to the same address
/// (`SO_REUSEPORT`), which makes a reuseport group. Only before it is bound.
/// Linux 3.9.
///
/// # Errors
/// `ENOTSOCK`.
pub fn share_port(socket: BorrowedFd<'_>) -> Result<()> {
    set("setsockopt(SO_REUSEPORT)", socket, libc::SO_REUSEPORT, 1)
}

fn set(op: &'static str, socket: BorrowedFd<'_>, option: i32, value: i32) -> Result<()> {
    let fd = socket.as_raw_fd();
    let ptr = std::ptr::from_ref(&value).cast();
    let len = size_of::<i32>() as u32;
    retry_eintr(op, || {
        // SAFETY: the kernel reads the four bytes of `value`, which outlives
        // the call.
        i64::from(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, ptr, len) })
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Errno;
    use crate::abi::bpf::ProgramType;
    use crate::abi::insn::Insn;
    use crate::bpf::{ProgLoad, prog_load};
    use std::io::Write;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    #[test]
    fn refusals_come_back() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for kind in [Filter::Packets, Filter::ReusePort] {
            let err = attach(socket.as_fd(), kind, socket.as_fd()).unwrap_err();
            assert!(err.is(Errno::EINVAL), "{err}");
        }
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        let err = detach(file.as_fd(), Filter::Packets).unwrap_err();
        assert!(err.is(Errno::ENOTSOCK), "{err}");
    }

    #[test]
    fn a_filter_drops_until_detached() {
        let insns = [Insn::mov64_imm(0, 0), Insn::exit()];
        let load = ProgLoad {
            prog_type: ProgramType::SOCKET_FILTER,
            insns: &insns,
            license: c"GPL",
            ..ProgLoad::default()
        };
        let program = match prog_load(&load, None) {
            Ok(program) => program,
            Err(e) => {
                let _ = writeln!(
                    std::io::stderr(),
                    "skipped: a_filter_drops_until_detached: {e}"
                );
                return;
            }
        };
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let arrives = || {
            socket.send_to(b"x", address).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            socket.recv(&mut [0]).is_ok()
        };
        assert!(arrives());
        attach(socket.as_fd(), Filter::Packets, program.as_fd()).unwrap();
        assert!(!arrives());
        detach(socket.as_fd(), Filter::Packets).unwrap();
        assert!(arrives());
        let err = detach(socket.as_fd(), Filter::Packets).unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
    }
}
