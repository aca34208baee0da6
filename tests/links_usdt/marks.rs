//! Marked places, as the header of systemtap makes them for C programs. Only
//! the assembler can write such notes.

use std::arch::asm;
use std::sync::atomic::AtomicU16;

/// Above zero while somebody traces.
#[unsafe(link_section = ".probes")]
pub(crate) static COUNTER: AtomicU16 = AtomicU16::new(0);

/// A marked place as an author's header makes it: a `nop`, and a note about it.
macro_rules! mark {
    ($name:literal, $arguments:literal, $counter:literal, $($operand:tt)*) => {
        // SAFETY: the instruction does nothing; the rest is a note in a section
        // that is not loaded.
        unsafe {
            asm!(
                "990: nop",
                ".pushsection .note.stapsdt,\"\",@note",
                ".balign 4",
                ".4byte 992f-991f, 994f-993f, 3",
                "991: .asciz \"stapsdt\"",
                "992: .balign 4",
                "993: .8byte 990b, 0",
                concat!(".8byte ", $counter),
                ".asciz \"ebpf_manager\"",
                concat!(".asciz \"", $name, "\""),
                concat!(".asciz \"", $arguments, "\""),
                "994: .balign 4",
                ".popsection",
                $($operand)*
                options(att_syntax, nostack, preserves_flags),
            );
        }
    };
}

/// Arguments in a register, in memory, at an index, none at all and where
/// nobody can read them.
#[inline(never)]
pub(crate) fn marked(number: i32, long: u64, table: &[u16; 8], index: u64) {
    mark!(
        "marked",
        "-4@{number:e} 8@{long} 2@({table}) 2@2({table},{index},2) -1@$-7 8f@%xmm0 1@{long:l}",
        "{counter}",
        number = in(reg) number,
        long = in(reg_abcd) long,
        table = in(reg) table,
        index = in(reg) index,
        counter = sym COUNTER,
    );
}

/// Two places of one name with different arguments, and no counter.
#[inline(never)]
pub(crate) fn twice(first: u64, second: u64) {
    mark!("twice", "8@{first}", "0", first = in(reg) first,);
    mark!("twice", "8@{second} 8@$2", "0", second = in(reg) second,);
}
