use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU32 as Counter;
use std::time::Duration;

use super::*;
use crate::abi::bpf::{MapFlags, ProgramType};
use crate::abi::insn::{Insn, class, jmp};
use crate::bpf::{MapCreate, MapFd, map_create};
use crate::mmap::testing::{memfd, peek, poke, writable};
use crate::poll::{Epoll, Event, Interest};
use crate::testing::{
    self, Random, create_map, load, map_addr, require, returns, run, stack_addr, store_imm,
};

#[test]
fn all_are_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<RingBuffer>();
    check::<Record<'_>>();
    check::<UserRingBuffer>();
    check::<Reservation<'_>>();
    check::<CorruptRing>();
}

#[test]
fn headers_decode_for_every_length_and_room() {
    for len in 0..200_u32 {
        let taken = footprint(len as usize);
        assert!(taken.is_multiple_of(8));
        assert!(taken >= len as usize + 8 && taken < len as usize + 16);
        for available in 0..250_usize {
            assert_eq!(decode(len | BUSY_BIT, available), Step::Busy);
            let (take, skip) = if available < taken {
                (Step::Corrupt, Step::Corrupt)
            } else {
                let len = len as usize;
                let footprint = taken;
                (Step::Take { len, footprint }, Step::Skip(taken))
            };
            assert_eq!(decode(len, available), take);
            assert_eq!(decode(len | DISCARD_BIT, available), skip);
        }
    }
    assert_eq!(decode(DISCARD_BIT - 1, usize::MAX), {
        let len = (1 << 30) - 1;
        let footprint = (1 << 30) + 8;
        Step::Take { len, footprint }
    });
}

/// The kernel's side of a ring, on memory of our own. The kernel maps the data
/// pages twice; here the data lies there twice and is written twice.
struct Fake {
    fd: OwnedFd,
    map: Mapping,
    size: usize,
}

impl Fake {
    /// A ring whose positions both start at `start`.
    fn new(size: usize, start: usize) -> Fake {
        let len = 2 * page_size() + 2 * size;
        let fd = memfd(len);
        let map = writable(&fd, len);
        let fake = Fake { fd, map, size };
        fake.consumer().store(start, Ordering::Relaxed);
        fake.producer().store(start, Ordering::Relaxed);
        fake
    }

    fn reader(&self) -> RingBuffer {
        RingBuffer::map(self.fd.as_fd(), self.size, unused_claim()).unwrap()
    }

    fn consumer(&self) -> &AtomicUsize {
        // SAFETY: the start of a mapping longer than a page, used atomically.
        unsafe { AtomicUsize::from_ptr(self.map.ptr_at(0)) }
    }

    fn producer(&self) -> &AtomicUsize {
        let word = self.map.ptr_at(page_size());
        // SAFETY: the start of the second page, used atomically.
        unsafe { AtomicUsize::from_ptr(word) }
    }

    fn header(&self, position: usize) -> &AtomicU32 {
        let offset = 2 * page_size() + (position & (self.size - 1));
        let word = self.map.ptr_at(offset);
        // SAFETY: inside the data, a multiple of 8, used atomically.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// `__bpf_ringbuf_reserve`; `None` if it is full.
    fn reserve(&self, len: usize) -> Option<usize> {
        let taken = footprint(len);
        let consumer = self.consumer().load(Ordering::Acquire);
        let position = self.producer().load(Ordering::Relaxed);
        let next = position.wrapping_add(taken);
        if next.wrapping_sub(consumer) > self.size - 1 {
            return None;
        }
        self.header(position)
            .store(len as u32 | BUSY_BIT, Ordering::Relaxed);
        self.producer().store(next, Ordering::Release);
        Some(position)
    }

    fn write(&self, position: usize, payload: &[u8]) {
        for (i, byte) in payload.iter().enumerate() {
            let at = position.wrapping_add(HEADER_SIZE + i) & (self.size - 1);
            for copy in [at, at + self.size] {
                poke(&self.map, 2 * page_size() + copy, &[*byte]);
            }
        }
    }

    /// `bpf_ringbuf_commit`.
    fn commit(&self, position: usize, flag: u32) {
        let header = self.header(position);
        let len = header.load(Ordering::Relaxed) ^ BUSY_BIT;
        header.swap(len | flag, Ordering::SeqCst);
    }

    fn output(&self, payload: &[u8]) -> bool {
        let Some(position) = self.reserve(payload.len()) else {
            return false;
        };
        self.write(position, payload);
        self.commit(position, 0);
        true
    }
}

fn unused_claim() -> Claim {
    static NEXT: Counter = Counter::new(1 << 31);
    Claim::new(NEXT.fetch_add(1, Ordering::Relaxed), 0).unwrap()
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (seed.wrapping_mul(31) + i) as u8)
        .collect()
}

fn collect(ring: &mut RingBuffer, max: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let n = ring.drain(max, |record| {
        all.push(record.to_vec());
        ControlFlow::Continue(())
    });
    assert_eq!(n, Ok(all.len()));
    all
}

const SMALL: usize = 64;

/// Every start position of a small ring, and those where the counter itself
/// wraps around.
fn starts() -> impl Iterator<Item = usize> {
    let low = (0..2 * SMALL).step_by(8);
    low.clone().chain(low.map(|back| usize::MAX - 7 - back))
}

#[test]
fn records_arrive_from_every_position_with_every_length() {
    for start in starts() {
        for len in 0..=SMALL - HEADER_SIZE - 8 {
            let fake = Fake::new(SMALL, start);
            let mut ring = fake.reader();
            let payload = pattern(start, len);
            assert!(fake.output(&payload));
            assert_eq!(ring.available(), footprint(len));
            assert_eq!(&*ring.next_record().unwrap().unwrap(), &payload[..]);
            assert!(ring.next_record().unwrap().is_none());
            assert!(fake.output(&payload));
            assert_eq!(collect(&mut ring, usize::MAX), [payload]);
            assert_eq!(ring.available(), 0);
            let end = start.wrapping_add(2 * footprint(len));
            assert_eq!(fake.consumer().load(Ordering::Relaxed), end);
        }
    }
}

#[test]
fn reading_stops_at_a_busy_record_and_skips_discarded_ones() {
    for start in starts() {
        let fake = Fake::new(SMALL, start);
        let mut ring = fake.reader();
        let discarded = fake.reserve(3).unwrap();
        assert!(fake.output(b"one"));
        let busy = fake.reserve(5).unwrap();
        assert!(ring.next_record().unwrap().is_none());
        assert!(collect(&mut ring, usize::MAX).is_empty());

        fake.commit(discarded, DISCARD_BIT);
        assert_eq!(collect(&mut ring, usize::MAX), [b"one"]);
        // Standing at the busy record: its commit wakes a waiter up.
        assert_eq!(fake.consumer().load(Ordering::Relaxed), busy);
        fake.write(busy, b"later");
        fake.commit(busy, 0);
        assert_eq!(&*ring.next_record().unwrap().unwrap(), b"later");

        let last = fake.reserve(0).unwrap();
        fake.commit(last, DISCARD_BIT);
        assert!(ring.next_record().unwrap().is_none());
        let end = last.wrapping_add(8);
        assert_eq!(fake.consumer().load(Ordering::Relaxed), end);
    }
}

#[test]
fn limits_and_breaks_leave_the_rest() {
    let fake = Fake::new(4096, 0);
    let mut ring = fake.reader();
    for i in 0..10_u8 {
        assert!(fake.output(&[i]));
    }
    assert_eq!(collect(&mut ring, 0), [[0; 0]; 0]);
    assert_eq!(collect(&mut ring, 3), [[0], [1], [2]]);
    assert_eq!(fake.consumer().load(Ordering::Relaxed), 3 * 16);
    let n = ring.drain(usize::MAX, |record| match record {
        [5] => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(n, Ok(3));
    assert_eq!(fake.consumer().load(Ordering::Relaxed), 6 * 16);
    let discarded = fake.reserve(1).unwrap();
    fake.commit(discarded, DISCARD_BIT);
    assert_eq!(collect(&mut ring, usize::MAX), [[6], [7], [8], [9]]);
    // A discarded record does not use up the limit.
    let discarded = fake.reserve(1).unwrap();
    fake.commit(discarded, DISCARD_BIT);
    assert!(fake.output(&[10]));
    assert!(fake.output(&[11]));
    assert_eq!(collect(&mut ring, 1), [[10]]);
    assert_eq!(collect(&mut ring, 1), [[11]]);
}

#[test]
fn a_panic_releases_what_was_read() {
    let fake = Fake::new(4096, 0);
    let mut ring = fake.reader();
    for i in 0..5_u8 {
        assert!(fake.output(&[i]));
    }
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _ = ring.drain(usize::MAX, |record| {
            assert!(record != [2]);
            ControlFlow::Continue(())
        });
    }));
    assert!(caught.is_err());
    assert_eq!(fake.consumer().load(Ordering::Relaxed), 3 * 16);
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let record = ring.next_record().unwrap().unwrap();
        assert!(*record != [3]);
    }));
    assert!(caught.is_err());
    assert_eq!(fake.consumer().load(Ordering::Relaxed), 4 * 16);
    assert_eq!(collect(&mut ring, usize::MAX), [[4]]);
}

#[test]
fn a_forgotten_record_comes_again() {
    let fake = Fake::new(4096, 0);
    let mut ring = fake.reader();
    assert!(fake.output(b"again"));
    std::mem::forget(ring.next_record().unwrap());
    assert_eq!(fake.consumer().load(Ordering::Relaxed), 0);
    assert_eq!(collect(&mut ring, usize::MAX), [b"again"]);
}

#[test]
fn space_comes_back_each_quarter_and_at_the_end() {
    let fake = Fake::new(4096, 0);
    let mut ring = fake.reader();
    while fake.output(&[0; 56]) {}
    let mut moves = Vec::new();
    let mut last = 0;
    let n = ring.drain(usize::MAX, |_| {
        let now = fake.consumer().load(Ordering::Relaxed);
        if now != last {
            moves.push(now);
            last = now;
        }
        ControlFlow::Continue(())
    });
    assert_eq!(n, Ok(63));
    assert_eq!(moves, [1024, 2048, 3072]);
    assert_eq!(fake.consumer().load(Ordering::Relaxed), 63 * 64);
}

#[test]
fn contradictions_are_errors_and_reading_stays() {
    // Longer than what was published.
    let fake = Fake::new(SMALL, 0);
    let mut ring = fake.reader();
    assert!(fake.output(b"good"));
    let bad = fake.reserve(0).unwrap();
    for header in [1, 2, 57, 1 << 20, DISCARD_BIT - 1, DISCARD_BIT | 1] {
        fake.header(bad).store(header, Ordering::Relaxed);
        let mut seen = 0;
        let err = ring
            .drain(usize::MAX, |_| {
                seen += 1;
                ControlFlow::Continue(())
            })
            .unwrap_err();
        assert_eq!(err.position, bad as u64);
        assert_eq!(err.header, u64::from(header));
        assert_eq!(err.available, 8);
        // The good record before it was handed over once, and released.
        assert_eq!(seen, usize::from(header == 1));
        assert_eq!(fake.consumer().load(Ordering::Relaxed), bad);
        assert_eq!(ring.next_record().unwrap_err(), err);
    }
    // Positions further apart than the ring is long, or the wrong way round.
    for producer in [bad + SMALL + 1, bad - 8, usize::MAX] {
        fake.producer().store(producer, Ordering::Relaxed);
        let err = ring.next_record().unwrap_err();
        assert_eq!(err.available, producer.wrapping_sub(bad) as u64);
        assert_eq!(collect_err(&mut ring), err);
    }
    // Less than a header.
    fake.header(bad).store(0, Ordering::Relaxed);
    fake.producer().store(bad + 4, Ordering::Relaxed);
    assert_eq!(collect_err(&mut ring).available, 4);
}

fn collect_err(ring: &mut RingBuffer) -> CorruptRing {
    ring.drain(usize::MAX, |_| panic!("nothing to read"))
        .unwrap_err()
}

#[test]
fn impossible_rings_are_refused() {
    let fake = Fake::new(SMALL, 4);
    let map = |size| RingBuffer::map(fake.fd.as_fd(), size, unused_claim()).unwrap_err();
    assert!(map(SMALL).is(Errno::EINVAL));
    assert!(map(SMALL).detail().is_some());
    assert!(map(24).is(Errno::EINVAL));
    assert!(map(0).is(Errno::EINVAL));
    assert!(map(1 << (usize::BITS - 1)).is(Errno::EINVAL));
}

#[test]
fn a_producer_thread_and_a_reader_agree() {
    // The last one is not discarded.
    const RECORDS: usize = 10_001;
    let fake = Fake::new(2048, usize::MAX - 8191);
    let mut ring = fake.reader();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(0x2545_F491_4F6C_DD1D);
            for i in 0..RECORDS {
                let len = random.next() % 100;
                let position = loop {
                    if let Some(position) = fake.reserve(len) {
                        break position;
                    }
                    std::thread::yield_now();
                };
                fake.write(position, &pattern(i, len));
                let flag = if i % 7 == 3 { DISCARD_BIT } else { 0 };
                fake.commit(position, flag);
            }
        });
        let mut expected = (0..RECORDS).filter(|i| i % 7 != 3);
        let mut left = expected.clone().count();
        let mut check = |record: &[u8]| {
            let i = expected.next().unwrap();
            assert_eq!(record, pattern(i, record.len()), "record {i}");
        };
        let mut turn = 0_usize;
        while left != 0 {
            turn += 1;
            if turn.is_multiple_of(3) {
                if let Some(record) = ring.next_record().unwrap() {
                    check(&record);
                    left -= 1;
                    continue;
                }
            } else {
                let n = ring
                    .drain(5, |record| {
                        check(record);
                        ControlFlow::Continue(())
                    })
                    .unwrap();
                left -= n;
                if n != 0 {
                    continue;
                }
            }
            std::thread::yield_now();
        }
    });
    assert_eq!(ring.available(), 0);
}

/// A program that puts `words` 8-byte words of `value` into `map`, returning
/// what the helper returns.
fn output_program(map: &MapFd, words: i16, value: i32) -> OwnedFd {
    let mut code: Vec<Insn> = (1..=words).map(|i| store_imm(-8 * i, value)).collect();
    code.extend(map_addr(1, map));
    code.extend(stack_addr(2, -8 * i32::from(words)));
    code.push(Insn::mov64_imm(3, 8 * i32::from(words)));
    code.push(Insn::mov64_imm(4, 0));
    code.push(Insn::call(testing::RINGBUF_OUTPUT));
    code.push(Insn::exit());
    load(ProgramType::SOCKET_FILTER, &code)
}

/// A program that reserves a record and discards it.
fn discard_program(map: &MapFd) -> OwnedFd {
    let mut code: Vec<Insn> = map_addr(1, map).into();
    code.push(Insn::mov64_imm(2, 24));
    code.push(Insn::mov64_imm(3, 0));
    code.push(Insn::call(testing::RINGBUF_RESERVE));
    let jeq = class::JMP | jmp::JEQ;
    code.push(Insn::new(jeq, 0, 0, 3, 0));
    code.push(Insn::mov64_reg(1, 0));
    code.push(Insn::mov64_imm(2, 0));
    code.push(Insn::call(testing::RINGBUF_DISCARD));
    code.extend(returns(0));
    load(ProgramType::SOCKET_FILTER, &code)
}

fn kernel_ring(size: u32) -> Result<MapFd> {
    create_map(MapType::RINGBUF, 0, 0, size)
}

#[test]
fn the_kernels_records_arrive() {
    let page = page_size() as u32;
    let map = require!((5, 8), kernel_ring(page));
    let mut ring = RingBuffer::new(map.as_fd()).unwrap();
    assert_eq!(ring.size(), page_size());
    let busy = RingBuffer::new(map.as_fd()).unwrap_err();
    assert!(busy.is(Errno::EBUSY));
    let long = output_program(&map, 8, 0x11);
    let short = output_program(&map, 1, 0x22);
    let discard = discard_program(&map);
    // Several times around the ring, 72 + 16 + 32 bytes each.
    for round in 0..page / 20 {
        assert_eq!(run(&long, 1), 0);
        assert_eq!(run(&discard, 1), 0);
        assert_eq!(run(&short, 1), 0);
        assert_eq!(ring.available(), 72 + 32 + 16);
        let long = 0x11_u64.to_ne_bytes().repeat(8);
        let short = 0x22_u64.to_ne_bytes();
        if round.is_multiple_of(2) {
            assert_eq!(collect(&mut ring, usize::MAX), [&long[..], &short[..]]);
        } else {
            assert_eq!(&*ring.next_record().unwrap().unwrap(), &long[..]);
            assert_eq!(&*ring.next_record().unwrap().unwrap(), &short[..]);
            assert!(ring.next_record().unwrap().is_none());
        }
        assert_eq!(ring.available(), 0);
    }
    // Full: the helper fails, and draining makes room again.
    run(&long, page);
    assert_eq!(run(&long, 1), -libc::EAGAIN);
    assert_eq!(collect(&mut ring, usize::MAX).len(), (page_size() - 1) / 72);
    assert_eq!(run(&long, 1), 0);
    // The next reader goes on where this one ended.
    drop(ring);
    let mut ring = RingBuffer::new(map.as_fd()).unwrap();
    assert_eq!(collect(&mut ring, usize::MAX).len(), 1);
}

#[test]
fn edge_triggered_waiting_loses_no_wakeup() {
    const RECORDS: usize = 10_000;
    let map = require!((5, 8), kernel_ring(65536));
    let mut ring = RingBuffer::new(map.as_fd()).unwrap();
    let program = output_program(&map, 1, 7);
    let epoll = Epoll::new().unwrap();
    let interest = Interest::READABLE | Interest::EDGE;
    epoll.add(map.as_fd(), 1, interest).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut sent = 0;
            while sent < RECORDS {
                if run(&program, 1) == 0 {
                    sent += 1;
                }
            }
        });
        let mut events = [Event::EMPTY; 1];
        let mut received = 0;
        while received < RECORDS {
            let ready = epoll.wait(&mut events, Some(Duration::from_secs(5)));
            assert!(!ready.unwrap().is_empty(), "stuck after {received}");
            received += ring
                .drain(usize::MAX, |_| ControlFlow::Continue(()))
                .unwrap();
        }
    });
}

#[test]
fn other_descriptors_are_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(RingBuffer::new(file.as_fd()).is_err());
    let fd = memfd(4 * page_size());
    assert!(RingBuffer::new(fd.as_fd()).is_err());
    let array = require!((3, 19), create_map(MapType::ARRAY, 4, 8, 512));
    let err = RingBuffer::new(array.as_fd()).unwrap_err();
    assert!(err.is(Errno::EINVAL));
    let err = UserRingBuffer::new(array.as_fd()).unwrap_err();
    assert!(err.is(Errno::EINVAL));
}

#[test]
fn rings_that_are_overwritten_are_refused() {
    let mut create = MapCreate {
        map_type: MapType::RINGBUF,
        max_entries: page_size() as u32,
        flags: MapFlags::RB_OVERWRITE,
        ..MapCreate::default()
    };
    let map = require!((6, 19), map_create(&create));
    let err = RingBuffer::new(map.as_fd()).unwrap_err();
    assert!(err.is(Errno::EOPNOTSUPP));
    assert_eq!(err.detail(), Some("programs overwrite old records"));
    // A flag of ring buffers alone.
    create.map_type = MapType::ARRAY;
    (create.key_size, create.value_size) = (4, 8);
    assert!(map_create(&create).unwrap_err().is(Errno::EINVAL));
}

/// A user ring on memory of our own.
fn fake_user_ring(size: usize, start: usize) -> (Fake, UserRingBuffer) {
    let fake = Fake::new(size, start);
    let ring = UserRingBuffer::map(fake.fd.as_fd(), size, unused_claim()).unwrap();
    (fake, ring)
}

#[test]
fn samples_are_put_in_from_every_position_with_every_length() {
    for start in starts() {
        for len in 0..=SMALL - HEADER_SIZE {
            let (fake, mut ring) = fake_user_ring(SMALL, start);
            let payload = pattern(len, len);
            ring.push(&payload).unwrap();
            let header = fake.header(start).load(Ordering::Relaxed);
            assert_eq!(header as usize, len);
            let end = start.wrapping_add(footprint(len));
            assert_eq!(fake.producer().load(Ordering::Relaxed), end);
            let offset = 2 * page_size() + (start & (SMALL - 1)) + HEADER_SIZE;
            assert_eq!(peek(&fake.map, offset, len), payload);
        }
    }
}

#[test]
fn user_ring_fills_up_and_empties() {
    let (fake, mut ring) = fake_user_ring(SMALL, 0);
    assert_eq!(ring.max_len(), SMALL - HEADER_SIZE);
    let max = ring.max_len();
    let err = ring.push(&[0; SMALL]).unwrap_err();
    assert_eq!(err, ReserveError::TooLong { max });
    // Given up: no trace.
    ring.reserve(8).unwrap().fill(1);
    assert_eq!(fake.producer().load(Ordering::Relaxed), 0);
    for _ in 0..4 {
        ring.push(&[1; 8]).unwrap();
    }
    assert_eq!(ring.push(&[]), Err(ReserveError::Full));
    fake.consumer().store(16, Ordering::Relaxed);
    assert_eq!(ring.push(&[1; 9]), Err(ReserveError::Full));
    ring.push(&[1; 8]).unwrap();
    fake.consumer().store(1 << 20, Ordering::Relaxed);
    assert!(matches!(ring.push(&[]), Err(ReserveError::Corrupt(_))));
}

#[test]
fn the_kernel_accepts_a_user_ring() {
    let size = 4 * page_size() as u32;
    let map = create_map(MapType::USER_RINGBUF, 0, 0, size);
    let map = require!((6, 1), map);
    let mut ring = UserRingBuffer::new(map.as_fd()).unwrap();
    assert!(UserRingBuffer::new(map.as_fd()).is_err());
    let epoll = Epoll::new().unwrap();
    epoll.add(map.as_fd(), 1, Interest::WRITABLE).unwrap();
    let mut events = [Event::EMPTY; 1];
    let zero = Some(Duration::ZERO);
    assert_eq!(epoll.wait(&mut events, zero).unwrap().len(), 1);
    while ring.push(&[0x5a; 120]).is_ok() {}
    assert_eq!(epoll.wait(&mut events, zero).unwrap().len(), 0);
}
