//! The verifier's log: kept whole, summed up in one line, tied to the source.

use std::fmt;

/// What the kernel's verifier (or its BTF checker) wrote about one load.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct VerifierLog {
    text: String,
    truncated: bool,
}

/// A line of the program's C source, from the object's BTF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLine {
    /// File name as the compiler recorded it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1; 0 if unknown.
    pub column: u32,
    /// The line itself, without indentation.
    pub text: String,
    /// C function the line belongs to.
    pub function: String,
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{} in {}: {}",
            self.file, self.line, self.function, self.text
        )
    }
}

/// First immediate that [`ebpf_manager_elf::core_relo`] poisons instructions
/// with; the verifier prints it as the number of an unknown function.
const UNKNOWN_FUNC: &str = "unknown#";

impl VerifierLog {
    /// Takes the kernel's bytes: up to the first NUL, decoded lossily.
    pub fn new(mut bytes: Vec<u8>, truncated: bool) -> VerifierLog {
        if let Some(end) = bytes.iter().position(|b| *b == 0) {
            bytes.truncate(end);
        }
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(err) => String::from_utf8_lossy(err.as_bytes()).into_owned(),
        };
        VerifierLog { text, truncated }
    }

    /// The whole log.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// True if the kernel had more to say than the largest buffer allowed;
    /// the end is missing then.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// True if the kernel wrote nothing.
    pub fn is_empty(&self) -> bool {
        self.text.trim().is_empty()
    }

    /// The line that says why: the last one that is neither a statistic nor a
    /// trace of an instruction.
    pub fn summary(&self) -> Option<&str> {
        let telling = |line: &&str| !line.is_empty() && !is_statistic(line) && !is_annotation(line);
        let mut lines = self.text.lines().rev().map(str::trim).filter(telling);
        let last = lines.clone().next();
        lines.find(|line| insn_index(line).is_none()).or(last)
    }

    /// The last `count` lines before the statistics.
    pub fn tail(&self, count: usize) -> impl Iterator<Item = &str> {
        let lines: Vec<&str> = self
            .text
            .lines()
            .filter(|l| !l.trim().is_empty() && !is_statistic(l))
            .collect();
        let skip = lines.len().saturating_sub(count);
        lines.into_iter().skip(skip)
    }

    /// The instruction the verifier looked at last.
    pub fn last_insn(&self) -> Option<u32> {
        self.text.lines().rev().find_map(insn_index)
    }

    /// The number of the unknown function that the verifier refused to call,
    /// which is how it reports an instruction poisoned by a CO-RE relocation.
    pub fn unknown_function(&self) -> Option<u32> {
        let start = self.text.rfind(UNKNOWN_FUNC)? + UNKNOWN_FUNC.len();
        let digits = self.text.get(start..)?;
        let end = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        digits.get(..end)?.parse().ok()
    }
}

/// `12: (85) call …`: the trace of an instruction.
fn insn_index(line: &str) -> Option<u32> {
    let (number, rest) = line.trim_start().split_once(": ")?;
    if !rest.starts_with('(') {
        return None;
    }
    number.parse().ok()
}

/// Lines that sum up a run of the verifier rather than explain a refusal.
fn is_statistic(line: &str) -> bool {
    const STARTS: [&str; 7] = [
        "processed ",
        "verification time ",
        "stack depth ",
        "max_states",
        "peak_states",
        "mark_precise:",
        "insns processed",
    ];
    let line = line.trim_start();
    STARTS.iter().any(|s| line.starts_with(s))
}

/// Source lines (`; x = y`) and register dumps that stand between
/// instructions.
fn is_annotation(line: &str) -> bool {
    line.starts_with(';')
        || line.starts_with("from ")
        || is_state(line)
        || line.starts_with("arg#")
        || line.starts_with("func#")
}

/// `R1=ctx()`, `11: R0_w=1`; not `R1 invalid mem access`, which is a reason.
fn is_state(line: &str) -> bool {
    let mut rest = line.bytes();
    let first = rest.find(|b| !matches!(b, b'0'..=b'9' | b':' | b' '));
    first == Some(b'R') && matches!(rest.find(|b| !b.is_ascii_digit()), Some(b'=' | b'_'))
}

impl fmt::Display for VerifierLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for VerifierLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "VerifierLog({} bytes, {:?})",
            self.text.len(),
            self.summary().unwrap_or("")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
0: R1=ctx() R10=fp0
; int x = *(int *)(ctx + 0); @ bad.c:12
0: (61) r1 = *(u32 *)(r1 +0)          ; R1_w=scalar()
1: (85) call unknown#195896085
invalid func unknown#195896085
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0
";

    #[test]
    fn summary_is_the_reason() {
        let log = VerifierLog::new(LOG.as_bytes().to_vec(), false);
        assert_eq!(log.summary(), Some("invalid func unknown#195896085"));
        assert_eq!(log.last_insn(), Some(1));
        assert_eq!(log.unknown_function(), Some(195_896_085));
        assert_eq!(log.tail(2).collect::<Vec<_>>().len(), 2);
    }

    #[test]
    fn register_dump_after_the_reason_is_skipped() {
        let text = "5: (79) r2 = *(u64 *)(r1 +8)\ninvalid mem access 'scalar'\nR1=scalar()\nverification time 12 usec\n";
        let log = VerifierLog::new(text.as_bytes().to_vec(), false);
        assert_eq!(log.summary(), Some("invalid mem access 'scalar'"));
        assert_eq!(log.last_insn(), Some(5));
    }

    #[test]
    fn reasons_may_be_about_a_register() {
        let text = "4: (0d) gotox r1\n11: R1=insn(smax=32) R10=fp0\n12: (79) r0 = *(u64 *)(r1 +0)\nR1 invalid mem access 'scalar'\nprocessed 12 insns\n";
        let log = VerifierLog::new(text.as_bytes().to_vec(), false);
        assert_eq!(log.summary(), Some("R1 invalid mem access 'scalar'"));
        let text = "R10 !read_ok\n0: R1_w=ctx() R10=fp0\nR0=1\n";
        let log = VerifierLog::new(text.as_bytes().to_vec(), false);
        assert_eq!(log.summary(), Some("R10 !read_ok"));
    }

    #[test]
    fn bytes_are_decoded_lossily_and_cut_at_nul() {
        let log = VerifierLog::new(b"a\xff b\0garbage".to_vec(), true);
        assert_eq!(log.as_str(), "a\u{fffd} b");
        assert!(log.is_truncated());
        assert!(VerifierLog::new(vec![0; 10], false).is_empty());
        assert_eq!(VerifierLog::default().summary(), None);
    }
}
