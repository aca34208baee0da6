//! Runs this project and its peers in turns and prints tables.
//!
//! ```text
//! peers            everything
//! peers load A D   loading, of these objects only
//! peers types      getting ready to look up kernel types
//! peers hooks 500  attaching to so many places (100) and detaching
//! peers kprobes    the same for functions of the kernel, where there are
//!                  kprobes: only if asked for
//! ```

use std::fs;
use std::process::ExitCode;

use ebpf_manager_peers::measure::{Process, fixture, in_turns, machine, median, ratio, table};
use ebpf_manager_peers::{Result, recording};
use ebpf_manager_sys::tracefs::Tracefs;

/// Runs of each process where one takes little time.
const ROUNDS: usize = 21;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = arguments.first().map(String::as_str);
    let wanted = |name: &str| what.is_none_or(|what| what == name);
    println!("{}", machine());
    let works: [(&str, &dyn Fn(&[String]) -> Result<()>); 4] = [
        ("load", &load),
        ("types", &|_| types()),
        ("hooks", &|counts| hooks(counts, false)),
        ("kprobes", &|counts| hooks(counts, true)),
    ];
    for (name, work) in works {
        // Not every kernel has them.
        let asked_for = name != "kprobes" || what.is_some();
        if wanted(name)
            && asked_for
            && let Err(err) = work(arguments.get(1..).unwrap_or_default())
        {
            eprintln!("peers {name}: {err}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Where it takes long.
const FEW_ROUNDS: usize = 7;

/// Objects: letter, what it is, file, program to attach.
const OBJECTS: [(&str, &str, &str, Option<&str>); 4] = [
    (
        "A",
        "1 tracepoint program, 1 hash map, 1 ring buffer; attached",
        "bench_a.bpf.o",
        Some("on_exec"),
    ),
    (
        "B",
        "20 programs with 400 CO-RE relocations",
        "bench_b.bpf.o",
        None,
    ),
    (
        "C",
        "200 programs of 200 instructions, shared subprograms, 50 maps",
        "bench_c.bpf.o",
        None,
    ),
    (
        "D",
        "16 programs that take the verifier long",
        "bench_d.bpf.o",
        None,
    ),
];

fn load(letters: &[String]) -> Result<()> {
    let file = std::env::temp_dir().join(format!("peers-recording-{}", std::process::id()));
    let path = file.to_string_lossy().into_owned();
    let event = Tracefs::find()?.event_id("sched", "sched_process_exec")?;
    for (letter, what, object, program) in OBJECTS {
        if !letters.is_empty() && !letters.iter().any(|l| l == letter) {
            continue;
        }
        let object = fixture(object);
        fs::write(&file, recording::record(&object)?)?;
        let event = event.to_string();
        let mut raw = vec![path.as_str()];
        raw.extend(program.map(|_| event.as_str()));
        let mut loader = vec![object.as_str()];
        loader.extend(program);
        let processes = [
            Process::new("bare system calls", "load_raw", &raw),
            Process::new("this project", "load_ours", &loader),
            Process::new("libbpf-rs 0.27.2", "load_libbpf", &loader),
            Process::new("aya 0.14.0", "load_aya", &loader),
            Process::new("bare system calls, static", "load_raw_static", &raw),
            Process::new("this project, static", "load_ours_static", &loader),
        ];
        let figures = in_turns(&processes, if letter == "D" { FEW_ROUNDS } else { ROUNDS });
        let _ = fs::remove_file(&file);
        print!(
            "{}",
            table(&format!("{letter}: {what}"), &processes, &figures?)
        );
    }
    Ok(())
}

fn types() -> Result<()> {
    let processes = [
        Process::new("this project", "types_ours", &[]),
        Process::new("libbpf-rs 0.27.2", "types_libbpf", &[]),
        Process::new("aya 0.14.0", "types_aya", &[]),
    ];
    let mut micros = vec![Vec::new(); processes.len()];
    let mut memory = vec![0; processes.len()];
    for _ in 0..ROUNDS {
        for (at, process) in processes.iter().enumerate() {
            let [_, time, kib] = process.report()?.try_into().map_err(|_| "no report")?;
            micros[at].push(time as f64);
            memory[at] = kib;
        }
    }
    println!("\nready to look up kernel types\n");
    println!("| | ms | ratio | anonymous memory KiB |\n| --- | --: | --: | --: |");
    for (at, process) in processes.iter().enumerate() {
        let (ms, base) = (median(&micros[at]) / 1e3, &micros[0]);
        let times = ratio(&micros[at], base);
        println!(
            "| {} | {ms:.2} | {times:.2} | {} |",
            process.name, memory[at]
        );
    }
    Ok(())
}

/// The kernel takes about 100 ms to close a perf event of a probe: so many in
/// all of one process's runs.
const CLOSED_EVENTS: usize = 500;

fn hooks(counts: &[String], in_the_kernel: bool) -> Result<()> {
    let few = ["100".to_owned()];
    for count in if counts.is_empty() { &few } else { counts } {
        let rounds = (CLOSED_EVENTS / count.parse::<usize>()?.max(1)).clamp(1, FEW_ROUNDS);
        attach(count, rounds, in_the_kernel)?;
    }
    Ok(())
}

fn attach(count: &str, rounds: usize, in_the_kernel: bool) -> Result<()> {
    let (one, multi, what): (&[&str], &[&str], _) = if in_the_kernel {
        let what = ("kprobes", "this project, one kprobe.multi link");
        (&[count, "kernel"], &[count, "kernel", "multi"], what)
    } else {
        let what = (
            "uprobes in one binary",
            "this project, one uprobe.multi link",
        );
        (&[count], &[count, "multi"], what)
    };
    let processes = [
        Process::new("this project", "hooks_ours", one),
        Process::new("libbpf-rs 0.27.2", "hooks_libbpf", one),
        Process::new("aya 0.14.0", "hooks_aya", one),
        Process::new(what.1, "hooks_ours", multi),
    ];
    let mut attach = vec![Vec::new(); processes.len()];
    let mut detach = vec![Vec::new(); processes.len()];
    for round in 0..rounds {
        for at in 0..processes.len() {
            let at = (at + round) % processes.len();
            let report = processes[at].report()?;
            let [_, attached, detached] = report.try_into().map_err(|_| "no report")?;
            attach[at].push(attached as f64);
            detach[at].push(detached as f64);
        }
    }
    println!("\n{count} {}, median of {rounds}\n", what.0);
    println!("| | attach ms | ratio | detach ms | ratio |\n| --- | --: | --: | --: | --: |");
    for (at, process) in processes.iter().enumerate() {
        let columns = [&attach, &detach].map(|times| {
            let (ms, times) = (median(&times[at]) / 1e3, ratio(&times[at], &times[0]));
            format!("{ms:.1} | {times:.3}")
        });
        println!("| {} | {} |", process.name, columns.join(" | "));
    }
    Ok(())
}
