//! Numbers and layouts of the kernel ABI. Nothing here makes a call.
//!
//! Sources are named per item; unless stated otherwise they are the headers
//! under `include/uapi/linux` of Linux 6.12.

pub mod attr;
pub mod bpf;
pub mod insn;
pub mod netlink;
pub mod perf;
pub mod pod;
