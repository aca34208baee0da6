//! Live kernel objects: maps, programs, BTF, links and readers, created from
//! specifications, with fallback to old kernels.
#![forbid(unsafe_code)]
