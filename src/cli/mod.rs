//! Arguments and dispatch.

mod check;
mod demo;
mod event;
mod format;
mod inspect;
mod link;
mod minimise;
mod names;
mod output;
mod run;
mod session;
mod summary;
mod trace;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ebpf_manager::manifest;
use lexopt::Arg::{Long, Short, Value};

const HELP: &str = "\
Loads eBPF programs and shows what they report.

Usage: ebpf-manager COMMAND [OPTION]...

Commands:
  trace          show processes as they execute files and exit
  inspect        show what an object file declares
  check          say which kernels object files fit, from the kernels' BTF
  link           link several object files into one
  minimise       write the part of a kernel's BTF that object files need
  run            run what a manifest declares
  help COMMAND   show a command's options

Options:
  -h, --help     show this text, or after a command that command's
  -V, --version  show the version
";

const TRACE_HELP: &str = "\
Shows processes as they execute files and exit, until Ctrl-C.

Usage: ebpf-manager trace [OPTION]...

Options:
  --duration TIME      stop after this time: 500ms, 5s, 2m, 1h
  --min-duration TIME  leave out exits of processes that lived less than this
  --json               write one JSON object per line
  --demo               run a few short processes to look at, then stop
  --btf FILE           the kernel's BTF, if it does not have it itself
  --verbose            show the verifier's whole log if it refuses a program
  -h, --help           show this text

Columns: TIME is in seconds since the start, DURATION the life of the process,
STATUS its exit code or the signal that ended it, FILE what it executed last.
A dash stands for what does not apply or is not known.

JSON: event (\"exec\", \"exit\"), time (UTC), pid, ppid, uid, comm, file (null if
unknown); an exit also has duration_ns, exit_code or signal (the other is
null) and core_dumped. The last line has the event \"summary\".

Needs root, or CAP_BPF, CAP_PERFMON and a readable tracefs; Linux 5.8 or later
with BTF. Exit status: 0 after tracing, 1 if that was not possible, 2 for a
wrong command line.
";

const INSPECT_HELP: &str = "\
Shows what an eBPF object file declares: programs, maps, variables, symbols
that it expects from elsewhere, CO-RE relocations. Needs no privileges.

Usage: ebpf-manager inspect [--json] FILE

Options:
  --json       write one JSON object
  -h, --help   show this text

INSNS counts the instructions of a program's own function, LINKED those of all
functions it needs. Exit status: 0, 1 if the file cannot be used, 2 for a wrong
command line.
";

const CHECK_HELP: &str = "\
Says which kernels eBPF object files fit, before anything is loaded: which CO-RE
relocations match, which are missing, and what the object needs of the kernel
besides. Needs no privileges.

Usage: ebpf-manager check [--json] [--btf FILE]... OBJECT...

Options:
  --btf FILE   the BTF of a kernel, instead of the running one's: a file, or a
               copy of the directory /sys/kernel/btf, with that of modules; once
               for each kernel
  --json       write one JSON object
  -h, --help   show this text

MATCHED relocations have a value. ABSENT ones ask whether something exists that
does not, and are answered. MISSING ones have no answer: their instructions must
not run. That is harmless behind a check for existence, so only what can be
reached is REQUIRED, and so are attach targets and symbols that are not weak.
AMBIGUOUS ones have several answers. What is listed without a \"!\" does no harm.
The kernel's verifier has the last word. From a file alone the types in modules
are not known.

Exit status: 0 if all fits, 1 if something required is missing, 2 if a file
cannot be used or the command line is wrong.
";

const LINK_HELP: &str = "\
Links several eBPF object files into one, which can be loaded like any other.
Needs no privileges.

Usage: ebpf-manager link -o FILE OBJECT...

Options:
  -o, --output FILE  where the linked object is written
  -h, --help         show this text

A strong definition stands for all weak ones, of which otherwise the first
counts; two strong ones conflict. What is extern in one file is that of another
one, and has to have its type. Sections of one name are put behind each other;
the licence has to be the same in all files. Exit status: 0, 1 if the files
cannot be linked, 2 for a wrong command line.
";

const MINIMISE_HELP: &str = "\
Writes the small part of a kernel's BTF that suffices to resolve the CO-RE
relocations of object files, for kernels that have no BTF of their own. The
answers are the same but for the numbers of types. Needs no privileges.

Usage: ebpf-manager minimise [--btf FILE] -o FILE OBJECT...

Options:
  --btf FILE     the kernel's whole BTF, instead of the running one's
  -o, --output FILE
                 where to write; a file that exists is replaced
  -h, --help     show this text

Exit status: 0, 1 if a file cannot be used, 2 for a wrong command line.
";

const RUN_HELP: &str = "\
Runs the programs that a manifest declares, until Ctrl-C, and writes what comes
out of its buffers: a line for each record, with the map, the CPU of a perf
buffer, and the bytes.

Usage: ebpf-manager run [OPTION]... MANIFEST

Options:
  --duration TIME  stop after this time: 500ms, 5s, 2m, 1h
  --clean          at the end remove all pins that the manifest or its object
                   asks for, also those of earlier runs
  --btf FILE       the kernel's BTF, if it does not have it itself
  --verbose        show the verifier's whole log if it refuses a program
  -h, --help       show this text

A manifest is a text, a line for each thing:

  object trace.bpf.o
  probe on_exec
      hook tracepoint sched/sched_process_exec
  probe on_exit
      optional
  constant min_duration_ns u64 1000000
  ring_buffer events

The documentation of the library's module `manifest` lists all there is. What
became of each probe goes to standard error. Exit status: 0, 1 if something
cannot be used or attached, 2 for a wrong command line.
";

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Show(&'static str),
    Version,
    Trace(trace::Options),
    Inspect { file: PathBuf, json: bool },
    Check(check::Options),
    Link(link::Options),
    Minimise(minimise::Options),
    Run(run::Options),
}

/// Runs the command of this process.
pub(crate) fn main() -> ExitCode {
    let (result, code) = match parse(std::env::args_os().skip(1)) {
        Ok(Request::Show(text)) => (show(text), 1),
        Ok(Request::Version) => (
            show(concat!("ebpf-manager ", env!("CARGO_PKG_VERSION"), "\n")),
            1,
        ),
        Ok(Request::Trace(options)) => (trace::run(&options), 1),
        Ok(Request::Inspect { file, json }) => (inspect::run(&file, json), 1),
        Ok(Request::Check(options)) => match check::run(&options) {
            Ok(true) => (Ok(()), 1),
            // The tables say why.
            Ok(false) => return ExitCode::from(1),
            Err(message) => (Err(message), 2),
        },
        Ok(Request::Link(options)) => (link::run(&options), 1),
        Ok(Request::Minimise(options)) => (minimise::run(&options), 1),
        Ok(Request::Run(options)) => (run::run(&options), 1),
        Err(message) => (Err(message), 2),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // One line, whatever an error further down contains.
            let line = message.replace('\n', " ");
            // There is nobody left to tell if this fails.
            let _ = writeln!(io::stderr().lock(), "ebpf-manager: {line}");
            ExitCode::from(code)
        }
    }
}

fn show(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(err) if err.kind() != io::ErrorKind::BrokenPipe => Err(format!("write: {err}")),
        _ => Ok(()),
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let general = |err: &dyn std::fmt::Display| format!("{err}; see ebpf-manager --help");
    match parser.next().map_err(|e| general(&e))? {
        None => Err(general(&"no command given")),
        Some(Short('h') | Long("help")) => Ok(Request::Show(HELP)),
        Some(Short('V') | Long("version")) => Ok(Request::Version),
        Some(Value(command)) => {
            let name = command.to_string_lossy();
            let parse = match &*name {
                "trace" => parse_trace,
                "inspect" => parse_inspect,
                "check" => parse_check,
                "link" => parse_link,
                "minimise" => parse_minimise,
                "run" => parse_run,
                "help" => parse_help,
                _ => return Err(general(&format!("no command {name}"))),
            };
            parse(&mut parser).map_err(|err| format!("{err}; see ebpf-manager {name} --help"))
        }
        Some(other) => Err(general(&other.unexpected())),
    }
}

fn parse_help(parser: &mut lexopt::Parser) -> Result<Request, String> {
    let mut help = None;
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        help = match arg {
            Short('h') | Long("help") => Some(HELP),
            Value(command) if help.is_none() => match &*command.to_string_lossy() {
                "trace" => Some(TRACE_HELP),
                "inspect" => Some(INSPECT_HELP),
                "check" => Some(CHECK_HELP),
                "link" => Some(LINK_HELP),
                "minimise" => Some(MINIMISE_HELP),
                "run" => Some(RUN_HELP),
                name => return Err(format!("no command {name}")),
            },
            other => return Err(other.unexpected().to_string()),
        };
    }
    Ok(Request::Show(help.unwrap_or(HELP)))
}

fn parse_trace(parser: &mut lexopt::Parser) -> Result<Request, String> {
    let mut options = trace::Options::default();
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        match arg {
            Short('h') | Long("help") => return Ok(Request::Show(TRACE_HELP)),
            Long("json") => options.json = true,
            Long("demo") => options.demo = true,
            Long("duration") => options.duration = Some(time(parser, "--duration")?),
            Long("btf") => options.btf = Some(parser.value().map_err(|e| e.to_string())?.into()),
            Long("verbose") => options.verbose = true,
            Long("min-duration") => options.min_duration = time(parser, "--min-duration")?,
            other => return Err(other.unexpected().to_string()),
        }
    }
    Ok(Request::Trace(options))
}

fn parse_run(parser: &mut lexopt::Parser) -> Result<Request, String> {
    let (mut options, mut manifest) = (run::Options::default(), None);
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        match arg {
            Short('h') | Long("help") => return Ok(Request::Show(RUN_HELP)),
            Long("clean") => options.clean = true,
            Long("verbose") => options.verbose = true,
            Long("btf") => options.btf = Some(parser.value().map_err(|e| e.to_string())?.into()),
            Long("duration") => options.duration = Some(time(parser, "--duration")?),
            Value(path) if manifest.is_none() => manifest = Some(PathBuf::from(path)),
            other => return Err(other.unexpected().to_string()),
        }
    }
    options.manifest = manifest.ok_or("run needs a MANIFEST")?;
    Ok(Request::Run(options))
}

fn parse_inspect(parser: &mut lexopt::Parser) -> Result<Request, String> {
    let (mut json, mut file) = (false, None);
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        match arg {
            Short('h') | Long("help") => return Ok(Request::Show(INSPECT_HELP)),
            Long("json") => json = true,
            Value(path) if file.is_none() => file = Some(PathBuf::from(path)),
            other => return Err(other.unexpected().to_string()),
        }
    }
    let file = file.ok_or("inspect needs a FILE")?;
    Ok(Request::Inspect { file, json })
}

fn parse_check(parser: &mut lexopt::Parser) -> Result<Request, String> {
    let mut options = check::Options::default();
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        match arg {
            Short('h') | Long("help") => return Ok(Request::Show(CHECK_HELP)),
            Long("json") => options.json = true,
            Long("btf") => options
                .btf
                .push(parser.value().map_err(|e| e.to_string())?.into()),
            Value(path) => options.objects.push(path.into()),
            other => return Err(other.unexpected().to_string()),
        }
    }
    if options.objects.is_empty() {
        return Err("check needs an OBJECT".to_owned());
    }
    Ok(Request::Check(options))
}

fn parse_link(parser: &mut lexopt::Parser) -> Result<Request, String> {
    let (mut output, mut objects) = (None, Vec::new());
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        match arg {
            Short('h') | Long("help") => return Ok(Request::Show(LINK_HELP)),
            Short('o') | Long("output") => {
                output = Some(parser.value().map_err(|e| e.to_string())?.into());
            }
            Value(path) => objects.push(path.into()),
            other => return Err(other.unexpected().to_string()),
        }
    }
    if objects.is_empty() {
        return Err("link needs an OBJECT".to_owned());
    }
    Ok(Request::Link(link::Options {
        output: output.ok_or("link needs -o FILE")?,
        objects,
    }))
}

fn parse_minimise(parser: &mut lexopt::Parser) -> Result<Request, String> {
    let (mut btf, mut output, mut objects) = (None, None, Vec::new());
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        match arg {
            Short('h') | Long("help") => return Ok(Request::Show(MINIMISE_HELP)),
            Long("btf") => btf = Some(parser.value().map_err(|e| e.to_string())?.into()),
            Short('o') | Long("output") => {
                output = Some(parser.value().map_err(|e| e.to_string())?.into());
            }
            Value(path) => objects.push(path.into()),
            other => return Err(other.unexpected().to_string()),
        }
    }
    if objects.is_empty() {
        return Err("minimise needs an OBJECT".to_owned());
    }
    Ok(Request::Minimise(minimise::Options {
        btf,
        output: output.ok_or("minimise needs -o FILE")?,
        objects,
    }))
}

fn time(parser: &mut lexopt::Parser, option: &str) -> Result<Duration, String> {
    let value = parser.value().map_err(|e| e.to_string())?;
    let text = value.to_string_lossy();
    manifest::duration(&text)
        .ok_or_else(|| format!("{option}: {text:?} is not a time like 500ms, 5s, 2m or 1h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Request, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn every_option_is_read() {
        let line = "trace --json --demo --duration 5s --min-duration=10ms --btf x --verbose";
        let Ok(Request::Trace(options)) = parsed(line) else {
            panic!("refused");
        };
        assert!(options.json && options.demo && options.verbose);
        assert_eq!(options.duration, Some(Duration::from_secs(5)));
        assert_eq!(options.min_duration, Duration::from_millis(10));
        assert_eq!(options.btf.as_deref(), Some("x".as_ref()));
        assert_eq!(
            parsed("trace"),
            Ok(Request::Trace(trace::Options::default()))
        );
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            parsed("check a --btf c b --json --btf=e"),
            Ok(Request::Check(check::Options {
                objects: paths(&["a", "b"]),
                btf: paths(&["c", "e"]),
                json: true,
            }))
        );
        assert_eq!(
            parsed("minimise --btf full -o out a b"),
            Ok(Request::Minimise(minimise::Options {
                btf: Some("full".into()),
                output: "out".into(),
                objects: paths(&["a", "b"]),
            }))
        );
        assert_eq!(
            parsed("run --clean m --btf x --verbose --duration 5s"),
            Ok(Request::Run(run::Options {
                manifest: "m".into(),
                duration: Some(Duration::from_secs(5)),
                clean: true,
                btf: Some("x".into()),
                verbose: true,
            }))
        );
        assert_eq!(parsed("-V"), Ok(Request::Version));
        assert_eq!(parsed("help"), Ok(Request::Show(HELP)));
        assert_eq!(parsed("help link"), Ok(Request::Show(LINK_HELP)));
        assert_eq!(parsed("--help"), Ok(Request::Show(HELP)));
        assert_eq!(parsed("trace --json -h"), Ok(Request::Show(TRACE_HELP)));
    }

    #[test]
    fn mistakes_are_named_and_point_to_help() {
        for (line, says) in [
            ("", "no command"),
            ("frobnicate", "frobnicate"),
            ("--frob", "--frob"),
            ("trace --frob", "--frob"),
            ("help frob", "frob"),
            ("help run extra", "extra"),
            ("trace extra", "extra"),
            ("trace --duration", "--duration"),
            ("trace --duration 5", "\"5\""),
            ("trace --duration soon", "500ms"),
            ("trace --json=yes", "--json"),
            ("trace --min-duration 1.5s", "--min-duration"),
            ("inspect", "FILE"),
            ("inspect a b", "b"),
            ("inspect --frob a", "--frob"),
            ("link -o a", "OBJECT"),
            ("link a b", "-o FILE"),
            ("check", "OBJECT"),
            ("check --btf a", "OBJECT"),
            ("check a --btf", "--btf"),
            ("check a --frob", "--frob"),
            ("minimise a", "-o"),
            ("minimise -o a", "OBJECT"),
            ("minimise a -o", "-o"),
            ("run", "MANIFEST"),
            ("run a b", "b"),
            ("run a --duration soon", "500ms"),
        ] {
            let message = parsed(line).unwrap_err();
            assert!(message.contains(says), "{line:?}: {message}");
            assert!(message.contains("--help"), "{line:?}: {message}");
        }
    }

    #[test]
    fn help_fits_a_terminal() {
        for line in [
            HELP,
            TRACE_HELP,
            INSPECT_HELP,
            CHECK_HELP,
            LINK_HELP,
            MINIMISE_HELP,
            RUN_HELP,
        ]
        .iter()
        .flat_map(|t| t.lines())
        {
            assert!(line.len() <= 80, "{line}");
        }
    }
}
