//! Answers: the messages of a datagram, the result, the kernel's explanation.

use std::fmt::Write as _;

use super::{Attrs, HEADER_LEN};
use crate::Result;
use crate::abi::netlink::{ALIGN, MessageHeader, ext_ack, flag, message};
use crate::abi::pod::{bytes_of, from_bytes};
use crate::errno::{Errno, SysError};

/// One received message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Header.
    pub header: MessageHeader,
    /// What follows the header, without padding.
    pub payload: &'a [u8],
}

/// Messages in a row. Iteration ends at the first one whose length does not
/// fit the bytes there are.
#[derive(Clone, Debug)]
pub(super) struct MessageIter<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for MessageIter<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: MessageHeader = from_bytes(self.0.get(..HEADER_LEN)?)?;
        let len = usize::try_from(header.len).ok()?;
        let payload = self.0.get(HEADER_LEN..len)?;
        self.0 = self
            .0
            .get(len.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        Some(Message { header, payload })
    }
}

/// The messages that answer a request, without the result itself.
#[derive(Debug, Default)]
pub struct Messages(pub(super) Vec<u8>);

impl Messages {
    /// The messages, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        MessageIter(&self.0)
    }
}

/// What is known after a datagram has been read.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// The result is still to come.
    More,
    /// The request succeeded.
    Done,
}

/// Flags of a part of a listing that changed under way.
const INCONSISTENT: u16 = flag::MULTI | flag::DUMP_INTR;

/// Reads one datagram: appends the messages that answer request `seq` to
/// `out`, turns an error into `Err`, and notes an inconsistent listing.
pub(super) fn read_datagram(
    op: &'static str,
    datagram: &[u8],
    seq: u32,
    out: &mut Vec<u8>,
    interrupted: &mut bool,
) -> Result<Step> {
    let mut messages = MessageIter(datagram);
    for Message { header, payload } in messages.by_ref() {
        if header.seq != seq {
            // Left over from a request that was given up.
            continue;
        }
        *interrupted |= header.flags & INCONSISTENT == INCONSISTENT;
        match header.kind {
            message::ERROR | message::DONE => {
                return match result_of(op, &header, payload) {
                    Some(err) => Err(err),
                    None => Ok(Step::Done),
                };
            }
            message::OVERRUN => return Err(lost(op)),
            kind if kind < message::MIN_TYPE => {}
            _ => {
                out.extend_from_slice(bytes_of(&header));
                out.extend_from_slice(payload);
                out.resize(out.len().next_multiple_of(ALIGN), 0);
            }
        }
    }
    if messages.0.is_empty() {
        Ok(Step::More)
    } else {
        Err(SysError::new(op, Errno::EBADMSG).with_detail("malformed netlink message"))
    }
}

/// The error a result message carries; `None` if it reports success.
fn result_of(op: &'static str, header: &MessageHeader, payload: &[u8]) -> Option<SysError> {
    let Some((code, rest)) = payload.split_at_checked(4) else {
        // The end of a listing need not carry a number.
        return (header.kind == message::ERROR)
            .then(|| SysError::new(op, Errno::EBADMSG).with_detail("malformed netlink result"));
    };
    let code = from_bytes::<i32>(code).unwrap_or(0);
    if code >= 0 {
        return None;
    }
    let err = SysError::new(op, Errno::from_raw(code.saturating_neg()));
    if header.flags & flag::ACK_TLVS == 0 {
        return Some(err);
    }
    let skip = if header.kind == message::DONE {
        0
    } else if header.flags & flag::CAPPED != 0 {
        HEADER_LEN
    } else {
        // The whole request comes first; its header says how long it is.
        let len = rest.get(..4).and_then(from_bytes::<u32>).unwrap_or(0);
        (len as usize).next_multiple_of(ALIGN)
    };
    let text = explain(&Attrs::new(rest.get(skip..).unwrap_or_default()));
    Some(if text.is_empty() {
        err
    } else {
        err.with_detail(text)
    })
}

/// The kernel's message and what it says about an attribute, as one text.
fn explain(attrs: &Attrs<'_>) -> String {
    let mut text = attrs
        .get(ext_ack::MSG)
        .map_or_else(String::new, |a| a.text());
    let mut add = |what: &str, number: Option<u32>| {
        if let Some(number) = number {
            let blank = if text.is_empty() { "" } else { " " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{blank}({what} {number})");
        }
    };
    let number = |kind| attrs.get(kind).and_then(|attr| attr.u32());
    add("attribute at byte", number(ext_ack::OFFS));
    add("missing attribute", number(ext_ack::MISS_TYPE));
    text
}

pub(super) fn lost(op: &'static str) -> SysError {
    SysError::new(op, Errno::ENOBUFS).with_detail("the kernel lost its answer; outcome unknown")
}
