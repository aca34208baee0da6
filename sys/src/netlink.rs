//! Netlink sockets, attributes and extended acknowledgements.
//!
//! A request is one message, built in a `Vec` and sent whole. The kernel
//! answers it while send(2) runs, so a blocking socket never waits for long.
//! Answers are matched by sequence number; what the kernel says beyond an
//! error number becomes the error's detail.

use std::fmt::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::Result;
use crate::abi::netlink::{
    ALIGN, MessageHeader, NLA_F_NESTED, NLA_TYPE_MASK, ext_ack, flag, message,
};
use crate::abi::pod::{Pod, bytes_of, from_bytes};
use crate::errno::{Errno, SysError, retry_eintr};
use crate::fd::own;

const HEADER_LEN: usize = size_of::<MessageHeader>();
const ATTR_HEADER_LEN: usize = 4;

/// How often a listing is repeated that changed under way.
const DUMP_ATTEMPTS: u32 = 8;

/// Room for the answer to a query, to begin with. The kernel fills the
/// datagrams of a listing up to the receiver's buffer, at most 32 KiB.
const QUERY_BYTES: usize = 16 * 1024;

/// Room for a result beside the request it repeats: header, text, policy.
const RESULT_BYTES: usize = 2048;

// ---------------------------------------------------------------- request

/// A request under construction: header, fixed part, attributes.
#[derive(Debug)]
pub struct Request {
    op: &'static str,
    buf: Vec<u8>,
    /// Why it must not be sent.
    refused: Option<&'static str>,
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
        self.buf.get(HEADER_LEN..).unwrap_or_default()
    }

    fn length(&mut self, len: usize) -> u16 {
        u16::try_from(len).unwrap_or_else(|_| {
            self.refused = Some("attribute above 65535 bytes");
            0
        })
    }

    /// The message with its length and sequence number, or why not.
    fn finish(&mut self, seq: u32) -> Result<&[u8]> {
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

// ----------------------------------------------------------------- answer

/// Attributes in a row. Iteration ends at the first one whose length does not
/// fit the bytes there are.
#[derive(Clone, Debug, Default)]
pub struct Attrs<'a>(&'a [u8]);

/// One attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr<'a> {
    /// Type, without the flag bits.
    pub kind: u16,
    /// Content.
    pub data: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// The attributes that start at the first of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Attrs<'a> {
        Attrs(bytes)
    }

    /// The attributes behind a message's fixed part of type `T`.
    pub fn after<T: Pod>(payload: &'a [u8]) -> Option<(T, Attrs<'a>)> {
        let (fixed, rest) = payload.split_at_checked(size_of::<T>())?;
        let pad = size_of::<T>().next_multiple_of(ALIGN) - size_of::<T>();
        let rest = rest.get(pad..).unwrap_or_default();
        Some((from_bytes(fixed)?, Attrs(rest)))
    }

    /// The first attribute of that type.
    pub fn get(&self, kind: u16) -> Option<Attr<'a>> {
        self.clone().find(|attr| attr.kind == kind)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let [l0, l1, k0, k1, ..] = *self.0 else {
            return None;
        };
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(data) = self.0.get(ATTR_HEADER_LEN..len) else {
            self.0 = &[];
            return None;
        };
        self.0 = self
            .0
            .get(len.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        Some(Attr {
            kind: u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK,
            data,
        })
    }
}

impl<'a> Attr<'a> {
    /// Content as a `u8`; `None` if it has another size.
    pub fn u8(&self) -> Option<u8> {
        from_bytes(self.data)
    }

    /// Content as a `u32`; `None` if it has another size.
    pub fn u32(&self) -> Option<u32> {
        from_bytes(self.data)
    }

    /// Content up to the first zero, as text; wrong bytes are replaced.
    pub fn text(&self) -> String {
        let bytes = self.data.split(|&b| b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Content as attributes.
    pub fn nested(&self) -> Attrs<'a> {
        Attrs(self.data)
    }
}

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
struct MessageIter<'a>(&'a [u8]);

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
pub struct Messages(Vec<u8>);

impl Messages {
    /// The messages, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        MessageIter(&self.0)
    }
}

/// What is known after a datagram has been read.
#[derive(PartialEq, Eq, Debug)]
enum Step {
    /// The result is still to come.
    More,
    /// The request succeeded.
    Done,
}

/// Flags of a part of a listing that changed under way.
const INCONSISTENT: u16 = flag::MULTI | flag::DUMP_INTR;

/// Reads one datagram: appends the messages that answer request `seq` to
/// `out`, turns an error into `Err`, and notes an inconsistent listing.
fn read_datagram(
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

fn lost(op: &'static str) -> SysError {
    SysError::new(op, Errno::ENOBUFS).with_detail("the kernel lost its answer; outcome unknown")
}

// ----------------------------------------------------------------- socket

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
mod tests {
    use super::*;
    use crate::abi::netlink::LinkHeader;
    use crate::testing::Random;

    const OP: &str = "RTM_TEST";

    /// Bytes of a message whose header claims the right length.
    fn message(kind: u16, flags: u16, seq: u32, payload: &[u8]) -> Vec<u8> {
        let header = MessageHeader {
            len: (HEADER_LEN + payload.len()) as u32,
            kind,
            flags,
            seq,
            port: 7,
        };
        let mut bytes = bytes_of(&header).to_vec();
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    fn read(bytes: &[u8]) -> (Result<Step>, Vec<u8>, bool) {
        let (mut out, mut interrupted) = (Vec::new(), false);
        let step = read_datagram(OP, bytes, 5, &mut out, &mut interrupted);
        (step, out, interrupted)
    }

    #[test]
    fn requests_are_laid_out_as_the_kernel_reads_them() {
        let fixed = LinkHeader {
            index: 3,
            ..LinkHeader::default()
        };
        let mut request = Request::new(OP, 19, flag::CREATE, &fixed);
        request.attr_str(3, "veth0");
        let nest = request.nest(18);
        request.attr(1, b"abcde");
        request.end(nest);
        request.attr_u32(4, 1500);
        let bytes = request.finish(9).unwrap();
        let Message { header, payload } = MessageIter(bytes).next().unwrap();
        assert_eq!(header.len as usize, bytes.len());
        assert_eq!((header.kind, header.seq, header.port), (19, 9, 0));
        assert_eq!(header.flags, flag::CREATE | flag::REQUEST | flag::ACK);
        let (link, attrs) = Attrs::after::<LinkHeader>(payload).unwrap();
        assert_eq!(link, fixed);
        let all: Vec<_> = attrs.clone().map(|a| (a.kind, a.data.len())).collect();
        assert_eq!(all, [(3, 6), (18, 12), (4, 4)]);
        assert_eq!(attrs.get(3).unwrap().text(), "veth0");
        let inner: Vec<_> = attrs.get(18).unwrap().nested().collect();
        assert_eq!(
            inner,
            [Attr {
                kind: 1,
                data: b"abcde"
            }]
        );
        assert_eq!(attrs.get(4).unwrap().u32(), Some(1500));
        assert_eq!(attrs.get(4).unwrap().u8(), None);
        assert!(attrs.get(5).is_none());
    }

    #[test]
    fn impossible_requests_are_refused() {
        let mut request = Request::new(OP, 16, 0, &0_u32);
        request.attr(1, &vec![0; 65_531]);
        assert!(request.finish(1).is_ok());
        request.attr(1, &vec![0; 65_532]);
        assert!(request.finish(1).is_err_and(|e| e.is(Errno::EINVAL)));
        let mut request = Request::new(OP, 16, 0, &0_u32);
        let nest = request.nest(1);
        request.attr(1, &vec![0; 65_528]);
        request.end(nest);
        assert!(request.finish(1).is_err_and(|e| e.is(Errno::EINVAL)));
        let mut request = Request::new(OP, 16, 0, &0_u32);
        request.attr_str(1, "a\0b");
        assert!(request.finish(1).is_err_and(|e| e.is(Errno::EINVAL)));
    }

    #[test]
    fn attributes_that_lie_end_the_iteration() {
        let good = [8, 0, 1, 0, 1, 2, 3, 4];
        for tail in [
            &[][..],
            &[4],
            &[4, 0, 2],
            &[0, 0, 2, 0],
            &[3, 0, 2, 0],
            &[5, 0, 2, 0],
            &[255, 255, 2, 0, 0, 0, 0, 0],
        ] {
            let bytes = [&good[..], tail].concat();
            let all: Vec<_> = Attrs::new(&bytes).collect();
            assert_eq!(all.len(), 1, "{tail:?}");
            assert_eq!(all[0].data, [1, 2, 3, 4]);
        }
        // The last attribute may lack its padding, and an empty one is fine.
        let all: Vec<_> = Attrs::new(&[5, 0, 1, 0x80, 9]).collect();
        assert_eq!(
            all,
            [Attr {
                kind: 1,
                data: &[9]
            }]
        );
        let all: Vec<_> = Attrs::new(&[4, 0, 1, 0]).collect();
        assert_eq!(all, [Attr { kind: 1, data: &[] }]);
    }

    #[test]
    fn answers_of_several_messages() {
        let part = |n: u8| message(16, flag::MULTI, 5, &[n; 5]);
        let done = message(message::DONE, flag::MULTI, 5, &0_i32.to_ne_bytes());
        let (step, out, interrupted) = read(&[part(1), part(2)].concat());
        assert_eq!((step, interrupted), (Ok(Step::More), false));
        let payloads: Vec<_> = MessageIter(&out).map(|m| m.payload.to_vec()).collect();
        assert_eq!(payloads, [[1; 5], [2; 5]]);
        let (step, out, _) = read(&[part(1), done.clone()].concat());
        assert_eq!((step, out.len()), (Ok(Step::Done), 24));
        // An answer to another request is passed over.
        let stale = message(message::ERROR, 0, 4, &(-1_i32).to_ne_bytes());
        let (step, out, _) = read(&[stale, done].concat());
        assert_eq!((step, out.len()), (Ok(Step::Done), 0));
        let changed = message(message::DONE, flag::MULTI | flag::DUMP_INTR, 5, &[0; 4]);
        let (step, _, interrupted) = read(&changed);
        assert_eq!((step, interrupted), (Ok(Step::Done), true));
        let (step, _, _) = read(&message(message::DONE, flag::MULTI, 5, &[]));
        assert_eq!(step, Ok(Step::Done));
        let (step, _, _) = read(&message(message::OVERRUN, 0, 5, &[]));
        assert!(step.is_err_and(|e| e.is(Errno::ENOBUFS)));
    }

    fn attr(kind: u16, data: &[u8]) -> Vec<u8> {
        let mut request = Request {
            op: OP,
            buf: Vec::new(),
            refused: None,
        };
        request.attr(kind, data);
        request.buf
    }

    /// Payload of a result: error number, the request it repeats, attributes.
    fn result(code: i32, request: &[u8], attrs: &[Vec<u8>]) -> Vec<u8> {
        [&code.to_ne_bytes()[..], request, &attrs.concat()].concat()
    }

    #[test]
    fn errors_carry_the_kernels_text() {
        let request = message(36, 0, 5, b"request body");
        let text = attr(ext_ack::MSG, b"Cannot do it\0");
        let offset = attr(ext_ack::OFFS, &36_u32.to_ne_bytes());
        let missing = attr(ext_ack::MISS_TYPE, &2_u32.to_ne_bytes());
        let einval = -libc::EINVAL;
        let detail = |kind, flags, payload: &[u8]| {
            let (step, _, _) = read(&message(kind, flags, 5, payload));
            let err = step.unwrap_err();
            assert!(err.is(Errno::EINVAL), "{err}");
            assert_eq!(err.op(), OP);
            err.detail().map(str::to_owned)
        };
        let tlvs = flag::ACK_TLVS;
        let attrs = [text.clone(), offset.clone()];
        assert_eq!(
            detail(message::ERROR, tlvs, &result(einval, &request, &attrs)).as_deref(),
            Some("Cannot do it (attribute at byte 36)")
        );
        let capped = result(einval, &request[..HEADER_LEN], &attrs);
        assert_eq!(
            detail(message::ERROR, tlvs | flag::CAPPED, &capped).as_deref(),
            Some("Cannot do it (attribute at byte 36)")
        );
        assert_eq!(
            detail(message::DONE, tlvs, &result(einval, &[], &[text])).as_deref(),
            Some("Cannot do it")
        );
        let attrs = [missing];
        assert_eq!(
            detail(message::ERROR, tlvs, &result(einval, &request, &attrs)).as_deref(),
            Some("(missing attribute 2)")
        );
        assert_eq!(
            detail(message::ERROR, 0, &result(einval, &request, &attrs)),
            None
        );
        // The repeated request claims to be longer than everything there is.
        let mut lie = result(einval, &request, &[offset]);
        lie[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(detail(message::ERROR, tlvs, &lie), None);
    }

    #[test]
    fn results_without_an_error() {
        let ok = result(0, &message(36, 0, 5, &[]), &[]);
        let (step, _, _) = read(&message(message::ERROR, flag::CAPPED, 5, &ok));
        assert_eq!(step, Ok(Step::Done));
        let (step, _, _) = read(&message(message::ERROR, 0, 5, &[1, 2]));
        assert!(step.is_err_and(|e| e.is(Errno::EBADMSG)));
        let (step, _, _) = read(&message(message::ERROR, 0, 5, &i32::MIN.to_ne_bytes()));
        assert!(step.is_err());
    }

    #[test]
    fn malformed_datagrams_are_errors() {
        let mut long = message(16, 0, 5, &[0; 8]);
        long[0] = 255;
        let mut short = message(16, 0, 5, &[0; 8]);
        short[0] = 15;
        for bad in [&long[..], &short, &[1, 2, 3], &[0; 16]] {
            let (step, _, _) = read(bad);
            assert!(step.is_err_and(|e| e.is(Errno::EBADMSG)), "{bad:?}");
        }
        assert_eq!(read(&[]).0, Ok(Step::More));
    }

    #[test]
    fn damaged_datagrams_do_not_panic() {
        let inner = [attr(1, b"clsact\0"), attr(2, &attr(11, &[1, 2, 3, 4]))].concat();
        let part = message(16, flag::MULTI, 5, &inner);
        let attrs = [
            attr(ext_ack::MSG, b"text\0"),
            attr(ext_ack::OFFS, &[36, 0, 0, 0]),
        ];
        let payload = result(-1, &message(36, 0, 5, b"body"), &attrs);
        let error = message(message::ERROR, flag::ACK_TLVS, 5, &payload);
        let good = [part.clone(), part, error].concat();
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        for _ in 0..30_000 {
            let bytes = random.damaged(&good);
            let (_, out, _) = read(&bytes);
            for message in Messages(out).iter() {
                for attr in Attrs::new(message.payload) {
                    let _ = (attr.u8(), attr.u32(), attr.text());
                    let _ = attr.nested().map(|a| a.data.len()).sum::<usize>();
                }
            }
        }
    }

    #[test]
    fn the_kernel_answers() {
        let mut netlink = Netlink::route().unwrap();
        let list = || Request::new("RTM_GETLINK", 18, flag::DUMP, &LinkHeader::default());
        let links = netlink.query(list()).unwrap();
        assert!(links.iter().count() >= 1);
        // A buffer that is too small grows.
        netlink.buf = Vec::new();
        let again = netlink.run(list(), 1, Size::Any).unwrap();
        assert_eq!(again.iter().count(), links.iter().count());
        let nothing = LinkHeader {
            index: i32::MAX,
            ..LinkHeader::default()
        };
        for _ in 0..2 {
            let request = Request::new("RTM_GETLINK", 18, 0, &nothing);
            let err = netlink.call(request).unwrap_err();
            assert!(err.is(Errno::ENODEV), "{err}");
        }
        assert!(netlink.query(list()).is_ok());
    }
}
