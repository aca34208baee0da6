//! Plain data: types that may be viewed as bytes.

/// Types made of initialised integers only, without padding, for which every
/// bit pattern is valid.
///
/// # Safety
/// The type must be `repr(C)` or `repr(transparent)`, contain no padding, no
/// pointers or references and no type with invalid bit patterns (`bool`,
/// `char`, enums), and have no interior mutability.
pub unsafe trait Pod: Copy + 'static {}

macro_rules! pod {
    ($($ty:ty)*) => {$(
        // SAFETY: a primitive integer has no padding and no invalid pattern.
        unsafe impl Pod for $ty {}
    )*};
}

pod!(u8 i8 u16 i16 u32 i32 u64 i64 u128 i128 usize isize);

// SAFETY: an array of plain data has no padding beyond that of its elements.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

/// Declares a structure as plain data, laid out as C does: a record or a map's
/// value, with the same members in the same order as in the program.
///
/// It does not compile if a member is no plain data, or if C would leave
/// padding: that has to be named, as a member of bytes. No `unsafe` is needed
/// where it is used.
///
/// ```
/// use ebpf_manager_sys::{abi::pod, pod_struct};
///
/// pod_struct! {
///     /// A process has started something.
///     #[derive(Debug, PartialEq, Eq)]
///     pub struct Event {
///         pub pid: u32,
///         pub name: [u8; 16],
///         padding: [u8; 4],
///         pub time_ns: u64,
///     }
/// }
/// let event: Event = pod::from_bytes(&[0; 32]).unwrap();
/// assert_eq!(event.pid, 0);
/// ```
///
/// ```compile_fail
/// ebpf_manager_sys::pod_struct! {
///     struct Padded { pid: u32, time_ns: u64 }
/// }
/// ```
///
/// ```compile_fail
/// ebpf_manager_sys::pod_struct! {
///     struct Invalid { flag: bool }
/// }
/// ```
#[macro_export]
macro_rules! pod_struct {
    (
        $(#[$attribute:meta])*
        $visible:vis struct $name:ident {
            $($(#[$member_attribute:meta])* $member_visible:vis $member:ident: $type:ty),+ $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy)]
        #[repr(C)]
        $visible struct $name {
            $($(#[$member_attribute])* $member_visible $member: $type),+
        }

        const _: () = {
            const fn is_plain<T: $crate::abi::pod::Pod>() {}
            $(is_plain::<$type>();)+
            assert!(
                ::core::mem::size_of::<$name>() == 0 $(+ ::core::mem::size_of::<$type>())+,
                "padding has to be named: a member of bytes"
            );
        };

        // SAFETY: of plain data in the order of C, each member as checked
        // above, and nothing between them or at the end, since the sizes add
        // up. Copies of integers are no more than their bytes.
        unsafe impl $crate::abi::pod::Pod for $name {}
    };
}

/// The bytes of `value`.
pub fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    slice_bytes(std::slice::from_ref(value))
}

/// The bytes of `value`, writable.
pub fn bytes_of_mut<T: Pod>(value: &mut T) -> &mut [u8] {
    let len = size_of::<T>();
    // SAFETY: `Pod` has no padding and no invalid pattern, so its memory is
    // `len` initialised bytes that may be overwritten with anything; the
    // exclusive borrow is carried over to the result.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast::<u8>(), len) }
}

/// The bytes of a slice of plain data.
pub fn slice_bytes<T: Pod>(values: &[T]) -> &[u8] {
    let len = size_of_val(values);
    // SAFETY: `Pod` has no padding, so the slice is `len` initialised bytes;
    // the shared borrow is carried over to the result.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), len) }
}

/// The bytes of a slice of plain data, writable.
pub fn slice_bytes_mut<T: Pod>(values: &mut [T]) -> &mut [u8] {
    let len = size_of_val(values);
    // SAFETY: as in `bytes_of_mut`, for each element; the exclusive borrow is
    // carried over to the result.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), len) }
}

/// The value whose bytes these are; `None` if the length differs. No
/// alignment is needed.
pub fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, every bit pattern of `Pod` is valid, and
    // the read does not assume alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The value that the first bytes of these are; `None` if there are too few.
/// What follows is not looked at: padding, or members that a newer program has
/// added at the end.
pub fn from_prefix<T: Pod>(bytes: &[u8]) -> Option<T> {
    from_bytes(bytes.get(..size_of::<T>())?)
}

/// A zeroed value.
pub fn zeroed<T: Pod>() -> T {
    // SAFETY: the all-zero pattern is valid for every `Pod` type.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let mut value = 0x0102_0304_u32;
        assert_eq!(from_bytes::<u32>(bytes_of(&value)), Some(value));
        bytes_of_mut(&mut value).copy_from_slice(&[0; 4]);
        assert_eq!(value, 0);
        assert_eq!(from_bytes::<u32>(&[0; 3]), None);
        assert_eq!(from_prefix(&[1_u8, 2, 3]), Some([1_u8, 2]));
        assert_eq!(from_prefix::<u32>(&[1_u8, 2, 3]), None);
        assert_eq!(slice_bytes(&[1_u16, 2]).len(), 4);
        assert_eq!(zeroed::<[u64; 4]>(), [0; 4]);
    }
}
