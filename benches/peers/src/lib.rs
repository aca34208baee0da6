//! What the measured processes and the one that measures them share.
//!
//! Every peer does its work in a small process of its own (`src/bin/*.rs`, a
//! file for each work and peer), so that whole processes can be compared: time
//! of the wall and of the processor, peak memory, system calls, user
//! instructions. [`measure`] runs them in turns; [`child`] is the frame of
//! such a process.

pub mod child;
pub mod hooks;
pub mod measure;
pub mod recording;

/// Anything that can go wrong ends a process with its text.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
