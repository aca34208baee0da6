//! Runs processes in turns and counts what they take.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::{Result, child};

/// A process to measure: a program of this package and its arguments.
#[derive(Clone, Debug)]
pub struct Process {
    /// Name in tables.
    pub name: String,
    /// Name of the program.
    pub program: &'static str,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// What a process took.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Milliseconds from start to end, of each run.
    pub wall_ms: Vec<f64>,
    /// Milliseconds of processor time, user and system, of each run.
    pub cpu_ms: Vec<f64>,
    /// Most resident memory, in KiB.
    pub peak_kib: u64,
    /// System calls, of all threads; `None` without strace.
    pub calls: Option<u64>,
    /// User instructions; `None` without valgrind.
    pub instructions: Option<u64>,
}

impl Process {
    /// A process.
    pub fn new(name: &str, program: &'static str, arguments: &[&str]) -> Process {
        Process {
            name: name.to_owned(),
            program,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
        }
    }

    /// The command, with an empty environment: what cargo puts there costs the
    /// dynamic linker a hundred system calls.
    fn command(&self, wrapper: &[&str]) -> Result<Command> {
        let program = binary(self.program)?;
        let mut words = wrapper.iter().map(PathBuf::from).chain([program]);
        let mut command = Command::new(words.next().ok_or("no program")?);
        command.args(words).args(&self.arguments).env_clear();
        Ok(command)
    }

    /// One run: milliseconds of wall and processor time.
    fn time(&self) -> Result<(f64, f64)> {
        let mut command = self.command(&[])?;
        let start = Instant::now();
        let child = command.stdout(Stdio::null()).spawn()?;
        let mut status = 0;
        // SAFETY: rusage is plain numbers, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live variables of these types.
        let pid = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage) };
        let wall = start.elapsed();
        if pid < 0 || status != 0 {
            return Err(format!("{} failed", self.program).into());
        }
        let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
        Ok((
            wall.as_secs_f64() * 1e3,
            ms(usage.ru_utime) + ms(usage.ru_stime),
        ))
    }

    /// What the process reports about itself: see [`child::run`].
    pub fn report(&self) -> Result<Vec<u64>> {
        let output = self.command(&[])?.env(child::REPORT, "1").output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        Ok(last.split(' ').filter_map(|n| n.parse().ok()).collect())
    }

    /// System calls of all its threads.
    pub fn calls(&self) -> Option<u64> {
        let file = std::env::temp_dir().join(format!("peers-strace-{}", std::process::id()));
        let path = file.to_str()?;
        let output = self.command(&["strace", "-f", "-c", "-o", path]).ok()?;
        let done = { output }.output().ok()?.status.success();
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let _ = std::fs::remove_file(&file);
        let total = text.lines().find(|line| line.ends_with(" total"))?;
        // "% time, seconds, usecs/call, calls, errors, total"
        let columns: Vec<&str> = total.split_whitespace().collect();
        columns.get(3)?.parse().ok().filter(|_| done)
    }

    /// User instructions, counted by callgrind.
    pub fn instructions(&self) -> Option<u64> {
        let wrapper = [
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
        ];
        let output = self.command(&wrapper).ok()?.output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().find_map(|l| l.split_once("Collected : "))?;
        line.1.trim().parse().ok()
    }
}

/// A program of this package, built beside this one.
fn binary(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if path.exists() {
        return Ok(path);
    }
    Err(format!(
        "{} is missing: build with `cargo build --release`",
        path.display()
    )
    .into())
}

/// A file of the repository's test programs.
pub fn fixture(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("../../tests/programs").join(name);
    path.to_string_lossy().into_owned()
}

/// Runs the processes in turns, `rounds` times each, then once more each for
/// what does not vary.
pub fn in_turns(processes: &[Process], rounds: usize) -> Result<Vec<Figures>> {
    let mut figures = vec![Figures::default(); processes.len()];
    for process in processes {
        process.time()?;
    }
    for round in 0..rounds {
        // Who comes after whom takes turns, too.
        for at in 0..processes.len() {
            let at = (at + round) % processes.len();
            let (wall, cpu) = processes[at].time()?;
            figures[at].wall_ms.push(wall);
            figures[at].cpu_ms.push(cpu);
        }
    }
    for (process, figures) in processes.iter().zip(&mut figures) {
        figures.peak_kib = process.report()?.first().copied().unwrap_or(0);
        figures.calls = process.calls();
        figures.instructions = process.instructions();
    }
    Ok(figures)
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Median of the ratios to `base` of the same round: what a busy machine does
/// to both cancels out.
pub fn ratio(values: &[f64], base: &[f64]) -> f64 {
    let ratios: Vec<f64> = values.iter().zip(base).map(|(v, b)| v / b).collect();
    median(&ratios)
}

/// A table of figures. Ratios are of wall time, to the first process.
pub fn table(title: &str, processes: &[Process], figures: &[Figures]) -> String {
    let mut text = format!("\n{title}\n\n");
    text.push_str(
        "| | wall ms | ratio | CPU ms | user instructions | peak RSS MB | system calls |\n",
    );
    text.push_str("| --- | --: | --: | --: | --: | --: | --: |\n");
    let base = figures
        .first()
        .map(|f| f.wall_ms.clone())
        .unwrap_or_default();
    let or_not = |number: Option<String>| number.unwrap_or_else(|| "not counted".to_owned());
    for (process, figures) in processes.iter().zip(figures) {
        text.push_str(&format!(
            "| {} | {:.1} | {:.2} | {:.1} | {} | {:.1} | {} |\n",
            process.name,
            median(&figures.wall_ms),
            ratio(&figures.wall_ms, &base),
            median(&figures.cpu_ms),
            or_not(figures.instructions.map(millions)),
            figures.peak_kib as f64 / 1024.0,
            or_not(figures.calls.map(|n| n.to_string())),
        ));
    }
    text
}

fn millions(number: u64) -> String {
    format!("{:.2} M", number as f64 / 1e6)
}

/// The machine's kind, its kernel, and how busy it is.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let cpus = info.lines().filter(|l| l.starts_with("processor")).count();
    format!(
        "{cpus} x {}, Linux {}, load {}",
        model.map_or("processor without a name", |(_, model)| model),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
    )
}
