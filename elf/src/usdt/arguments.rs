//! Where the arguments of marked places are, in the assembler's words.

use object::elf;

/// An argument of a marked place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsdtArgument {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Its uppermost bit is a sign.
    pub signed: bool,
    /// Where it is.
    pub value: UsdtValue,
}

/// Where an argument is. Registers are given by their offset in the kernel's
/// `struct pt_regs` (`user_pt_regs` on aarch64), in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UsdtValue {
    /// It is always this.
    Constant(i64),
    /// In a register.
    Register(u16),
    /// In memory, at the sum of these.
    Memory {
        /// A register.
        base: u16,
        /// Bytes.
        displacement: i64,
        /// Another register, shifted to the left by so many bits.
        index: Option<(u16, u8)>,
    },
    /// Where nothing here can read it: a floating-point register, a variable
    /// by its name.
    Unreadable,
}

/// The arguments of a marked place, on processors of the ELF type `machine`
/// (x86-64 and aarch64; those of all others are
/// [unreadable](UsdtValue::Unreadable)).
pub fn arguments(machine: u16, text: &[u8]) -> Vec<UsdtArgument> {
    let registers: fn(&[u8]) -> Option<u16> = match machine {
        elf::EM_X86_64 => x86_register,
        elf::EM_AARCH64 => arm_register,
        _ => |_| None,
    };
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.iter().position(|b| !b.is_ascii_whitespace()) {
        rest = rest.get(start..).unwrap_or_default();
        // `8@[sp, 16]` is one argument.
        let mut depth = 0_u32;
        let end = rest.iter().position(|b| {
            match b {
                b'[' | b'(' => depth += 1,
                b']' | b')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && b.is_ascii_whitespace()
        });
        let (one, after) = rest
            .split_at_checked(end.unwrap_or(rest.len()))
            .unwrap_or((rest, &[]));
        rest = after;
        found.push(argument(machine, one, registers));
    }
    found
}

fn argument(machine: u16, text: &[u8], register: fn(&[u8]) -> Option<u16>) -> UsdtArgument {
    let (size, place) = match text.iter().position(|&b| b == b'@') {
        Some(at) => (text.get(..at), text.get(at + 1..).unwrap_or_default()),
        // Notes of the first kind have no sizes.
        None => (None, text),
    };
    let bytes = size.map_or(Some(8), integer);
    let (size, signed) = match bytes {
        Some(n @ (1 | 2 | 4 | 8)) => (n.unsigned_abs() as u8, false),
        Some(n @ (-1 | -2 | -4 | -8)) => (n.unsigned_abs() as u8, true),
        // `8f`, a floating-point number, and sizes that nobody knows.
        _ => {
            return UsdtArgument {
                size: 8,
                signed: false,
                value: UsdtValue::Unreadable,
            };
        }
    };
    let value = if machine == elf::EM_AARCH64 {
        arm_value(place, register)
    } else {
        x86_value(place, register)
    };
    UsdtArgument {
        size,
        signed,
        value: value.unwrap_or(UsdtValue::Unreadable),
    }
}

/// `$5`, `%rax`, `-16(%rbp)`, `8(%rax,%rcx,4)`.
fn x86_value(place: &[u8], register: fn(&[u8]) -> Option<u16>) -> Option<UsdtValue> {
    let named = |text: &[u8]| register(text.trim_ascii().strip_prefix(b"%")?);
    match place {
        [b'$', number @ ..] => Some(UsdtValue::Constant(integer(number)?)),
        [b'%', ..] => Some(UsdtValue::Register(named(place)?)),
        [front @ .., b')'] => {
            let open = front.iter().position(|&b| b == b'(')?;
            let (number, inside) = front.split_at_checked(open)?;
            let mut parts = inside.get(1..)?.split(|&b| b == b',');
            let base = parts.next().and_then(named)?;
            // What is near the instruction depends on where that ends.
            if base == RIP {
                return None;
            }
            let index = match parts.next() {
                Some(part) => Some((
                    named(part)?,
                    match parts.next().map(<[u8]>::trim_ascii) {
                        None | Some(b"1") => 0,
                        Some(b"2") => 1,
                        Some(b"4") => 2,
                        Some(b"8") => 3,
                        Some(_) => return None,
                    },
                )),
                None => None,
            };
            let displacement = if number.is_empty() {
                0
            } else {
                integer(number)?
            };
            Some(UsdtValue::Memory {
                base,
                displacement,
                index,
            })
        }
        _ => None,
    }
}

/// `5`, `x3`, `[sp]`, `[sp, 16]`, `[x1, x2]`, `[x1, x2, lsl 3]`.
fn arm_value(place: &[u8], register: fn(&[u8]) -> Option<u16>) -> Option<UsdtValue> {
    let Some(inside) = place.strip_prefix(b"[") else {
        return match register(place) {
            Some(at) => Some(UsdtValue::Register(at)),
            None => Some(UsdtValue::Constant(integer(place)?)),
        };
    };
    let mut parts = inside
        .strip_suffix(b"]")?
        .split(|&b| b == b',')
        .map(<[u8]>::trim_ascii);
    let base = register(parts.next()?)?;
    let (displacement, index) = match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => (0, None),
        (Some(part), None, _) => match integer(part) {
            Some(displacement) => (displacement, None),
            None => (0, Some((register(part)?, 0))),
        },
        (Some(part), Some(shift), None) => {
            let bits = integer(shift.strip_prefix(b"lsl")?.trim_ascii())?;
            let bits = u8::try_from(bits).ok().filter(|bits| *bits < 16)?;
            (0, Some((register(part)?, bits)))
        }
        _ => return None,
    };
    Some(UsdtValue::Memory {
        base,
        displacement,
        index,
    })
}

/// Decimal or `0x…`, perhaps with a sign or, on aarch64, a `#` before it.
fn integer(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text.strip_prefix(b"#").unwrap_or(text)).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let size = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    // Assemblers write 64-bit numbers with a sign or without.
    Some(if negative {
        (size as i64).wrapping_neg()
    } else {
        size as i64
    })
}

/// `ip` in `struct pt_regs`.
const RIP: u16 = 128;

/// Names of the general registers, in the order of `struct pt_regs`: 64, 32,
/// 16 and 8 bits.
static X86: [(u16, [&[u8]; 4]); 9] = [
    (32, [b"rbp", b"ebp", b"bp", b"bpl"]),
    (40, [b"rbx", b"ebx", b"bx", b"bl"]),
    (80, [b"rax", b"eax", b"ax", b"al"]),
    (88, [b"rcx", b"ecx", b"cx", b"cl"]),
    (96, [b"rdx", b"edx", b"dx", b"dl"]),
    (104, [b"rsi", b"esi", b"si", b"sil"]),
    (112, [b"rdi", b"edi", b"di", b"dil"]),
    (RIP, [b"rip", b"eip", b"ip", b"ip"]),
    (152, [b"rsp", b"esp", b"sp", b"spl"]),
];

fn x86_register(name: &[u8]) -> Option<u16> {
    if let Some((at, _)) = X86.iter().find(|(_, names)| names.contains(&name)) {
        return Some(*at);
    }
    // r8 to r15 with d, w or b for their lower parts: the last first.
    let number = name.strip_prefix(b"r")?;
    let number = match number {
        [digits @ .., last] if b"dwb".contains(last) => digits,
        digits => digits,
    };
    let at = match integer(number)? {
        n @ 8..=11 => 72 - (n - 8) * 8,
        n @ 12..=15 => (15 - n) * 8,
        _ => return None,
    };
    u16::try_from(at).ok()
}

fn arm_register(name: &[u8]) -> Option<u16> {
    match name {
        b"sp" => Some(248),
        [b'x' | b'w', number @ ..] if number.first().is_some_and(u8::is_ascii_digit) => {
            let number = integer(number).filter(|n| (0..31).contains(n))?;
            u16::try_from(number * 8).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_64: u16 = elf::EM_X86_64;
    const ARM: u16 = elf::EM_AARCH64;

    fn memory(base: u16, displacement: i64, index: Option<(u16, u8)>) -> UsdtValue {
        UsdtValue::Memory {
            base,
            displacement,
            index,
        }
    }

    #[test]
    fn arguments_of_x86() {
        for (text, size, signed, value) in [
            ("-4@%edi", 4, true, UsdtValue::Register(112)),
            ("8@%rax", 8, false, UsdtValue::Register(80)),
            ("1@%sil", 1, false, UsdtValue::Register(104)),
            ("2@%r8w", 2, false, UsdtValue::Register(72)),
            ("8@%r11", 8, false, UsdtValue::Register(48)),
            ("4@%r15d", 4, false, UsdtValue::Register(0)),
            ("8@%rip", 8, false, UsdtValue::Register(128)),
            ("-4@$-9", 4, true, UsdtValue::Constant(-9)),
            ("8@$0x10", 8, false, UsdtValue::Constant(16)),
            ("8@$0xffffffffffffffff", 8, false, UsdtValue::Constant(-1)),
            ("-8@-16(%rbp)", 8, true, memory(32, -16, None)),
            ("8@(%rsp)", 8, false, memory(152, 0, None)),
            ("4@8(%rax,%rcx,4)", 4, false, memory(80, 8, Some((88, 2)))),
            ("1@(%rdx, %r9)", 1, false, memory(96, 0, Some((64, 0)))),
            ("%rbx", 8, false, UsdtValue::Register(40)),
        ] {
            let expected = UsdtArgument {
                size,
                signed,
                value,
            };
            assert_eq!(arguments(X86_64, text.as_bytes()), [expected], "{text}");
        }
        for text in [
            "8f@%xmm0",
            "8@%xmm0",
            "4@counter(%rip)",
            "4@16(%rip)",
            "3@%rax",
            "1@%ah",
            "8@(,%rax,8)",
            "8@1(%rax,%rbx,3)",
            "8@%r16",
            "8@%r7",
            "@",
            "8@",
            "8@)",
            "8@(",
        ] {
            let [one] = arguments(X86_64, text.as_bytes())[..] else {
                panic!("{text}");
            };
            assert_eq!(one.value, UsdtValue::Unreadable, "{text}");
        }
        let all = arguments(X86_64, b"  -4@%esi -4@-24(%rbp)\t8@8(%rax, %rbx, 8) ");
        assert_eq!(all.len(), 3);
        assert_eq!(all[2].value, memory(80, 8, Some((40, 3))));
        assert_eq!(arguments(X86_64, b""), []);
    }

    #[test]
    fn arguments_of_aarch64() {
        for (text, value) in [
            ("-4@w3", UsdtValue::Register(24)),
            ("8@x30", UsdtValue::Register(240)),
            ("8@sp", UsdtValue::Register(248)),
            ("8@5", UsdtValue::Constant(5)),
            ("8@#-5", UsdtValue::Constant(-5)),
            ("8@[x0]", memory(0, 0, None)),
            ("-4@[sp, 60]", memory(248, 60, None)),
            ("-4@[sp,#-60]", memory(248, -60, None)),
            ("8@[x1, x2]", memory(8, 0, Some((16, 0)))),
            ("8@[x1, x2, lsl 3]", memory(8, 0, Some((16, 3)))),
            ("8@[x1, x2, lsl #3]", memory(8, 0, Some((16, 3)))),
            ("8@[x1, w2, sxtw 3]", UsdtValue::Unreadable),
            ("8@[x1, x2, lsl 99]", UsdtValue::Unreadable),
            ("8@x31", UsdtValue::Unreadable),
            ("8@d0", UsdtValue::Unreadable),
        ] {
            let [one] = arguments(ARM, text.as_bytes())[..] else {
                panic!("{text}");
            };
            assert_eq!(one.value, value, "{text}");
        }
        let all = arguments(ARM, b"-4@[sp, 60] 8@x1");
        assert_eq!(all.len(), 2);
        // Of another processor.
        assert_eq!(arguments(1, b"8@x1")[0].value, UsdtValue::Unreadable);
    }
}
