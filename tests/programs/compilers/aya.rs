// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! What aya makes of Rust: maps by words and by types in one object, a map of
//! maps, a renamed one, constants in sections of their own, names that only a
//! compiler would choose. Programs return 0, or the line of the first check
//! that failed.
#![no_std]
#![no_main]

use aya_ebpf::macros::{btf_map, classifier, map};
use aya_ebpf::programs::TcContext;
use aya_ebpf::{btf_maps, maps};

#[map]
static WORDS: maps::HashMap<u32, u64> = maps::HashMap::with_max_entries(16, 0);
#[map(name = "renamed")]
static RUST_NAME: maps::PerCpuArray<u64> = maps::PerCpuArray::with_max_entries(4, 0);
#[btf_map]
static TYPES: btf_maps::LruHashMap<u32, [u8; 16], 16> = btf_maps::LruHashMap::new();
#[btf_map]
static EVENTS: btf_maps::RingBuf<u64, 4096> = btf_maps::RingBuf::new();
#[btf_map]
static OUTER: btf_maps::ArrayOfMaps<btf_maps::Array<u32, 10>, 4> = btf_maps::ArrayOfMaps::new();

#[unsafe(no_mangle)]
static PATCHED: u32 = 7;
static mut COUNTER: u64 = 3;
static TABLE: [u32; 8] = [1, 1, 2, 3, 5, 8, 13, 21];

macro_rules! check {
    ($condition:expr) => {
        if !$condition {
            return line!() as i32;
        }
    };
}

#[inline(never)]
fn look_up(index: u32) -> u32 {
    // SAFETY: the index is masked.
    unsafe { core::ptr::read_volatile(&TABLE[(index & 7) as usize]) }
}

#[classifier]
pub fn aya_words(_: TcContext) -> i32 {
    check!(WORDS.insert(&5, &50, 0).is_ok());
    // SAFETY: nobody else writes.
    check!(unsafe { WORDS.get(&5) } == Some(&50));
    let Some(count) = RUST_NAME.get_ptr_mut(3) else {
        return line!() as i32;
    };
    // SAFETY: of this processor only.
    unsafe { *count += 1 };
    0
}

#[classifier]
pub fn aya_types(_: TcContext) -> i32 {
    check!(TYPES.insert(&1, &[9; 16], 0).is_ok());
    // SAFETY: nobody else writes.
    check!(unsafe { TYPES.get(&1) }.is_some_and(|value| value[15] == 9));
    let Some(mut record) = EVENTS.reserve(0) else {
        return line!() as i32;
    };
    record.write(11);
    record.submit(0);
    check!(OUTER.get_value(1, &0).is_none());
    0
}

#[classifier]
pub fn aya_data(_: TcContext) -> i32 {
    // SAFETY: plain loads and stores of this program's own data.
    unsafe {
        check!(core::ptr::read_volatile(&raw const PATCHED) == 8);
        let counter = &raw mut COUNTER;
        let value = core::ptr::read_volatile(counter);
        check!(value == 3);
        core::ptr::write_volatile(counter, value + u64::from(look_up(5)));
        check!(core::ptr::read_volatile(counter) == 11);
    }
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
