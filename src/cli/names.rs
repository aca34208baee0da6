//! What each living process executed, for the line that reports its end.

use std::collections::BTreeMap;

/// Processes remembered at most.
const LIMIT: usize = 16 * 1024;

/// File names by process.
///
/// Entries normally go when the process ends. Ends can be lost, or not be
/// reported (`--min-duration`), so a full table drops the processes that are
/// gone; if that leaves more than half of it, it starts again.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// By pid; a pid that is used again replaces what is known about it.
    by_pid: BTreeMap<u32, Executed>,
}

#[derive(Debug)]
struct Executed {
    start_ns: u64,
    file: Box<[u8]>,
}

impl Names {
    /// Remembers that a process executed `file`. `alive` is asked about other
    /// processes when there is no room.
    pub(crate) fn insert(
        &mut self,
        (pid, start_ns): (u32, u64),
        file: &[u8],
        alive: impl Fn(u32) -> bool,
    ) {
        if self.by_pid.len() >= LIMIT {
            self.by_pid.retain(|&pid, _| alive(pid));
            if self.by_pid.len() > LIMIT / 2 {
                self.by_pid.clear();
            }
        }
        let file = file.into();
        self.by_pid.insert(pid, Executed { start_ns, file });
    }

    /// Forgets a process; what it executed last, if that is known.
    pub(crate) fn remove(&mut self, (pid, start_ns): (u32, u64)) -> Option<Box<[u8]>> {
        let executed = self.by_pid.remove(&pid)?;
        (executed.start_ns == start_ns).then_some(executed.file)
    }
}

/// True if a process of this number exists. A `/proc` of another namespace, or
/// none, answers wrongly; names are lost then.
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_file_of_the_same_process() {
        let mut names = Names::default();
        names.insert((7, 100), b"/bin/sh", |_| true);
        names.insert((7, 100), b"/bin/ls", |_| true);
        assert_eq!(names.remove((7, 100)).as_deref(), Some(&b"/bin/ls"[..]));
        assert_eq!(names.remove((7, 100)), None);
        // The pid is used again; the new process executed nothing.
        names.insert((7, 100), b"/bin/sh", |_| true);
        assert_eq!(names.remove((7, 200)), None);
        assert_eq!(names.remove((7, 100)), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut names = Names::default();
        for pid in 0..100_000 {
            names.insert((pid, 1), b"x", |pid| pid == 5);
            assert!(names.by_pid.len() <= LIMIT);
        }
        assert_eq!(names.remove((5, 1)).as_deref(), Some(&b"x"[..]));
        for pid in 0..100_000 {
            names.insert((pid, 1), b"x", |_| true);
            assert!(names.by_pid.len() <= LIMIT);
        }
    }

    #[test]
    fn this_process_is_alive() {
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(u32::MAX));
    }
}
