//! `ebpf-manager check`: which kernels objects fit, from the kernels' types.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ebpf_manager::bpf::{KernelBtf, open_object};
use ebpf_manager::elf::Object;
use ebpf_manager::elf::check::{Fault, Finding, Report, check};

use super::inspect::{Json, Table};

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) objects: Vec<PathBuf>,
    /// The running kernel's if empty.
    pub(crate) btf: Vec<PathBuf>,
    pub(crate) json: bool,
}

/// The types of one kernel.
struct Kernel {
    name: String,
    btf: Arc<KernelBtf>,
    modules: Modules,
}

/// Those of its modules, looked into when it lacks something.
enum Modules {
    Unknown,
    Running,
    /// A directory like `/sys/kernel/btf`.
    Files(PathBuf),
    Read(Vec<KernelBtf>),
}

impl Kernel {
    /// From a file, or a directory like `/sys/kernel/btf`.
    fn of(path: &Path) -> Result<Kernel, String> {
        let (file, modules) = if path.is_dir() {
            (path.join("vmlinux"), Modules::Files(path.to_owned()))
        } else {
            (path.to_owned(), Modules::Unknown)
        };
        Ok(Kernel {
            name: path.display().to_string(),
            btf: KernelBtf::from_file(&file).map_err(|err| err.to_string())?,
            modules,
        })
    }

    /// The kernel's own BTF and that of its modules.
    fn with_modules(&mut self) -> Result<(&[u8], Vec<&[u8]>), String> {
        let found = match &self.modules {
            Modules::Running => Some(KernelBtf::modules().collect()),
            Modules::Files(dir) => {
                let modules = KernelBtf::modules_in(dir);
                Some(modules.map_err(|err| err.to_string())?)
            }
            Modules::Unknown | Modules::Read(_) => None,
        };
        if let Some(found) = found {
            self.modules = Modules::Read(found);
        }
        let modules = match &self.modules {
            Modules::Read(modules) => modules.iter().map(KernelBtf::as_bytes).collect(),
            _ => Vec::new(),
        };
        Ok((self.btf.as_bytes(), modules))
    }
}

/// An object on a kernel.
struct Cell<'o> {
    path: &'o Path,
    object: &'o Object,
    kernel: &'o str,
    report: Report,
}

impl Cell<'_> {
    fn required(&self) -> usize {
        self.report.findings.iter().filter(|f| f.required).count()
    }
}

/// Prints how every object fares on every kernel. False if something required
/// is missing somewhere.
pub(crate) fn run(options: &Options) -> Result<bool, String> {
    let mut kernels = Vec::new();
    for path in &options.btf {
        kernels.push(Kernel::of(path)?);
    }
    if kernels.is_empty() {
        let btf = KernelBtf::vmlinux().map_err(|err| err.to_string())?;
        kernels.push(Kernel {
            name: "running".to_owned(),
            btf,
            modules: Modules::Running,
        });
    }
    let objects: Vec<_> = options.objects.iter().map(open_object).collect();
    let mut cells = Vec::new();
    for (path, object) in options.objects.iter().zip(&objects) {
        let object = object.as_ref().map_err(ToString::to_string)?;
        let fail = |err: &dyn std::error::Error| format!("{}: {err}", path.display());
        let linker = object.linker().map_err(|err| fail(&err))?;
        for kernel in &mut kernels {
            let fail = |err, name: &str| format!("{} on {name}: {err}", path.display());
            let mut report = check(&linker, kernel.btf.as_bytes(), &[])
                .map_err(|err| fail(err, &kernel.name))?;
            if report.missing + report.absent + report.findings.len() as u32 > 0 {
                let (btf, modules) = kernel.with_modules()?;
                if !modules.is_empty() {
                    report =
                        check(&linker, btf, &modules).map_err(|err| fail(err, &kernel.name))?;
                }
            }
            cells.push((path, object, kernel.name.clone(), report));
        }
    }
    let cells: Vec<Cell<'_>> = cells
        .iter_mut()
        .map(|(path, object, kernel, report)| Cell {
            path,
            object,
            kernel,
            report: std::mem::take(report),
        })
        .collect();
    let mut out = Vec::new();
    if options.json {
        json(&cells, &mut out);
    } else {
        text(&cells, &mut out);
    }
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&out).and_then(|()| stdout.flush()) {
        Err(err) if err.kind() != io::ErrorKind::BrokenPipe => Err(format!("write: {err}")),
        _ => Ok(cells.iter().all(|cell| cell.required() == 0)),
    }
}

fn text(cells: &[Cell<'_>], out: &mut Vec<u8>) {
    let mut table = Table::new(&[
        "OBJECT",
        "KERNEL",
        "FITS",
        "MATCHED",
        "ABSENT",
        "MISSING",
        "AMBIGUOUS",
        "OTHER",
        "REQUIRED",
    ]);
    for cell in cells {
        let report = &cell.report;
        let numbers = [
            report.matched,
            report.absent,
            report.missing,
            report.ambiguous,
            report.failed,
        ];
        let mut row = vec![
            cell.path.display().to_string(),
            cell.kernel.to_owned(),
            if cell.required() == 0 { "yes" } else { "no" }.to_owned(),
        ];
        row.extend(numbers.map(|n| n.to_string()));
        row.push(cell.required().to_string());
        table.row(row);
    }
    table.print(out);

    let mut table = Table::new(&["", "OBJECT", "KERNEL", "PROGRAM", "INSN", "WHAT"]);
    for cell in cells {
        for finding in &cell.report.findings {
            table.row(vec![
                if finding.required { "!" } else { "-" }.to_owned(),
                cell.path.display().to_string(),
                cell.kernel.to_owned(),
                program(cell, finding).to_owned(),
                finding.insn.map_or("-".to_owned(), |insn| insn.to_string()),
                finding.fault.to_string(),
            ]);
        }
    }
    table.print(out);
}

fn program<'c>(cell: &'c Cell<'_>, finding: &Finding) -> &'c str {
    let spec = cell.object.programs().get(finding.program);
    spec.map_or("-", |spec| spec.name.as_str())
}

fn json(cells: &[Cell<'_>], out: &mut Vec<u8>) {
    let mut json = Json { out, first: true };
    json.open(None, b'{');
    json.list("checks", cells, |json, cell| {
        let report = &cell.report;
        json.text("object", &cell.path.display().to_string());
        json.text("kernel", cell.kernel);
        json.flag("fits", cell.required() == 0);
        json.number("matched", report.matched.into());
        json.number("absent", report.absent.into());
        json.number("missing", report.missing.into());
        json.number("ambiguous", report.ambiguous.into());
        json.number("other", report.failed.into());
        json.list("findings", &report.findings, |json, finding| {
            json.text("program", program(cell, finding));
            if let Some(insn) = finding.insn {
                json.number("insn", insn.into());
            }
            json.flag("required", finding.required);
            match &finding.fault {
                Fault::Missing(poison) => {
                    json.text("kind", poison.kind.name());
                    json.text("of", &poison.spec);
                    json.text("reason", &poison.reason.to_string());
                }
                Fault::Failed(error) => {
                    json.text("kind", error.kind.name());
                    json.text("of", &error.spec);
                    json.text("reason", &error.what.to_string());
                }
                other => json.text("reason", &other.to_string()),
            }
        });
    });
    json.close(b'}');
    json.out.push(b'\n');
}
