//! Numbers and layouts of the kernel ABI. Nothing here makes a call.
//!
//! Sources are named per item; unless stated otherwise they are the headers
//! under `include/uapi/linux` of Linux 6.12.

macro_rules! layout {
    // A structure shared with the kernel: each field after the offset it has
    // there. Offsets and size are checked at compile time, and so is the
    // absence of unnamed padding, which would reach the kernel uninitialised.
    ($(#[$meta:meta])* $name:ident $(<$lt:lifetime>)? = $size:literal {
        $($(#[$fmeta:meta])* $off:literal $field:ident: $ty:ty,)*
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[allow(missing_docs, reason = "the kernel's own names; the kernel's documentation applies")]
        pub struct $name $(<$lt>)? {
            $($(#[$fmeta])* pub $field: $ty,)*
        }

        impl $(<$lt>)? $name $(<$lt>)? {
            const LAYOUT: () = {
                $(assert!(std::mem::offset_of!(Self, $field) == $off);)*
                assert!(size_of::<Self>() == $size);
                assert!($(size_of::<$ty>() +)* 0 == $size, "unnamed padding");
            };
        }

        const _: () = $name::LAYOUT;
    };
}

macro_rules! record {
    // A `layout!` of plain data only, which may be viewed as bytes.
    ($(#[$meta:meta])* $name:ident = $size:literal {
        $($(#[$fmeta:meta])* $off:literal $field:ident: $ty:ty,)*
    }) => {
        layout! {
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            $name = $size { $($(#[$fmeta])* $off $field: $ty,)* }
        }

        const _: () = {
            const fn plain<T: $crate::abi::pod::Pod>() {}
            $(plain::<$ty>();)*
        };

        // SAFETY: every field is plain data, and `layout!` proved that they
        // fill the structure.
        unsafe impl $crate::abi::pod::Pod for $name {}
    };
}

pub mod attr;
pub mod bpf;
pub mod info;
pub mod insn;
pub mod netlink;
pub mod perf;
pub mod pod;
