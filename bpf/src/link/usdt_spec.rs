//! What `usdt.bpf.h` of libbpf reads about the arguments of a marked place.

use ebpf_manager_elf::usdt::{UsdtArgument, UsdtValue};

/// Arguments that a specification has room for.
const MAX_ARGUMENTS: usize = 12;

/// How long the description of one argument is: libbpf 1.7 made it longer by
/// its bit fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// 16 bytes.
    Short,
    /// 24 bytes.
    Long,
}

impl Layout {
    const fn argument_len(self) -> usize {
        match self {
            Layout::Short => 16,
            Layout::Long => 24,
        }
    }

    pub(super) const fn len(self) -> usize {
        MAX_ARGUMENTS * self.argument_len() + 16
    }

    pub(super) fn of_size(value_size: usize) -> Option<Layout> {
        [Layout::Short, Layout::Long]
            .into_iter()
            .find(|layout| layout.len() == value_size)
    }
}

/// `struct __bpf_usdt_spec`, in this machine's byte order.
pub(super) fn encode(arguments: &[UsdtArgument], cookie: u64, layout: Layout) -> Vec<u8> {
    let mut value = vec![0; layout.len()];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(to) = value.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    let count = arguments.len().min(MAX_ARGUMENTS);
    for (index, argument) in arguments.iter().take(count).enumerate() {
        let at = index * layout.argument_len();
        let (kind, number, register, index_register, shift) = match argument.value {
            UsdtValue::Constant(number) => (0_u8, number, 0, 0, 0),
            UsdtValue::Register(register) => (1, 0, register, 0, 0),
            UsdtValue::Memory {
                base,
                displacement,
                index: None,
            } => (2, displacement, base, 0, 0),
            UsdtValue::Memory {
                base,
                displacement,
                index: Some((index, shift)),
            } => (3, displacement, base, index, shift),
            // The program gets an error for this argument, and the others.
            UsdtValue::Unreadable => (u8::MAX, 0, 0, 0, 0),
        };
        put(at, &number.to_ne_bytes());
        let little = cfg!(target_endian = "little");
        let registers = match layout {
            // Bit fields in one word, the first in its low bits.
            Layout::Short => {
                let (index, shift) = (u32::from(index_register), u32::from(shift));
                let word = if little {
                    u32::from(kind) | index << 8 | shift << 20
                } else {
                    u32::from(kind) | shift << 8 | index << 12
                };
                put(at + 8, &word.to_ne_bytes());
                at + 12
            }
            // A byte, 16 bits for index and scale, a byte.
            Layout::Long => {
                let half = if little {
                    index_register | u16::from(shift) << 12
                } else {
                    index_register << 4 | u16::from(shift)
                };
                put(at + 10, &half.to_ne_bytes());
                put(at + if little { 8 } else { 12 }, &[kind]);
                at + 14
            }
        };
        put(registers, &register.to_ne_bytes());
        let spare = 64 - 8 * argument.size.min(8);
        put(registers + 2, &[argument.signed.into(), spare]);
    }
    let at = MAX_ARGUMENTS * layout.argument_len();
    put(at, &cookie.to_ne_bytes());
    put(at + 8, &(count as u16).to_ne_bytes());
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argument(size: u8, signed: bool, value: UsdtValue) -> UsdtArgument {
        UsdtArgument {
            size,
            signed,
            value,
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn specifications_are_those_of_usdt_bpf_h() {
        let arguments = [
            argument(4, true, UsdtValue::Register(112)),
            argument(
                1,
                false,
                UsdtValue::Memory {
                    base: 32,
                    displacement: -16,
                    index: Some((0xabc, 3)),
                },
            ),
            argument(8, false, UsdtValue::Unreadable),
        ];
        let short = encode(&arguments, 0x1122, Layout::Short);
        assert_eq!(short.len(), 208);
        assert_eq!(
            short[..16],
            [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 112, 0, 1, 32]
        );
        let memory = [
            0xf0, 255, 255, 255, 255, 255, 255, 255, 3, 0xbc, 0x3a, 0, 32, 0, 0, 56,
        ];
        assert_eq!(short[16..32], memory);
        assert_eq!(short[40], 255);
        assert_eq!(short[192..202], [0x22, 0x11, 0, 0, 0, 0, 0, 0, 3, 0]);
        let long = encode(&arguments, 0x1122, Layout::Long);
        assert_eq!(long.len(), 304);
        assert_eq!(long[8..18], [1, 0, 0, 0, 0, 0, 112, 0, 1, 32]);
        assert_eq!(long[32..42], [3, 0, 0xbc, 0x3a, 0, 0, 32, 0, 0, 56]);
        assert_eq!(long[288..298], [0x22, 0x11, 0, 0, 0, 0, 0, 0, 3, 0]);
        // More than there is room for.
        let many = [argument(8, false, UsdtValue::Constant(1)); 20];
        assert_eq!(encode(&many, 0, Layout::Short)[200], 12);
        assert_eq!(Layout::of_size(208), Some(Layout::Short));
        assert_eq!(Layout::of_size(304), Some(Layout::Long));
        assert_eq!(Layout::of_size(209), None);
    }
}
