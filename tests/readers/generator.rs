//! The generators of `tests/programs/generator.h`, and what their records say.

use ebpf_manager::bpf::{Program, TestRun, pod};

/// `struct request`.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) first: u64,
    pub(crate) count: u32,
    pub(crate) stream: u32,
    pub(crate) sizes: (u32, u32),
    pub(crate) discard_every: u32,
    pub(crate) flags: u32,
}

impl Request {
    pub(crate) fn new(first: u64, count: u32, sizes: (u32, u32)) -> Request {
        Request {
            first,
            count,
            stream: 7,
            sizes,
            discard_every: 0,
            flags: 0,
        }
    }

    /// Runs the generator; how many records the helper refused.
    pub(crate) fn run(&self, program: &Program) -> u64 {
        let mut packet = [0_u8; 64];
        packet[14..22].copy_from_slice(&self.first.to_ne_bytes());
        let (min, max) = self.sizes;
        let words = [
            self.count,
            self.stream,
            min,
            max,
            self.discard_every,
            self.flags,
        ];
        packet[22..46].copy_from_slice(pod::slice_bytes(&words));
        let mut run = TestRun {
            data_in: &packet,
            repeat: 1,
            ..TestRun::default()
        };
        let refused = program.test_run(&mut run).unwrap().retval;
        assert_ne!(refused, u32::MAX, "a bad request");
        refused.into()
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// `record_size`.
pub(crate) fn size_of_record(number: u64, (min, max): (u32, u32)) -> usize {
    let spread = u64::from(max - min) + 1;
    min as usize + ((number.wrapping_mul(GOLDEN) >> 32) % spread) as usize
}

/// Compares a record, byte by byte, with what record `number` of this size
/// must be.
pub(crate) fn assert_image(data: &[u8], number: u64, size: usize, stream: u32) {
    assert!(
        data.len() >= size,
        "record {number}: {} of {size}",
        data.len()
    );
    let mut image = [0_u8; 256];
    image[..8].copy_from_slice(&number.to_ne_bytes());
    image[8..12].copy_from_slice(&(size as u32).to_ne_bytes());
    image[12..16].copy_from_slice(&stream.to_ne_bytes());
    for (i, word) in image[16..].chunks_exact_mut(8).enumerate() {
        let value = (number + i as u64 + 1).wrapping_mul(GOLDEN);
        word.copy_from_slice(&value.to_ne_bytes());
    }
    assert_eq!(data[..size], image[..size], "record {number}");
}

/// The reader's side of a run: records in order, each whole, gaps counted.
pub(crate) struct Checker {
    pub(crate) next: u64,
    pub(crate) seen: u64,
    pub(crate) missing: u64,
    sizes: (u32, u32),
    stream: u32,
    /// Bytes that may follow a record.
    padding: usize,
}

impl Checker {
    pub(crate) fn new(sizes: (u32, u32), padding: usize) -> Checker {
        Checker {
            next: 0,
            seen: 0,
            missing: 0,
            sizes,
            stream: 7,
            padding,
        }
    }

    pub(crate) fn of_stream(mut self, stream: u32) -> Checker {
        self.stream = stream;
        self
    }

    pub(crate) fn record(&mut self, data: &[u8]) {
        // One too short to carry its number must be the next one.
        let number = if self.sizes.0 >= 8 {
            u64::from_ne_bytes(*data.first_chunk().expect("a number"))
        } else {
            self.next
        };
        assert!(number >= self.next, "{number} after {}", self.next);
        let size = size_of_record(number, self.sizes);
        assert_image(data, number, size, self.stream);
        assert!(data.len() - size <= self.padding, "record {number}");
        self.missing += number - self.next;
        self.next = number + 1;
        self.seen += 1;
    }
}
