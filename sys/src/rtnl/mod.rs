//! rtnetlink: links, queueing disciplines, filters, XDP.
//!
//! Everything acts on the network namespace the socket was made in. Nothing is
//! undone on drop: what is attached here stays until it is detached or its
//! interface goes away.

mod link;
mod tc;

use std::os::fd::BorrowedFd;

use crate::Result;
pub use crate::abi::netlink::{ClsBpfFlags, TcParent, XdpFlags, XdpMode};
use crate::errno::{Errno, SysError};
use crate::netlink::Netlink;
use crate::netns;

pub use link::{Link, XdpState, parse_link};
pub use tc::{ALL_PROTOCOLS, Filter, FilterId, FilterSpec, Qdisc, parse_filter, parse_qdisc};

/// An rtnetlink socket.
#[derive(Debug)]
pub struct Rtnl(pub(crate) Netlink);

impl Rtnl {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn open() -> Result<Rtnl> {
        Netlink::route().map(Rtnl)
    }

    /// Opens one in the network namespace `ns`.
    ///
    /// # Errors
    /// As [`netns::with_netns`].
    pub fn open_in(ns: BorrowedFd<'_>) -> Result<Rtnl> {
        netns::route_in(ns).map(Rtnl)
    }

    /// As [`Netlink::is_torn`].
    pub fn is_torn(&self) -> bool {
        self.0.is_torn()
    }
}

pub(crate) fn no_answer(op: &'static str) -> SysError {
    SysError::new(op, Errno::EPROTO).with_detail("the kernel did not describe the object")
}

/// The kernel's type for an interface index; 0 is none.
pub(crate) fn kernel_index(op: &'static str, index: u32) -> Result<i32> {
    match i32::try_from(index) {
        Ok(index) if index > 0 => Ok(index),
        _ => Err(SysError::new(op, Errno::ENODEV).with_detail("no interface has this index")),
    }
}

#[cfg(test)]
mod tests;
