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
        assert_eq!(slice_bytes(&[1_u16, 2]).len(), 4);
        assert_eq!(zeroed::<[u64; 4]>(), [0; 4]);
    }
}
