//! Pointer-only shared mappings.
