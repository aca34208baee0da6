//! Attribute structs of bpf(2), one per command variant.
