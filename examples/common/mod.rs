//! What the examples share: the object they load, things to be seen, and how
//! they end.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "no example uses everything, and all of them talk"
)]

use std::error::Error;
use std::net::UdpSocket;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use ebpf_manager::ObjectSource;

/// What an example answers.
pub type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// The object, made of `tests/programs/examples.bpf.c`.
pub fn object() -> ObjectSource {
    ObjectSource::bytes(include_bytes!("../../tests/programs/examples.bpf.o"))
}

/// Runs an example: what it shows, then that, then how it went.
pub fn run(shows: &str, example: fn() -> Result) -> ExitCode {
    println!("shows: {shows}");
    match example() {
        Ok(()) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Err(err) if err.is::<Skip>() => {
            eprintln!("skipped: {err}");
            ExitCode::SUCCESS
        }
        Err(err) => {
            eprintln!("failed: {err}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug)]
struct Skip(&'static str);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Skip {}

/// Ends the example unless this kernel has what it is about.
pub fn needs(what: &'static str, there: bool) -> Result {
    if there {
        Ok(())
    } else {
        Err(Box::new(Skip(what)))
    }
}

/// Whether a file of the kernel's has this word.
pub fn file_says(path: &str, word: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.contains(word))
}

/// Whether the kernel is locked down, and refuses to trace its functions.
pub fn is_locked_down() -> bool {
    let path = "/sys/kernel/security/lockdown";
    file_says(path, "[integrity]") || file_says(path, "[confidentiality]")
}

/// Fails the example with a message.
pub fn check(holds: bool, what: &str) -> Result {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// Does something over and over until it was seen.
pub fn until(what: &str, act: impl Fn(), mut seen: impl FnMut() -> Result<bool>) -> Result {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        act();
        if seen()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(format!("{what}: not seen").into())
}

/// Starts a process.
pub fn fork() {
    // A machine without it forks all the same.
    let _ = Command::new("true").status();
}

/// Opens a file.
pub fn open() {
    // One that every process has.
    let _ = std::fs::File::open("/proc/self/stat");
}

/// Makes a system call.
pub fn call() {
    std::hint::black_box(std::process::id());
}

/// Sends a packet that the programs count to this machine itself.
pub fn send() {
    if let Ok(socket) = UdpSocket::bind("127.0.0.1:0") {
        // Nobody listens.
        let _ = socket.send_to(b"example", "127.0.0.1:4343");
    }
}
