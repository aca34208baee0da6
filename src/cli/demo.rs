//! A little activity for `trace --demo`: one process of each kind that the
//! output can tell apart.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// When, after the start, which program with which arguments. All of it is
/// POSIX; a program that is missing is left out.
const STEPS: [(Duration, &[&str]); 6] = [
    (Duration::from_millis(50), &["true"]),
    (Duration::from_millis(150), &["sleep", "0.4"]),
    (Duration::from_millis(250), &["sh", "-c", "exit 3"]),
    (Duration::from_millis(400), &["sh", "-c", "kill -KILL $$"]),
    (Duration::from_millis(550), &["false"]),
    (Duration::from_millis(700), &["sh", "-c", "sleep 0.1; true"]),
];

/// Longest time a step may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often to look whether a process has ended.
const TICK: Duration = Duration::from_millis(20);

/// The demonstration in progress. Dropping it ends its processes.
#[derive(Debug)]
pub(crate) struct Demo {
    begun: Instant,
    next: usize,
    children: Vec<Child>,
}

impl Demo {
    pub(crate) fn new() -> Demo {
        Demo {
            begun: Instant::now(),
            next: 0,
            children: Vec::new(),
        }
    }

    /// Does what is due. Returns how long to wait before calling again, or
    /// `None` when everything has ended.
    pub(crate) fn advance(&mut self) -> Option<Duration> {
        self.children
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let elapsed = self.begun.elapsed();
        while let Some((at, words)) = STEPS.get(self.next) {
            match at.checked_sub(elapsed) {
                Some(left) if !left.is_zero() => return Some(left),
                _ => {}
            }
            self.next += 1;
            self.children.extend(spawn(words));
        }
        let last = STEPS.last().map_or(Duration::ZERO, |(at, _)| *at);
        let over = self.children.is_empty() || elapsed > last + PATIENCE;
        (!over).then_some(TICK)
    }
}

fn spawn(words: &[&str]) -> Option<Child> {
    let (program, arguments) = words.split_first()?;
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

impl Drop for Demo {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Both fail only for a child that has been waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_by_itself() {
        let mut demo = Demo::new();
        while let Some(pause) = demo.advance() {
            std::thread::sleep(pause);
        }
        assert_eq!(demo.next, STEPS.len());
        assert!(demo.begun.elapsed() < PATIENCE);
    }

    #[test]
    fn missing_programs_are_left_out() {
        assert!(spawn(&["/nonexistent/program"]).is_none());
    }
}
