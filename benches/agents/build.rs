//! Linker arguments of small programs; README.md ("Small programs") has the
//! same. From here they reach the programs only, not what is run to build them.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=no-unwind.ld");
    let linux = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if !linux || env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return;
    }
    let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for arg in [
        // Needs glibc 2.36 at run time.
        "-zpack-relative-relocs",
        // lld, which Rust links with on x86-64.
        "--icf=all",
        "--no-eh-frame-hdr",
        &format!("-T{here}/no-unwind.ld"),
    ] {
        println!("cargo::rustc-link-arg-bins=-Wl,{arg}");
    }
}
