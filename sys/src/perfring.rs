//! Reading side of a perf event ring.
