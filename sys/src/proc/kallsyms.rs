//! The symbols of kallsyms.

use std::ops::ControlFlow;
use std::path::Path;

use super::for_each_line;
use crate::Result;

/// One line of kallsyms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Symbol<'a> {
    /// Address; 0 for every symbol when the kernel hides them.
    pub address: u64,
    /// Type letter of nm(1): `t` and `T` are functions.
    pub kind: u8,
    /// Name, with any suffix the compiler added (`.isra.0`, `.cold`).
    pub name: &'a [u8],
    /// Module it lives in; `None` for the kernel image. BPF programs and
    /// ftrace trampolines appear under the names `bpf` and `__builtin__ftrace`.
    pub module: Option<&'a [u8]>,
}

impl Symbol<'_> {
    /// True for a function: type `t`, `T`, `w` or `W`.
    pub fn is_function(&self) -> bool {
        matches!(self.kind, b't' | b'T' | b'w' | b'W')
    }
}

/// What [`for_each_symbol`] saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SymbolScan {
    /// Symbols visited.
    pub symbols: usize,
    /// There were symbols, and every address among them was zero: the reader
    /// lacks CAP_SYSLOG or `kernel.kptr_restrict` is 2. A zero address alone
    /// says nothing, since per-CPU symbols may start at 0.
    pub addresses_hidden: bool,
}

/// Visits the symbols of a kallsyms file, until `visit` breaks. `path` is
/// `/proc/kallsyms`, or a copy. Lines that are not symbols are passed over.
///
/// # Errors
/// Those of [`for_each_line`]. Hidden addresses are not an error.
pub fn for_each_symbol(
    path: &Path,
    visit: &mut dyn FnMut(Symbol<'_>) -> ControlFlow<()>,
) -> Result<SymbolScan> {
    let mut symbols = 0;
    let mut bits = 0;
    for_each_line(path, &mut |line| match parse_symbol(line) {
        Some(symbol) => {
            symbols += 1;
            bits |= symbol.address;
            visit(symbol)
        }
        None => ControlFlow::Continue(()),
    })?;
    Ok(SymbolScan {
        symbols,
        addresses_hidden: symbols > 0 && bits == 0,
    })
}

/// Parses one line of kallsyms: `ffffffff81000000 T _text` with
/// `<tab>[module]` after the name of a module's symbol.
pub fn parse_symbol(line: &[u8]) -> Option<Symbol<'_>> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if !(1..=16).contains(&digits) {
        return None;
    }
    let (number, rest) = line.split_at_checked(digits)?;
    let address = number.iter().fold(0, |sum, &b| {
        // Letters are 9 below the value of their low nibble.
        let digit = (b & 15) + if b > b'9' { 9 } else { 0 };
        (sum << 4) | u64::from(digit)
    });
    let [b' ', kind, b' ', rest @ ..] = rest else {
        return None;
    };
    let (name, module) = split_module(rest)?;
    Some(Symbol {
        address,
        kind: *kind,
        name,
        module,
    })
}

/// Splits `name[<blank>[module]]`, the form kallsyms and ftrace share.
pub(crate) fn split_module(text: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let blank = text.iter().position(|&b| b == b'\t' || b == b' ');
    let (name, rest) = text.split_at_checked(blank.unwrap_or(text.len()))?;
    if name.is_empty() {
        return None;
    }
    let module = rest
        .trim_ascii()
        .strip_prefix(b"[")
        .and_then(|rest| rest.split(|&b| b == b']').next());
    Some((name, module))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn symbols() {
        let s = parse_symbol(b"ffffffff81000000 T _text").unwrap();
        assert_eq!((s.address, s.kind), (0xffff_ffff_8100_0000, b'T'));
        assert_eq!((s.name, s.module), (&b"_text"[..], None));
        assert!(s.is_function());
        let s = parse_symbol(b"ffffffffc0a1B2c3 d x.isra.0\t[veth]").unwrap();
        assert_eq!(s.address, 0xffff_ffff_c0a1_b2c3);
        assert_eq!(s.name, b"x.isra.0");
        assert_eq!(s.module, Some(&b"veth"[..]));
        assert!(!s.is_function());
        assert_eq!(parse_symbol(b"c0100000 t x").unwrap().address, 0xc010_0000);
        for bad in [
            &b""[..],
            b"g T x",
            b"0 T ",
            b"0 T",
            b"0  x",
            b"00000000000000000 T x",
            b" T x",
        ] {
            assert_eq!(parse_symbol(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn hidden_addresses_are_told() {
        let dir = TempDir::new();
        let path = dir.path().join("kallsyms");
        let hidden = b"0000000000000000 T a\n0000000000000000 t b\t[m]\n";
        std::fs::write(&path, hidden).unwrap();
        let mut names = Vec::new();
        let scan = for_each_symbol(&path, &mut |s| {
            names.push(s.name.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((scan.symbols, scan.addresses_hidden), (2, true));
        assert_eq!(names, [b"a", b"b"]);
        std::fs::write(&path, b"0000000000000000 A percpu\n1000 T b\n").unwrap();
        let scan = for_each_symbol(&path, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(!scan.addresses_hidden);
        std::fs::write(&path, b"").unwrap();
        let scan = for_each_symbol(&path, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(scan, SymbolScan::default());
    }

    #[test]
    fn symbols_of_this_kernel() {
        let mut found = false;
        let scan = for_each_symbol(Path::new("/proc/kallsyms"), &mut |s| {
            found |= s.name == b"schedule" && s.is_function();
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(found && scan.symbols > 1000, "{scan:?}");
    }
}
