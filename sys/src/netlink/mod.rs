//! Netlink sockets, attributes and extended acknowledgements.
//!
//! A request is one message, built in a `Vec` and sent whole. The kernel
//! answers it while send(2) runs, so a blocking socket never waits for long.
//! Answers are matched by sequence number; what the kernel says beyond an
//! error number becomes the error's detail.

mod answer;
mod attrs;
mod request;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::Result;
use crate::abi::netlink::MessageHeader;
use crate::errno::{Errno, SysError, retry_eintr};
use crate::fd::own;

pub use answer::{Message, Messages};
use answer::{Step, lost, read_datagram};
pub use attrs::{Attr, Attrs};
pub use request::{Nest, Request};

const HEADER_LEN: usize = size_of::<MessageHeader>();

/// How often a listing is repeated that changed under way.
const DUMP_ATTEMPTS: u32 = 8;

/// Room for the answer to a query, to begin with. The kernel fills the
/// datagrams of a listing up to the receiver's buffer, at most 32 KiB.
const QUERY_BYTES: usize = 16 * 1024;

/// Room for a result beside the request it repeats: header, text, policy.
const RESULT_BYTES: usize = 2048;

/// A netlink socket. Requests act on the network namespace it was made in.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    seq: u32,
    buf: Vec<u8>,
    /// An answer was not read to its end. The kernel may still be at it, and
    /// refuses the next listing then.
    torn: bool,
}

impl Netlink {
    /// Opens a NETLINK_ROUTE socket in the calling thread's network namespace.
    ///
    /// Extended acknowledgements (Linux 4.12) and strict checking of get
    /// requests (Linux 4.20) are switched on where they exist; without them
    /// errors carry no text and a listing may contain more than was asked for.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn route() -> Result<Netlink> {
        let netlink = Netlink {
            fd: socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_ROUTE,
            )?,
            seq: 0,
            buf: Vec::new(),
            torn: false,
        };
        netlink.switch_on(libc::NETLINK_EXT_ACK);
        netlink.switch_on(libc::NETLINK_GET_STRICT_CHK);
        Ok(netlink)
    }

    /// Switches an option on where the kernel has it.
    fn switch_on(&self, option: i32) {
        let one = 1_i32;
        let ptr = std::ptr::from_ref(&one).cast();
        let len = size_of::<i32>() as u32;
        let fd = self.fd.as_raw_fd();
        // SAFETY: the kernel reads the four bytes of `one`, which outlives the
        // call. Failure means an older kernel and is fine.
        let _ = unsafe { libc::setsockopt(fd, libc::SOL_NETLINK, option, ptr, len) };
    }

    /// Sends a request that is answered by its result alone.
    ///
    /// # Errors
    /// The kernel's, with its message as the detail; `ENOBUFS` when the answer
    /// was lost and the outcome is not known.
    pub fn call(&mut self, request: Request) -> Result<()> {
        let room = request.buf.len() + RESULT_BYTES;
        self.run(request, room, Size::Bounded).map(drop)
    }

    /// Sends a request and collects the messages that answer it, of a listing
    /// too.
    ///
    /// A listing that changed while it was read is read again.
    ///
    /// # Errors
    /// As [`Netlink::call`]; `EAGAIN` when a listing changed eight times in a
    /// row.
    pub fn query(&mut self, request: Request) -> Result<Messages> {
        self.run(request, QUERY_BYTES, Size::Any)
    }

    fn run(&mut self, mut request: Request, room: usize, size: Size) -> Result<Messages> {
        let op = request.op;
        if self.buf.len() < room {
            self.buf.resize(room, 0);
        }
        for _ in 0..DUMP_ATTEMPTS {
            self.seq = self.seq.wrapping_add(1);
            self.send(op, request.finish(self.seq)?)?;
            let mut out = Vec::new();
            let mut interrupted = false;
            loop {
                self.torn = true;
                let len = self.receive(op, size)?;
                self.torn = false;
                let datagram = self.buf.get(..len).unwrap_or_default();
                match read_datagram(op, datagram, self.seq, &mut out, &mut interrupted)? {
                    Step::More => {}
                    Step::Done => break,
                }
            }
            if !interrupted {
                return Ok(Messages(out));
            }
        }
        Err(SysError::new(op, Errno::EAGAIN).with_detail("the list changed while it was read"))
    }

    /// Whether an answer was not received to its end: further requests may be
    /// refused with `EBUSY`, and another socket is needed.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    fn send(&self, op: &'static str, message: &[u8]) -> Result<()> {
        let fd = self.fd.as_raw_fd();
        let (ptr, len) = (message.as_ptr().cast(), message.len());
        retry_eintr(op, || {
            // SAFETY: the kernel reads `len` bytes of `message`, which
            // outlives the call. Without an address they go to the kernel.
            unsafe { libc::send(fd, ptr, len, 0) as i64 }
        })?;
        Ok(())
    }

    /// Receives the next datagram from the kernel and returns its length.
    fn receive(&mut self, op: &'static str, size: Size) -> Result<usize> {
        loop {
            if size == Size::Any {
                // What does not fit is cut off and gone, so grow first.
                let (len, _) = self.receive_into(op, 0, libc::MSG_PEEK)?;
                if len > self.buf.len() {
                    self.buf.resize(len, 0);
                }
            }
            let (len, from) = self.receive_into(op, self.buf.len(), 0)?;
            if from != 0 {
                // Not the kernel.
                continue;
            }
            if len > self.buf.len() {
                return Err(SysError::new(op, Errno::EMSGSIZE).with_detail("answer cut off"));
            }
            return Ok(len);
        }
    }

    /// One recvfrom(2) of up to `room` bytes: the datagram's whole length and
    /// its sender's port.
    fn receive_into(&mut self, op: &'static str, room: usize, flags: i32) -> Result<(usize, u32)> {
        let fd = self.fd.as_raw_fd();
        let room = room.min(self.buf.len());
        let ptr = self.buf.as_mut_ptr().cast();
        // `struct sockaddr_nl`: family and padding, port, groups.
        let mut from = [0_u32; 3];
        let from_ptr = from.as_mut_ptr().cast();
        let len = retry_eintr(op, || {
            let mut from_len = size_of::<[u32; 3]>() as u32;
            let from_len = std::ptr::from_mut(&mut from_len);
            let flags = flags | libc::MSG_TRUNC;
            // SAFETY: the kernel writes at most `room` bytes into `self.buf`,
            // which has as many, and at most `from_len` into `from`; both are
            // exclusively ours and outlive the call.
            unsafe { libc::recvfrom(fd, ptr, room, flags, from_ptr, from_len) as i64 }
        })
        .map_err(|e| if e.is(Errno::ENOBUFS) { lost(op) } else { e })?;
        Ok((len as usize, from[1]))
    }
}

/// How long an answer can get.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    /// It fits the room made for it.
    Bounded,
    /// Ask before receiving.
    Any,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A new socket in the calling thread's network namespace, with close-on-exec
/// if `kind` asks for it.
pub(crate) fn socket(domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    let raw = retry_eintr("socket", || {
        // SAFETY: socket takes three integers and touches no memory.
        i64::from(unsafe { libc::socket(domain, kind, protocol) })
    })?;
    own("socket", raw)
}

#[cfg(test)]
mod tests;
