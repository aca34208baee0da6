//! The bytes of an object file, shared by everything that was parsed from it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A reference-counted view of immutable bytes.
///
/// Specifications keep ranges of the object they came from instead of copies;
/// the bytes are freed when the last of them is dropped. Cloning and slicing
/// allocate nothing.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    start: usize,
    end: usize,
}

impl Bytes {
    /// Shares `owner`: a `Vec<u8>`, a `&'static [u8]` from `include_bytes!`,
    /// or anything else that lends the same bytes every time it is asked.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Bytes {
        let end = owner.as_ref().len();
        Bytes {
            owner: Arc::new(owner),
            start: 0,
            end,
        }
    }

    /// The part `range` of this view; `None` if it reaches outside.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        let start = self.start.checked_add(range.start)?;
        let end = self.start.checked_add(range.end)?;
        (start <= end && end <= self.end).then(|| Bytes {
            owner: Arc::clone(&self.owner),
            start,
            end,
        })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        (*self.owner)
            .as_ref()
            .get(self.start..self.end)
            .unwrap_or_default()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stay_inside() {
        let bytes = Bytes::new(vec![1, 2, 3, 4]);
        let tail = bytes.slice(2..4).unwrap();
        assert_eq!(tail.as_slice(), [3, 4]);
        assert!(tail.slice(0..3).is_none());
        assert!(bytes.slice(3..usize::MAX).is_none());
        assert_eq!(tail.slice(1..2).unwrap().as_slice(), [4]);
    }
}
