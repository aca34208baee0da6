//! Values of the kernel's configuration, from its lines to the bytes of a map.

use super::{ConfigType, ExternKind};
use crate::error::{Fault, ObjectError, bad_symbol};
use crate::object::Object;
use crate::sort::sort;

impl Object {
    /// Index in [`Object::maps`] of the map that holds configuration values,
    /// if the object uses any. Its contents come from
    /// [`Object::kernel_config`].
    pub fn config_map(&self) -> Option<usize> {
        self.config_map
    }

    /// Starts to collect the object's configuration values; `None` if it has
    /// none. `used` tells which externs are worth a value, as
    /// [`Object::used_externs`] does.
    pub fn kernel_config(&self, used: &[bool]) -> Option<KernelConfig<'_>> {
        let map = self.maps().get(self.config_map?)?;
        let mut values: Vec<ConfigValue<'_>> = (0..)
            .zip(self.externs())
            .zip(used)
            .filter_map(|((index, symbol), used)| match symbol.kind {
                ExternKind::Config {
                    offset,
                    size,
                    value,
                } if *used => Some(ConfigValue {
                    name: &symbol.name,
                    index,
                    start: offset as usize,
                    size: size as usize,
                    value,
                    set: false,
                }),
                _ => None,
            })
            .collect();
        sort(&mut values, |a, b| a.name < b.name);
        Some(KernelConfig {
            bytes: vec![0; map.value_size as usize],
            values,
        })
    }
}

/// The configuration values that programs of an object use, being collected.
///
/// Feed it the lines of a configuration and the numbers that the loader itself
/// finds out (`LINUX_KERNEL_VERSION` and the like), then [`finish`]. What was
/// set first stays.
///
/// [`finish`]: KernelConfig::finish
#[derive(Debug)]
pub struct KernelConfig<'o> {
    bytes: Vec<u8>,
    /// Sorted by name.
    values: Vec<ConfigValue<'o>>,
}

#[derive(Debug)]
struct ConfigValue<'o> {
    name: &'o str,
    /// Index into the externs.
    index: u32,
    start: usize,
    size: usize,
    value: ConfigType,
    set: bool,
}

impl KernelConfig<'_> {
    /// True if a variable of this name has no value yet.
    pub fn needs(&self, name: &str) -> bool {
        self.position(name.as_bytes()).is_some()
    }

    /// True if a `CONFIG_` variable has no value yet, so that it is worth
    /// reading the configuration.
    pub fn needs_options(&self) -> bool {
        self.values
            .iter()
            .any(|v| !v.set && v.name.starts_with("CONFIG_"))
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        let at = self
            .values
            .binary_search_by(|v| v.name.as_bytes().cmp(name));
        at.ok()
            .filter(|at| self.values.get(*at).is_some_and(|v| !v.set))
    }

    /// Takes a line of a kernel configuration (`CONFIG_BPF=y`). Lines that
    /// set nothing the object asks for are passed over.
    ///
    /// # Errors
    /// [`ObjectError::Symbol`] if the value does not fit its variable.
    pub fn line(&mut self, line: &[u8]) -> Result<(), ObjectError> {
        if !line.starts_with(b"CONFIG_") {
            return Ok(());
        }
        let line = line.trim_ascii_end();
        let Some(end) = line.iter().position(|b| *b == b'=') else {
            return Ok(());
        };
        let (name, text) = line.split_at(end);
        let Some(at) = self.position(name) else {
            return Ok(());
        };
        match text.get(1..).unwrap_or_default() {
            [letter @ (b'y' | b'm' | b'n')] => self.set_letter(at, *letter)?,
            [b'"', text @ .., b'"'] => self.set_text(at, text)?,
            digits => match parse_number(digits) {
                Some(number) => self.set_number(at, number)?,
                None => return Err(self.misfit(at, digits).into()),
            },
        }
        Ok(())
    }

    /// Sets a variable to a number.
    ///
    /// # Errors
    /// [`ObjectError::Symbol`] if the number does not fit the variable.
    pub fn number(&mut self, name: &str, number: u64) -> Result<(), ObjectError> {
        match self.position(name.as_bytes()) {
            Some(at) => Ok(self.set_number(at, number)?),
            None => Ok(()),
        }
    }

    /// The contents for the map, and the indices in [`Object::externs`] of
    /// variables without a value, which read as 0. Those that are not weak
    /// must not be read.
    pub fn finish(self) -> (Vec<u8>, Vec<u32>) {
        let missing = self.values.iter().filter(|v| !v.set).map(|v| v.index);
        (self.bytes, missing.collect())
    }

    fn set_letter(&mut self, at: usize, letter: u8) -> Result<(), Fault> {
        let number = match (self.values[at].value, letter) {
            (ConfigType::Bool | ConfigType::Tristate, b'y') => 1,
            (ConfigType::Bool | ConfigType::Tristate, b'n') => 0,
            (ConfigType::Tristate, _) => 2,
            (ConfigType::Char { .. }, letter) => u64::from(letter),
            _ => return Err(self.misfit(at, &[letter])),
        };
        self.store(at, number);
        Ok(())
    }

    fn set_text(&mut self, at: usize, text: &[u8]) -> Result<(), Fault> {
        let value = &self.values[at];
        if value.value != ConfigType::Text {
            return Err(self.misfit(at, text));
        }
        // The last byte stays zero.
        let room = value.size.saturating_sub(1).min(text.len());
        let start = value.start;
        if let (Some(to), Some(from)) = (self.bytes.get_mut(start..start + room), text.get(..room))
        {
            to.copy_from_slice(from);
        }
        self.values[at].set = true;
        Ok(())
    }

    fn set_number(&mut self, at: usize, number: u64) -> Result<(), Fault> {
        let value = &self.values[at];
        let bits = value.size as u32 * 8;
        let fits = match value.value {
            ConfigType::Bool => number <= 1,
            ConfigType::Int { .. } | ConfigType::Char { .. } if bits >= 64 => true,
            ConfigType::Int { signed: true } | ConfigType::Char { signed: true } => {
                number.wrapping_add(1 << (bits - 1)) >> bits == 0
            }
            ConfigType::Int { .. } | ConfigType::Char { .. } => number >> bits == 0,
            ConfigType::Tristate | ConfigType::Text => false,
        };
        if !fits {
            return Err(self.misfit(at, number.to_string().as_bytes()));
        }
        self.store(at, number);
        Ok(())
    }

    /// Stores the low bytes of a number in this machine's byte order.
    fn store(&mut self, at: usize, number: u64) {
        let number = number.to_ne_bytes();
        let value = &mut self.values[at];
        let size = value.size.min(8);
        let from = if cfg!(target_endian = "little") {
            number.get(..size)
        } else {
            number.get(8 - size..)
        };
        if let (Some(to), Some(from)) = (self.bytes.get_mut(value.start..value.start + size), from)
        {
            to.copy_from_slice(from);
        }
        value.set = true;
    }

    #[cold]
    fn misfit(&self, at: usize, text: &[u8]) -> Fault {
        let value = &self.values[at];
        let declared = match value.value {
            ConfigType::Bool => "a bool",
            ConfigType::Tristate => "an enum libbpf_tristate",
            ConfigType::Char { .. } => "a char",
            ConfigType::Int { .. } => "an integer",
            ConfigType::Text => "an array of char",
        };
        bad_symbol(
            value.name,
            format_args!(
                "its value {} does not fit {declared} of {} bytes",
                String::from_utf8_lossy(text),
                value.size
            ),
        )
    }
}

/// A number as C writes it: decimal, `0x` or `0` in front of other bases, a
/// minus sign.
fn parse_number(text: &[u8]) -> Option<u64> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (radix, digits) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (16, rest),
        [b'0', rest @ ..] if !rest.is_empty() => (8, rest),
        _ => (10, text),
    };
    let digits = std::str::from_utf8(digits).ok()?;
    // from_str_radix takes a plus sign.
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let number = u64::from_str_radix(digits, radix).ok()?;
    if negative && number > 1 << 63 {
        return None;
    }
    Some(if negative {
        number.wrapping_neg()
    } else {
        number
    })
}
