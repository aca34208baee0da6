//! An object and the types of a kernel, both hostile.
#![no_main]

use ebpf_manager_fuzz::core_relo;

libfuzzer_sys::fuzz_target!(|data: &[u8]| core_relo(data));
