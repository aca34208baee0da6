//! Attaching and detaching many probes: uprobes on a copy of the C library, and kprobes where the kernel has them.
//!
//! ```sh
//! cargo bench --bench hooks [PROBES]
//! cargo bench --bench hooks threads
//! ```
//!
//! Needs root. Prints milliseconds of the wall: to attach, until nothing runs
//! the programs any more, and until the kernel has closed everything. Closing a
//! perf event of a probe takes it tens of milliseconds, one after the other:
//! with 500 it works for most of a minute.
//!
//! With `threads`: what it would gain to attach on several threads, in turns.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends when it cannot go on"
)]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ebpf_manager::bpf::{
    Collection, Kprobe, KprobeMulti, Link, LoadOptions, Mechanism, Program, Uprobe, UprobeMulti,
    UserPlace, open_object, traceable_functions,
};
use ebpf_manager::elf::symbols;

/// Threads that silence and close: the kernel lets them wait together.
const THREADS: usize = 12;

struct Row {
    attach: Duration,
    silent: Duration,
    closed: Duration,
}

fn main() {
    let count = std::env::args()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(500);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("Linux {}, {count} probes, milliseconds", release.trim());
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/probes.bpf.o");
    let object = std::env::var_os("EBPF_MANAGER_TESTDATA").map_or(object, |directory| {
        Path::new(&directory).join("probes.bpf.o")
    });
    let object = match open_object(object) {
        Ok(object) => object,
        Err(err) => return println!("skipped: {err}"),
    };
    let collection = match Collection::load(&object, LoadOptions::default()) {
        Ok(collection) => collection,
        Err(err) => return println!("skipped: {err}"),
    };
    let program = |name| collection.program(name).expect("the object has it");
    let (scratch, offsets) = some_functions(count);
    if std::env::args().any(|argument| argument == "threads") {
        return on_threads(&collection, &scratch, &offsets);
    }
    println!("{:32} {:>9} {:>9} {:>9}", "", "attach", "silent", "closed");
    let exe = scratch.0.as_path();

    show("uprobe.multi, one link", || {
        let places = offsets.iter().map(|offset| UserPlace::Offset(*offset));
        let mut probe = UprobeMulti::symbols(exe, [""; 0]).attach_by(Mechanism::UprobeMulti);
        probe.places = places.collect();
        Ok(vec![Link::uprobe_multi(
            program("on_uprobe_multi"),
            &probe,
        )?])
    });
    show("uprobe.multi, a link each", || {
        let one = |offset: &u64| {
            let mut probe = UprobeMulti::symbols(exe, [""; 0]).attach_by(Mechanism::UprobeMulti);
            probe.places = vec![UserPlace::Offset(*offset)];
            Link::uprobe_multi(program("on_uprobe_multi"), &probe)
        };
        offsets.iter().map(one).collect()
    });
    show("uprobes on perf events", || {
        let one = |offset: &u64| Link::uprobe(program("on_uprobe"), &Uprobe::offset(exe, *offset));
        offsets.iter().map(one).collect()
    });
    let Ok(functions) = kernel_functions(count, program("on_kprobe")) else {
        return println!("no kprobes on this kernel");
    };
    show("kprobe.multi, one link", || {
        let probe = KprobeMulti::symbols(functions.clone()).attach_by(Mechanism::KprobeMulti);
        Ok(vec![Link::kprobe_multi(
            program("on_kprobe_multi"),
            &probe,
        )?])
    });
    show("kprobes on perf events", || {
        let one = |name: &String| Link::kprobe(program("on_kprobe"), &Kprobe::new(name));
        functions.iter().map(one).collect()
    });
}

/// A copy of the C library, which nobody runs, and offsets of its functions.
fn some_functions(count: usize) -> (Scratch, Vec<u64>) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let library = maps
        .lines()
        .filter_map(|line| line.split_once('/'))
        .map(|(_, path)| format!("/{path}"))
        .find(|path| path.contains("/libc.so") || path.contains("/libc-"))
        .expect("this program has a C library");
    let bytes = std::fs::read(library).expect("the C library can be read");
    let path = std::env::temp_dir().join(format!("ebpf-manager-hooks-{}", std::process::id()));
    std::fs::write(&path, &bytes).expect("a temporary file can be written");
    let mut offsets = Vec::new();
    symbols::for_each_function(&bytes, &mut |symbol| {
        if symbol.size >= 16 {
            offsets.push(symbol.offset);
        }
    })
    .expect("it has symbols");
    offsets.sort_unstable();
    offsets.dedup();
    offsets.truncate(count);
    (Scratch(path), offsets)
}

/// A file until this is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Functions that can be probed and are seldom called.
fn kernel_functions(
    count: usize,
    program: &Program,
) -> Result<Vec<String>, ebpf_manager::bpf::LinkError> {
    let mut names = traceable_functions("ext4_*").unwrap_or_default();
    for pattern in [
        "btrfs_*", "xfs_*", "pci_*", "usb_*", "acpi_*", "scsi_*", "nfs*",
    ] {
        names.extend(traceable_functions(pattern).unwrap_or_default());
    }
    let probe = |name: &String| Link::kprobe(program, &Kprobe::new(name)).map(drop);
    if let Some(first) = names.first() {
        probe(first)?;
    } else {
        probe(&"vfs_read".to_owned())?;
    }
    names.dedup();
    names.truncate(count);
    Ok(names)
}

fn show(what: &str, attach: impl FnOnce() -> Result<Vec<Link>, ebpf_manager::bpf::LinkError>) {
    let start = Instant::now();
    let links = match attach() {
        Ok(links) => links,
        Err(err) => return println!("{what:32} {err}"),
    };
    let attach = start.elapsed();
    let row = detach(links, attach);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{what:32} {:9.1} {:9.1} {:9.1}",
        ms(row.attach),
        ms(row.silent),
        ms(row.closed)
    );
}

/// As the manager does it: silent first, then closed.
fn detach(mut links: Vec<Link>, attach: Duration) -> Row {
    // Multi links have no other way to be silent than to be closed.
    let by_closing = links
        .first()
        .is_some_and(|link| link.mechanism() != Mechanism::PerfEventLink);
    let start = Instant::now();
    if !by_closing {
        in_parallel(&mut links, &|link| link.silence());
    }
    let silent = start.elapsed();
    let mut links: Vec<Option<Link>> = links.into_iter().map(Some).collect();
    in_parallel(&mut links, &|link| drop(link.take()));
    let closed = start.elapsed();
    Row {
        attach,
        silent: if by_closing { closed } else { silent },
        closed,
    }
}

fn in_parallel<T: Send>(items: &mut [T], work: &(dyn Fn(&mut T) + Sync)) {
    let part = items.len().div_ceil(THREADS).max(1);
    std::thread::scope(|scope| {
        for part in items.chunks_mut(part) {
            scope.spawn(move || part.iter_mut().for_each(work));
        }
    });
}

type Attach<'a> = dyn Fn(usize) -> Result<Link, ebpf_manager::bpf::LinkError> + Sync + 'a;

/// Many links of a kind, attached on 1, 2 and 4 threads in turns.
fn on_threads(probes: &Collection, scratch: &Scratch, offsets: &[u64]) {
    let program = |name| probes.program(name).expect("the object has it");
    let exe = scratch.0.as_path();
    let multi = |at: usize| {
        let mut probe = UprobeMulti::symbols(exe, [""; 0]).attach_by(Mechanism::UprobeMulti);
        probe.places = vec![UserPlace::Offset(offsets[at])];
        Link::uprobe_multi(program("on_uprobe_multi"), &probe)
    };
    let uprobe = |at: usize| Link::uprobe(program("on_uprobe"), &Uprobe::offset(exe, offsets[at]));
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/attach.bpf.o");
    let object = open_object(object).expect("the fixture");
    let traced = Collection::load(&object, LoadOptions::default()).expect("it loads");
    let events = tracepoints();
    let tracepoint = |at: usize| {
        let (category, name) = &events[at];
        Link::tracepoint(
            traced.program("attach_exec").expect("there"),
            category,
            name,
        )
    };
    let raw = |at: usize| {
        let program = traced.program("attach_exec_raw").expect("there");
        Link::raw_tracepoint(program, &events[at].1)
    };
    let half = events.len() / 2;
    let mixed = |at: usize| match at % 3 {
        0 => multi(at / 3),
        1 => tracepoint(at / 3),
        _ => raw(half + at / 3),
    };
    compare(
        "uprobe.multi, a link each",
        offsets.len().min(200),
        9,
        &multi,
    );
    compare("tracepoints", events.len(), 9, &tracepoint);
    compare("raw tracepoints", events.len(), 9, &raw);
    compare("a third of each", half.min(40) * 3, 9, &mixed);
    compare("uprobes on perf events", offsets.len().min(40), 3, &uprobe);
    let Ok(functions) = kernel_functions(40, program("on_kprobe")) else {
        return println!("no kprobes on this kernel");
    };
    compare("kprobes on perf events", functions.len(), 3, &|at| {
        Link::kprobe(program("on_kprobe"), &Kprobe::new(&functions[at]))
    });
}

/// Tracepoints of a few parts of the kernel, at most a hundred.
fn tracepoints() -> Vec<(String, String)> {
    let mut all = Vec::new();
    let root = Path::new("/sys/kernel/tracing/events");
    for category in [
        "sched",
        "block",
        "irq",
        "timer",
        "kmem",
        "writeback",
        "net",
        "skb",
        "tcp",
    ] {
        let entries = std::fs::read_dir(root.join(category)).into_iter().flatten();
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            all.push((category.to_owned(), name));
        }
    }
    all.truncate(100);
    all
}

/// Medians, and the median of the rounds' ratios to one thread.
fn compare(what: &str, count: usize, rounds: usize, attach: &Attach<'_>) {
    const THREADS: [usize; 3] = [1, 2, 4];
    let mut times = [const { Vec::new() }; THREADS.len()];
    for round in 0..rounds {
        for turn in 0..THREADS.len() {
            let at = (turn + round) % THREADS.len();
            times[at].push(attach_on(THREADS[at], count, attach));
        }
    }
    print!("{what:28} {count:4}:");
    for (threads, times_here) in THREADS.iter().zip(&times) {
        let pairs = times_here.iter().zip(&times[0]);
        let ratios: Vec<f64> = pairs.map(|(time, one)| time / one).collect();
        let (time, ratio) = (median(times_here), median(&ratios));
        print!("  {threads} {time:7.1} ms {ratio:5.2}");
    }
    println!();
}

/// How long that takes, in milliseconds; all is detached afterwards.
fn attach_on(threads: usize, count: usize, attach: &Attach<'_>) -> f64 {
    let next = AtomicUsize::new(0);
    let links = Mutex::new(Vec::with_capacity(count));
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                break;
            }
            let link = attach(at).expect("it can be attached");
            links.lock().expect("nobody panics").push(link);
        }
    };
    let start = Instant::now();
    if threads == 1 {
        work();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
    }
    let took = start.elapsed();
    Link::detach_all(links.into_inner().expect("nobody panics"));
    took.as_secs_f64() * 1e3
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
