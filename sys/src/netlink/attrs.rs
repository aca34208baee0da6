//! Attributes of a message, read in place.

use crate::abi::netlink::{ALIGN, NLA_TYPE_MASK};
use crate::abi::pod::{Pod, from_bytes};

pub(super) const ATTR_HEADER_LEN: usize = 4;

/// Attributes in a row. Iteration ends at the first one whose length does not
/// fit the bytes there are.
#[derive(Clone, Debug, Default)]
pub struct Attrs<'a>(&'a [u8]);

/// One attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr<'a> {
    /// Type, without the flag bits.
    pub kind: u16,
    /// Content.
    pub data: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// The attributes that start at the first of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Attrs<'a> {
        Attrs(bytes)
    }

    /// The attributes behind a message's fixed part of type `T`.
    pub fn after<T: Pod>(payload: &'a [u8]) -> Option<(T, Attrs<'a>)> {
        let (fixed, rest) = payload.split_at_checked(size_of::<T>())?;
        let pad = size_of::<T>().next_multiple_of(ALIGN) - size_of::<T>();
        let rest = rest.get(pad..).unwrap_or_default();
        Some((from_bytes(fixed)?, Attrs(rest)))
    }

    /// The first attribute of that type.
    pub fn get(&self, kind: u16) -> Option<Attr<'a>> {
        self.clone().find(|attr| attr.kind == kind)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let [l0, l1, k0, k1, ..] = *self.0 else {
            return None;
        };
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(data) = self.0.get(ATTR_HEADER_LEN..len) else {
            self.0 = &[];
            return None;
        };
        self.0 = self
            .0
            .get(len.next_multiple_of(ALIGN)..)
            .unwrap_or_default();
        Some(Attr {
            kind: u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK,
            data,
        })
    }
}

impl<'a> Attr<'a> {
    /// Content as a `u8`; `None` if it has another size.
    pub fn u8(&self) -> Option<u8> {
        from_bytes(self.data)
    }

    /// Content as a `u32`; `None` if it has another size.
    pub fn u32(&self) -> Option<u32> {
        from_bytes(self.data)
    }

    /// Content up to the first zero, as text; wrong bytes are replaced.
    pub fn text(&self) -> String {
        let bytes = self.data.split(|&b| b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Content as attributes.
    pub fn nested(&self) -> Attrs<'a> {
        Attrs(self.data)
    }
}
