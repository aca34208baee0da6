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
//! kernel knows is left as a list of [`Fixup`]s. Before it is filled in, an
//! [`edit::ProgramEditor`] may change the program's instructions.
#![forbid(unsafe_code)]
#![allow(
    clippy::unnecessary_box_returns,
    reason = "a fault is handed up as one pointer"
)]

pub mod btf;
pub mod check;
pub mod core_relo;
mod cursor;
mod disasm;
pub mod edit;
mod error;
mod externs;
mod image;
pub mod library_cache;
mod link;
mod load_btf;
mod maps;
mod object;
mod reach;
pub mod section;
#[doc(hidden)]
pub mod sort;
mod spec;
mod static_link;
mod struct_ops;
pub mod symbols;
pub mod usdt;

pub use disasm::disassemble;
pub use ebpf_manager_sys::abi::insn;
pub use error::ObjectError;
pub use externs::{ConfigType, ExternKind, KernelConfig};
pub use image::Bytes;
pub use link::{Fixup, FixupTarget, LinkedCoreRelo, LinkedProgram, Linker};
pub use object::Object;
pub use reach::reachable;
pub use spec::{
    Contents, ExternSpec, MapSpec, Operation, Pinning, ProgramSpec, Slot, StructOps, VariableSpec,
};
pub use static_link::{StaticLinkError, static_link};
pub use struct_ops::{OperationsLayout, PlacedOperation};
