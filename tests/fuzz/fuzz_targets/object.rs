//! An object file: parsed, linked with others and by program, relocated, its
//! variables set.
#![no_main]

use ebpf_manager_fuzz::{bounded, join, object, parse};

#[global_allocator]
static MEMORY: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(mut file) = bounded(&MEMORY, data, || parse(data)) {
        object(&mut file);
    }
    join(data);
});
