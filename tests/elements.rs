//! Elements of maps: of every kind, all at once, many at once, with and
//! without the kernel's batches.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use common::{Feature, LeakCheck, ROOT, require};
use ebpf_manager::bpf::{ElemFlags, Errno, Map, MapError, MapFlags, MapType, pod, pod_struct};
use ebpf_manager::elf::MapSpec;

/// `BPF_MAP_LOOKUP_AND_DELETE_ELEM` of hashes.
const TAKE: Feature = Feature::new("taking elements of a hash", 5, 14);

pod_struct! {
    #[derive(Debug, PartialEq, Eq)]
    struct Pair {
        first: u32,
        rest: [u8; 4],
    }
}

fn create(map_type: MapType, key_size: u32, value_size: u32, max_entries: u32) -> Map {
    let flags = match map_type {
        MapType::LPM_TRIE => MapFlags::NO_PREALLOC,
        _ => MapFlags::empty(),
    };
    Map::create(&MapSpec {
        name: "elements".to_owned(),
        map_type,
        key_size,
        value_size,
        max_entries,
        flags,
        ..MapSpec::default()
    })
    .unwrap()
}

fn all(map: &Map) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    map.for_each(&mut |key, value| {
        let twice = found.insert(key.to_vec(), value.to_vec());
        assert_eq!(twice, None, "seen twice");
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

/// So many keys of 4 bytes and values of `size`, one after the other.
fn elements(count: u32, size: usize) -> (Vec<u8>, Vec<u8>) {
    let value = |n: u32| n.to_ne_bytes().into_iter().cycle().take(size);
    (
        (0..count).flat_map(u32::to_ne_bytes).collect(),
        (0..count).flat_map(value).collect(),
    )
}

#[test]
fn elements_are_seen_once() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    for (map_type, size, count) in [
        (MapType::HASH, 8, 5000),
        (MapType::HASH, 1, 1),
        // Two elements fill the first buffer, and some bucket has three.
        (MapType::HASH, 32_000, 256),
        (MapType::ARRAY, 16, 3000),
        (MapType::LRU_HASH, 8, 100),
    ] {
        let map = create(map_type, 4, size, 2 * count);
        let (keys, values) = elements(count, size as usize);
        map.update_many(&keys, &values, ElemFlags::empty()).unwrap();
        let pairs = keys.chunks(4).zip(values.chunks(size as usize));
        let mut wanted: BTreeMap<_, _> = pairs.map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        if map_type == MapType::ARRAY {
            wanted.extend((count..2 * count).map(|n| (n.to_ne_bytes().to_vec(), vec![0; 16])));
        }
        assert!(all(&map) == wanted, "{map_type:?} {size} {count}");

        let mut seen = 0;
        map.for_each(&mut |_, _| {
            seen += 1;
            ControlFlow::Break(())
        })
        .unwrap();
        assert_eq!(seen, 1);
        if map_type != MapType::ARRAY {
            map.delete_many(&keys).unwrap();
            assert!(all(&map).is_empty());
        }
    }
}

#[test]
fn elements_of_types_without_batches() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // Devices by number: no batches before Linux 5.16. Prefixes: 5.12.
    let map = create(MapType::LPM_TRIE, 8, 4, 10);
    let key = |n: u8| [32, 0, 0, 0, 10, 0, 0, n];
    let keys: Vec<u8> = (0..5).flat_map(key).collect();
    map.update_many(&keys, &[7; 20], ElemFlags::empty())
        .unwrap();
    let found = all(&map);
    assert_eq!(found.len(), 5);
    assert!(found.values().all(|value| *value == [7; 4]));
    let err = map.delete_many(&[keys.as_slice(), &key(9)].concat());
    let Err(MapError::Access { source, .. }) = err else {
        panic!("{err:?}");
    };
    assert!(source.is(Errno::ENOENT));
    assert!(source.to_string().contains("element 5"), "{source}");
    assert!(all(&map).is_empty());

    let stacks = create(MapType::STACK_TRACE, 4, 80, 4);
    assert!(all(&stacks).is_empty());
}

#[test]
fn elements_refused_are_named() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    // Prefixes can be refused for their flags only by kernels of late 2024 on.
    let map = create(MapType::HASH, 8, 4, 10);
    let key = |n: u8| [32, 0, 0, 0, 10, 0, 0, n];
    map.update(&key(2), &[0; 4]).unwrap();
    let keys: Vec<u8> = (0..5).flat_map(key).collect();
    let err = map
        .update_many(&keys, &[1; 20], ElemFlags::NOEXIST)
        .unwrap_err();
    let MapError::Access { source, .. } = &err else {
        panic!("{err}");
    };
    assert!(source.is(Errno::EEXIST), "{err}");
    assert!(source.to_string().contains("element 2"), "{err}");
    assert_eq!(all(&map).len(), 3);
    let err = map.update_many(&keys, &[1; 19], ElemFlags::empty());
    assert!(err.unwrap_err().is(Errno::EINVAL));
}

#[test]
fn elements_of_each_cpu() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    for map_type in [MapType::PERCPU_ARRAY, MapType::PERCPU_HASH] {
        // Three bytes take eight for each CPU.
        let map = create(map_type, 4, 3, 4);
        let cpus = map.raw().buffer_value_size().unwrap() / 8;
        let values: Vec<[u8; 3]> = (0..cpus).map(|cpu| [1, 2, cpu as u8]).collect();
        map.set_per_cpu(&1_u32, &values).unwrap();
        assert_eq!(map.get_per_cpu(&1_u32).unwrap(), Some(values.clone()));
        if map_type == MapType::PERCPU_HASH {
            assert_eq!(map.get_per_cpu::<[u8; 3]>(&2_u32).unwrap(), None);
        }
        let found = all(&map);
        assert_eq!(found[&1_u32.to_ne_bytes().to_vec()].len(), 8 * cpus);

        let more = [values.as_slice(), &[[0; 3]]].concat();
        let err = map.set_per_cpu(&1_u32, &more).unwrap_err().to_string();
        assert!(err.contains(&format!("for {cpus} CPUs")), "{err}");
        let err = map.get_per_cpu::<u32>(&1_u32).unwrap_err().to_string();
        assert!(err.contains("4 bytes, the map takes 3"), "{err}");
    }
    let map = create(MapType::ARRAY, 4, 4, 1);
    let err = map.get_per_cpu::<u32>(&0_u32).unwrap_err().to_string();
    assert!(err.contains("one value for all CPUs"), "{err}");
}

#[test]
fn elements_have_types() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let map = create(MapType::HASH, 4, 8, 10);
    let wanted: BTreeMap<u32, Pair> = (0..10)
        .map(|n| {
            (
                n,
                Pair {
                    first: n,
                    rest: [n as u8; 4],
                },
            )
        })
        .collect();
    for (key, value) in &wanted {
        map.set(key, value).unwrap();
    }
    let found: BTreeMap<_, _> = map.entries().unwrap().into_iter().collect();
    assert_eq!(found, wanted);
    let err = map.entries::<u32, u32>().unwrap_err().to_string();
    assert!(err.contains("keys have 4 bytes, values 8"), "{err}");
}

#[test]
fn elements_are_taken_out() {
    if !require(&ROOT) {
        return;
    }
    let _leaks = LeakCheck::begin();
    let queue = create(MapType::QUEUE, 0, 4, 4);
    for n in [5_u32, 6] {
        queue.update(&[], pod::bytes_of(&n)).unwrap();
    }
    let mut value = [0; 4];
    assert!(queue.take(&[], &mut value).unwrap());
    assert_eq!(u32::from_ne_bytes(value), 5);
    assert!(queue.take(&[], &mut value).unwrap());
    assert!(!queue.take(&[], &mut value).unwrap());
    if !require(&TAKE) {
        return;
    }
    let hash = create(MapType::HASH, 4, 4, 4);
    hash.set(&1_u32, &9_u32).unwrap();
    assert!(hash.take(&1_u32.to_ne_bytes(), &mut value).unwrap());
    assert_eq!(u32::from_ne_bytes(value), 9);
    assert!(!hash.take(&1_u32.to_ne_bytes(), &mut value).unwrap());
    assert!(all(&hash).is_empty());
}
