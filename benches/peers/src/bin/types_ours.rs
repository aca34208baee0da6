//! Looks up a kernel type by name with this project's BTF reader: reports
//! microseconds and KiB of anonymous memory until it can.

use std::process::ExitCode;
use std::time::Instant;

use ebpf_manager::bpf::KernelBtf;
use ebpf_manager::elf::btf::Kind;
use ebpf_manager_peers::{child, child::status};

fn main() -> ExitCode {
    child::run(|_| {
        let before = status("RssAnon:");
        let start = Instant::now();
        let kernel = KernelBtf::vmlinux()?;
        let types = kernel.btf()?;
        let id = types.find_by_name_kind("task_struct", Kind::STRUCT);
        let passed = start.elapsed();
        id.ok_or("no task_struct")?;
        Ok(vec![
            passed.as_micros() as u64,
            status("RssAnon:").saturating_sub(before),
        ])
    })
}
