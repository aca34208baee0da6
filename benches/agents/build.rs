//! Linker arguments of small programs; README.md ("Small programs") has the
//! same. From here they reach the programs only, not what is run to build them.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=no-unwind.ld");
    let is = |name, value: &str| env::var(name).is_ok_and(|found| found == value);
    // Where Rust links with lld. GNU ld does not fold equal functions.
    let lld = is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ARCH", "x86_64")
        && is("CARGO_CFG_TARGET_ENV", "gnu");
    if !lld || !is("PROFILE", "release") {
        return;
    }
    let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for arg in [
        // Needs glibc 2.36 at run time.
        "-zpack-relative-relocs",
        "--icf=all",
        "--no-eh-frame-hdr",
        &format!("-T{here}/no-unwind.ld"),
    ] {
        println!("cargo::rustc-link-arg-bins=-Wl,{arg}");
    }
}
