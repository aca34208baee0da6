//! Requests: one message with its attributes, laid out for the kernel.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::attrs::ATTR_HEADER_LEN;
use crate::Result;
use crate::abi::netlink::{ALIGN, MessageHeader, NLA_F_NESTED, flag};
use crate::abi::pod::{Pod, bytes_of};
use crate::errno::{Errno, SysError};

/// A request under construction: header, fixed part, attributes.
#[derive(Debug)]
pub struct Request {
    pub(super) op: &'static str,
    pub(super) buf: Vec<u8>,
    /// Why it must not be sent.
    pub(super) refused: Option<&'static str>,
}

/// Open nest of a [`Request`], to be given to [`Request::end`].
#[derive(Debug)]
#[must_use = "a nest that is not ended has no length"]
pub struct Nest(usize);

impl Request {
    /// Starts a message of type `kind` for the operation `op`, which errors
    /// name. [`flag::REQUEST`] and [`flag::ACK`] are added to `flags`.
    pub fn new<T: Pod>(op: &'static str, kind: u16, flags: u16, fixed: &T) -> Request {
        let header = MessageHeader {
            kind,
            flags: flags | flag::REQUEST | flag::ACK,
            ..MessageHeader::default()
        };
        let mut request = Request {
            op,
            buf: Vec::with_capacity(256),
            refused: None,
        };
        request.raw(bytes_of(&header));
        request.raw(bytes_of(fixed));
        request
    }

    /// Appends a fixed part, such as the one inside the other end of a veth.
    pub fn fixed<T: Pod>(&mut self, value: &T) {
        self.raw(bytes_of(value));
    }

    /// Appends bytes that are no attribute, padded.
    fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.buf.resize(self.buf.len().next_multiple_of(ALIGN), 0);
    }

    /// Appends an attribute. Above 65531 bytes the request is refused when
    /// it is sent.
    pub fn attr(&mut self, kind: u16, data: &[u8]) {
        let len = self.length(data.len() + ATTR_HEADER_LEN);
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.raw(data);
    }

    /// Appends an attribute of one `u32`.
    pub fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Appends the number of a descriptor, which must stay open until the
    /// request has been sent.
    pub fn attr_fd(&mut self, kind: u16, fd: BorrowedFd<'_>) {
        self.attr(kind, &fd.as_raw_fd().to_ne_bytes());
    }

    /// Appends a text with the terminating zero the kernel expects. With a
    /// zero inside, the request is refused when it is sent.
    pub fn attr_str(&mut self, kind: u16, text: &str) {
        if text.contains('\0') {
            self.refused = Some("text with a zero byte inside");
        }
        let mut data = Vec::with_capacity(text.len() + 1);
        data.extend_from_slice(text.as_bytes());
        data.push(0);
        self.attr(kind, &data);
    }

    /// Opens an attribute that contains attributes.
    pub fn nest(&mut self, kind: u16) -> Nest {
        let at = self.buf.len();
        self.attr(kind | NLA_F_NESTED, &[]);
        Nest(at)
    }

    /// Closes a nest: everything appended since it was opened is inside.
    #[expect(clippy::needless_pass_by_value, reason = "a nest is closed once")]
    pub fn end(&mut self, nest: Nest) {
        let Nest(at) = nest;
        let len = self.length(self.buf.len().saturating_sub(at));
        if let Some(to) = self.buf.get_mut(at..at + 2) {
            to.copy_from_slice(&len.to_ne_bytes());
        }
    }

    /// What follows the header.
    #[cfg(test)]
    pub(crate) fn payload(&self) -> &[u8] {
        self.buf.get(super::HEADER_LEN..).unwrap_or_default()
    }

    fn length(&mut self, len: usize) -> u16 {
        u16::try_from(len).unwrap_or_else(|_| {
            self.refused = Some("attribute above 65535 bytes");
            0
        })
    }

    /// The message with its length and sequence number, or why not.
    pub(super) fn finish(&mut self, seq: u32) -> Result<&[u8]> {
        if let Some(why) = self.refused {
            return Err(SysError::new(self.op, Errno::EINVAL).with_detail(why));
        }
        let len = self.buf.len() as u32;
        for (at, value) in [(0, len), (8, seq)] {
            if let Some(to) = self.buf.get_mut(at..at + 4) {
                to.copy_from_slice(&value.to_ne_bytes());
            }
        }
        Ok(&self.buf)
    }
}
