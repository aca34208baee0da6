//! Maps.

use std::collections::BTreeSet;

use super::*;
use crate::abi::bpf::MapFlags;
use crate::proc::page_size;

const ANY: ElemFlags = ElemFlags::empty();

fn keyless(map_type: MapType) -> Result<MapFd> {
    create_map(map_type, 0, 4, 8)
}

#[test]
fn elements() {
    let map = require!((3, 18), hash(16));
    let (a, b) = (1_u32.to_ne_bytes(), 2_u32.to_ne_bytes());
    let mut value = [0; 8];

    assert!(!map.lookup(&a, &mut value).unwrap());
    map.update(&a, &[1; 8], ElemFlags::NOEXIST).unwrap();
    let err = map.update(&a, &[2; 8], ElemFlags::NOEXIST).unwrap_err();
    assert!(err.is(Errno::EEXIST));
    let err = map.update(&b, &[2; 8], ElemFlags::EXIST).unwrap_err();
    assert!(err.is(Errno::ENOENT));
    assert!(map.lookup(&a, &mut value).unwrap());
    assert_eq!(value, [1; 8]);

    map.update(&b, &[2; 8], ANY).unwrap();
    let mut keys = BTreeSet::new();
    let mut key = [0; 4];
    let mut more = map.next_key(None, &mut key).unwrap();
    while more {
        keys.insert(key);
        let at = key;
        more = map.next_key(Some(&at), &mut key).unwrap();
    }
    assert_eq!(keys, BTreeSet::from([a, b]));

    assert!(map.delete(&b).unwrap());
    assert!(!map.delete(&b).unwrap());

    // Without a spin lock in the value the kernel refuses the flag, which
    // shows that it arrives.
    let err = map.lookup_with_flags(&a, &mut value, ElemFlags::LOCK);
    assert!(err.unwrap_err().is(Errno::EINVAL));
}

#[test]
fn elements_are_moved_out() {
    let map = require!((3, 18), hash(16));
    let (key, mut value) = ([1; 4], [0; 8]);
    map.update(&key, &[1; 8], ANY).unwrap();
    assert!(require!(
        (5, 14),
        map.lookup_and_delete(&key, &mut value, ANY)
    ));
    assert_eq!(value, [1; 8]);
    assert!(!map.lookup_and_delete(&key, &mut value, ANY).unwrap());
    assert!(!map.lookup(&key, &mut value).unwrap());
}

#[test]
fn buffers_of_another_size_are_refused() {
    let map = require!((3, 18), hash(16));
    let (mut short, mut good, mut long) = ([7; 7], [7; 8], [7; 9]);
    for result in [
        map.lookup(&[0; 3], &mut good).err(),
        map.lookup(&[0; 4], &mut short).err(),
        map.lookup(&[0; 4], &mut long).err(),
        map.lookup(&[], &mut good).err(),
        map.update(&[0; 5], &good, ANY).err(),
        map.update(&[0; 4], &short, ANY).err(),
        map.update(&[0; 4], &[], ANY).err(),
        map.delete(&[0; 8]).err(),
        map.lookup_and_delete(&[0; 4], &mut short, ANY).err(),
        map.next_key(Some(&[0; 3]), &mut [0; 4]).err(),
        map.next_key(None, &mut [0; 3]).err(),
    ] {
        let err = result.expect("refused");
        assert!(err.is(Errno::EINVAL));
        assert!(err.detail().is_some_and(|d| d.contains("bytes")), "{err}");
    }
    let err = map.lookup(&[0; 4], &mut short).unwrap_err();
    assert_eq!(
        err.to_string(),
        "bpf(BPF_MAP_LOOKUP_ELEM): EINVAL (Invalid argument): \
         value of 7 bytes, the map takes 8"
    );
}

#[test]
fn attributes_reach_the_kernel() {
    let map = map_create(&MapCreate {
        map_type: MapType::HASH,
        key_size: 4,
        value_size: 8,
        max_entries: 16,
        flags: MapFlags::NO_PREALLOC,
        name: "a name too long for it",
        numa_node: Some(0),
        ..Default::default()
    });
    let map = require!((4, 15), map);
    let info = map_info(map.as_fd()).unwrap();
    assert_eq!(info.map_type, MapType::HASH);
    assert_eq!((info.key_size, info.value_size), (4, 8));
    assert_eq!(info.max_entries, 16);
    let flags = MapFlags::NO_PREALLOC | MapFlags::NUMA_NODE;
    assert_eq!(info.map_flags, flags.bits());
    assert_eq!(map.flags(), flags);
    assert_eq!(crate::abi::info::name_str(&info.name), "a_name_too_long");

    let copy = map.try_clone().unwrap();
    copy.update(&[1; 4], &[1; 8], ANY).unwrap();
    drop(map);
    let mut value = [0; 8];
    assert!(copy.lookup(&[1; 4], &mut value).unwrap());
    let adopted = MapFd::from_fd(copy.into()).unwrap();
    assert!(adopted.lookup(&[1; 4], &mut value).unwrap());
    assert_eq!(adopted.max_entries(), 16);
}

#[test]
fn values_per_cpu() {
    let map = require!((4, 6), create_map(MapType::PERCPU_ARRAY, 4, 4, 2));
    let cpus = possible_cpus().unwrap();
    assert_eq!(map.buffer_value_size(), Some(8 * cpus));
    let value: Vec<u8> = (0..cpus)
        .flat_map(|cpu| (cpu as u64 + 1).to_le_bytes())
        .collect();
    map.update(&1_u32.to_ne_bytes(), &value, ANY).unwrap();
    let mut back = vec![0; 8 * cpus];
    assert!(map.lookup(&1_u32.to_ne_bytes(), &mut back).unwrap());
    assert_eq!(back, value);
    let err = map.lookup(&[0; 4], &mut [0; 4]).unwrap_err();
    assert!(err.is(Errno::EINVAL));
    let adopted = MapFd::from_fd(map.into()).unwrap();
    assert_eq!(adopted.buffer_value_size(), Some(8 * cpus));
}

#[test]
fn queues_have_no_keys() {
    let queue = require!((4, 20), keyless(MapType::QUEUE));
    let mut value = [0; 4];
    assert!(!queue.lookup_and_delete(&[], &mut value, ANY).unwrap());
    queue.update(&[], &[1; 4], ANY).unwrap();
    queue.update(&[], &[2; 4], ANY).unwrap();
    assert!(queue.lookup(&[], &mut value).unwrap());
    assert_eq!(value, [1; 4]);
    assert!(queue.lookup_and_delete(&[], &mut value, ANY).unwrap());
    assert!(queue.lookup_and_delete(&[], &mut value, ANY).unwrap());
    assert_eq!(value, [2; 4]);
    assert!(!queue.lookup_and_delete(&[], &mut value, ANY).unwrap());
    assert!(queue.update(&[0; 4], &[1; 4], ANY).is_err());
    let err = queue.delete_batch(&[], ANY).unwrap_err();
    assert_eq!((err.done, err.source.errno()), (0, Errno::EINVAL));
}

#[test]
fn bloom_filters_compare() {
    let bloom = require!((5, 16), keyless(MapType::BLOOM_FILTER));
    bloom.update(&[], &[1; 4], ANY).unwrap();
    assert!(bloom.lookup(&[], &mut [1; 4]).unwrap());
    assert!(!bloom.lookup(&[], &mut [2; 4]).unwrap());
}

#[test]
fn maps_without_elements() {
    let ring = create_map(MapType::RINGBUF, 0, 0, page_size() as u32);
    let ring = require!((5, 8), ring);
    assert_eq!((ring.key_size(), ring.value_size()), (0, 0));
    assert!(ring.lookup(&[], &mut []).is_err());
    assert!(ring.update(&[], &[], ANY).is_err());
    assert!(ring.delete(&[]).is_err());
    assert!(ring.next_key(None, &mut []).is_err());
    assert!(ring.lookup(&[0; 4], &mut []).is_err());
}

#[test]
fn maps_of_descriptors() {
    let inner = require!((3, 18), hash(4));
    let outer = map_create(&MapCreate {
        map_type: MapType::ARRAY_OF_MAPS,
        key_size: 4,
        value_size: 4,
        max_entries: 2,
        inner_map: Some(inner.as_fd()),
        ..Default::default()
    });
    let outer = require!((4, 12), outer);
    outer
        .update(&[0; 4], &num(inner.as_fd()).to_ne_bytes(), ANY)
        .unwrap();
    let mut id = [0; 4];
    assert!(outer.lookup(&[0; 4], &mut id).unwrap());
    let expected = map_info(inner.as_fd()).unwrap().id;
    assert_eq!(u32::from_ne_bytes(id), expected);
}

#[test]
fn frozen_maps_do_not_change() {
    let map = require!((3, 18), hash(16));
    map.update(&[1; 4], &[1; 8], ANY).unwrap();
    require!((5, 2), map.freeze());
    let err = map.update(&[1; 4], &[2; 8], ANY).unwrap_err();
    assert!(err.is(Errno::EPERM));
    let mut value = [0; 8];
    assert!(map.lookup(&[1; 4], &mut value).unwrap());
    assert_eq!(value, [1; 8]);
}

/// Reads everything in batches of `room` elements, keys of 4, values of 8.
fn read_all(map: &MapFd, room: usize, delete: bool) -> Result<BTreeSet<(Vec<u8>, Vec<u8>)>> {
    let mut cursor = BatchCursor::new(map);
    let (mut keys, mut values) = (vec![0; room * 4], vec![0; room * 8]);
    let mut all = BTreeSet::new();
    while !cursor.is_done() {
        // Where nothing is asked for, nothing moves.
        let none = map.lookup_batch(&mut cursor, &mut [], &mut [], ANY)?;
        assert_eq!((none, cursor.is_done()), (0, false));
        let count = if delete {
            map.lookup_and_delete_batch(&mut cursor, &mut keys, &mut values, ANY)?
        } else {
            map.lookup_batch(&mut cursor, &mut keys, &mut values, ANY)?
        };
        let pairs = keys.chunks(4).zip(values.chunks(8)).take(count);
        for (key, value) in pairs {
            assert!(all.insert((key.to_vec(), value.to_vec())), "seen twice");
        }
    }
    let count = map.lookup_batch(&mut cursor, &mut keys, &mut values, ANY)?;
    assert_eq!(count, 0, "nothing after the end");
    Ok(all)
}

#[test]
fn batches() {
    for map_type in [MapType::HASH, MapType::ARRAY] {
        let map = require!((3, 18), create_map(map_type, 4, 8, 100));
        let keys: Vec<u8> = (0..100_u32).flat_map(u32::to_ne_bytes).collect();
        let values: Vec<u8> = (0..100_u64).flat_map(u64::to_ne_bytes).collect();
        require!((5, 6), map.update_batch(&keys, &values, ANY));
        let expected: BTreeSet<_> = keys
            .chunks(4)
            .zip(values.chunks(8))
            .map(|(k, v)| (k.to_vec(), v.to_vec()))
            .collect();
        for room in [16, 33, 100, 200] {
            assert_eq!(read_all(&map, room, false).unwrap(), expected);
        }
        if map_type == MapType::ARRAY {
            let err = read_all(&map, 16, true).unwrap_err();
            assert!(err.is(Errno::ENOTSUPP), "{err}");
            continue;
        }

        // Two keys go, the third is not there.
        let gone = [keys[..8].to_vec(), 500_u32.to_ne_bytes().to_vec()].concat();
        let err = map.delete_batch(&gone, ANY).unwrap_err();
        assert_eq!((err.done, err.source.errno()), (2, Errno::ENOENT));
        assert_eq!(err.to_string(), "batch stopped after 2 elements");
        // The other 98 fit, three new ones do not.
        let new: Vec<u8> = (200..203_u32).flat_map(u32::to_ne_bytes).collect();
        let err = map.update_batch(&new, &[0; 24], ANY).unwrap_err();
        assert_eq!((err.done, err.source.errno()), (2, Errno::E2BIG));
        // Refused before it starts.
        let flags = ElemFlags::from_bits_retain(1 << 40);
        let err = map.update_batch(&new, &[0; 24], flags).unwrap_err();
        assert_eq!((err.done, err.source.errno()), (0, Errno::EINVAL));

        assert_eq!(read_all(&map, 64, true).unwrap().len(), 100);
        assert!(read_all(&map, 64, false).unwrap().is_empty());
    }
}

#[test]
fn batches_of_another_size_are_refused() {
    let map = require!((3, 18), hash(16));
    let mut cursor = BatchCursor::new(&map);
    for (keys, values) in [(7, 16), (8, 15), (8, 24), (0, 8)] {
        let (mut keys, mut values) = (vec![0; keys], vec![0; values]);
        let err = map.lookup_batch(&mut cursor, &mut keys, &mut values, ANY);
        assert!(err.unwrap_err().is(Errno::EINVAL));
        let err = map.update_batch(&keys, &values, ANY).unwrap_err();
        assert!(err.source.is(Errno::EINVAL));
    }
    // The position in a map with longer keys needs more room.
    let wide = create_map(MapType::HASH, 64, 8, 16).unwrap();
    let err = wide.lookup_batch(&mut cursor, &mut [0; 64], &mut [0; 8], ANY);
    assert_eq!(err.unwrap_err().detail(), Some("cursor of another map"));
}

#[test]
fn kinds_to_come_have_no_known_size() {
    let unknown = MapType(MapType::ALL.len() as u32);
    assert_eq!(map::buffer_value_size(unknown, 8), Ok(None));
    assert_eq!(map::buffer_value_size(MapType::HASH, 9), Ok(Some(9)));
}
