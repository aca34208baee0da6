//! Reading side of a BPF ring buffer.
