//! eBPF object files in, specifications out.
//!
//! This crate reads ELF objects, BTF and BTF.ext, resolves relocations and
//! CO-RE, and edits what it read. It touches no file, environment or kernel:
//! kernel facts come in as arguments, so a result repeats anywhere. It never
//! panics on any input.
//!
//! [`Object::parse`] digests a file once: sections, symbols, map definitions
//! and relocations. [`Object::linker`] then lays out one program after the
//! other with the subprograms it needs ([`Linker::link`]); what only the
//! kernel knows is left as a list of [`Fixup`]s.
#![forbid(unsafe_code)]

pub mod btf;
pub mod core_relo;
mod cursor;
mod error;
mod image;
mod link;
mod load_btf;
mod maps;
mod object;
pub mod section;
mod sort;
mod spec;

pub use error::ObjectError;
pub use image::Bytes;
pub use link::{Fixup, FixupTarget, LinkedCoreRelo, LinkedProgram, Linker};
pub use object::Object;
pub use spec::{Contents, ExternSpec, MapSpec, Pinning, ProgramSpec, Slot, VariableSpec};
