//! Maps defined by words: sections `maps` and `maps/…`.
//!
//! A definition is a `struct bpf_map_def`: five words that all loaders before
//! BTF agreed on, and more that each understood in its own way.

use ebpf_manager_sys::abi::bpf::{MapFlags, MapType};

use crate::cursor::{slice_at, words_at};
use crate::error::{Fault, bad_map, malformed_in};
use crate::sort::sort;
use crate::spec::{MapSpec, Pinning, Slot};

/// A map defined by words, with what ties it to others of its object.
pub(crate) struct Legacy {
    spec: MapSpec,
    tie: Tie,
}

impl Legacy {
    /// What the definition says of other ones.
    pub(crate) fn tie(&self) -> Tie {
        self.tie
    }

    /// Whether it could be an inner map.
    pub(crate) fn can_be_inner(&self) -> bool {
        !is_of_maps(&self.spec)
    }
}

/// How a definition by words names the inner map of a map of maps.
#[derive(Clone, Copy)]
pub(crate) enum Tie {
    None,
    /// By position among the definitions, in word [`INDEX_WORD`]: samples of
    /// the kernel. A definition that names itself has no inner map.
    Index(u32),
    /// By an id that definitions give themselves: iproute2.
    Id {
        /// Own id, 0 for none.
        id: u32,
        /// Id of the inner map, 0 for none.
        inner_id: u32,
        /// Slot of the outer map that this one is put into; `u32::MAX` for
        /// none.
        slot: u32,
    },
}

/// A symbol that names a definition by words.
#[derive(Clone, Copy)]
pub(crate) struct Symbol<'d> {
    /// Place of the definition in its section.
    pub(crate) offset: u64,
    /// Bytes of the definition; 0 if the symbol does not say.
    pub(crate) size: u64,
    pub(crate) name: &'d str,
}

/// Reads the definitions of a section, one for each of its symbols, which are
/// in the order of their places. `found` is told each, with its size.
pub(crate) fn read(
    section: &str,
    bytes: &[u8],
    symbols: &[Symbol<'_>],
    found: &mut dyn FnMut(&Symbol<'_>, u64, Legacy),
) -> Result<(), Fault> {
    if symbols.is_empty() {
        let what = format_args!("no symbol names the maps in it");
        return Err(malformed_in(section, what));
    }
    for (nth, symbol) in symbols.iter().enumerate() {
        // A definition ends with its symbol, or where the next begins.
        let next = symbols.get(nth + 1).map(|next| next.offset);
        let room = next.unwrap_or(bytes.len() as u64);
        let room = room.saturating_sub(symbol.offset);
        let size = if symbol.size == 0 { room } else { symbol.size };
        let bytes = usize::try_from(symbol.offset)
            .ok()
            .zip(usize::try_from(size).ok())
            .filter(|_| size <= room)
            .and_then(|(at, size)| slice_at(bytes, at, size));
        let Some(bytes) = bytes else {
            return Err(malformed_in(
                section,
                format_args!("map {} does not fit its section", symbol.name),
            ));
        };
        found(symbol, size, definition(symbol.name, bytes)?);
    }
    Ok(())
}

/// The word that [`Tie::Index`] is.
pub(crate) const INDEX_WORD: usize = 5;

/// Reads one definition. What its size is decides which loader it was written
/// for; a byte without a meaning there must be zero.
fn definition(name: &str, bytes: &[u8]) -> Result<Legacy, Fault> {
    let Some([map_type, key_size, value_size, max_entries, flags]) = words_at(bytes, 0) else {
        return Err(bad_map(
            name,
            format_args!(
                "its definition has {} bytes, the shortest there is has 20",
                bytes.len()
            ),
        ));
    };
    let mut spec = MapSpec {
        name: name.to_owned(),
        map_type: MapType(map_type),
        key_size,
        value_size,
        max_entries,
        flags: MapFlags::from_bits_retain(flags),
        ..MapSpec::default()
    };
    let mut tie = Tie::None;
    let word = |nth: usize| words_at(bytes, nth * 4).map_or(0, |[word]| word);
    let of_maps = is_of_maps(&spec);
    let numa = spec.flags.contains(MapFlags::NUMA_NODE);
    // One bit for each word with a meaning.
    let mut meant = 0x1f_u32;
    match bytes.len() {
        // iproute2's struct bpf_elf_map.
        36 => {
            // 1 stands for a directory of the object's, 2 for a global one.
            spec.pinning = custom_pinning(word(6));
            tie = Tie::Id {
                id: word(5),
                inner_id: word(7),
                slot: word(8),
            };
            meant = 0x1ff;
        }
        // The kernel's samples: number of the inner map, NUMA node.
        24..=32 if of_maps || numa => {
            if of_maps {
                tie = Tie::Index(word(INDEX_WORD));
                meant |= 1 << INDEX_WORD;
            }
            if numa && bytes.len() >= 28 {
                spec.numa_node = Some(word(6));
                meant |= 1 << 6;
            }
        }
        // aya: an id that nothing refers to, and 1 for pinning by name.
        28..=32 => {
            spec.pinning = match word(6) {
                1 => Pinning::ByName,
                other => custom_pinning(other),
            };
            meant |= 1 << 6;
        }
        // gobpf: pinning and, for its custom kind, a directory.
        len if len > 36 => {
            spec.pinning = custom_pinning(word(5));
            meant |= 1 << 5;
        }
        _ => {}
    }
    let stray = |(at, byte): (usize, &u8)| {
        *byte != 0
            && u32::try_from(at / 4).map_or(0, |nth| meant.checked_shr(nth).unwrap_or(0)) & 1 == 0
    };
    match bytes.iter().enumerate().position(stray) {
        Some(at) => Err(bad_map(
            name,
            format_args!(
                "byte {at} of its definition of {} bytes is not zero, and no loader is known to \
                 give it a meaning",
                bytes.len()
            ),
        )),
        None => Ok(Legacy { spec, tie }),
    }
}

fn is_of_maps(spec: &MapSpec) -> bool {
    matches!(
        spec.map_type,
        MapType::ARRAY_OF_MAPS | MapType::HASH_OF_MAPS
    )
}

fn custom_pinning(value: u32) -> Pinning {
    match value {
        0 => Pinning::None,
        other => Pinning::Custom(other),
    }
}

/// Slots that the definitions of one object may fill together; iproute2 knew
/// 64 maps.
const MAX_SLOTS: u32 = 1 << 12;

/// Gives maps of maps among the definitions of an object their inner maps.
pub(crate) fn join(definitions: Vec<Legacy>) -> Result<Vec<MapSpec>, Fault> {
    // Ids of possible inner maps, with their slots and positions.
    let mut ids: Vec<(u32, u32, usize)> = definitions
        .iter()
        .enumerate()
        .filter_map(|(nth, d)| match d.tie {
            Tie::Id { id, slot, .. } if id != 0 && !is_of_maps(&d.spec) => Some((id, slot, nth)),
            _ => None,
        })
        .collect();
    sort(&mut ids, |a, b| a < b);
    let mut inner = Vec::new();
    let mut slots_left = MAX_SLOTS;
    for (nth, outer) in definitions.iter().enumerate() {
        if !is_of_maps(&outer.spec) {
            continue;
        }
        let mut slots = Vec::new();
        let found = match outer.tie {
            // 0 is also what a definition says that leaves the number out.
            Tie::Index(index) => match definitions.get(index as usize) {
                Some(found) if !is_of_maps(&found.spec) => found,
                _ if index == 0 || index as usize == nth => continue,
                _ => {
                    return Err(bad_map(
                        &outer.spec.name,
                        format_args!("definition {index}, its inner map, is none"),
                    ));
                }
            },
            Tie::Id { inner_id, .. } if inner_id != 0 => {
                let first = ids.partition_point(|(id, ..)| *id < inner_id);
                let same = ids.get(first..).unwrap_or_default();
                let same = same.get(..same.partition_point(|(id, ..)| *id == inner_id));
                let same = same.unwrap_or_default();
                let Some(found) = same.first().and_then(|(.., nth)| definitions.get(*nth)) else {
                    return Err(bad_map(
                        &outer.spec.name,
                        format_args!("no map has the id {inner_id} of its inner map"),
                    ));
                };
                for (_, slot, nth) in same.iter().filter(|(_, slot, _)| *slot != u32::MAX) {
                    slots_left = slots_left.checked_sub(1).ok_or_else(|| {
                        bad_map(&outer.spec.name, format_args!("too many inner maps"))
                    })?;
                    if let Some(map) = definitions.get(*nth) {
                        slots.push((*slot, Slot::Map(map.spec.name.clone())));
                    }
                }
                found
            }
            _ => continue,
        };
        let model = MapSpec {
            pinning: Pinning::None,
            ..found.spec.clone()
        };
        inner.push((nth, model, slots));
    }
    let mut specs: Vec<MapSpec> = definitions.into_iter().map(|d| d.spec).collect();
    for (nth, model, slots) in inner {
        if let Some(outer) = specs.get_mut(nth) {
            outer.inner = Some(Box::new(model));
            outer.slots = slots;
        }
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, words: &[u32]) -> Result<Legacy, Fault> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        definition(name, &bytes)
    }

    fn spec(words: &[u32]) -> MapSpec {
        read("m", words).map(|l| l.spec).unwrap()
    }

    /// The byte that a refusal complains about.
    fn refused(words: &[u32]) -> String {
        let err = read("m", words).err().unwrap().to_string();
        assert!(err.starts_with("map m: byte "), "{err}");
        err.split(' ').nth(3).unwrap().to_owned()
    }

    const HASH: [u32; 5] = [1, 4, 8, 100, 0];
    const OUTER: [u32; 5] = [12, 4, 4, 10, 0];

    fn with(first: [u32; 5], rest: &[u32]) -> Vec<u32> {
        [&first, rest].concat()
    }

    #[test]
    fn every_size_gives_the_five_words() {
        for words in (5..=9).chain([70]) {
            let mut padded = HASH.to_vec();
            padded.resize(words, 0);
            let spec = spec(&padded);
            assert_eq!(spec.map_type, MapType::HASH);
            assert_eq!(
                (spec.key_size, spec.value_size, spec.max_entries),
                (4, 8, 100)
            );
            assert_eq!(spec.pinning, Pinning::None);
            assert_eq!(spec.numa_node, None);
        }
        let err = read("short", &HASH[..4]).err().unwrap().to_string();
        assert!(
            err.contains("map short") && err.contains("16 bytes"),
            "{err}"
        );
    }

    #[test]
    fn words_beyond_the_fifth_mean_what_their_loader_says() {
        // aya's pinning, iproute2's, gobpf's.
        assert_eq!(spec(&with(HASH, &[0, 1])).pinning, Pinning::ByName);
        assert_eq!(spec(&with(HASH, &[0, 2, 0])).pinning, Pinning::Custom(2));
        assert_eq!(spec(&with(HASH, &[7, 2, 0, 0])).pinning, Pinning::Custom(2));
        let mut gobpf = with(HASH, &[3]);
        gobpf.resize(70, 0);
        assert_eq!(spec(&gobpf).pinning, Pinning::Custom(3));
        gobpf[6] = u32::from_ne_bytes(*b"name");
        assert_eq!(refused(&gobpf), "24");
        // The samples' node.
        let numa = [1, 4, 8, 100, MapFlags::NUMA_NODE.bits()];
        assert_eq!(spec(&with(numa, &[0, 1])).numa_node, Some(1));
        assert_eq!(refused(&with(numa, &[1, 1])), "20");
        assert_eq!(spec(&numa).numa_node, None);
        // Meant for somebody else.
        assert_eq!(refused(&with(HASH, &[5])), "20");
        assert_eq!(refused(&with(HASH, &[5, 1])), "20");
        assert_eq!(refused(&with(HASH, &[0, 0, 0x100])), "29");
    }

    #[test]
    fn inner_maps_are_found_by_number_and_by_id() {
        let join = |all: &[Vec<u32>]| {
            let all = ["a", "b", "c"].iter().zip(all);
            super::join(all.map(|(name, w)| read(name, w).unwrap()).collect())
        };
        let maps = join(&[
            with(HASH, &[0, 0]),
            with([2, 4, 16, 1, 0], &[0, 0]),
            with(OUTER, &[1, 0]),
        ])
        .unwrap();
        let inner = maps[2].inner.as_ref().unwrap();
        assert_eq!((inner.map_type, inner.value_size), (MapType::ARRAY, 16));
        assert_eq!(maps[2].slots, []);
        assert!(maps[0].inner.is_none());

        // ids: two inner maps, one of them put into slot 3.
        let maps = join(&[
            with(HASH, &[9, 1, 0, 3]),
            with(OUTER, &[0, 0, 9, u32::MAX]),
            with(HASH, &[9, 0, 0, u32::MAX]),
        ])
        .unwrap();
        let inner = maps[1].inner.as_ref().unwrap();
        assert_eq!((inner.value_size, inner.pinning), (8, Pinning::None));
        assert_eq!(maps[1].slots, [(3, Slot::Map("a".to_owned()))]);

        let err = join(&[with(OUTER, &[2, 0]), HASH.to_vec()]).unwrap_err();
        assert_eq!(
            err.to_string(),
            "map a: definition 2, its inner map, is none"
        );
        let err = join(&[with(OUTER, &[0, 0, 4, 0])]).unwrap_err();
        assert!(err.to_string().contains("id 4"), "{err}");
        // Left to the user of the object, as by one that names itself.
        let maps = join(&[HASH.to_vec(), with(OUTER, &[1])]).unwrap();
        assert!(maps[1].inner.is_none());
        assert!(join(&[OUTER.to_vec()]).unwrap()[0].inner.is_none());
        assert!(join(&[with(OUTER, &[0])]).unwrap()[0].inner.is_none());
    }
}
