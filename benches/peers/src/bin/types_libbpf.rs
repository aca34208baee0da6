//! Looks up a kernel type by name with libbpf-rs.

use std::process::ExitCode;
use std::time::Instant;

use ebpf_manager_peers::{child, child::status};
use libbpf_rs::btf::{Btf, types::Struct};

fn main() -> ExitCode {
    child::run(|_| {
        let before = status("RssAnon:");
        let start = Instant::now();
        let types = Btf::from_vmlinux()?;
        let found = types.type_by_name::<Struct<'_>>("task_struct");
        let passed = start.elapsed();
        found.ok_or("no task_struct")?;
        Ok(vec![
            passed.as_micros() as u64,
            status("RssAnon:").saturating_sub(before),
        ])
    })
}
