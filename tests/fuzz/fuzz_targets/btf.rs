//! Type information: read, asked about, copied, made fit for old kernels.
#![no_main]

use ebpf_manager_fuzz::{bounded, btf};

#[global_allocator]
static MEMORY: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bounded(&MEMORY, data, || btf(data)));
