//! Declarative manager for the whole life of eBPF programs.
#![forbid(unsafe_code)]
