//! Shows: a program on what a socket receives.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an example talks"
)]

mod common;

use std::net::UdpSocket;
use std::process::ExitCode;

use ebpf_manager::{Hook, Manager, Probe};

fn main() -> ExitCode {
    common::run("a program on what a socket receives", example)
}

fn example() -> common::Result {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let hook = Hook::socket_filter(socket.try_clone()?.into());
    let manager = Manager::builder()
        .probe(Probe::new("on_socket").hook(hook))
        .build()?;
    manager.init(&common::object())?;
    manager.start()?;
    let counter = manager.variable("packets").ok_or("no such variable")?;
    let to = socket.local_addr()?;
    let send = || {
        // A full queue is as good.
        let _ = socket.send_to(b"example", to);
    };
    common::until("a packet", send, || Ok(counter.get::<u64>()? > 0))?;
    println!("packets: {}", counter.get::<u64>()?);
    manager.stop()?;
    Ok(())
}
