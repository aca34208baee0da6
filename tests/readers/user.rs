//! User ring buffers.

use std::time::Duration;

use ebpf_manager::bpf::{UserRingBuffer, UserRingBufferError};

use super::*;
use crate::common::Feature;

const USER_RING: Feature = Feature::new("user ring buffer", 6, 1);

fn sample(number: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0xab; size];
    bytes[..8].copy_from_slice(&number.to_ne_bytes());
    bytes[8..16].copy_from_slice(&(size as u64).to_ne_bytes());
    bytes
}

#[test]
fn user_ring_samples_arrive_in_order_and_whole() {
    if !require(&USER_RING) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = load("userring.bpf.o");
    let program = object.program("userring_drain").unwrap();
    let mut ring = UserRingBuffer::new(map(&object, "samples")).unwrap();
    assert_eq!(ring.size_bytes(), 4096);
    let mut number = 0;
    for round in 0..200_usize {
        let mut put = 0;
        loop {
            let size = 16 + (number as usize * 37 + round) % 500;
            let room = match ring.reserve(size) {
                Ok(room) => room,
                Err(err) => {
                    let map = "samples".to_owned();
                    assert_eq!(err, UserRingBufferError::Full { map });
                    break;
                }
            };
            // Some are given up: no trace of them.
            if number % 5 == 0 {
                let mut room = room;
                room.copy_from_slice(&sample(u64::MAX, size));
            }
            ring.push(&sample(number, size)).unwrap();
            (put, number) = (put + 1, number + 1);
        }
        assert!(put > 5);
        assert_eq!(common::run(program), put);
    }
    let count = |name| object.variable(name).unwrap().get::<u64>().unwrap();
    assert_eq!(count("taken"), number);
    assert_eq!((count("misplaced"), count("overlong")), (0, 0));

    let too_long = ring.push(&[0; 4096]).unwrap_err();
    assert!(matches!(
        too_long,
        UserRingBufferError::TooLong { max: 4088, .. }
    ));
    while ring.push(&[0; 1000]).is_ok() {}
    let soon = Some(Duration::from_millis(1));
    let full = ring.push_within(&[0; 1000], soon).unwrap_err();
    assert!(matches!(full, UserRingBufferError::Full { .. }), "{full}");
}

/// A writer that waits goes on when a program has made room.
#[test]
fn user_ring_writers_wait_for_room() {
    if !require(&USER_RING) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let object = load("userring.bpf.o");
    let program = object.program("userring_drain").unwrap();
    let mut ring = UserRingBuffer::new(map(&object, "samples")).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for number in 0..300 {
                ring.push_within(&sample(number, 100), None).unwrap();
            }
        });
        let mut taken = 0;
        while taken < 300 {
            taken += common::run(program);
            std::thread::yield_now();
        }
        writer.join().unwrap();
        assert_eq!(taken, 300);
    });
    let count = |name| object.variable(name).unwrap().get::<u64>().unwrap();
    assert_eq!((count("misplaced"), count("overlong")), (0, 0));
}
