//! Performance monitoring units that the kernel registers while it boots,
//! such as the ones for kprobes and uprobes.

use std::path::PathBuf;

use crate::Result;
use crate::errno::{Errno, SysError};
use crate::proc::{decimal, malformed, read_setting, read_small};

/// A unit below `/sys/bus/event_source/devices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pmu {
    name: &'static str,
    kind: u32,
}

impl Pmu {
    /// Finds the unit `name`. `kprobe` and `uprobe` exist since Linux 4.17.
    ///
    /// # Errors
    /// `ENOENT` if the kernel has no such unit.
    pub fn find(name: &'static str) -> Result<Pmu> {
        let path = directory(name).join("type");
        let kind = read_setting(&path)?;
        let kind = u32::try_from(kind).map_err(|_| malformed(&path))?;
        Ok(Pmu { name, kind })
    }

    /// Its number: the `type` of its events.
    pub fn kind(&self) -> u32 {
        self.kind
    }

    /// `value` where `format/FIELD` places it in `config`.
    ///
    /// # Errors
    /// `ENOENT` if the unit has no such field; `EOVERFLOW` if the value does
    /// not fit in.
    pub fn config(&self, field: &str, value: u64) -> Result<u64> {
        let path = directory(self.name).join("format").join(field);
        let (first, bits) =
            parse_field(read_small(&path, &mut [0; 64])?).ok_or_else(|| malformed(&path))?;
        if bits < 64 && value >> bits != 0 {
            return Err(SysError::new("perf_event_open", Errno::EOVERFLOW).with_path(path));
        }
        Ok(value << first)
    }
}

fn directory(name: &str) -> PathBuf {
    PathBuf::from("/sys/bus/event_source/devices").join(name)
}

/// First bit and number of bits of `config:0` or `config:32-63`.
fn parse_field(text: &[u8]) -> Option<(u32, u32)> {
    let (first, rest) = decimal(text.trim_ascii().strip_prefix(b"config:")?)?;
    let last = match rest {
        [] => first,
        [b'-', rest @ ..] => match decimal(rest)? {
            (last, []) => last,
            _ => return None,
        },
        _ => return None,
    };
    if last < first || last > 63 {
        return None;
    }
    Some((first as u32, (last - first + 1) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        assert_eq!(parse_field(b"config:0\n"), Some((0, 1)));
        assert_eq!(parse_field(b"config:32-63\n"), Some((32, 32)));
        assert_eq!(parse_field(b"config:0-63"), Some((0, 64)));
        for bad in [
            "",
            "config:",
            "config1:0",
            "config:3-1",
            "config:0-64",
            "config:1,3",
            "config:x",
        ] {
            assert_eq!(parse_field(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn units_of_this_kernel() {
        let err = Pmu::find("no_such_unit").unwrap_err();
        assert!(err.is(Errno::ENOENT), "{err}");
        // Software events are a unit on every kernel.
        assert_eq!(Pmu::find("software").unwrap().kind(), 1);
        if let Ok(uprobe) = Pmu::find("uprobe") {
            assert_eq!(uprobe.config("retprobe", 1).unwrap(), 1);
            assert!(
                uprobe
                    .config("retprobe", 2)
                    .unwrap_err()
                    .is(Errno::EOVERFLOW)
            );
        }
    }
}
