//! Tests of requests, attributes and answers as bytes, and of a socket.

use super::answer::MessageIter;
use super::*;
use crate::abi::netlink::{ALIGN, LinkHeader, ext_ack, flag, message};
use crate::abi::pod::bytes_of;
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
