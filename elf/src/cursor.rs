//! Bounds-checked reads of integers in this machine's byte order.

/// The `u16` at `offset`, or `None` past the end.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The `u32` at `offset`, or `None` past the end.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The `N` consecutive `u32`s that start at `offset`, or `None` if they do not
/// all fit.
#[inline]
pub(crate) fn words_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u32; N]> {
    let (words, _) = bytes.get(offset..)?.as_chunks::<4>();
    let words = words.first_chunk::<N>()?;
    Some(words.map(u32::from_ne_bytes))
}

/// `len` bytes from `offset`, or `None` if they do not fit.
pub(crate) fn slice_at(bytes: &[u8], offset: usize, len: usize) -> Option<&[u8]> {
    bytes.get(offset..offset.checked_add(len)?)
}

/// The bytes from `offset` up to the next NUL, which is left out; `None` if
/// there is none.
pub(crate) fn c_str_at(bytes: &[u8], offset: usize) -> Option<&[u8]> {
    let rest = bytes.get(offset..)?;
    Some(std::ffi::CStr::from_bytes_until_nul(rest).ok()?.to_bytes())
}

/// Bytes that are looked at in search of a name's end. Kernels take 511.
///
/// Any number of names may end in the same megabyte of text: without a limit,
/// reading them all would take the square of the file's size.
pub(crate) const MAX_NAME: usize = 4096;

/// Like [`c_str_at`]; of what is longer, the first [`MAX_NAME`] bytes.
pub(crate) fn name_at(bytes: &[u8], offset: usize) -> Option<&[u8]> {
    let rest = bytes.get(offset..)?;
    match rest.get(..MAX_NAME) {
        Some(start) => Some(c_str_at(start, 0).unwrap_or(start)),
        None => c_str_at(rest, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_at_the_end() {
        let bytes = [1, 0, 2, 0, 3, 0, 0, b'x', b'y'];
        assert_eq!(u16_at(&bytes, 0), Some(u16::from_ne_bytes([1, 0])));
        assert_eq!(u16_at(&bytes, 8), None);
        assert_eq!(
            u32_at(&bytes, 5),
            Some(u32::from_ne_bytes([0, 0, b'x', b'y']))
        );
        assert_eq!(u32_at(&bytes, 6), None);
        assert_eq!(u32_at(&bytes, usize::MAX), None);
        assert!(words_at::<2>(&bytes, 1).is_some());
        assert_eq!(words_at::<2>(&bytes, 2), None);
        assert_eq!(slice_at(&bytes, 7, usize::MAX), None);
        assert_eq!(slice_at(&bytes, 7, 2), Some(&b"xy"[..]));
        assert_eq!(name_at(&bytes, 4), Some(&[3][..]));
        assert_eq!(name_at(&bytes, 7), None);
        assert_eq!(name_at(&bytes, 99), None);
        let long = [b'x'; MAX_NAME + 1];
        assert_eq!(name_at(&long, 0).map(<[u8]>::len), Some(MAX_NAME));
        assert_eq!(name_at(&long, 2), None);
    }
}
