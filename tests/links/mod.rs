//! Families of hooks.

mod life;

mod cgroup;
mod namespace;
mod probe;
mod route;
mod socket;
mod structure;
mod tc;
mod trace;
mod xdp;
