//! The frame of a measured process.

use std::process::ExitCode;

use crate::Result;

/// Set by the measuring process when it wants to know the memory that a
/// process has used: without it nothing is read or printed.
pub const REPORT: &str = "PEERS_REPORT";

/// Runs `work` on the command line's arguments. If asked to, prints what
/// [`measure::memory`](crate::measure::memory) reads: peak memory, and what `work` says.
pub fn run(work: impl FnOnce(&[String]) -> Result<Vec<u64>>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match work(&arguments) {
        Ok(numbers) => {
            if std::env::var_os(REPORT).is_some() {
                print!("{}", status("VmHWM:"));
                for number in numbers {
                    print!(" {number}");
                }
                println!();
            }
            ExitCode::SUCCESS
        }
        Err(err) => {
            eprintln!("{}: {err}", std::env::args().next().unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

/// A line of `/proc/self/status`, in KiB: `VmHWM:` is the most memory that was
/// resident, `RssAnon:` what is now resident and of no file.
pub fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0)
}
