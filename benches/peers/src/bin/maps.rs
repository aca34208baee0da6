//! Elements of a hash beside other libraries and the bare system calls, in
//! turns: nanoseconds per element.
//!
//! ```text
//! maps                   # the table
//! maps count WHO WHAT N  # so many rounds of one, for callgrind
//! ```

use std::hint::black_box;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use aya::maps::{HashMap as AyaHash, Map as AyaMap, MapData};
use ebpf_manager::bpf::{ElemFlags, Map, MapType, pod};
use ebpf_manager::elf::MapSpec;
use ebpf_manager_peers::Result;
use ebpf_manager_peers::measure::{machine, median, ratio};
use ebpf_manager_sys::bpf::map_info;
use ebpf_manager_sys::sched::stay_on;
use libbpf_rs::{MapCore, MapFlags as LibbpfFlags, MapHandle};

const ELEMENTS: u32 = 4096;
/// Elements of one batch of the bare calls.
const BATCH: u32 = 4096;
const ROUNDS: usize = 101;
const WHO: [&str; 4] = ["bare", "ours", "libbpf-rs", "aya"];
const WHAT: [&str; 3] = ["lookup", "update", "all"];

/// The members of `union bpf_attr` for one element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Those for a batch.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn bpf<T>(command: i32, attr: &mut T) -> std::result::Result<(), i32> {
    // SAFETY: the attribute is one that the command takes, and the places it
    // names are buffers of the caller that are large enough.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or_default());
    }
    Ok(())
}

fn bare(map: &Map, what: &str) -> Result<u64> {
    let map_fd = map.as_fd().as_raw_fd() as u32;
    let mut sum = 0;
    if what == "all" {
        let mut keys = vec![0_u32; BATCH as usize];
        let mut values = vec![0_u64; BATCH as usize];
        let (mut place, mut started) = (0_u64, false);
        loop {
            let mut attr = Batch {
                in_batch: if started {
                    (&raw const place) as u64
                } else {
                    0
                },
                out_batch: (&raw mut place) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: BATCH,
                map_fd,
                ..Batch::default()
            };
            let result = bpf(24, &mut attr);
            for (key, value) in keys.iter().zip(&values).take(attr.count as usize) {
                sum += 1 + (u64::from(*key) ^ value);
            }
            started = true;
            match result {
                Ok(()) => {}
                Err(libc::ENOENT) => return Ok(sum),
                Err(errno) => return Err(format!("errno {errno}").into()),
            }
        }
    }
    let (mut key, mut value) = (0_u32, 0_u64);
    let command = if what == "lookup" { 1 } else { 2 };
    let mut attr = Element {
        map_fd,
        key: (&raw const key) as u64,
        value: (&raw mut value) as u64,
        ..Element::default()
    };
    for n in 0..ELEMENTS {
        key = black_box(n);
        if what == "update" {
            value = n.into();
        }
        black_box((&key, &value));
        bpf(command, &mut attr).map_err(|errno| format!("errno {errno}"))?;
        sum += black_box(value);
    }
    Ok(sum)
}

fn ours(map: &Map, what: &str) -> Result<u64> {
    let mut sum = 0;
    match what {
        "lookup" => {
            for n in 0..ELEMENTS {
                sum += map.get::<u64>(&n)?.ok_or("missing")?;
            }
        }
        "update" => {
            for n in 0..ELEMENTS {
                map.set(&n, &u64::from(n))?;
            }
        }
        _ => map.for_each(&mut |key, value| {
            let key = pod::from_bytes::<u32>(key).unwrap_or_default();
            let value = pod::from_bytes::<u64>(value).unwrap_or_default();
            sum += 1 + (u64::from(key) ^ value);
            ControlFlow::Continue(())
        })?,
    }
    Ok(sum)
}

fn libbpf(map: &MapHandle, what: &str) -> Result<u64> {
    let any = LibbpfFlags::ANY;
    let mut sum = 0;
    let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
    match what {
        "lookup" => {
            for n in 0..ELEMENTS {
                let value = map.lookup(&n.to_ne_bytes(), any)?.ok_or("missing")?;
                sum += number(&value);
            }
        }
        "update" => {
            for n in 0..ELEMENTS {
                map.update(&n.to_ne_bytes(), &u64::from(n).to_ne_bytes(), any)?;
            }
        }
        _ => {
            // It takes a batch that is not full for the last one.
            for (key, value) in map.lookup_batch(2 * ELEMENTS, any, any)? {
                let key = key.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
                sum += 1 + (u64::from(key) ^ number(&value));
            }
        }
    }
    Ok(sum)
}

fn aya(map: &mut AyaHash<MapData, u32, u64>, what: &str) -> Result<u64> {
    let mut sum = 0;
    match what {
        "lookup" => {
            for n in 0..ELEMENTS {
                sum += map.get(&n, 0)?;
            }
        }
        "update" => {
            for n in 0..ELEMENTS {
                map.insert(n, u64::from(n), 0)?;
            }
        }
        // It has no batches.
        _ => {
            for element in map.iter() {
                let (key, value) = element?;
                sum += 1 + (u64::from(key) ^ value);
            }
        }
    }
    Ok(sum)
}

struct Maps {
    ours: Map,
    libbpf: MapHandle,
    aya: AyaHash<MapData, u32, u64>,
}

impl Maps {
    fn new() -> Result<Maps> {
        let map = Map::create(&MapSpec {
            name: "elements".to_owned(),
            map_type: MapType::HASH,
            key_size: 4,
            value_size: 8,
            max_entries: 2 * ELEMENTS,
            ..MapSpec::default()
        })?;
        let keys: Vec<u32> = (0..ELEMENTS).collect();
        let values: Vec<u64> = (0..ELEMENTS.into()).collect();
        let (keys, values) = (pod::slice_bytes(&keys), pod::slice_bytes(&values));
        map.update_many(keys, values, ElemFlags::empty())?;
        let id = map_info(map.as_fd())?.id;
        Ok(Maps {
            libbpf: MapHandle::from_map_id(id)?,
            aya: AyaHash::try_from(AyaMap::HashMap(MapData::from_id(id)?))?,
            ours: map,
        })
    }

    fn turn(&mut self, who: &str, what: &str) -> Result<Duration> {
        let start = Instant::now();
        let sum = black_box(match who {
            "bare" => bare(&self.ours, what)?,
            "ours" => ours(&self.ours, what)?,
            "libbpf-rs" => libbpf(&self.libbpf, what)?,
            _ => aya(&mut self.aya, what)?,
        });
        let time = start.elapsed();
        let all = u64::from(ELEMENTS);
        let wanted = match what {
            "all" => all,
            "update" if who != "bare" => 0,
            _ => all * (all - 1) / 2,
        };
        if sum != wanted {
            return Err(format!("{who} {what}: {sum} instead of {wanted}").into());
        }
        Ok(time)
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    stay_on(0)?;
    let mut maps = Maps::new()?;
    if let [mode, who, what, rounds] = &arguments[..]
        && mode == "count"
    {
        for _ in 0..rounds.parse::<usize>()? {
            maps.turn(who, what)?;
        }
        return Ok(());
    }
    println!("{}", machine());
    println!("| | {} | ratios |", WHO.join(" | "));
    println!("| --- |{} --- |", " --: |".repeat(WHO.len()));
    for what in WHAT {
        let mut times = vec![Vec::new(); WHO.len()];
        for _ in 0..ROUNDS {
            for (who, times) in WHO.iter().zip(&mut times) {
                times.push(maps.turn(who, what)?.as_nanos() as f64 / f64::from(ELEMENTS));
            }
        }
        let cells: Vec<String> = times.iter().map(|t| format!("{:.0}", median(t))).collect();
        let base = &times[0];
        let ratios: Vec<String> = times
            .iter()
            .map(|t| format!("{:.3}", ratio(t, base)))
            .collect();
        println!(
            "| {what} | {} | {} |",
            cells.join(" | "),
            ratios.join(" / ")
        );
    }
    Ok(())
}
