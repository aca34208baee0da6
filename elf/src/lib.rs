//! eBPF object files in, specifications out.
//!
//! This crate reads ELF objects, BTF and BTF.ext, resolves relocations and
//! CO-RE, and edits what it read. It touches no file, environment or kernel:
//! kernel facts come in as arguments, so a result repeats anywhere. It never
//! panics on any input.
#![forbid(unsafe_code)]

pub mod btf;
pub mod core_relo;
mod cursor;
