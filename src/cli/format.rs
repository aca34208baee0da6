//! Events and their parts as text: aligned columns for people, JSON for
//! programs. Adds to a buffer and does nothing else.

use std::io::Write;

use super::event::{Event, WaitStatus, What};

/// Columns of a line before the file name.
const COLUMNS_BEFORE_FILE: usize = 70;

// Writing to a vector cannot fail, so the results of `write!` are dropped.

/// Names of the columns that [`text`] writes.
pub(crate) fn header(out: &mut Vec<u8>) {
    let _ = writeln!(
        out,
        "{:>8} {:5} {:>7} {:>7} {:>5} {:15} {:>8} {:7} FILE",
        "TIME", "EVENT", "PID", "PPID", "UID", "COMM", "DURATION", "STATUS"
    );
}

/// One event as a line for people. `since_ns` is the time that TIME counts
/// from; the file name ends where a line of `width` columns does.
pub(crate) fn text(
    out: &mut Vec<u8>,
    event: &Event<'_>,
    file: Option<&[u8]>,
    since_ns: u64,
    width: Option<usize>,
) {
    let millis = event.time_ns.saturating_sub(since_ns) / 1_000_000;
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (kind, lifetime, status) = match event.what {
        What::Exec(_) => ("exec", "-".to_owned(), "-".to_owned()),
        What::Exit(status) => (
            "exit",
            duration(event.time_ns.saturating_sub(event.start_ns)),
            status_text(status),
        ),
    };
    let (pid, ppid, uid) = (event.pid, event.ppid, event.uid);
    let _ = write!(
        out,
        "{seconds:>4}.{millis:03} {kind:5} {pid:>7} {ppid:>7} {uid:>5} "
    );
    let used = name(out, event.comm, usize::MAX);
    out.resize(out.len() + 15_usize.saturating_sub(used), b' ');
    let _ = write!(out, " {lifetime:>8} {status:7} ");
    match file {
        Some(file) => {
            let room = width.map_or(usize::MAX, |w| w.saturating_sub(COLUMNS_BEFORE_FILE));
            name(out, file, room);
        }
        None => out.push(b'-'),
    }
    out.push(b'\n');
}

/// Exit code, or signal and whether memory was dumped.
fn status_text(status: WaitStatus) -> String {
    let core = if status.core_dumped() { " (core)" } else { "" };
    match (status.code(), status.signal()) {
        (Some(code), _) => code.to_string(),
        (None, Some(signal)) => format!("{}{core}", signal_name(signal)),
        (None, None) => "-".to_owned(),
    }
}

/// A signal's name; numbers without one become `SIG` and the number.
fn signal_name(signal: u8) -> String {
    // The numbers of all architectures but MIPS, SPARC, Alpha and PA-RISC.
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    match NAMES.get(usize::from(signal).wrapping_sub(1)) {
        Some(name) => format!("SIG{name}"),
        None => format!("SIG{signal}"),
    }
}

/// A length of time with three significant digits, in at most seven columns
/// for anything below 27 years: `850us`, `12.3ms`, `2m05s`, `3h07m`, `12d04h`.
pub(crate) fn duration(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let thousands = |unit_ns: u64, unit: &str| {
        let (whole, thousandths) = (ns / unit_ns, ns % unit_ns * 1000 / unit_ns);
        match whole {
            0..10 => format!("{whole}.{:02}{unit}", thousandths / 10),
            10..100 => format!("{whole}.{}{unit}", thousandths / 100),
            _ => format!("{whole}{unit}"),
        }
    };
    match ns {
        0..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => format!("{}us", ns / 1_000),
        1_000_000..1_000_000_000 => thousands(1_000_000, "ms"),
        1_000_000_000..60_000_000_000 => thousands(1_000_000_000, "s"),
        _ if seconds < 3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ if seconds < 86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// Adds a name that somebody else chose: control characters, bytes that are
/// not UTF-8, invisible characters and backslashes are escaped, so that it
/// can neither break the line nor pretend to be another. A name of more than
/// `limit` columns loses its beginning, which tells less of a path than the
/// end. Returns the columns used.
fn name(out: &mut Vec<u8>, name: &[u8], limit: usize) -> usize {
    let total: usize = pieces(name).map(Piece::columns).sum();
    let mut excess = 0;
    let mut columns = 0;
    if total > limit {
        columns = limit.min(3);
        out.extend_from_slice(&b"..."[..columns]);
        excess = total - (limit - columns);
    }
    for piece in pieces(name) {
        if excess > 0 {
            excess = excess.saturating_sub(piece.columns());
            continue;
        }
        columns += piece.columns();
        // Writing to a vector cannot fail.
        let _ = match piece {
            Piece::Backslash => write!(out, "\\\\"),
            Piece::Byte(byte) => write!(out, "\\x{byte:02x}"),
            Piece::Hidden(c) => write!(out, "\\u{{{:04x}}}", u32::from(c)),
            Piece::Shown(c) => write!(out, "{c}"),
        };
    }
    columns
}

/// A character of a name, or a byte that is none.
#[derive(Clone, Copy)]
enum Piece {
    Shown(char),
    Backslash,
    Byte(u8),
    Hidden(char),
}

impl Piece {
    fn columns(self) -> usize {
        match self {
            // Rather too wide than too narrow: from U+1100 on some characters
            // take two columns.
            Piece::Shown(c) => 1 + usize::from(c >= '\u{1100}'),
            Piece::Backslash => 2,
            Piece::Byte(_) => 4,
            Piece::Hidden(c) => 8 + usize::from(c > '\u{ffff}'),
        }
    }
}

fn pieces(name: &[u8]) -> impl Iterator<Item = Piece> {
    name.utf8_chunks().flat_map(|chunk| {
        let chars = chunk.valid().chars().map(|c| match c {
            '\\' => Piece::Backslash,
            c if c.is_ascii_control() => Piece::Byte(c as u8),
            c if c.is_control() || is_invisible(c) => Piece::Hidden(c),
            c => Piece::Shown(c),
        });
        chars.chain(chunk.invalid().iter().map(|&byte| Piece::Byte(byte)))
    })
}

/// Characters that change how others are shown and show nothing themselves.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}

/// One event as a line of JSON. `unix_ns` is its time since 1970.
pub(crate) fn json(out: &mut Vec<u8>, event: &Event<'_>, file: Option<&[u8]>, unix_ns: u64) {
    let kind = match event.what {
        What::Exec(_) => "exec",
        What::Exit(_) => "exit",
    };
    let (pid, ppid, uid) = (event.pid, event.ppid, event.uid);
    let _ = write!(out, "{{\"event\":\"{kind}\",\"time\":\"");
    rfc3339(out, unix_ns);
    let _ = write!(
        out,
        "\",\"pid\":{pid},\"ppid\":{ppid},\"uid\":{uid},\"comm\":"
    );
    json_string(out, event.comm);
    out.extend_from_slice(b",\"file\":");
    match file {
        Some(file) => json_string(out, file),
        None => out.extend_from_slice(b"null"),
    }
    if let What::Exit(status) = event.what {
        let lifetime = event.time_ns.saturating_sub(event.start_ns);
        let _ = write!(out, ",\"duration_ns\":{lifetime},");
        let _ = match (status.code(), status.signal()) {
            (None, Some(signal)) => write!(
                out,
                "\"exit_code\":null,\"signal\":\"{}\"",
                signal_name(signal)
            ),
            (code, _) => write!(
                out,
                "\"exit_code\":{},\"signal\":null",
                code.unwrap_or_default()
            ),
        };
        let _ = write!(out, ",\"core_dumped\":{}", status.core_dumped());
    }
    out.extend_from_slice(b"}\n");
}

/// A JSON string. Bytes that are not UTF-8 become U+FFFD, one for each
/// sequence that is broken.
pub(crate) fn json_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        for &byte in chunk.valid().as_bytes() {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                0..0x20 | 0x7f => {
                    let _ = write!(out, "\\u{byte:04x}");
                }
                _ => out.push(byte),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}

/// A point in time as RFC 3339 writes it, in UTC, with microseconds.
fn rfc3339(out: &mut Vec<u8>, unix_ns: u64) {
    let micros = unix_ns / 1000 % 1_000_000;
    let seconds = unix_ns / 1_000_000_000;
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);

    // Years that begin in March have their odd day at the end. Counted from
    // the first of March of the year 0: 719468 days before 1970.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on: 31 30 31 30 31, twice, and the rest.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + next;
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(f: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        f(&mut out);
        String::from_utf8(out).unwrap()
    }

    const EXEC: Event<'_> = Event {
        time_ns: 7_250_000_000,
        start_ns: 7_100_000_000,
        pid: 4242,
        ppid: 1,
        uid: 0,
        comm: b"true",
        what: What::Exec(Some(b"/bin/true")),
    };

    fn exit(status: u32) -> Event<'static> {
        Event {
            what: What::Exit(WaitStatus(status)),
            ..EXEC
        }
    }

    #[test]
    fn columns_line_up() {
        let header = made(header);
        let at = |line: &str, word: &str| line.find(word).unwrap();
        let end = |line: &str, word: &str| at(line, word) + word.len();
        for (event, duration, status) in [
            (EXEC, "-", "-"),
            (exit(0), "150ms", "0"),
            (exit(9), "150ms", "SIGKILL"),
        ] {
            let file = Some(&b"/bin/true"[..]);
            let line = made(|out| text(out, &event, file, 7_000_000_000, None));
            assert!(line.starts_with("   0.250 ex"), "{line}");
            assert_eq!(end(&line, "0.250"), end(&header, "TIME"));
            assert_eq!(end(&line, "4242"), end(&header, "PID"));
            assert_eq!(end(&line, "     1"), end(&header, "PPID"));
            assert_eq!(end(&line, "    0"), end(&header, "UID"));
            assert_eq!(at(&line, "true"), at(&header, "COMM"));
            let column = &line[..end(&header, "DURATION")];
            assert!(column.ends_with(&format!(" {duration}")), "{line}");
            let column = &line[at(&header, "STATUS")..];
            assert!(column.starts_with(&format!("{status} ")), "{line}");
            assert_eq!(at(&line, "/bin/true"), at(&header, "FILE"));
            assert_eq!(at(&header, "FILE"), COLUMNS_BEFORE_FILE);
        }
    }

    #[test]
    fn nothing_is_known_of_the_file() {
        let line = made(|out| text(out, &exit(0), None, 0, Some(80)));
        assert!(line.ends_with(" 0       -\n"), "{line}");
    }

    #[test]
    fn statuses_of_every_kind() {
        let text = |raw| status_text(WaitStatus(raw));
        assert_eq!(text(0), "0");
        assert_eq!(text(255 << 8), "255");
        assert_eq!(text(9), "SIGKILL");
        assert_eq!(text(0x80 + 11), "SIGSEGV (core)");
        assert_eq!(text(31), "SIGSYS");
        assert_eq!(text(40), "SIG40");
        assert_eq!(signal_name(1), "SIGHUP");
        assert_eq!(signal_name(0), "SIG0");
    }

    #[test]
    fn durations_have_three_digits() {
        let cases = [
            (0, "0ns"),
            (999, "999ns"),
            (1_000, "1us"),
            (999_999, "999us"),
            (1_000_000, "1.00ms"),
            (1_239_999, "1.23ms"),
            (12_300_000, "12.3ms"),
            (999_999_999, "999ms"),
            (1_000_000_000, "1.00s"),
            (59_999_999_999, "59.9s"),
            (60_000_000_000, "1m00s"),
            (125_000_000_000, "2m05s"),
            (3_599_000_000_000, "59m59s"),
            (11_220_000_000_000, "3h07m"),
            (86_400_000_000_000, "1d00h"),
            (u64::MAX, "213503d23h"),
        ];
        for (ns, text) in cases {
            assert_eq!(duration(ns), text);
        }
    }

    fn shown(bytes: &[u8], limit: usize) -> (String, usize) {
        let mut columns = 0;
        let text = made(|out| columns = name(out, bytes, limit));
        (text, columns)
    }

    #[test]
    fn names_cannot_disturb_the_terminal() {
        let all = usize::MAX;
        assert_eq!(shown(b"a b", all), ("a b".into(), 3));
        assert_eq!(
            shown(b"\x1b[2J\n\x7f", all),
            ("\\x1b[2J\\x0a\\x7f".into(), 15)
        );
        assert_eq!(shown(b"a\\x0a", all), ("a\\\\x0a".into(), 6));
        assert_eq!(shown(b"\xff\xc3", all), ("\\xff\\xc3".into(), 8));
        assert_eq!(
            shown("\u{9b}\u{202e}".as_bytes(), all),
            ("\\u{009b}\\u{202e}".into(), 16)
        );
        assert_eq!(shown("é".as_bytes(), all), ("é".into(), 1));
        assert_eq!(shown("文".as_bytes(), all), ("文".into(), 2));
    }

    #[test]
    fn names_are_cut_to_the_room_there_is() {
        assert_eq!(shown(b"/usr/bin/true", 13), ("/usr/bin/true".into(), 13));
        assert_eq!(shown(b"/usr/bin/true", 12), (".../bin/true".into(), 12));
        assert_eq!(shown(b"/usr/bin/true", 4), ("...e".into(), 4));
        assert_eq!(shown(b"/usr/bin/true", 3), ("...".into(), 3));
        assert_eq!(shown(b"/usr/bin/true", 1), (".".into(), 1));
        assert_eq!(shown(b"/usr/bin/true", 0), (String::new(), 0));
        assert_eq!(shown("文文文".as_bytes(), 6), ("文文文".into(), 6));
        assert_eq!(shown("文文文".as_bytes(), 5), ("...文".into(), 5));
        assert_eq!(shown("文文文".as_bytes(), 4), ("...".into(), 3));
        assert_eq!(shown(b"\nab", 5), ("...ab".into(), 5));
        // Whatever the name, the line fits.
        let name = "\x1bx文é\u{202e}\\".as_bytes();
        for limit in 0..30 {
            assert!(shown(name, limit).1 <= limit);
        }
        let line = made(|out| text(out, &EXEC, Some(&[b'x'; 300]), 0, Some(100)));
        assert_eq!(line.len(), 100 + 1);
        let line = made(|out| text(out, &EXEC, Some(&[b'x'; 300]), 0, None));
        assert_eq!(line.len(), COLUMNS_BEFORE_FILE + 300 + 1);
    }

    #[test]
    fn json_lines_have_stable_fields() {
        let time = 1_700_000_000_123_456_789;
        let line = made(|out| json(out, &EXEC, Some(b"/bin/true"), time));
        assert_eq!(
            line,
            "{\"event\":\"exec\",\"time\":\"2023-11-14T22:13:20.123456Z\",\"pid\":4242,\
             \"ppid\":1,\"uid\":0,\"comm\":\"true\",\"file\":\"/bin/true\"}\n"
        );
        let tail = |status| {
            let line = made(|out| json(out, &exit(status), None, time));
            line.split_once(",\"file\":").unwrap().1.to_owned()
        };
        assert_eq!(
            tail(3 << 8),
            "null,\"duration_ns\":150000000,\"exit_code\":3,\"signal\":null,\
             \"core_dumped\":false}\n"
        );
        assert_eq!(
            tail(0x80 + 11),
            "null,\"duration_ns\":150000000,\"exit_code\":null,\"signal\":\"SIGSEGV\",\
             \"core_dumped\":true}\n"
        );
    }

    #[test]
    fn json_strings_are_escaped() {
        let json = |bytes| made(|out| json_string(out, bytes));
        assert_eq!(json(b"a\"b\\c/d"), r#""a\"b\\c/d""#);
        assert_eq!(json(b"\n\r\t\x00\x1b\x7f"), r#""\n\r\t\u0000\u001b\u007f""#);
        assert_eq!(json("é文\u{2028}".as_bytes()), "\"é文\u{2028}\"");
        assert_eq!(json(b"a\xffb\xe6\x96"), "\"a\u{fffd}b\u{fffd}\"");
        // A surrogate half is three broken sequences.
        assert_eq!(json(b"\xed\xa0\x80"), "\"\u{fffd}\u{fffd}\u{fffd}\"");
    }

    #[test]
    fn dates() {
        let date = |seconds: u64| made(|out| rfc3339(out, seconds * 1_000_000_000));
        assert_eq!(date(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00.000000Z");
        assert_eq!(date(951_868_799), "2000-02-29T23:59:59.000000Z");
        assert_eq!(date(951_868_800), "2000-03-01T00:00:00.000000Z");
        assert_eq!(date(1_735_689_599), "2024-12-31T23:59:59.000000Z");
        assert_eq!(date(4_107_542_400), "2100-03-01T00:00:00.000000Z");
        assert_eq!(date(4_107_542_399), "2100-02-28T23:59:59.000000Z");
    }
}
