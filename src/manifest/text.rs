//! The words of a manifest: numbers, times, hooks, selectors.

use std::time::Duration;

use ebpf_manager_bpf::{Direction, Kprobe, Uprobe};

use crate::{Constant, Hook, ProbeId, Selector, section};

/// The words of a line, without comment and quotes.
pub(super) fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

pub(super) fn probe_id(text: &str) -> ProbeId {
    match text.split_once(':') {
        Some((function, uid)) => ProbeId::new(function, uid),
        None => ProbeId::from(text),
    }
}

pub(super) fn hook(words: &[&str]) -> Result<Hook, String> {
    Ok(match words {
        ["section"] => Hook::section(),
        ["tracepoint", place] => match place.split_once('/') {
            Some((category, name)) => Hook::tracepoint(category, name),
            None => return Err(format!("{place} is no CATEGORY/NAME")),
        },
        ["raw_tracepoint", name] => Hook::raw_tracepoint(*name),
        ["kprobe", function] => Hook::kprobe(Kprobe::new(*function)),
        ["kretprobe", function] => Hook::kprobe(Kprobe::new(*function).on_return()),
        ["ksyscall", name] => Hook::kprobe(Kprobe::syscall(*name)),
        ["kretsyscall", name] => Hook::kprobe(Kprobe::syscall(*name).on_return()),
        [kind @ ("uprobe" | "uretprobe"), place] => match place.rsplit_once(':') {
            Some((path, symbol)) => {
                let probe = Uprobe::symbol(path, symbol);
                let returns = *kind == "uretprobe";
                Hook::uprobe(if returns { probe.on_return() } else { probe })
            }
            None => return Err(format!("{place} is no FILE:SYMBOL")),
        },
        ["xdp", interface] => Hook::xdp(*interface),
        ["tc", interface, "ingress"] => Hook::tc(*interface, Direction::Ingress),
        ["tc", interface, "egress"] => Hook::tc(*interface, Direction::Egress),
        ["cgroup", path] => Hook::cgroup(path),
        _ => return Err(format!("{} is no hook", words.join(" "))),
    })
}

pub(super) fn constant_options(mut constant: Constant, words: &[&str]) -> Result<Constant, String> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        constant = match (*word, words.as_slice()) {
            ("if_present", _) => constant.if_present(),
            ("only_for", [program, ..]) => {
                words.next();
                constant.only_for(*program)
            }
            _ => return Err(format!("{word} is not understood here")),
        };
    }
    Ok(constant)
}

/// A whole number, decimal or after `0x`.
pub(super) fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    section::number(text)
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("{text} is no number that fits"))
}

/// A number as the bytes of a C type.
pub(super) fn typed(kind: &str, text: &str) -> Result<Vec<u8>, String> {
    let bits: usize = match kind {
        "u8" | "i8" => 8,
        "u16" | "i16" => 16,
        "u32" | "i32" => 32,
        "u64" | "i64" => 64,
        _ => return Err(format!("{kind} is no type: u8 to u64, i8 to i64")),
    };
    let unfit = || format!("{text} does not fit {kind}");
    let value: i128 = match text.strip_prefix("0x") {
        Some(hex) => i128::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .map_err(|_| format!("{text} is no number"))?;
    let range = if kind.starts_with('u') {
        0..1_i128 << bits
    } else {
        -(1_i128 << (bits - 1))..1_i128 << (bits - 1)
    };
    if !range.contains(&value) {
        return Err(unfit());
    }
    let all = (value as u64).to_ne_bytes();
    let bytes = bits / 8;
    Ok(if cfg!(target_endian = "little") {
        all[..bytes].to_vec()
    } else {
        all[8 - bytes..].to_vec()
    })
}

pub(super) fn delay(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| format!("{text} is no time like 100ms"))
}

/// A whole number and its unit: `us`, `ms`, `s`, `m`, `h`. At most what fits
/// nanoseconds in 64 bits, 584 years; `None` for any other text.
pub fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(unit_at)?;
    let unit_ns = match unit {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(unit_ns).map(Duration::from_nanos)
}

/// What is left of a selector's text.
pub(super) struct SelectorText<'t>(pub(super) &'t str);

/// How deep selectors may be nested.
const DEPTH: usize = 32;

impl SelectorText<'_> {
    pub(super) fn whole(mut self) -> Result<Selector, String> {
        let selector = self.next(DEPTH)?;
        if self.0.is_empty() {
            Ok(selector)
        } else {
            Err(format!("what does {:?} belong to?", self.0))
        }
    }

    fn next(&mut self, depth: usize) -> Result<Selector, String> {
        let end = self.0.find(['(', ')', ',']).unwrap_or(self.0.len());
        let (name, rest) = self.0.split_at(end);
        let name = name.trim();
        if name.is_empty() || depth == 0 {
            return Err("a selector is not complete".to_owned());
        }
        let Some(rest) = rest.strip_prefix('(') else {
            self.0 = rest;
            return Ok(Selector::Probe(probe_id(name)));
        };
        self.0 = rest.trim_start();
        let mut parts = Vec::new();
        loop {
            if let Some(rest) = self.0.strip_prefix(')') {
                self.0 = rest.trim_start();
                break;
            }
            parts.push(self.next(depth - 1)?);
            if let Some(rest) = self.0.strip_prefix(',') {
                self.0 = rest.trim_start();
            } else if !self.0.starts_with(')') {
                return Err("a bracket is not closed".to_owned());
            }
        }
        match name {
            "all_of" => Ok(Selector::AllOf(parts)),
            "one_of" => Ok(Selector::OneOf(parts)),
            "best_effort" => Ok(Selector::BestEffort(parts)),
            _ => Err(format!("{name} is no selector")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("250us"), Some(Duration::from_micros(250)));
        assert_eq!(duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Some(Duration::from_secs(3600)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "+5s",
            "5x",
            "1.5s",
            "5S",
            "5s5",
            "1m30s",
            "é",
            "5124096h",
            "99999999999999999999s",
        ] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn numbers_have_their_types_bytes() {
        assert_eq!(typed("u16", "258"), Ok(258_u16.to_ne_bytes().to_vec()));
        assert_eq!(typed("i32", "-2"), Ok((-2_i32).to_ne_bytes().to_vec()));
        assert_eq!(typed("u64", "0xffffffffffffffff"), Ok(vec![0xff; 8]));
        assert_eq!(typed("i8", "-128"), Ok(vec![0x80]));
        assert!(typed("i8", "128").is_err());
    }
}
