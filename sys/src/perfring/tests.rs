use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::*;
use crate::abi::bpf::{ElemFlags, MapType, ProgramType};
use crate::abi::insn::{Insn, alu, class};
use crate::abi::perf::{SampleType, software};
use crate::abi::pod::bytes_of;
use crate::bpf::MapFd;
use crate::mmap::testing::{memfd, poke, writable};
use crate::perf::{PerfEventAttr, Scope};
use crate::poll::{Epoll, Event, Interest};
use crate::testing::{self, create_map, load, map_addr, require, run, stack_addr, store_imm};

#[test]
fn both_are_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<PerfRing>();
    check::<PerfRecord<'_>>();
}

const PLAIN: Layout = Layout::PLAIN;

/// The kernel's side of a ring, on memory of our own.
struct Fake {
    fd: OwnedFd,
    map: Mapping,
    size: usize,
}

impl Fake {
    /// A ring of one page whose positions both start at `start`.
    fn new(start: u64) -> Fake {
        let size = page_size();
        let fd = memfd(2 * size);
        let map = writable(&fd, 2 * size);
        let fake = Fake { fd, map, size };
        fake.set(DATA_OFFSET, size as u64);
        fake.set(DATA_SIZE, size as u64);
        fake.set(HEAD, start);
        fake.set(TAIL, start);
        fake
    }

    fn reader(&self) -> Ring {
        Ring::map(self.fd.as_fd(), 1, PLAIN).unwrap()
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: an aligned offset in the first page, used atomically.
        unsafe { AtomicU64::from_ptr(self.map.ptr_at(offset)) }
    }

    fn set(&self, offset: usize, value: u64) {
        self.word(offset).store(value, Ordering::Release);
    }

    fn tail(&self) -> u64 {
        self.word(TAIL).load(Ordering::Acquire)
    }

    fn head(&self) -> u64 {
        self.word(HEAD).load(Ordering::Acquire)
    }

    /// Writes a record; false if it does not fit.
    fn write(&self, kind: u32, body: &[u8]) -> bool {
        assert!(body.len().is_multiple_of(8));
        let len = HEADER_SIZE + body.len();
        let head = self.head();
        if head.wrapping_sub(self.tail()) as usize + len > self.size {
            return false;
        }
        let header = RecordHeader {
            kind,
            misc: 0,
            size: len as u16,
        };
        let bytes = bytes_of(&header).iter().chain(body);
        for (i, byte) in bytes.enumerate() {
            let at = (head as usize).wrapping_add(i) & (self.size - 1);
            poke(&self.map, self.size + at, &[*byte]);
        }
        self.set(HEAD, head.wrapping_add(len as u64));
        true
    }

    /// Writes a sample whose raw data, padding included, is `data`.
    fn sample(&self, data: &[u8]) -> bool {
        let mut body = (data.len() as u32).to_ne_bytes().to_vec();
        body.extend_from_slice(data);
        self.write(record_type::SAMPLE, &body)
    }

    fn lost(&self, count: u64) -> bool {
        let words = [77, count];
        self.write(record_type::LOST, bytes_of(&words))
    }
}

/// What a drained record was, owned.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Sample(Vec<u8>),
    Lost(u64),
    Other(u32),
}

fn collect(ring: &mut Ring, max: usize) -> Vec<Seen> {
    let mut all = Vec::new();
    let n = ring.drain(max, |record| {
        all.push(match record {
            PerfRecord::Sample { data, .. } => Seen::Sample(data.to_vec()),
            PerfRecord::Lost { count } => Seen::Lost(count),
            PerfRecord::Other { kind } => Seen::Other(kind),
        });
        ControlFlow::Continue(())
    });
    assert_eq!(n, Ok(all.len()));
    all
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (seed.wrapping_mul(31) + i) as u8)
        .collect()
}

#[test]
fn records_decode_or_are_refused_at_every_length() {
    let kind = |kind| RecordHeader {
        kind,
        misc: 0,
        size: 0,
    };
    let mut record = [0_u8; 64];
    let timed = Layout {
        time: Some(16),
        raw: 24,
    };
    record[24..28].copy_from_slice(&20_u32.to_ne_bytes());
    record[16] = 5;
    record[8] = 6;
    for len in 0..64 {
        let record = &record[..len];
        let sample = decode(kind(record_type::SAMPLE), record, timed);
        let data = record.get(28..48);
        let time_ns = Some(5);
        assert_eq!(
            sample,
            data.map(|data| PerfRecord::Sample { data, time_ns })
        );
        let lost = decode(kind(record_type::LOST), record, PLAIN);
        let count = (len >= 24).then_some(PerfRecord::Lost { count: 5 });
        assert_eq!(lost, count);
        let lost = decode(kind(record_type::LOST_SAMPLES), record, PLAIN);
        let count = (len >= 16).then_some(PerfRecord::Lost { count: 6 });
        assert_eq!(lost, count);
        let other = decode(kind(record_type::THROTTLE), record, PLAIN);
        assert_eq!(other, Some(PerfRecord::Other { kind: 5 }));
        for available in 0..64 {
            let sound = len >= 8 && len % 8 == 0 && len <= available;
            assert_eq!(is_sound(len, available), sound);
        }
    }
    record[24..28].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert_eq!(decode(kind(record_type::SAMPLE), &record, timed), None);
}

#[test]
fn records_arrive_from_every_position_where_they_may_wrap() {
    let size = page_size() as u64;
    // The ring's end, and where the counter itself wraps around.
    for base in [size, 0] {
        for back in (0..160).step_by(8) {
            let start = base.wrapping_sub(back);
            for len in (4..128).step_by(8) {
                let fake = Fake::new(start);
                let mut ring = fake.reader();
                let data = pattern(len, len);
                assert!(fake.sample(&data));
                assert!(fake.lost(9));
                let seen = collect(&mut ring, usize::MAX);
                assert_eq!(seen, [Seen::Sample(data), Seen::Lost(9)]);
                assert_eq!(fake.tail(), fake.head());
            }
        }
    }
}

#[test]
fn limits_and_breaks_leave_the_rest() {
    let fake = Fake::new(0);
    let mut ring = fake.reader();
    for i in 0..6 {
        assert!(fake.sample(&pattern(i, 4)));
    }
    assert!(fake.write(record_type::THROTTLE, &[0; 24]));
    assert_eq!(collect(&mut ring, 0), []);
    assert_eq!(fake.tail(), 0);
    assert_eq!(collect(&mut ring, 2).len(), 2);
    assert_eq!(fake.tail(), 32);
    let n = ring.drain(usize::MAX, |_| ControlFlow::Break(()));
    assert_eq!((n, fake.tail()), (Ok(1), 48));
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _ = ring.drain(usize::MAX, |_| panic!("on purpose"));
    }));
    assert!(caught.is_err());
    assert_eq!(fake.tail(), 64);
    let rest = collect(&mut ring, usize::MAX);
    assert_eq!(rest.len(), 3);
    assert_eq!(rest.last(), Some(&Seen::Other(record_type::THROTTLE)));
}

#[test]
fn space_comes_back_each_quarter_and_at_the_end() {
    let fake = Fake::new(0);
    let mut ring = fake.reader();
    while fake.sample(&[0; 52]) {}
    let mut moves = Vec::new();
    let mut last = 0;
    ring.drain(usize::MAX, |_| {
        if fake.tail() != last {
            last = fake.tail();
            moves.push(last);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let quarter = page_size() as u64 / 4;
    assert_eq!(moves, [quarter, 2 * quarter, 3 * quarter]);
    assert_eq!(fake.tail(), fake.head());
}

#[test]
fn contradictions_are_errors_and_reading_stays() {
    let fake = Fake::new(0);
    let mut ring = fake.reader();
    assert!(fake.sample(&[1; 4]));
    assert!(fake.sample(&[2; 12]));
    assert_eq!(collect(&mut ring, 1).len(), 1);
    // Record sizes: none, less than a header, unaligned, beyond the head.
    for size in [0_u16, 7, 12, 32, u16::MAX] {
        poke(&fake.map, fake.size + 16 + 6, &size.to_ne_bytes());
        for _ in 0..2 {
            let err = ring.drain(9, |_| panic!("nothing to read")).unwrap_err();
            assert_eq!((err.position, err.available), (16, 24));
            assert_eq!(err.header >> 48, u64::from(size));
        }
        assert_eq!(fake.tail(), 16);
    }
    // Raw data beyond its record.
    poke(&fake.map, fake.size + 16 + 6, &24_u16.to_ne_bytes());
    poke(&fake.map, fake.size + 16 + 8, &13_u32.to_ne_bytes());
    assert!(ring.drain(9, |_| ControlFlow::Continue(())).is_err());
    poke(&fake.map, fake.size + 16 + 8, &12_u32.to_ne_bytes());
    // Head too far away, behind, or amid a header.
    for head in [17 + fake.size as u64, 8, 20] {
        fake.set(HEAD, head);
        let err = ring.drain(9, |_| panic!("nothing to read")).unwrap_err();
        assert_eq!(err.position, 16);
        assert_eq!(err.available, head.wrapping_sub(16));
    }
    fake.set(HEAD, 40);
    assert_eq!(collect(&mut ring, 9), [Seen::Sample(vec![2; 12])]);
}

#[test]
fn unknown_layouts_are_refused() {
    let page = page_size() as u64;
    let broken = |offset, value| {
        let fake = Fake::new(0);
        fake.set(offset, value);
        Ring::map(fake.fd.as_fd(), 1, PLAIN).err()
    };
    assert_eq!(broken(DATA_SIZE, 0), None);
    for (offset, value) in [
        (DATA_SIZE, 2 * page),
        (DATA_OFFSET, 2 * page),
        (DATA_OFFSET, 4),
        (TAIL, 4),
    ] {
        assert!(broken(offset, value).unwrap().is(Errno::EINVAL));
    }
    let fake = Fake::new(0);
    let huge = Ring::map(fake.fd.as_fd(), usize::MAX, PLAIN).err();
    assert!(huge.unwrap().is(Errno::EINVAL));
}

#[test]
fn a_producer_thread_and_a_reader_agree() {
    const RECORDS: usize = 10_000;
    let fake = Fake::new(0_u64.wrapping_sub(8192));
    let mut ring = fake.reader();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..RECORDS {
                let data = pattern(i, 4 + i % 37 * 8);
                while !fake.sample(&data) {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < RECORDS {
            let n = ring.drain(7, |record| {
                let PerfRecord::Sample { data, .. } = record else {
                    panic!("{record:?}");
                };
                assert_eq!(data, pattern(next, 4 + next % 37 * 8), "record {next}");
                next += 1;
                ControlFlow::Continue(())
            });
            if n == Ok(0) {
                std::thread::yield_now();
            }
        }
    });
}

/// Keeps this thread on CPU 0, where the test's event is.
fn stay_on_first_cpu() {
    // SAFETY: an all-zero set is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: bit 0 lies within the set.
    unsafe { libc::CPU_SET(0, &mut set) };
    // SAFETY: the set is initialised and of the size passed.
    let ret = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    assert_eq!(ret, 0);
}

/// A program that outputs `words` 8-byte words of `value`, returning what the
/// helper returns.
fn output_program(map: &MapFd, words: i16, value: i32) -> OwnedFd {
    let mut code: Vec<Insn> = vec![Insn::mov64_reg(6, 1)];
    code.extend((1..=words).map(|i| store_imm(-8 * i, value)));
    // A 32-bit move zero-extends: BPF_F_CURRENT_CPU is 0xffffffff.
    code.push(Insn::new(class::ALU | alu::MOV, 3, 0, 0, -1));
    code.push(Insn::mov64_reg(1, 6));
    code.extend(map_addr(2, map));
    code.extend(stack_addr(4, -8 * i32::from(words)));
    code.push(Insn::mov64_imm(5, 8 * i32::from(words)));
    code.push(Insn::call(testing::PERF_EVENT_OUTPUT));
    code.push(Insn::exit());
    load(ProgramType::SOCKET_FILTER, &code)
}

#[test]
fn the_kernels_records_arrive() {
    let map = create_map(MapType::PERF_EVENT_ARRAY, 4, 4, 1);
    let map = require!((4, 4), map);
    stay_on_first_cpu();
    let attr = PerfEventAttr::bpf_output();
    let ring = PerfRing::open(&attr, Scope::AllThreads, Some(0), 1);
    let mut ring = require!((4, 4), ring);
    assert_eq!(ring.size(), page_size());
    ring.event().enable().unwrap();
    let number = ring.event().as_fd().as_raw_fd().to_ne_bytes();
    map.update(&[0; 4], &number, ElemFlags::empty()).unwrap();
    let program = output_program(&map, 8, 0x33);
    let epoll = Epoll::new().unwrap();
    epoll.add(ring.as_fd(), 7, Interest::READABLE).unwrap();
    let mut events = [Event::EMPTY; 1];

    let expected = 0x33_u64.to_ne_bytes().repeat(8);
    // Several times around the ring: 80 bytes each, so some wrap.
    for _ in 0..200 {
        assert_eq!(run(&program, 1), 0);
        let ready = epoll.wait(&mut events, Some(Duration::from_secs(5)));
        assert_eq!(ready.unwrap().len(), 1);
        assert_eq!(ring.available(), 80);
        let n = ring.drain(usize::MAX, |record| {
            let PerfRecord::Sample { data, .. } = record else {
                panic!("{record:?}");
            };
            // 64 bytes and their size come to 68, padded to 72.
            assert_eq!(data.len(), 68);
            assert_eq!(&data[..64], expected);
            ControlFlow::Continue(())
        });
        assert_eq!(n, Ok(1));
    }

    // More than the ring holds: the kernel counts what it drops, and says so
    // in front of the next record that fits.
    let fits = (page_size() - 1) / 80;
    run(&program, 1000);
    let mut samples = 0;
    let mut count = |record: PerfRecord<'_>| {
        samples += usize::from(matches!(record, PerfRecord::Sample { .. }));
        ControlFlow::Continue(())
    };
    assert_eq!(ring.drain(usize::MAX, &mut count), Ok(fits));
    assert_eq!(samples, fits);
    assert_eq!(run(&program, 1), 0);
    let mut lost = 0;
    ring.drain(usize::MAX, |record| {
        if let PerfRecord::Lost { count } = record {
            lost += count;
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(lost, 1000 - fits as u64);

    ring.event().pause_output(true).unwrap();
    assert!(run(&program, 1) != 0);
    ring.event().pause_output(false).unwrap();
    assert_eq!(run(&program, 1), 0);
}

#[test]
fn other_events_are_refused() {
    let open = |attr: &_, pages| PerfRing::open(attr, Scope::AllThreads, Some(0), pages);
    let refused = |attr: &_, pages| open(attr, pages).unwrap_err().is(Errno::EINVAL);
    assert!(refused(&PerfEventAttr::software(software::DUMMY), 1));
    let output = PerfEventAttr::bpf_output();
    assert!(refused(&output, 3));
    assert!(refused(&output, 0));
    assert!(refused(&output.flags(AttrFlags::WRITE_BACKWARD), 1));
    let timed = output.sample_type(SampleType::RAW | SampleType::TIME);
    let ring = require!((4, 4), open(&timed, 1));
    assert_eq!((ring.ring.layout.raw, ring.ring.layout.time), (16, Some(8)));
}
